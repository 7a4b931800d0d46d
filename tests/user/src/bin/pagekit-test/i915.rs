// SPDX-License-Identifier: GPL-2.0
//! What is special about i915_style.

use std::os::fd::{AsFd, AsRawFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{bail, ensure, Context, Result};
use pagekit_user::abi::{self, SYNC_END, SYNC_READ, SYNC_RW, SYNC_START};
use pagekit_user::drm::{Card, Handle};
use pagekit_user::kernel::{RootGroup, ZramSwap};
use pagekit_user::mapping::{is_mapped, Mapping, RW};
use pagekit_user::process::{Child, End};
use pagekit_user::style::{
    Object, CREATE_SHMEM_MMAP, INFO_WEDGED, MAP_READ, MAP_WRITE, SHRINK_REVOKE,
};
use pagekit_user::test_importer::{Dir, Importer, Kind, Through};
use pagekit_user::{kernel, PAGE};
use rustix::fs::{Mode, OFlags};
use rustix::io::{self, Errno};
use rustix::mm::MapFlags;

use crate::env::{check_file, Content, Env};
use crate::groups::Case;
use crate::mappings::process_vm;
use crate::style::{check, fill, foreign, unevictable, vmaps, written, MANY, ODD_SIZE};

pub const CASES: &[Case] = &[
    Case::new("pins", pins).smoke(),
    Case::new("pins_nest", pins_nest).smoke(),
    Case::new("unevictable", unevictable_while_used).smoke(),
    Case::new("kernel_map_pins", kernel_map_pins).smoke(),
    Case::new("killed_pinning", killed_pinning),
    Case::new("killed_waiting", killed_waiting),
    Case::new("filling_keeps_nobody", filling_keeps_nobody),
    Case::new("wedged", wedged).smoke(),
    Case::new("wedged_for_a_while", wedged_for_a_while),
    Case::new("wedged_until_reset", wedged_until_reset).smoke(),
    Case::new("wedged_signal", wedged_signal).smoke(),
    Case::new("wedged_restart", wedged_restart),
    Case::new("wedged_kill", wedged_kill).smoke(),
    Case::new("wedged_kill_behind", wedged_kill_behind).smoke(),
    Case::new("wedged_fdinfo", wedged_fdinfo).smoke(),
    Case::new("shrink", shrink).smoke(),
    Case::new("shrink_spares_pins", shrink_spares_pins).smoke(),
    Case::new("mapping_revokes", mapping_revokes).smoke(),
    Case::new("revoke", revoke).smoke(),
    Case::new("revoke_refused", revoke_refused).smoke(),
    Case::new("revoke_beside_copies", revoke_beside_copies).smoke(),
    Case::new("revoke_waits", revoke_waits).smoke(),
    Case::new("revoke_waits_for_fences", revoke_waits_for_fences).smoke(),
    Case::new("revoke_gives_up", revoke_gives_up),
    Case::new("fence_keeps_pins", fence_keeps_pins).smoke(),
    Case::new("shrinker", shrinker).smoke(),
    Case::new("shrinks_without_file", shrinks_without_file).smoke(),
    Case::new("swap", swap).smoke(),
    Case::new("swap_before_a_device_maps", swap_before_a_device_maps),
    Case::new("file_mmap", file_mmap).smoke(),
    Case::new("file_mmap_swap", file_mmap_swap),
    Case::new("moving_target", moving_target).smoke(),
];

const STATIC: &str = "/dev/pagekit-radeon";
const DYNAMIC: &str = "/dev/pagekit-nouveau";

fn pinned(object: &Object) -> Result<u64> {
    Ok(object.info()?.pinned)
}

/// Only while a device maps, whatever else happens.
fn pins(env: &Env) -> Result<()> {
    for (importer, pages) in [(STATIC, 16), (DYNAMIC, 16)] {
        let before = kernel::pins()?;
        let object = Object::new(&env.device, pages)?;
        let pins = |want, what| {
            let (info, all) = (object.info()?, kernel::pins()? - before);
            ensure!(
                info.pinned == want && all == want as i64,
                "{importer}: {all} pins after {what}: {info:?}"
            );
            Ok(())
        };
        pins(0, "create")?;
        ensure!(object.info()?.held == 0 && object.info()?.resident == 0);
        let buf = object.export()?;
        pins(0, "export")?;
        let map = Mapping::shared(&buf, 0, pages * PAGE)?;
        map.touch();
        pins(0, "mmap")?;
        ensure!(object.info()?.held == pages as u64, "{:?}", object.info()?);
        let import = Object::of(importer, &buf)?;
        pins(0, "attach")?;
        import.map(MAP_READ | MAP_WRITE)?;
        pins(pages as u64, "map")?;
        ensure!(object.info()?.held == 0, "{:?}", object.info()?);
        import.unmap()?;
        pins(0, "unmap")?;
        import.map(MAP_READ)?;
        pins(pages as u64, "map")?;
        drop(import);
        pins(0, "close")?;
    }
    Ok(())
}

/// The first pins, the last unpins.
fn pins_nest(env: &Env) -> Result<()> {
    let object = written(env, 1, 16)?;
    let buf = object.export()?;
    let imports = [
        Object::of(STATIC, &buf)?,
        Object::of(DYNAMIC, &buf)?,
        Object::of(STATIC, &buf)?,
    ];
    let before = kernel::pins()?;
    for import in &imports {
        import.map(MAP_READ | MAP_WRITE)?;
        ensure!(kernel::pins()? - before == 16 && pinned(&object)? == 16);
        check(import, 1, 16)?;
    }
    ensure!(object.info()?.mappings == 3 && object.info()?.attachments == 3);
    for import in imports {
        ensure!(kernel::pins()? - before == 16 && pinned(&object)? == 16);
        drop(import);
    }
    ensure!(kernel::pins()? == before && pinned(&object)? == 0);
    check(&object, 1, 16)
}

/// Reclaim leaves pages alone while it could not free them, and finds them afterwards.
fn unevictable_while_used(env: &Env) -> Result<()> {
    let object = Object::new(&env.device, MANY)?;
    let buf = object.export()?;
    let map = Mapping::shared(&buf, 0, MANY * PAGE)?;
    let import = Object::of(STATIC, &buf)?;
    let steps: [(&str, bool, &dyn Fn() -> io::Result<()>); 4] = [
        ("CREATE", false, &|| Ok(())),
        ("map", true, &|| import.map(MAP_READ)),
        ("unmap", false, &|| import.unmap()),
        ("a copy", false, &|| object.read(0, &mut [0])),
    ];
    let before = unevictable()?;
    for (what, want, step) in steps {
        step()?;
        let now = unevictable()? - before;
        let range = match want {
            true => MANY as i64 * 7 / 8..i64::MAX,
            false => -(MANY as i64) / 8..MANY as i64 / 8,
        };
        ensure!(range.contains(&now), "{now} pages of {MANY} after {what}");
    }
    drop((object, import, buf, map));
    let object = Object::new(&env.device, MANY)?;
    let map = Mapping::shared(object.export()?, 0, MANY * PAGE)?;
    map.touch();
    let now = unevictable()? - before;
    ensure!(now > MANY as i64 * 7 / 8, "{now} pages of {MANY} are held");
    object.shrink(0)?;
    let now = unevictable()? - before;
    ensure!(now < MANY as i64 / 8, "{now} pages when given back");
    Ok(())
}

fn kernel_map_pins(env: &Env) -> Result<()> {
    let object = Object::new(&env.device, ODD_SIZE)?;
    let before = kernel::pins()?;
    for _ in 0..2 {
        object.write(PAGE, b"something")?;
        ensure!(vmaps(ODD_SIZE)? == 0 && pinned(&object)? == 0, "kept");
        ensure!(kernel::pins()? == before);
    }
    let mut bytes = [0; 9];
    object.read(PAGE, &mut bytes)?;
    ensure!(&bytes == b"something");
    // Who holds on to a kernel mapping keeps it pinned: nobody here does, but nouveau's copy needs
    // it.
    let import = Object::of(DYNAMIC, object.export()?)?;
    import.read(PAGE, &mut bytes)?;
    ensure!(&bytes == b"something" && pinned(&object)? == 0);
    Ok(())
}

/// Who is killed while pages are pinned for a copy leaves nothing, and the kernel doesn't mind.
fn killed_pinning(env: &Env) -> Result<()> {
    const TRIES: usize = 10;
    'again: for _ in 0..TRIES {
        let object = Object::new(&env.device, 1 << 15)?;
        let before = kernel::pins()?;
        let child = Child::spawn(|| Ok(object.read(0, &mut [0])?))?;
        while kernel::pins()? == before {
            if child.ends_within(Duration::ZERO)? {
                continue 'again;
            }
        }
        child.kill()?;
        let end = child.wait_for(Duration::from_secs(60))?;
        ensure!(end == End::Killed(libc::SIGKILL), "{end:?}");
        ensure!(kernel::pins()? == before && pinned(&object)? == 0);
        return Ok(object.read(0, &mut [0])?);
    }
    bail!("it was too fast, {TRIES} times")
}

