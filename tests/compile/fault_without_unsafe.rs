// SPDX-License-Identifier: GPL-2.0
// error[E0133]
//! As for faults.
use kernel::bindings;
use pagekit_view::PageRef;
use pagekit_vma::{fault_pfns, VmFault};

/// Promises nothing.
pub fn wrong(vmf: &VmFault, pages: &[PageRef<'_>]) -> bindings::vm_fault_t {
    fault_pfns(vmf, pages, 0)
}
