// SPDX-License-Identifier: GPL-2.0
// error[E0596]
//! Who pins must have the array to itself: the driver's lock proves it.
use kernel::prelude::*;
use pagekit_pin::PinArray;

/// Pins without exclusion.
pub fn wrong(pins: &PinArray) -> Result {
    pins.pin_user(0, 1)
}
