// SPDX-License-Identifier: GPL-2.0
// error[E0133]
//! Who maps PFNs promises that the pages outlive the mapping.
use kernel::{mm::virt::VmaNew, prelude::*};
use pagekit_view::PageRef;
use pagekit_vma::map_pfns;

/// Promises nothing.
pub fn wrong(vma: &VmaNew, pages: &[PageRef<'_>]) -> Result {
    map_pfns(vma, pages, 0)
}
