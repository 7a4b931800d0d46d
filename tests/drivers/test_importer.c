// SPDX-License-Identifier: GPL-2.0
/*
 * Test importer: maps any dma-buf and gets at it by its DMA addresses, as a
 * device would. vgem and vkms import without mapping. It also shows a guest what a
 * process has mapped, as KVM would.
 */
#include <linux/dma-buf.h>
#include <linux/dma-direct.h>
#include <linux/dma-fence.h>
#include <linux/dma-mapping.h>
#include <linux/dma-resv.h>
#include <linux/iosys-map.h>
#include <linux/miscdevice.h>
#include <linux/module.h>
#include <linux/mutex.h>
#include <linux/scatterlist.h>
#include <linux/slab.h>
#include <linux/uaccess.h>
#include <linux/workqueue.h>

#include "test_importer.h"

struct importer {
	struct mutex lock;	/* one ioctl at a time; taken before the reservation lock */
	struct dma_buf_attachment *at;

	/* Under the reservation lock of the buffer. */
	struct sg_table *table;	/* what is mapped */
	enum dma_data_direction dir;
	bool moved;		/* it was mapped, and shall be again when it is accessed */
	unsigned int moves;

	/* What the device does later, while there is a fence. It is all set before that. */
	struct dma_fence *fence;
	struct delayed_work later;
	void *place;
	u8 value;
};

static struct miscdevice importer_device;

/* --- Attachments ------------------------------------------------------------ */

static int map(struct importer *imp)
{
	struct sg_table *table = dma_buf_map_attachment(imp->at, imp->dir);

	if (IS_ERR(table))
		return PTR_ERR(table);
	imp->table = table;
	imp->moved = false;
	return 0;
}

static void unmap(struct importer *imp)
{
	if (imp->table)
		dma_buf_unmap_attachment(imp->at, imp->table, imp->dir);
	imp->table = NULL;
}

/*
 * Accesses hold the reservation lock, too: none is under way, and it can be unmapped at once. Not
 * while a fence is pending: do_later() does it then.
 */
static void importer_moves(struct dma_buf_attachment *at)
{
	struct importer *imp = at->importer_priv;

	imp->moves++;
	if (imp->table)
		imp->moved = true;
	if (!imp->fence)
		unmap(imp);
}

static const struct dma_buf_attach_ops importer_ops = {
	.invalidate_mappings = importer_moves,
};

static int attach(struct importer *imp, const struct importer_attach *arg)
{
	struct dma_buf_attachment *at;
	struct dma_buf *buf;

	if (arg->flags & ~IMPORTER_DYNAMIC)
		return -EINVAL;
	if (imp->at)
		return -EBUSY;
	buf = dma_buf_get(arg->fd);
	if (IS_ERR(buf))
		return PTR_ERR(buf);
	imp->moves = 0;
	imp->moved = false;
	at = dma_buf_dynamic_attach(buf, importer_device.this_device,
				    arg->flags & IMPORTER_DYNAMIC ? &importer_ops : NULL, imp);
	if (IS_ERR(at)) {
		dma_buf_put(buf);
		return PTR_ERR(at);
	}
	imp->at = at;
	return 0;
}

static void detach(struct importer *imp)
{
	struct dma_buf *buf = imp->at->dmabuf;

	flush_delayed_work(&imp->later);
	dma_resv_lock(buf->resv, NULL);
	unmap(imp);
	dma_resv_unlock(buf->resv);
	dma_buf_detach(buf, imp->at);
	dma_buf_put(buf);
	imp->at = NULL;
}

/* --- Access ------------------------------------------------------------------- */

/* Without an IOMMU this is memory, be it a bounce buffer. */
static void *memory_at(struct importer *imp, struct scatterlist *sg, u64 skip)
{
	return phys_to_virt(dma_to_phys(imp->at->dev, sg_dma_address(sg) + skip));
}

