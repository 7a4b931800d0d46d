// SPDX-License-Identifier: GPL-2.0

//! The helper's functions for C, which `include/pagekit.h` documents.

#![expect(
    clippy::missing_safety_doc,
    reason = "The header says what callers must do."
)]

use super::*;
use core::mem::ManuallyDrop;
use kernel::error::from_result;

/// [`PinArray::pin_memfd`].
#[no_mangle]
unsafe extern "C" fn pagekit_pin_memfd(
    pages: *mut *mut bindings::page,
    pinned: c_ulong,
    memfd: *mut bindings::file,
    pgoff: c_ulong,
    count: c_ulong,
) -> c_int {
    // SAFETY: As the caller promises, who has the file open.
    let (mut array, memfd) = unsafe {
        (
            borrow(pages, pinned, count, PinFlags::empty()),
            LocalFile::from_raw_file(memfd),
        )
    };
    from_result(|| array.pin_memfd(memfd, pgoff, count).map(|()| 0))
}

/// [`PinArray::pin_user`].
#[no_mangle]
unsafe extern "C" fn pagekit_pin_user(
    pages: *mut *mut bindings::page,
    pinned: c_ulong,
    addr: c_ulong,
    count: c_ulong,
    write: bool,
) -> c_int {
    let mut flags = PinFlags::empty();
    flags.set(PinFlags::WRITE, write);
    // SAFETY: As the caller promises.
    let mut array = unsafe { borrow(pages, pinned, count, flags) };
    from_result(|| array.pin_user(addr, count).map(|()| 0))
}

/// Dropping the [`PinArray`], all but its memory.
#[no_mangle]
unsafe extern "C" fn pagekit_unpin(pages: *mut *mut bindings::page, count: c_ulong, dirty: bool) {
    if !pages.is_null() {
        let marks = if dirty { Marks::DIRTY } else { Marks::empty() };
        // SAFETY: As the caller promises.
        unsafe { borrow(pages, count, 0, PinFlags::empty()) }.unpin_from(0, marks);
    }
}

/// An array of the caller's. It stays that, with what is pinned in it.
///
/// # Safety
///
/// `pages` must be memory that `kvfree()` may free, with `pinned` entries that the functions above
/// have pinned, and room for `more`. Nobody else may use it while this is in use.
unsafe fn borrow(
    pages: *mut *mut bindings::page,
    pinned: usize,
    more: usize,
    flags: PinFlags,
) -> ManuallyDrop<PinArray> {
    // SAFETY: As the caller promises.
    let pages = unsafe { PageVec::from_raw_parts(pages, pinned, pinned.wrapping_add(more)) };
    // INVARIANT: As the caller promises; and nothing is said of their order.
    ManuallyDrop::new(PinArray {
        pages,
        ordered: false,
        flags,
    })
}
