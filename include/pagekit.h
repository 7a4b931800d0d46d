/* SPDX-License-Identifier: GPL-2.0 */
/*
 * pagekit for drivers in C: Documentation/c.rst.
 *
 * Each function is one of the helpers' as it is, on plain arrays of pages. What is
 * said of arrays holds for all: entries are pages that exist, none is NULL.
 */
#ifndef PAGEKIT_H
#define PAGEKIT_H

#include <linux/mm.h>
#include <linux/types.h>

/**
 * enum pagekit_flags - what functions are told
 * @PAGEKIT_ACCOUNT: charge the pages to the memory cgroup of the caller
 * @PAGEKIT_LARGE: try for large folios, the largest first
 * @PAGEKIT_NO_RECLAIM: fill holes with memory that is free, and reclaim none
 * @PAGEKIT_RETRY_MAYFAIL: reclaim as hard as may be, but have nobody killed for it
 * @PAGEKIT_WRITE: pin for writing: private pages are copied first
 * @PAGEKIT_DIRTY: the pages were written to, by a device or through a mapping: they
 *	must be saved before they are dropped
 * @PAGEKIT_ACCESSED: the pages were used: reclaim should look elsewhere first
 * @PAGEKIT_READ_ONLY: whoever maps the pages may only read them: they are a file's
 *	that was opened so, say, or pinned without PAGEKIT_WRITE. Clears VM_MAYWRITE.
 * @PAGEKIT_WRITE_COMBINE: PFNs are mapped by pgprot_writecombine(), small and huge ones. See
 *	below what must be in memory then.
 *
 * Each function says which it takes. With others it returns -EINVAL, or, if it
 * returns nothing, does as if they were not there.
 */
enum pagekit_flags {
	PAGEKIT_ACCOUNT = 1,
	PAGEKIT_LARGE = 2,
	PAGEKIT_NO_RECLAIM = 4,
	PAGEKIT_RETRY_MAYFAIL = 8,
	PAGEKIT_WRITE = 16,
	PAGEKIT_DIRTY = 32,
	PAGEKIT_ACCESSED = 64,
	PAGEKIT_READ_ONLY = 128,
	PAGEKIT_WRITE_COMBINE = 256,
};

/* --- Held pages: select PAGEKIT_PAGES_C --- */

/**
 * pagekit_get_pages() - get the array of pages of a shmem file
 * @file: shmem file, which the caller has open
 * @pgoff: page offset in the file
 * @count: number of pages
 * @flags: 0, PAGEKIT_NO_RECLAIM or PAGEKIT_RETRY_MAYFAIL
 *
 * As drm_gem_get_pages(), for a part of any shmem file. Holes and swapped-out
 * pages are filled, pages that were allocated but never written are zeroed.
 * The mapping is not marked unevictable: that is the driver's to do. So is asking
 * whether the file was opened for writing, or its seals forbid that.
 *
 * Lifetime: The array is the caller's, with one reference on each page, until
 * pagekit_put_pages(). The pages stay allocated. Truncation and hole punching
 * take them out of the file, or zero them.
 *
 * Context: Process context, may sleep. Takes folio locks, and what filling a
 * shmem file takes. No lock is held on return. Not for shrinkers.
 *
 * Return: The array, or ERR_PTR(): -EINVAL if @file is not a shmem file, @count
 * is 0, the range reaches past the end of the file, or for other flags; -EIO
 * after a hardware memory error, or if a page can't be read from swap; -EINTR if
 * a fatal signal is pending; -ENOMEM; -ENOSPC. On any error no reference is left.
 * What was filled until then stays in the file: the next call finds it.
 */
struct page **pagekit_get_pages(struct file *file, pgoff_t pgoff, unsigned long count,
				unsigned int flags);

