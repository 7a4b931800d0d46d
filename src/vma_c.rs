// SPDX-License-Identifier: GPL-2.0

//! The helper's functions for C, which `include/pagekit.h` documents.

#![expect(
    clippy::missing_safety_doc,
    reason = "The header says what callers must do."
)]

use super::*;
use kernel::error::from_result;

/// [`setup_pfns`].
#[no_mangle]
unsafe extern "C" fn pagekit_setup_pfns(
    vma: *mut bindings::vm_area_struct,
    count: c_ulong,
    base: c_ulong,
) -> c_int {
    // SAFETY: The caller is an mmap operation, and keeps to what is said there.
    from_result(|| unsafe { setup_pfns(VmaNew::from_raw(vma), count, base).map(|()| 0) })
}

/// [`map_pfns`].
#[no_mangle]
unsafe extern "C" fn pagekit_map_pfns(
    vma: *mut bindings::vm_area_struct,
    pages: *mut *mut bindings::page,
    count: c_ulong,
    base: c_ulong,
) -> c_int {
    // SAFETY: As above.
    from_result(|| unsafe {
        map_pfns(VmaNew::from_raw(vma), array::<PfnOnly>(pages, count), base).map(|()| 0)
    })
}

/// [`fault_pfns`].
#[no_mangle]
unsafe extern "C" fn pagekit_fault_pfns(
    vmf: *mut bindings::vm_fault,
    pages: *mut *mut bindings::page,
    count: c_ulong,
    base: c_ulong,
) -> bindings::vm_fault_t {
    // SAFETY: The caller is a fault operation, and keeps to what is said there.
    unsafe { fault_pfns(VmFault::from_raw(vmf), array::<PfnOnly>(pages, count), base) }
}

/// [`huge_fault_pfns`].
#[no_mangle]
unsafe extern "C" fn pagekit_huge_fault_pfns(
    vmf: *mut bindings::vm_fault,
    order: c_uint,
    pages: *mut *mut bindings::page,
    count: c_ulong,
    base: c_ulong,
) -> bindings::vm_fault_t {
    // SAFETY: As above.
    unsafe {
        huge_fault_pfns(
            VmFault::from_raw(vmf),
            order,
            array::<PfnOnly>(pages, count),
            base,
        )
    }
}

/// [`setup_pages`].
#[no_mangle]
unsafe extern "C" fn pagekit_setup_pages(
    vma: *mut bindings::vm_area_struct,
    count: c_ulong,
    base: c_ulong,
) -> c_int {
    // SAFETY: The caller is an mmap operation.
    from_result(|| setup_pages(unsafe { VmaNew::from_raw(vma) }, count, base).map(|()| 0))
}

/// [`map_pages`].
#[no_mangle]
unsafe extern "C" fn pagekit_map_pages(
    vma: *mut bindings::vm_area_struct,
    pages: *mut *mut bindings::page,
    count: c_ulong,
    base: c_ulong,
) -> c_int {
    // SAFETY: The caller is an mmap operation, with an array of pages that exist.
    let (vma, pages) = unsafe { (VmaNew::from_raw(vma), array(pages, count)) };
    from_result(|| map_pages(vma, pages, base).map(|()| 0))
}

/// [`fault_pages`].
#[no_mangle]
unsafe extern "C" fn pagekit_fault_pages(
    vmf: *mut bindings::vm_fault,
    pages: *mut *mut bindings::page,
    count: c_ulong,
    base: c_ulong,
) -> bindings::vm_fault_t {
    // SAFETY: The caller is a fault operation, with an array of pages that exist.
    let (vmf, pages) = unsafe { (VmFault::from_raw(vmf), array(pages, count)) };
    fault_pages(vmf, pages, base)
}

/// [`huge_fault_pages`].
#[no_mangle]
unsafe extern "C" fn pagekit_huge_fault_pages(
    vmf: *mut bindings::vm_fault,
    order: c_uint,
    pages: *mut *mut bindings::page,
    count: c_ulong,
    base: c_ulong,
) -> bindings::vm_fault_t {
    // SAFETY: The caller is a fault operation, and keeps to what is said there.
    unsafe { huge_fault_pages(VmFault::from_raw(vmf), order, array(pages, count), base) }
}

/// An array of the caller's. NULL is one without pages.
///
/// # Safety
///
/// Unless it is null, `pages` must be `count` pointers to pages that are what the invariants of
/// [`PageRef`] ask for. Nobody may change them during `'a`.
unsafe fn array<'a, Of>(pages: *mut *mut bindings::page, count: usize) -> &'a [PageRef<'a, Of>] {
    if pages.is_null() {
        return &[];
    }
    // SAFETY: The caller promises `count` valid pointers that nobody changes; the type is
    // transparent.
    // INVARIANT: The caller promises what it asks for.
    unsafe { core::slice::from_raw_parts(pages.cast(), count) }
}
