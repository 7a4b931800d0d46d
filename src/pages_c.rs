// SPDX-License-Identifier: GPL-2.0

//! The helper's functions for C, which `include/pagekit.h` documents.

#![expect(
    clippy::missing_safety_doc,
    reason = "The header says what callers must do."
)]

use super::*;
use core::mem::ManuallyDrop;

/// [`PageArray::from_shmem`].
#[no_mangle]
unsafe extern "C" fn pagekit_get_pages(
    file: *mut bindings::file,
    pgoff: c_ulong,
    count: c_ulong,
    flags: c_uint,
) -> *mut *mut bindings::page {
    // SAFETY: The caller has the file open for the time of the call.
    let file = unsafe { LocalFile::from_raw_file(file) };
    // What they are marked with C says when it puts them.
    let flags = ShmemFlags::from_bits(flags).filter(|flags| !flags.contains(ShmemFlags::WRITE));
    into_c(
        flags
            .ok_or(EINVAL)
            .and_then(|flags| PageArray::from_shmem(file, pgoff, count, flags)),
    )
}

/// [`PageArray::alloc`].
#[no_mangle]
extern "C" fn pagekit_alloc_pages(count: c_ulong, flags: c_uint) -> *mut *mut bindings::page {
    let flags = AllocFlags::from_bits(flags).ok_or(EINVAL);
    into_c(flags.and_then(|flags| PageArray::alloc(count, flags)))
}

/// [`PageArray::put`].
#[no_mangle]
unsafe extern "C" fn pagekit_put_pages(
    pages: *mut *mut bindings::page,
    count: c_ulong,
    flags: c_uint,
) {
    if pages.is_null() {
        return;
    }
    // SAFETY: The caller gives back what `into_c` has returned, `count` pages in memory of the
    // kernel's allocator with room for them, and doesn't use it any more.
    let pages = unsafe { PageVec::from_raw_parts(pages, count, count) };
    // INVARIANT: The entries and their references are those of the array that `into_c` was given.
    drop(PageArray {
        pages,
        marks: Marks::from_bits_retain(flags),
    });
}

/// Leaves the entries, their memory and their references to the caller, or C's `ERR_PTR()`.
fn into_c(array: Result<PageArray>) -> *mut *mut bindings::page {
    match array {
        Ok(array) => ManuallyDrop::new(array).pages().as_ptr().cast_mut().cast(),
        Err(e) => e.to_ptr(),
    }
}
