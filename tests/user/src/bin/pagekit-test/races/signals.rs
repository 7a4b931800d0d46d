// SPDX-License-Identifier: GPL-2.0
//! Signals come at any moment of whatever waits or takes long.

use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::atomic::{AtomicI32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{ensure, Context, Result};
use pagekit_user::abi::{self, SYNC_END, SYNC_RW, SYNC_START};
use pagekit_user::kernel::{usage, Held};
use pagekit_user::mapping::{Mapping, RW};
use pagekit_user::process::{Child, End};
use pagekit_user::style::{Object, CREATE_USERPTR, MAP_READ, SHRINK_REVOKE};
use pagekit_user::test_importer::{Dir, Importer, Kind};
use pagekit_user::PAGE;
use rustix::io::{self, Errno};
use rustix::mm::MapFlags;
use rustix::thread::gettid;

use super::{allow, at, nodes, race, report, see_map, side, DYNAMIC, PAGES, STATIC};
use crate::env::Env;
use crate::failures::{make, OURS_MAP_PAGES, OURS_MAP_PFNS};
use crate::groups::Case;
use crate::i915::{on_signal, timer};
use crate::style::written;

pub const CASES: &[Case] = &[
    Case::new("signal", signal),
    Case::new("kill", kill),
    Case::new("kill_eager", kill_eager),
];

/// What doesn't wait for a device, done with a buffer of i915.
fn no_wait(buf: &OwnedFd) -> Result<()> {
    let i915 = at("i915").device;
    drop(at("udmabuf").filled(1, PAGES)?);
    drop(Object::new(&i915, PAGES)?);
    drop(Object::new(STATIC, PAGES)?);
    drop(Object::of(DYNAMIC, buf)?);
    drop(Object::of(&i915, buf)?);
    see_map(&Mapping::shared(buf, 0, PAGES * PAGE)?, 0, false)
}

/// What waits for a device that may hang can be interrupted, and nothing else.
fn signal(env: &Env) -> Result<()> {
    let i915 = at("i915");
    let object = written(&i915, 1, PAGES)?;
    let buf = object.export()?;
    let foreign = at("udmabuf").filled(1, PAGES)?;
    let imports = [
        Object::of(STATIC, &buf)?,
        Object::of(DYNAMIC, &buf)?,
        Object::of(&i915.device, &foreign)?,
    ];
    let importer = Importer::open()?;
    let (mut round, interrupted) = (0, AtomicU64::new(0));
    let worker = AtomicI32::new(0);
    on_signal(libc::SIGUSR1, 0)?;

    let attach = || {
        let attachment = importer.attach(&buf, Kind::Dynamic)?;
        attachment.map(Dir::Both)
    };
    let sync = || {
        abi::sync(&buf, SYNC_START | SYNC_RW)?;
        abi::sync(&buf, SYNC_END | SYNC_RW)
    };
    let waits: [&(dyn Fn() -> io::Result<()> + Sync); 8] = [
        &|| object.read(0, &mut [0; PAGE]),
        &|| imports[0].map(MAP_READ).and_then(|()| imports[0].unmap()),
        &|| imports[1].map(MAP_READ).and_then(|()| imports[1].unmap()),
        &|| imports[2].map(MAP_READ).and_then(|()| imports[2].unmap()),
        &attach,
        &sync,
        &|| object.info().map(drop),
        &|| object.shrink(SHRINK_REVOKE).map(drop),
    ];
    let work = || {
        worker.store(gettid().as_raw_nonzero().get(), Ordering::Relaxed);
        round += 1;
        if round % 16 == 0 {
            no_wait(&buf).context("what doesn't wait")?;
        }
        let result = waits[round % waits.len()]();
        if result == Err(Errno::INTR) {
            interrupted.fetch_add(1, Ordering::Relaxed);
        }
        Ok(allow(result, &[Errno::INTR, Errno::IO])?.is_some())
    };
    let signals = || {
        let (pid, tid) = (std::process::id(), worker.load(Ordering::Relaxed));
        // SAFETY: plain numbers. Where there is no thread yet, nothing happens.
        unsafe { libc::syscall(libc::SYS_tgkill, pid, tid, libc::SIGUSR1) };
        std::thread::sleep(Duration::from_micros(300));
        Ok(interrupted.swap(0, Ordering::Relaxed) > 0)
    };
    let hangs = || {
        object.wedge(100)?;
        std::thread::sleep(Duration::from_millis(3));
        object.reset()?;
        std::thread::sleep(Duration::from_millis(3));
        Ok(true)
    };
    let result = race(
        env.time,
        vec![
            side("work", work),
            side("interrupt", signals),
            side("hang", hangs),
        ],
    );
    object.reset()?;
    result?;
    drop(imports);
    let info = object.info()?;
    ensure!(info.pinned == 0 && info.attachments == 0, "{info:?}");
    crate::style::check(&object, 1, PAGES)
}

/// Large enough that most are killed in the midst of it.
const LONG: usize = 2048;

type Work = (&'static str, fn() -> Result<()>);

/// What takes long, in a process of its own.
const WORKS: [Work; 7] = [
    ("udmabuf", || {
        let udmabuf = at("udmabuf");
        let memfd = abi::memfd((LONG * PAGE) as u64)?;
        udmabuf.export(&memfd, 0, LONG).map(drop)
    }),
    ("i915", || {
        let object = Object::new("/dev/pagekit-i915", LONG)?;
        Mapping::shared(object.export()?, 0, LONG * PAGE)?.touch();
        Ok(object.read(0, &mut [0])?)
    }),
    ("nouveau", || {
        let object = Object::new(DYNAMIC, LONG)?;
        Mapping::shared(object.export()?, 0, LONG * PAGE)?.touch();
        Ok(())
    }),
    ("radeon", || {
        let memory = Mapping::anonymous_with(LONG * PAGE, MapFlags::PRIVATE)?;
        drop(Object::with(
            STATIC,
            LONG,
            CREATE_USERPTR,
            memory.at(0) as usize,
        )?);
        let object = Object::new(STATIC, LONG)?;
        Mapping::new(object.export()?, 0, LONG * PAGE, RW, MapFlags::SHARED)?.touch();
        Ok(())
    }),
    ("heap", || {
        let buf = crate::heap::pages_of(&at("heap"), LONG)?;
        Mapping::shared(&buf, 0, LONG * PAGE)?.touch();
        Ok(())
    }),
    ("importer", || {
        let buf = Object::new("/dev/pagekit-i915", LONG)?.export()?;
        let (importer, import) = (Importer::open()?, Object::of(DYNAMIC, &buf)?);
        import.map(MAP_READ)?;
        let attachment = importer.attach(&buf, Kind::Static)?;
        Ok(attachment.map(Dir::Both)?)
    }),
    ("node-pages", || nodes::open_and_map(&at("node-pages"))),
];

/// Whoever is killed leaves nothing behind.
fn kill(env: &Env) -> Result<()> {
    let (start, before) = (Instant::now(), Held::now()?);
    let begun = Mapping::anonymous_with(PAGE, MapFlags::SHARED)?;
    let mut rounds = WORKS.map(|(name, _)| (name, 0));
    while start.elapsed() < env.time || rounds[0].1 == 0 {
        for ((name, work), (_, round)) in WORKS.into_iter().zip(&mut rounds) {
            begun.write(0, &[0]);
            let child = Child::spawn(|| loop {
                begun.write(0, &[1]);
                work()?;
            })?;
            while begun.page(0)[0] == 0 && !child.ends_within(Duration::ZERO)? {
                std::thread::yield_now();
            }
            // Some are about to begin, some to end, and some do it for the second time.
            std::thread::sleep(Duration::from_millis(*round * 19 % 150));
            child.kill()?;
            let end = child.wait_for(Duration::from_secs(60))?;
            ensure!(end == End::Killed(libc::SIGKILL), "{name}: {end:?}");
            let now = Held::now()?;
            ensure!(now == before, "{name}: {before:?} before, {now:?} after");
            *round += 1;
        }
    }
    report(start, &rounds);
    Ok(())
}

/// An mmap operation that maps much ends for a process that is killed: what that takes, without
/// what each process takes, is at most half of what the whole takes.
fn kill_eager(_: &Env) -> Result<()> {
    for how in [OURS_MAP_PFNS, OURS_MAP_PAGES] {
        let mut size = 128 << 20;
        loop {
            let (whole, killed) = whole_and_killed(how, size)?;
            println!("# {how}: {size} bytes: {whole:?}, {killed:?} if killed");
            if killed * 2 < whole {
                break;
            }
            // It may take less than signals need, on a fast machine or a busy one.
            size *= 2;
            ensure!(size <= 1 << 30, "{how}: {killed:?} of {whole:?}");
        }
    }
    Ok(())
}

/// What it takes to map so much, and what it takes of a process that is killed meanwhile.
fn whole_and_killed(how: u32, size: usize) -> Result<(Duration, Duration)> {
    let memfd = abi::memfd(size as u64)?;
    let file = at("bench").open()?;
    make(&file, how, memfd.as_raw_fd(), 0, size / PAGE)?;
    let least = |killed: bool, size: usize| -> Result<Duration> {
        let mut least = Duration::MAX;
        for _ in 0..5 {
            let before = children_took();
            let child = Child::spawn(|| {
                if killed {
                    // What the signal does by itself is fatal.
                    timer(1)?;
                }
                drop(Mapping::shared(&file, 0, size)?);
                Ok(())
            })?;
            child.wait_for(Duration::from_secs(60))?;
            least = least.min(children_took() - before);
        }
        Ok(least)
    };
    let nothing = least(false, PAGE)?;
    let took = |killed| -> Result<_> { Ok(least(killed, size)?.saturating_sub(nothing)) };
    Ok((took(false)?, took(true)?))
}

/// What processes that have ended took of the CPUs.
fn children_took() -> Duration {
    let usage = usage(libc::RUSAGE_CHILDREN);
    let time = |t: libc::timeval| Duration::new(t.tv_sec as u64, t.tv_usec as u32 * 1000);
    time(usage.ru_utime) + time(usage.ru_stime)
}
