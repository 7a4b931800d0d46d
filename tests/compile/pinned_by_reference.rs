// SPDX-License-Identifier: GPL-2.0
// error[E0308]
//! Pinned pages are mapped as PFNs only: whoever pins them may not be who may write to them.
use kernel::{mm::virt::VmaNew, prelude::*};
use pagekit_pin::PinArray;
use pagekit_vma::map_pages;

/// Has the pages written to, without a promise that this may be.
pub fn wrong(vma: &VmaNew, pins: &PinArray) -> Result {
    map_pages(vma, pins.pages(), 0)
}
