// SPDX-License-Identifier: GPL-2.0

//! KUnit suite `pagekit_examples`: the examples in the doc comments of the helpers. They see what
//! is in this file.

#![allow(unused_imports, reason = "The examples decide what they use.")]

use kernel::{
    bindings,
    bindings::vm_fault_t,
    error::{
        from_err_ptr,
        from_result,
        to_result, //
    },
    fs::LocalFile,
    mm::virt::VmaNew,
    page::PAGE_SIZE,
    prelude::*, //
};
use pagekit_pages::*;
use pagekit_pin::*;
use pagekit_view::*;
use pagekit_vma::*;

mod fixture;
use fixture::*;

module! {
    type: Module,
    name: "pagekit_examples_kunit",
    authors: ["The pagekit authors"],
    description: "KUnit tests of the examples in the documentation of pagekit",
    license: "GPL",
}

struct Module;

impl kernel::Module for Module {
    fn init(_module: &'static ThisModule) -> Result<Self> {
        Ok(Self)
    }
}

type HugeFault = fn(&VmFault, c_uint, &[PageRef<'_>]) -> vm_fault_t;

/// A driver with a fixed array of pages, and no more than these operations.
struct Driver {
    array: PageArray,
    mmap: fn(&VmaNew, &[PageRef<'_>]) -> Result,
    fault: fn(&VmFault, &[PageRef<'_>]) -> vm_fault_t,
    huge_fault: Option<HugeFault>,
}

const FOPS: bindings::file_operations = bindings::file_operations {
    mmap: Some(mmap),
    ..pin_init::zeroed()
};

const VM_OPS: &bindings::vm_operations_struct = &bindings::vm_operations_struct {
    fault: Some(fault),
    huge_fault: Some(huge_fault),
    ..pin_init::zeroed()
};

/// # Safety
///
/// To be called by the kernel, for a file that was made with a driver.
unsafe extern "C" fn mmap(file: *mut bindings::file, vma: *mut bindings::vm_area_struct) -> c_int {
    // SAFETY: The file was made with a driver, which outlives it.
    from_result(|| unsafe {
        let driver = &*(*file).private_data.cast::<Driver>();
        (*vma).vm_ops = VM_OPS;
        (*vma).vm_private_data = (*file).private_data;
        (driver.mmap)(VmaNew::from_raw(vma), driver.array.pages())?;
        Ok(0)
    })
}

/// # Safety
///
/// To be called by the kernel, for a fault in a VMA that `mmap` has set up.
unsafe extern "C" fn fault(vmf: *mut bindings::vm_fault) -> vm_fault_t {
    // SAFETY: The kernel passes a fault that is being handled. `mmap` has set the private data.
    unsafe {
        let vmf = VmFault::from_raw(vmf);
        let driver = &*(*vmf.vma().as_ptr()).vm_private_data.cast::<Driver>();
        (driver.fault)(vmf, driver.array.pages())
    }
}

/// # Safety
///
/// As for `fault`.
unsafe extern "C" fn huge_fault(vmf: *mut bindings::vm_fault, order: c_uint) -> vm_fault_t {
    // SAFETY: The kernel passes a fault that is being handled. `mmap` has set the private data.
    unsafe {
        let vmf = VmFault::from_raw(vmf);
        let driver = &*(*vmf.vma().as_ptr()).vm_private_data.cast::<Driver>();
        let Some(huge_fault) = driver.huge_fault else {
            return bindings::vm_fault_reason_VM_FAULT_FALLBACK;
        };
        huge_fault(vmf, order, driver.array.pages())
    }
}

impl Driver {
    fn new(mmap: fn(&VmaNew, &[PageRef<'_>]) -> Result) -> Result<Self> {
        Ok(Self {
            array: PageArray::alloc(2 * HUGE, AllocFlags::LARGE)?,
            mmap,
            fault: |_, _| bindings::vm_fault_reason_VM_FAULT_SIGBUS,
            huge_fault: None,
        })
    }

    fn fault(mut self, fault: fn(&VmFault, &[PageRef<'_>]) -> vm_fault_t) -> Self {
        self.fault = fault;
        self
    }

    fn huge_fault(mut self, huge_fault: HugeFault) -> Self {
        self.huge_fault = Some(huge_fault);
        self
    }

    /// Maps all pages from page 1 on in a process, and sees that they are the right ones. Returns
    /// whether those of the second block are mapped as one.
    fn shows_its_pages(self) -> Result<bool> {
        if self.huge_fault.is_some() {
            needs_huge_folios()?;
        }
        const BLOCK: usize = HUGE * PAGE_SIZE;
        const AT: usize = 256 * BLOCK;
        for (i, page) in self.array.pages().iter().enumerate() {
            fill(page.as_ptr(), pattern(i));
        }
        // SAFETY: This runs in a test.
        to_result(unsafe { bindings::kunit_attach_mm() })?;
        let file = TestFile::anon(&FOPS, (&raw const self).cast_mut().cast())?;
        let (start, len) = (AT + PAGE_SIZE, (2 * HUGE - 1) * PAGE_SIZE);
        // SAFETY: We are attached to an mm. Readable and writable; shared, at this address.
        let result = unsafe { bindings::vm_mmap(file.as_ptr(), start, len, 3, 0x11, PAGE_SIZE) };
        from_err_ptr(result as *mut u8)?;
        advise_huge(start)?;
        for i in [1, HUGE - 1, HUGE, HUGE + 188, 2 * HUGE - 1] {
            assert_eq!(get_user(AT + i * PAGE_SIZE)?, pattern(i));
        }
        let huge = is_huge(AT + BLOCK);
        // SAFETY: We are attached to an mm that nobody else uses.
        unsafe { bindings::vm_munmap(start, len) };
        Ok(huge)
    }
}

include!(env!("PAGEKIT_EXAMPLES"));
