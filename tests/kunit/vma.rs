// SPDX-License-Identifier: GPL-2.0

//! KUnit suite `pagekit_vma`: arrays mapped into a process, by a driver with mmap and fault
//! operations as short as they get.

use core::ptr::null_mut;
use kernel::{
    bindings,
    error::{
        from_err_ptr,
        from_result, //
    },
    mm::virt::VmaNew,
    page::PAGE_SIZE,
    prelude::*, //
};
use pagekit_pages::PageArray;
use pagekit_vma::{
    fault_pfns,
    setup_pfns,
    VmFault, //
};

mod fixture;

module! {
    type: Module,
    name: "pagekit_vma_kunit",
    authors: ["The pagekit authors"],
    description: "KUnit tests of pagekit_vma",
    license: "GPL",
}

struct Module;

impl kernel::Module for Module {
    fn init(_module: &'static ThisModule) -> Result<Self> {
        Ok(Self)
    }
}

/// An object of the driver, whose file userspace maps at page offset `base`.
struct Object {
    array: PageArray,
    base: usize,
    /// What mmap says that the array has, if not the truth.
    claim: usize,
}

const FOPS: bindings::file_operations = bindings::file_operations {
    mmap: Some(mmap),
    ..pin_init::zeroed()
};

static VM_OPS: bindings::vm_operations_struct = bindings::vm_operations_struct {
    fault: Some(fault),
    ..pin_init::zeroed()
};

unsafe extern "C" fn mmap(file: *mut bindings::file, vma: *mut bindings::vm_area_struct) -> c_int {
    // SAFETY: The file was made with an object as its private data; the VMA is being set up.
    from_result(|| unsafe {
        let object = &*(*file).private_data.cast::<Object>();
        setup_pfns(VmaNew::from_raw(vma), object.claim, object.base)?;
        (*vma).vm_ops = &VM_OPS;
        (*vma).vm_private_data = (*file).private_data;
        Ok(0)
    })
}

unsafe extern "C" fn fault(vmf: *mut bindings::vm_fault) -> bindings::vm_fault_t {
    // SAFETY: `mmap` has set the private data. A test drops its object, and with it the pages, only
    // after it has unmapped it.
    unsafe {
        let object = &*(*(*vmf).__bindgen_anon_1.vma)
            .vm_private_data
            .cast::<Object>();
        fault_pfns(VmFault::from_raw(vmf), object.array.pages(), object.base)
    }
}

/// A mapping of an object in the mm of this test. Unmapped on drop.
struct Mapping {
    start: usize,
    len: usize,
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: We are attached to the mm of the test.
        unsafe { bindings::vm_munmap(self.start, self.len) };
    }
}

impl Object {
    fn new(file: &fixture::TestFile, pages: usize, base: usize) -> Result<Self> {
        Ok(Self {
            array: PageArray::from_shmem(file.file(), 0, pages)?,
            base,
            claim: pages,
        })
    }

    fn mmap(&self, pgoff: usize, pages: usize, prot: u32, flags: u32) -> Result<Mapping> {
        // The object outlives the file, which ends here or with the last mapping of it.
        let data = core::ptr::from_ref(self).cast_mut().cast();
        let file = fixture::TestFile::anon(&FOPS, data)?;
        let len = pages * PAGE_SIZE;
        // SAFETY: This runs in a test.
        let start = unsafe {
            bindings::vm_mmap(
                file.as_ptr(),
                0,
                len,
                prot as c_ulong,
                flags as c_ulong,
                pgoff * PAGE_SIZE,
            )
        };
        from_err_ptr(start as *mut u8)?;
        Ok(Mapping { start, len })
    }
}

impl Mapping {
    /// The first byte of a page, as the process would read it.
    fn read(&self, page: usize) -> Result<u8> {
        let mut byte = 0u8;
        let from = (self.start + page * PAGE_SIZE) as *const c_void;
        // SAFETY: The buffer has one byte.
        let left = unsafe { bindings::_copy_from_user((&raw mut byte).cast(), from, 1) };
        if left == 0 {
            Ok(byte)
        } else {
            Err(EFAULT)
        }
    }