/// A process that gets the pages of a large object, with the device locked for as long.
struct Filling {
    _child: Child,
    /// How much shared memory there is when it has nearly done so.
    full: u64,
}

impl Filling {
    fn begin(env: &Env) -> Result<Self> {
        const PAGES: usize = 1 << 16;
        let map = Mapping::shared(Object::new(&env.device, PAGES)?.export()?, 0, PAGES * PAGE)?;
        let before = kernel::memory("Shmem")?;
        let child = Child::spawn(|| {
            map.write(0, &[0]);
            loop {
                std::thread::park();
            }
        })?;
        while kernel::memory("Shmem")? < before + (4 << 20) {
            ensure!(!child.ends_within(Duration::ZERO)?, "it ended");
        }
        Ok(Self {
            _child: child,
            full: before + (PAGES * PAGE) as u64 * 15 / 16,
        })
    }

    fn goes_on(&self) -> Result<bool> {
        Ok(kernel::memory("Shmem")? < self.full)
    }
}

/// Who waits for the device can be killed there and then.
fn killed_waiting(env: &Env) -> Result<()> {
    let object = written(env, 1, 1)?;
    let buf = object.export()?;
    let import = Object::of(STATIC, &buf)?;
    let waits: [(&str, &dyn Fn() -> Result<()>); 7] = [
        ("a fault", &|| {
            // Of an object that goes with the process.
            let map = Mapping::shared(Object::new(&env.device, 1)?.export()?, 0, PAGE)?;
            map.touch();
            Ok(())
        }),
        ("INFO", &|| Ok(object.info().map(drop)?)),
        ("SHRINK", &|| Ok(object.shrink(0).map(drop)?)),
        ("REVOKE", &|| Ok(object.shrink(SHRINK_REVOKE).map(drop)?)),
        ("ACCESS", &|| Ok(object.read(0, &mut [0])?)),
        ("importer", &|| Ok(import.map(MAP_READ)?)),
        ("SYNC", &|| Ok(abi::sync(&buf, SYNC_START | SYNC_READ)?)),
    ];
    for (what, wait) in waits {
        let filling = Filling::begin(env)?;
        let child = Child::spawn(wait)?;
        ensure!(
            !child.ends_within(Duration::from_millis(100))?,
            "{what} doesn't wait"
        );
        child.kill()?;
        let end = child.wait_for(Duration::from_secs(60))?;
        ensure!(end == End::Killed(libc::SIGKILL), "{what}: {end:?}");
        ensure!(filling.goes_on()?, "{what} waited for the device");
    }
    check(&object, 1, 1)
}

