// SPDX-License-Identifier: GPL-2.0
/*
 * What the helpers are measured against: C code that does what mainline's code
 * does, step by step. Each part names that code. What a driver does besides is
 * left out: its locks, its accounting, its exports.
 */
#include <linux/file.h>
#include <linux/hugetlb.h>
#include <linux/memfd.h>
#include <linux/miscdevice.h>
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/pagemap.h>
#include <linux/scatterlist.h>
#include <linux/shmem_fs.h>
#include <linux/slab.h>
#include <linux/swap.h>
#include <linux/uaccess.h>

#include "compat.h"
#include "bench.h"

struct object {
	const struct peer *peer;
	struct address_space *mapping;
	struct page **pages;
	unsigned long count;
	struct folio **folios;
	unsigned long nr_folios;
	struct sg_table sgt;
};

struct peer {
	int (*make)(struct object *obj, struct file *file, const struct bench_make *make);
	int (*mmap)(struct object *obj, struct vm_area_struct *vma);
	void (*release)(struct object *obj);
};

static int alloc_array(struct object *obj, unsigned long count)
{
	obj->pages = kvmalloc_array(count, sizeof(*obj->pages), GFP_KERNEL);
	obj->count = count;
	return obj->pages ? 0 : -ENOMEM;
}

/* --- drm_gem_get_pages(), drm_gem_put_pages(): drivers/gpu/drm/drm_gem.c --- */

static void drm_gem_release_batch(struct folio_batch *batch)
{
	check_move_unevictable_folios(batch);
	__folio_batch_release(batch);
	cond_resched();
}

static int drm_gem_make(struct object *obj, struct file *file, const struct bench_make *make)
{
	struct address_space *mapping = file->f_mapping;
	struct folio *folio;
	unsigned long i = 0;
	int ret;

	ret = alloc_array(obj, make->count);
	if (ret)
		return ret;
	obj->mapping = mapping;
	mapping_set_unevictable(mapping);
	while (i < obj->count) {
		unsigned long j, nr;

		folio = shmem_read_folio_gfp(mapping, i, mapping_gfp_mask(mapping));
		if (IS_ERR(folio)) {
			mapping_clear_unevictable(mapping);
			obj->count = i;
			return PTR_ERR(folio);
		}
		nr = min(obj->count - i, folio_nr_pages(folio));
		for (j = 0; j < nr; j++, i++)
			obj->pages[i] = folio_file_page(folio, i);
		WARN_ON(mapping_gfp_constraint(mapping, __GFP_DMA32) &&
			folio_pfn(folio) >= 0x00100000UL);
	}
	return 0;
}

static void drm_gem_release(struct object *obj)
{
	struct folio_batch batch;
	unsigned long i;

	mapping_clear_unevictable(obj->mapping);
	folio_batch_init(&batch);
	for (i = 0; i < obj->count; i++) {
		struct folio *folio;

		if (!obj->pages[i])
			continue;
		folio = page_folio(obj->pages[i]);
		if (!folio_batch_add(&batch, folio))
			drm_gem_release_batch(&batch);
		i += folio_nr_pages(folio) - 1;
	}
	if (folio_batch_count(&batch))
		drm_gem_release_batch(&batch);
	kvfree(obj->pages);
}

/*
 * --- filemap_get_folios_contig(): mm/filemap.c ---
 *
 * Where arrays for other measurements come from; and the floor of getting one, for
 * nothing else that is exported finds resident pages for less. Whether they may be
 * used nobody looks here.
 */

static __always_inline void fill(struct page **pages, struct page *first, unsigned long n)
{
	while (n--)
		pages[n] = first + n;
}

static int lookup_make(struct object *obj, struct file *file, const struct bench_make *make)
{
	pgoff_t next = make->start, last = make->start + make->count - 1;
	unsigned long done = 0;
	struct folio_batch batch;
	int ret;

	ret = alloc_array(obj, make->count);
	if (ret)
		return ret;
	while (done < make->count) {
		unsigned int i;

		folio_batch_init(&batch);
		if (!filemap_get_folios_contig(file->f_mapping, &next, last, &batch)) {
			obj->count = done;
			return -ENODATA;
		}
		for (i = 0; i < folio_batch_count(&batch); i++) {
			struct folio *folio = batch.folios[i];
			unsigned long skip, nr;

			if (!folio_test_large(folio)) {
				obj->pages[done++] = &folio->page;
				continue;
			}
			skip = make->start + done - folio->index;
			nr = min(folio_nr_pages(folio) - skip, make->count - done);
			folio_ref_add(folio, nr - 1);
			fill(obj->pages + done, folio_page(folio, skip), nr);
			done += nr;
		}
	}
	return 0;
}

