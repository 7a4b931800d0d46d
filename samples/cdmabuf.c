// SPDX-License-Identifier: GPL-2.0
/*
 * dma-bufs from memfds, in C: a drop-in for /dev/udmabuf on pagekit.h.
 *
 * The policy is that of samples/udmabuf.rs, and the driver's. Pages are pinned when
 * the buffer is created, under the shared inode lock of the memfd so that its seals
 * stay as they were checked, and unpinned when the buffer is released. What is
 * mapped for devices hangs off the attachments, under the reservation lock of the
 * buffer. CPU mappings are of PFNs, on fault.
 */
#include <linux/dma-buf.h>
#include <linux/dma-mapping.h>
#include <linux/dma-resv.h>
#include <linux/file.h>
#include <linux/hugetlb.h>
#include <linux/iosys-map.h>
#include <linux/miscdevice.h>
#include <linux/module.h>
#include <linux/shmem_fs.h>
#include <linux/slab.h>
#include <linux/udmabuf.h>
#include <linux/vmalloc.h>

#include <pagekit.h>

static int list_limit = 1024;
module_param(list_limit, int, 0644);
MODULE_PARM_DESC(list_limit, "udmabuf_create_list->count limit. Default is 1024.");

static int size_limit_mb = INT_MAX;
module_param(size_limit_mb, int, 0644);
MODULE_PARM_DESC(size_limit_mb, "Max size of a dmabuf, in megabytes. Default is INT_MAX.");

struct cdmabuf {
	struct pagekit_pins pins;
};

/* --- What devices see --- */

/* What is mapped for one device, in a list that hangs off the attachment. */
struct mapping {
	struct sg_table table;
	enum dma_data_direction dir;
	struct mapping *next;
};

static struct sg_table *cdmabuf_map(struct dma_buf_attachment *at, enum dma_data_direction dir)
{
	struct cdmabuf *buf = at->dmabuf->priv;
	struct mapping *mapping;
	int ret;

	mapping = kzalloc_obj(*mapping, GFP_KERNEL_ACCOUNT);
	if (!mapping)
		return ERR_PTR(-ENOMEM);
	ret = sg_alloc_table_from_pages_segment(&mapping->table, buf->pins.pages,
						buf->pins.count, 0,
						buf->pins.count << PAGE_SHIFT,
						min_t(size_t, dma_get_max_seg_size(at->dev),
						      dma_max_mapping_size(at->dev)),
						GFP_KERNEL_ACCOUNT);
	if (ret)
		goto err_free;
	ret = dma_map_sgtable(at->dev, &mapping->table, dir, 0);
	if (ret)
		goto err_table;
	mapping->dir = dir;
	mapping->next = at->priv;
	at->priv = mapping;
	return &mapping->table;

err_table:
	sg_free_table(&mapping->table);
err_free:
	kfree(mapping);
	return ERR_PTR(ret);
}

static void cdmabuf_unmap(struct dma_buf_attachment *at, struct sg_table *table,
			  enum dma_data_direction dir)
{
	struct mapping *mapping = container_of(table, struct mapping, table);
	struct mapping **link = (struct mapping **)&at->priv;

	while (*link != mapping)
		link = &(*link)->next;
	*link = mapping->next;
	dma_unmap_sgtable(at->dev, table, dir, 0);
	sg_free_table(table);
	kfree(mapping);
}

/*
 * Only what both sides do: a bounce buffer must not be copied over what the other
 * one has written. For the CPU all of it, also where it will only write: the end
 * copies that back with all around it.
 */
static void sync_one(struct device *dev, struct mapping *mapping, enum dma_data_direction dir,
		     bool for_cpu)
{
	/* The CPU has changed nothing, so the device need not be told. */
	if (!for_cpu && dir == DMA_FROM_DEVICE)
		return;
	if (mapping->dir != DMA_BIDIRECTIONAL && dir != DMA_BIDIRECTIONAL && dir != mapping->dir)
		return;
	if (for_cpu)
		dma_sync_sgtable_for_cpu(dev, &mapping->table, mapping->dir);
	else
		dma_sync_sgtable_for_device(dev, &mapping->table, mapping->dir);
}

