// SPDX-License-Identifier: GPL-2.0
/*
 * Page table entries are made by static inlines only, and are visited by a
 * callback: both are here. And the exports of pagekit_vma.
 */
#include <linux/mm.h>

#include "shim.h"

struct fill {
	struct vm_area_struct *vma;
	struct page *const *pages;
};

static int fill_pfn(pte_t *pte, unsigned long addr, void *data)
{
	struct fill *fill = data;
	struct page *page = *fill->pages++;

	/* Present ones are visited, too: another thread may have been faster. */
	if (pte_none(ptep_get(pte)))
		set_pte_at(fill->vma->vm_mm, addr, pte,
			   pte_mkspecial(mk_pte(page, fill->vma->vm_page_prot)));
	return 0;
}

int pagekit_vma_fill_pfns(struct vm_area_struct *vma, unsigned long addr,
			  unsigned long size, struct page *const *pages);
int pagekit_vma_fill_pfns(struct vm_area_struct *vma, unsigned long addr,
			  unsigned long size, struct page *const *pages)
{
	struct fill fill = { .vma = vma, .pages = pages };

	return apply_to_page_range(vma->vm_mm, addr, size, fill_pfn, &fill);
}

/* What there is to fill: nothing yet, a page table or a huge page. */
int pagekit_vma_pmd(struct vm_fault *vmf);
int pagekit_vma_pmd(struct vm_fault *vmf)
{
	pmd_t pmd = pmdp_get_lockless(vmf->pmd);

	return pmd_none(pmd) ? 0 : pmd_leaf(pmd) ? 2 : 1;
}

#ifdef CONFIG_TRANSPARENT_HUGEPAGE
/*
 * As a write only where a huge page is made writable: where there was none, a
 * page table that came first must not be taken for a huge page.
 */
SHIM(vm_fault_t, pagekit_vma_insert_pmd, (struct vm_fault *vmf, struct page *page),
     vmf_insert_pfn_pmd(vmf, page_to_pfn(page),
			(vmf->flags & FAULT_FLAG_WRITE) && pmd_leaf(vmf->orig_pmd)))
#else
SHIM(vm_fault_t, pagekit_vma_insert_pmd, (struct vm_fault *vmf, struct page *page),
     VM_FAULT_FALLBACK)
#endif
SHIM(unsigned long, pagekit_vma_page_to_pfn, (struct page *page), page_to_pfn(page))
/* A shmem page on its way to swap has no mapping, but will have one again. */
SHIM(bool, pagekit_vma_has_mapping, (struct page *page),
     page_folio(page)->mapping || folio_test_swapcache(page_folio(page)))

#include "pagekit_vma_exports.h"