/* put_page() of each: qp_release_pages() in drivers/misc/vmw_vmci/vmci_queue_pair.c */
static void put_page_release(struct object *obj)
{
	unsigned long i;

	for (i = 0; i < obj->count; i++)
		put_page(obj->pages[i]);
	kvfree(obj->pages);
}

/* release_pages(): radeon_ttm_tt_pin_userptr() in drivers/gpu/drm/radeon/radeon_ttm.c */
static void release_pages_release(struct object *obj)
{
	release_pages(obj->pages, obj->count);
	kvfree(obj->pages);
}

/* The floor of that: no more than finding folios and giving up their references. */
static void floor_release(struct object *obj)
{
	unsigned long i = 0;

	while (i < obj->count) {
		struct page *page = obj->pages[i];
		struct folio *folio = (struct folio *)page;
		unsigned long nr;

		if (!PageTail(page) && !folio_test_large(folio)) {
			folio_put(folio);
			i++;
			continue;
		}
		folio = page_folio(page);
		nr = min(folio_nr_pages(folio) - folio_page_idx(folio, page), obj->count - i);
		folio_put_refs(folio, nr);
		i += nr;
	}
	kvfree(obj->pages);
}

/*
 * --- remap_io_sg(): drivers/gpu/drm/i915/i915_mm.c ---
 *
 * With the iterator of i915_scatterlist.h. The table is made with the pages, as
 * i915 makes it in shmem_get_pages().
 */

struct sgt_iter {
	struct scatterlist *sgp;
	unsigned long pfn;
	unsigned int curr, max;
};

struct remap {
	struct mm_struct *mm;
	unsigned long done;
	pgprot_t prot;
	struct sgt_iter sgt;
};

static inline struct sgt_iter sgt_iter(struct scatterlist *sg)
{
	struct sgt_iter iter = { .sgp = sg };

	if (sg) {
		iter.curr = sg->offset;
		iter.pfn = page_to_pfn(sg_page(sg));
		iter.max = sg->offset + sg->length;
	}
	return iter;
}

/* sg_next() is a call. */
static inline struct scatterlist *sgt_next(struct scatterlist *sg)
{
	if (sg_is_last(sg))
		return NULL;
	sg++;
	return unlikely(sg_is_chain(sg)) ? sg_chain_ptr(sg) : sg;
}

static int remap_one(pte_t *pte, unsigned long addr, void *data)
{
	struct remap *r = data;
	pte_t entry;

	if (WARN_ON(!r->sgt.sgp))
		return -EINVAL;
	entry = pte_mkspecial(pfn_pte(r->sgt.pfn + (r->sgt.curr >> PAGE_SHIFT), r->prot));
#if defined(CONFIG_RISCV) || defined(CONFIG_ARM64) && defined(CONFIG_DEBUG_VM)
	set_pte(pte, entry); /* There set_pte_at() is not for modules. */
#else
	set_pte_at(r->mm, addr, pte, entry);
#endif
	r->done++;
	r->sgt.curr += PAGE_SIZE;
	if (r->sgt.curr >= r->sgt.max)
		r->sgt = sgt_iter(sgt_next(r->sgt.sgp));
	return 0;
}

static int remap_make(struct object *obj, struct file *file, const struct bench_make *make)
{
	int ret = lookup_make(obj, file, make);

	return ret ?: sg_alloc_table_from_pages(&obj->sgt, obj->pages, obj->count, 0,
						obj->count << PAGE_SHIFT, GFP_KERNEL);
}

static int remap_mmap(struct object *obj, struct vm_area_struct *vma)
{
	struct remap r = {
		.mm = vma->vm_mm,
		.prot = vma->vm_page_prot,
		.sgt = sgt_iter(obj->sgt.sgl),
	};

	vm_flags_set(vma, VM_PFNMAP | VM_DONTEXPAND | VM_DONTDUMP);
	return apply_to_page_range(r.mm, vma->vm_start, vma->vm_end - vma->vm_start, remap_one, &r);
}

static void remap_release(struct object *obj)
{
	sg_free_table(&obj->sgt);
	put_page_release(obj);
}

/*
 * The floor of that: of a page table that is locked all entries can be filled, and
 * nobody looks at them before. The same on fault, of huge pages where it's told to.
 */

