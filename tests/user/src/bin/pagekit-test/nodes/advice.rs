// SPDX-License-Identifier: GPL-2.0
//! What may want to take, merge or split pages that it finds mapped: it leaves these alone.

use std::os::fd::{FromRawFd, OwnedFd};
use std::time::Duration;

use anyhow::{bail, ensure, Context, Result};
use pagekit_user::kernel::{self, Cgroup, Setting};
use pagekit_user::mapping::{last_errno, Mapping};
use pagekit_user::process::Child;
use pagekit_user::{abi, PAGE};
use rustix::io::{self, Errno};
use rustix::ioctl::opcode;
use rustix::mm::Advice;

use super::{new, old, put, see, see_all, Node, HUGE_PAGES, PAGES};
use crate::env::Env;
use crate::groups::Case;

pub const CASES: &[Case] = &[
    Case::new("cold", |env| leaves(env, Advice::LinuxCold)).smoke(),
    Case::new("pageout", |env| leaves(env, Advice::LinuxPageOut)).smoke(),
    Case::new("mergeable", mergeable),
    Case::new("userfaultfd", userfaultfd).smoke(),
];

/// Pages that are said to be cold stay as they are, parts of large folios too. They go when the
/// node does.
fn leaves(env: &Env, advice: Advice) -> Result<()> {
    // What each CPU charges ahead.
    const SLACK: u64 = 256 * PAGE as u64;
    let cgroup = Cgroup::new("pagekit-advice")?;
    Child::spawn(|| {
        cgroup.enter()?;
        let before = cgroup.charge()?;
        let node = Node::open(env)?;
        let map = node.map(0, PAGES)?;
        map.touch();
        let parts = [
            (100, 10),
            (HUGE_PAGES - 1, 2),
            (0, HUGE_PAGES),
            (HUGE_PAGES, 1),
            (0, PAGES),
        ];
        let advise = || -> Result<()> {
            for (first, count) in parts {
                let result = map.advise_part(first * PAGE, count * PAGE, advice);
                let want = match node.kind.gup {
                    true => Ok(()),
                    false => Err(Errno::INVAL),
                };
                ensure!(result == want, "{count} from {first}: {result:?}");
                see_all(&map, 0)?;
            }
            Ok(())
        };
        advise()?;
        // Who shares them as well.
        Child::spawn(advise)?.join("child")?;
        put(&map, 105, new(105));
        see(&node.map(105, 1)?, |_| new(105))?;
        drop((map, node));
        let charge = cgroup.charge()?;
        ensure!(
            charge < before + SLACK,
            "{charge} bytes after release, {before} before"
        );
        Ok(())
    })?
    .join("child")
}

/// Pages that are the same are merged where they are a process's own, and not here.
fn mergeable(env: &Env) -> Result<()> {
    const KSM: &str = "/sys/kernel/mm/ksm";
    const COUNT: usize = 8;
    let merged = || -> Result<usize> { Ok(kernel::read("/proc/self/ksm_merging_pages")?.parse()?) };
    let _sleep = Setting::set(format!("{KSM}/sleep_millisecs"), "1")?;
    let _much = Setting::set(format!("{KSM}/pages_to_scan"), "10000")?;
    let node = Node::open(env)?;
    let (map, own) = (node.map(0, COUNT)?, Mapping::anonymous(2 * PAGE)?);
    for map in [&map, &own] {
        for page in 0..map.len() / PAGE {
            map.write(page * PAGE, &new(0).bytes());
        }
        map.advise(Advice::LinuxMergeable)?;
    }
    let _run = Setting::set(format!("{KSM}/run"), "1")?;
    let scans = || -> Result<u64> { Ok(kernel::read(format!("{KSM}/full_scans"))?.parse()?) };
    let before = scans()?;
    for _ in 0..1000 {
        if merged()? >= 2 && scans()? > before + 4 {
            break;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    let now = merged()?;
    ensure!(now == 2, "{now} pages are merged, not the two of memory");
    put(&map, 3, old(3));
    see(&node.map(0, COUNT)?, |page| match page {
        3 => old(3),
        _ => new(0),
    })
}

/// The mapping, or memory, that faults are to be handled for by user space.
fn register(memory: &Mapping, features: u64, mode: u64) -> Result<io::Result<()>> {
    /// C: `struct uffdio_api`, `struct uffdio_register`.
    type Api = [u64; 3];
    type Register = [u64; 4];
    // SAFETY: it takes flags, and makes a new file descriptor.
    let fd = match unsafe { libc::syscall(libc::SYS_userfaultfd, libc::O_CLOEXEC) } {
        // SAFETY: the kernel just created it for us.
        fd @ 0.. => unsafe { OwnedFd::from_raw_fd(fd as i32) },
        _ => bail!("userfaultfd: {:?}", last_errno()),
    };
    let mut api: Api = [0xaa, features, 0];
    let call = opcode::read_write::<Api>(0xaa, 0x3f);
    // SAFETY: the kernel reads and writes `api`.
    unsafe { abi::ioctl(&fd, call, (&raw mut api).cast()) }.context("UFFDIO_API")?;
    let mut arg: Register = [memory.at(0) as u64, memory.len() as u64, mode, 0];
    let call = opcode::read_write::<Register>(0xaa, 0);
    // SAFETY: the kernel reads and writes `arg`.
    Ok(unsafe { abi::ioctl(&fd, call, (&raw mut arg).cast()) }.map(drop))
}

/// Whoever wants to be told of faults isn't, also not of those that write.
fn userfaultfd(env: &Env) -> Result<()> {
    /// C: `UFFDIO_REGISTER_MODE_MISSING`, `_WP` and `_MINOR`.
    const MODES: [u64; 3] = [1, 2, 4];
    /// C: `UFFD_FEATURE_WP_UNPOPULATED | UFFD_FEATURE_WP_ASYNC`.
    const ASYNC: u64 = 1 << 13 | 1 << 15;
    let node = Node::open(env)?;
    let own = Mapping::anonymous(PAGE)?;
    for touched in [false, true] {
        let map = node.map(0, PAGES)?;
        if touched {
            map.touch();
        }
        for features in [0, ASYNC] {
            register(&own, features, MODES[1])?.context("of memory")?;
            for mode in MODES {
                let result = register(&map, features, mode)?;
                ensure!(
                    result == Err(Errno::INVAL),
                    "{mode}, {features:x}: {result:?}"
                );
            }
        }
        see_all(&map, 0)?;
    }
    Ok(())
}
