/* SPDX-License-Identifier: GPL-2.0 */
/*
 * Static inlines for the fixture in fixture.rs. Each test module has a copy.
 */
#include <linux/anon_inodes.h>
#include <linux/highmem.h>
#include <linux/mm.h>
#include <linux/pagemap.h>
#include <linux/sched.h>
#include <linux/shmem_fs.h>

#include "../../src/shim.h"

/* The VMA at addr takes large folios, as after MADV_HUGEPAGE. */
int fixture_advise_huge(unsigned long addr);
int fixture_advise_huge(unsigned long addr)
{
	struct vm_area_struct *vma;

	mmap_write_lock(current->mm);
	vma = vma_lookup(current->mm, addr);
	if (vma)
		vm_flags_set(vma, VM_HUGEPAGE);
	mmap_write_unlock(current->mm);
	return vma ? 0 : -EFAULT;
}

/* Is addr mapped by a huge page? Nobody changes the page tables meanwhile. */
bool fixture_is_huge(unsigned long addr);
bool fixture_is_huge(unsigned long addr)
{
	pgd_t *pgd = pgd_offset(current->mm, addr);
	p4d_t *p4d;
	pud_t *pud;

	if (pgd_none(*pgd))
		return false;
	p4d = p4d_offset(pgd, addr);
	if (p4d_none(*p4d))
		return false;
	pud = pud_offset(p4d, addr);
	return !pud_none(*pud) && pmd_leaf(*pmd_offset(pud, addr));
}

SHIM(struct file *, fixture_shmem, (loff_t size),
     shmem_file_setup("pagekit-kunit", size, EMPTY_VMA_FLAGS))
SHIM(int, fixture_refs, (struct page *page), folio_ref_count(page_folio(page)))
SHIM(bool, fixture_maybe_pinned, (struct page *page), folio_maybe_dma_pinned(page_folio(page)))
SHIM(int, fixture_pincount, (struct page *page), atomic_read(&page_folio(page)->_pincount))
SHIM(void, fixture_poison, (struct page *page), SetPageHWPoison(page))
SHIM(void, fixture_unpoison, (struct page *page), ClearPageHWPoison(page))
SHIM(bool, fixture_dirty, (struct page *page), folio_test_dirty(page_folio(page)))
SHIM(void, fixture_clear_dirty, (struct page *page), folio_clear_dirty(page_folio(page)))
SHIM(bool, fixture_uptodate, (struct page *page), folio_test_uptodate(page_folio(page)))
SHIM(bool, fixture_referenced, (struct page *page),
     folio_test_referenced(page_folio(page)) || folio_test_active(page_folio(page)))
SHIM(unsigned long, fixture_nr, (struct page *page), folio_nr_pages(page_folio(page)))
SHIM(void *, fixture_address, (struct page *page), page_address(page))
SHIM(struct page *, fixture_find, (struct file *file, pgoff_t index),
     find_get_page(file->f_mapping, index))
SHIM(void, fixture_put, (struct page *page), put_page(page))
SHIM(int, fixture_stay, (void),
     set_cpus_allowed_ptr(current, cpumask_of(raw_smp_processor_id())))
