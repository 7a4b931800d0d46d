// SPDX-License-Identifier: GPL-2.0

//! KUnit suite `pagekit_vma`: arrays mapped into a process, by a driver with mmap and fault
//! operations as short as they get.

use core::{
    cell::Cell,
    ops::Range,
    ptr::{
        null_mut,
        NonNull, //
    },
    slice, //
};
use kernel::{
    bindings,
    error::{
        from_err_ptr,
        from_result, //
    },
    mm::virt::{
        flags,
        vm_flags_t,
        VmaNew, //
    },
    page::PAGE_SIZE,
    prelude::*, //
};
use pagekit_pages::{
    AllocFlags,
    PageArray,
    ShmemFlags, //
};
use pagekit_view::{
    PageRef,
    PMD_ORDER, //
};
use pagekit_vma::{
    fault_pages,
    fault_pfns,
    huge_fault_pages,
    huge_fault_pfns,
    map_pages,
    map_pages_ro,
    map_pfns,
    map_pfns_ro,
    setup_pages,
    setup_pages_ro,
    setup_pfns,
    setup_pfns_ro,
    write_combine,
    zap,
    VmFault, //
};

mod fixture;
use fixture::Cache::{
    self,
    WriteCombined, //
};

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

/// How a driver maps.
#[derive(Copy, Clone, PartialEq)]
enum Kind {
    FaultPfns,
    HugePfns,
    EagerPfns,
    EagerHugePfns,
    FaultPages,
    HugePages,
    EagerPages,
}
use Kind::*;

impl Kind {
    fn is_referenced(self) -> bool {
        matches!(self, FaultPages | HugePages | EagerPages)
    }
}

/// An object of the driver, whose file userspace maps at page offset `base`.
struct Object {
    array: PageArray,
    kind: Kind,
    base: usize,
    /// What mmap says that the array has, if not the truth.
    claim: usize,
    /// The part of the array that is shown, from its start.
    part: Range<usize>,
    /// The driver serves huge faults as if they were others.
    small: bool,
    /// It leaves them to the fault operation.
    fallback: bool,
    /// It has no other operation.
    huge_only: bool,
    /// It sets its operations last.
    late: bool,
    /// While it handles a fault, another thread maps a huge page.
    overtaken: bool,
    /// Flags that it sets by itself, first.
    flags: vm_flags_t,
    /// And that is all it sets up.
    bare: bool,
    /// Nobody may write to the pages.
    read_only: bool,
    /// How it maps.
    cache: Cache,
    /// The kernel inserts the page of a fault, and no other.
    by_kernel: bool,
    /// The flags of the VMA in the end.
    seen: Cell<vm_flags_t>,
    /// What knows all mappings of the file.
    mapping: Cell<*mut bindings::address_space>,
    /// Pages that are shown instead of the array.
    own: Option<&'static [PageRef<'static>]>,
}

const FOPS: bindings::file_operations = bindings::file_operations {
    mmap: Some(mmap),
    ..pin_init::zeroed()
};

const VM_OPS: &bindings::vm_operations_struct = &bindings::vm_operations_struct {
    fault: Some(fault),
    ..pin_init::zeroed()
};

const HUGE_VM_OPS: &bindings::vm_operations_struct = &bindings::vm_operations_struct {
    fault: Some(fault),
    huge_fault: Some(huge_fault),
    ..pin_init::zeroed()
};

const HUGE_ONLY_VM_OPS: &bindings::vm_operations_struct = &bindings::vm_operations_struct {
    huge_fault: Some(huge_fault),
    ..pin_init::zeroed()
};

/// # Safety
///
/// To be called by the kernel, for a file that was made with an object.
unsafe extern "C" fn mmap(file: *mut bindings::file, vma: *mut bindings::vm_area_struct) -> c_int {
    // SAFETY: The file was made with an object as its private data; the VMA is being set up, and is
    // of one kind. A test drops its object, and with it the pages, only after it has unmapped it.
    from_result(|| unsafe {
        let object = &*(*file).private_data.cast::<Object>();
        let (new, pages) = (VmaNew::from_raw(vma), object.pages());
        (*vma).vm_private_data = (*file).private_data;
        object.mapping.set((*file).f_mapping);
        (*vma).__bindgen_anon_2.vm_flags |= object.flags;
        if object.cache == WriteCombined && !object.by_kernel {
            write_combine(new);
        } else {
            (*vma).vm_page_prot = object.cache.prot((*vma).vm_page_prot);
        }
        let ops = match object.kind {
            FaultPfns | FaultPages => VM_OPS,
            _ if object.huge_only => HUGE_ONLY_VM_OPS,
            HugePfns | EagerHugePfns | HugePages => HUGE_VM_OPS,
            EagerPfns | EagerPages => (*vma).vm_ops,
        };
        if !object.late {
            (*vma).vm_ops = ops;
        }
        let (len, base) = (object.claim, object.base);
        match (object.kind, object.read_only) {
            _ if object.bare => (),
            (FaultPfns | HugePfns, false) => setup_pfns(new, len, base)?,
            (FaultPfns | HugePfns, true) => setup_pfns_ro(new, len, base)?,
            (FaultPages | HugePages, false) => setup_pages(new, len, base)?,
            (FaultPages | HugePages, true) => setup_pages_ro(new, len, base)?,
            (EagerPfns | EagerHugePfns, false) => map_pfns(new, pages, base)?,
            (EagerPfns | EagerHugePfns, true) => map_pfns_ro(new, pages, base)?,
            (EagerPages, false) => map_pages(new, pages, base)?,
            (EagerPages, true) => map_pages_ro(new, pages, base)?,
        }
        (*vma).vm_ops = ops;
        object.seen.set(new.flags());
        Ok(0)
    })
}

/// # Safety
///
/// To be called for a fault in a VMA that `mmap` has set up.
unsafe fn object_of(vmf: &VmFault) -> &Object {
    // SAFETY: `mmap` has set the private data to the object, which outlives its mappings.
    unsafe { &*(*vmf.vma().as_ptr()).vm_private_data.cast() }
}

