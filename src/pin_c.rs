// SPDX-License-Identifier: GPL-2.0

//! The helper's functions for C, which `include/pagekit.h` documents.

#![expect(
    clippy::missing_safety_doc,
    reason = "The header says what callers must do."
)]

use super::*;
use core::mem::ManuallyDrop;
use kernel::error::from_result;

/// A [`PinArray`] whose memory is C's.
#[repr(C)]
struct pagekit_pins {
    pages: *mut *mut bindings::page,
    count: c_ulong,
    unordered: bool,
}

/// [`PinArray::pin_memfd`].
#[no_mangle]
unsafe extern "C" fn pagekit_pin_memfd(
    pins: *mut pagekit_pins,
    memfd: *mut bindings::file,
    pgoff: c_ulong,
    count: c_ulong,
) -> c_int {
    // SAFETY: The caller has the file open for the time of the call.
    let memfd = unsafe { LocalFile::from_raw_file(memfd) };
    // SAFETY: The caller has room for `count` more behind what is pinned, and nobody else uses it.
    unsafe { with_array(pins, count, |array| array.pin_memfd(memfd, pgoff, count)) }
}

/// [`PinArray::pin_user`].
#[no_mangle]
unsafe extern "C" fn pagekit_pin_user(
    pins: *mut pagekit_pins,
    addr: c_ulong,
    count: c_ulong,
    flags: c_uint,
) -> c_int {
    let pin = |array: &mut PinArray| {
        // The array is there.
        array.flags = PinFlags::from_bits(flags)
            .filter(|flags| !flags.contains(PinFlags::RETRY_MAYFAIL))
            .ok_or(EINVAL)?;
        array.pin_user(addr, count)
    };
    // SAFETY: The caller has room for `count` more behind what is pinned, and nobody else uses it.
    unsafe { with_array(pins, count, pin) }
}

/// [`PinArray::put`], all but the memory.
#[no_mangle]
unsafe extern "C" fn pagekit_unpin(pins: *mut pagekit_pins, flags: c_uint) {
    // SAFETY: If it is not null, it is an array that nobody else uses.
    if unsafe { pins.as_ref() }.is_none_or(|pins| pins.count == 0) {
        return;
    }
    let unpin = |array: &mut PinArray| {
        array.unpin_from(0, Marks::from_bits_retain(flags));
        array.ordered = true;
        Ok(())
    };
    // SAFETY: What is pinned is in memory of the caller's, which nobody else uses.
    unsafe { with_array(pins, 0, unpin) };
}

/// Runs `f` on an array of the caller's. It stays that, with what is pinned in it.
///
/// # Safety
///
/// `pins` must be an array of which `pages` is memory that `kvfree()` may free, with `count`
/// entries that the functions above have pinned, and room for `more`. Nobody else may use it during
/// the call.
unsafe fn with_array(
    pins: *mut pagekit_pins,
    more: usize,
    f: impl FnOnce(&mut PinArray) -> Result,
) -> c_int {
    // SAFETY: It is valid, and nobody else uses it.
    let pins = unsafe { &mut *pins };
    let room = pins.count.wrapping_add(more);
    // SAFETY: Its memory comes from the kernel's allocators, and has `count` pages that are pinned,
    // and this much room.
    let pages = unsafe { PageVec::from_raw_parts(pins.pages, pins.count, room) };
    // INVARIANT: The functions above have pinned each entry once, and have said how they lie.
    let mut array = ManuallyDrop::new(PinArray {
        pages,
        ordered: !pins.unordered,
        flags: PinFlags::empty(),
    });
    let result = from_result(|| f(&mut array).map(|()| 0));
    pins.count = array.pages().len();
    pins.unordered = !array.ordered;
    result
}