/**
 * pagekit_alloc_pages() - allocate an array of zeroed pages
 * @count: number of pages
 * @flags: PAGEKIT_ACCOUNT, PAGEKIT_LARGE, both or 0
 *
 * As system_heap_allocate(). In a large folio each page has a reference. Where
 * the pages lie is for the cpuset and the memory policy of the caller to say.
 *
 * Lifetime: As for pagekit_get_pages().
 *
 * Context: Process context, may sleep. Not for shrinkers.
 *
 * Return: The array, or ERR_PTR(): -EINVAL if @count is 0, or for other flags;
 * -EINTR if a fatal signal is pending; -ENOMEM. On any error no page is left.
 */
struct page **pagekit_alloc_pages(unsigned long count, unsigned int flags);

/**
 * pagekit_put_pages() - release an array of pages, and the pages
 * @pages: what pagekit_get_pages() or pagekit_alloc_pages() has returned, unchanged,
 *	or NULL
 * @count: the number of pages that it was made with
 * @flags: PAGEKIT_DIRTY, PAGEKIT_ACCESSED, both or 0
 *
 * As drm_gem_put_pages(). The array is freed.
 *
 * Context: Process context, may sleep. Takes no folio lock, and may be called by a
 * shrinker.
 */
void pagekit_put_pages(struct page **pages, unsigned long count, unsigned int flags);

/* --- Pinned pages: select PAGEKIT_PIN_C --- */

/**
 * struct pagekit_pins - an array of pinned pages
 * @pages: from kvmalloc_array() or the like, with room for all that will be pinned.
 *	The driver allocates and frees it.
 * @count: how many are pinned. 0 at first, and kept by the functions below.
 * @unordered: private, and false at first: whether pages of large folios may be in
 *	another order than in memory. Unpinning is quicker if they aren't.
 */
struct pagekit_pins {
	struct page **pages;
	unsigned long count;
	bool unordered;
};

/**
 * pagekit_pin_memfd() - pin pages of a memfd
 * @pins: array with room for @count more
 * @memfd: shmem or hugetlbfs file, which the caller has open
 * @pgoff: page offset in the file
 * @count: number of pages
 *
 * As memfd_pin_folios(), but has one entry and one pin for each page. Holes and
 * swapped-out pages are filled, pages that were never written are zeroed.
 * Ranges may overlap. Whether the file was opened for writing, or its seals
 * forbid that, is the driver's to ask.
 *
 * Lifetime: The pages stay where they are until pagekit_unpin(). Truncation and
 * hole punching take them out of the file all the same.
 *
 * Context: Process context, may sleep. Takes folio locks, and what filling the
 * file takes. The caller may hold the inode lock shared, to keep seals as they
 * are. Others must stay away from @pins. Not for shrinkers.
 *
 * Return: 0, with @count more entries pinned; -EINVAL if it is no such file, @count
 * is 0 or the range reaches past the end of the file; -EIO after a hardware memory
 * error, or if a page can't be read from swap; -EINTR if a fatal signal is pending;
 * -ENOMEM; others as from memfd_pin_folios(). On any error @pins is as it was.
 */
int pagekit_pin_memfd(struct pagekit_pins *pins, struct file *memfd, pgoff_t pgoff,
		      unsigned long count);

/**
 * pagekit_pin_user() - pin memory of the current process
 * @pins: array with room for @count more
 * @addr: user address, page aligned
 * @count: number of pages
 * @flags: PAGEKIT_WRITE or 0
 *
 * As pin_user_pages_fast() with FOLL_LONGTERM, for all pages or none.
 * RLIMIT_MEMLOCK is the driver's to respect.
 *
 * Lifetime: As for pagekit_pin_memfd().
 *
 * Context: Process context, may sleep. Takes the mmap lock for reading. Others
 * must stay away from @pins. Neither for shrinkers nor for fault operations.
 *
 * Return: 0, with @count more entries pinned; -EINVAL if @addr is not page aligned,
 * @count is 0, the range wraps around, or for other flags; -EFAULT if it is not
 * mapped, not user memory, with PAGEKIT_WRITE not to be written to or of a file on
 * disk, has a hardware memory error, or there is no process; -EINTR if a fatal
 * signal is pending; -ENOMEM; others as from pin_user_pages_fast(). On any error
 * @pins is as it was.
 */
