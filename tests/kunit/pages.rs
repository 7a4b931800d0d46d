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
    use kernel::prelude::*;
    use pagekit_pages::{
        AllocFlags,
        Marks,
        PageArray, //
    };

    /// Larger than a lookup batch, which has 31 entries.
    const MANY: usize = 100;

    #[test]
    fn resident_pages_are_the_files() -> Result {
        let file = TestFile::pattern(MANY)?;
        let array = PageArray::from_shmem(file.file(), 0, MANY)?;
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
        let array = PageArray::from_shmem(file.file(), 40, 3)?;
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
        let array = PageArray::from_shmem(file.file(), 0, MANY)?;
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
        let array = PageArray::from_shmem(file.file(), 0, MANY)?;
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
        let array = PageArray::from_shmem(file.file(), 0, MANY)?;
        assert_eq!(file.refs(5), before + 1);
        let overlapping = PageArray::from_shmem(file.file(), 4, 10)?;
        assert_eq!(file.refs(5), before + 2);
        drop(array);
        assert_eq!(file.refs(5), before + 1);
        overlapping.put(Marks::empty());
        assert_eq!(file.refs(5), before);
        Ok(())
    }

    #[test]
    fn large_folios_are_expanded() -> Result {
        let file = TestFile::huge_pattern(1024)?;
        let before = file.refs(0);
        let array = PageArray::from_shmem(file.file(), 3, 1000)?;
        assert_eq!(file.refs(0), before + 509);
        assert_eq!(file.refs(512), before + 491);
        for (i, page) in array.pages().iter().enumerate() {
            assert!(all(page.as_ptr(), pattern(3 + i)));
        }
        drop(array);
        assert_eq!(file.refs(0), before);
        assert_eq!(file.refs(512), before);
        Ok(())
    }

    #[test]
    fn punched_pages_stay_while_held() -> Result {
        let file = TestFile::pattern(4)?;
        let array = PageArray::from_shmem(file.file(), 0, 4)?;
        file.punch_hole(1, 2)?;
        assert!(file.find(1).is_none());
        assert!(all(array.pages()[1].as_ptr(), pattern(1)));
        let again = PageArray::from_shmem(file.file(), 0, 4)?;
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
            let array = PageArray::from_shmem(file.file(), 0, 2)?;
            let page = file.find(1).ok_or(ENOENT)?;
            page.clear_dirty();
            array.put(marks);
            assert_eq!(page.is_dirty(), dirty);
        }
        Ok(())
    }

    #[test]
    fn put_marks_accessed_only_if_told() -> Result {
        let file = TestFile::shmem(1)?;
        PageArray::from_shmem(file.file(), 0, 1)?.put(Marks::DIRTY);
        let page = file.find(0).ok_or(ENOENT)?;
        assert!(!page.is_referenced());
        PageArray::from_shmem(file.file(), 0, 1)?.put(Marks::ACCESSED);
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
            let result = PageArray::from_shmem(file.file(), pgoff, count);
            assert_eq!(result.err(), Some(EINVAL));
        }
        assert_eq!([file.refs(0), file.refs(3)], before);
        Ok(())
    }

    #[test]
    fn other_files_are_einval() -> Result {
        let result = PageArray::from_shmem(TestFile::other()?.file(), 0, 1);
        assert_eq!(result.err(), Some(EINVAL));
        Ok(())
    }

    #[test]
    fn memory_errors_are_eio_and_leave_no_reference() -> Result {
        let file = TestFile::pattern(MANY)?;
        let before = file.refs(0);
        // In the last batch.
        let bad = file.find(MANY - 1).ok_or(ENOENT)?;
        let result = bad.poisoned(|| PageArray::from_shmem(file.file(), 0, MANY));
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
        let result = PageArray::from_shmem(file.file(), 0, MANY + 1);
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
            let array = PageArray::alloc(512, flags)?;
            for page in array.pages() {
                fill(page.as_ptr(), 0xa5);
            }
            drop(array);
            for page in PageArray::alloc(512, flags)?.pages() {
                assert!(all(page.as_ptr(), 0));
            }
        }
        Ok(())
    }

    #[test]
    fn fresh_pages_have_one_reference_each() -> Result {
        let array = PageArray::alloc(600, AllocFlags::empty())?;
        for page in array.pages() {
            assert_eq!(refs(page.as_ptr()), 1);
        }
        drop(array);
        let array = PageArray::alloc(600, AllocFlags::LARGE)?;
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
    fn no_pages_are_einval() -> Result {
        let result = PageArray::alloc(0, AllocFlags::empty());
        assert_eq!(result.err(), Some(EINVAL));
        Ok(())
    }
}
