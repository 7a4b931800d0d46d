// SPDX-License-Identifier: GPL-2.0
// ok
//! What must compile: owners and views go to other threads, views can be cut.
use kernel::prelude::*;
use pagekit_pages::{Marks, PageArray};
use pagekit_pin::{PinArray, PinFlags};
use pagekit_view::PageRef;

const fn shared<T: Send + Sync>() {}

const _: () = shared::<PageArray>();
const _: () = shared::<PinArray>();
const _: () = shared::<PageRef<'static>>();

/// Uses a part of a view, then the owner again.
pub fn right(array: PageArray, pins: &mut PinArray) -> Result<usize> {
    let n = array.pages().get(1..).ok_or(EINVAL)?.len();
    array.put(Marks::DIRTY | Marks::ACCESSED);
    pins.pin_user(0, n)?;
    *pins = PinArray::with_capacity(n, PinFlags::WRITE)?;
    Ok(pins.pages().len())
}
