// SPDX-License-Identifier: GPL-2.0
//! The kinds of mappings, at the test nodes of `tests/drivers/node.rs`: the same cases for all,
//! with what each kind allows.

pub mod advice;
pub mod failures;
pub mod file;
pub mod gup;
pub mod huge;

use std::fs::File;
use std::os::fd::AsFd;

use anyhow::{ensure, Context, Result};
use pagekit_user::mapping::{Mapping, RW};
use pagekit_user::process::{signal_of, Child};
use pagekit_user::{abi, kernel, AROUND, PAGE};
use rustix::io::{self, Errno};
use rustix::mm::{Advice, MapFlags, MprotectFlags, ProtFlags};

use crate::env::{Content, Env};
use crate::groups::Case;
use crate::memory::{dirty_free_memory, HUGE_PAGES};

/// For each kind.
pub const CASES: &[Case] = &[
    Case::new("offsets", offsets).smoke(),
    Case::new("faults", faults).smoke(),
    Case::new("read_only", read_only),
    Case::new("split_mprotect", split_mprotect).smoke(),
    Case::new("split_munmap", split_munmap),
    Case::new("mremap_shrink", mremap_shrink),
    Case::new("mremap_move", mremap_move),
    Case::new("mremap_grow", mremap_grow),
    Case::new("fork", fork).smoke(),
    Case::new("dontneed", dontneed).smoke(),
    Case::new("populate", populate),
    Case::new("outlives_file", outlives_file),
    Case::new("charged", charged),
    Case::new("fresh_not_stale", fresh_not_stale),
];

/// What the kinds allow.
pub struct Kind {
    pub node: &'static str,
    /// References to the pages can be had through the mapping. If not, these are PFNs.
    gup: bool,
    /// All is mapped at once, and nothing later.
    pub eager: bool,
    /// By huge pages, where that can be.
    huge: bool,
}

const fn kind(node: &'static str, gup: bool, eager: bool, huge: bool) -> Kind {
    Kind {
        node,
        gup,
        eager,
        huge,
    }
}

pub const KINDS: [Kind; 6] = [
    kind("pagekit-node-pfns", false, false, false),
    kind("pagekit-node-huge-pfns", false, false, true),
    kind("pagekit-node-eager-pfns", false, true, true),
    kind("pagekit-node-pages", true, false, false),
    kind("pagekit-node-huge-pages", true, false, true),
    kind("pagekit-node-eager-pages", true, true, false),
];

/// How many pages the nodes have: two huge ones, and a rest that is no power of two.
pub const PAGES: usize = 2 * HUGE_PAGES + 37;
/// What splits cut out: beginning and end are in different huge pages, in the middle of them.
const PART: (usize, usize) = (100, HUGE_PAGES + 188);
const HUGE_SIZE: usize = HUGE_PAGES * PAGE;
/// What one upper page table reaches.
const UPPER_SIZE: usize = HUGE_PAGES * HUGE_SIZE;

/// An open file of a node.
pub struct Node {
    kind: &'static Kind,
    file: File,
}

impl Node {
    /// With fresh pages.
    pub fn open(env: &Env) -> Result<Self> {
        let name = env.device.file_name();
        let kind = KINDS.iter().find(|kind| name == Some(kind.node.as_ref()));
        Ok(Self {
            kind: kind.with_context(|| format!("{} is no such node", env.device.display()))?,
            file: env.open()?,
        })
    }

    /// With pages of a memfd.
    fn of_file(env: &Env, memfd: &File, pgoff: usize, count: usize) -> Result<Self> {
        let node = Self::open(env)?;
        node.show_file(memfd, pgoff, count).context("SHOW_FILE")?;
        Ok(node)
    }

    pub fn show_file(&self, memfd: impl AsFd, pgoff: usize, count: usize) -> io::Result<()> {
        abi::show_file(&self.file, memfd, pgoff, count)
    }

    /// What a page holds after a write through a reference, if there is one to be had.
    fn after_gup(&self, page: usize) -> Content {
        match self.kind.gup {
            true => new(page),
            false => old(page),
        }
    }

