// SPDX-License-Identifier: GPL-2.0
// error[E0308]
//! Bare pointers are no view.
use kernel::{bindings, mm::virt::VmaNew, prelude::*};
use pagekit_vma::map_pages;

/// Maps whatever is there.
pub fn wrong(vma: &VmaNew, pages: &[*mut bindings::page]) -> Result {
    map_pages(vma, pages, 0)
}
