// SPDX-License-Identifier: GPL-2.0

//! KUnit suite `pagekit_pages`: arrays of held pages, against a real shmem.

use kernel::prelude::*;

mod fixture;

module! {
    type: Module,
    name: "pagekit_pages_kunit",
    authors: ["The pagekit authors"],
    description: "KUnit tests of pagekit_pages",
    license: "GPL",
}

struct Module;

impl kernel::Module for Module {
    fn init(_module: &'static ThisModule) -> Result<Self> {
        Ok(Self)
    }
}

#[kunit_tests(pagekit_pages)]
mod tests {
    use super::fixture::*;
    use core::ptr::NonNull;
    use kernel::{
        bindings,
        prelude::*, //
    };
    use pagekit_pages::{
        AllocFlags,
        Marks,
        PageArray,
        ShmemFlags, //
    };
    use pagekit_view::{
        runs,
        PageRef, //
    };

    /// Larger than a lookup batch, which has 31 entries.
    const MANY: usize = 100;

    #[test]
    fn resident_pages_are_the_files() -> Result {
        let file = TestFile::pattern(MANY)?;
        let array = PageArray::from_shmem(file.file(), 0, MANY, ShmemFlags::empty())?;
        assert_eq!(array.pages().len(), MANY);
        for (i, page) in array.pages().iter().enumerate() {
            assert!(file
                .find(i)
                .is_some_and(|found| found.as_ptr() == page.as_ptr()));
            assert!(all(page.as_ptr(), pattern(i)));
        }
        Ok(())
    }

    #[test]
    fn window_starts_at_pgoff() -> Result {
        let file = TestFile::pattern(MANY)?;
        let array = PageArray::from_shmem(file.file(), 40, 3, ShmemFlags::empty())?;
        assert_eq!(array.pages().len(), 3);
        for (i, page) in array.pages().iter().enumerate() {
            assert!(all(page.as_ptr(), pattern(40 + i)));
        }
        Ok(())
    }

    #[test]
    fn holes_are_filled_with_zeroes() -> Result {
        let file = TestFile::shmem(MANY)?;
        for i in [0, 50, MANY - 1] {
            file.write(i, pattern(i))?;
        }
        let array = PageArray::from_shmem(file.file(), 0, MANY, ShmemFlags::empty())?;
        for (i, page) in array.pages().iter().enumerate() {
            let byte = if [0, 50, MANY - 1].contains(&i) {
                pattern(i)
            } else {
                0
            };
            assert!(all(page.as_ptr(), byte));
            assert!(file
                .find(i)
                .is_some_and(|found| found.as_ptr() == page.as_ptr()));
        }
        Ok(())
    }

    #[test]
    fn never_written_pages_are_zeroed() -> Result {
        let file = TestFile::shmem(MANY)?;
        file.fallocate(0, MANY)?;
        for i in 0..MANY {
            let page = file.find(i).ok_or(ENOENT)?;
            assert!(!page.is_uptodate());
            page.fill(0x5a);
        }
        file.write(7, pattern(7))?;
        let array = PageArray::from_shmem(file.file(), 0, MANY, ShmemFlags::empty())?;
        for (i, page) in array.pages().iter().enumerate() {
            assert!(all(page.as_ptr(), if i == 7 { pattern(7) } else { 0 }));
            assert!(file.find(i).is_some_and(|found| found.is_uptodate()));
        }
        Ok(())
    }

    #[test]
    fn one_reference_per_entry() -> Result {
        let file = TestFile::pattern(MANY)?;
        let before = file.refs(5);
        let array = PageArray::from_shmem(file.file(), 0, MANY, ShmemFlags::empty())?;
        assert_eq!(file.refs(5), before + 1);
        let overlapping = PageArray::from_shmem(file.file(), 4, 10, ShmemFlags::empty())?;
        assert_eq!(file.refs(5), before + 2);
        drop(array);
        assert_eq!(file.refs(5), before + 1);
        overlapping.put(Marks::empty());
        assert_eq!(file.refs(5), before);
        Ok(())
    }

