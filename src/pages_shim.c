// SPDX-License-Identifier: GPL-2.0
/*
 * Static inlines that Rust can't call, one to one and without logic, and the
 * exports of pagekit_pages.
 */
#include <linux/mm.h>
#include <linux/pagemap.h>
#include <linux/sched/signal.h>

#include "shim.h"

SHIM(struct folio *, pagekit_pages_page_folio, (struct page *page), page_folio(page))
SHIM(loff_t, pagekit_pages_file_size, (struct file *file), i_size_read(file_inode(file)))
SHIM(int, pagekit_pages_refs, (struct folio *folio), folio_ref_count(folio))
SHIM(unsigned long, pagekit_pages_nr, (struct folio *folio), folio_nr_pages(folio))
SHIM(pgoff_t, pagekit_pages_index, (struct folio *folio), folio->index)
SHIM(bool, pagekit_pages_uptodate, (struct folio *folio), folio_test_uptodate(folio))
SHIM(bool, pagekit_pages_poisoned, (struct folio *folio), folio_contain_hwpoisoned_page(folio))
SHIM(void, pagekit_pages_get, (struct folio *folio, int refs), folio_ref_add(folio, refs))
SHIM(void, pagekit_pages_put, (struct folio *folio, int refs), folio_put_refs(folio, refs))
SHIM(struct folio *, pagekit_pages_alloc_large, (gfp_t gfp, unsigned int order),
     folio_alloc((gfp | __GFP_NOWARN | __GFP_NORETRY) & ~__GFP_RECLAIM, order))
SHIM(unsigned long, pagekit_pages_alloc_bulk,
     (gfp_t gfp, unsigned long count, struct page **pages),
     alloc_pages_bulk(gfp, count, pages))
SHIM(void, pagekit_pages_cond_resched, (void), (void)cond_resched())
SHIM(bool, pagekit_pages_fatal_signal, (void), fatal_signal_pending(current))

#include "pagekit_pages_exports.h"