int pagekit_pin_user(struct pagekit_pins *pins, unsigned long addr, unsigned long count,
		     unsigned int flags);

/**
 * pagekit_unpin() - unpin all pages of an array
 * @pins: the array, or NULL
 * @flags: PAGEKIT_DIRTY, PAGEKIT_ACCESSED, both or 0
 *
 * As unpin_user_pages_dirty_lock(). The array is empty then, and the driver's to be
 * filled again or freed.
 *
 * Context: Process context, may sleep. A shrinker may call it for pages of memfds. Not
 * for memory of processes: if that is of a file on disk, marking it dirty takes folio
 * locks, which whoever allocates may hold.
 */
void pagekit_unpin(struct pagekit_pins *pins, unsigned int flags);

/* --- Mappings: select PAGEKIT_VMA_C --- */

/**
 * DOC: mappings
 *
 * A mapping has a base, and shows at page offset pgoff the page pgoff - base of
 * the array. That is 0 for a dma-buf, and drm_vma_node_start() for a GEM object.
 *
 * A VMA is for PFNs, or for referenced pages: functions for the one refuse the
 * other, and all refuse private mappings that can be written to.
 *
 * Referenced pages may be shown to user space, and are given back by their
 * reference counts alone: users can pin them beyond the mapping. Those of a pool
 * that hands pages out again whatever their counts are must be mapped as PFNs. So
 * must those of CMA areas, which nobody could pin for long: who tries spins.
 *
 * A mapping is cached, unless the driver sets vm_page_prot in its mmap operation, before
 * pages are mapped. For referenced pages it must leave vm_page_prot as it is.
 *
 * PAGEKIT_WRITE_COMBINE is for PFNs, and for devices that don't snoop. The memory of
 * each page must have what was written to the page, if only zeroes: whoever had it
 * before has left data there, which the process would see. dma_map_sgtable() cleans
 * the caches, for DMA_TO_DEVICE or DMA_BIDIRECTIONAL, and later
 * dma_sync_sgtable_for_device(). For a device that snoops (dev_is_dma_coherent())
 * they clean nothing, and the mapping must stay cached. On x86 nothing need be
 * cleaned, and the memory decides: see set_pages_array_wc().
 */

/**
 * pagekit_setup_pfns() - set a VMA up to show PFNs on fault
 * @vma: what the mmap operation was passed
 * @count: number of pages of the array
 * @base: page offset of its first page
 * @flags: PAGEKIT_READ_ONLY, PAGEKIT_WRITE_COMBINE, both or 0
 *
 * Without PAGEKIT_READ_ONLY, whoever maps the VMA must be allowed to write each
 * page that it will show, and none may be a zero page.
 *
 * Sets VM_PFNMAP, VM_DONTEXPAND and VM_DONTDUMP. The fault operation of the VMA
 * must call pagekit_fault_pfns(), and may have pagekit_huge_fault_pfns().
 * The caller must not make the VMA a mixed mapping (VM_MIXEDMAP) afterwards.
 *
 * Context: The mmap operation, under the mmap lock held for writing. Doesn't
 * sleep.
 *
 * Return: 0; -EACCES if it is to be read only and the VMA is writable; -EINVAL if
 * the window is not wholly within the array, or the VMA is a private mapping that
 * can be written to, or a mixed mapping already, or for other flags.
 */
int pagekit_setup_pfns(struct vm_area_struct *vma, unsigned long count, unsigned long base,
		       unsigned int flags);

