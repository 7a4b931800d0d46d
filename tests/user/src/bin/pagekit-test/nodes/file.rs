// SPDX-License-Identifier: GPL-2.0
//! Pages of a file, and what becomes of them under a mapping.

use std::fs::File;
use std::os::fd::AsRawFd;

use anyhow::{ensure, Context, Result};
use pagekit_user::abi;
use pagekit_user::kernel::ZramSwap;
use pagekit_user::mapping::{Mapping, RW};
use pagekit_user::PAGE;
use rustix::fs::{fallocate, FallocateFlags, MemfdFlags, SealFlags};
use rustix::io::Errno;
use rustix::mm::{MapFlags, MprotectFlags, ProtFlags};

use super::{ends_with, new, old, put, see, see_all, touch, Node};
use crate::env::{fill, read_page, written, Content, Env};
use crate::groups::Case;
use crate::memory::{allocate, evict, HUGE_PAGES};

/// For all kinds.
pub const CASES: &[Case] = &[Case::new("file_pages", file_pages).smoke()];

/// For those that map PFNs: pages of a file can be mapped in no other way.
pub const PFN_CASES: &[Case] = &[
    Case::new("truncate_page", |env| truncate(env, 1, 32)).smoke(),
    Case::new("truncate_huge", |env| {
        truncate(env, HUGE_PAGES, 2 * HUGE_PAGES)
    }),
    Case::new("punch_hole_page", |env| punch_hole(env, 1, 32)),
    Case::new("punch_hole_huge", |env| {
        punch_hole(env, HUGE_PAGES, 2 * HUGE_PAGES)
    }),
    Case::new("punch_hole_part", punch_part),
    Case::new("swap", swap),
    Case::new("swap_after_write", swap_after_write),
    Case::new("pinned_read_only", pinned_read_only).smoke(),
];

/// PFNs of a file's pages can be mapped, references to them can't.
fn file_pages(env: &Env) -> Result<()> {
    let memfd = written(1, 16)?;
    let node = Node::of_file(env, &memfd, 3, 8)?;
    match (node.kind.gup, node.kind.eager) {
        (false, _) => {
            let map = node.map(0, 8)?;
            see_all(&map, 3)?;
            map.write(2 * PAGE, &new(5).bytes());
            new(5).check(&read_page(&memfd, 5)?)?;
            let result = node.map(0, 9);
            ensure!(
                matches!(result, Err(Errno::INVAL)),
                "past the end: {result:?}"
            );
        }
        (true, false) => {
            let map = node.map(0, 8)?;
            ends_with(libc::SIGBUS, || touch(&map, 0))?;
        }
        (true, true) => {
            let result = node.map(0, 8);
            ensure!(matches!(result, Err(Errno::INVAL)), "{result:?}");
        }
    }
    Ok(())
}

fn punch(memfd: &File, first: usize, count: usize) -> Result<()> {
    let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    Ok(fallocate(
        memfd,
        flags,
        (first * PAGE) as u64,
        (count * PAGE) as u64,
    )?)
}

/// A memfd of `pages` pages, in folios of so many, that may be truncated.
pub fn memfd(folio: usize, pages: usize) -> Result<File> {
    let memfd = abi::memfd_with(0, MemfdFlags::empty(), SealFlags::empty())?;
    allocate(&memfd, folio, pages * PAGE)?;
    fill(&memfd, 1, pages)?;
    Ok(memfd)
}

fn truncate(env: &Env, folio: usize, pages: usize) -> Result<()> {
    keeps_pages(env, &memfd(folio, pages)?, pages, |memfd| {
        Ok(memfd.set_len(0)?)
    })
}

fn punch_hole(env: &Env, folio: usize, pages: usize) -> Result<()> {
    keeps_pages(env, &memfd(folio, pages)?, pages, |memfd| {
        punch(memfd, 0, pages)
    })
}