/// What needs no pages doesn't wait for a device that gets some.
fn filling_keeps_nobody(env: &Env) -> Result<()> {
    let object = written(env, 1, 1)?;
    let buf = object.export()?;
    let works: [(&str, &dyn Fn() -> Result<()>); 4] = [
        ("CREATE and release", &|| {
            Object::new(&env.device, 1).map(drop)
        }),
        ("IMPORT", &|| Object::of(&env.device, &buf).map(drop)),
        ("fdinfo", &|| {
            abi::fdinfo(object.as_fd().as_raw_fd(), "size").map(drop)
        }),
        ("debugfs", &|| {
            kernel::read("/sys/kernel/debug/pagekit-i915/objects").map(drop)
        }),
    ];
    for (what, work) in works {
        let filling = Filling::begin(env)?;
        work()?;
        ensure!(filling.goes_on()?, "{what} waited for the device");
    }
    Ok(())
}

/// What needs a device that works, for another device's sake or its own.
fn needs(env: &Env, object: &Object) -> Result<Vec<(&'static str, io::Result<()>)>> {
    let buf = object.export()?;
    let mut byte = [0];
    let (_memfd, other) = foreign(1, 4)?;
    let results = vec![
        ("ACCESS", object.read(0, &mut byte)),
        ("MAP", Object::of(&env.device, other)?.map(MAP_READ)),
        ("static importer", Object::of(STATIC, &buf)?.map(MAP_READ)),
        ("dynamic importer", Object::of(DYNAMIC, &buf)?.map(MAP_READ)),
        (
            "test importer",
            Importer::open()?.read(&buf, Through::Dma, 0, &mut byte),
        ),
        (
            "kernel",
            Importer::open()?.read(&buf, Through::Vmap, 0, &mut byte),
        ),
        ("SYNC", abi::sync(&buf, SYNC_START | SYNC_READ)),
    ];
    Ok(results)
}

/// `EIO` for what needs the device, and nothing else.
fn wedged(env: &Env) -> Result<()> {
    let object = written(env, 1, 16)?;
    let buf = object.export()?;
    let map = Mapping::shared(&buf, 0, 16 * PAGE)?;
    let mapped = Object::of(DYNAMIC, &buf)?;
    mapped.map(MAP_READ)?;
    abi::sync(&buf, SYNC_START | SYNC_READ)?;
    object.wedge(0)?;
    let result = wedged_now(env, &object, &map, &mapped);
    object.reset()?;
    result?;
    ensure!(object.info()?.flags & INFO_WEDGED == 0);
    for (what, result) in needs(env, &object)? {
        result.with_context(|| format!("{what} after reset"))?;
    }
    check(&object, 1, 16)
}

fn wedged_now(env: &Env, object: &Object, map: &Mapping, mapped: &Object) -> Result<()> {
    ensure!(object.info()?.flags & INFO_WEDGED != 0);
    for (what, result) in needs(env, object)? {
        ensure!(result == Err(Errno::IO), "{what}: {result:?}");
    }
    ensure!(pinned(object)? == 16, "what was mapped isn't any more");
    // What has begun can end, and memory is memory.
    abi::sync(object.export()?, SYNC_END | SYNC_READ)?;
    mapped.unmap()?;
    ensure!(pinned(object)? == 0);
    check_file(map, 1, 0)?;
    object.shrink(0)?;
    check_file(map, 1, 0)?;
    drop(Object::new(&env.device, 4)?);
    Ok(())
}

/// Nobody resets it.
fn wedged_for_a_while(env: &Env) -> Result<()> {
    let object = written(env, 1, 4)?;
    ensure!(object.wedge(100_001) == Err(Errno::INVAL), "for longer");
    object.wedge(500)?;
    let start = Instant::now();
    let result = object.read(0, &mut [0]);
    let waited = start.elapsed();
    object.reset()?;
    ensure!(result == Err(Errno::IO), "{result:?}");
    ensure!(waited >= Duration::from_millis(490), "only {waited:?}");
    check(&object, 1, 4)
}

/// A device that is reset only when dropped, and until then has others wait.
struct Hang<'a>(&'a Object);

impl<'a> Hang<'a> {
    fn new(object: &'a Object) -> Result<Self> {
        object.wedge(100_000)?;
        Ok(Self(object))
    }
}

impl Drop for Hang<'_> {
    fn drop(&mut self) {
        let _ = self.0.reset();
    }
}

fn wedged_until_reset(env: &Env) -> Result<()> {
    let object = written(env, 1, 4)?;
    let hang = Hang::new(&object)?;
    let start = Instant::now();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            std::thread::sleep(Duration::from_millis(300));
            drop(hang);
        });
        check(&object, 1, 4)
    })?;
    let waited = start.elapsed();
    ensure!(waited >= Duration::from_millis(290), "only {waited:?}");
    Ok(())
}

