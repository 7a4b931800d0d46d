// SPDX-License-Identifier: GPL-2.0
// error[E0597]
//! A copy of one entry must not outlive the owner either.
use pagekit_pages::PageArray;
use pagekit_view::PageRef;

/// Keeps a page that is gone.
pub fn wrong(make: impl Fn() -> PageArray) -> bool {
    let page: PageRef<'_>;
    {
        let array = make();
        page = array.pages()[0];
    }
    page.as_ptr().is_null()
}