    /// Pages from `first` on, shared and writable.
    pub fn map(&self, first: usize, count: usize) -> io::Result<Mapping> {
        self.map_with(first, count, RW, MapFlags::SHARED)
    }

    /// Where huge pages fit.
    fn map_with(
        &self,
        first: usize,
        count: usize,
        prot: ProtFlags,
        flags: MapFlags,
    ) -> io::Result<Mapping> {
        let place = Self::place(first, count)?;
        Mapping::over(place, &self.file, first * PAGE, prot, flags)
    }

    /// An address as aligned as pages from `first` on are, for `count` of them, and within reach of
    /// one upper page table.
    pub fn place(first: usize, count: usize) -> io::Result<Mapping> {
        let skew = first.wrapping_mul(PAGE) % HUGE_SIZE;
        Mapping::reserve(count * PAGE, UPPER_SIZE, skew)
    }
}

/// The pages of the mapping begin as they should.
fn see(map: &Mapping, want: impl Fn(usize) -> Content) -> Result<()> {
    for page in 0..map.len() / PAGE {
        let mut word = [0; 8];
        map.read(page * PAGE, &mut word);
        if u64::from_ne_bytes(word) != want(page).word() {
            want(page)
                .check(&map.page(page))
                .with_context(|| format!("page {page} of the mapping"))?;
        }
    }
    Ok(())
}

/// What page `page` of a node, or of a memfd, holds from the start.
pub fn old(page: usize) -> Content {
    Content::Page(1, page)
}

/// What cases write to it.
fn new(page: usize) -> Content {
    Content::Page(2, page)
}

/// The mapping shows the pages from `first` on, as they were from the start.
pub fn see_all(map: &Mapping, first: usize) -> Result<()> {
    see(map, |page| old(first + page))
}

fn put(map: &Mapping, page: usize, content: Content) {
    map.write(page * PAGE, &content.word().to_ne_bytes());
}

pub fn touch(map: &Mapping, page: usize) {
    // SAFETY: in bounds; a signal is what cases wait for.
    unsafe { map.at(page * PAGE).read_volatile() };
}

fn ends_with(signal: i32, access: impl FnOnce()) -> Result<()> {
    let got = signal_of(access)?;
    ensure!(got == Some(signal), "ended with {got:?}, not {signal}");
    Ok(())
}

fn offsets(env: &Env) -> Result<()> {
    let node = Node::open(env)?;
    for (first, count) in [
        (0, PAGES),
        (1, 1),
        (37, PAGES - 37),
        (HUGE_PAGES - 1, 3),
        (PAGES - 1, 1),
    ] {
        let map = node.map(first, count)?;
        see_all(&map, first).with_context(|| format!("mapped at page {first}"))?;
        // Where the kernel likes it.
        let map = Mapping::shared(&node.file, first * PAGE, count * PAGE)?;
        see_all(&map, first).with_context(|| format!("mapped at page {first}, anywhere"))?;
    }
    Ok(())
}

/// One fault for what a page table reaches but for at most 2 MiB, or for a huge page, and none for
/// writing after reading.
fn faults(env: &Env) -> Result<()> {
    let node = Node::open(env)?;
    let read = |map: &Mapping| {
        // Not from the start on: what lies before is mapped, too.
        for page in [5, HUGE_PAGES + 5, PAGES - 5] {
            touch(map, page);
        }
        map.touch();
    };
    // The program itself is mapped by faults, first of all, and again when its pages are reclaimed.
    read(&node.map(0, PAGES)?);
    let blocks = match node.kind {
        Kind { eager: true, .. } => 0,
        Kind { huge: true, .. } => 3,
        _ => 2 * HUGE_PAGES / AROUND + 1,
    };
    let want = (blocks as i64, 0);
    let mut seen = (0, 0);
    for _ in 0..3 {
        let map = node.map(0, PAGES)?;
        seen.0 = kernel::faults(|| read(&map));
        seen.1 = kernel::faults(|| (0..PAGES).for_each(|page| put(&map, page, new(page))));
        if seen == want {
            break;
        }
    }
    let (reading, writing) = seen;
    ensure!(
        seen == want,
        "{reading} faults for reading, {writing} for writing"
    );
    see(&node.map(0, PAGES)?, new)
}