extern "C" fn nothing(_signal: libc::c_int) {}

/// A signal that does nothing but end or restart a system call.
pub fn on_signal(signal: libc::c_int, flags: libc::c_int) -> Result<()> {
    // SAFETY: plain numbers, which may be zero.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = nothing as extern "C" fn(libc::c_int) as usize;
    action.sa_flags = flags;
    // SAFETY: `nothing` may be called at any time. What was set before is of no interest.
    let ret = unsafe { libc::sigaction(signal, &action, std::ptr::null_mut()) };
    ensure!(ret == 0, "no handler");
    Ok(())
}

/// Such a signal in a while.
fn alarm(milliseconds: i64, flags: libc::c_int) -> Result<()> {
    on_signal(libc::SIGALRM, flags)?;
    timer(milliseconds)
}

/// Sends this process `SIGALRM` in a while.
pub fn timer(milliseconds: i64) -> Result<()> {
    // SAFETY: plain numbers, which may be zero.
    let mut timer: libc::itimerval = unsafe { std::mem::zeroed() };
    timer.it_value.tv_usec = milliseconds * 1000;
    // SAFETY: the timer is valid. What was set before is of no interest.
    let ret = unsafe { libc::setitimer(libc::ITIMER_REAL, &timer, std::ptr::null_mut()) };
    ensure!(ret == 0, "no alarm");
    Ok(())
}

/// A signal ends the wait, wherever it is.
fn wedged_signal(env: &Env) -> Result<()> {
    let object = written(env, 1, 4)?;
    let buf = object.export()?;
    let (_memfd, other) = foreign(1, 4)?;
    let import = Object::of(&env.device, other)?;
    let radeon = Object::of(STATIC, &buf)?;
    let nouveau = Object::of(DYNAMIC, &buf)?;
    let importer = Importer::open()?;
    let waits: [(&str, &dyn Fn() -> io::Result<()>); 6] = [
        ("ACCESS", &|| object.read(0, &mut [0])),
        ("MAP", &|| import.map(MAP_READ)),
        ("static importer", &|| radeon.map(MAP_READ)),
        ("dynamic importer", &|| nouveau.map(MAP_READ)),
        ("test importer", &|| {
            importer.read(&buf, Through::Dma, 0, &mut [0])
        }),
        ("SYNC", &|| abi::sync(&buf, SYNC_START | SYNC_READ)),
    ];
    let hang = Hang::new(&object)?;
    for (what, wait) in waits {
        let start = Instant::now();
        alarm(200, 0)?;
        let result = wait();
        ensure!(result == Err(Errno::INTR), "{what}: {result:?}");
        let waited = start.elapsed();
        ensure!(waited >= Duration::from_millis(190), "{what}: {waited:?}");
    }
    drop(hang);
    for (what, wait) in waits {
        wait().with_context(|| format!("{what} after reset"))?;
    }
    check(&object, 1, 4)
}

/// A handler that restarts system calls lets it wait on.
fn wedged_restart(env: &Env) -> Result<()> {
    let object = written(env, 1, 4)?;
    let buf = object.export()?;
    let hang = Hang::new(&object)?;
    alarm(200, libc::SA_RESTART)?;
    let start = Instant::now();
    let reset = std::thread::spawn({
        let object = Object::of(&env.device, &buf)?;
        move || {
            std::thread::sleep(Duration::from_millis(600));
            object.reset()
        }
    });
    let result = abi::sync(&buf, SYNC_START | SYNC_READ);
    let waited = start.elapsed();
    ensure!(matches!(reset.join(), Ok(Ok(()))), "no reset");
    drop(hang);
    ensure!(result == Ok(()), "{result:?}");
    ensure!(waited >= Duration::from_millis(590), "only {waited:?}");
    Ok(())
}

/// A process can be killed in it, with the reservation lock held.
fn wedged_kill(env: &Env) -> Result<()> {
    let object = written(env, 1, 4)?;
    let buf = object.export()?;
    let _hang = Hang::new(&object)?;
    for importer in [STATIC, DYNAMIC] {
        let child = Child::spawn(|| Ok(Object::of(importer, &buf)?.map(MAP_READ)?))?;
        std::thread::sleep(Duration::from_millis(300));
        child.kill()?;
        let end = child.wait_for(Duration::from_secs(30))?;
        ensure!(end == End::Killed(libc::SIGKILL), "{importer}: {end:?}");
    }
    Ok(())
}

/// So can one that waits for it.
fn wedged_kill_behind(env: &Env) -> Result<()> {
    let object = written(env, 1, 4)?;
    let buf = object.export()?;
    let (first, second) = (Object::of(STATIC, &buf)?, Object::of(STATIC, &buf)?);
    let dynamic = Object::of(DYNAMIC, &buf)?;
    let waits: [(&str, &dyn Fn() -> io::Result<()>); 3] = [
        ("static importer", &|| second.map(MAP_READ)),
        ("dynamic importer", &|| dynamic.map(MAP_READ)),
        ("INFO", &|| object.info().map(drop)),
    ];
    let _hang = Hang::new(&object)?;
    let _reserves = Child::spawn(|| Ok(first.map(MAP_READ)?))?;
    std::thread::sleep(Duration::from_millis(300));
    for (what, wait) in waits {
        let child = Child::spawn(|| Ok(wait()?))?;
        ensure!(
            !child.ends_within(Duration::from_millis(300))?,
            "{what} doesn't wait"
        );
        child.kill()?;
        let end = child.wait_for(Duration::from_secs(30))?;
        ensure!(end == End::Killed(libc::SIGKILL), "{what}: {end:?}");
    }
    Ok(())
}

