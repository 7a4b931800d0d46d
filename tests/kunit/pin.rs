// SPDX-License-Identifier: GPL-2.0

//! KUnit suite `pagekit_pin`: pinned ranges of memfds, against a real shmem.

use kernel::{
    bindings,
    prelude::*, //
};

mod fixture;

module! {
    type: Module,
    name: "pagekit_pin_kunit",
    authors: ["The pagekit authors"],
    description: "KUnit tests of pagekit_pin",
    license: "GPL",
}

struct Module;

impl kernel::Module for Module {
    fn init(_module: &'static ThisModule) -> Result<Self> {
        Ok(Self)
    }
}

/// Those of a file whose mappings kill who touches them.
const DEADLY: bindings::file_operations = bindings::file_operations {
    mmap: Some(mmap),
    ..pin_init::zeroed()
};

const VM_OPS: &bindings::vm_operations_struct = &bindings::vm_operations_struct {
    fault: Some(fault),
    ..pin_init::zeroed()
};

/// # Safety
///
/// To be called by the kernel.
unsafe extern "C" fn mmap(_file: *mut bindings::file, vma: *mut bindings::vm_area_struct) -> c_int {
    // SAFETY: The VMA is being set up.
    unsafe { (*vma).vm_ops = VM_OPS };
    0
}

/// # Safety
///
/// To be called by the kernel, for a fault of a test.
unsafe extern "C" fn fault(_vmf: *mut bindings::vm_fault) -> bindings::vm_fault_t {
    fixture::set_dying(true);
    bindings::vm_fault_reason_VM_FAULT_SIGBUS
}

#[kunit_tests(pagekit_pin)]
mod tests {
    use super::{
        fixture::*,
        DEADLY, //
    };
    use core::ptr::null_mut;
    use kernel::{
        page::PAGE_SIZE,
        prelude::*, //
    };
    use pagekit_pin::{
        Marks,
        PinArray,
        PinCount,
        PinFlags, //
    };

    const MANY: usize = 100;
    /// What one pin adds to the references of an order-0 folio, C's `GUP_PIN_COUNTING_BIAS`.
    const PIN: c_int = 1024;

    fn pinned(file: &TestFile, pgoff: usize, count: usize) -> Result<PinArray> {
        let mut array = PinArray::with_capacity(count, PinFlags::WRITE)?;
        array.pin_memfd(file.file(), pgoff, count)?;
        Ok(array)
    }

