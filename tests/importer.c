// SPDX-License-Identifier: GPL-2.0
/*
 * Test importer: maps any dma-buf and gets at it by its DMA addresses, as a
 * device would. vgem and vkms import without mapping.
 */
#include <linux/dma-buf.h>
#include <linux/dma-direct.h>
#include <linux/dma-mapping.h>
#include <linux/iosys-map.h>
#include <linux/miscdevice.h>
#include <linux/module.h>
#include <linux/scatterlist.h>
#include <linux/slab.h>
#include <linux/uaccess.h>

#include "importer.h"

static struct miscdevice importer;

static int copy_user(void *at, u64 user, size_t len, bool write)
{
	void __user *from = u64_to_user_ptr(user);

	return (write ? copy_from_user(at, from, len) : copy_to_user(from, at, len)) ? -EFAULT : 0;
}

static int access_dma(struct dma_buf *buf, const struct importer_access *access)
{
	bool write = access->flags & IMPORTER_WRITE;
	enum dma_data_direction dir = write ? DMA_FROM_DEVICE : DMA_TO_DEVICE;
	u64 skip = access->offset, left = access->len, user = access->user;
	struct dma_buf_attachment *at;
	struct scatterlist *sg;
	struct sg_table *table;
	int i, ret = 0;

	at = dma_buf_attach(buf, importer.this_device);
	if (IS_ERR(at))
		return PTR_ERR(at);
	table = dma_buf_map_attachment_unlocked(at, dir);
	if (IS_ERR(table)) {
		ret = PTR_ERR(table);
		goto detach;
	}
	for_each_sgtable_dma_sg(table, sg, i) {
		u64 seg = sg_dma_len(sg), n;

		if (skip >= seg) {
			skip -= seg;
			continue;
		}
		n = min(left, seg - skip);
		/* Without an IOMMU this is memory, be it a bounce buffer. */
		ret = copy_user(phys_to_virt(dma_to_phys(importer.this_device,
							 sg_dma_address(sg) + skip)),
				user, n, write);
		left -= n;
		user += n;
		skip = 0;
		if (ret || !left)
			break;
	}
	if (!ret && left)
		ret = -ERANGE;
	dma_buf_unmap_attachment_unlocked(at, table, dir);
detach:
	dma_buf_detach(buf, at);
	return ret;
}

static int access_vmap(struct dma_buf *buf, const struct importer_access *access)
{
	struct iosys_map map;
	int ret;

	if (access->offset > buf->size || access->len > buf->size - access->offset)
		return -ERANGE;
	ret = dma_buf_vmap_unlocked(buf, &map);
	if (ret)
		return ret;
	ret = copy_user(map.vaddr + access->offset, access->user, access->len,
			access->flags & IMPORTER_WRITE);
	dma_buf_vunmap_unlocked(buf, &map);
	return ret;
}

static long twice(struct dma_buf *buf)
{
	struct sg_table *to, *both;
	struct dma_buf_attachment *at;
	int order;
	long ret = 0;

	at = dma_buf_attach(buf, importer.this_device);
	if (IS_ERR(at))
		return PTR_ERR(at);
	for (order = 0; order < 2 && ret >= 0; order++) {
		to = dma_buf_map_attachment_unlocked(at, DMA_TO_DEVICE);
		both = dma_buf_map_attachment_unlocked(at, DMA_BIDIRECTIONAL);
		ret = PTR_ERR_OR_ZERO(to) ?: PTR_ERR_OR_ZERO(both);
		if (!ret)
			ret = dma_buf_begin_cpu_access(buf, DMA_BIDIRECTIONAL);
		if (!ret)
			ret = dma_buf_end_cpu_access(buf, DMA_BIDIRECTIONAL);
		if (!ret)
			ret = both->nents;
		if (order && !IS_ERR(both))
			dma_buf_unmap_attachment_unlocked(at, both, DMA_BIDIRECTIONAL);
		if (!IS_ERR(to))
			dma_buf_unmap_attachment_unlocked(at, to, DMA_TO_DEVICE);
		if (!order && !IS_ERR(both))
			dma_buf_unmap_attachment_unlocked(at, both, DMA_BIDIRECTIONAL);
	}
	dma_buf_detach(buf, at);
	return ret;
}

static long importer_ioctl(struct file *file, unsigned int cmd, unsigned long arg)
{
	struct importer_access access = {};
	struct dma_buf *buf;
	long ret;

	if (cmd != IMPORTER_ACCESS && cmd != IMPORTER_TWICE)
		return -ENOTTY;
	/* Both begin with the fd. */
	if (copy_from_user(&access, (void __user *)arg, _IOC_SIZE(cmd)))
		return -EFAULT;
	buf = dma_buf_get(access.fd);
	if (IS_ERR(buf))
		return PTR_ERR(buf);
	if (cmd == IMPORTER_TWICE)
		ret = twice(buf);
	else if (access.flags & ~(IMPORTER_WRITE | IMPORTER_VMAP))
		ret = -EINVAL;
	else if (access.flags & IMPORTER_VMAP)
		ret = access_vmap(buf, &access);
	else
		ret = access_dma(buf, &access);
	dma_buf_put(buf);
	return ret;
}

static const struct file_operations importer_fops = {
	.owner = THIS_MODULE,
	.unlocked_ioctl = importer_ioctl,
	.compat_ioctl = compat_ptr_ioctl,
};

static struct miscdevice importer = {
	.minor = MISC_DYNAMIC_MINOR,
	.name = "pagekit-importer",
	.fops = &importer_fops,
};

static int __init importer_init(void)
{
	int ret = misc_register(&importer);

	if (ret)
		return ret;
	ret = dma_coerce_mask_and_coherent(importer.this_device, DMA_BIT_MASK(64));
	if (ret)
		misc_deregister(&importer);
	return ret;
}
module_init(importer_init);

static void __exit importer_exit(void)
{
	misc_deregister(&importer);
}
module_exit(importer_exit);

MODULE_AUTHOR("The pagekit authors");
MODULE_DESCRIPTION("Test importer of dma-bufs");
MODULE_LICENSE("GPL");
MODULE_IMPORT_NS("DMA_BUF");