/// Nobody has to wait for who looks at the files of a device that hangs. The size can be had.
fn wedged_fdinfo(env: &Env) -> Result<()> {
    let object = written(env, 1, 4)?;
    let buf = object.export()?;
    let imports = [Object::of(STATIC, &buf)?, Object::of(DYNAMIC, &buf)?];
    let waits = Object::of(STATIC, &buf)?;
    let _hang = Hang::new(&object)?;
    let _reserves = Child::spawn(|| Ok(waits.map(MAP_READ)?))?;
    std::thread::sleep(Duration::from_millis(300));
    for file in [&object, &imports[0], &imports[1], &waits] {
        let end = Child::spawn(|| {
            let size = abi::fdinfo(file.as_fd().as_raw_fd(), "size")?;
            ensure!(size == (4 * PAGE).to_string(), "{size}");
            Ok(())
        })?
        .wait_for(Duration::from_secs(30))?;
        ensure!(end == End::Done, "{end:?}");
    }
    Ok(())
}

/// Pages that are held are given back, and mappings of them revoked.
fn shrink(env: &Env) -> Result<()> {
    let objects = [written(env, 1, 16)?, written(env, 2, 32)?];
    let map = |object: &Object, pages| -> Result<Mapping> {
        Ok(Mapping::shared(object.export()?, 0, pages * PAGE)?)
    };
    let maps = [map(&objects[0], 16)?, map(&objects[1], 32)?];
    for round in 0..3 {
        maps.iter().for_each(Mapping::touch);
        let held = objects.each_ref().map(|object| object.info());
        for (info, pages) in held.into_iter().zip([16, 32]) {
            let info = info?;
            ensure!(info.held == pages && info.pinned == 0, "{info:?}");
        }
        ensure!(is_mapped(&maps[0], 3) && is_mapped(&maps[1], 31));
        let given = objects[round % 2].shrink(0)?;
        ensure!(given == 48, "{given} pages given back");
        for object in &objects {
            ensure!(object.info()?.held == 0, "{:?}", object.info()?);
        }
        ensure!(objects[0].shrink(0)? == 0);
        ensure!(!is_mapped(&maps[0], 3) && !is_mapped(&maps[1], 31));
        check_file(&maps[0], 1, 0)?;
        check_file(&maps[1], 2, 0)?;
    }
    // What is written between two revocations is not lost.
    maps[0].write(5 * PAGE, &Content::Page(3, 5).bytes());
    objects[0].shrink(0)?;
    Content::Page(3, 5).check(&maps[0].page(5))
}

fn shrink_spares_pins(env: &Env) -> Result<()> {
    let object = written(env, 1, 16)?;
    let buf = object.export()?;
    let map = Mapping::shared(&buf, 0, 16 * PAGE)?;
    let import = Object::of(STATIC, &buf)?;
    import.map(MAP_READ)?;
    map.touch();
    ensure!(object.shrink(0)? == 0 && pinned(&object)? == 16);
    ensure!(is_mapped(&map, 7), "revoked");
    check_file(&map, 1, 0)?;
    import.unmap()?;
    ensure!(!is_mapped(&map, 7), "mapped though unpinned");
    check_file(&map, 1, 0)
}

/// Pages may be moved to be pinned: mappings of where they were must go.
fn mapping_revokes(env: &Env) -> Result<()> {
    let object = written(env, 1, 16)?;
    let buf = object.export()?;
    let map = Mapping::shared(&buf, 0, 16 * PAGE)?;
    let import = Object::of(DYNAMIC, &buf)?;
    for page in 0..4 {
        map.touch();
        ensure!(is_mapped(&map, page));
        import.map(MAP_WRITE)?;
        ensure!(!is_mapped(&map, page), "mapped where it may have been");
        map.write(page * PAGE, &Content::Page(2, page).bytes());
        let mut bytes = [0; PAGE];
        import.read(page * PAGE, &mut bytes)?;
        Content::Page(2, page).check(&bytes)?;
        import.unmap()?;
        Content::Page(2, page).check(&map.page(page))?;
    }
    Ok(())
}

/// An importer that can do without the pages is asked for them, and gets them again.
fn revoke(env: &Env) -> Result<()> {
    let object = written(env, 1, 16)?;
    let buf = object.export()?;
    let imports = [Object::of(DYNAMIC, &buf)?, Object::of(DYNAMIC, &buf)?];
    for import in &imports {
        import.map(MAP_READ | MAP_WRITE)?;
    }
    ensure!(object.shrink(0)? == 0 && pinned(&object)? == 16);
    let given = object.shrink(SHRINK_REVOKE)?;
    ensure!(given == 16, "{given} pages given back");
    let info = object.info()?;
    ensure!(info.pinned == 0 && info.mappings == 0 && info.attachments == 2);
    ensure!(imports[0].info()?.mappings == 0, "still mapped");
    check(&imports[0], 1, 16)?;
    ensure!(imports[0].info()?.mappings == 1 && imports[1].info()?.mappings == 0);
    ensure!(pinned(&object)? == 16);
    fill(&imports[1], 2, 16)?;
    ensure!(object.info()?.mappings == 2);
    for import in &imports {
        import.unmap()?;
    }
    ensure!(pinned(&object)? == 0);
    // Unmapped while it is revoked.
    imports[0].map(MAP_READ)?;
    object.shrink(SHRINK_REVOKE)?;
    imports[0].unmap()?;
    ensure!(object.shrink(SHRINK_REVOKE)? == 0);
    check(&object, 2, 16)
}

