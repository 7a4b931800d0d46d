// SPDX-License-Identifier: GPL-2.0
//! What is special about nouveau_style.

use anyhow::{ensure, Result};
use pagekit_user::style::Object;

use crate::env::Env;
use crate::groups::Case;
use crate::style::{pins_from_creation, unevictable_from_creation, vmaps, ODD_SIZE};

pub const CASES: &[Case] = &[
    Case::new("pins", pins_from_creation).smoke(),
    Case::new("unevictable", unevictable_from_creation).smoke(),
    Case::new("kernel_map_is_kept", kernel_map_is_kept),
];

/// From its first use to the release of the object.
fn kernel_map_is_kept(env: &Env) -> Result<()> {
    let object = Object::new(&env.device, ODD_SIZE)?;
    ensure!(vmaps(ODD_SIZE)? == 0, "mapped before use");
    for _ in 0..2 {
        object.read(0, &mut [0])?;
        ensure!(vmaps(ODD_SIZE)? == 1, "not kept");
    }
    drop(object);
    ensure!(vmaps(ODD_SIZE)? == 0, "kept after release");
    Ok(())
}
