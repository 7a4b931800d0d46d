// SPDX-License-Identifier: GPL-2.0
// error[E0423]
//! A page must not be made of a pointer.
use core::{marker::PhantomData, ptr::NonNull};
use kernel::bindings;
use pagekit_view::PageRef;

/// Makes one up.
pub fn wrong(page: NonNull<bindings::page>) -> PageRef<'static> {
    PageRef(page, PhantomData)
}