static int access_dma(struct importer *imp, u64 skip, void *data, size_t left, bool write)
{
	struct scatterlist *sg;
	long ret;
	int i;

	if (!imp->table && !imp->moved)
		return -ENXIO;
	if (imp->dir == (write ? DMA_TO_DEVICE : DMA_FROM_DEVICE))
		return -EACCES;
	if (!imp->table) {
		ret = map(imp);
		if (ret)
			return ret;
	}
	/* The exporter may still be moving it. For static importers the core has waited. */
	ret = dma_resv_wait_timeout(imp->at->dmabuf->resv, DMA_RESV_USAGE_KERNEL, true,
				    MAX_SCHEDULE_TIMEOUT);
	if (ret < 0)
		return ret;
	for_each_sgtable_dma_sg(imp->table, sg, i) {
		u64 seg = sg_dma_len(sg), n;
		void *at;

		if (skip >= seg) {
			skip -= seg;
			continue;
		}
		n = min_t(u64, left, seg - skip);
		at = memory_at(imp, sg, skip);
		memcpy(write ? at : data, write ? data : at, n);
		left -= n;
		data += n;
		skip = 0;
		if (!left)
			return 0;
	}
	return -ERANGE;
}

static int access_vmap(struct dma_buf *buf, u64 offset, void *data, size_t len, bool write)
{
	enum dma_data_direction dir = write ? DMA_TO_DEVICE : DMA_FROM_DEVICE;
	struct iosys_map map;
	int ret;

	if (offset > buf->size || len > buf->size - offset)
		return -ERANGE;
	/* In this order, as the core warns if it can't be mapped. */
	ret = dma_buf_begin_cpu_access(buf, dir);
	if (ret)
		return ret;
	ret = dma_buf_vmap_unlocked(buf, &map);
	if (!ret) {
		if (write)
			iosys_map_memcpy_to(&map, offset, data, len);
		else
			iosys_map_memcpy_from(data, &map, offset, len);
		dma_buf_vunmap_unlocked(buf, &map);
	}
	return dma_buf_end_cpu_access(buf, dir) ?: ret;
}

/* By way of a copy, because user memory may not be touched under the reservation lock. */
static int access(struct importer *imp, const struct importer_access *arg)
{
	void __user *user = u64_to_user_ptr(arg->user);
	struct dma_buf *buf = imp->at->dmabuf;
	bool write = arg->flags & IMPORTER_WRITE;
	void *data;
	int ret;

	if (arg->flags & ~(IMPORTER_WRITE | IMPORTER_VMAP) || arg->reserved)
		return -EINVAL;
	data = kvzalloc(arg->len, GFP_KERNEL_ACCOUNT | __GFP_NOWARN);
	if (!data)
		return -ENOMEM;
	if (write && copy_from_user(data, user, arg->len)) {
		ret = -EFAULT;
	} else if (arg->flags & IMPORTER_VMAP) {
		ret = access_vmap(buf, arg->offset, data, arg->len, write);
	} else {
		dma_resv_lock(buf->resv, NULL);
		ret = access_dma(imp, arg->offset, data, arg->len, write);
		dma_resv_unlock(buf->resv);
	}
	if (!ret && !write && copy_to_user(user, data, arg->len))
		ret = -EFAULT;
	kvfree(data);
	return ret;
}

static long twice(struct dma_buf_attachment *at)
{
	struct dma_buf *buf = at->dmabuf;
	struct sg_table *to, *both;
	int order;
	long ret = 0;

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
	return ret;
}

/* --- Later ----------------------------------------------------------------------- */

static const char *fence_name(struct dma_fence *fence)
{
	return "pagekit-importer";
}

static const struct dma_fence_ops fence_ops = {
	.get_driver_name = fence_name,
	.get_timeline_name = fence_name,
};

struct later_fence {
	struct dma_fence base;
	spinlock_t lock;
};

/* The device has done it, which frees the buffer to move. */
static void do_later(struct work_struct *work)
{
	struct importer *imp = container_of(to_delayed_work(work), struct importer, later);
	struct dma_resv *resv = imp->at->dmabuf->resv;

	memset(imp->place, imp->value, PAGE_SIZE);
	dma_fence_signal(imp->fence);
	dma_resv_lock(resv, NULL);
	dma_fence_put(imp->fence);
	imp->fence = NULL;
	if (imp->moved)
		unmap(imp);
	dma_resv_unlock(resv);
}

/* The page there, for a device that may write. */
static int find_place(struct importer *imp, u64 offset)
{
	struct scatterlist *sg;
	int i;

	if (!imp->table)
		return -ENXIO;
	if (imp->dir == DMA_TO_DEVICE)
		return -EACCES;
	for_each_sgtable_dma_sg(imp->table, sg, i) {
		if (offset < sg_dma_len(sg)) {
			imp->place = memory_at(imp, sg, offset);
			return 0;
		}
		offset -= sg_dma_len(sg);
	}
	return -ERANGE;
}