    #[test]
    fn large_folios_are_expanded() -> Result {
        let file = TestFile::huge_pattern(2 * HUGE)?;
        let before = file.refs(0);
        let array = PageArray::from_shmem(file.file(), 3, 2 * HUGE - 24, ShmemFlags::empty())?;
        assert_eq!(file.refs(0), before + HUGE as c_int - 3);
        assert_eq!(file.refs(HUGE), before + HUGE as c_int - 21);
        for (i, page) in array.pages().iter().enumerate() {
            assert!(all(page.as_ptr(), pattern(3 + i)));
        }
        drop(array);
        assert_eq!(file.refs(0), before);
        assert_eq!(file.refs(HUGE), before);
        Ok(())
    }

    #[test]
    fn punched_pages_stay_while_held() -> Result {
        let file = TestFile::pattern(4)?;
        let array = PageArray::from_shmem(file.file(), 0, 4, ShmemFlags::empty())?;
        file.punch_hole(1, 2)?;
        assert!(file.find(1).is_none());
        assert!(all(array.pages()[1].as_ptr(), pattern(1)));
        let again = PageArray::from_shmem(file.file(), 0, 4, ShmemFlags::empty())?;
        assert!(all(again.pages()[1].as_ptr(), 0));
        assert!(again.pages()[1].as_ptr() != array.pages()[1].as_ptr());
        Ok(())
    }

    #[test]
    fn put_marks_dirty_only_if_told() -> Result {
        let file = TestFile::pattern(2)?;
        for (marks, dirty) in [
            (Marks::empty(), false),
            (Marks::ACCESSED, false),
            (Marks::DIRTY, true),
            (Marks::DIRTY | Marks::ACCESSED, true),
        ] {
            let array = PageArray::from_shmem(file.file(), 0, 2, ShmemFlags::empty())?;
            let page = file.find(1).ok_or(ENOENT)?;
            page.clear_dirty();
            array.put(marks);
            assert_eq!(page.is_dirty(), dirty);
        }
        Ok(())
    }

    #[test]
    fn dropping_marks_dirty_only_what_may_be_written() -> Result {
        let file = TestFile::pattern(2)?;
        for (flags, dirty) in [(ShmemFlags::empty(), false), (ShmemFlags::WRITE, true)] {
            let array = PageArray::from_shmem(file.file(), 0, 2, flags)?;
            let page = file.find(1).ok_or(ENOENT)?;
            page.clear_dirty();
            drop(array);
            assert_eq!(page.is_dirty(), dirty);
        }
        // Not if somebody knows better.
        let array = PageArray::from_shmem(file.file(), 0, 2, ShmemFlags::WRITE)?;
        let page = file.find(1).ok_or(ENOENT)?;
        page.clear_dirty();
        array.put(Marks::empty());
        assert!(!page.is_dirty());
        Ok(())
    }

    #[test]
    fn marking_takes_no_folio_lock() -> Result {
        let file = TestFile::shmem(MIXED)?.mixed()?;
        for i in [0, HUGE, HUGE + 87] {
            let array = PageArray::from_shmem(file.file(), 0, MIXED, ShmemFlags::empty())?;
            let page = file.find(i).ok_or(ENOENT)?;
            page.clear_dirty();
            page.locked(|| array.put(Marks::DIRTY | Marks::ACCESSED));
            assert!(page.is_dirty());
        }
        Ok(())
    }

    #[test]
    fn put_marks_accessed_only_if_told() -> Result {
        let file = TestFile::shmem(1)?;
        PageArray::from_shmem(file.file(), 0, 1, ShmemFlags::empty())?.put(Marks::DIRTY);
        let page = file.find(0).ok_or(ENOENT)?;
        assert!(!page.is_referenced());
        PageArray::from_shmem(file.file(), 0, 1, ShmemFlags::empty())?.put(Marks::ACCESSED);
        assert!(page.is_referenced());
        Ok(())
    }

    #[test]
    fn bad_ranges_are_einval() -> Result {
        let file = TestFile::pattern(4)?;
        let before = [file.refs(0), file.refs(3)];
        for (pgoff, count) in [
            (0, 0),
            (4, 1),
            (0, 5),
            (3, 2),
            (usize::MAX, 1),
            (1, usize::MAX),
            (1 << 51, 1),
            (0, 1 << 40),
        ] {
            let result = PageArray::from_shmem(file.file(), pgoff, count, ShmemFlags::empty());
            assert_eq!(result.err(), Some(EINVAL));
        }
        assert_eq!([file.refs(0), file.refs(3)], before);
        Ok(())
    }

