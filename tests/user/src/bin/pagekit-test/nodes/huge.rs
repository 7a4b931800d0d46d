// SPDX-License-Identifier: GPL-2.0
//! Huge pages: there, and right, whatever is done to the mapping.
//!
//! What looks at page tables from user space leaves out mappings of PFNs. But a huge page takes no
//! page table, and splits are counted.

use anyhow::{ensure, Result};
use pagekit_user::mapping::{Mapping, RW};
use pagekit_user::process::Child;
use pagekit_user::{kernel, PAGE};
use rustix::mm::{Advice, MapFlags, MprotectFlags, ProtFlags};

use super::file::memfd;
use super::{ends_with, new, old, put, see, see_all, touch, Node, HUGE_SIZE, PAGES};
use crate::env::Env;
use crate::groups::Case;
use crate::memory::HUGE_PAGES;

pub const CASES: &[Case] = &[
    Case::new("huge", huge).smoke(),
    Case::new("huge_unaligned", huge_unaligned),
    Case::new("huge_file", huge_file),
    Case::new("huge_fork", huge_fork),
    Case::new("huge_split", huge_split).smoke(),
    Case::new("huge_write_after_read", huge_write_after_read),
    Case::new("huge_moved", huge_moved),
    Case::new("huge_advised_not", huge_advised_not),
    Case::new("huge_disabled", huge_disabled),
];

/// A node whose fresh pages are huge.
fn huge_node(env: &Env) -> Result<Node> {
    kernel::write("/proc/sys/vm/compact_memory", "1")?;
    Node::open(env)
}

/// How many page tables `access` makes or frees.
fn tables(access: impl FnOnce() -> Result<()>) -> Result<usize> {
    let before = kernel::page_tables()?;
    access()?;
    Ok(kernel::page_tables()?.abs_diff(before) / PAGE)
}

/// How many page tables the huge pages of the mapping take when they are touched.
fn tables_for_blocks(map: &Mapping) -> Result<usize> {
    touch(map, PAGES - 1); // The upper ones.
    tables(|| see_all(map, 0))
}

fn huge(env: &Env) -> Result<()> {
    let node = huge_node(env)?;
    let map = node.map(0, PAGES)?;
    let n = tables_for_blocks(&map)?;
    ensure!(n == 0, "{n} page tables");
    // The first access is a write, in the middle.
    let map = node.map(0, PAGES)?;
    touch(&map, PAGES - 1);
    let n = tables(|| {
        for page in [100, HUGE_PAGES + 100] {
            put(&map, page, old(page));
        }
        see_all(&map, 0)
    })?;
    ensure!(n == 0, "{n} page tables after writing");
    Ok(())
}

fn huge_unaligned(env: &Env) -> Result<()> {
    let node = huge_node(env)?;
    let place = Node::place(1, PAGES)?;
    let map = Mapping::over(place, &node.file, 0, RW, MapFlags::SHARED)?;
    let n = tables_for_blocks(&map)?;
    ensure!(n == 2, "{n} page tables");
    Ok(())
}

/// Folios of a memfd, which may be mapped as PFNs only.
fn huge_file(env: &Env) -> Result<()> {
    let memfd = memfd(HUGE_PAGES, 3 * HUGE_PAGES)?;
    let node = Node::of_file(env, &memfd, 0, 3 * HUGE_PAGES)?;
    let map = node.map(0, 3 * HUGE_PAGES)?;
    if node.kind.gup {
        return ends_with(libc::SIGBUS, || touch(&map, 0));
    }
    touch(&map, 0); // The upper page tables.
    let n = tables(|| see_all(&map, 0))?;
    ensure!(n == 0, "{n} page tables");
    Ok(())
}

fn huge_fork(env: &Env) -> Result<()> {
    let node = huge_node(env)?;
    let map = node.map(0, PAGES)?;
    map.touch();
    Child::spawn(|| {
        see_all(&map, 0)?;
        // What is huge has no page table that could go.
        let before = kernel::page_tables()?;
        let _rest = map.cut_out(HUGE_SIZE, HUGE_SIZE)?;
        ensure!(
            kernel::page_tables()? == before,
            "a page table in the child"
        );
        Ok(())
    })?
    .join("child")
}

/// Runs `access`, and returns how many huge pages were split meanwhile.
fn splits(access: impl FnOnce() -> Result<()>) -> Result<i64> {
    let before = kernel::event("thp_split_pmd")?;
    access()?;
    Ok(kernel::event("thp_split_pmd")? - before)
}

/// Protected in the middle, one stays right and writable.
fn huge_split(env: &Env) -> Result<()> {
    let node = huge_node(env)?;
    let map = node.map(0, PAGES)?;
    map.touch();
    let n = splits(|| Ok(map.protect(100 * PAGE, 10 * PAGE, MprotectFlags::READ)?))?;
    ensure!(n == 1, "{n} were split");
    see_all(&map, 0)?;
    ends_with(libc::SIGSEGV, || put(&map, 100, new(100)))?;
    for page in [99, 110] {
        put(&map, page, new(page));
        see(&node.map(page, 1)?, |_| new(page))?;
    }
    // In the other one, too, by unmapping.
    let n = splits(|| {
        map.cut_out(HUGE_SIZE + PAGE, PAGE)?;
        Ok(())
    })?;
    ensure!(n == 1, "{n} were split by munmap");
    Ok(())
}

fn huge_write_after_read(env: &Env) -> Result<()> {
    let node = huge_node(env)?;
    let map = node.map_with(0, PAGES, ProtFlags::READ, MapFlags::SHARED)?;
    let (pages, mut n) = ([5, HUGE_PAGES + 5], tables_for_blocks(&map)?);
    ensure!(n == 0, "{n} page tables before");
    let split = splits(|| {
        n = tables(|| {
            map.protect(0, map.len(), MprotectFlags::READ | MprotectFlags::WRITE)?;
            pages.iter().for_each(|&page| put(&map, page, new(page)));
            Ok(())
        })?;
        Ok(())
    })?;
    ensure!((split, n) == (0, 0), "{split} were split, {n} page tables");
    let want = |page| match page {
        _ if pages.contains(&page) => new(page),
        _ => old(page),
    };
    see(&map, want)?;
    see(&node.map(0, PAGES)?, want)
}

/// By mremap, to where they fit and then to where they don't.
fn huge_moved(env: &Env) -> Result<()> {
    let node = huge_node(env)?;
    let mut map = node.map(0, PAGES)?;
    map.touch();
    for (skew, want) in [(0, 0), (1, 2)] {
        let place = Node::place(skew, PAGES)?;
        let n = splits(|| {
            map.move_to(place)?;
            see_all(&map, 0)
        })?;
        ensure!(n == want, "{n} were split, not {want}");
    }
    Ok(())
}

fn huge_advised_not(env: &Env) -> Result<()> {
    let node = huge_node(env)?;
    let map = node.map(0, PAGES)?;
    map.advise(Advice::LinuxNoHugepage)?;
    small(&map)
}

fn huge_disabled(env: &Env) -> Result<()> {
    let node = huge_node(env)?;
    let map = node.map(0, PAGES)?;
    // SAFETY: plain call, for this process only.
    ensure!(unsafe { libc::prctl(libc::PR_SET_THP_DISABLE, 1, 0, 0, 0) } == 0);
    small(&map)
}

/// The mapping is not of huge pages, and right.
fn small(map: &Mapping) -> Result<()> {
    let n = tables_for_blocks(map)?;
    ensure!(n == 2, "{n} page tables");
    put(map, 5, new(5));
    see(map, |page| match page {
        5 => new(page),
        _ => old(page),
    })
}