static int begin_later(struct importer *imp, const struct importer_later *arg)
{
	struct dma_resv *resv = imp->at->dmabuf->resv;
	struct later_fence *fence;
	int ret;

	if (!PAGE_ALIGNED(arg->offset) || arg->value > U8_MAX || arg->ms > IMPORTER_LATER_MAX)
		return -EINVAL;
	fence = kzalloc_obj(*fence);
	if (!fence)
		return -ENOMEM;
	spin_lock_init(&fence->lock);
	dma_fence_init(&fence->base, &fence_ops, &fence->lock, dma_fence_context_alloc(1), 1);
	dma_resv_lock(resv, NULL);
	ret = imp->fence ? -EBUSY : find_place(imp, arg->offset);
	if (!ret)
		ret = dma_resv_reserve_fences(resv, 1);
	if (!ret) {
		dma_resv_add_fence(resv, &fence->base, DMA_RESV_USAGE_WRITE);
		imp->fence = dma_fence_get(&fence->base);
		imp->value = arg->value;
		schedule_delayed_work(&imp->later, msecs_to_jiffies(arg->ms));
	}
	dma_resv_unlock(resv);
	dma_fence_put(&fence->base);
	return ret;
}

/* --- Page tables ----------------------------------------------------------------- */

static long entry(struct mm_struct *mm, unsigned long addr)
{
	struct follow_pfnmap_args args = { .address = addr };
	long ret = -EINVAL;

	mmap_read_lock(mm);
	args.vma = vma_lookup(mm, addr);
	if (args.vma && !follow_pfnmap_start(&args)) {
		pgprot_t wc = pgprot_writecombine(args.pgprot);

		/* What has the mode already isn't changed by getting it. */
		ret = (pgprot_val(wc) == pgprot_val(args.pgprot) ? IMPORTER_IS_WC : 0) |
		      (args.addr_mask != PAGE_MASK ? IMPORTER_IS_HUGE : 0);
		follow_pfnmap_end(&args);
	}
	mmap_read_unlock(mm);
	return ret;
}

/* As hva_to_pfn_remapped() of KVM. */
static long guest_fault(const struct importer_guest *arg)
{
	struct follow_pfnmap_args entry = { .address = arg->addr };
	bool unlocked = false;
	long ret;

	if (arg->write > 1 || arg->reserved)
		return -EINVAL;
	mmap_read_lock(current->mm);
	entry.vma = vma_lookup(current->mm, arg->addr);
	ret = entry.vma ? follow_pfnmap_start(&entry) : -EFAULT;
	if (entry.vma && ret) {
		ret = fixup_user_fault(current->mm, arg->addr, arg->write ? FAULT_FLAG_WRITE : 0,
				       &unlocked);
		/* The VMA may have gone meanwhile. */
		if (unlocked)
			ret = -EAGAIN;
		if (!ret)
			ret = follow_pfnmap_start(&entry);
	}
	if (!ret) {
		ret = entry.writable;
		follow_pfnmap_end(&entry);
	}
	mmap_read_unlock(current->mm);
	return ret;
}

/* --- The device ------------------------------------------------------------------ */

static int map_for(struct importer *imp, u32 dir)
{
	struct dma_resv *resv = imp->at->dmabuf->resv;
	int ret = -EBUSY;

	if (dir > DMA_FROM_DEVICE)
		return -EINVAL;
	dma_resv_lock(resv, NULL);
	if (!imp->table && !imp->moved) {
		imp->dir = dir;
		ret = map(imp);
	}
	dma_resv_unlock(resv);
	return ret;
}

static int unmap_now(struct importer *imp)
{
	struct dma_resv *resv = imp->at->dmabuf->resv;
	int ret = -ENXIO;

	dma_resv_lock(resv, NULL);
	if (imp->table || imp->moved) {
		unmap(imp);
		imp->moved = false;
		ret = 0;
	}
	dma_resv_unlock(resv);
	return ret;
}

static void move(struct dma_buf *buf)
{
	dma_resv_lock(buf->resv, NULL);
	dma_buf_invalidate_mappings(buf);
	dma_resv_unlock(buf->resv);
}