/// One that can't do without is not asked, and so nobody is.
fn revoke_refused(env: &Env) -> Result<()> {
    let object = written(env, 1, 16)?;
    let buf = object.export()?;
    let (fixed, other) = (Object::of(STATIC, &buf)?, Object::of(DYNAMIC, &buf)?);
    fixed.map(MAP_READ)?;
    other.map(MAP_READ)?;
    ensure!(object.shrink(SHRINK_REVOKE) == Err(Errno::BUSY));
    ensure!(pinned(&object)? == 16 && other.info()?.mappings == 1);
    fixed.unmap()?;
    ensure!(object.shrink(SHRINK_REVOKE)? == 16);
    Ok(())
}

/// Copies pin and unpin whenever they like.
fn revoke_beside_copies(env: &Env) -> Result<()> {
    let object = written(env, 1, 16)?;
    let end = Instant::now() + Duration::from_secs(1);
    let copies = || -> Result<()> {
        while Instant::now() < end {
            object.read(0, &mut [0])?;
        }
        Ok(())
    };
    std::thread::scope(|scope| {
        let thread = scope.spawn(copies);
        while Instant::now() < end {
            object.shrink(SHRINK_REVOKE)?;
        }
        thread.join().unwrap_or_else(|_| bail!("panic"))
    })?;
    ensure!(pinned(&object)? == 0);
    check(&object, 1, 16)
}

/// A device that can't stop at once writes on, and is waited for: until it has unmapped the pages,
/// too.
fn revoke_waits(env: &Env) -> Result<()> {
    let object = written(env, 1, 16)?;
    let buf = object.export()?;
    let importer = Importer::open()?;
    let attachment = importer.attach(&buf, Kind::Dynamic)?;
    for value in 2..5 {
        attachment.map(Dir::Both)?;
        attachment.fill_later(3, value, 300)?;
        let start = Instant::now();
        let given = object.shrink(SHRINK_REVOKE)?;
        let waited = start.elapsed();
        ensure!(waited > Duration::from_millis(250), "only {waited:?}");
        ensure!(given == 16 && pinned(&object)? == 0, "{given} given back");
        let mut page = [0; PAGE];
        object.read(3 * PAGE, &mut page)?;
        ensure!(page == [value; PAGE], "{:#x}, not {value}", page[0]);
        attachment.unmap()?;
    }
    Ok(())
}

/// A fence of vgem, of something else that it does, becomes one of the buffer.
pub fn fence<'a>(card: &'a Card, buf: impl AsFd) -> Result<(Handle<'a>, u32)> {
    let handle = card.create_dumb(1)?;
    let fence = handle.write_fence()?;
    let fences = abi::export_fences(handle.export()?, SYNC_RW)?;
    abi::import_fences(buf, fences, SYNC_RW)?;
    Ok((handle, fence))
}

/// The importer has unmapped the pages, but who knows what else is on its way.
fn revoke_waits_for_fences(env: &Env) -> Result<()> {
    let (object, card) = (written(env, 1, 16)?, Card::find("vgem")?);
    let buf = object.export()?;
    let import = Object::of(DYNAMIC, &buf)?;
    import.map(MAP_READ | MAP_WRITE)?;
    let (_handle, fence) = fence(&card, &buf)?;
    let start = Instant::now();
    let given = std::thread::scope(|scope| {
        let revoke = scope.spawn(|| object.shrink(SHRINK_REVOKE));
        while import.info()?.mappings != 0 && !revoke.is_finished() {
            std::thread::yield_now();
        }
        std::thread::sleep(Duration::from_millis(200));
        let (early, pinned) = (revoke.is_finished(), pinned(&object)?);
        card.signal(fence)?;
        ensure!(!early && pinned == 16, "{pinned} pinned, done: {early}");
        Ok(revoke.join().unwrap_or(Err(Errno::IO))?)
    })?;
    let waited = start.elapsed();
    ensure!(waited < Duration::from_secs(2), "{waited:?}");
    ensure!(given == 16 && pinned(&object)? == 0, "{given} given back");
    check(&object, 1, 16)
}

/// Not for ever: after a while, or a signal, or when it is killed.
fn revoke_gives_up(env: &Env) -> Result<()> {
    let (object, card) = (written(env, 1, 16)?, Card::find("vgem")?);
    let buf = object.export()?;
    let import = Object::of(DYNAMIC, &buf)?;
    import.map(MAP_READ)?;
    let (_handle, fence) = fence(&card, &buf)?;
    alarm(200, 0)?;
    let result = object.shrink(SHRINK_REVOKE);
    ensure!(result == Err(Errno::INTR), "{result:?}");
    let child = Child::spawn(|| {
        object.shrink(SHRINK_REVOKE)?;
        Ok(())
    })?;
    std::thread::sleep(Duration::from_millis(200));
    child.kill()?;
    let end = child.wait_for(Duration::from_secs(1))?;
    ensure!(end == End::Killed(libc::SIGKILL), "{end:?}");
    let start = Instant::now();
    let result = object.shrink(SHRINK_REVOKE);
    let waited = start.elapsed();
    ensure!(result == Err(Errno::BUSY), "{result:?}");
    ensure!(waited < Duration::from_secs(4), "{waited:?}");
    ensure!(pinned(&object)? == 16 && object.shrink(0)? == 0);
    card.signal(fence)?;
    ensure!(object.shrink(0)? == 16 && pinned(&object)? == 0);
    check(&object, 1, 16)
}