/**
 * pagekit_map_pfns() - map the PFNs of all pages that a VMA shows
 * @vma: what the mmap operation was passed
 * @pages: the array
 * @count: number of its pages
 * @base: page offset of its first page
 * @flags: as for pagekit_setup_pfns()
 *
 * As pagekit_setup_pfns(), and maps at once. If the VMA has an operation for
 * huge faults already, blocks that can be huge pages are left to that. Not for
 * pages that the driver revokes: pagekit_zap() misses a VMA whose mmap
 * operation is running.
 *
 * Lifetime: The mapping holds no references. Each page must stay allocated until
 * it is gone: until the file that was mapped is released.
 *
 * Context: The mmap operation, under the mmap lock held for writing. May sleep.
 *
 * Return: 0; -EACCES and -EINVAL as from pagekit_setup_pfns(); -EINTR if a fatal signal is
 * pending; -ENOMEM. An error must be that of the mmap operation: the kernel
 * unmaps what was mapped, then.
 */
int pagekit_map_pfns(struct vm_area_struct *vma, struct page **pages, unsigned long count,
		     unsigned long base, unsigned int flags);

/**
 * pagekit_fault_pfns() - map PFNs for a fault
 * @vmf: what the fault operation was passed
 * @pages: the array, or NULL if there is none at present
 * @count: number of its pages
 * @base: page offset of its first page
 *
 * Maps the faulting page and what else of the array is in the same 2 MiB.
 *
 * Lifetime: The mapping holds no references. Each page must stay allocated, and
 * in the same place of the array, until the file that was mapped is released or
 * the driver has zapped the mapping.
 *
 * Context: The fault operation. May sleep. To revoke mappings, hold a lock of
 * the driver's around both this and pagekit_zap().
 *
 * Return: VM_FAULT_NOPAGE; VM_FAULT_SIGBUS if the address is outside of the
 * array or the VMA isn't one for PFNs; VM_FAULT_OOM.
 */
vm_fault_t pagekit_fault_pfns(struct vm_fault *vmf, struct page **pages, unsigned long count,
			      unsigned long base);

/**
 * pagekit_huge_fault_pfns() - map a huge page of PFNs for a fault
 * @vmf: what the huge_fault operation was passed
 * @order: what it was passed, too
 * @pages: the array, or NULL if there is none at present
 * @count: number of its pages
 * @base: page offset of its first page
 *
 * Maps the block of PMD_SIZE around the faulting address as one, if the VMA and
 * the array have all of it and its pages are contiguous and aligned. Not for
 * anonymous memory of processes: CONFIG_PAGE_TABLE_CHECK takes a second huge entry
 * that shows it for a bug.
 *
 * Lifetime: As for pagekit_fault_pfns().
 *
 * Context: The huge_fault operation, of a VMA whose fault operation calls
 * pagekit_fault_pfns(). Otherwise as for that.
 *
 * Return: As pagekit_fault_pfns(); VM_FAULT_FALLBACK for other orders and blocks.
 */
vm_fault_t pagekit_huge_fault_pfns(struct vm_fault *vmf, unsigned int order,
				   struct page **pages, unsigned long count, unsigned long base);

/**
 * pagekit_setup_pages() - set a VMA up to show referenced pages on fault
 * @vma: what the mmap operation was passed
 * @count: number of pages of the array
 * @base: page offset of its first page
 * @flags: PAGEKIT_READ_ONLY or 0
 *
 * Sets VM_DONTEXPAND, VM_DONTDUMP and VM_RAND_READ; and VM_MIXEDMAP, for faults to map pages in
 * bulk, if the VMA has its operations already, and none for huge faults. The fault operation of
 * the VMA must call pagekit_fault_pages(), and may have pagekit_huge_fault_pages().
 *
 * Context: The mmap operation, under the mmap lock held for writing. Doesn't
 * sleep.
 *
 * Return: 0; -EACCES and -EINVAL as from pagekit_setup_pfns(), -EINVAL also if the
 * VMA is one for PFNs already.
 */
