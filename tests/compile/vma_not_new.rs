// SPDX-License-Identifier: GPL-2.0
// error[E0308]
//! A VMA that is only locked for reading must not be set up.
use kernel::{mm::virt::VmaRef, prelude::*};
use pagekit_vma::setup_pages;

/// Changes a VMA that is in use.
pub fn wrong(vma: &VmaRef) -> Result {
    setup_pages(vma, 1, 0)
}
