// SPDX-License-Identifier: GPL-2.0
//! DMA heaps: allocating, and giving back.

use std::os::fd::{AsRawFd, OwnedFd};
use std::time::Duration;

use anyhow::{bail, ensure, Context, Result};
use pagekit_user::abi::{self, HeapAllocation};
use pagekit_user::kernel::{stay_on_this_cpu, Cgroup};
use pagekit_user::mapping::{Mapping, RW};
use pagekit_user::process::{Child, End};
use pagekit_user::test_importer::{Dir, Importer, Kind};
use pagekit_user::{kernel, HUGE_PAGES, PAGE};
use rustix::fs::OFlags;
use rustix::io::{self, fcntl_getfd, Errno, FdFlags};
use rustix::mm::{MapFlags, ProtFlags};

use crate::device;
use crate::env::{check_file, check_pages, Content, Env};
use crate::gem;
use crate::groups::Case;

pub const CASES: &[Case] = &[
    Case::new("alloc", alloc).smoke(),
    Case::new("rounded_up", rounded_up),
    Case::new("not_stale", not_stale).smoke(),
    Case::new("fd_flags", fd_flags).smoke(),
    Case::new("large_64m", large_64m),
    Case::new("never_pinned", never_pinned).smoke(),
    Case::new("charge", charge).smoke(),
    Case::new("charge_limit", charge_limit).smoke(),
    Case::new("write_combined", write_combined).smoke(),
    Case::new("killed_while_allocating", killed_while_allocating).smoke(),
];

const RDWR: OFlags = OFlags::RDWR.union(OFlags::CLOEXEC);

/// A buffer of `pages`, written as file `id`.
pub fn filled(env: &Env, id: u8, pages: usize) -> Result<OwnedFd> {
    let buf = pages_of(env, pages)?;
    let map = Mapping::shared(&buf, 0, pages * PAGE)?;
    for page in 0..pages {
        map.write(page * PAGE, &Content::Page(id, page).bytes());
    }
    Ok(buf)
}

pub fn pages_of(env: &Env, pages: usize) -> Result<OwnedFd> {
    sized(env, (pages * PAGE) as u64)?.context("DMA_HEAP_IOCTL_ALLOC")
}

/// A page whose file descriptor is for reading only.
pub fn read_only(env: &Env) -> Result<OwnedFd> {
    let flags = (OFlags::RDONLY | OFlags::CLOEXEC).bits();
    Ok(with(env, |allocation| allocation.fd_flags = flags)??)
}

fn sized(env: &Env, len: u64) -> Result<io::Result<OwnedFd>> {
    with(env, |allocation| allocation.len = len)
}

/// Allocates a page, or what `change` makes of it.
fn with(env: &Env, change: impl FnOnce(&mut HeapAllocation)) -> Result<io::Result<OwnedFd>> {
    let mut allocation = HeapAllocation {
        len: PAGE as u64,
        fd: 0,
        fd_flags: RDWR.bits(),
        heap_flags: 0,
    };
    change(&mut allocation);
    Ok(abi::heap_alloc(env.open()?, &mut allocation))
}

fn alloc(env: &Env) -> Result<()> {
    let before = kernel::buffers()?;
    let buf = pages_of(env, 37)?;
    ensure!(kernel::buffers()? == before + 1);
    ensure!(abi::size(&buf)? == 37 * PAGE as u64);
    let name = abi::fdinfo(buf.as_raw_fd(), "exp_name")?;
    let heap = env.device.file_name().context("no name")?;
    ensure!(heap == name.as_str(), "exporter is called {name}");
    let map = Mapping::shared(&buf, 0, 37 * PAGE)?;
    check_pages(&map, |_| Content::Zero)?;
    for page in 0..37 {
        map.write(page * PAGE, &Content::Page(1, page).bytes());
    }
    check_file(&map, 1, 0)?;
    // Each buffer has memory of its own.
    check_pages(&Mapping::shared(&pages_of(env, 37)?, 0, 37 * PAGE)?, |_| {
        Content::Zero
    })?;
    drop((buf, map));
    ensure!(kernel::buffers()? == before, "not released");
    Ok(())
}

fn rounded_up(env: &Env) -> Result<()> {
    for (len, pages) in [(1, 1), (PAGE - 1, 1), (PAGE + 1, 2)] {
        let buf = sized(env, len as u64)??;
        ensure!(abi::size(&buf)? == (pages * PAGE) as u64, "{len} bytes");
        check_pages(&Mapping::shared(&buf, 0, pages * PAGE)?, |_| Content::Zero)?;
    }
    Ok(())
}

/// What comes back to the allocator is dirty, and what comes out of it must not be.
fn not_stale(env: &Env) -> Result<()> {
    const PAGES: usize = (4 << 20) / PAGE;
    for _ in 0..4 {
        let map = Mapping::shared(pages_of(env, PAGES)?, 0, PAGES * PAGE)?;
        check_pages(&map, |_| Content::Zero)?;
        for page in 0..PAGES {
            map.write(page * PAGE, &[0xa5; PAGE]);
        }
    }
    Ok(())
}

fn fd_flags(env: &Env) -> Result<()> {
    for flags in [OFlags::RDWR, RDWR] {
        let buf = with(env, |allocation| allocation.fd_flags = flags.bits())??;
        let cloexec = fcntl_getfd(&buf)?.contains(FdFlags::CLOEXEC);
        ensure!(cloexec == flags.contains(OFlags::CLOEXEC), "{flags:?}");
    }
    let buf = with(env, |allocation| {
        allocation.fd_flags = OFlags::RDONLY.bits()
    })??;
    let map = |prot| Mapping::new(&buf, 0, PAGE, prot, MapFlags::SHARED);
    check_pages(&map(ProtFlags::READ)?, |_| Content::Zero)?;
    let result = map(RW).map(drop);
    ensure!(result == Err(Errno::ACCESS), "read only: {result:?}");
    Ok(())
}