int pagekit_setup_pages(struct vm_area_struct *vma, unsigned long count, unsigned long base,
			unsigned int flags);

/**
 * pagekit_map_pages() - map all pages that a VMA shows, with references
 * @vma: what the mmap operation was passed
 * @pages: the array: no pages of files or processes
 * @count: number of its pages
 * @base: page offset of its first page
 * @flags: as for pagekit_setup_pages()
 *
 * Sets VM_MIXEDMAP, VM_DONTEXPAND, VM_DONTDUMP and VM_RAND_READ.
 *
 * Lifetime: The mapping has references of its own.
 *
 * Context: The mmap operation, under the mmap lock held for writing. May sleep.
 *
 * Return: 0; -EACCES and -EINVAL as from pagekit_setup_pages(), or for pages that can't be
 * mapped so; -EBUSY if something is mapped there; -EINTR if a fatal signal is
 * pending; -ENOMEM. An error must be that of the mmap operation: the kernel
 * unmaps what was mapped, then.
 */
int pagekit_map_pages(struct vm_area_struct *vma, struct page **pages, unsigned long count,
		      unsigned long base, unsigned int flags);

/**
 * pagekit_fault_pages() - map referenced pages for a fault
 * @vmf: what the fault operation was passed
 * @pages: the array, or NULL if there is none at present
 * @count: number of its pages
 * @base: page offset of its first page
 *
 * Maps the faulting page and what else of the array is in the same 2 MiB.
 *
 * Lifetime: The mapping has references of its own.
 *
 * Context: The fault operation. May sleep.
 *
 * Return: VM_FAULT_NOPAGE; VM_FAULT_SIGBUS if the address is outside of the
 * array, the VMA is one for PFNs, or the page is one that pagekit_map_pages()
 * refuses; VM_FAULT_OOM.
 */
vm_fault_t pagekit_fault_pages(struct vm_fault *vmf, struct page **pages, unsigned long count,
			       unsigned long base);

/**
 * pagekit_huge_fault_pages() - map a huge page and take a reference for a fault
 * @vmf: what the huge_fault operation was passed
 * @order: what it was passed, too
 * @pages: the array, or NULL if there is none at present
 * @count: number of its pages
 * @base: page offset of its first page
 *
 * Maps the block of PMD_SIZE around the faulting address as one, if the VMA and
 * the array have all of it and its pages are those of one folio. Only in VMAs
 * that pagekit_setup_pages() has set up.
 *
 * Lifetime: The mapping has a reference of its own.
 *
 * Context: The huge_fault operation, of a VMA whose fault operation calls
 * pagekit_fault_pages(). The driver must hold a lock of its own around both: the
 * kernel takes it for a bug if a huge page appears while pages are inserted.
 *
 * Return: As pagekit_fault_pages(); VM_FAULT_FALLBACK for other orders, blocks
 * and VMAs.
 */
vm_fault_t pagekit_huge_fault_pages(struct vm_fault *vmf, unsigned int order,
				    struct page **pages, unsigned long count,
				    unsigned long base);

/**
 * pagekit_zap() - take pages out of all mappings of a file
 * @mapping: f_mapping of the file that was mapped
 * @first: index of the first page in the array
 * @count: number of pages, which may be 0
 * @base: page offset of page 0 of the array
 *
 * The other direction of the fault operations. To revoke pages, hold a lock of the
 * driver's around both. It misses VMAs whose mmap operation is running.
 *
 * Context: May sleep. Takes the lock of the mapping (i_mmap_rwsem) and those of
 * page tables. A shrinker may call it.
 */
static inline void pagekit_zap(struct address_space *mapping, unsigned long first,
			       unsigned long count, unsigned long base)
{
	/* For the kernel, no pages are all up to the end of the file. */
	if (count && base + first >= base)
		unmap_mapping_pages(mapping, base + first, count, true);
}

#endif
