// SPDX-License-Identifier: GPL-2.0
//! Files lose pages while these are pinned: what is pinned is what was written, or zeros, and never
//! what others have left in memory.

use std::fs::File;

use anyhow::Result;
use pagekit_user::abi;
use pagekit_user::mapping::{Mapping, RW};
use pagekit_user::style::{Create, Object, CREATE_USERPTR};
use pagekit_user::PAGE;
use rustix::fs::{fallocate, FallocateFlags, MemfdFlags, SealFlags};
use rustix::io::Errno;
use rustix::mm::MapFlags;

use super::{allow, at, race, see, see_map, side, Side, PAGES, STATIC};
use crate::env::{fill, written, Env};
use crate::groups::Case;

pub const CASES: &[Case] = &[
    Case::new("punch_pin", punch_pin),
    Case::new("truncate_pin", truncate_pin),
];

/// Holes are punched, filled with pages that nobody has written, and then written.
fn punches(memfd: &File, pages: usize) -> Side<'_> {
    const PUNCH: FallocateFlags = FallocateFlags::PUNCH_HOLE.union(FallocateFlags::KEEP_SIZE);
    let mut round = 0;
    side("punch", move || {
        round += 1;
        let (first, count) = (round % pages, 1 + round % (pages / 2));
        let count = count.min(pages - first);
        let (offset, len) = ((first * PAGE) as u64, (count * PAGE) as u64);
        fallocate(memfd, PUNCH, offset, len)?;
        fallocate(memfd, FallocateFlags::empty(), offset, len)?;
        if round % 4 == 0 {
            fill(memfd, 1, pages)?;
        }
        Ok(true)
    })
}

/// The file ends, and is as long as before again.
pub fn truncates(memfd: &File, pages: usize) -> Side<'_> {
    side("truncate", move || {
        memfd.set_len(0)?;
        memfd.set_len((pages * PAGE) as u64)?;
        fill(memfd, 1, pages)?;
        Ok(true)
    })
}

/// A memfd that can be truncated.
pub fn unsealed(pages: usize) -> Result<File> {
    let size = (pages * PAGE) as u64;
    let memfd = abi::memfd_with(size, MemfdFlags::empty(), SealFlags::empty())?;
    fill(&memfd, 1, pages)?;
    Ok(memfd)
}

fn punch_pin(env: &Env) -> Result<()> {
    const MORE: usize = 4 * PAGES;
    let udmabuf = at("udmabuf");
    let memfd = written(1, MORE)?;
    let pin = |first: usize, pages: usize| {
        let (udmabuf, memfd) = (&udmabuf, &memfd);
        move || {
            let buf = udmabuf.export(memfd, first, pages)?;
            see_map(&Mapping::shared(&buf, 0, pages * PAGE)?, first, true)?;
            Ok(true)
        }
    };
    race(
        env.time,
        vec![
            side("pin", pin(0, MORE)),
            punches(&memfd, MORE),
            side("pin part", pin(7, PAGES)),
        ],
    )
}

/// radeon takes files as what they are mapped as. Mappings are replaced meanwhile, too.
fn truncate_pin(env: &Env) -> Result<()> {
    let memfd = unsealed(PAGES)?;
    let place = Mapping::reserve(PAGES * PAGE, PAGE, 0)?;
    let create = Create {
        size: (PAGES * PAGE) as u64,
        address: place.at(0) as u64,
        flags: CREATE_USERPTR,
        reserved: 0,
    };
    let map = |place| Mapping::over(place, &memfd, 0, RW, MapFlags::SHARED);
    let mut mapped = Some(map(place)?);
    let pin = || {
        let object = Object::open(STATIC)?;
        // Behind the end of the file there is nothing.
        let Some(()) = allow(object.create(&create), &[Errno::FAULT])? else {
            return Ok(false);
        };
        let mut bytes = vec![0; PAGES * PAGE];
        object.read(0, &mut bytes)?;
        see(&bytes, 0, true)?;
        Ok(true)
    };
    let remap = || {
        mapped = mapped.take().map(map).transpose()?;
        Ok(true)
    };
    race(
        env.time,
        vec![
            side("pin", pin),
            truncates(&memfd, PAGES),
            side("remap", remap),
        ],
    )
}
