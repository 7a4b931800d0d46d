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
) -> *mut *mut bindings::page {
    // SAFETY: The caller has the file open.
    into_c(PageArray::from_shmem(
        unsafe { LocalFile::from_raw_file(file) },
        pgoff,
        count,
        ShmemFlags::empty(),
    ))
}

/// [`PageArray::alloc`].
#[no_mangle]
extern "C" fn pagekit_alloc_pages(
    count: c_ulong,
    account: bool,
    large: bool,
) -> *mut *mut bindings::page {
    let mut flags = AllocFlags::empty();
    flags.set(AllocFlags::ACCOUNT, account);
    flags.set(AllocFlags::LARGE, large);
    into_c(PageArray::alloc(count, flags))
}

/// [`PageArray::put`].
#[no_mangle]
unsafe extern "C" fn pagekit_put_pages(
    pages: *mut *mut bindings::page,
    count: c_ulong,
    dirty: bool,
    accessed: bool,
) {
    let marks = Marks::from_bits_retain(u32::from(dirty) * 32 | u32::from(accessed) * 64);
    // SAFETY: The caller gives back what `into_c` has returned, with room for `count` at least.
    let pages = unsafe { PageVec::from_raw_parts(pages, count, count) };
    // INVARIANT: The entries and their references are those of the array that `into_c` was given.
    PageArray {
        pages,
        marks: Marks::empty(),
    }
    .put(marks);
}

/// Leaves the entries, their memory and their references to the caller, or C's `ERR_PTR()`.
fn into_c(array: Result<PageArray>) -> *mut *mut bindings::page {
    match array {
        Ok(array) => ManuallyDrop::new(array).pages().as_ptr().cast_mut().cast(),
        Err(e) => e.to_ptr(),
    }
}
