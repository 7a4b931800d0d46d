// SPDX-License-Identifier: GPL-2.0
//! Mappings change while they fault, for each kind of mapping.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::sync_channel;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{ensure, Context, Result};
use pagekit_user::kernel::Setting;
use pagekit_user::mapping::{last_errno, Mapping, RW};
use pagekit_user::PAGE;
use rustix::io::{self, Errno};
use rustix::mm::{Advice, MapFlags, MprotectFlags};
use rustix::pipe::pipe;

use super::memory::{truncates, unsealed};
use super::{allow, at, race, see_map, side};
use crate::env::Env;
use crate::groups::Case;
use crate::memory::{fill_mapped, huge_memfd, HUGE_PAGES};
use crate::nodes::{old, see_all, touch, Kind, Node, KINDS, PAGES};

pub const CASES: &[Case] = &[
    Case::new("vma_fault", vma_fault),
    Case::new("same_page", same_page),
    Case::new("truncate_get", truncate_get),
];

const THP: &str = "/sys/kernel/mm/transparent_hugepage/enabled";

/// Of that kind: the cases' own device is none.
fn node(name: &str) -> Result<Node> {
    Node::open(&at(name.trim_start_matches("pagekit-")))
}

/// Memory that may be gone is accessed by the kernel, for whom that is an error and no signal.
struct Pipe {
    from: OwnedFd,
    to: OwnedFd,
}

impl Pipe {
    fn new() -> Result<Self> {
        let (from, to) = pipe()?;
        Ok(Self { from, to })
    }

    /// The word at `addr`. [`None`] if it can't be read.
    fn load(&self, addr: usize) -> Result<Option<u64>> {
        // SAFETY: the kernel reads what is there, or says that nothing is.
        let n = unsafe { libc::write(self.to.as_raw_fd(), addr as *const _, 8) };
        if n < 0 {
            ensure!(last_errno() == Errno::FAULT, "write: {:?}", last_errno());
            return Ok(None);
        }
        let mut word = [0; 8];
        io::read(&self.from, &mut word)?;
        Ok(Some(u64::from_ne_bytes(word)))
    }

    /// Whether `word` could be written to `addr`.
    fn store(&self, addr: usize, word: u64) -> Result<bool> {
        io::write(&self.to, &word.to_ne_bytes())?;
        // SAFETY: what `addr` is a mapping of has this very word there, or is not accessible.
        let n = unsafe { libc::read(self.from.as_raw_fd(), addr as *mut _, 8) };
        if n < 0 {
            ensure!(last_errno() == Errno::FAULT, "read: {:?}", last_errno());
            io::read(&self.from, &mut [0; 8])?;
        }
        Ok(n == 8)
    }

    /// Has the kernel write how much is in the pipe to `addr`, at once: where `read(2)` can't
    /// write, it tries again, byte by byte.
    fn count(&self, addr: usize) -> Result<()> {
        // SAFETY: what `addr` is a mapping of is not looked at, and may be not accessible.
        let failed = unsafe { libc::ioctl(self.from.as_raw_fd(), libc::FIONREAD, addr) } != 0;
        ensure!(!failed, "FIONREAD: {:?}", last_errno());
        Ok(())
    }
}

/// Where a mapping is that moves.
struct Place {
    at: AtomicUsize,
    /// Odd while something else may get to where it was.
    epoch: AtomicUsize,
}

impl Place {
    fn of(map: &Mapping) -> Self {
        Self {
            at: AtomicUsize::new(map.at(0) as usize),
            epoch: AtomicUsize::new(0),
        }
    }

    fn leave(&self) {
        self.epoch.fetch_add(1, Ordering::SeqCst);
    }

    fn settle(&self, map: &Mapping) {
        self.at.store(map.at(0) as usize, Ordering::SeqCst);
        self.epoch.fetch_add(1, Ordering::SeqCst);
    }

