// SPDX-License-Identifier: GPL-2.0
/*
 * Static inlines and fields that Rust can't get at, and the exports of pagekit_pages.
 */
#include <linux/mm.h>
#include <linux/pagemap.h>

#include "shim.h"

SHIM(struct folio *, pagekit_pages_page_folio, (struct page *page), page_folio(page))
SHIM(loff_t, pagekit_pages_file_size, (struct file *file), i_size_read(file_inode(file)))
SHIM(unsigned long, pagekit_pages_rest, (struct page *page), folio_rest(page_folio(page), page))
SHIM(struct page *, pagekit_pages_page, (struct folio *folio, pgoff_t index),
     folio_file_page(folio, index))
SHIM(long, pagekit_pages_usable, (struct folio *folio, pgoff_t index), folio_usable(folio, index))
SHIM(unsigned long, pagekit_pages_take_small,
     (struct folio *const *folios, unsigned long n, struct page **pages),
     take_small(folios, n, pages))
SHIM(unsigned long, pagekit_pages_put_small,
     (struct page *const *pages, unsigned long n, bool dirty),
     put_small(pages, n, dirty, folio_put))
SHIM(bool, pagekit_pages_dirty_without_lock, (struct folio *folio),
     folio_dirty_without_lock(folio))
SHIM(void, pagekit_pages_get, (struct folio *folio, int refs), folio_ref_add(folio, refs))
SHIM(void, pagekit_pages_put, (struct folio *folio, int refs), folio_put_refs(folio, refs))

gfp_t pagekit_pages_shmem_gfp(struct address_space *mapping, bool no_reclaim, bool retry_mayfail);
gfp_t pagekit_pages_shmem_gfp(struct address_space *mapping, bool no_reclaim, bool retry_mayfail)
{
	const gfp_t gfp = mapping_gfp_mask(mapping);

	if (no_reclaim)
		return (gfp & ~__GFP_RECLAIM) | __GFP_NORETRY | __GFP_NOWARN;
	return retry_mayfail ? gfp | __GFP_RETRY_MAYFAIL | __GFP_NOWARN : gfp;
}

/* Users see the pages: cpusets hold for them. */
SHIM(gfp_t, pagekit_pages_gfp, (bool account),
     GFP_USER | __GFP_ZERO | (account ? __GFP_ACCOUNT : 0))
SHIM(struct folio *, pagekit_pages_alloc_large, (gfp_t gfp, unsigned int order),
     folio_alloc((gfp | __GFP_NOWARN) & ~__GFP_RECLAIM, order))

/* As alloc_pages_bulk(), which knows no memory policy. */
unsigned long pagekit_pages_alloc_bulk(gfp_t gfp, unsigned long count, struct page **pages);
unsigned long pagekit_pages_alloc_bulk(gfp_t gfp, unsigned long count, struct page **pages)
{
#ifdef CONFIG_NUMA
	if (current->mempolicy) {
		unsigned long i = 0;

		while (i < count && (pages[i] = alloc_page(gfp)))
			i++;
		return i;
	}
#endif
	return alloc_pages_bulk(gfp, count, pages);
}

#include "pagekit_pages_exports.h"
HELPER("Arrays of held pages for dma-buf drivers");
