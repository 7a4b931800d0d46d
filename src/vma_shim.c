// SPDX-License-Identifier: GPL-2.0
/*
 * Page table entries are made by static inlines only, and are visited by a
 * callback: both are here. And the exports of pagekit_vma.
 */
#include <linux/mm.h>
#include <linux/page_table_check.h>

#include "shim.h"

struct fill {
	struct mm_struct *mm;
	struct page *const *pages;
	unsigned long count;
};

/*
 * Visits only the first: the page table is locked and has the others behind it.
 * A call for each would cost more than all else.
 */
static int fill_table(pte_t *pte, unsigned long addr, void *data)
{
	const struct fill fill = *(struct fill *)data;
	const pte_t first = ptep_get(pte);
	const struct page *shown;
	unsigned long i;

	/* Without a lock of the driver's it may have been revoked since. */
	if (!pte_present(first))
		return 0;
	shown = pfn_to_page(pte_pfn(first));
	for (i = 1; i < fill.count; i++) {
		const pte_t entry = pte_advance_pfn(first, fill.pages[i] - shown);

		/* Another thread may have been faster. */
		if (unlikely(!pte_none(ptep_get(pte + i))))
			continue;
		/*
		 * As set_pte_at() does it for entries that are special, as the first is, and not
		 * executable. For others it calls what is not exported, on arm64 and on riscv.
		 */
		page_table_check_ptes_set(fill.mm, addr + i * PAGE_SIZE, pte + i, entry, 1);
		set_pte(pte + i, entry);
	}
	return 0;
}

/*
 * The kernel inserts the first page, for it alone knows the cache mode of memory,
 * and the others are like that. The addresses must be those of one page table.
 * It inserts all that can be executed where it flushes caches for these.
 */
int pagekit_vma_fill_pfns(struct vm_area_struct *vma, unsigned long addr,
			  struct page *const *pages, unsigned long count);
int pagekit_vma_fill_pfns(struct vm_area_struct *vma, unsigned long addr,
			  struct page *const *pages, unsigned long count)
{
	struct fill fill = { vma->vm_mm, pages, count };
#ifdef PG_dcache_clean
	const unsigned long alone = vma->vm_flags & VM_EXEC ? count : 1;
#else
	const unsigned long alone = 1;
#endif
	unsigned long i;

	smp_wmb(); /* as in pagekit_vma_are_free_standing() */
	for (i = 0; i < alone; i++)
		if (vmf_insert_pfn(vma, addr + i * PAGE_SIZE, page_to_pfn(pages[i])) !=
		    VM_FAULT_NOPAGE)
			return -ENOMEM;
	if (alone == count)
		return 0;
	return apply_to_page_range(vma->vm_mm, addr, PAGE_SIZE, fill_table, &fill);
}

/*
 * Has somebody mapped a huge page where the fault is? A huge fault of a larger order comes
 * before there is a place for one.
 */
SHIM(bool, pagekit_vma_is_huge, (struct vm_fault *vmf),
     vmf->pmd && pmd_leaf(pmdp_get_lockless(vmf->pmd)))

/*
 * Of no file and no process? Pages of shmem are its own also in swap, and after they
 * were truncated. Those that are get mapped next: what was written to them, if only
 * zeroes, must be seen before they are.
 */
bool pagekit_vma_are_free_standing(struct page *const *pages, unsigned long count);
bool pagekit_vma_are_free_standing(struct page *const *pages, unsigned long count)
{
	const unsigned long not_plain = BIT(PG_head) | BIT(PG_swapbacked);
	unsigned long i = 0, rest;

	smp_wmb(); /* pairs with page table walks, of whatever CPU */
	while (i < count) {
		struct page *page = pages[i++];
		struct folio *folio = (struct folio *)page;

		/* It may be truncated at any time. Most are small, and tell all by themselves. */
		if (!PageTail(page) && !(READ_ONCE(page->flags.f) & not_plain)) {
			if (READ_ONCE(folio->mapping))
				return false;
			continue;
		}
		folio = page_folio(page);
		if (READ_ONCE(folio->mapping) || folio_test_swapbacked(folio) ||
		    folio_test_hugetlb(folio))
			return false;
		/* A folio has one owner: its other pages need no look. */
		rest = min(folio_rest(folio, page) - 1, count - i);
		for (; rest && pages[i] == ++page; rest--)
			i++;
	}
	return true;
}

#ifdef CONFIG_TRANSPARENT_HUGEPAGE
/*
 * Only where there was a huge page, to be made writable: for a write, the kernel takes
 * what it finds for that. It may be a page table that another thread has put there.
 */
static bool mkwrite(struct vm_fault *vmf)
{
	return (vmf->flags & FAULT_FLAG_WRITE) && pmd_leaf(vmf->orig_pmd);
}

vm_fault_t pagekit_vma_insert_huge_pfn(struct vm_fault *vmf, struct page *page);
vm_fault_t pagekit_vma_insert_huge_pfn(struct vm_fault *vmf, struct page *page)
{
	smp_wmb(); /* as in pagekit_vma_are_free_standing() */
	return vmf_insert_pfn_pmd(vmf, page_to_pfn(page), mkwrite(vmf));
}

/* The page is aligned like a huge page: if its folio is one, the page is the first. */
vm_fault_t pagekit_vma_insert_huge_page(struct vm_fault *vmf, struct page *page);
vm_fault_t pagekit_vma_insert_huge_page(struct vm_fault *vmf, struct page *page)
{
	struct folio *folio = page_folio(page);

	if (folio_order(folio) != PMD_ORDER || !folio_test_large_rmappable(folio) ||
	    !pagekit_vma_are_free_standing(&page, 1))
		return VM_FAULT_FALLBACK;
	return vmf_insert_folio_pmd(vmf, folio, mkwrite(vmf));
}
#else
SHIM(vm_fault_t, pagekit_vma_insert_huge_pfn, (struct vm_fault *vmf, struct page *page),
     VM_FAULT_FALLBACK)
SHIM(vm_fault_t, pagekit_vma_insert_huge_page, (struct vm_fault *vmf, struct page *page),
     VM_FAULT_FALLBACK)
#endif

/* This looks at the VMA and the address only, and unlike vm_insert_page() not for VM_MIXEDMAP. */
SHIM(vm_fault_t, pagekit_vma_insert_page,
     (struct vm_area_struct *vma, unsigned long addr, struct page *page),
     vmf_insert_page_mkwrite(&(struct vm_fault){ .vma = vma, .address = addr }, page, false))
SHIM(unsigned long, pagekit_vma_page_to_pfn, (struct page *page), page_to_pfn(page))
SHIM(void, pagekit_vma_set_write_combine, (struct vm_area_struct *vma),
     (void)(vma->vm_page_prot = pgprot_writecombine(vma->vm_page_prot)))

#ifdef CONFIG_RUST_DEBUG_ASSERTIONS
SHIM(void, pagekit_vma_assert_mmap, (struct vm_area_struct *vma),
     mmap_assert_write_locked(vma->vm_mm))
SHIM(void, pagekit_vma_assert_fault, (struct vm_fault *vmf), assert_fault_locked(vmf))
#endif

#include "pagekit_vma_exports.h"
HELPER("Page arrays mapped into VMAs for dma-buf drivers");
