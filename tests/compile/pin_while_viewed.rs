// SPDX-License-Identifier: GPL-2.0
// error[E0502]
//! An owner must not change while a view of it is alive.
use kernel::{fs::LocalFile, prelude::*};
use pagekit_pin::PinArray;

/// Adds pages under the eyes of somebody.
pub fn wrong(pins: &mut PinArray, file: &LocalFile) -> Result<usize> {
    let view = pins.pages();
    pins.pin_memfd(file, 0, 1)?;
    Ok(view.len())
}
