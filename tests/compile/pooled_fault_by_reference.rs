// SPDX-License-Identifier: GPL-2.0
// error[E0308]
//! As for faults.
use kernel::bindings;
use pagekit_view::{PageRef, PfnOnly};
use pagekit_vma::{fault_pages, VmFault};

/// Has the mapping hold references that the pool knows nothing of.
pub fn wrong(vmf: &VmFault, pages: &[PageRef<'_, PfnOnly>]) -> bindings::vm_fault_t {
    fault_pages(vmf, pages, 0)
}