static int sync_all(struct dma_buf *dmabuf, enum dma_data_direction dir, bool for_cpu)
{
	struct dma_buf_attachment *at;
	struct mapping *mapping;

	dma_resv_lock(dmabuf->resv, NULL);
	list_for_each_entry(at, &dmabuf->attachments, node)
		for (mapping = at->priv; mapping; mapping = mapping->next)
			sync_one(at->dev, mapping, dir, for_cpu);
	dma_resv_unlock(dmabuf->resv);
	return 0;
}

static int cdmabuf_begin_cpu_access(struct dma_buf *dmabuf, enum dma_data_direction dir)
{
	/* The core waits, too, but when this has returned: what is synced must be there. */
	long ret = dma_resv_wait_timeout(dmabuf->resv, dma_resv_usage_rw(dir != DMA_FROM_DEVICE),
					 true, MAX_SCHEDULE_TIMEOUT);

	return ret < 0 ? ret : sync_all(dmabuf, dir, true);
}

static int cdmabuf_end_cpu_access(struct dma_buf *dmabuf, enum dma_data_direction dir)
{
	return sync_all(dmabuf, dir, false);
}

/* --- What the CPU sees --- */

static vm_fault_t cdmabuf_fault(struct vm_fault *vmf)
{
	struct cdmabuf *buf = vmf->vma->vm_private_data;

	return pagekit_fault_pfns(vmf, buf->pins.pages, buf->pins.count, 0);
}

static vm_fault_t cdmabuf_huge_fault(struct vm_fault *vmf, unsigned int order)
{
	struct cdmabuf *buf = vmf->vma->vm_private_data;

	return pagekit_huge_fault_pfns(vmf, order, buf->pins.pages, buf->pins.count, 0);
}

static const struct vm_operations_struct cdmabuf_vm_ops = {
	.fault = cdmabuf_fault,
	.huge_fault = cdmabuf_huge_fault,
};

static int cdmabuf_mmap(struct dma_buf *dmabuf, struct vm_area_struct *vma)
{
	struct cdmabuf *buf = dmabuf->priv;

	vma->vm_ops = &cdmabuf_vm_ops;
	vma->vm_private_data = buf;
	return pagekit_setup_pfns(vma, buf->pins.count, 0, 0);
}

static int cdmabuf_vmap(struct dma_buf *dmabuf, struct iosys_map *map)
{
	struct cdmabuf *buf = dmabuf->priv;
	void *vaddr = vmap(buf->pins.pages, buf->pins.count, VM_MAP, PAGE_KERNEL);

	if (!vaddr)
		return -ENOMEM;
	iosys_map_set_vaddr(map, vaddr);
	return 0;
}

static void cdmabuf_vunmap(struct dma_buf *dmabuf, struct iosys_map *map)
{
	vunmap(map->vaddr);
}

/* --- Buffers --- */

static void cdmabuf_free(struct cdmabuf *buf)
{
	pagekit_unpin(&buf->pins, PAGEKIT_DIRTY);
	kvfree(buf->pins.pages);
	kfree(buf);
}

static void cdmabuf_release(struct dma_buf *dmabuf)
{
	cdmabuf_free(dmabuf->priv);
}

static const struct dma_buf_ops cdmabuf_ops = {
	.map_dma_buf = cdmabuf_map,
	.unmap_dma_buf = cdmabuf_unmap,
	.begin_cpu_access = cdmabuf_begin_cpu_access,
	.end_cpu_access = cdmabuf_end_cpu_access,
	.mmap = cdmabuf_mmap,
	.vmap = cdmabuf_vmap,
	.vunmap = cdmabuf_vunmap,
	.release = cdmabuf_release,
};

/* As memfd_file_seals_ptr() in mm/memfd.c, which is static. Needs the inode lock. */
static int check_seals(struct file *file)
{
	unsigned int seals;

	if (shmem_file(file))
		seals = SHMEM_I(file_inode(file))->seals;
#ifdef CONFIG_HUGETLBFS
	else if (is_file_hugepages(file))
		seals = HUGETLBFS_I(file_inode(file))->seals;
#endif
	else
		return -EBADFD;
	seals &= F_SEAL_SHRINK | F_SEAL_WRITE | F_SEAL_FUTURE_WRITE;
	return seals == F_SEAL_SHRINK ? 0 : -EINVAL;
}

