// SPDX-License-Identifier: GPL-2.0
// error[E0505]
//! A view must not be used after its owner has unpinned the pages.
use pagekit_pin::PinArray;

/// Uses unpinned pages.
pub fn wrong(pins: PinArray) -> usize {
    let view = pins.pages();
    drop(pins);
    view.len()
}