static int floor_fill(pte_t *pte, unsigned long addr, void *data)
{
	struct vm_area_struct *vma = data;
	struct object *obj = vma->vm_private_data;
	struct page **pages = obj->pages + ((addr - vma->vm_start) >> PAGE_SHIFT);
	unsigned long i, n = (pmd_addr_end(addr, vma->vm_end) - addr) >> PAGE_SHIFT;
	pte_t first = pte_mkspecial(mk_pte(*pages, vma->vm_page_prot));

	for (i = 0; i < n; i++)
		set_pte(pte + i, pte_advance_pfn(first, pages[i] - *pages));
	return 0;
}

static int floor_mmap(struct object *obj, struct vm_area_struct *vma)
{
	unsigned long addr;
	int ret = 0;

	vm_flags_set(vma, VM_PFNMAP | VM_DONTEXPAND | VM_DONTDUMP);
	vma->vm_private_data = obj;
	for (addr = vma->vm_start; !ret && addr < vma->vm_end; addr = pmd_addr_end(addr, vma->vm_end))
		ret = apply_to_page_range(vma->vm_mm, addr, PAGE_SIZE, floor_fill, vma);
	return ret;
}

static vm_fault_t floor_fault(struct vm_fault *vmf)
{
	return VM_FAULT_SIGBUS;
}

static vm_fault_t floor_huge_fault(struct vm_fault *vmf, unsigned int order)
{
	struct vm_area_struct *vma = vmf->vma;
	struct object *obj = vma->vm_private_data;
	unsigned long addr = max(vmf->address & PMD_MASK, vma->vm_start);
	struct page *page = obj->pages[linear_page_delta(vma, addr)];

	if (order != PMD_ORDER)
		return VM_FAULT_FALLBACK;
	if (folio_test_large(page_folio(page)) && vma->vm_end - addr >= PMD_SIZE &&
	    IS_ALIGNED(addr | page_to_phys(page), PMD_SIZE))
		return vmf_insert_pfn_pmd(vmf, page_to_pfn(page), true);
	return apply_to_page_range(vma->vm_mm, addr, PAGE_SIZE, floor_fill, vma) ?
	       VM_FAULT_OOM : VM_FAULT_NOPAGE;
}

static const struct vm_operations_struct floor_vm_ops = {
	.fault = floor_fault,
	.huge_fault = floor_huge_fault,
};

static int floor_lazy_mmap(struct object *obj, struct vm_area_struct *vma)
{
	vm_flags_set(vma, VM_PFNMAP | VM_DONTEXPAND | VM_DONTDUMP);
	vma->vm_private_data = obj;
	vma->vm_ops = &floor_vm_ops;
	return 0;
}

/* --- One fault for each page: etnaviv_gem_fault() in drivers/gpu/drm/etnaviv/etnaviv_gem.c --- */

static vm_fault_t each_fault(struct vm_fault *vmf)
{
	struct object *obj = vmf->vma->vm_private_data;

	return vmf_insert_pfn(vmf->vma, vmf->address,
			      page_to_pfn(obj->pages[linear_page_delta(vmf->vma, vmf->address)]));
}

static const struct vm_operations_struct each_vm_ops = { .fault = each_fault };

static int each_mmap(struct object *obj, struct vm_area_struct *vma)
{
	vm_flags_set(vma, VM_PFNMAP | VM_DONTEXPAND | VM_DONTDUMP);
	vma->vm_private_data = obj;
	vma->vm_ops = &each_vm_ops;
	return 0;
}

/*
 * --- vm_insert_pages(): amdxdna_gem_dmabuf_mmap() in drivers/accel/amdxdna/amdxdna_gem.c ---
 *
 * Of new pages: the helper takes no pages of files, see Documentation/vma.rst.
 */

static int new_make(struct object *obj, const struct bench_make *make, unsigned int order)
{
	unsigned long i, k, nr;
	int ret;

	ret = alloc_array(obj, make->count);
	if (ret)
		return ret;
	for (i = 0; i < make->count; i += nr) {
		struct folio *folio = folio_alloc(GFP_KERNEL, order);

		if (!folio) {
			obj->count = i;
			return -ENOMEM;
		}
		nr = min(1UL << order, make->count - i);
		folio_ref_add(folio, nr - 1);
		for (k = 0; k < nr; k++)
			obj->pages[i + k] = folio_page(folio, k);
	}
	return 0;
}