    #[test]
    fn other_files_are_einval() -> Result {
        let result = PageArray::from_shmem(TestFile::other()?.file(), 0, 1, ShmemFlags::empty());
        assert_eq!(result.err(), Some(EINVAL));
        Ok(())
    }

    #[test]
    fn memory_errors_are_eio_and_leave_no_reference() -> Result {
        needs_memory_failure();
        let file = TestFile::pattern(MANY)?;
        let before = file.refs(0);
        // In the last batch.
        let bad = file.find(MANY - 1).ok_or(ENOENT)?;
        let result =
            bad.poisoned(|| PageArray::from_shmem(file.file(), 0, MANY, ShmemFlags::empty()));
        assert_eq!(result.err(), Some(EIO));
        assert_eq!(file.refs(0), before);
        assert_eq!(file.refs(MANY - 2), before);
        drop(bad);
        assert_eq!(file.refs(MANY - 1), before);
        Ok(())
    }

    #[test]
    fn ranges_past_the_end_fill_nothing() -> Result {
        let file = TestFile::shmem(MANY)?;
        let result = PageArray::from_shmem(file.file(), 0, MANY + 1, ShmemFlags::empty());
        assert_eq!(result.err(), Some(EINVAL));
        assert!(file.find(0).is_none());
        Ok(())
    }

    #[test]
    fn fresh_pages_are_zero_and_distinct() -> Result {
        for flags in [
            AllocFlags::empty(),
            AllocFlags::ACCOUNT,
            AllocFlags::LARGE,
            AllocFlags::all(),
        ] {
            // More than is allocated at once, and not a multiple of any order.
            let array = PageArray::alloc(700, flags)?;
            assert_eq!(array.pages().len(), 700);
            for (i, page) in array.pages().iter().enumerate() {
                assert!(all(page.as_ptr(), 0));
                fill(page.as_ptr(), pattern(i));
            }
            // No page is there twice, or the later byte would be in both.
            for (i, page) in array.pages().iter().enumerate() {
                assert!(all(page.as_ptr(), pattern(i)));
            }
        }
        Ok(())
    }

    #[test]
    fn fresh_pages_are_not_stale() -> Result {
        // What is freed here is what the next allocation on this CPU gets first.
        for flags in [AllocFlags::empty(), AllocFlags::LARGE] {
            let array = PageArray::alloc(HUGE, flags)?;
            for page in array.pages() {
                fill(page.as_ptr(), 0xa5);
            }
            drop(array);
            for page in PageArray::alloc(HUGE, flags)?.pages() {
                assert!(all(page.as_ptr(), 0));
            }
        }
        Ok(())
    }

    #[test]
    fn fresh_pages_have_one_reference_each() -> Result {
        let array = PageArray::alloc(MIXED, AllocFlags::empty())?;
        for page in array.pages() {
            assert_eq!(refs(page.as_ptr()), 1);
        }
        drop(array);
        let array = PageArray::alloc(MIXED, AllocFlags::LARGE)?;
        let mut large = 0;
        for page in array.pages() {
            // As many as the folio has pages, for all of them are in the array.
            assert_eq!(refs(page.as_ptr()) as usize, nr(page.as_ptr()));
            large += usize::from(nr(page.as_ptr()) > 1);
        }
        // A machine that has just booted has a folio of 16 pages to spare.
        assert!(large >= 16);
        Ok(())
    }

    #[test]
    fn fresh_pages_are_where_the_memory_policy_says() -> Result {
        for flags in [AllocFlags::empty(), AllocFlags::ACCOUNT] {
            let (array, asked) = policed(|| PageArray::alloc(MANY, flags));
            assert_eq!(array?.pages().len(), MANY);
            assert!(asked as usize >= MANY);
        }
        Ok(())
    }

    #[test]
    fn no_pages_are_einval() -> Result {
        let result = PageArray::alloc(0, AllocFlags::empty());
        assert_eq!(result.err(), Some(EINVAL));
        Ok(())
    }

