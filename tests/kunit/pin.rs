// SPDX-License-Identifier: GPL-2.0

//! KUnit suite `pagekit_pin`: pinned ranges of memfds, against a real shmem.

use kernel::prelude::*;

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

#[kunit_tests(pagekit_pin)]
mod tests {
    use super::fixture::*;
    use kernel::{
        bindings,
        page::PAGE_SIZE,
        prelude::*, //
    };
    use pagekit_pin::{
        PinArray,
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
        Ok(())
    }

    #[test]
    fn large_folios_have_a_pin_per_entry() -> Result {
        let file = TestFile::huge_pattern(1024)?;
        let before = file.refs(0);
        let mut array = PinArray::with_capacity(1010, PinFlags::WRITE)?;
        array.pin_memfd(file.file(), 3, 1000)?;
        array.pin_memfd(file.file(), 500, 10)?;
        assert_eq!(array.pages().len(), 1010);
        for (index, pins) in [(0, 509 + 10), (512, 491)] {
            assert_eq!(file.refs(index), before + pins);
            assert_eq!(file.find(index).map(|page| page.pincount()), Some(pins));
        }
        for (i, page) in array.pages().iter().enumerate() {
            let index = if i < 1000 { 3 + i } else { i - 500 };
            assert!(all(page.as_ptr(), pattern(index)));
        }
        drop(array);
        for index in [0, 512] {
            assert_eq!(file.refs(index), before);
            assert_eq!(file.find(index).map(|page| page.pincount()), Some(0));
        }
        Ok(())
    }

    #[test]
    fn single_pages_of_large_folios() -> Result {
        let file = TestFile::huge_pattern(512)?;
        let before = file.refs(0);
        let mut array = PinArray::with_capacity(3, PinFlags::WRITE)?;
        for i in [511, 0, 77] {
            array.pin_memfd(file.file(), i, 1)?;
        }
        assert_eq!(file.refs(0), before + 3);
        for (page, i) in array.pages().iter().zip([511, 0, 77]) {
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

    const READ: usize = 1; // PROT_READ
    const RW: usize = 3; // PROT_READ | PROT_WRITE

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
        // SAFETY: We are attached to the mm.
        unsafe { bindings::vm_munmap(start, 4 * PAGE_SIZE) };
        // Batches on their way to the LRU lists have references, too, but few.
        assert!((PIN..PIN + 10).contains(&file.refs(2)));
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
        // SAFETY: We are attached to the mm.
        unsafe { bindings::vm_munmap(start + 2 * PAGE_SIZE, PAGE_SIZE) };
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
}
