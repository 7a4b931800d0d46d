// SPDX-License-Identifier: GPL-2.0
/*
 * Static inlines that Rust can't call, one to one and without logic, and the
 * exports of pagekit_pin.
 */
#include <linux/mm.h>

#include "shim.h"

ARRAY()
SHIM(bool, pagekit_pin_has_mm, (void), current->mm)
SHIM(loff_t, pagekit_pin_file_size, (struct file *file), i_size_read(file_inode(file)))
SHIM(pgoff_t, pagekit_pin_index, (struct folio *folio), folio->index)
SHIM(long, pagekit_pin_usable, (struct folio *folio, pgoff_t index), folio_usable(folio, index))
SHIM(unsigned long, pagekit_pin_rest, (struct page *page), folio_rest(page_folio(page), page))
SHIM(unsigned long, pagekit_pin_take_small_prefix, (struct folio **folios, unsigned long n),
     take_small_prefix(folios, n, (struct page **)folios))
SHIM(unsigned long, pagekit_pin_put_small_prefix,
     (struct page *const *pages, unsigned long n, bool dirty),
     put_small_prefix(pages, n, dirty, unpin_folio))
SHIM(void, pagekit_pin_put, (struct folio *folio), folio_put(folio))
SHIM(bool, pagekit_pin_dirty_without_lock, (struct page *page),
     folio_dirty_without_lock(page_folio(page)))

#ifdef CONFIG_RUST_DEBUG_ASSERTIONS
SHIM(bool, pagekit_pin_is_pinned, (struct page *page), folio_maybe_dma_pinned(page_folio(page)))
#endif

#include "pagekit_pin_exports.h"
HELPER("Pinned pages for dma-buf drivers");