    /// Whether arrays of these ranges have one reference per entry, and nobody has more than
    /// `before`.
    fn has_refs(file: &TestFile, before: &[Folio], ranges: &[(usize, usize)]) -> Result<bool> {
        let held = |folio: &Folio| Folio {
            refs: folio.refs + folio.entries(ranges),
            ..*folio
        };
        let now = file.folios(MIXED)?;
        Ok(now.len() == before.len()
            && now.iter().zip(before).all(|(now, then)| *now == held(then)))
    }

    #[test]
    fn folios_of_all_sizes_have_a_reference_per_entry() -> Result {
        let file = TestFile::shmem(MIXED)?.mixed()?;
        let before = file.folios(MIXED)?;
        for ranges in [
            // All, and a part twice.
            [(0, MIXED), (HUGE - 12, 40)],
            // From within a folio into another, and one page.
            [(3, HUGE + 38), (HUGE - 1, 1)],
            [(HUGE + 1, 40), (HUGE + 15, 1)],
            [(HUGE + 16, 16), (HUGE + 28, 60)],
        ] {
            let mut arrays = KVec::new();
            for (pgoff, count) in ranges {
                let array = PageArray::from_shmem(file.file(), pgoff, count, ShmemFlags::empty())?;
                assert_eq!(array.pages().len(), count);
                for (i, page) in array.pages().iter().enumerate() {
                    assert!(all(page.as_ptr(), pattern(pgoff + i)));
                }
                arrays.push(array, GFP_KERNEL)?;
            }
            assert!(has_refs(&file, &before, &ranges)?);
            drop(arrays);
            assert!(has_refs(&file, &before, &[])?);
        }
        Ok(())
    }

    #[test]
    fn put_marks_all_folios() -> Result {
        let file = TestFile::shmem(MIXED)?.mixed()?;
        let before = file.folios(MIXED)?;
        let array = PageArray::from_shmem(file.file(), 0, MIXED, ShmemFlags::empty())?;
        for folio in &before {
            file.find(folio.first).ok_or(ENOENT)?.clear_dirty();
        }
        array.put(Marks::DIRTY);
        for folio in &before {
            assert!(file.find(folio.first).ok_or(ENOENT)?.is_dirty());
        }
        assert!(has_refs(&file, &before, &[])?);
        Ok(())
    }

    #[test]
    fn swapped_out_pages_are_brought_back() -> Result {
        needs_swap();
        let file = TestFile::shmem(MIXED)?.mixed()?;
        for i in [0, HUGE, HUGE + 18, HUGE + 87] {
            file.reclaim(i);
            assert!(file.find(i).is_none());
        }
        let array = PageArray::from_shmem(file.file(), 3, MIXED - 3, ShmemFlags::empty())?;
        for (i, page) in array.pages().iter().enumerate() {
            assert!(all(page.as_ptr(), pattern(3 + i)));
        }
        drop(array);
        assert!(file.is_unused(MIXED)?);
        Ok(())
    }

    #[test]
    fn what_was_written_survives_reclaim_if_dirty() -> Result {
        needs_swap();
        for (flags, marks, byte) in [
            (ShmemFlags::empty(), Some(Marks::DIRTY), 0xee),
            (ShmemFlags::WRITE, Some(Marks::empty()), 0),
            (ShmemFlags::WRITE, None, 0xee),
            (ShmemFlags::empty(), None, 0),
        ] {
            let file = TestFile::shmem(4)?;
            let array = PageArray::from_shmem(file.file(), 0, 4, flags)?;
            fill(array.pages()[2].as_ptr(), 0xee);
            match marks {
                Some(marks) => array.put(marks),
                None => drop(array),
            }
            file.reclaim(2);
            assert!(file.find(2).is_none());
            assert!(file.reads(2, byte)?);
        }
        Ok(())
    }