/// Whoever unmaps while there is a fence may still be at the pages. Others can have them, too.
fn fence_keeps_pins(env: &Env) -> Result<()> {
    let object = written(env, 1, 16)?;
    let buf = object.export()?;
    let map = Mapping::shared(&buf, 0, 16 * PAGE)?;
    let (importer, other) = (Importer::open()?, Object::of(STATIC, &buf)?);
    let attachment = importer.attach(&buf, Kind::Dynamic)?;
    attachment.map(Dir::Both)?;
    attachment.fill_later(3, 2, 500)?;
    attachment.unmap()?;
    let kept = || -> Result<bool> {
        let (given, pinned) = (object.shrink(0)?, pinned(&object)?);
        kernel::write("/proc/sys/vm/drop_caches", "2")?;
        Ok((given, pinned) == (0, 16) && object.info()?.pinned == 16)
    };
    let early = kept()?;
    check_file(&Mapping::shared(&buf, 4 * PAGE, 12 * PAGE)?, 1, 4)?;
    other.map(MAP_READ)?;
    other.unmap()?;
    ensure!(early && kept()?, "not kept");
    abi::with_cpu_access(&buf, SYNC_READ, || {
        let page = map.page(3);
        ensure!(page == [2; PAGE], "{:#x}", page[0]);
        Ok(())
    })?;
    // What is kept is memory that others can have.
    kernel::write("/proc/sys/vm/drop_caches", "2")?;
    ensure!(pinned(&object)? == 0, "kept for ever");
    Ok(())
}

/// The kernel asks for pages by itself. What is pinned stays.
fn shrinker(env: &Env) -> Result<()> {
    let (object, other) = (written(env, 1, 512)?, written(env, 2, 16)?);
    let map = Mapping::shared(object.export()?, 0, 512 * PAGE)?;
    let import = Object::of(STATIC, other.export()?)?;
    import.map(MAP_READ)?;
    for _ in 0..3 {
        map.touch();
        ensure!(object.info()?.held == 512, "{:?}", object.info()?);
        // This asks all shrinkers.
        kernel::write("/proc/sys/vm/drop_caches", "2")?;
        ensure!(object.info()?.held == 0, "{:?}", object.info()?);
        ensure!(!is_mapped(&map, 100));
        check_file(&map, 1, 0)?;
    }
    ensure!(pinned(&other)? == 16);
    check(&import, 2, 16)
}

