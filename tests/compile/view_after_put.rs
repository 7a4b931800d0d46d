// SPDX-License-Identifier: GPL-2.0
// error[E0505]
//! A view must not be used after its owner has released the pages.
use pagekit_pages::{Marks, PageArray};

/// Uses released pages.
pub fn wrong(array: PageArray) -> usize {
    let view = array.pages();
    array.put(Marks::DIRTY);
    view.len()
}
