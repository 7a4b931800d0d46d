// SPDX-License-Identifier: GPL-2.0
// error[E0308]
//! As for huge faults.
use kernel::{bindings, prelude::*};
use pagekit_view::{PageRef, PfnOnly};
use pagekit_vma::{huge_fault_pages, VmFault};

/// Has the mapping hold references that the pool knows nothing of.
pub fn wrong(vmf: &VmFault, order: c_uint, pages: &[PageRef<'_, PfnOnly>]) -> bindings::vm_fault_t {
    // SAFETY: A lock of the driver's is held.
    unsafe { huge_fault_pages(vmf, order, pages, 0) }
}