/// An `O_PATH` file keeps the buffer, but not its file: others get that memory.
fn shrinks_without_file(env: &Env) -> Result<()> {
    const FILES: usize = 64;
    let object = written(env, 1, 16)?;
    let buf = object.export()?;
    Mapping::shared(&buf, 0, 16 * PAGE)?.touch();
    let place = format!("/proc/self/fd/{}", buf.as_raw_fd());
    let path = rustix::fs::open(place, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
    drop((object, buf));
    let others = [(); FILES].map(|()| -> Result<_> {
        let file = abi::memfd(PAGE as u64)?;
        let map = Mapping::new(&file, 0, PAGE, RW, MapFlags::PRIVATE)?;
        map.write(0, &Content::Page(2, 0).bytes());
        Ok((file, map))
    });
    let empty = Object::open(&env.device)?;
    let given = empty.shrink(0)?;
    for other in others {
        let (_file, map) = other?;
        Content::Page(2, 0).check(&map.page(0))?;
    }
    ensure!(given == 16, "{given} pages given back");
    drop(path);
    ensure!(empty.shrink(0)? == 0);
    Ok(())
}

/// Has memory be short until `is_done`.
pub fn squeeze(is_done: impl Fn() -> Result<bool>) -> Result<()> {
    let group = RootGroup::mount()?;
    // The kernel looks at numbers that it brings up to date every other second.
    for _ in 0..300 {
        if is_done()? {
            return Ok(());
        }
        group.reclaim(16 << 20)?;
        // New pages wait in lists of each CPU, where reclaim doesn't find them: this drains them.
        kernel::write("/proc/sys/vm/compact_memory", "1")?;
        std::thread::sleep(Duration::from_millis(100));
    }
    bail!("still in memory")
}

const SWAPPED: usize = 1024;

/// Pages that nobody needs are swapped out when memory is short, and come back as they were.
fn swap(env: &Env) -> Result<()> {
    let _swap = ZramSwap::new(64 << 20)?;
    let (object, other) = (Object::new(&env.device, SWAPPED)?, written(env, 2, 16)?);
    let map = Mapping::shared(object.export()?, 0, SWAPPED * PAGE)?;
    let import = Object::of(STATIC, other.export()?)?;
    import.map(MAP_READ)?;
    for round in 0..2 {
        // Through the mapping, so that only the driver knows that they are dirty.
        for page in (0..SWAPPED).step_by(1 + 2 * round) {
            map.write(page * PAGE, &Content::Page(1, page).bytes());
        }
        let info = object.info()?;
        ensure!(info.held == SWAPPED as u64 && info.resident == info.held);
        squeeze(|| Ok(object.info()?.resident == 0))?;
        let info = object.info()?;
        ensure!(info.held == 0 && info.pinned == 0, "{info:?}");
        if round == 0 {
            check_file(&map, 1, 0)?;
        } else {
            check(&object, 1, SWAPPED)?;
        }
    }
    ensure!(pinned(&other)? == 16 && other.info()?.resident == 16);
    check(&import, 2, 16)
}

fn swap_before_a_device_maps(env: &Env) -> Result<()> {
    let _swap = ZramSwap::new(32 << 20)?;
    let object = written(env, 1, 256)?;
    let buf = object.export()?;
    squeeze(|| Ok(object.info()?.resident == 0))?;
    let mut bytes = vec![0; 256 * PAGE];
    Importer::open()?.read(&buf, Through::Dma, 0, &mut bytes)?;
    for (page, bytes) in bytes.chunks_exact(PAGE).enumerate() {
        Content::Page(1, page).check(bytes.try_into()?)?;
    }
    // What a device has written is in memory only: it must get to swap, too.
    let content = Content::Page(2, 100);
    Importer::open()?.write(&buf, Through::Dma, 100 * PAGE, &content.bytes())?;
    squeeze(|| Ok(object.info()?.resident == 0))?;
    let mut page = [0; PAGE];
    object.read(100 * PAGE, &mut page)?;
    content.check(&page)
}

/// The mapping is one of the driver's own file, with pages like any other.
fn file_mmap(env: &Env) -> Result<()> {
    let object = Object::with(&env.device, 32, CREATE_SHMEM_MMAP, 0)?;
    fill(&object, 1, 32)?;
    let buf = object.export()?;
    for (first, pages) in [(0, 32), (10, 12), (31, 1)] {
        let map = Mapping::shared(&buf, first * PAGE, pages * PAGE)?;
        check_file(&map, 1, first)?;
    }
    let map = Mapping::shared(&buf, 4 * PAGE, 28 * PAGE)?;
    ensure!(
        process_vm(
            std::process::id() as i32,
            &Mapping::anonymous(PAGE)?,
            &map,
            false
        ) == Ok(PAGE)
    );
    ensure!(object.info()?.held == 0, "{:?}", object.info()?);
    // One memory, pinned or not.
    let import = Object::of(STATIC, &buf)?;
    for page in 0..4 {
        map.touch();
        import.map(MAP_READ | MAP_WRITE)?;
        map.write(page * PAGE, &Content::Page(2, 4 + page).bytes());
        let mut bytes = [0; PAGE];
        import.read((4 + page) * PAGE, &mut bytes)?;
        Content::Page(2, 4 + page).check(&bytes)?;
        import.write((4 + page) * PAGE, &Content::Page(3, page).bytes())?;
        import.unmap()?;
        Content::Page(3, page).check(&map.page(page))?;
    }
    let result = Mapping::shared(&buf, 0, 33 * PAGE);
    ensure!(matches!(result, Err(Errno::INVAL)), "{result:?}");
    // The file is that of the VMA, and needs neither object nor module.
    drop((object, import, buf));
    Content::Page(3, 0).check(&map.page(0))?;
    Content::Page(1, 31).check(&map.page(27))
}

fn file_mmap_swap(env: &Env) -> Result<()> {
    let _swap = ZramSwap::new(32 << 20)?;
    let object = Object::with(&env.device, 256, CREATE_SHMEM_MMAP, 0)?;
    let map = Mapping::shared(object.export()?, 0, 256 * PAGE)?;
    for page in 0..256 {
        map.write(page * PAGE, &Content::Page(1, page).bytes());
    }
    squeeze(|| Ok(object.info()?.resident == 0))?;
    check(&object, 1, 256)?;
    check_file(&map, 1, 0)
}

/// Mapped by the CPU and devices, pinned, given back and revoked, all at once: nobody may ever see
/// another page than the one that is there.
fn moving_target(env: &Env) -> Result<()> {
    const PAGES: usize = 64;
    let object = written(env, 1, PAGES)?;
    let buf = object.export()?;
    let stop = AtomicBool::new(false);
    let again = |work: &dyn Fn() -> Result<()>| -> Result<()> {
        while !stop.load(Ordering::Relaxed) {
            work()?;
        }
        Ok(())
    };
    let cpu = |first: usize| -> Result<()> {
        let map = Mapping::shared(&buf, first * PAGE, PAGES / 2 * PAGE)?;
        let mut round = 0;
        while !stop.load(Ordering::Relaxed) {
            round += 1;
            let page = round % (PAGES / 2);
            let content = Content::Page(round as u8, first + page);
            map.write(page * PAGE, &content.bytes());
            content.check(&map.page(page))?;
            std::thread::yield_now();
            content.check(&map.page(page)).context("later")?;
        }
        Ok(())
    };
    let device = |path: &str| -> Result<()> {
        let import = Object::of(path, buf.as_fd())?;
        again(&|| {
            import.map(MAP_READ | MAP_WRITE)?;
            import.read(0, &mut [0])?;
            Ok(import.unmap()?)
        })
    };
    std::thread::scope(|scope| {
        let threads = [
            scope.spawn(|| cpu(0)),
            scope.spawn(|| cpu(PAGES / 2)),
            scope.spawn(|| device(STATIC)),
            scope.spawn(|| device(DYNAMIC)),
            scope.spawn(|| again(&|| Ok(object.shrink(0).map(drop)?))),
            scope.spawn(|| {
                again(&|| match object.shrink(SHRINK_REVOKE) {
                    Ok(_) | Err(Errno::BUSY) => Ok(()),
                    Err(error) => Err(error.into()),
                })
            }),
        ];
        std::thread::sleep(Duration::from_secs(3));
        stop.store(true, Ordering::Relaxed);
        threads.into_iter().try_for_each(|thread| {
            let result = thread.join();
            result.unwrap_or_else(|_| bail!("panic"))
        })
    })?;
    ensure!(pinned(&object)? == 0 && object.info()?.mappings == 0);
    Ok(())
}
