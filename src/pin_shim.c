// SPDX-License-Identifier: GPL-2.0
/*
 * Static inlines that Rust can't call, one to one and without logic, and the
 * exports of pagekit_pin.
 */
#include <linux/mm.h>
#include <linux/sched/signal.h>

#include "shim.h"

SHIM(bool, pagekit_pin_has_mm, (void), current->mm)
SHIM(loff_t, pagekit_pin_file_size, (struct file *file), i_size_read(file_inode(file)))
SHIM(pgoff_t, pagekit_pin_index, (struct folio *folio), folio->index)
SHIM(int, pagekit_pin_refs, (struct folio *folio), folio_ref_count(folio))
SHIM(unsigned long, pagekit_pin_nr, (struct folio *folio), folio_nr_pages(folio))
SHIM(bool, pagekit_pin_uptodate, (struct folio *folio), folio_test_uptodate(folio))
SHIM(bool, pagekit_pin_poisoned, (struct folio *folio), folio_contain_hwpoisoned_page(folio))
SHIM(void, pagekit_pin_put, (struct folio *folio), folio_put(folio))
SHIM(void, pagekit_pin_cond_resched, (void), (void)cond_resched())
SHIM(bool, pagekit_pin_fatal_signal, (void), fatal_signal_pending(current))

#include "pagekit_pin_exports.h"
