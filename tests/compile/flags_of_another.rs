// SPDX-License-Identifier: GPL-2.0
// error[E0308]
//! Flags of different functions don't mix.
use pagekit_pages::{AllocFlags, Marks};

/// Mixes them.
pub fn wrong() -> Marks {
    Marks::DIRTY | AllocFlags::LARGE
}
