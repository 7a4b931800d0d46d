// SPDX-License-Identifier: GPL-2.0
/*
 * Static inlines and fields that Rust can't get at, and the exports of pagekit_pages.
 */
#include <linux/mm.h>
#include <linux/pagemap.h>

#include "shim.h"

ARRAY()
SHIM(loff_t, pagekit_pages_file_size, (struct file *file), i_size_read(file_inode(file)))
SHIM(unsigned long, pagekit_pages_rest, (struct page *page), folio_rest(page_folio(page), page))
SHIM(struct page *, pagekit_pages_page, (struct folio *folio, pgoff_t index),
     folio_file_page(folio, index))
SHIM(long, pagekit_pages_usable, (struct folio *folio, pgoff_t index), folio_usable(folio, index))
SHIM(unsigned long, pagekit_pages_take_small_prefix,
     (struct folio *const *folios, unsigned long n, struct page **pages),
     take_small_prefix(folios, n, pages))
SHIM(unsigned long, pagekit_pages_put_small_prefix,
     (struct page *const *pages, unsigned long n, bool dirty),
     put_small_prefix(pages, n, dirty, folio_put))
SHIM(bool, pagekit_pages_dirty_without_lock, (struct page *page),
     folio_dirty_without_lock(page_folio(page)))
SHIM(void, pagekit_pages_get, (struct folio *folio, int refs), folio_ref_add(folio, refs))
SHIM(void, pagekit_pages_put, (struct page *page, int refs),
     folio_put_refs(page_folio(page), refs))
SHIM(struct folio *, pagekit_pages_alloc_large, (gfp_t gfp, unsigned int order),
     folio_alloc((gfp | __GFP_NOWARN) & ~__GFP_RECLAIM, order))

/* As alloc_pages_bulk(), which knows no memory policy: where there is one, a page at once. */
unsigned long pagekit_pages_alloc_bulk(gfp_t gfp, unsigned long count, struct page **pages);
unsigned long pagekit_pages_alloc_bulk(gfp_t gfp, unsigned long count, struct page **pages)
{
#ifdef CONFIG_NUMA
	if (current->mempolicy)
		return (*pages = alloc_page(gfp)) ? 1 : 0;
#endif
	return alloc_pages_bulk(gfp, count, pages);
}

#include "pagekit_pages_exports.h"
HELPER("Arrays of held pages for dma-buf drivers");