    fn write(&self, page: usize, byte: u8) -> Result {
        let to = (self.start + page * PAGE_SIZE) as *mut c_void;
        // SAFETY: The buffer has one byte.
        let left = unsafe { bindings::_copy_to_user(to, (&raw const byte).cast(), 1) };
        if left == 0 {
            Ok(())
        } else {
            Err(EFAULT)
        }
    }

    /// Tries to pin the first page, as `O_DIRECT` would.
    fn pin(&self) -> c_int {
        let mut page = null_mut();
        // SAFETY: There is room for one page.
        let n = unsafe { bindings::pin_user_pages_fast(self.start, 1, 0, &mut page) };
        if n == 1 {
            // SAFETY: It was pinned just now.
            unsafe { bindings::unpin_user_page(page) };
        }
        n
    }
}

#[kunit_tests(pagekit_vma)]
mod tests {
    use super::*;
    use crate::fixture::*;
    use kernel::error::to_result;

    const PAGES: usize = 20;
    const READ: u32 = 1; // PROT_READ
    const RW: u32 = 1 | 2; // PROT_READ | PROT_WRITE
    const SHARED: u32 = 1; // MAP_SHARED
    const PRIVATE: u32 = 2; // MAP_PRIVATE

    fn attach() -> Result {
        // SAFETY: This runs in a test.
        to_result(unsafe { bindings::kunit_attach_mm() })
    }

    #[test]
    fn whole_array() -> Result {
        attach()?;
        let object = Object::new(&TestFile::pattern(PAGES)?, PAGES, 0)?;
        let map = object.mmap(0, PAGES, READ, SHARED)?;
        for i in 0..PAGES {
            assert_eq!(map.read(i)?, pattern(i));
        }
        Ok(())
    }

    #[test]
    fn offset_is_the_absolute_pgoff() -> Result {
        attach()?;
        let object = Object::new(&TestFile::pattern(PAGES)?, PAGES, 0)?;
        let map = object.mmap(7, 5, READ, SHARED)?;
        for i in 0..5 {
            assert_eq!(map.read(i)?, pattern(7 + i));
        }
        Ok(())
    }

    #[test]
    fn base_is_subtracted() -> Result {
        attach()?;
        let base = 0x10_0000;
        let object = Object::new(&TestFile::pattern(PAGES)?, PAGES, base)?;
        let map = object.mmap(base + 3, 4, READ, SHARED)?;
        for i in 0..4 {
            assert_eq!(map.read(i)?, pattern(3 + i));
        }
        assert_eq!(object.mmap(base - 1, 2, READ, SHARED).err(), Some(EINVAL));
        Ok(())
    }

    #[test]
    fn split_keeps_the_pages() -> Result {
        attach()?;
        let object = Object::new(&TestFile::pattern(PAGES)?, PAGES, 0)?;
        let map = object.mmap(2, 10, READ, SHARED)?;
        // The VMA is split before it is touched: two VMAs, one of which starts at page 6.
        // SAFETY: We are attached to the mm of the test.
        unsafe { bindings::vm_munmap(map.start + 3 * PAGE_SIZE, PAGE_SIZE) };
        for i in [0, 1, 2, 4, 5, 6, 7, 8, 9] {
            assert_eq!(map.read(i)?, pattern(2 + i));
        }
        assert_eq!(map.read(3), Err(EFAULT));
        Ok(())
    }

    #[test]
    fn one_fault_maps_the_neighbours() -> Result {
        attach()?;
        let file = TestFile::pattern(PAGES)?;
        let mut object = Object::new(&file, PAGES, 0)?;
        let map = object.mmap(0, PAGES, READ, SHARED)?;
        // Both ends of the VMA are within one page table unless it straddles a boundary.
        let straddles = (map.start ^ (map.start + map.len - 1)) >> bindings::PMD_SHIFT != 0;
        assert_eq!(map.read(9)?, pattern(9));
        // Without an array a further fault would fail.
        object.base = usize::MAX;
        assert_eq!(map.read(10)?, pattern(10));
        if !straddles {
            assert_eq!(map.read(0)?, pattern(0));
            assert_eq!(map.read(PAGES - 1)?, pattern(PAGES - 1));
        }
        Ok(())
    }

