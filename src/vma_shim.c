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

#include "pagekit_vma_exports.h"