static int small_make(struct object *obj, struct file *file, const struct bench_make *make)
{
	return new_make(obj, make, 0);
}

static int large_make(struct object *obj, struct file *file, const struct bench_make *make)
{
	return new_make(obj, make, PMD_ORDER);
}

static int insert_mmap(struct object *obj, struct vm_area_struct *vma)
{
	unsigned long left = obj->count;

	vm_flags_set(vma, VM_DONTEXPAND);
	return vm_insert_pages(vma, vma->vm_start, obj->pages, &left);
}

/* --- fb_deferred_io_fault(): drivers/video/fbdev/core/fb_defio.c. The kernel maps the page. --- */

static vm_fault_t get_fault(struct vm_fault *vmf)
{
	struct object *obj = vmf->vma->vm_private_data;

	vmf->page = obj->pages[linear_page_delta(vmf->vma, vmf->address)];
	get_page(vmf->page);
	return 0;
}

static const struct vm_operations_struct get_vm_ops = { .fault = get_fault };

static int get_mmap(struct object *obj, struct vm_area_struct *vma)
{
	vm_flags_set(vma, VM_DONTEXPAND | VM_DONTDUMP);
	vma->vm_private_data = obj;
	vma->vm_ops = &get_vm_ops;
	return 0;
}

/* --- amdxdna_get_ubuf(), amdxdna_ubuf_release(): drivers/accel/amdxdna/amdxdna_ubuf.c --- */

static int user_make(struct object *obj, struct file *file, const struct bench_make *make)
{
	int ret = alloc_array(obj, make->count);

	if (ret)
		return ret;
	ret = pin_user_pages_fast(make->start, make->count, FOLL_WRITE | FOLL_LONGTERM, obj->pages);
	obj->count = max(ret, 0);
	return ret < 0 ? ret : obj->count != make->count ? -ENOMEM : 0;
}

static void user_release(struct object *obj)
{
	unpin_user_pages(obj->pages, obj->count);
	kvfree(obj->pages);
}

/* --- init_udmabuf(), udmabuf_pin_folios(), deinit_udmabuf(): drivers/dma-buf/udmabuf.c --- */

static int memfd_make(struct object *obj, struct file *file, const struct bench_make *make)
{
	pgoff_t offset, count = 0, wanted = make->count;
	loff_t start = make->start << PAGE_SHIFT;
	loff_t end = start + (wanted << PAGE_SHIFT) - 1;
	struct folio **folios;
	long i, found;
	int ret;

	ret = alloc_array(obj, wanted);
	if (ret)
		return ret;
	obj->folios = kvmalloc_array(wanted, sizeof(*folios), GFP_KERNEL);
	folios = kvmalloc_array(wanted, sizeof(*folios), GFP_KERNEL);
	if (!obj->folios || !folios) {
		kvfree(folios);
		return -ENOMEM;
	}
	found = memfd_pin_folios(file, start, end, folios, wanted, &offset);
	if (found <= 0) {
		kvfree(folios);
		return found ?: -EINVAL;
	}
	for (i = 0; i < found; i++) {
		size_t size = folio_size(folios[i]);
		pgoff_t sub = offset;

		obj->folios[obj->nr_folios++] = folios[i];
		for (; sub < size; sub += PAGE_SIZE) {
			obj->pages[count] = folio_page(folios[i], sub >> PAGE_SHIFT);
			if (++count >= wanted)
				goto end;
		}
		offset = 0;
	}
end:
	kvfree(folios);
	return 0;
}

static void memfd_release(struct object *obj)
{
	unsigned long i;

	for (i = 0; i < obj->nr_folios; i++)
		unpin_folio(obj->folios[i]);
	kvfree(obj->folios);
	kvfree(obj->pages);
}

/*
 * The floor of that: one array, folios of one size spread out in it, and a call for
 * each folio in the end. Nobody looks whether they may be used, or makes them dirty.
 */

static int floor_memfd_make(struct object *obj, struct file *file, const struct bench_make *make)
{
	loff_t start = make->start << PAGE_SHIFT;
	unsigned long nr, skip, end = make->count;
	pgoff_t offset;
	long i;
	int ret;

	ret = alloc_array(obj, make->count);
	if (ret)
		return ret;
	obj->folios = (struct folio **)obj->pages;
	i = memfd_pin_folios(file, start, start + (make->count << PAGE_SHIFT) - 1, obj->folios,
			     make->count, &offset);
	if (i <= 0)
		return i ?: -EINVAL;
	obj->nr_folios = i;
	if (i == make->count)
		return 0;
	nr = folio_nr_pages(obj->folios[0]);
	skip = offset >> PAGE_SHIFT;
	while (i--) {
		struct folio *folio = obj->folios[i];
		unsigned long first = i ? i * nr - skip : 0;

		fill(obj->pages + first, folio_page(folio, i ? 0 : skip), end - first);
		end = first;
	}
	return 0;
}

