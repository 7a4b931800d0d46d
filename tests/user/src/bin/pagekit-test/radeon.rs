// SPDX-License-Identifier: GPL-2.0
//! What is special about radeon_style.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{ensure, Result};
use pagekit_user::mapping::Mapping;
use pagekit_user::process::Child;
use pagekit_user::style::{Create, Object, ACCESS_NOWAIT, CREATE_USERPTR, MAP_READ};
use pagekit_user::{kernel, PAGE};
use rustix::io::{self, Errno};
use rustix::process::{setrlimit, Resource, Rlimit};

use crate::env::{Content, Env};
use crate::groups::Case;
use crate::style::{check, fill, pins_from_creation, unevictable_from_creation, vmaps, ODD_SIZE};

pub const CASES: &[Case] = &[
    Case::new("pins", pins_from_creation).smoke(),
    Case::new("unevictable", unevictable_from_creation).smoke(),
    Case::new("sharers", sharers).smoke(),
    Case::new("kernel_map_is_not_kept", kernel_map_is_not_kept),
    Case::new("nowait", nowait).smoke(),
    Case::new("userptr", userptr).smoke(),
    Case::new("userptr_memlock", userptr_memlock).smoke(),
    Case::new("userptr_memlock_outlives", userptr_memlock_outlives).smoke(),
    Case::new("userptr_outlives_process", userptr_outlives_process).smoke(),
];

/// Files that have the object, and devices attached to it.
fn sharers(env: &Env) -> Result<()> {
    let object = Object::new(&env.device, 4)?;
    let buf = object.export()?;
    let is = |sharers, attachments, mappings| {
        let info = object.info()?;
        let found = (info.sharers, info.attachments, info.mappings);
        ensure!(found == (sharers, attachments, mappings), "{info:?}");
        Ok(())
    };
    is(1, 0, 0)?;
    let other = Object::of("/dev/pagekit-nouveau", &buf)?;
    is(2, 1, 0)?;
    other.map(MAP_READ)?;
    is(2, 1, 1)?;
    let same = Object::of(&env.device, &buf)?;
    is(3, 1, 1)?;
    drop(other);
    is(2, 0, 0)?;
    drop(same);
    is(1, 0, 0)
}

fn kernel_map_is_not_kept(env: &Env) -> Result<()> {
    let object = Object::new(&env.device, ODD_SIZE)?;
    for _ in 0..2 {
        object.read(0, &mut [0])?;
        ensure!(vmaps(ODD_SIZE)? == 0, "kept");
    }
    Ok(())
}

/// Sooner or later two copies meet, and the one that doesn't wait fails.
fn nowait(env: &Env) -> Result<()> {
    const PAGES: usize = 4096;
    let object = Object::new(&env.device, PAGES)?;
    let mut byte = [0];
    object.access(0, byte.as_mut_ptr(), 1, ACCESS_NOWAIT)?;
    let stop = AtomicBool::new(false);
    let busy = std::thread::scope(|scope| {
        let copies = scope.spawn(|| {
            let mut bytes = vec![0; PAGES * PAGE];
            while !stop.load(Ordering::Relaxed) {
                object.read(0, &mut bytes)?;
            }
            io::Result::Ok(())
        });
        let start = Instant::now();
        let busy = loop {
            match object.access(0, byte.as_mut_ptr(), 1, ACCESS_NOWAIT) {
                Err(Errno::BUSY) => break Ok(()),
                Err(error) => break Err(error.into()),
                Ok(()) if start.elapsed() > Duration::from_secs(60) => {
                    break Err(anyhow::anyhow!("never busy"));
                }
                Ok(()) => (),
            }
        };
        stop.store(true, Ordering::Relaxed);
        copies.join().unwrap_or(Err(Errno::IO))?;
        busy
    });
    busy?;
    object.access(0, byte.as_mut_ptr(), 1, ACCESS_NOWAIT)?;
    Ok(())
}

/// Memory of this process, and an object of it.
fn user(env: &Env, pages: usize) -> Result<(Mapping, Object)> {
    let memory = Mapping::anonymous(pages * PAGE)?;
    let object = Object::with(&env.device, pages, CREATE_USERPTR, memory.at(0) as usize)?;
    Ok((memory, object))
}