static int pin_item(struct cdmabuf *buf, const struct udmabuf_create_item *item)
{
	struct file *memfd = fget(item->memfd);
	int ret;

	if (!memfd)
		return -EBADFD;
	inode_lock_shared(file_inode(memfd));
	ret = check_seals(memfd);
	/* Whoever has the buffer may write. */
	if (!ret && !(memfd->f_mode & FMODE_WRITE))
		ret = -EACCES;
	if (!ret)
		ret = pagekit_pin_memfd(&buf->pins, memfd, item->offset >> PAGE_SHIFT,
					item->size >> PAGE_SHIFT);
	inode_unlock_shared(file_inode(memfd));
	fput(memfd);
	return ret;
}

static int create(u32 flags, const struct udmabuf_create_item *items, u32 n)
{
	const u64 limit = ((u64)READ_ONCE(size_limit_mb) << 20) >> PAGE_SHIFT;
	DEFINE_DMA_BUF_EXPORT_INFO(info);
	struct dma_buf *dmabuf;
	struct cdmabuf *buf;
	u64 count = 0;
	int ret;
	u32 i;

	for (i = 0; i < n; i++) {
		count += items[i].size >> PAGE_SHIFT;
		if (!PAGE_ALIGNED(items[i].offset | items[i].size) || count > limit)
			return -EINVAL;
	}
	if (!count)
		return -EINVAL;

	buf = kzalloc_obj(*buf, GFP_KERNEL_ACCOUNT);
	if (!buf)
		return -ENOMEM;
	buf->pins.pages = kvmalloc_array(count, sizeof(*buf->pins.pages),
					 GFP_KERNEL_ACCOUNT | __GFP_NOWARN);
	ret = buf->pins.pages ? 0 : -ENOMEM;
	for (i = 0; i < n && !ret; i++)
		ret = pin_item(buf, &items[i]);
	if (ret)
		goto err;

	info.ops = &cdmabuf_ops;
	info.size = count << PAGE_SHIFT;
	info.flags = O_RDWR;
	info.priv = buf;
	dmabuf = dma_buf_export(&info);
	ret = PTR_ERR_OR_ZERO(dmabuf);
	if (ret)
		goto err;
	ret = dma_buf_fd(dmabuf, flags & UDMABUF_FLAGS_CLOEXEC ? O_CLOEXEC : 0);
	if (ret < 0)
		dma_buf_put(dmabuf);
	return ret;

err:
	cdmabuf_free(buf);
	return ret;
}

/* --- The device --- */

static long cdmabuf_ioctl(struct file *file, unsigned int cmd, unsigned long arg)
{
	struct udmabuf_create __user *one = (void __user *)arg;
	struct udmabuf_create_list __user *list = (void __user *)arg;
	struct udmabuf_create_list head;
	struct udmabuf_create_item *items;
	struct udmabuf_create single;
	long ret;

	switch (cmd) {
	case UDMABUF_CREATE:
		if (copy_from_user(&single, one, sizeof(single)))
			return -EFAULT;
		return create(single.flags, &(struct udmabuf_create_item) {
			.memfd = single.memfd,
			.offset = single.offset,
			.size = single.size,
		}, 1);
	case UDMABUF_CREATE_LIST:
		if (copy_from_user(&head, list, sizeof(head)))
			return -EFAULT;
		if (!head.count || head.count > READ_ONCE(list_limit))
			return -EINVAL;
		/* Not vmemdup_array_user(), which warns where list_limit is too large. */
		items = kvmalloc_objs(*items, head.count, GFP_KERNEL_ACCOUNT | __GFP_NOWARN);
		if (!items)
			return -ENOMEM;
		if (copy_from_user(items, list->list, array_size(head.count, sizeof(*items))))
			ret = -EFAULT;
		else
			ret = create(head.flags, items, head.count);
		kvfree(items);
		return ret;
	}
	return -ENOTTY;
}

static const struct file_operations cdmabuf_fops = {
	.owner = THIS_MODULE,
	.unlocked_ioctl = cdmabuf_ioctl,
	.compat_ioctl = compat_ptr_ioctl,
};

static struct miscdevice cdmabuf_misc = {
	.minor = MISC_DYNAMIC_MINOR,
	.name = "pagekit-cdmabuf",
	.fops = &cdmabuf_fops,
};
module_misc_device(cdmabuf_misc);

MODULE_DESCRIPTION("pagekit sample: dma-bufs from memfds, in C");
MODULE_AUTHOR("The pagekit authors");
MODULE_LICENSE("GPL");
MODULE_IMPORT_NS("DMA_BUF");
