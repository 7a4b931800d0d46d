// SPDX-License-Identifier: GPL-2.0
//! What is special about nouveau_style.

use anyhow::{ensure, Result};
use pagekit_user::style::{Object, ACCESS_NOWAIT, CREATE_SHMEM_MMAP, CREATE_USERPTR};
use rustix::io::Errno;

use crate::env::{Case, Env};
use crate::style::{pins_from_creation, vmaps, written, ODD_SIZE};

pub const CASES: &[Case] = &[
    Case::new("pins", pins_from_creation).smoke(),
    Case::new("kernel_map_is_kept", kernel_map_is_kept),
    Case::new("not_its_own", not_its_own),
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

fn not_its_own(env: &Env) -> Result<()> {
    for flags in [CREATE_SHMEM_MMAP, CREATE_USERPTR] {
        let result = Object::with(&env.device, 1, flags, 0);
        let error = result.err().and_then(|e| e.downcast::<Errno>().ok());
        ensure!(error == Some(Errno::INVAL), "create {flags}: {error:?}");
    }
    let object = written(env, 1, 1)?;
    ensure!(object.access(0, [0].as_mut_ptr(), 1, ACCESS_NOWAIT) == Err(Errno::INVAL));
    ensure!(object.wedge(0) == Err(Errno::NOTTY));
    ensure!(object.reset() == Err(Errno::NOTTY));
    ensure!(object.shrink(0) == Err(Errno::NOTTY));
    Ok(())
}