/// # Safety
///
/// To be called by the kernel, for a fault in a VMA that `mmap` has set up.
unsafe extern "C" fn fault(vmf: *mut bindings::vm_fault) -> bindings::vm_fault_t {
    // SAFETY: The kernel passes a fault that is being handled. See `mmap`.
    unsafe {
        let raw = vmf;
        let vmf = VmFault::from_raw(raw);
        let object = object_of(vmf);
        if object.by_kernel {
            let (vma, fault) = (vmf.vma().as_ptr(), &(*raw).__bindgen_anon_1);
            let page = object.pages()[fault.pgoff - object.base].as_ptr();
            return bindings::vmf_insert_pfn(vma, fault.address, fixture::pfn(page));
        }
        match object.kind {
            HugePfns if object.overtaken => {
                huge_fault_pfns(vmf, PMD_ORDER, object.pages(), object.base);
            }
            HugePages if object.overtaken => {
                huge_fault_pages(vmf, PMD_ORDER, object.pages(), object.base);
            }
            _ => (),
        }
        match object.kind {
            FaultPages | HugePages => fault_pages(vmf, object.pages(), object.base),
            _ => fault_pfns(vmf, object.pages(), object.base),
        }
    }
}

/// # Safety
///
/// To be called by the kernel, for a fault in a VMA that `mmap` has set up.
unsafe extern "C" fn huge_fault(
    vmf: *mut bindings::vm_fault,
    order: c_uint,
) -> bindings::vm_fault_t {
    // SAFETY: The kernel passes a fault that is being handled. See `mmap`. A test has one thread,
    // which handles one fault at a time.
    unsafe {
        let raw = vmf;
        let vmf = VmFault::from_raw(raw);
        let object = object_of(vmf);
        if object.small {
            return fault(raw);
        }
        // Of no other order anything is mapped.
        let order = order + c_uint::from(object.fallback);
        match object.kind {
            HugePages => huge_fault_pages(vmf, order, object.pages(), object.base),
            _ => huge_fault_pfns(vmf, order, object.pages(), object.base),
        }
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
        Ok(Self::showing(
            FaultPfns,
            PageArray::from_shmem(file.file(), 0, pages, ShmemFlags::empty())?,
            base,
        ))
    }

    fn showing(kind: Kind, array: PageArray, base: usize) -> Self {
        let pages = array.pages().len();
        Self {
            array,
            kind,
            base,
            claim: pages,
            part: 0..pages,
            small: false,
            fallback: false,
            huge_only: false,
            late: false,
            overtaken: false,
            flags: 0,
            bare: false,
            read_only: false,
            cache: Cache::Default,
            by_kernel: false,
            seen: Cell::new(0),
            mapping: Cell::new(null_mut()),
            own: None,
        }
    }

    /// Shows these pages instead of the array.
    ///
    /// # Safety
    ///
    /// They, and the slice as it is, must stay until others are shown in new mappings, or the
    /// object and its mappings have gone.
    unsafe fn show(&mut self, pages: &mut [*mut bindings::page]) {
        let first = NonNull::from(&mut *pages).cast();
        // SAFETY: The caller promises that the pages and the slice stay while they are shown.
        self.own = Some(unsafe { PageRef::slice_from_raw(first, pages.len()) });
    }

    fn pages(&self) -> &[PageRef<'_>] {
        &self.own.unwrap_or(self.array.pages())[self.part.clone()]
    }

    /// An object of fresh pages, page i of which begins with `pattern(i)`.
    fn fresh(kind: Kind, pages: usize, base: usize) -> Result<Self> {
        Self::of(kind, PageArray::alloc(pages, AllocFlags::empty())?, base)
    }

    /// As [`Self::fresh`], with folios as large as there are.
    fn large(kind: Kind, pages: usize) -> Result<Self> {
        Self::of(kind, PageArray::alloc(pages, AllocFlags::LARGE)?, 0)
    }

    fn of(kind: Kind, array: PageArray, base: usize) -> Result<Self> {
        for (i, page) in array.pages().iter().enumerate() {
            fixture::fill(page.as_ptr(), fixture::pattern(i));
        }
        Ok(Self::showing(kind, array, base))
    }

    fn mmap(&self, pgoff: usize, pages: usize, prot: u32, flags: u32) -> Result<Mapping> {
        self.mmap_at(0, pgoff, pages, prot, flags)
    }

    fn mmap_at(
        &self,
        addr: usize,
        pgoff: usize,
        pages: usize,
        prot: u32,
        flags: u32,
    ) -> Result<Mapping> {
        // The object outlives the file, which ends here or with the last mapping of it.
        let data = core::ptr::from_ref(self).cast_mut().cast();
        let file = fixture::TestFile::anon(&FOPS, data)?;
        let len = pages * PAGE_SIZE;
        // SAFETY: This runs in a test.
        let start = unsafe {
            bindings::vm_mmap(
                file.as_ptr(),
                addr,
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
        fixture::get_user(self.start + page * PAGE_SIZE)
    }

    fn write(&self, page: usize, byte: u8) -> Result {
        fixture::put_user(self.start + page * PAGE_SIZE, byte)
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
    use kernel::{
        error::to_result,
        sizes::SZ_2M, //
    };

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
        let straddles = (map.start ^ (map.start + map.len - 1)) / BLOCK != 0;
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
    fn executable_pages_are_mapped_at_once_too() -> Result {
        attach()?;
        let mut object = Object::new(&TestFile::pattern(PAGES)?, PAGES, 0)?;
        object.flags = flags::EXEC;
        for kind in [FaultPfns, EagerPfns] {
            object.kind = kind;
            object.base = 0;
            let map = object.mmap(0, PAGES, READ, SHARED)?;
            // A second page table is another fault.
            let table = |page| (map.start + page * PAGE_SIZE) / BLOCK;
            assert_eq!(map.read(9)?, pattern(9));
            object.base = usize::MAX;
            for i in (0..PAGES).filter(|&i| table(i) == table(9)) {
                assert_eq!(map.read(i)?, pattern(i));
            }
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
            PageArray::from_shmem(other.file(), 0, PAGES, ShmemFlags::empty())?,
        );
        object.part = 0..PAGES;
        assert_eq!(map.read(15)?, 0);
        assert_eq!((map.read(0)?, map.read(9)?), (pattern(0), pattern(9)));
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
        let pages = 2 * HUGE + 76;
        let object = Object::new(&TestFile::pattern(pages)?, pages, 0)?;
        let map = object.mmap(1, pages - 1, RW, SHARED)?;
        for i in [
            0,
            1,
            HUGE - 2,
            HUGE - 1,
            HUGE,
            HUGE + 1,
            2 * HUGE - 1,
            2 * HUGE,
            pages - 2,
        ] {
            assert_eq!(map.read(i)?, pattern(1 + i));
        }
        for i in 0..pages - 1 {
            assert_eq!(map.read(i)?, pattern(1 + i));
        }
        Ok(())
    }

    const KINDS: [Kind; 7] = [
        FaultPfns,
        HugePfns,
        EagerPfns,
        EagerHugePfns,
        FaultPages,
        HugePages,
        EagerPages,
    ];

    #[test]
    fn all_kinds_know_one_offset_rule() -> Result {
        attach()?;
        for kind in KINDS {
            for base in [0, 0x10_0000] {
                let object = Object::fresh(kind, PAGES, base)?;
                let map = object.mmap(base + 3, 9, RW, SHARED)?;
                // Split, before and after it was touched.
                for cut in [4, 7] {
                    // SAFETY: We are attached to the mm of the test.
                    unsafe { bindings::vm_munmap(map.start + cut * PAGE_SIZE, PAGE_SIZE) };
                    for i in [0, 1, 2, 3, 5, 6, 8] {
                        assert_eq!(map.read(i)?, pattern(3 + i));
                    }
                    assert_eq!(map.read(cut), Err(EFAULT));
                }
                map.write(5, 0xee)?;
                assert_eq!(first(object.array.pages()[8].as_ptr()), 0xee);
            }
        }
        Ok(())
    }

    #[test]
    fn all_kinds_refuse_what_they_cannot_map() -> Result {
        attach()?;
        for kind in KINDS {
            let object = Object::fresh(kind, PAGES, 5)?;
            for (pgoff, count, prot, flags) in [
                (5, PAGES + 1, READ, SHARED),
                (5 + PAGES, 1, READ, SHARED),
                (4, 2, READ, SHARED),
                (5, 1, RW, PRIVATE),
                (5, 1, READ, PRIVATE),
            ] {
                assert_eq!(object.mmap(pgoff, count, prot, flags).err(), Some(EINVAL));
            }
        }
        Ok(())
    }

    const KEPT: vm_flags_t = flags::DONTEXPAND | flags::DONTDUMP;

    /// C's `VM_RAND_READ`.
    const RAND_READ: vm_flags_t = 1 << bindings::VMA_RAND_READ_BIT;

    fn own_flags(kind: Kind) -> vm_flags_t {
        match kind {
            HugePages => RAND_READ,
            FaultPages | EagerPages => flags::MIXEDMAP | RAND_READ,
            _ => flags::PFNMAP,
        }
    }

    #[test]
    fn all_kinds_set_their_flags() -> Result {
        attach()?;
        for kind in KINDS {
            let object = Object::fresh(kind, PAGES, 0)?;
            let _map = object.mmap(0, PAGES, RW, SHARED)?;
            let all = KEPT | flags::PFNMAP | flags::MIXEDMAP | RAND_READ;
            assert_eq!(object.seen.get() & all, KEPT | own_flags(kind));
        }
        // Operations that nobody has seen yet may have one for huge faults.
        let mut object = Object::fresh(HugePages, PAGES, 0)?;
        object.late = true;
        let _map = object.mmap(0, PAGES, RW, SHARED)?;
        assert_eq!(object.seen.get() & flags::MIXEDMAP, 0);
        Ok(())
    }

    /// Kernels to come may see to it that a mapping with references is a mixed one. What depends on
    /// that is in Documentation/design.rst.
    #[test]
    fn kernel_rule_referenced_mappings_may_be_without_vm_mixedmap() -> Result {
        attach()?;
        let object = Object::fresh(HugePages, PAGES, 0)?;
        let map = object.mmap(0, PAGES, RW, SHARED)?;
        assert_eq!(object.seen.get() & flags::MIXEDMAP, 0);
        assert_eq!(map.read(3)?, pattern(3));
        Ok(())
    }

    /// Kernels to come may let only some of the drivers do this. What depends on it is in
    /// Documentation/design.rst.
    #[test]
    fn kernel_rule_mmap_may_clear_vm_maywrite() -> Result {
        attach()?;
        for kind in KINDS {
            let mut object = Object::fresh(kind, PAGES, 0)?;
            object.read_only = true;
            let map = object.mmap(0, PAGES, READ, SHARED)?;
            assert_eq!(object.seen.get() & (flags::WRITE | flags::MAYWRITE), 0);
            assert_eq!(map.read(3)?, pattern(3));
        }
        Ok(())
    }

    #[test]
    fn all_kinds_can_be_read_only() -> Result {
        attach()?;
        for kind in KINDS {
            let mut object = Object::large(kind, HUGE)?;
            object.read_only = true;
            for flags in [SHARED, PRIVATE] {
                assert_eq!(object.mmap(0, 1, RW, flags).err(), Some(EACCES));
            }
            // What is private and can't be written to shows the pages, too.
            for flags in [FIXED, FIXED ^ SHARED ^ PRIVATE] {
                let map = object.mmap_at(AT, 0, HUGE, READ, flags)?;
                advise_huge(AT)?;
                fill(object.array.pages()[7].as_ptr(), 0xee);
                assert_eq!(map.read(7)?, 0xee);
                assert_eq!(map.write(7, 1), Err(EFAULT));
                assert_eq!(map.write(300, 1), Err(EFAULT));
                assert_eq!(map.read(300)?, pattern(300));
            }
            assert_eq!(object.mmap(0, HUGE + 1, READ, SHARED).err(), Some(EINVAL));
        }
        Ok(())
    }

    #[test]
    fn all_kinds_refuse_a_vma_of_another_kind() -> Result {
        attach()?;
        for kind in KINDS {
            let mut object = Object::fresh(kind, PAGES, 0)?;
            object.flags = if kind.is_referenced() {
                flags::PFNMAP
            } else {
                flags::MIXEDMAP
            };
            assert_eq!(object.mmap(0, 1, RW, SHARED).err(), Some(EINVAL));
        }
        Ok(())
    }

    #[test]
    fn faults_where_nobody_has_checked_the_vma_fail() -> Result {
        attach()?;
        for (kind, set_up) in [(FaultPfns, flags::PFNMAP), (FaultPages, flags::DONTEXPAND)] {
            let mut object = Object::fresh(kind, PAGES, 0)?;
            object.bare = true;
            for (flags, share, byte) in [
                (0, SHARED, Err(EFAULT)),
                (set_up, PRIVATE, Err(EFAULT)),
                (set_up, SHARED, Ok(pattern(3))),
            ] {
                object.flags = flags;
                assert_eq!(object.mmap(3, 1, READ, share)?.read(0), byte);
            }
        }
        Ok(())
    }

    #[test]
    fn zapping_takes_a_range_of_the_array() -> Result {
        attach()?;
        for kind in [FaultPfns, EagerPfns, FaultPages, EagerPages] {
            for base in [0, 0x10_0000] {
                let mut object = Object::fresh(kind, PAGES, base)?;
                // Page i is at i - 2.
                let map = object.mmap(base + 2, PAGES - 2, RW, SHARED)?;
                assert_eq!(map.read(9)?, pattern(11));
                let zap = |pages, base| {
                    // SAFETY: The file is open while it is mapped.
                    unsafe { zap(object.mapping.get(), pages, base) }
                };
                zap(4..4, base);
                zap(6..9, base);
                // A sum that wraps around would be that of page 10.
                zap(usize::MAX - 1..usize::MAX, base + 12);
                object.base = usize::MAX;
                for i in 2..PAGES {
                    let byte = if (6..9).contains(&i) {
                        Err(EFAULT)
                    } else {
                        Ok(pattern(i))
                    };
                    assert_eq!(map.read(i - 2), byte);
                }
                object.base = base;
                let back = matches!(kind, FaultPfns | FaultPages);
                assert_eq!(map.read(5).ok(), back.then_some(pattern(7)));
            }
        }
        Ok(())
    }

    #[test]
    fn faults_fill_all_gaps() -> Result {
        attach()?;
        for kind in [FaultPfns, FaultPages] {
            let mut object = Object::fresh(kind, PAGES, 0)?;
            let map = object.mmap(0, PAGES, RW, SHARED)?;
            map.read(9)?;
            for gap in [3..4, 6..9, PAGES - 1..PAGES] {
                // SAFETY: The file is open while it is mapped.
                unsafe { zap(object.mapping.get(), gap, 0) };
            }
            map.read(7)?;
            // From here on faults fail.
            object.base = usize::MAX;
            for i in 0..PAGES {
                assert_eq!(map.read(i)?, pattern(i));
            }
        }
        Ok(())
    }

    #[test]
    fn faults_before_the_base_fail() -> Result {
        attach()?;
        for kind in [FaultPfns, FaultPages] {
            let mut object = Object::fresh(kind, PAGES, 0)?;
            let map = object.mmap(0, PAGES, READ, SHARED)?;
            // A difference that wraps around would be an index.
            object.base = usize::MAX - 3;
            assert_eq!(map.read(0), Err(EFAULT));
        }
        Ok(())
    }

    /// Nobody can move what is mapped by reference: who pins it for long, from memory that pages
    /// must leave first, as those of CMA areas, tries until it is killed.
    #[test]
    fn movable_pages_by_reference_are_never_pinned() -> Result {
        needs_movable();
        attach()?;
        let movable = MovablePage::new()?;
        let mut pages = [movable.as_ptr()];
        let mut object = Object::fresh(EagerPages, 1, 0)?;
        let map = object.mmap(0, 1, RW, SHARED)?;
        assert_eq!(pin_for_long(map.start), 1);
        // SAFETY: Both stay until the mapping has gone, which is dropped first.
        unsafe { object.show(&mut pages) };
        let map = object.mmap(0, 1, RW, SHARED)?;
        assert_eq!(map.pin(), 1);
        assert_eq!(pin_for_long(map.start), EINTR.to_errno());
        Ok(())
    }

    #[test]
    fn fatal_signals_end_mapping() -> Result {
        attach()?;
        for kind in [EagerPfns, EagerPages] {
            let object = Object::fresh(kind, PAGES, 0)?;
            let map = dying(|| object.mmap(0, PAGES, READ, SHARED));
            assert_eq!(map.err(), Some(EINTR));
            assert_eq!(refs(object.array.pages()[0].as_ptr()), 1);
            assert_eq!(object.mmap(0, PAGES, READ, SHARED)?.read(3)?, pattern(3));
        }
        Ok(())
    }

    #[test]
    fn fatal_signals_come_before_a_look_at_pages() -> Result {
        attach()?;
        let mut object = Object::new(&TestFile::pattern(PAGES)?, PAGES, 0)?;
        object.kind = EagerPages;
        let map = dying(|| object.mmap(0, PAGES, READ, SHARED));
        assert_eq!(map.err(), Some(EINTR));
        Ok(())
    }

    #[test]
    fn bad_pages_behind_good_ones_leave_nothing() -> Result {
        // More than are looked at together.
        const MANY: usize = 4097;
        attach()?;
        let file = TestFile::pattern(1)?;
        let page = file.find(0).ok_or(ENOENT)?;
        let mut object = Object::fresh(EagerPages, MANY, 0)?;
        let mut pages = KVec::with_capacity(MANY, GFP_KERNEL)?;
        for page in object.array.pages() {
            pages.push(page.as_ptr(), GFP_KERNEL)?;
        }
        pages[MANY - 1] = page.as_ptr();
        // SAFETY: These are as many pages, which outlive the object and its mappings.
        unsafe { object.show(&mut pages) };
        assert_eq!(object.mmap(0, MANY, READ, SHARED).err(), Some(EINVAL));
        assert_eq!(refs(object.array.pages()[0].as_ptr()), 1);
        assert_eq!(object.mmap(0, MANY - 1, READ, SHARED)?.read(3)?, pattern(3));
        Ok(())
    }

    #[test]
    fn gup_works_on_referenced_pages_only() -> Result {
        attach()?;
        for kind in KINDS {
            let object = Object::fresh(kind, PAGES, 0)?;
            let map = object.mmap(0, 1, RW, SHARED)?;
            assert_eq!(map.read(0)?, pattern(0));
            let pinned = map.pin();
            assert_eq!(
                pinned,
                if kind.is_referenced() {
                    1
                } else {
                    EFAULT.to_errno()
                }
            );
        }
        Ok(())
    }

    #[test]
    fn referenced_pages_are_referenced() -> Result {
        attach()?;
        for kind in KINDS {
            let object = Object::fresh(kind, PAGES, 0)?;
            let map = object.mmap(0, PAGES, READ, SHARED)?;
            assert_eq!(map.read(0)?, pattern(0));
            let held = 1 + c_int::from(kind.is_referenced());
            assert_eq!(refs(object.array.pages()[0].as_ptr()), held);
            drop(map);
            assert_eq!(refs(object.array.pages()[0].as_ptr()), 1);
        }
        Ok(())
    }

    #[test]
    fn file_pages_are_not_mapped_by_reference() -> Result {
        attach()?;
        let file = TestFile::pattern(PAGES)?;
        let before = file.refs(0);
        let mut object = Object::new(&file, PAGES, 0)?;
        object.kind = EagerPages;
        assert_eq!(object.mmap(0, PAGES, READ, SHARED).err(), Some(EINVAL));
        object.kind = FaultPages;
        assert_eq!(object.mmap(0, PAGES, READ, SHARED)?.read(0), Err(EFAULT));
        // Nor are those that it has lost.
        file.punch_hole(5, 1)?;
        assert_eq!(object.mmap(0, PAGES, READ, SHARED)?.read(5), Err(EFAULT));
        drop(object);
        assert_eq!(file.refs(0), before);
        Ok(())
    }

    #[test]
    fn each_page_is_asked_whose_it_is() -> Result {
        attach()?;
        let file = TestFile::huge_pattern(HUGE)?;
        let held = PageArray::from_shmem(file.file(), 0, HUGE, ShmemFlags::empty())?;
        // A huge page that has left its file.
        let hugetlb = TestFile::hugetlb_pattern(HUGE)?;
        let huge = hugetlb.find(5).ok_or(ENOENT)?;
        hugetlb.punch_hole(0, HUGE)?;
        // Two pages that follow each other, each a folio of its own, the second as if of a process.
        // SAFETY: It may sleep here, and nobody else has the pages.
        let (free, next) = unsafe {
            let block = bindings::alloc_pages(bindings::GFP_KERNEL, 1);
            assert!(!block.is_null());
            bindings::split_page(block, 1);
            (block, block.wrapping_add(1))
        };
        // And two larger folios, the second as if it were in a file.
        let (_folios, folio) = neighbours(2, 1)?;
        let second = folio.wrapping_add(2);
        let mark = 1 << bindings::pageflags_PG_swapbacked;
        // SAFETY: The pages are ours, and nobody else looks at them.
        unsafe {
            (*next).flags.f |= mark;
            fixture::set_mapping(second, file.file().as_ptr());
        }
        for mut pages in [
            [free, next],
            [free, held.pages()[5].as_ptr()],
            [free, huge.as_ptr()],
            [folio, next],
            [folio.wrapping_add(1), second],
        ] {
            let mut object = Object::fresh(EagerPages, 2, 0)?;
            // SAFETY: These are two pages, which outlive the object.
            unsafe { object.show(&mut pages) };
            assert_eq!(object.mmap(0, 2, READ, SHARED).err(), Some(EINVAL));
        }
        // SAFETY: The pages are ours, and no longer mapped. Nobody else looks at them.
        unsafe {
            (*next).flags.f &= !mark;
            fixture::set_mapping(second, null_mut());
            bindings::__free_pages(free, 0);
            bindings::__free_pages(next, 0);
        }
        // The first, too, where the array has the one before it.
        let mut object = Object::new(&file, HUGE, 0)?;
        (object.kind, object.part) = (EagerPages, 5..9);
        assert_eq!(object.mmap(0, 4, READ, SHARED).err(), Some(EINVAL));
        Ok(())
    }

    #[test]
    fn memory_of_disks_is_not_mapped_by_reference() -> Result {
        attach()?;
        let disk = TestFile::disk()?;
        // Whatever is there, it gets into the page cache.
        disk.reads(0, 0)?;
        let cached = disk.find(0).ok_or(ENOENT)?;
        let mut object = Object::fresh(EagerPages, 1, 0)?;
        let mut page = cached.as_ptr();
        // SAFETY: This is a page, which outlives the object.
        unsafe { object.show(slice::from_mut(&mut page)) };
        assert_eq!(object.mmap(0, 1, READ, SHARED).err(), Some(EINVAL));
        Ok(())
    }

    const BLOCK: usize = HUGE * PAGE_SIZE;
    const FIXED: u32 = SHARED | 0x10; // MAP_SHARED | MAP_FIXED
    const AT: usize = 256 * BLOCK;

    #[test]
    fn aligned_blocks_are_huge() -> Result {
        attach()?;
        let file = TestFile::huge_pattern(3 * HUGE)?;
        let mut object = Object::new(&file, 3 * HUGE, 0)?;
        object.kind = HugePfns;
        // The last 12 pages of the first block, the second, and a bit of the third.
        let map = object.mmap_at(AT - 12 * PAGE_SIZE, HUGE - 12, HUGE + 88, RW, FIXED)?;
        for i in [0, 11, 12, 100, HUGE + 11, HUGE + 12, HUGE + 87] {
            assert_eq!(map.read(i)?, pattern(HUGE - 12 + i));
        }
        assert!(!is_huge(AT - PAGE_SIZE));
        assert!(is_huge(AT));
        assert!(!is_huge(AT + BLOCK));
        map.write(300, 0xee)?;
        assert_eq!(first(object.array.pages()[HUGE + 288].as_ptr()), 0xee);
        // A split block is mapped by pages.
        // SAFETY: We are attached to the mm of the test.
        unsafe { bindings::vm_munmap(AT + 5 * PAGE_SIZE, PAGE_SIZE) };
        for i in [12, 16, 18, 100, HUGE + 11] {
            assert_eq!(
                map.read(i)?,
                if i == 300 {
                    0xee
                } else {
                    pattern(HUGE - 12 + i)
                }
            );
        }
        assert!(!is_huge(AT));
        assert_eq!(map.read(17), Err(EFAULT));
        Ok(())
    }

    #[test]
    fn unaligned_blocks_are_not_huge() -> Result {
        attach()?;
        let file = TestFile::huge_pattern(2 * HUGE)?;
        let mut object = Object::new(&file, 2 * HUGE, 0)?;
        object.kind = HugePfns;
        let map = object.mmap_at(AT, 1, 2 * HUGE - 1, RW, FIXED)?;
        for i in [0, HUGE - 1, 2 * HUGE - 2] {
            assert_eq!(map.read(i)?, pattern(1 + i));
        }
        assert!(!is_huge(AT));
        Ok(())
    }

    #[test]
    fn blocks_beyond_the_array_are_not_huge() -> Result {
        attach()?;
        let file = TestFile::huge_pattern(HUGE)?;
        let mut object = Object::new(&file, HUGE - 1, 0)?;
        object.kind = HugePfns;
        object.claim = HUGE;
        let map = object.mmap_at(AT, 0, HUGE, READ, FIXED)?;
        assert_eq!(map.read(HUGE - 2)?, pattern(HUGE - 2));
        assert_eq!(map.read(HUGE - 1), Err(EFAULT));
        assert!(!is_huge(AT));
        Ok(())
    }

    #[test]
    fn blocks_in_another_order_are_not_huge() -> Result {
        needs_huge_folios()?;
        attach()?;
        for kind in [HugePfns, EagerHugePfns, HugePages] {
            let mut object = Object::large(kind, HUGE)?;
            let mut pages = KVec::with_capacity(HUGE, GFP_KERNEL)?;
            for page in object.array.pages() {
                pages.push(page.as_ptr(), GFP_KERNEL)?;
            }
            // Within a group of those that are looked at together, across two, and at its borders.
            for (a, b) in [
                (1, 2),
                (7, 8),
                (15, 16),
                (31, 300),
                (HUGE - 17, HUGE - 2),
                (100, 100),
            ] {
                pages.swap(a, b);
                // SAFETY: These are the pages of the array, which outlives its mappings.
                unsafe { object.show(&mut pages) };
                let map = object.mmap_at(AT, 0, HUGE, RW, FIXED)?;
                advise_huge(AT)?;
                for (i, shown) in [(0, 0), (a, b), (b, a), (200, 200), (HUGE - 1, HUGE - 1)] {
                    assert_eq!(map.read(i)?, pattern(shown));
                }
                assert_eq!(is_huge(AT), a == b);
                drop(map);
                pages.swap(a, b);
            }
            // Whole groups.
            for i in 8..16 {
                pages.swap(i, i + 8);
            }
            // SAFETY: These are the pages of the array, which outlives its mappings.
            unsafe { object.show(&mut pages) };
            let map = object.mmap_at(AT, 0, HUGE, RW, FIXED)?;
            advise_huge(AT)?;
            assert_eq!(map.read(8)?, pattern(16));
            assert!(!is_huge(AT));
        }
        Ok(())
    }

    /// Folios of so many pages, two of which follow each other, from a multiple of `align` pages
    /// on: the machine has just booted. Returns the first page of these two, too.
    fn neighbours(pages: usize, align: usize) -> Result<(KVec<PageArray>, *mut bindings::page)> {
        needs_huge_folios()?;
        let mut folios = KVec::<PageArray>::new();
        loop {
            let folio = PageArray::alloc(pages, AllocFlags::LARGE)?;
            let last = folio.pages()[0].as_ptr();
            assert_eq!(nr(last), pages);
            folios.push(folio, GFP_KERNEL)?;
            let has = |page| folios.iter().any(|folio| folio.pages()[0].as_ptr() == page);
            for lower in [last, last.wrapping_sub(pages)] {
                // As the PFN is: the structures of pages begin at an address that is.
                let pfn = lower as usize / size_of::<bindings::page>();
                if pfn % align == 0 && has(lower) && has(lower.wrapping_add(pages)) {
                    return Ok((folios, lower));
                }
            }
        }
    }

    #[test]
    fn memory_that_is_not_aligned_is_not_huge() -> Result {
        attach()?;
        let (_folios, block) = neighbours(HUGE, HUGE)?;
        let mut array = KVec::from_elem(block, HUGE, GFP_KERNEL)?;
        for (i, page) in array.iter_mut().enumerate() {
            *page = block.wrapping_add(1 + i);
            fill(*page, pattern(i));
        }
        for kind in [HugePfns, EagerHugePfns] {
            let mut object = Object::fresh(kind, HUGE, 0)?;
            // SAFETY: These are as many pages, which outlive the object and its mappings.
            unsafe { object.show(&mut array) };
            let map = object.mmap_at(AT, 0, HUGE, RW, FIXED)?;
            for i in [0, 200, HUGE - 1] {
                assert_eq!(map.read(i)?, pattern(i));
            }
            assert!(!is_huge(AT));
        }
        Ok(())
    }

    /// How a new mapping of `object` has page 200, and whether by a huge page.
    fn mode_of(object: &Object) -> Result<(usize, bool)> {
        clean(object.pages())?;
        let map = object.mmap_at(AT, 0, HUGE, RW, FIXED)?;
        advise_huge(AT)?;
        // Of small pages, this one has the other mapped along with it.
        assert_eq!(map.read(7)?, pattern(7));
        assert_eq!(map.read(200)?, pattern(200));
        Ok((cache_mode(AT + 200 * PAGE_SIZE), is_huge(AT)))
    }

    /// The cache mode of what the kernel itself inserts for this object.
    fn mode_of_kernel(cache: Cache, array: PageArray) -> Result<(usize, PageArray)> {
        let mut object = Object::of(FaultPfns, array, 0)?;
        (object.cache, object.by_kernel) = (cache, true);
        let (mode, huge) = mode_of(&object)?;
        assert!(!huge);
        Ok((mode, object.array))
    }

    #[test]
    fn pfns_have_the_cache_mode_that_the_kernel_chooses() -> Result {
        needs_huge_folios()?;
        attach()?;
        let mut modes = KVec::new();
        for cache in [Cache::Default, Cache::Uncached, WriteCombined] {
            let (mode, mut array) =
                mode_of_kernel(cache, PageArray::alloc(HUGE, AllocFlags::LARGE)?)?;
            for kind in [FaultPfns, EagerPfns, HugePfns, EagerHugePfns] {
                let mut object = Object::showing(kind, array, 0);
                object.cache = cache;
                let huge = matches!(kind, HugePfns | EagerHugePfns);
                assert_eq!(mode_of(&object)?, (mode, huge));
                array = object.array;
            }
            modes.push(mode, GFP_KERNEL)?;
        }
        // On x86 memory says how it is mapped.
        let differ = modes[0] != modes[2];
        assert_eq!(differ, !cfg!(CONFIG_X86));
        Ok(())
    }

    #[test]
    fn pfns_of_memory_that_is_not_cached_are_not_either() -> Result {
        needs_huge_folios()?;
        attach()?;
        let mut array = PageArray::alloc(HUGE, AllocFlags::LARGE)?;
        let mut pages = KVec::with_capacity(HUGE, GFP_KERNEL)?;
        for page in array.pages() {
            pages.push(page.as_ptr(), GFP_KERNEL)?;
        }
        write_combined(&mut pages, || {
            let mode;
            (mode, array) = mode_of_kernel(Cache::Default, array)?;
            for kind in [FaultPfns, EagerPfns, HugePfns, EagerHugePfns] {
                let object = Object::showing(kind, array, 0);
                let huge = matches!(kind, HugePfns | EagerHugePfns);
                assert_eq!(mode_of(&object)?, (mode, huge));
                array = object.array;
            }
            Ok(())
        })?
    }

    #[test]
    fn mixed_mappings_have_no_huge_pages() -> Result {
        attach()?;
        let mut object = Object::large(HugePages, HUGE)?;
        object.flags = flags::MIXEDMAP;
        let map = object.mmap_at(AT, 0, HUGE, RW, FIXED)?;
        advise_huge(AT)?;
        assert_eq!(map.read(200)?, pattern(200));
        assert!(!is_huge(AT));
        Ok(())
    }

    #[test]
    fn blocks_that_are_not_huge_are_mapped_at_once() -> Result {
        attach()?;
        let mut object = Object::fresh(EagerHugePfns, PAGES, 0)?;
        let map = object.mmap(0, PAGES, RW, SHARED)?;
        // Without an array no fault is served.
        object.base = usize::MAX;
        for i in 0..PAGES {
            assert_eq!(map.read(i)?, pattern(i));
        }
        Ok(())
    }

    #[test]
    fn huge_faults_alone_are_not_enough() -> Result {
        attach()?;
        let mut object = Object::fresh(EagerHugePfns, PAGES, 0)?;
        object.huge_only = true;
        assert_eq!(object.mmap(0, PAGES, RW, SHARED).err(), Some(EINVAL));
        Ok(())
    }

    /// Pages that a fault maps: a huge page, or 2 MiB of a larger one.
    const AROUND: usize = if BLOCK < SZ_2M {
        HUGE
    } else {
        SZ_2M / PAGE_SIZE
    };

    #[test]
    fn blocks_that_could_be_huge_are_filled_at_once() -> Result {
        attach()?;
        for kind in [HugePfns, HugePages] {
            let mut object = Object::large(kind, HUGE)?;
            object.fallback = true;
            let map = object.mmap_at(AT, 0, HUGE, RW, FIXED)?;
            advise_huge(AT)?;
            assert_eq!(map.read(7)?, pattern(7));
            // Without an array no further fault is served.
            object.base = usize::MAX;
            for i in [0, 8, AROUND - 1] {
                assert_eq!(map.read(i)?, pattern(i));
            }
            assert!(!is_huge(AT));
        }
        Ok(())
    }

    #[test]
    fn huge_pages_that_came_first_stay() -> Result {
        needs_huge_folios()?;
        attach()?;
        for kind in [HugePfns, HugePages] {
            let mut object = Object::large(kind, HUGE)?;
            (object.fallback, object.overtaken) = (true, true);
            let map = object.mmap_at(AT, 0, HUGE, RW, FIXED)?;
            assert_eq!(map.read(7)?, pattern(7));
            assert!(is_huge(AT));
            assert_eq!(map.read(HUGE - 1)?, pattern(HUGE - 1));
        }
        Ok(())
    }

    #[test]
    fn huge_blocks_of_all_kinds() -> Result {
        needs_huge_folios()?;
        attach()?;
        for kind in [HugePfns, EagerHugePfns, HugePages] {
            let object = Object::large(kind, 3 * HUGE)?;
            let page = |i: usize| object.array.pages()[i].as_ptr();
            // The machine has just booted.
            assert_eq!([nr(page(0)), nr(page(HUGE))], [HUGE; 2]);
            // The last 12 pages of the first block, the second, and a bit of the third.
            let map = object.mmap_at(AT - 12 * PAGE_SIZE, HUGE - 12, HUGE + 88, RW, FIXED)?;
            advise_huge(AT)?;
            assert!(!is_huge(AT));
            for i in [300, 0, 11, 12, HUGE + 11, HUGE + 12, HUGE + 87] {
                assert_eq!(map.read(i)?, pattern(HUGE - 12 + i));
            }
            assert!(!is_huge(AT - PAGE_SIZE));
            assert!(is_huge(AT));
            assert!(!is_huge(AT + BLOCK));
            assert_eq!(
                refs(page(HUGE)),
                HUGE as c_int + c_int::from(kind.is_referenced())
            );
            assert_eq!(
                map.pin(),
                if kind.is_referenced() {
                    1
                } else {
                    EFAULT.to_errno()
                }
            );
            map.write(300, 0xee)?;
            assert_eq!(first(page(HUGE + 288)), 0xee);
            // The block is split, and mapped by pages again.
            // SAFETY: We are attached to the mm of the test.
            unsafe { bindings::vm_munmap(AT + 5 * PAGE_SIZE, PAGE_SIZE) };
            assert_eq!(refs(page(HUGE)), HUGE as c_int);
            for i in [12, 16, 18, 300, HUGE + 11] {
                let byte = if i == 300 {
                    0xee
                } else {
                    pattern(HUGE - 12 + i)
                };
                assert_eq!(map.read(i)?, byte);
            }
            assert!(!is_huge(AT));
            assert_eq!(map.read(17), Err(EFAULT));
            drop(map);
            assert_eq!([refs(page(0)), refs(page(HUGE))], [HUGE as c_int; 2]);
        }
        Ok(())
    }

    #[test]
    fn faults_of_another_kind_than_set_up_fail() -> Result {
        needs_huge_folios()?;
        attach()?;
        for (set_up, other) in [
            (FaultPfns, FaultPages),
            (FaultPages, FaultPfns),
            (HugePfns, HugePages),
            (HugePages, HugePfns),
        ] {
            let mut object = Object::large(set_up, HUGE)?;
            let map = object.mmap_at(AT, 0, HUGE, RW, FIXED)?;
            advise_huge(AT)?;
            object.kind = other;
            assert_eq!(map.read(7), Err(EFAULT));
            assert_eq!(refs(object.array.pages()[0].as_ptr()), HUGE as c_int);
        }
        Ok(())
    }

    #[test]
    fn faults_of_larger_orders_have_no_page_table() -> Result {
        attach()?;
        for kind in [HugePfns, HugePages] {
            for small in [false, true] {
                let mut object = Object::large(kind, HUGE)?;
                object.small = small;
                // Nothing else is mapped in this part of the address space.
                let map = object.mmap_at(1 << 40, 0, HUGE, RW, FIXED)?;
                advise_huge(map.start)?;
                assert_eq!(map.read(7)?, pattern(7));
            }
        }
        Ok(())
    }

    #[test]
    fn huge_pages_are_whole_folios() -> Result {
        attach()?;
        let mut object = Object::large(HugePages, 2 * HUGE)?;
        // Aligned addresses, but not aligned memory, and the other way round.
        for (at, pgoff) in [(AT, 1), (AT + PAGE_SIZE, 0)] {
            let map = object.mmap_at(at, pgoff, 2 * HUGE - 1, RW, FIXED)?;
            advise_huge(at)?;
            assert_eq!(map.read(HUGE + 188)?, pattern(pgoff + HUGE + 188));
            assert!(!is_huge(AT) && !is_huge(AT + BLOCK));
        }
        // Memory like a huge page, but of the file that it is in.
        let file = TestFile::huge_pattern(HUGE)?;
        object.array = PageArray::from_shmem(file.file(), 0, HUGE, ShmemFlags::empty())?;
        object.part = 0..HUGE;
        object.claim = HUGE;
        let map = object.mmap_at(AT, 0, HUGE, RW, FIXED)?;
        advise_huge(AT)?;
        assert_eq!(map.read(0), Err(EFAULT));
        assert!(!is_huge(AT));
        Ok(())
    }

    #[test]
    fn blocks_of_smaller_folios_are_not_huge() -> Result {
        attach()?;
        // Aligned as one.
        let (_folios, block) = neighbours(HUGE / 2, HUGE)?;
        let mut pages = KVec::from_elem(block, HUGE, GFP_KERNEL)?;
        for (i, page) in pages.iter_mut().enumerate() {
            *page = page.wrapping_add(i);
            fill(*page, pattern(i));
        }
        let mut object = Object::fresh(HugePages, HUGE, 0)?;
        // SAFETY: These are as many pages, which outlive the object and its mappings.
        unsafe { object.show(&mut pages) };
        let map = object.mmap_at(AT, 0, HUGE, RW, FIXED)?;
        advise_huge(AT)?;
        assert_eq!(map.read(300)?, pattern(300));
        assert!(!is_huge(AT));
        Ok(())
    }

    #[test]
    fn blocks_of_drivers_are_not_huge() -> Result {
        needs_huge_folios()?;
        attach()?;
        // Aligned and contiguous, but not one folio, or not one for page tables.
        for gfp in [
            bindings::GFP_KERNEL,
            bindings::GFP_KERNEL | 1 << bindings::___GFP_COMP_BIT, // __GFP_COMP
        ] {
            // SAFETY: It may sleep here.
            let block = unsafe { bindings::alloc_pages(gfp, PMD_ORDER) };
            assert!(!block.is_null());
            fill(block, pattern(0));
            let mut array = KVec::from_elem(block, HUGE, GFP_KERNEL)?;
            for (i, page) in array.iter_mut().enumerate() {
                *page = block.wrapping_add(i);
            }
            let mut object = Object::fresh(HugePages, HUGE, 0)?;
            // SAFETY: These are as many pages, which outlive the object and its mappings.
            unsafe { object.show(&mut array) };
            let map = object.mmap_at(AT, 0, HUGE, RW, FIXED)?;
            advise_huge(AT)?;
            assert_eq!(map.read(0)?, pattern(0));
            assert!(!is_huge(AT));
            drop(map);
            assert_eq!(refs(block), 1);
            // SAFETY: The mapping has gone.
            unsafe { bindings::__free_pages(block, PMD_ORDER) };
        }
        Ok(())
    }

    #[test]
    fn neighbours_that_cannot_be_mapped_are_left_out() -> Result {
        attach()?;
        let file = TestFile::pattern(1)?;
        let (mut object, page) = (
            Object::fresh(FaultPages, 2, 0)?,
            file.find(0).ok_or(ENOENT)?,
        );
        let mut array = [object.array.pages()[0].as_ptr(), page.as_ptr()];
        // SAFETY: These are two pages, which outlive the mappings of the object.
        unsafe { object.show(&mut array) };
        let map = object.mmap(0, 2, RW, SHARED)?;
        // Nor is anything mapped for it.
        assert_eq!(map.read(1), Err(EFAULT));
        object.base = usize::MAX;
        assert_eq!(map.read(0), Err(EFAULT));
        object.base = 0;
        assert_eq!(map.read(0)?, pattern(0));
        assert_eq!(map.read(1), Err(EFAULT));
        Ok(())
    }

    #[test]
    fn a_part_of_the_array_maps_less() -> Result {
        attach()?;
        for kind in [FaultPfns, FaultPages] {
            let mut object = Object::fresh(kind, PAGES, 0)?;
            let map = object.mmap_at(AT, 0, PAGES, RW, FIXED)?;
            (object.part, object.base) = (8..10, 8);
            assert_eq!(map.read(9)?, pattern(9));
            // Without an array no further fault is served.
            object.base = usize::MAX;
            assert_eq!(map.read(8)?, pattern(8));
            assert_eq!(map.read(7), Err(EFAULT));
            assert_eq!(map.read(10), Err(EFAULT));
        }
        Ok(())
    }

    #[test]
    fn pages_that_a_driver_has_already() -> Result {
        attach()?;
        // As TTM has them: of one allocation, which is not compound.
        // SAFETY: It may sleep here.
        let block = unsafe { bindings::alloc_pages(bindings::GFP_KERNEL, 2) };
        assert!(!block.is_null());
        let mut array: [_; 4] = core::array::from_fn(|i| block.wrapping_add(i));
        for (i, page) in array.iter().enumerate() {
            fill(*page, pattern(i));
        }
        for kind in [FaultPfns, EagerPfns, FaultPages, EagerPages] {
            let mut object = Object::fresh(kind, 4, 0)?;
            // SAFETY: These are four pages, which outlive the object and its mappings.
            unsafe { object.show(&mut array) };
            let map = object.mmap(0, 4, RW, SHARED);
            if kind == EagerPages {
                assert_eq!(map.err(), Some(EINVAL));
                continue;
            }
            let map = map?;
            assert_eq!(map.read(0)?, pattern(0));
            // No references can be taken on the others.
            let byte = if kind == FaultPages {
                Err(EFAULT)
            } else {
                Ok(pattern(3))
            };
            assert_eq!(map.read(3), byte);
            drop(map);
            assert_eq!(refs(block), 1);
        }
        // SAFETY: The mappings have gone.
        unsafe { bindings::__free_pages(block, 2) };
        Ok(())
    }
}