static void floor_memfd_release(struct object *obj)
{
	unsigned long i, step = DIV_ROUND_UP(obj->count, obj->nr_folios ?: 1);

	if (step == 1)
		for (i = 0; i < obj->nr_folios; i++)
			unpin_folio(obj->folios[i]);
	else
		for (i = 0; i < obj->nr_folios; i++)
			unpin_folio(page_folio(obj->pages[i * step]));
	kvfree(obj->pages);
}

static const struct peer peers[] = {
	[PEER_DRM_GEM]		= { drm_gem_make, NULL, drm_gem_release },
	[PEER_PUT_PAGE]		= { lookup_make, NULL, put_page_release },
	[PEER_RELEASE_PAGES]	= { lookup_make, NULL, release_pages_release },
	[PEER_REMAP_SG]		= { remap_make, remap_mmap, remap_release },
	[PEER_FAULT_EACH]	= { lookup_make, each_mmap, put_page_release },
	[PEER_INSERT_PAGES]	= { small_make, insert_mmap, put_page_release },
	[PEER_INSERT_PAGES_LARGE] = { large_make, insert_mmap, put_page_release },
	[PEER_FAULT_GET]	= { small_make, get_mmap, put_page_release },
	[PEER_FAULT_GET_LARGE]	= { large_make, get_mmap, put_page_release },
	[PEER_PIN_USER]		= { user_make, NULL, user_release },
	[PEER_PIN_MEMFD]	= { memfd_make, NULL, memfd_release },
	[FLOOR_PAGES]		= { lookup_make, NULL, floor_release },
	[FLOOR_MAP_PFNS]	= { lookup_make, floor_mmap, floor_release },
	[FLOOR_FAULT]		= { lookup_make, floor_lazy_mmap, floor_release },
	[FLOOR_PIN_MEMFD]	= { floor_memfd_make, floor_lazy_mmap, floor_memfd_release },
};

/* --- The device ------------------------------------------------------------- */

static int bench_open(struct inode *inode, struct file *file)
{
	struct object *obj = kzalloc(sizeof(*obj), GFP_KERNEL);

	file->private_data = obj;
	return obj ? 0 : -ENOMEM;
}

/* To be called once: there is nobody but the benchmark. */
static long bench_ioctl(struct file *file, unsigned int cmd, unsigned long arg)
{
	struct object *obj = file->private_data;
	struct bench_make make;
	struct file *memfd;
	int ret;

	if (cmd != BENCH_MAKE)
		return -ENOTTY;
	if (copy_from_user(&make, (void __user *)arg, sizeof(make)))
		return -EFAULT;
	if (obj->peer || make.how >= ARRAY_SIZE(peers) || !make.count || make.count > INT_MAX)
		return -EINVAL;
	memfd = fget(make.fd);
	obj->peer = &peers[make.how];
	ret = obj->peer->make(obj, memfd, &make);
	if (memfd)
		fput(memfd);
	return ret;
}

static int bench_mmap(struct file *file, struct vm_area_struct *vma)
{
	struct object *obj = file->private_data;

	if (!obj->peer || !obj->peer->mmap || vma->vm_pgoff || vma_pages(vma) != obj->count)
		return -EINVAL;
	return obj->peer->mmap(obj, vma);
}

static int bench_release(struct inode *inode, struct file *file)
{
	struct object *obj = file->private_data;

	if (obj->peer)
		obj->peer->release(obj);
	kfree(obj);
	return 0;
}

static const struct file_operations bench_fops = {
	.owner = THIS_MODULE,
	.open = bench_open,
	.unlocked_ioctl = bench_ioctl,
	.mmap = bench_mmap,
	.release = bench_release,
};

static struct miscdevice bench = {
	.minor = MISC_DYNAMIC_MINOR,
	.name = "pagekit-bench-peer",
	.fops = &bench_fops,
};
module_misc_device(bench);

MODULE_AUTHOR("The pagekit authors");
MODULE_DESCRIPTION("What pagekit is measured against");
MODULE_LICENSE("GPL");