    #[test]
    fn holding_moves_nothing() -> Result {
        needs_movable();
        let file = TestFile::shmem(MANY)?.movable().filled(MANY)?;
        let before = file.folios(MANY)?;
        let pages = |i| file.find(i).map(|page| (page.as_ptr(), page.is_movable()));
        let first = pages(0).ok_or(ENOENT)?;
        assert!(first.1);
        let array = PageArray::from_shmem(file.file(), 0, MANY, ShmemFlags::empty())?;
        assert!(pages(0) == Some(first));
        assert!(array.pages()[0].as_ptr() == first.0);
        drop(array);
        assert!(has_refs(&file, &before, &[])?);
        Ok(())
    }

    #[test]
    fn hugetlb_files_are_einval() -> Result {
        let file = TestFile::hugetlb(HUGE)?;
        let result = PageArray::from_shmem(file.file(), 0, 1, ShmemFlags::empty());
        assert_eq!(result.err(), Some(EINVAL));
        assert!(file.find(0).is_none());
        Ok(())
    }

    #[test]
    fn memory_errors_in_large_folios_are_eio() -> Result {
        needs_memory_failure();
        let file = TestFile::shmem(MIXED)?.mixed()?;
        let before = file.folios(MIXED)?;
        for (bad, range) in [
            (100, (3, 4)),
            (HUGE + 8, (0, MIXED)),
            (HUGE + 32, (HUGE + 47, 2)),
        ] {
            let bad = file.find(bad).ok_or(ENOENT)?;
            let result = bad.poisoned(|| {
                PageArray::from_shmem(file.file(), range.0, range.1, ShmemFlags::empty())
            });
            assert_eq!(result.err(), Some(EIO));
            drop(bad);
            assert!(has_refs(&file, &before, &[])?);
        }
        assert!(PageArray::from_shmem(file.file(), 0, MIXED, ShmemFlags::empty()).is_ok());
        Ok(())
    }

    #[test]
    fn too_many_references_are_enomem() -> Result {
        let file = TestFile::shmem(MIXED)?.mixed()?;
        let before = file.folios(MIXED)?;
        for i in [0, HUGE, HUGE + 87] {
            let page = file.find(i).ok_or(ENOENT)?;
            let result =
                page.crowded(|| PageArray::from_shmem(file.file(), 0, MIXED, ShmemFlags::empty()));
            assert_eq!(result.err(), Some(ENOMEM));
            drop(page);
            assert!(has_refs(&file, &before, &[])?);
        }
        Ok(())
    }

    #[test]
    fn arrays_beyond_all_memory_are_enomem() -> Result {
        const PAGES: usize = 1 << 40;
        let file = TestFile::shmem(PAGES)?;
        let result = PageArray::from_shmem(file.file(), 0, PAGES, ShmemFlags::empty());
        assert_eq!(result.err(), Some(ENOMEM));
        assert!(file.find(0).is_none());
        for count in [PAGES, usize::MAX] {
            let result = PageArray::alloc(count, AllocFlags::LARGE);
            assert_eq!(result.err(), Some(ENOMEM));
        }
        Ok(())
    }

    #[test]
    fn holes_are_filled_as_the_driver_wants() -> Result {
        // More than there can be had.
        const PAGES: usize = 1 << 16;
        let file = TestFile::shmem(PAGES)?.kept();
        let get = |flags| {
            starved(|| PageArray::from_shmem(file.file(), 0, PAGES, flags).map(|a| a.pages().len()))
        };

        let soon = get(ShmemFlags::NO_RECLAIM)?;
        assert_eq!(soon.result, Err(ENOMEM));
        // Not for what is reclaimed: a little is, for the array itself.
        assert_eq!(soon.kills, 0);
        // It goes on where that ended.
        assert!(file.find(0).is_some());
        let late = get(ShmemFlags::RETRY_MAYFAIL)?;
        assert_eq!(late.result, Err(ENOMEM));
        assert_eq!(late.kills, 0);
        assert!(late.reclaims > 0);
        let never = get(ShmemFlags::empty())?;
        assert_eq!(never.result, Ok(PAGES));
        assert!(never.kills > 0);
        Ok(())
    }

    #[test]
    fn full_file_systems_are_enospc() -> Result {
        let file = TestFile::cramped(8)?;
        file.write(1, 1)?;
        let result = PageArray::from_shmem(file.file(), 0, 8, ShmemFlags::empty());
        assert_eq!(result.err(), Some(ENOSPC));
        assert_eq!(file.refs(1), 1);
        Ok(())
    }

