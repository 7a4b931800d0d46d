/* SPDX-License-Identifier: GPL-2.0 */
#ifndef PAGEKIT_SHIM_H
#define PAGEKIT_SHIM_H

#include <linux/export.h>
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/sched/signal.h>
#include <linux/slab.h>

/* What view.rs takes it to be. */
static_assert((IS_ENABLED(CONFIG_S390) ? 4 : 3) == PAGE_SHIFT - PMD_ORDER);

/*
 * A function for Rust to call that is one C expression. Weak, as all functions are that a
 * header defines: drivers that share the header can be built into one kernel.
 */
#define SHIM(type, name, args, expr)	\
	type name args;			\
	__weak type name args		\
	{				\
		return expr;		\
	}

/*
 * Users may repeat what takes references and pins, and a pin on a small folio is 1024 references.
 * A folio that has half of all references that fit gets none from here any more.
 */
static inline bool folio_overused(struct folio *folio)
{
	return (unsigned int)folio_ref_count(folio) > INT_MAX / 2;
}

/*
 * How many pages a folio has from page index of its file on. 0 if it was never written, and so not
 * zeroed. -EAGAIN if it doesn't have that page. -EIO after a memory error, as
 * shmem_read_mapping_page_gfp() says. -ENOMEM if it is overused.
 */
static inline long folio_usable(struct folio *folio, pgoff_t index)
{
	if (index - folio->index >= folio_nr_pages(folio))
		return -EAGAIN;
	if (folio_contain_hwpoisoned_page(folio))
		return -EIO;
	if (folio_overused(folio))
		return -ENOMEM;
	if (!folio_test_uptodate(folio))
		return 0;
	return folio->index + folio_nr_pages(folio) - index;
}

/* How many pages a folio has from one of them on. */
static inline unsigned long folio_rest(struct folio *folio, struct page *page)
{
	return folio_nr_pages(folio) - folio_page_idx(folio, page);
}

/*
 * Most arrays are of small folios. A call for each would cost more than what is done to it, and so
 * would a test for each flag. So two loops go through the small folios that an array begins with.
 */

/* Copies those that can be used as they are to pages. Returns how many. */
static inline unsigned long take_small_prefix(struct folio *const *folios, unsigned long n,
					      struct page **pages)
{
	const unsigned long good = BIT(PG_uptodate), bad = BIT(PG_head) | __PG_HWPOISON;
	unsigned long i;

	for (i = 0; i < n; i++) {
		if ((READ_ONCE(folios[i]->flags.f) & (good | bad)) != good ||
		    folio_overused(folios[i]))
			break;
		pages[i] = &folios[i]->page;
	}
	smp_rmb(); /* as in folio_test_uptodate() */
	return i;
}

/*
 * Marks a folio dirty without its lock, unless it needs that. Returns whether it is marked.
 *
 * folio_mark_dirty() calls an operation of the mapping that the folio is in. The lock keeps that
 * mapping, which truncation may otherwise free meanwhile. But folios of shmem, processes and
 * hugetlb need no mapping: whether they are in the page cache, in the swap cache or in neither
 * any more, the operation is noop_dirty_folio(), which sets the flag and looks at nothing else.
 * Nobody accounts it, so the flag does no harm on a folio that was truncated, or will be. The
 * caller's reference goes afterwards: so reclaim, which looks at the flag when there are no other
 * references, finds it set (__remove_mapping()).
 */
static inline bool folio_dirty_without_lock(struct folio *folio)
{
	if (!folio_test_swapbacked(folio) && !folio_test_hugetlb(folio))
		return false;
	folio_set_dirty(folio);
	return true;
}

/* Calls put with those that are dirty, or with all if they need not be. Returns how many. */
static __always_inline unsigned long put_small_prefix(struct page *const *pages, unsigned long n,
						      bool dirty, void (*put)(struct folio *))
{
	const unsigned long good = dirty ? BIT(PG_dirty) : 0;
	unsigned long i;

	for (i = 0; i < n; i++) {
		struct page *page = pages[i];

		if (PageTail(page) || (READ_ONCE(page->flags.f) & (BIT(PG_head) | good)) != good)
			break;
		put((struct folio *)page);
	}
	return i;
}

/* Room for an array of pages, for view.rs. */
#define ARRAY()								\
	SHIM(void *, pagekit_array, (unsigned long count, gfp_t how),		\
	     kvmalloc_array(count, sizeof(struct page *),			\
			    GFP_KERNEL_ACCOUNT | __GFP_NOWARN | how))

/* What a helper says of itself, and what view.rs has each of them call. */
#define HELPER(description)					\
	SHIM(bool, pagekit_yield, (void),			\
	     (cond_resched(), fatal_signal_pending(current)))	\
	MODULE_DESCRIPTION(description);			\
	MODULE_AUTHOR("The pagekit authors");			\
	MODULE_LICENSE("GPL")

/* A Rust function that drivers link to. Only its address matters here. */
#define EXPORT_RUST_GPL(sym)		\
	extern int sym;			\
	EXPORT_SYMBOL_GPL(sym)

#endif