/// Many large folios, and single pages behind.
fn large_64m(env: &Env) -> Result<()> {
    const PAGES: usize = (64 << 20) / PAGE + 3;
    let buf = filled(env, 1, PAGES)?;
    for first in [0, HUGE_PAGES - 1, PAGES - 4] {
        let map = Mapping::shared(&buf, first * PAGE, (PAGES - first) * PAGE)?;
        check_file(&map, 1, first)?;
    }
    Ok(())
}

fn never_pinned(env: &Env) -> Result<()> {
    let before = kernel::pins()?;
    let buf = filled(env, 1, 64)?;
    let map = Mapping::shared(&buf, 0, 64 * PAGE)?;
    map.touch();
    let importer = Importer::open()?;
    let attachment = importer.attach(&buf, Kind::Static)?;
    attachment.map(Dir::Both)?;
    let held = kernel::pins()? - before;
    ensure!(held == 0, "{held} pins");
    Ok(())
}

const CHARGE: u64 = 16 << 20;
/// What the kernel charges or keeps beside the pages.
const SLACK: u64 = 512 * PAGE as u64;

/// Whether heaps charge buffers to memory cgroups: a parameter of the heaps' core.
fn accounting() -> Result<bool> {
    Ok(kernel::read("/sys/module/dma_heap/parameters/mem_accounting")? == "Y")
}

/// Pages are charged if that is asked for, and the charge goes when they go.
fn charge(env: &Env) -> Result<()> {
    let cgroup = Cgroup::new("pagekit-charge")?;
    Child::spawn(|| {
        cgroup.enter()?;
        let before = cgroup.charge()?;
        let buf = sized(env, CHARGE)??;
        let charge = cgroup.charge()? - before;
        let want = if accounting()? { CHARGE } else { 0 };
        ensure!(
            (want..want + SLACK).contains(&charge),
            "{charge} bytes charged for {want}"
        );
        drop(buf);
        let charge = cgroup.charge()?;
        ensure!(
            charge < before + SLACK,
            "{charge} bytes charged after release"
        );
        Ok(())
    })?
    .join("child")
}

/// A buffer of more than the limit ends its process where it is charged, and leaves nothing behind.
fn charge_limit(env: &Env) -> Result<()> {
    let cgroup = Cgroup::new("pagekit-limit")?;
    cgroup.limit(CHARGE / 2)?;
    let before = kernel::buffers()?;
    let end = Child::spawn(|| {
        cgroup.enter()?;
        sized(env, CHARGE)??;
        Ok(())
    })?
    .wait()?;
    let want = match accounting()? {
        true => End::Killed(libc::SIGKILL),
        false => End::Done,
    };
    ensure!(end == want, "{end:?}, not {want:?}");
    let charge = cgroup.charge()?;
    ensure!(charge < SLACK, "{charge} bytes stay charged");
    ensure!(kernel::buffers()? == before, "a buffer stays");
    Ok(())
}

/// Buffers that the CPU doesn't cache are like others, also for devices.
fn write_combined(env: &Env) -> Result<()> {
    let parameter = "/sys/module/pagekit_heap/parameters/write_combine";
    let setting = kernel::Setting::set(parameter, "Y")?;
    not_stale(env)?;
    for case in device::CASES {
        (case.body)(env).with_context(|| case.name)?;
    }
    // What a buffer is, it stays.
    let buf = pages_of(env, 2)?;
    drop(setting);
    let map = Mapping::shared(&buf, 0, 2 * PAGE)?;
    if cfg!(any(target_arch = "aarch64", target_arch = "x86_64")) {
        let entry = Importer::open()?.entry(map.at(PAGE))?;
        ensure!(entry.write_combined == gem::WRITE_COMBINED, "{entry:?}");
    }
    check_pages(&map, |_| Content::Zero)
}

/// A process that is killed while the kernel allocates for it is gone long before it's done, and
/// its memory too.
fn killed_while_allocating(env: &Env) -> Result<()> {
    const LEN: u64 = 512 << 20;
    // On a busy machine the signal may be late, but not each time.
    let mut peaks = Vec::new();
    while peaks.iter().all(|peak| *peak >= LEN / 2) {
        ensure!(peaks.len() < 5, "{peaks:?} bytes were allocated");
        peaks.push(allocated_when_killed(env, LEN)?);
    }
    Ok(())
}

/// How much of `len` bytes is allocated for a process that is killed after a sixteenth.
fn allocated_when_killed(env: &Env, len: u64) -> Result<u64> {
    // Where both run on one CPU, a busy machine changes nothing.
    stay_on_this_cpu()?;
    // Free memory that a CPU keeps for itself doesn't count as free.
    let _pcp = kernel::Setting::set("/proc/sys/vm/percpu_pagelist_high_fraction", "1000000")?;
    let free = || kernel::memory("MemFree");
    let before = free()?;
    ensure!(before > 2 * len, "{before} bytes of memory are too few");
    let child = Child::spawn(|| {
        sized(env, len)??;
        Ok(())
    })?;
    let (mut killed, mut peak) = (false, 0);
    while !child.ends_within(Duration::from_millis(1))? {
        peak = peak.max(before.saturating_sub(free()?));
        if !killed && peak > len / 16 {
            child.kill()?;
            killed = true;
        }
    }
    let allocated = match child.wait()? {
        End::Killed(libc::SIGKILL) => peak,
        End::Done => len,
        end => bail!("{end:?}"),
    };
    let left = before.saturating_sub(free()?);
    ensure!(left < len / 16, "{left} bytes of memory stay allocated");
    Ok(allocated)
}