    #[test]
    fn present_entries_stay() -> Result {
        attach()?;
        let file = TestFile::pattern(PAGES)?;
        let mut object = Object::new(&file, 10, 0)?;
        object.claim = PAGES;
        let map = object.mmap(0, PAGES, READ, SHARED)?;
        assert_eq!(map.read(0)?, pattern(0));
        // The array changes and grows: the next fault fills only what is missing.
        let other = TestFile::shmem(PAGES)?;
        let old = core::mem::replace(
            &mut object.array,
            PageArray::from_shmem(other.file(), 0, PAGES)?,
        );
        assert_eq!(map.read(15)?, 0);
        assert_eq!(map.read(0)?, pattern(0));
        drop(map);
        drop(old);
        Ok(())
    }

    #[test]
    fn writes_reach_the_page() -> Result {
        attach()?;
        let file = TestFile::pattern(PAGES)?;
        let object = Object::new(&file, PAGES, 0)?;
        let map = object.mmap(4, 2, RW, SHARED)?;
        map.write(1, 0xee)?;
        assert_eq!(map.read(1)?, 0xee);
        let page = Object::new(&file, PAGES, 0)?
            .mmap(5, 1, READ, SHARED)?
            .read(0)?;
        assert_eq!(page, 0xee);
        Ok(())
    }

    #[test]
    fn read_only_mappings_refuse_writes() -> Result {
        attach()?;
        let object = Object::new(&TestFile::pattern(PAGES)?, PAGES, 0)?;
        let map = object.mmap(0, 2, READ, SHARED)?;
        assert_eq!(map.read(1)?, pattern(1));
        assert_eq!(map.write(1, 1), Err(EFAULT));
        Ok(())
    }

    #[test]
    fn private_mappings_are_einval() -> Result {
        attach()?;
        let object = Object::new(&TestFile::pattern(PAGES)?, PAGES, 0)?;
        assert_eq!(object.mmap(0, 1, RW, PRIVATE).err(), Some(EINVAL));
        // It could be made writable later.
        assert_eq!(object.mmap(0, 1, READ, PRIVATE).err(), Some(EINVAL));
        Ok(())
    }

    #[test]
    fn windows_beyond_the_array_are_einval() -> Result {
        attach()?;
        let object = Object::new(&TestFile::pattern(PAGES)?, PAGES, 0)?;
        for (pgoff, count) in [(0, PAGES + 1), (PAGES, 1), (PAGES - 1, 2), (1 << 40, 1)] {
            assert_eq!(object.mmap(pgoff, count, READ, SHARED).err(), Some(EINVAL));
        }
        Ok(())
    }

    #[test]
    fn faults_beyond_the_array_fail() -> Result {
        attach()?;
        let mut object = Object::new(&TestFile::pattern(PAGES)?, 3, 0)?;
        object.claim = PAGES;
        let map = object.mmap(0, PAGES, READ, SHARED)?;
        assert_eq!(map.read(2)?, pattern(2));
        assert_eq!(map.read(3), Err(EFAULT));
        Ok(())
    }

    #[test]
    fn gup_is_refused() -> Result {
        attach()?;
        let object = Object::new(&TestFile::pattern(PAGES)?, PAGES, 0)?;
        let map = object.mmap(0, 1, READ, SHARED)?;
        assert_eq!(map.read(0)?, pattern(0));
        assert_eq!(map.pin(), EFAULT.to_errno());
        Ok(())
    }

    #[test]
    fn no_references_are_taken() -> Result {
        attach()?;
        let file = TestFile::pattern(PAGES)?;
        let object = Object::new(&file, PAGES, 0)?;
        let before = file.refs(0);
        let map = object.mmap(0, PAGES, READ, SHARED)?;
        assert_eq!(map.read(0)?, pattern(0));
        assert_eq!(file.refs(0), before);
        Ok(())
    }

    #[test]
    fn crosses_page_tables() -> Result {
        attach()?;
        let pages = 1100;
        let object = Object::new(&TestFile::pattern(pages)?, pages, 0)?;
        let map = object.mmap(1, pages - 1, RW, SHARED)?;
        for i in [0, 1, 510, 511, 512, 513, 1023, 1024, pages - 2] {
            assert_eq!(map.read(i)?, pattern(1 + i));
        }
        for i in 0..pages - 1 {
            assert_eq!(map.read(i)?, pattern(1 + i));
        }
        Ok(())
    }
}