fn read_only(env: &Env) -> Result<()> {
    let node = Node::open(env)?;
    let map = node.map_with(0, PAGES, ProtFlags::READ, MapFlags::SHARED)?;
    let page = new(5);
    for _touched in [false, true] {
        ends_with(libc::SIGSEGV, || put(&map, 5, page))?;
        see_all(&map, 0)?;
    }
    // Made writable, it is.
    map.protect(0, map.len(), MprotectFlags::READ | MprotectFlags::WRITE)?;
    put(&map, 5, page);
    see(&node.map(5, 1)?, |_| page)
}

/// Of untouched pages, and of pages that were mapped before the split.
fn split_mprotect(env: &Env) -> Result<()> {
    const RW: MprotectFlags = MprotectFlags::READ.union(MprotectFlags::WRITE);
    let node = Node::open(env)?;
    let (first, count) = PART;
    for touched in [false, true] {
        let map = node.map(0, PAGES)?;
        if touched {
            map.touch();
        }
        map.protect(first * PAGE, count * PAGE, MprotectFlags::READ)?;
        see_all(&map, 0).with_context(|| format!("touched before: {touched}"))?;
        ends_with(libc::SIGSEGV, || put(&map, first, Content::Zero))?;
        map.protect(first * PAGE, count * PAGE, MprotectFlags::empty())?;
        ends_with(libc::SIGSEGV, || touch(&map, first))?;
        map.protect(first * PAGE, count * PAGE, RW)?;
        see_all(&map, 0)?;
        for page in [first - 1, first, first + count] {
            put(&map, page, old(page));
        }
        see_all(&map, 0)?;
    }
    Ok(())
}

fn split_munmap(env: &Env) -> Result<()> {
    let node = Node::open(env)?;
    let (first, count) = PART;
    for touched in [false, true] {
        let map = node.map(0, PAGES)?;
        if touched {
            map.touch();
        }
        let hole = map.at(first * PAGE);
        let (head, tail) = map.cut_out(first * PAGE, count * PAGE)?;
        see_all(&head, 0).with_context(|| format!("touched before: {touched}"))?;
        see_all(&tail, first + count)?;
        ends_with(libc::SIGSEGV, || {
            // SAFETY: runs in a child that must not survive it.
            unsafe { hole.read_volatile() };
        })?;
    }
    Ok(())
}

fn mremap_shrink(env: &Env) -> Result<()> {
    let node = Node::open(env)?;
    for touched in [false, true] {
        let mut map = node.map(8, PAGES - 8)?;
        if touched {
            map.touch();
        }
        map.resize(PART.1 * PAGE)?;
        see_all(&map, 8).with_context(|| format!("touched before: {touched}"))?;
    }
    Ok(())
}

fn mremap_move(env: &Env) -> Result<()> {
    let node = Node::open(env)?;
    for touched in [false, true] {
        let mut map = node.map(8, PAGES - 8)?;
        if touched {
            map.touch();
        }
        // Where huge pages fit, and where they don't.
        for place in [8, 9] {
            map.move_to(Node::place(place, PAGES - 8)?)?;
            see_all(&map, 8).with_context(|| format!("touched before: {touched}, {place}"))?;
        }
    }
    Ok(())
}

fn mremap_grow(env: &Env) -> Result<()> {
    let node = Node::open(env)?;
    for (count, grown) in [(PAGES, PAGES + 1), (8, 64)] {
        let mut map = node.map(0, count)?;
        map.touch();
        let result = map.resize(grown * PAGE);
        ensure!(
            matches!(result, Err(Errno::FAULT)),
            "from {count} to {grown} pages: {result:?}"
        );
        see_all(&map, 0)?;
    }
    Ok(())
}

