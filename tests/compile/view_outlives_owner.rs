// SPDX-License-Identifier: GPL-2.0
// error[E0515]
//! A view must not be returned without its owner.
use kernel::prelude::*;
use pagekit_pages::{AllocFlags, PageArray};
use pagekit_view::PageRef;

/// Returns freed pages.
pub fn wrong<'a>() -> Result<&'a [PageRef<'a>]> {
    let array = PageArray::alloc(1, AllocFlags::empty())?;
    Ok(array.pages())
}
