// SPDX-License-Identifier: GPL-2.0

//! The helper's functions for C, which `include/pagekit.h` documents.

#![expect(
    clippy::missing_safety_doc,
    reason = "The header says what callers must do."
)]

use super::*;
use kernel::error::from_result;

/// C's `PAGEKIT_READ_ONLY`.
const READ_ONLY: c_uint = 128;
/// C's `PAGEKIT_WRITE_COMBINE`.
const WRITE_COMBINE: c_uint = 256;

/// What all functions do first whose `flags` say who may write.
fn heed(vma: &VmaNew, flags: c_uint) -> Result {
    match flags {
        0 => Ok(()),
        READ_ONLY => keep_read_only(vma),
        _ => Err(EINVAL),
    }
}

/// The same for PFNs, which may be mapped past the caches.
///
/// # Safety
///
/// With [`WRITE_COMBINE`], as for [`write_combine`].
unsafe fn heed_pfns(vma: &VmaNew, flags: c_uint) -> Result {
    if flags & WRITE_COMBINE != 0 {
        // SAFETY: The caller promises what this asks for.
        unsafe { write_combine(vma) };
    }
    heed(vma, flags & !WRITE_COMBINE)
}

/// [`setup_pfns`], [`setup_pfns_ro`].
#[no_mangle]
unsafe extern "C" fn pagekit_setup_pfns(
    vma: *mut bindings::vm_area_struct,
    count: c_ulong,
    base: c_ulong,
    flags: c_uint,
) -> c_int {
    // SAFETY: The caller is an mmap operation, which makes `vma` no mixed mapping, nor writable
    // what may not be written to, nor write-combined what caches have not written back.
    from_result(|| unsafe {
        let vma = VmaNew::from_raw(vma);
        heed_pfns(vma, flags)?;
        setup_pfns(vma, count, base).map(|()| 0)
    })
}

/// [`map_pfns`], [`map_pfns_ro`].
#[no_mangle]
unsafe extern "C" fn pagekit_map_pfns(
    vma: *mut bindings::vm_area_struct,
    pages: *mut *mut bindings::page,
    count: c_ulong,
    base: c_ulong,
    flags: c_uint,
) -> c_int {
    // SAFETY: The caller is an mmap operation, which makes `vma` no mixed mapping, nor writable
    // what may not be written to, nor write-combined what caches have not written back. Its pages
    // stay until the file is released.
    from_result(|| unsafe {
        let vma = VmaNew::from_raw(vma);
        heed_pfns(vma, flags)?;
        map_pfns(vma, array::<PfnOnly>(pages, count), base).map(|()| 0)
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
    // SAFETY: The caller is a fault operation, to which `vmf` was passed. Its pages stay, in their
    // places, until the mapping is gone, and may be written to if the VMA may.
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
    // SAFETY: The caller is a fault operation, to which `vmf` was passed. Its pages stay, in their
    // places, until the mapping is gone, and may be written to if the VMA may. None is anonymous.
    unsafe {
        huge_fault_pfns(
            VmFault::from_raw(vmf),
            order,
            array::<PfnOnly>(pages, count),
            base,
        )
    }
}

/// [`setup_pages`], [`setup_pages_ro`].
#[no_mangle]
unsafe extern "C" fn pagekit_setup_pages(
    vma: *mut bindings::vm_area_struct,
    count: c_ulong,
    base: c_ulong,
    flags: c_uint,
) -> c_int {
    // SAFETY: The caller is an mmap operation, to which `vma` was passed.
    let vma = unsafe { VmaNew::from_raw(vma) };
    from_result(|| {
        heed(vma, flags)?;
        setup_pages(vma, count, base).map(|()| 0)
    })
}

/// [`map_pages`], [`map_pages_ro`].
#[no_mangle]
unsafe extern "C" fn pagekit_map_pages(
    vma: *mut bindings::vm_area_struct,
    pages: *mut *mut bindings::page,
    count: c_ulong,
    base: c_ulong,
    flags: c_uint,
) -> c_int {
    // SAFETY: The caller is an mmap operation, to which `vma` was passed, with an array of counted
    // pages.
    let (vma, pages) = unsafe { (VmaNew::from_raw(vma), array(pages, count)) };
    from_result(|| {
        heed(vma, flags)?;
        map_pages(vma, pages, base).map(|()| 0)
    })
}

/// [`fault_pages`].
#[no_mangle]
unsafe extern "C" fn pagekit_fault_pages(
    vmf: *mut bindings::vm_fault,
    pages: *mut *mut bindings::page,
    count: c_ulong,
    base: c_ulong,
) -> bindings::vm_fault_t {
    // SAFETY: The caller is a fault operation, to which `vmf` was passed, with an array of counted
    // pages.
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
    // SAFETY: The caller is a fault operation, to which `vmf` was passed, with an array of counted
    // pages and a lock that its other fault operation takes, too.
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