    /// What `look` finds there, unless the mapping has left meanwhile.
    fn see<T>(&self, look: impl FnOnce(usize) -> Result<T>) -> Result<Option<T>> {
        let before = self.epoch.load(Ordering::SeqCst);
        let found = look(self.at.load(Ordering::SeqCst))?;
        let same = before % 2 == 0 && self.epoch.load(Ordering::SeqCst) == before;
        Ok(same.then_some(found))
    }
}

/// Changes a mapping of all pages, which may not be the same then, or `stays`, which keeps its
/// place.
fn change(
    round: usize,
    kind: &Kind,
    node: &Node,
    stays: &Mapping,
    place: &Place,
    mut map: Mapping,
) -> Result<Mapping> {
    const NONE: MprotectFlags = MprotectFlags::empty();
    const RW: MprotectFlags = MprotectFlags::READ.union(MprotectFlags::WRITE);
    let (first, count) = (round * 37 % HUGE_PAGES, 1 + round * 101 % (PAGES / 2));
    let (start, len) = (first * PAGE, count * PAGE);
    match round % 4 {
        0 => {
            map.protect(start, len, NONE)?;
            map.protect(start, len, RW)?;
        }
        1 => {
            stays.protect(start, len, MprotectFlags::READ)?;
            stays.protect(start, len, RW)?;
            if !kind.eager {
                // PFNs refuse that.
                allow(stays.advise(Advice::LinuxDontNeed), &[Errno::INVAL])?;
            }
        }
        2 => {
            // Where huge pages fit, and where they don't.
            map.move_to(Node::place(round / 4 % 2, PAGES)?)?;
            place.leave();
            place.settle(&map);
        }
        _ => {
            place.leave();
            match round / 4 % 3 {
                0 => map.resize(len)?,
                1 => drop(map.cut_out(start, len)?),
                _ => drop(map),
            }
            map = node.map(0, PAGES)?;
            place.settle(&map);
        }
    }
    Ok(map)
}

/// Access, while the mapping is protected, moved, cut, shrunk, dropped and made again.
fn vma_fault(env: &Env) -> Result<()> {
    let _always = Setting::set(THP, "always")?;
    for kind in &KINDS {
        let node = node(kind.node)?;
        let map = node.map(0, PAGES)?;
        let place = Place::of(&map);
        let (pipe, mut page) = (Pipe::new()?, 0);
        let read = || {
            page = (page + 61) % PAGES;
            let word = place.see(|at| pipe.load(at + page * PAGE))?.flatten();
            let Some(word) = word else {
                return Ok(false);
            };
            ensure!(word == old(page).word(), "page {page}: {word:x}");
            Ok(true)
        };
        let (other, mut at) = (Pipe::new()?, 0);
        // In a mapping that changes, too, but not its place: what is written must get there.
        let stays = node.map(0, PAGES)?;
        let write = || {
            at = (at + 67) % PAGES;
            other.store(stays.at(at * PAGE) as usize, old(at).word())
        };
        let (mut round, mut map) = (0, Some(map));
        let change = || {
            round += 1;
            let now = map.take().context("no mapping")?;
            map = Some(change(round, kind, &node, &stays, &place, now)?);
            Ok(true)
        };
        let sides = vec![
            side("read", read),
            side("change", change),
            side("write", write),
        ];
        race(env.time / KINDS.len() as u32, sides).context(kind.node)?;
        see_all(&node.map(0, PAGES)?, 0)?;
    }
    Ok(())
}