    #[test]
    fn fatal_signals_end_lookups() -> Result {
        let file = TestFile::pattern(MANY)?;
        let before = file.folios(MANY)?;
        let result = dying(|| PageArray::from_shmem(file.file(), 0, MANY, ShmemFlags::empty()));
        assert_eq!(result.err(), Some(EINTR));
        assert!(has_refs(&file, &before, &[])?);
        // At once, not when all is done.
        let file = TestFile::shmem(MANY)?;
        let result = dying(|| PageArray::from_shmem(file.file(), 0, MANY, ShmemFlags::empty()));
        assert_eq!(result.err(), Some(EINTR));
        assert!(file.find(MANY - 1).is_none());
        Ok(())
    }

    #[test]
    fn fatal_signals_leave_no_fresh_page() -> Result {
        const ROUNDS: usize = 32;
        const PAGES: usize = 700;
        let rounds = || {
            dying(|| {
                (0..ROUNDS).all(|i| {
                    let flags = [AllocFlags::empty(), AllocFlags::LARGE][i % 2];
                    PageArray::alloc(PAGES, flags).err() == Some(EINTR)
                })
            })
        };
        // The first ones leave pages in lists of this CPU.
        assert!(rounds());
        let before = free_pages();
        assert!(rounds());
        assert!(free_pages() + ROUNDS * PAGES / 4 > before);
        Ok(())
    }

    #[test]
    fn runs_are_contiguous() -> Result {
        let array = PageArray::alloc(1, AllocFlags::empty())?;
        assert!(runs(&array.pages()[..0]).next().is_none());
        assert!(runs(array.pages()).map(<[_]>::len).eq([1]));

        let mut block = Block::new()?;
        for (order, lengths) in [
            (&[0, 1, 2, 3, 4, 5, 6, 7][..], &[8][..]),
            (&[2, 3, 4], &[3]),
            // With a hole, backwards, and a page twice.
            (&[0, 1, 5, 6, 7], &[2, 3]),
            (&[3, 2, 1], &[1, 1, 1]),
            (&[4, 4, 5], &[1, 2]),
        ] {
            let view = block.view(order)?;
            assert!(runs(view).map(<[_]>::len).eq(lengths.iter().copied()));
            assert!(runs(view).flatten().eq(view));
        }
        Ok(())
    }

    #[test]
    fn borrowed_arrays_are_what_the_driver_has() -> Result {
        let mut block = Block::new()?;
        let first = block.first;
        let view = block.view(&[7, 0, 3])?;
        let wanted = [7, 0, 3].map(|i| first.as_ptr().wrapping_add(i));
        assert!(view.iter().map(|page| page.as_ptr()).eq(wanted));
        // None is taken, not even where there are none.
        assert_eq!(refs(wanted[0]), 0);
        assert_eq!(refs(wanted[1]), 1);
        Ok(())
    }

    /// Eight contiguous pages that are not compound, as TTM has them.
    struct Block {
        first: NonNull<bindings::page>,
        array: KVec<*mut bindings::page>,
    }

    impl Block {
        fn new() -> Result<Self> {
            // SAFETY: It needs nothing but a context that may sleep.
            let first = unsafe { bindings::alloc_pages(bindings::GFP_KERNEL, 3) };
            Ok(Self {
                first: NonNull::new(first).ok_or(ENOMEM)?,
                array: KVec::new(),
            })
        }

        /// Pages `order` of the block.
        fn view(&mut self, order: &[usize]) -> Result<&[PageRef<'_>]> {
            self.array.clear();
            for i in order {
                let page = self.first.as_ptr().wrapping_add(*i);
                self.array.push(page, GFP_KERNEL)?;
            }
            let array = NonNull::new(self.array.as_mut_ptr()).ok_or(EINVAL)?;
            // SAFETY: These are as many pages, which stay as long as `self`.
            Ok(unsafe { PageRef::slice_from_raw(array, self.array.len()) })
        }
    }

    impl Drop for Block {
        fn drop(&mut self) {
            // SAFETY: They are ours.
            unsafe { bindings::__free_pages(self.first.as_ptr(), 3) };
        }
    }
}
