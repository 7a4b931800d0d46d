// SPDX-License-Identifier: GPL-2.0
// ok
//! What must compile: owners and views go to other threads, views can be cut. PFNs are mapped of
//! pages of all kinds.
use kernel::{bindings, prelude::*};
use pagekit_pages::{Marks, PageArray};
use pagekit_pin::{PinArray, PinFlags};
use pagekit_view::{runs, PageRef, PfnOnly};
use pagekit_vma::{fault_pfns, VmFault};

const fn shared<T: Send + Sync>() {}

const _: () = shared::<PageArray>();
const _: () = shared::<PinArray>();
const _: () = shared::<PageRef<'static>>();
const _: () = shared::<PageRef<'static, PfnOnly>>();

/// Uses a part of a view, then the owner again.
pub fn right(array: PageArray, pins: &mut PinArray) -> Result<usize> {
    let n = array.pages().get(1..).ok_or(EINVAL)?.len();
    array.put(Marks::DIRTY | Marks::ACCESSED);
    pins.pin_user(0, n)?;
    *pins = PinArray::with_capacity(n, PinFlags::WRITE)?;
    Ok(pins.pages().len())
}

/// Maps what a pool has, or what this has itself.
pub fn either(
    vmf: &VmFault,
    pool: &[PageRef<'_, PfnOnly>],
    own: &PageArray,
) -> bindings::vm_fault_t {
    if runs(pool).count() == 1 {
        // SAFETY: The pages stay until the mapping is gone.
        unsafe { fault_pfns(vmf, pool, 0) }
    } else {
        // SAFETY: The pages stay until the mapping is gone.
        unsafe { fault_pfns(vmf, own.pages(), 0) }
    }
}
