// SPDX-License-Identifier: GPL-2.0
// error[E0308]
//! Pages of a pool, which has no look at their reference counts, are mapped as PFNs only.
use core::ptr::NonNull;
use kernel::{bindings, mm::virt::VmaNew, prelude::*};
use pagekit_view::PageRef;
use pagekit_vma::map_pages;

/// Has the mapping hold references that the pool knows nothing of.
pub fn wrong(vma: &VmaNew, pool: NonNull<*mut bindings::page>, len: usize) -> Result {
    // SAFETY: The pool keeps them.
    map_pages(vma, unsafe { PageRef::pfns_from_raw(pool, len) }, 0)
}