static long attached_ioctl(struct importer *imp, unsigned int cmd, void __user *arg)
{
	struct importer_access access_arg;
	struct importer_later later_arg;
	u32 dir;

	switch (cmd) {
	case IMPORTER_DETACH:
		detach(imp);
		return 0;
	case IMPORTER_MAP:
		return get_user(dir, (u32 __user *)arg) ?: map_for(imp, dir);
	case IMPORTER_UNMAP:
		return unmap_now(imp);
	case IMPORTER_ACCESS:
		if (copy_from_user(&access_arg, arg, sizeof(access_arg)))
			return -EFAULT;
		return access(imp, &access_arg);
	case IMPORTER_MOVES:
		return READ_ONCE(imp->moves);
	case IMPORTER_TWICE:
		return twice(imp->at);
	case IMPORTER_MOVE:
		move(imp->at->dmabuf);
		return 0;
	case IMPORTER_LATER:
		if (copy_from_user(&later_arg, arg, sizeof(later_arg)))
			return -EFAULT;
		return begin_later(imp, &later_arg);
	default:
		return -ENOTTY;
	}
}

static long importer_ioctl(struct file *file, unsigned int cmd, unsigned long arg)
{
	struct importer *imp = file->private_data;
	struct importer_attach attach_arg;
	struct importer_guest guest_arg;
	long ret;

	if (cmd == IMPORTER_ENTRY)
		return entry(current->mm, arg);
	if (cmd == IMPORTER_GUEST)
		return copy_from_user(&guest_arg, (void __user *)arg, sizeof(guest_arg)) ?
			-EFAULT : guest_fault(&guest_arg);
	if (cmd == IMPORTER_ATTACH &&
	    copy_from_user(&attach_arg, (void __user *)arg, sizeof(attach_arg)))
		return -EFAULT;
	mutex_lock(&imp->lock);
	if (cmd == IMPORTER_ATTACH)
		ret = attach(imp, &attach_arg);
	else if (imp->at)
		ret = attached_ioctl(imp, cmd, (void __user *)arg);
	else
		ret = -ENOTCONN;
	mutex_unlock(&imp->lock);
	return ret;
}

/* Maps the buffer, with this file's rights. */
static int importer_mmap(struct file *file, struct vm_area_struct *vma)
{
	struct importer *imp = file->private_data;
	int ret;

	/* ioctls copy user memory, for which they may wait for the mmap lock. */
	if (!mutex_trylock(&imp->lock))
		return -EBUSY;
	ret = imp->at ? dma_buf_mmap(imp->at->dmabuf, vma, vma->vm_pgoff) : -ENOTCONN;
	mutex_unlock(&imp->lock);
	return ret;
}

static int importer_open(struct inode *inode, struct file *file)
{
	struct importer *imp = kzalloc_obj(*imp);

	if (!imp)
		return -ENOMEM;
	mutex_init(&imp->lock);
	INIT_DELAYED_WORK(&imp->later, do_later);
	file->private_data = imp;
	return 0;
}

static int importer_release(struct inode *inode, struct file *file)
{
	struct importer *imp = file->private_data;

	if (imp->at)
		detach(imp);
	kfree(imp);
	return 0;
}

static const struct file_operations importer_fops = {
	.owner = THIS_MODULE,
	.open = importer_open,
	.release = importer_release,
	.mmap = importer_mmap,
	.unlocked_ioctl = importer_ioctl,
	.compat_ioctl = compat_ptr_ioctl,
};

static struct miscdevice importer_device = {
	.minor = MISC_DYNAMIC_MINOR,
	.name = "pagekit-importer",
	.fops = &importer_fops,
};

/* It reaches all memory, in segments of any length. */
static struct device_dma_parameters importer_parms;

static int __init importer_init(void)
{
	int ret = misc_register(&importer_device);

	if (ret)
		return ret;
	importer_device.this_device->dma_parms = &importer_parms;
	dma_set_max_seg_size(importer_device.this_device, UINT_MAX);
	ret = dma_coerce_mask_and_coherent(importer_device.this_device, DMA_BIT_MASK(64));
	if (ret)
		misc_deregister(&importer_device);
	return ret;
}
module_init(importer_init);

static void __exit importer_exit(void)
{
	misc_deregister(&importer_device);
}
module_exit(importer_exit);

MODULE_AUTHOR("The pagekit authors");
MODULE_DESCRIPTION("Test importer of dma-bufs");
MODULE_LICENSE("GPL");
MODULE_IMPORT_NS("DMA_BUF");