/// A child sees and writes the same memory through the mapping it inherits.
fn fork(env: &Env) -> Result<()> {
    let node = Node::open(env)?;
    for touched in [false, true] {
        let map = node.map(0, PAGES)?;
        if touched {
            map.touch();
        }
        let pages = [3, HUGE_PAGES + 3, PAGES - 1];
        Child::spawn(|| {
            see_all(&map, 0)?;
            pages.iter().for_each(|&page| put(&map, page, new(page)));
            Ok(())
        })?
        .join("child")?;
        for page in pages {
            see(&node.map(page, 1)?, |_| new(page))?;
            put(&map, page, old(page));
        }
        see_all(&map, 0)?;
    }
    Ok(())
}

fn dontneed(env: &Env) -> Result<()> {
    let node = Node::open(env)?;
    let map = node.map(0, PAGES)?;
    map.touch();
    let result = map.advise(Advice::LinuxDontNeed);
    if !node.kind.gup {
        ensure!(result == Err(Errno::INVAL), "{result:?}");
    } else {
        result?;
        if node.kind.eager {
            // Nobody brings them back.
            ends_with(libc::SIGBUS, || touch(&map, 0))?;
            return ends_with(libc::SIGBUS, || put(&map, PAGES - 1, Content::Zero));
        }
    }
    see_all(&map, 0)
}

fn populate(env: &Env) -> Result<()> {
    let node = Node::open(env)?;
    let at_once = node.map_with(0, PAGES, RW, MapFlags::SHARED | MapFlags::POPULATE)?;
    let later = node.map(0, PAGES)?;
    let result = later.advise(Advice::LinuxPopulateWrite);
    if node.kind.gup {
        result.context("MADV_POPULATE_WRITE")?;
        for map in [&at_once, &later] {
            let resident = map.resident()?;
            ensure!(resident == PAGES, "{resident} pages are mapped");
        }
    } else {
        // Both ask for references, and mmap doesn't say so.
        ensure!(
            result == Err(Errno::INVAL),
            "MADV_POPULATE_WRITE: {result:?}"
        );
    }
    see_all(&at_once, 0)?;
    see_all(&later, 0)
}

/// A mapping keeps what it shows, touched or not.
fn outlives_file(env: &Env) -> Result<()> {
    let node = Node::open(env)?;
    let (early, late) = (node.map(0, PAGES)?, node.map(8, PAGES - 8)?);
    early.touch();
    drop(node);
    see_all(&early, 0)?;
    see_all(&late, 8)
}

/// Fresh pages are charged to who opens the node, until they are released.
fn charged(env: &Env) -> Result<()> {
    const GROUP: &str = "/sys/fs/cgroup/pagekit-test";
    // Each CPU charges ahead, and keeps what is given back, in batches.
    const SLACK: i64 = 256 * PAGE as i64;
    kernel::write("/sys/fs/cgroup/cgroup.subtree_control", "+memory")?;
    std::fs::create_dir(GROUP).context(GROUP)?;
    let result = Child::spawn(|| {
        let charged =
            || -> Result<i64> { Ok(kernel::read(format!("{GROUP}/memory.current"))?.parse()?) };
        kernel::write(format!("{GROUP}/cgroup.procs"), "0")?;
        let before = charged()?;
        let node = Node::open(env)?;
        let size = (PAGES * PAGE) as i64;
        let held = charged()? - before;
        ensure!((held - size).abs() < SLACK, "{held} bytes for {size}");
        drop(node);
        let left = charged()? - before;
        ensure!(left < SLACK, "{left} bytes after release");
        Ok(())
    })?
    .join("child");
    std::fs::remove_dir(GROUP).context(GROUP)?;
    result
}

/// Behind the word that each page begins with there are zeros, whosever memory it was.
fn fresh_not_stale(env: &Env) -> Result<()> {
    for folio in [1, HUGE_PAGES] {
        dirty_free_memory(folio)?;
        let map = Node::open(env)?.map(0, PAGES)?;
        for page in 0..PAGES {
            let rest = &map.page(page)[8..];
            ensure!(rest.iter().all(|&byte| byte == 0), "page {page}, {folio}");
        }
    }
    Ok(())
}