    #[test]
    fn pages_are_the_files() -> Result {
        let file = TestFile::pattern(MANY)?;
        let array = pinned(&file, 0, MANY)?;
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
    fn one_pin_per_entry() -> Result {
        let file = TestFile::pattern(MANY)?;
        let before = file.refs(5);
        let array = pinned(&file, 0, MANY)?;
        assert!(file.find(5).is_some_and(|page| page.maybe_pinned()));
        assert_eq!(file.refs(5), before + PIN);
        let overlapping = pinned(&file, 4, 10)?;
        assert_eq!(file.refs(5), before + 2 * PIN);
        drop(array);
        assert_eq!(file.refs(5), before + PIN);
        drop(overlapping);
        assert_eq!(file.refs(5), before);
        assert!(!file.find(5).is_some_and(|page| page.maybe_pinned()));
        Ok(())
    }

    #[test]
    fn ranges_are_appended() -> Result {
        let (a, b) = (TestFile::pattern(8)?, TestFile::shmem(8)?);
        b.write(2, 200)?;
        let mut array = PinArray::with_capacity(7, PinFlags::WRITE)?;
        array.pin_memfd(a.file(), 6, 2)?;
        array.pin_memfd(b.file(), 2, 1)?;
        array.pin_memfd(a.file(), 0, 3)?;
        array.pin_memfd(a.file(), 6, 1)?;
        let bytes = [
            pattern(6),
            pattern(7),
            200,
            pattern(0),
            pattern(1),
            pattern(2),
            pattern(6),
        ];
        assert_eq!(array.pages().len(), bytes.len());
        for (page, byte) in array.pages().iter().zip(bytes) {
            assert!(all(page.as_ptr(), byte));
        }
        Ok(())
    }

    #[test]
    fn holes_are_filled_with_zeroes() -> Result {
        let file = TestFile::shmem(MANY)?;
        file.write(50, pattern(50))?;
        let array = pinned(&file, 0, MANY)?;
        for (i, page) in array.pages().iter().enumerate() {
            assert!(all(page.as_ptr(), if i == 50 { pattern(50) } else { 0 }));
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
        let array = pinned(&file, 0, MANY)?;
        for (i, page) in array.pages().iter().enumerate() {
            assert!(all(page.as_ptr(), 0));
            assert!(file.find(i).is_some_and(|found| found.is_uptodate()));
        }
        drop(array);
        assert!(file.is_unused(MANY)?);
        Ok(())
    }

    #[test]
    fn large_folios_have_a_pin_per_entry() -> Result {
        let file = TestFile::huge_pattern(2 * HUGE)?;
        let before = file.refs(0);
        let mut array = PinArray::with_capacity(2 * HUGE - 14, PinFlags::WRITE)?;
        array.pin_memfd(file.file(), 3, 2 * HUGE - 24)?;
        array.pin_memfd(file.file(), HUGE - 12, 10)?;
        assert_eq!(array.pages().len(), 2 * HUGE - 14);
        for (index, pins) in [(0, HUGE as c_int - 3 + 10), (HUGE, HUGE as c_int - 21)] {
            assert_eq!(file.refs(index), before + pins);
            assert_eq!(file.find(index).map(|page| page.pincount()), Some(pins));
        }
        for (i, page) in array.pages().iter().enumerate() {
            let index = if i < 2 * HUGE - 24 {
                3 + i
            } else {
                i - (HUGE - 12)
            };
            assert!(all(page.as_ptr(), pattern(index)));
        }
        drop(array);
        for index in [0, HUGE] {
            assert_eq!(file.refs(index), before);
            assert_eq!(file.find(index).map(|page| page.pincount()), Some(0));
        }
        Ok(())
    }

    #[test]
    fn single_pages_of_large_folios() -> Result {
        let file = TestFile::huge_pattern(HUGE)?;
        let before = file.refs(0);
        let mut array = PinArray::with_capacity(3, PinFlags::WRITE)?;
        for i in [HUGE - 1, 0, 77] {
            array.pin_memfd(file.file(), i, 1)?;
        }
        assert_eq!(file.refs(0), before + 3);
        for (page, i) in array.pages().iter().zip([HUGE - 1, 0, 77]) {
            assert!(all(page.as_ptr(), pattern(i)));
        }
        drop(array);
        assert_eq!(file.refs(0), before);
        Ok(())
    }

    #[test]
    fn writable_pins_dirty_their_pages() -> Result {
        let file = TestFile::pattern(2)?;
        for (flags, dirty) in [(PinFlags::empty(), false), (PinFlags::WRITE, true)] {
            let mut array = PinArray::with_capacity(2, flags)?;
            array.pin_memfd(file.file(), 0, 2)?;
            let page = file.find(1).ok_or(ENOENT)?;
            page.clear_dirty();
            drop(array);
            assert_eq!(page.is_dirty(), dirty);
        }
        Ok(())
    }

    #[test]
    fn put_marks_what_it_is_told() -> Result {
        let large = TestFile::shmem(HUGE)?.with_folios([(0, HUGE)])?;
        for file in [TestFile::shmem(2)?, large] {
            for (marks, dirty, accessed) in [
                (Marks::empty(), false, false),
                (Marks::DIRTY, true, false),
                (Marks::DIRTY | Marks::ACCESSED, true, true),
            ] {
                let array = pinned(&file, 0, 2)?;
                let page = file.find(1).ok_or(ENOENT)?;
                page.clear_dirty();
                page.clear_referenced();
                array.put(marks);
                assert_eq!(page.is_dirty(), dirty);
                assert_eq!(page.is_referenced(), accessed);
                assert!(!page.maybe_pinned());
            }
        }
        Ok(())
    }

    /// Marks a file of folios of all sizes while one of them is locked.
    fn marks_without_lock(file: &TestFile, index: usize, pages: usize) -> Result<bool> {
        let array = pinned(file, 0, pages)?;
        let page = file.find(index).ok_or(ENOENT)?;
        page.clear_dirty();
        page.locked(|| array.put(Marks::DIRTY | Marks::ACCESSED));
        Ok(page.is_dirty())
    }

    #[test]
    fn marking_memfds_takes_no_folio_lock() -> Result {
        let file = TestFile::shmem(MIXED)?.mixed()?;
        for i in [0, HUGE, HUGE + 87] {
            assert!(marks_without_lock(&file, i, MIXED)?);
        }
        assert!(marks_without_lock(
            &TestFile::hugetlb_pattern(HUGE)?,
            0,
            HUGE
        )?);
        assert!(file.is_unused(MIXED)?);
        Ok(())
    }

    #[test]
    fn memory_of_disks_is_marked_as_they_want() -> Result {
        let file = TestFile::disk()?;
        let start = user_memory(Some(&file), 2, READ)?;
        let mut array = PinArray::with_capacity(2, PinFlags::empty())?;
        array.pin_user(start, 2)?;
        assert!(!file.has_dirty());
        array.put(Marks::DIRTY);
        assert!(file.has_dirty());
        Ok(())
    }

    #[test]
    fn punched_pages_stay_while_pinned() -> Result {
        let file = TestFile::pattern(4)?;
        let array = pinned(&file, 0, 4)?;
        file.punch_hole(1, 2)?;
        assert!(file.find(1).is_none());
        assert!(all(array.pages()[1].as_ptr(), pattern(1)));
        Ok(())
    }

    #[test]
    fn bad_ranges_are_einval() -> Result {
        let file = TestFile::pattern(4)?;
        let mut array = PinArray::with_capacity(8, PinFlags::WRITE)?;
        for (pgoff, count) in [
            (0, 0),
            (4, 1),
            (0, 5),
            (3, 2),
            (0, 9),
            (usize::MAX, 1),
            (1, usize::MAX),
            (1 << 51, 1),
        ] {
            assert_eq!(array.pin_memfd(file.file(), pgoff, count), Err(EINVAL));
        }
        assert!(array.pages().is_empty());
        assert!(!file.find(0).is_some_and(|page| page.maybe_pinned()));
        Ok(())
    }

    #[test]
    fn no_room_is_einval() -> Result {
        let file = TestFile::pattern(4)?;
        let mut array = PinArray::with_capacity(2, PinFlags::WRITE)?;
        array.pin_memfd(file.file(), 0, 2)?;
        assert_eq!(array.pin_memfd(file.file(), 0, 1), Err(EINVAL));
        assert_eq!(array.pages().len(), 2);
        Ok(())
    }

    #[test]
    fn other_files_are_einval() -> Result {
        let mut array = PinArray::with_capacity(1, PinFlags::WRITE)?;
        assert_eq!(
            array.pin_memfd(TestFile::other()?.file(), 0, 1),
            Err(EINVAL)
        );
        Ok(())
    }

    #[test]
    fn memory_errors_are_eio_and_leave_no_pin() -> Result {
        needs_memory_failure();
        let file = TestFile::pattern(MANY)?;
        let before = file.refs(0);
        let mut array = PinArray::with_capacity(2 * MANY, PinFlags::WRITE)?;
        array.pin_memfd(file.file(), 0, 10)?;
        let bad = file.find(MANY - 1).ok_or(ENOENT)?;
        let result = bad.poisoned(|| array.pin_memfd(file.file(), 0, MANY));
        assert_eq!(result, Err(EIO));
        assert_eq!(array.pages().len(), 10);
        assert_eq!(file.refs(0), before + PIN);
        assert_eq!(file.refs(20), before);
        drop(bad);
        assert_eq!(file.refs(MANY - 1), before);
        // The array is as good as before.
        array.pin_memfd(file.file(), 0, MANY)?;
        assert_eq!(array.pages().len(), 10 + MANY);
        Ok(())
    }

    #[test]
    fn late_failure_unpins_earlier_chunks() -> Result {
        needs_memory_failure();
        // Much more than is pinned at once.
        const PAGES: usize = 2 * 4096 + 1;
        let file = TestFile::shmem(PAGES)?;
        file.write(0, 1)?;
        file.write(5000, 1)?;
        file.write(PAGES - 1, 1)?;
        let before = file.refs(0);
        let mut array = PinArray::with_capacity(PAGES, PinFlags::WRITE)?;
        let bad = file.find(PAGES - 1).ok_or(ENOENT)?;
        let result = bad.poisoned(|| array.pin_memfd(file.file(), 0, PAGES));
        assert_eq!(result, Err(EIO));
        assert!(array.pages().is_empty());
        assert_eq!(file.refs(0), before);
        assert_eq!(file.refs(5000), before);
        array.pin_memfd(file.file(), 0, PAGES)?;
        assert_eq!(array.pages().len(), PAGES);
        assert_eq!(file.refs(5000), before + PIN);
        Ok(())
    }

    #[test]
    fn ranges_past_the_end_fill_nothing() -> Result {
        let file = TestFile::shmem(MANY)?;
        let mut array = PinArray::with_capacity(2 * MANY, PinFlags::WRITE)?;
        assert_eq!(array.pin_memfd(file.file(), 0, MANY + 1), Err(EINVAL));
        assert!(file.find(0).is_none());
        Ok(())
    }

    #[test]
    fn ranges_that_do_not_fit_fill_nothing() -> Result {
        // More than is pinned at once: the end is not in the first part.
        const PAGES: usize = 4096 + 1;
        for (in_file, room) in [(PAGES - 1, PAGES), (PAGES, PAGES - 1)] {
            let file = TestFile::shmem(in_file)?;
            let mut array = PinArray::with_capacity(room, PinFlags::WRITE)?;
            assert_eq!(array.pin_memfd(file.file(), 0, PAGES), Err(EINVAL));
            assert!(file.find(0).is_none());
        }
        Ok(())
    }

    #[test]
    fn user_memory_is_pinned() -> Result {
        let start = user_memory(None, MANY, RW)?;
        for i in 0..MANY {
            put_user(start + i * PAGE_SIZE, pattern(i))?;
        }
        let mut array = PinArray::with_capacity(MANY, PinFlags::WRITE)?;
        array.pin_user(start, 10)?;
        array.pin_user(start + 10 * PAGE_SIZE, MANY - 10)?;
        for (i, page) in array.pages().iter().enumerate() {
            assert_eq!(first(page.as_ptr()), pattern(i));
            assert!(refs(page.as_ptr()) >= PIN);
        }
        // It is the memory of the process, not a copy.
        put_user(start + 5 * PAGE_SIZE, 0xee)?;
        assert_eq!(first(array.pages()[5].as_ptr()), 0xee);
        Ok(())
    }

    #[test]
    fn untouched_user_memory_is_filled() -> Result {
        let start = user_memory(None, 4, RW)?;
        let mut array = PinArray::with_capacity(4, PinFlags::WRITE)?;
        array.pin_user(start, 4)?;
        put_user(start, 7)?;
        assert_eq!(first(array.pages()[0].as_ptr()), 7);
        assert!(all(array.pages()[1].as_ptr(), 0));
        Ok(())
    }

    #[test]
    fn shared_file_memory_is_dirtied() -> Result {
        let file = TestFile::pattern(4)?;
        let start = user_memory(Some(&file), 4, RW)?;
        let mut array = PinArray::with_capacity(4, PinFlags::WRITE)?;
        array.pin_user(start, 4)?;
        unmap_user(start, 4);
        assert_eq!(file.refs(2), 1 + PIN);
        let page = file.find(2).ok_or(ENOENT)?;
        page.clear_dirty();
        drop(array);
        assert!(page.is_dirty());
        assert!(!page.maybe_pinned());
        Ok(())
    }

    #[test]
    fn bad_user_ranges_fail_and_leave_no_pin() -> Result {
        let file = TestFile::pattern(4)?;
        let start = user_memory(Some(&file), 4, RW)?;
        // A hole behind the first two pages.
        unmap_user(start + 2 * PAGE_SIZE, 1);
        let mut array = PinArray::with_capacity(8, PinFlags::WRITE)?;
        for (addr, count, error) in [
            (start, 3, EFAULT),
            (start + 2 * PAGE_SIZE, 1, EFAULT),
            (1 << 63, 1, EFAULT),
            (start + 1, 1, EINVAL),
            (start, 0, EINVAL),
            (start, 9, EINVAL),
            (start, usize::MAX, EINVAL),
            (usize::MAX - PAGE_SIZE + 1, 1, EINVAL),
        ] {
            assert_eq!(array.pin_user(addr, count), Err(error));
            assert!(array.pages().is_empty());
            assert!(!file.find(0).is_some_and(|page| page.maybe_pinned()));
        }
        array.pin_user(start, 2)?;
        assert!(file.find(0).is_some_and(|page| page.maybe_pinned()));
        Ok(())
    }

    #[test]
    fn read_only_memory_is_not_pinned_for_writing() -> Result {
        let file = TestFile::pattern(2)?;
        let start = user_memory(Some(&file), 2, READ)?;
        let mut array = PinArray::with_capacity(2, PinFlags::WRITE)?;
        assert_eq!(array.pin_user(start, 2), Err(EFAULT));
        let mut array = PinArray::with_capacity(2, PinFlags::empty())?;
        array.pin_user(start, 2)?;
        assert_eq!(first(array.pages()[1].as_ptr()), pattern(1));
        Ok(())
    }

    #[test]
    fn kernel_threads_have_no_user_memory() -> Result {
        let mut array = PinArray::with_capacity(1, PinFlags::WRITE)?;
        assert_eq!(array.pin_user(1 << 20, 1), Err(EFAULT));
        Ok(())
    }

    /// How many pins a folio has more than before, if its references say the same.
    fn gained(now: &Folio, before: &Folio) -> Option<c_int> {
        let refs = now.refs - before.refs;
        let (pins, bias) = match now.nr {
            1 => (refs / PIN, PIN),
            _ => (now.pins - before.pins, 1),
        };
        ((now.first, now.nr) == (before.first, before.nr) && refs == pins * bias).then_some(pins)
    }

    /// Whether arrays of these ranges have one pin per entry, and nobody has more than `before`.
    fn has_pins(now: &[Folio], before: &[Folio], ranges: &[(usize, usize)]) -> bool {
        now.len() == before.len()
            && now
                .iter()
                .zip(before)
                .all(|(now, then)| gained(now, then) == Some(now.entries(ranges)))
    }

    /// Whether page i of an array begins with `pattern(start + i)`.
    fn has_pattern(array: &PinArray, start: usize) -> bool {
        array
            .pages()
            .iter()
            .enumerate()
            .all(|(i, page)| first(page.as_ptr()) == pattern(start + i))
    }

    /// Pins two ranges of a file with `pattern`, and says whether all is right with that.
    fn pins_and_unpins(file: &TestFile, pages: usize, ranges: [(usize, usize); 2]) -> Result<bool> {
        let before = file.folios(pages)?;
        let [a, b] = ranges;
        let arrays = [pinned(file, a.0, a.1)?, pinned(file, b.0, b.1)?];
        let shown = has_pattern(&arrays[0], a.0) && has_pattern(&arrays[1], b.0);
        let held = has_pins(&file.folios(pages)?, &before, &ranges);
        drop(arrays);
        Ok(shown && held && *file.folios(pages)? == *before)
    }

    #[test]
    fn folios_of_all_sizes_have_a_pin_per_entry() -> Result {
        let file = TestFile::shmem(MIXED)?.mixed()?;
        for ranges in [
            // All, and a part twice.
            [(0, MIXED), (HUGE - 12, 40)],
            // From within a folio into another, and one page.
            [(3, HUGE + 38), (HUGE - 1, 1)],
            [(HUGE + 1, 40), (HUGE + 15, 1)],
            [(HUGE + 16, 16), (HUGE + 28, 60)],
        ] {
            assert!(pins_and_unpins(&file, MIXED, ranges)?);
        }
        Ok(())
    }

    #[test]
    fn folios_that_are_pinned_in_two_goes() -> Result {
        // From page 3 on, the first 4096 pages end within a folio.
        const PAGES: usize = 4096 + HUGE;
        let file = TestFile::huge_pattern(PAGES)?;
        assert!(pins_and_unpins(&file, PAGES, [(3, PAGES - 3), (4095, 5)])?);
        Ok(())
    }

    #[test]
    fn hugetlb_files_have_a_pin_per_entry() -> Result {
        let file = TestFile::hugetlb_pattern(2 * HUGE)?;
        for ranges in [
            [(0, 2 * HUGE), (0, 2 * HUGE)],
            [(3, HUGE + 188), (HUGE - 12, 40)],
            [(HUGE - 1, 2), (2 * HUGE - 1, 1)],
        ] {
            assert!(pins_and_unpins(&file, 2 * HUGE, ranges)?);
        }
        Ok(())
    }

    #[test]
    fn hugetlb_holes_are_filled_with_zeroes() -> Result {
        let file = TestFile::hugetlb_pattern(2 * HUGE)?;
        // What was pinned once is in memory that can be, and now comes first in the pool.
        drop(pinned(&file, 0, 2 * HUGE)?);
        file.punch_hole(HUGE, HUGE)?;
        assert!(file.find(HUGE).is_none());
        let array = pinned(&file, HUGE - 12, HUGE - 12)?;
        assert!(array.pages()[..12]
            .iter()
            .enumerate()
            .all(|(i, page)| all(page.as_ptr(), pattern(HUGE - 12 + i))));
        assert!(array.pages()[12..].iter().all(|page| all(page.as_ptr(), 0)));
        drop(array);
        assert!(file.is_unused(2 * HUGE)?);
        Ok(())
    }

    #[test]
    fn bad_hugetlb_ranges_leave_no_pin() -> Result {
        needs_memory_failure();
        let file = TestFile::hugetlb_pattern(2 * HUGE)?;
        let mut array = PinArray::with_capacity(2 * HUGE, PinFlags::WRITE)?;
        array.pin_memfd(file.file(), HUGE - 2, 4)?;
        let before = file.folios(2 * HUGE)?;
        for (pgoff, count) in [
            (0, 0),
            (2 * HUGE - 24, 25),
            (2 * HUGE, 1),
            (0, 2 * HUGE - 3),
        ] {
            assert_eq!(array.pin_memfd(file.file(), pgoff, count), Err(EINVAL));
        }
        // hugetlb says of the first page that the memory of any has an error.
        let bad = file.find(HUGE).ok_or(ENOENT)?;
        let result = bad.poisoned(|| array.pin_memfd(file.file(), 100, HUGE - 12));
        assert_eq!(result, Err(EIO));
        drop(bad);
        assert_eq!(array.pages().len(), 4);
        assert!(*file.folios(2 * HUGE)? == *before);
        Ok(())
    }

    #[test]
    fn more_holes_than_huge_pages_are_enomem() -> Result {
        const PAGES: usize = 16 * HUGE;
        // There is one at least.
        drop(pinned(&TestFile::hugetlb_pattern(HUGE)?, 0, HUGE)?);
        let file = TestFile::hugetlb(PAGES)?;
        let mut array = PinArray::with_capacity(PAGES, PinFlags::WRITE)?;
        assert_eq!(array.pin_memfd(file.file(), 0, PAGES), Err(ENOMEM));
        assert!(array.pages().is_empty());
        assert!(file.find(0).is_some());
        assert!(file.is_unused(PAGES)?);
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
        let array = pinned(&file, 3, MIXED - 3)?;
        for (i, page) in array.pages().iter().enumerate() {
            assert!(all(page.as_ptr(), pattern(3 + i)));
        }
        drop(array);
        assert!(file.is_unused(MIXED)?);
        Ok(())
    }

    #[test]
    fn what_was_written_survives_reclaim() -> Result {
        needs_swap();
        for (flags, byte) in [(PinFlags::WRITE, 0xee), (PinFlags::empty(), 0)] {
            let file = TestFile::shmem(4)?;
            let mut array = PinArray::with_capacity(4, flags)?;
            array.pin_memfd(file.file(), 0, 4)?;
            // A hole until now. Nobody marks what a device writes.
            fill(array.pages()[2].as_ptr(), 0xee);
            // Pinned pages stay.
            file.reclaim(2);
            assert!(file.find(2).is_some());
            drop(array);
            file.reclaim(2);
            assert!(file.find(2).is_none());
            assert!(file.reads(2, byte)?);
        }
        Ok(())
    }

    #[test]
    fn memory_errors_in_large_folios_are_eio() -> Result {
        needs_memory_failure();
        let file = TestFile::shmem(MIXED)?.mixed()?;
        for (bad, range) in [
            (100, (3, 4)),
            (HUGE + 8, (0, MIXED)),
            (HUGE + 32, (HUGE + 47, 2)),
        ] {
            let bad = file.find(bad).ok_or(ENOENT)?;
            let result = bad.poisoned(|| pinned(&file, range.0, range.1));
            assert_eq!(result.err(), Some(EIO));
            drop(bad);
            assert!(file.is_unused(MIXED)?);
        }
        assert!(pinned(&file, 0, MIXED).is_ok());
        Ok(())
    }

    #[test]
    fn too_many_references_are_enomem() -> Result {
        let file = TestFile::shmem(MIXED)?.mixed()?;
        for i in [0, HUGE, HUGE + 87] {
            let page = file.find(i).ok_or(ENOENT)?;
            let result = page.crowded(|| pinned(&file, 0, MIXED));
            assert_eq!(result.err(), Some(ENOMEM));
            drop(page);
            assert!(file.is_unused(MIXED)?);
        }
        Ok(())
    }

    #[test]
    fn arrays_beyond_all_memory_are_enomem() -> Result {
        for count in [1 << 40, usize::MAX] {
            let result = PinArray::with_capacity(count, PinFlags::WRITE);
            assert_eq!(result.err(), Some(ENOMEM));
        }
        Ok(())
    }

    #[test]
    fn full_file_systems_are_enospc() -> Result {
        let file = TestFile::cramped(8)?;
        file.write(1, 1)?;
        assert_eq!(pinned(&file, 0, 8).err(), Some(ENOSPC));
        assert!(file.is_unused(8)?);
        Ok(())
    }

    #[test]
    fn pages_that_leave_their_file_meanwhile_are_zeroed() -> Result {
        let file = TestFile::shmem(8)?;
        let zeroed = file.churned(|| {
            (0..500).try_fold(true, |zeroed, _| {
                let array = pinned(&file, 0, 8)?;
                Ok::<_, Error>(zeroed && array.pages().iter().all(|page| all(page.as_ptr(), 0)))
            })
        })?;
        assert!(zeroed?);
        // New pages may still be in a batch of another CPU.
        assert!(file.folios(8)?.iter().all(|folio| folio.refs < PIN));
        Ok(())
    }

    #[test]
    fn fatal_signals_end_pinning() -> Result {
        // Twice what is pinned at once.
        const PAGES: usize = 2 * 4096;
        let file = TestFile::shmem(PAGES)?;
        let mut array = PinArray::with_capacity(PAGES + 1, PinFlags::WRITE)?;
        array.pin_memfd(TestFile::pattern(1)?.file(), 0, 1)?;
        let result = dying(|| array.pin_memfd(file.file(), 0, PAGES));
        assert_eq!(result, Err(EINTR));
        assert!(file.find(0).is_some());
        assert!(file.find(PAGES - 1).is_none());
        assert!(file.is_unused(PAGES)?);
        assert_eq!(array.pages().len(), 1);
        Ok(())
    }

    #[test]
    fn fatal_signals_end_pinning_of_user_memory() -> Result {
        let start = user_memory(None, 8, RW)?;
        let mut array = PinArray::with_capacity(8, PinFlags::WRITE)?;
        // The kernel refuses to fill it.
        assert_eq!(dying(|| array.pin_user(start, 8)), Err(EINTR));
        // It is there, and where it can stay: the kernel does not look.
        drop(pinned_user(start, 8)?);
        let before = user_folios(start, 8)?;
        assert_eq!(dying(|| array.pin_user(start, 8)), Err(EINTR));
        assert!(array.pages().is_empty());
        assert!(*user_folios(start, 8)? == *before);
        Ok(())
    }

    #[test]
    fn signals_that_come_while_user_memory_is_filled_are_the_error() -> Result {
        let start = user_memory(Some(&TestFile::anon(&DEADLY, null_mut())?), 1, READ)?;
        let mut array = PinArray::with_capacity(1, PinFlags::empty())?;
        // The kernel says that it was not there.
        let result = array.pin_user(start, 1);
        set_dying(false);
        assert_eq!(result, Err(EINTR));
        Ok(())
    }

    fn pinned_user(addr: usize, count: usize) -> Result<PinArray> {
        let mut array = PinArray::with_capacity(count, PinFlags::WRITE)?;
        array.pin_user(addr, count)?;
        Ok(array)
    }

    /// Gives page i of user memory the first byte `pattern(i)`.
    fn put_pattern(addr: usize, pages: usize) -> Result {
        (0..pages).try_for_each(|i| put_user(addr + i * PAGE_SIZE, pattern(i)))
    }

    /// Pins user memory that begins where a folio does, most of it twice, and says whether all is
    /// right with that.
    fn user_pins_and_unpins(addr: usize, pages: usize) -> Result<bool> {
        put_pattern(addr, pages)?;
        let before = user_folios(addr, pages)?;
        let (start, skip, count) = (before[0].first, 3, pages - 5);
        let arrays = [
            pinned_user(addr, pages)?,
            pinned_user(addr + skip * PAGE_SIZE, count)?,
        ];
        let shown = has_pattern(&arrays[0], 0) && has_pattern(&arrays[1], skip);
        let ranges = [(start, pages), (start + skip, count)];
        let held = has_pins(&user_folios(addr, pages)?, &before, &ranges);
        drop(arrays);
        Ok(shown && held && *user_folios(addr, pages)? == *before)
    }

    #[test]
    fn anonymous_memory_has_a_pin_per_entry() -> Result {
        assert!(user_pins_and_unpins(user_memory(None, MANY, RW)?, MANY)?);
        // Huge pages.
        let start = map_user(AT, None, 0, 2 * HUGE, RW, PRIVATE | FIXED)?;
        advise_huge(start)?;
        put_user(start, 0)?;
        assert_eq!(user_page(start)?.nr(), HUGE);
        assert!(user_pins_and_unpins(start, 2 * HUGE)?);
        Ok(())
    }

    #[test]
    fn file_memory_has_a_pin_per_entry() -> Result {
        let file = TestFile::shmem(MIXED)?.mixed()?;
        let start = map_user(AT, Some(&file), 0, MIXED, RW, SHARED | FIXED)?;
        assert!(user_pins_and_unpins(start, MIXED)?);
        unmap_user(start, MIXED);
        assert!(file.is_unused(MIXED)?);
        Ok(())
    }

    #[test]
    fn hugetlb_memory_has_a_pin_per_entry() -> Result {
        for flags in [SHARED, PRIVATE] {
            let file = TestFile::hugetlb(2 * HUGE)?;
            let start = map_user(AT, Some(&file), 0, 2 * HUGE, RW, flags | FIXED)?;
            assert!(user_pins_and_unpins(start, 2 * HUGE)?);
            unmap_user(start, 2 * HUGE);
            assert!(file.is_unused(2 * HUGE)?);
        }
        Ok(())
    }

    #[test]
    fn one_range_of_memory_of_all_kinds() -> Result {
        // 16 pages of a file, 16 anonymous ones, a hugetlb page, an anonymous huge page.
        const PAGES: usize = 16 + 16 + HUGE + HUGE;
        let start = AT - 32 * PAGE_SIZE;
        let huge = AT + HUGE * PAGE_SIZE;
        let (file, hugetlb) = (TestFile::shmem(16)?, TestFile::hugetlb(HUGE)?);
        map_user(start, Some(&file), 0, 16, RW, SHARED | FIXED)?;
        map_user(start + 16 * PAGE_SIZE, None, 0, 16, RW, PRIVATE | FIXED)?;
        map_user(AT, Some(&hugetlb), 0, HUGE, RW, SHARED | FIXED)?;
        map_user(huge, None, 0, HUGE, RW, PRIVATE | FIXED)?;
        advise_huge(huge)?;
        put_pattern(start, PAGES)?;
        let before = user_folios(start, PAGES)?;

        let array = pinned_user(start, PAGES)?;
        assert!(has_pattern(&array, 0));
        let now = user_folios(start, PAGES)?;
        for (i, (now, then)) in now.iter().zip(&before).enumerate() {
            assert_eq!(now.nr, if i < 32 { 1 } else { HUGE });
            assert_eq!(gained(now, then), Some(now.nr as c_int));
        }
        drop(array);
        assert!(*user_folios(start, PAGES)? == *before);
        Ok(())
    }

    #[test]
    fn memory_in_another_order_has_a_pin_per_entry() -> Result {
        let file = TestFile::shmem(MIXED)?.mixed()?;
        let before = file.folios(MIXED)?;
        // Parts of large folios twice and backwards, with others in between, of each its first page
        // in the file and how many.
        let parts = [
            (8, 8),
            (0, 8),
            (HUGE + 48, 2),
            (8, 1),
            (HUGE + 1, 1),
            (10, 4),
            (HUGE - 1, 3),
            (HUGE + 18, 1),
        ];
        let mut pages = 0;
        for (pgoff, n) in parts {
            map_user(
                AT + pages * PAGE_SIZE,
                Some(&file),
                pgoff,
                n,
                RW,
                SHARED | FIXED,
            )?;
            pages += n;
        }
        let array = pinned_user(AT, pages)?;
        unmap_user(AT, pages);
        let mut shown = array.pages().iter();
        for (pgoff, n) in parts {
            for i in pgoff..pgoff + n {
                assert!(shown
                    .next()
                    .is_some_and(|page| all(page.as_ptr(), pattern(i))));
            }
        }
        assert!(has_pins(&file.folios(MIXED)?, &before, &parts));
        drop(array);
        assert!(*file.folios(MIXED)? == *before);
        Ok(())
    }

    #[test]
    fn ranges_that_skip_pages_have_a_pin_per_entry() -> Result {
        let file = TestFile::shmem(MIXED)?.mixed()?;
        let before = file.folios(MIXED)?;
        let other = TestFile::pattern(1)?;
        let mut array = PinArray::with_capacity(MIXED, PinFlags::WRITE)?;
        // What one range ends with doesn't go on in the next, though it looks so further on.
        let ranges = [
            (0, 1),
            (2, 20),
            (HUGE + 28, 5),
            (HUGE + 34, 10),
            (100, HUGE - 100),
            (HUGE, 88),
        ];
        for (pgoff, n) in ranges {
            array.pin_memfd(file.file(), pgoff, n)?;
            array.pin_memfd(other.file(), 0, 1)?;
        }
        assert!(has_pins(&file.folios(MIXED)?, &before, &ranges));
        drop(array);
        assert!(*file.folios(MIXED)? == *before);
        assert!(other.is_unused(1)?);
        Ok(())
    }

    #[test]
    fn partial_pins_are_undone() -> Result {
        let start = user_memory(None, 6, RW)?;
        let middle = start + 3 * PAGE_SIZE;
        put_pattern(start, 6)?;
        let before = user_folios(start, 3)?;
        let mut array = PinArray::with_capacity(7, PinFlags::WRITE)?;
        array.pin_user(start + 4 * PAGE_SIZE, 1)?;
        for prot in [Some(READ), Some(0), None] {
            match prot {
                Some(prot) => drop(map_user(middle, None, 0, 1, prot, PRIVATE | FIXED)?),
                None => unmap_user(middle, 1),
            }
            assert_eq!(array.pin_user(start, 6), Err(EFAULT));
            assert_eq!(array.pages().len(), 1);
            assert!(*user_folios(start, 3)? == *before);
        }
        Ok(())
    }

    #[test]
    fn kernel_memory_is_efault() -> Result {
        user_memory(None, 1, RW)?;
        let file = TestFile::pattern(1)?;
        let page = file.find(0).ok_or(ENOENT)?;
        assert_eq!(pinned_user(page.address(), 1).err(), Some(EFAULT));
        drop(page);
        assert!(file.is_unused(1)?);
        Ok(())
    }

    #[test]
    fn private_memory_is_what_the_process_sees() -> Result {
        let file = TestFile::pattern(4)?;
        // Pages of a file, and none yet.
        for memory in [Some(&file), None] {
            for flags in [PinFlags::WRITE, PinFlags::empty()] {
                let start = map_user(0, memory, 0, 4, RW, PRIVATE)?;
                let shared = user_page(start)?;
                let mut array = PinArray::with_capacity(4, flags)?;
                array.pin_user(start, 4)?;
                let page = array.pages()[0].as_ptr();
                assert!(page != shared.as_ptr());
                assert!(all(page, if memory.is_some() { pattern(0) } else { 0 }));
                put_user(start, 0xee)?;
                assert_eq!(first(page), 0xee);
                unmap_user(start, 4);
            }
        }
        assert!(file.reads(0, pattern(0))?);
        assert!(file.is_unused(4)?);
        Ok(())
    }

    #[test]
    fn memory_of_disks_is_not_pinned_for_writing() -> Result {
        let start = user_memory(Some(&TestFile::disk()?), 2, RW)?;
        put_pattern(start, 2)?;
        let before = user_folios(start, 2)?;
        assert_eq!(pinned_user(start, 2).err(), Some(EFAULT));
        PinArray::with_capacity(2, PinFlags::empty())?.pin_user(start, 2)?;
        assert!(*user_folios(start, 2)? == *before);
        Ok(())
    }

    /// How many pages of a file are in movable memory.
    fn movable(file: &TestFile, pages: usize) -> usize {
        let movable = |i: &usize| file.find(*i).is_some_and(|page| page.is_movable());
        (0..pages).filter(movable).count()
    }

    /// How many pages of user memory are in movable memory.
    fn movable_user(addr: usize, pages: usize) -> Result<usize> {
        (0..pages).try_fold(0, |n, i| {
            Ok(n + usize::from(user_page(addr + i * PAGE_SIZE)?.is_movable()))
        })
    }

    #[test]
    fn pinning_moves_files_out_of_movable_memory() -> Result {
        needs_movable();
        let file = TestFile::shmem(MIXED)?.movable().mixed()?;
        assert_eq!(movable(&file, MIXED), MIXED);
        assert!(pins_and_unpins(
            &file,
            MIXED,
            [(0, MIXED), (HUGE - 12, 40)]
        )?);
        assert_eq!(movable(&file, MIXED), 0);
        for i in 0..MIXED {
            assert!(file.reads(i, pattern(i))?);
        }
        // Holes are filled where they can stay.
        let file = TestFile::shmem(4)?.movable();
        drop(pinned(&file, 0, 4)?);
        assert!(file.find(3).is_some());
        assert_eq!(movable(&file, 4), 0);
        Ok(())
    }

    #[test]
    fn pinning_moves_huge_pages_out_of_movable_memory() -> Result {
        needs_movable();
        // Else there may be no room for them anywhere else.
        needs_huge_folios()?;
        // All that there are: other cases have had some of them moved.
        const PAGES: usize = 8 * HUGE;
        let file = TestFile::hugetlb_pattern(PAGES)?;
        assert!(movable(&file, PAGES) > 0);
        assert!(pins_and_unpins(
            &file,
            PAGES,
            [(0, PAGES), (HUGE - 12, 40)]
        )?);
        assert_eq!(movable(&file, PAGES), 0);
        Ok(())
    }

    fn is_moved_out_of_movable_memory(start: usize, pages: usize) -> Result {
        put_pattern(start, pages)?;
        assert_eq!(movable_user(start, pages)?, pages);
        assert!(user_pins_and_unpins(start, pages)?);
        assert_eq!(movable_user(start, pages)?, 0);
        Ok(())
    }

    #[test]
    fn pinning_moves_memory_out_of_movable_memory() -> Result {
        needs_movable();
        is_moved_out_of_movable_memory(user_memory(None, MANY, RW)?, MANY)
    }

    #[test]
    fn pinning_moves_huge_memory_out_of_movable_memory() -> Result {
        needs_movable();
        // The kernel may wait for itself: where it makes room for what it moves, nobody goes on
        // while too many pages are on their way (`too_many_isolated()` in mm/compaction.c).
        needs_huge_folios()?;
        let start = map_user(AT, None, 0, 2 * HUGE, RW, PRIVATE | FIXED)?;
        advise_huge(start)?;
        is_moved_out_of_movable_memory(start, 2 * HUGE)
    }

    /// How many of a hundred may be refused, where without another try ten are. Who has the pages
    /// may not get the CPU for longer than others try: virtual ones are taken away.
    const FEW: usize = 2;

    #[test]
    fn two_may_pin_movable_pages_at_once() -> Result {
        needs_movable();
        let mut refused = 0;
        for _ in 0..100 {
            let file = TestFile::shmem(MANY)?.movable().filled(MANY)?;
            refused += usize::from(!file.contested(|| pinned(&file, 0, MANY).is_ok())?);
            assert!(file.is_unused(MANY)?);
        }
        assert!(refused <= FEW);
        Ok(())
    }

    #[test]
    fn two_may_pin_movable_memory_at_once() -> Result {
        needs_movable();
        let mut refused = 0;
        for _ in 0..100 {
            let file = TestFile::shmem(MANY)?.movable().filled(MANY)?;
            let start = user_memory(Some(&file), MANY, RW)?;
            put_pattern(start, MANY)?;
            refused += usize::from(!file.contested(|| pinned_user(start, MANY).is_ok())?);
            unmap_user(start, MANY);
            assert!(file.is_unused(MANY)?);
        }
        assert!(refused <= FEW);
        Ok(())
    }

    #[test]
    fn what_is_held_in_movable_memory_is_not_pinned() -> Result {
        needs_movable();
        let file = TestFile::shmem(8)?.movable().filled(8)?;
        let held = file.find(5).ok_or(ENOENT)?;
        assert!(held.is_movable());
        let mut array = PinArray::with_capacity(16, PinFlags::WRITE)?;
        array.pin_memfd(file.file(), 0, 2)?;
        assert_eq!(array.pin_memfd(file.file(), 0, 8), Err(ENOMEM));
        assert_eq!(array.pages().len(), 2);
        assert!(file
            .find(5)
            .is_some_and(|page| page.as_ptr() == held.as_ptr()));
        drop(array);
        drop(held);
        assert!(file.is_unused(8)?);
        assert!(has_pattern(&pinned(&file, 0, 8)?, 0));
        Ok(())
    }

    #[test]
    fn what_is_held_in_movable_memory_is_not_pinned_by_address() -> Result {
        needs_movable();
        let start = user_memory(None, 8, RW)?;
        put_pattern(start, 8)?;
        let before = user_folios(start, 8)?;
        let held = user_page(start + 5 * PAGE_SIZE)?;
        assert!(held.is_movable());
        assert_eq!(pinned_user(start, 8).err(), Some(ENOMEM));
        drop(held);
        assert!(*user_folios(start, 8)? == *before);
        assert!(has_pattern(&pinned_user(start, 8)?, 0));
        Ok(())
    }

    #[test]
    fn pin_count_tells_the_first_and_the_last() -> Result {
        let mut count = PinCount::default();
        assert!(count.pin());
        assert!(!count.pin());
        assert!(!count.pin());
        assert!(!count.unpin());
        assert!(!count.unpin());
        assert!(count.unpin());
        // One too many does not disturb the next. Debug kernels would stop here.
        if !cfg!(debug_assertions) {
            assert!(!count.unpin());
        }
        assert!(count.pin());
        assert!(count.unpin());
        Ok(())
    }
}
