// SPDX-License-Identifier: GPL-2.0
// error[E0133]
//! Vouching for a page is unsafe.
use core::ptr::NonNull;
use kernel::bindings;
use pagekit_view::PageRef;

/// Vouches for nothing.
pub fn wrong(page: NonNull<bindings::page>) -> PageRef<'static> {
    PageRef::from_raw(page)
}