fn userptr(env: &Env) -> Result<()> {
    let pins = kernel::pins()?;
    let (memory, object) = user(env, 16)?;
    ensure!(object.info()?.pinned == 16, "{:?}", object.info()?);
    ensure!(kernel::pins()? - pins == 16);
    fill(&object, 1, 16)?;
    for page in 0..16 {
        Content::Page(1, page).check(&memory.page(page))?;
    }
    memory.write(9 * PAGE, &Content::Page(2, 9).bytes());
    let mut page = [0; PAGE];
    object.read(9 * PAGE, &mut page)?;
    Content::Page(2, 9).check(&page)?;
    // Its memory goes with the process, so nobody else gets it.
    let result = object.export().map(drop);
    ensure!(result == Err(Errno::PERM), "exported: {result:?}");
    memory.write(9 * PAGE, &Content::Page(1, 9).bytes());
    drop(memory);
    check(&object, 1, 16)?;
    drop(object);
    ensure!(kernel::pins()? == pins, "left over");
    Ok(())
}

/// Makes an object of that many pages of this process.
fn create_user(object: &Object, pages: usize) -> Result<io::Result<()>> {
    let memory = Mapping::anonymous(pages * PAGE)?;
    Ok(object.create(&Create {
        size: (pages * PAGE) as u64,
        address: memory.at(0) as u64,
        flags: CREATE_USERPTR,
        reserved: 0,
    }))
}

/// Runs `work` as a user who may lock 8 pages.
fn as_user(work: impl FnOnce() -> Result<()>) -> Result<()> {
    Child::spawn(|| {
        let limit = Some(8 * PAGE as u64);
        setrlimit(
            Resource::Memlock,
            Rlimit {
                current: limit,
                maximum: limit,
            },
        )?;
        // SAFETY: a plain call.
        ensure!(unsafe { libc::setuid(65534) } == 0, "setuid");
        work()
    })?
    .join("child")
}

/// The limit counts for who has no CAP_IPC_LOCK.
fn userptr_memlock(env: &Env) -> Result<()> {
    let [first, second, third] = [(); 3].map(|()| Object::open(&env.device));
    let (first, second, third) = (first?, second?, third?);
    as_user(|| {
        create_user(&first, 6)??;
        let result = create_user(&second, 3)?;
        ensure!(result == Err(Errno::NOMEM), "9 of 8 pages: {result:?}");
        create_user(&second, 2)??;
        let result = create_user(&third, 1)?;
        ensure!(result == Err(Errno::NOMEM), "9 of 8 pages: {result:?}");
        Ok(())
    })
}

/// It counts for the user, whose processes come and go while pages stay pinned.
fn userptr_memlock_outlives(env: &Env) -> Result<()> {
    let [first, second, third] = [(); 3].map(|()| Object::open(&env.device));
    let (first, second, third) = (first?, second?, third?);
    as_user(|| Ok(create_user(&first, 6)??))?;
    as_user(|| {
        let result = create_user(&second, 3)?;
        ensure!(result == Err(Errno::NOMEM), "9 of 8 pages: {result:?}");
        Ok(create_user(&second, 2)??)
    })?;
    drop(first);
    as_user(|| Ok(create_user(&third, 6)??))
}

/// Who made it has gone, and its address space.
fn userptr_outlives_process(env: &Env) -> Result<()> {
    let object = Object::open(&env.device)?;
    Child::spawn(|| {
        let memory = Mapping::anonymous(8 * PAGE)?;
        object.create(&Create {
            size: 8 * PAGE as u64,
            address: memory.at(0) as u64,
            flags: CREATE_USERPTR,
            reserved: 0,
        })?;
        for page in 0..8 {
            memory.write(page * PAGE, &Content::Page(1, page).bytes());
        }
        Ok(())
    })?
    .join("child")?;
    check(&object, 1, 8)?;
    ensure!(object.info()?.pinned == 8);
    Ok(())
}