/// One thread touches block after block, which are mapped huge. Another switches huge pages off for
/// the process and has the kernel write in the same block: where both meet, there is no place for a
/// page table. A process would fault again; for the kernel, what can't be mapped is an error.
///
/// Not for kernels with `CONFIG_DEBUG_VM`, which take it for a bug: `VM_BUG_ON()` in
/// `vmf_insert_pfn()`.
pub fn thp_switch(env: &Env) -> Result<()> {
    if Path::new("/proc/lockdep").exists() {
        return Ok(());
    }
    const BLOCKS: usize = 4;
    const COUNT: usize = BLOCKS * HUGE_PAGES;
    const SIZE: usize = COUNT * PAGE;
    let _always = Setting::set(THP, "always")?;
    let _hugepages = Setting::hugepages(BLOCKS)?;
    let memfd = huge_memfd(COUNT)?;
    fill_mapped(&memfd, COUNT)?;
    let buf = env.export(&memfd, 0, COUNT)?;
    let place = Mapping::reserve(SIZE, HUGE_PAGES * PAGE, 0)?;
    let start = place.at(0) as usize;
    let mut map = Some(Mapping::over(place, &buf, 0, RW, MapFlags::SHARED)?);
    let current = AtomicUsize::new(0);
    let switch_off = |off: u64| {
        // SAFETY: plain call, for this process only.
        let failed = unsafe { libc::prctl(libc::PR_SET_THP_DISABLE, off, 0u64, 0u64, 0u64) } != 0;
        ensure!(!failed, "prctl: {:?}", last_errno());
        Ok(())
    };
    let huge = || {
        // Over the old one, so that there never is none.
        let old = map.take().context("no mapping")?;
        let map = map.insert(Mapping::over(old, &buf, 0, RW, MapFlags::SHARED)?);
        for block in 0..BLOCKS {
            current.store(block, Ordering::SeqCst);
            touch(map, block * HUGE_PAGES + 5);
        }
        Ok(true)
    };
    let pipe = Pipe::new()?;
    let small = || {
        let page = current.load(Ordering::SeqCst) * HUGE_PAGES + 7;
        switch_off(1)?;
        pipe.count(start + page * PAGE)?;
        switch_off(0)?;
        Ok(true)
    };
    race(
        Duration::from_secs(2),
        vec![side("huge", huge), side("small", small)],
    )
}

/// Two threads touch the same page of a mapping at the same time, for the first time.
fn same_page(env: &Env) -> Result<()> {
    let _always = Setting::set(THP, "always")?;
    for kind in KINDS.iter().filter(|kind| !kind.eager) {
        let node = node(kind.node)?;
        let (give, take) = sync_channel::<Arc<Mapping>>(0);
        let ready = AtomicUsize::new(0);
        let both = |map: &Mapping, round: usize| -> Result<()> {
            ready.fetch_add(1, Ordering::SeqCst);
            while ready.load(Ordering::SeqCst) < 2 * round {
                std::hint::spin_loop();
            }
            // In one block and in another, and then all.
            touch(map, round * 37 % PAGES);
            touch(map, round * 411 % PAGES);
            see_all(map, 0)
        };
        let both = &both;
        let (mut ours, mut theirs) = (0, 0);
        let one = {
            let node = &node;
            move || {
                let map = Arc::new(node.map(0, PAGES)?);
                // The other one may be gone.
                if give.send(map.clone()).is_err() {
                    return Ok(false);
                }
                ours += 1;
                both(&map, ours).map(|()| true)
            }
        };
        let other = move || {
            let Ok(map) = take.recv() else {
                return Ok(false);
            };
            theirs += 1;
            both(&map, theirs).map(|()| true)
        };
        let sides = vec![side("one", one), side("other", other)];
        race(env.time / 4, sides).context(kind.node)?;
    }
    Ok(())
}

/// The file is truncated while its pages are looked up, and while they are shown.
fn truncate_get(env: &Env) -> Result<()> {
    const COUNT: usize = 64;
    for name in ["node-pfns", "node-eager-pfns"] {
        let memfd = unsealed(COUNT)?;
        let get = |first: usize, count: usize| {
            let memfd = &memfd;
            move || {
                let node = node(name)?;
                let shown = node.show_file(memfd.as_fd(), first, count);
                if allow(shown, &[Errno::INVAL])?.is_none() {
                    return Ok(false);
                }
                see_map(&node.map(0, count)?, first, true)?;
                Ok(true)
            }
        };
        let sides = vec![
            side("get", get(0, COUNT)),
            truncates(&memfd, COUNT),
            side("get part", get(7, 16)),
        ];
        race(env.time / 2, sides).context(name)?;
    }
    Ok(())
}

/// Opens a node with pages of a file, and maps it.
pub fn open_and_map(env: &Env) -> Result<()> {
    let node = Node::open(env)?;
    see_all(&node.map(0, PAGES)?, 0)
}