/// A hole in a large folio is zeroed in place.
fn punch_part(env: &Env) -> Result<()> {
    let memfd = memfd(HUGE_PAGES, HUGE_PAGES)?;
    let node = Node::of_file(env, &memfd, 0, HUGE_PAGES)?;
    let map = node.map(0, HUGE_PAGES)?;
    map.touch();
    punch(&memfd, 8, 16)?;
    see(&map, |page| match page {
        8..24 => Content::Zero,
        _ => old(page),
    })
}

/// The mapping stays as it is when the file loses its pages: touched or not.
fn keeps_pages(
    env: &Env,
    memfd: &File,
    pages: usize,
    lose: impl FnOnce(&File) -> Result<()>,
) -> Result<()> {
    let node = Node::of_file(env, memfd, 0, pages)?;
    let (early, late) = (node.map(0, pages)?, node.map(0, pages)?);
    early.touch();
    lose(memfd)?;
    memfd.set_len((pages * PAGE) as u64)?;
    Content::Zero.check(&read_page(memfd, 5)?)?;
    see_all(&early, 0)?;
    see_all(&late, 0)?;
    // The file has another page there now.
    put(&early, 5, new(5));
    see(&node.map(5, 1)?, |_| new(5))?;
    Content::Zero.check(&read_page(memfd, 5)?)
}

/// Held pages don't leave memory, however hard they are pushed.
fn swap(env: &Env) -> Result<()> {
    const COUNT: usize = 256;
    let _swap = ZramSwap::new(32 << 20)?;
    let (memfd, other) = (written(1, COUNT)?, written(2, COUNT)?);
    let node = Node::of_file(env, &memfd, 0, COUNT)?;
    let map = node.map(0, COUNT)?;
    map.touch();
    // As hard as pages that do.
    evict(&other, COUNT)?;
    let _ = evict(&memfd, COUNT);
    let resident = Mapping::shared(&memfd, 0, COUNT * PAGE)?.resident()?;
    ensure!(resident == COUNT, "only {resident} of {COUNT} pages stay");
    see_all(&map, 0)?;
    drop((map, node));
    evict(&memfd, COUNT).context("after release")
}

/// What was written to the pages of holes, which nobody else marks dirty, survives swapping.
fn swap_after_write(env: &Env) -> Result<()> {
    const COUNT: usize = 256;
    let _swap = ZramSwap::new(32 << 20)?;
    let memfd = abi::memfd((COUNT * PAGE) as u64)?;
    let node = Node::of_file(env, &memfd, 0, COUNT)?;
    let map = node.map(0, COUNT)?;
    for page in 0..COUNT {
        map.write(page * PAGE, &new(page).bytes());
    }
    drop((map, node));
    evict(&memfd, COUNT)?;
    (0..COUNT).try_for_each(|page| new(page).check(&read_page(&memfd, page)?))
}

/// Pages that were pinned by who could read them only can't be written to through the node.
fn pinned_read_only(env: &Env) -> Result<()> {
    const COUNT: usize = 8;
    const RW_LATER: MprotectFlags = MprotectFlags::READ.union(MprotectFlags::WRITE);
    let memfd = written(1, COUNT)?;
    let file = File::open(format!("/proc/self/fd/{}", memfd.as_raw_fd()))?;
    let own = Mapping::new(&file, 0, COUNT * PAGE, ProtFlags::READ, MapFlags::SHARED)?;
    let node = Node::open(env)?;
    abi::show_user(&node.file, &own).context("SHOW_USER")?;
    for flags in [MapFlags::SHARED, MapFlags::PRIVATE] {
        let result = node.map_with(0, COUNT, RW, flags).map(drop);
        ensure!(result == Err(Errno::ACCESS), "writable: {result:?}");
        let map = node.map_with(0, COUNT, ProtFlags::READ, flags)?;
        see_all(&map, 0)?;
        let result = map.protect(PAGE, PAGE, RW_LATER);
        ensure!(result == Err(Errno::ACCESS), "mprotect: {result:?}");
        ends_with(libc::SIGSEGV, || put(&map, 1, new(1)))?;
    }
    (0..COUNT).try_for_each(|page| old(page).check(&read_page(&memfd, page)?))
}
