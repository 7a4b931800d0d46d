// SPDX-License-Identifier: GPL-2.0
// error[E0423]
//! Flags must not be made of bits.
use pagekit_pin::PinFlags;

/// Asks for something internal.
pub fn wrong() -> PinFlags {
    PinFlags(0x80)
}
