// SPDX-License-Identifier: GPL-2.0
//! Modules are unloaded while their devices are opened: never under whoever has a file, a buffer or
//! a mapping of theirs.

use std::ffi::CString;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{ensure, Context, Result};
use pagekit_user::mapping::Mapping;
use pagekit_user::PAGE;
use rustix::io::{self, Errno};
use rustix::system::{delete_module, finit_module};

use super::{at, race, side, PAGES};
use crate::env::Env;
use crate::groups::Case;

pub const CASES: &[Case] = &[Case::new("open_unload", open_unload)];

/// Groups of devices, and their modules.
const MODULES: [(&str, &str); 5] = [
    ("udmabuf", "pagekit_udmabuf"),
    ("i915", "pagekit_i915_style"),
    ("nouveau", "pagekit_nouveau_style"),
    ("radeon", "pagekit_radeon_style"),
    ("node-huge-pages", "pagekit_node"),
];

/// What somebody has of a device.
enum Thing {
    Open(#[expect(dead_code)] OwnedFd),
    Mapped(Mapping),
}

impl Thing {
    /// A file, a buffer, a mapping, one after the other. Nothing if the device is away.
    fn of(device: &Env, round: u64) -> Result<Option<Self>> {
        let file = match File::options().read(true).write(true).open(&device.device) {
            Ok(file) => file,
            Err(error) => {
                let error = Errno::from_io_error(&error).context("no errno")?;
                let gone = [Errno::NOENT, Errno::NODEV, Errno::NXIO].contains(&error);
                ensure!(gone, "open: {error:?}");
                return Ok(None);
            }
        };
        // The file keeps the module until the buffer does. Nodes have no other than their files.
        let fd = match round % 3 == 0 || device.device.ends_with("pagekit-node-huge-pages") {
            true => file.into(),
            false => device.filled(1, PAGES)?,
        };
        Ok(Some(match round % 3 {
            2 => Self::Mapped(Mapping::shared(&fd, 0, PAGES * PAGE)?),
            _ => Self::Open(fd),
        }))
    }

    fn look(&self) {
        if let Self::Mapped(map) = self {
            map.touch();
        }
    }
}

fn remove(module: &CString) -> io::Result<()> {
    delete_module(module, libc::O_NONBLOCK)
}

fn open_unload(env: &Env) -> Result<()> {
    let dir = PathBuf::from(std::env::var_os("MODDIR").context("no MODDIR is given")?);
    for (group, module) in MODULES {
        let device = at(group);
        let name = CString::new(module)?;
        let file = File::open(dir.join(format!("{module}.ko"))).context(module)?;
        let load = || finit_module(&file, c"", 0);

        // Odd while there is something of the device, and how often unloading was refused then.
        let (epoch, refused) = (AtomicU64::new(0), AtomicU64::new(0));
        let mut round = 0;
        let hold = || {
            let Some(thing) = Thing::of(&device, round)? else {
                return Ok(false);
            };
            round += 1;
            let before = refused.load(Ordering::SeqCst);
            epoch.fetch_add(1, Ordering::SeqCst);
            let mut counts = false;
            for _ in 0..100 {
                thing.look();
                counts = refused.load(Ordering::SeqCst) > before;
                if counts {
                    break;
                }
                std::thread::sleep(Duration::from_millis(1));
            }
            epoch.fetch_add(1, Ordering::SeqCst);
            drop(thing);
            std::thread::sleep(Duration::from_micros(round % 8 * 100));
            Ok(counts)
        };
        let mut times = 0;
        let unload = || {
            let before = epoch.load(Ordering::SeqCst);
            let result = remove(&name);
            let held = before % 2 == 1 && before == epoch.load(Ordering::SeqCst);
            match result {
                Ok(()) => {
                    load().context("insmod")?;
                    ensure!(!held, "unloaded while it was in use");
                    times += 1;
                    std::thread::sleep(Duration::from_millis(times % 5));
                    Ok(true)
                }
                Err(Errno::WOULDBLOCK | Errno::BUSY) => {
                    refused.fetch_add(u64::from(held), Ordering::SeqCst);
                    Ok(false)
                }
                Err(error) => Err(error).context("rmmod"),
            }
        };
        let sides = vec![side("hold", hold), side("unload", unload)];
        race(env.time / MODULES.len() as u32, sides).context(module)?;
        remove(&name).with_context(|| format!("unloading {module} in the end"))?;
        load().with_context(|| format!("loading {module} again"))?;
    }
    Ok(())
}
