// SPDX-License-Identifier: GPL-2.0
//! Memory that is short, or broken.

use std::fs::File;
use std::io::ErrorKind;
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::time::Duration;

use anyhow::{bail, ensure, Context, Result};
use pagekit_user::kernel::{self, Cgroup, RootGroup, Setting, ZramSwap};
use pagekit_user::mapping::Mapping;
use pagekit_user::process::{signal_of, Child, End};
use pagekit_user::style::{Object, CREATE_SHMEM_MMAP, CREATE_USERPTR, MAP_READ};
use pagekit_user::test_importer::{Importer, Through};
use pagekit_user::{abi, PAGE};
use rustix::io::Errno;
use rustix::mm::MapFlags;
use rustix::mm::{mlockall, MlockAllFlags};

use crate::env::{check_file, written, Content, Env};
use crate::groups::Case;
use crate::memory::evict;
use crate::style;

/// For exporters of memfds.
pub const UDMABUF: &[Case] = &[
    Case::new("charged", |env| charged(|| of_holes(env))).smoke(),
    Case::new("memory_limit", |env| memory_limit(|| of_holes(env))).smoke(),
    Case::new("swap_full", swap_full).smoke(),
    Case::new("swap_full_and_memory_limit", |env| {
        let _swap = full_swap()?;
        memory_limit(|| of_holes(env))
    }),
    Case::new("hwpoison_before", hwpoison_before).smoke(),
    Case::new("hwpoison_while_shared", hwpoison_while_shared).smoke(),
];

/// For the drivers of `pagekit_style.h`.
pub const STYLE: &[Case] = &[
    Case::new("charged", |env| charged(|| of_device(env))).smoke(),
    Case::new("memory_limit", |env| memory_limit(|| of_device(env))).smoke(),
    Case::new("swap_full", swap_full),
    Case::new("strict_overcommit", strict_overcommit),
];

pub const I915: &[Case] = &[
    Case::new("hwpoison", hwpoison_of_object).smoke(),
    Case::new("imported_limit", |env| memory_limit(|| of_importer(env))).smoke(),
    Case::new("more_than_memory", more_than_memory),
    Case::new("more_than_limit", more_than_limit).smoke(),
    Case::new("fault_beyond_limit", fault_beyond_limit).smoke(),
];

/// For the drivers that pin at creation.
pub const PINNED: &[Case] = &[
    Case::new("create_beyond_memory", create_beyond_memory),
    Case::new("create_beyond_limit", create_beyond_limit).smoke(),
];

/// For a machine with a CMA area, see `cma`.
pub const CMA: &[Case] = &[
    Case::new("file", file_leaves_cma),
    Case::new("user_memory", memory_leaves_cma),
    Case::new("object", object_leaves_cma),
];

const PAGES: usize = (16 << 20) / PAGE;
const SIZE: u64 = (PAGES * PAGE) as u64;
/// What the kernel charges or keeps beside the pages.
const SLACK: u64 = 512 * PAGE as u64;

/// A buffer of pages that are allocated for it.
fn of_holes(env: &Env) -> Result<OwnedFd> {
    Ok(env.try_export(abi::memfd(SIZE)?, 0, PAGES)??)
}

/// An object whose pages are allocated when they are first needed, at the latest.
fn of_device(env: &Env) -> Result<OwnedFd> {
    let object = Object::new(&env.device, PAGES)?;
    object.read(0, &mut [0])?;
    Ok(object.export()?)
}

/// The same, when a copy of another driver needs them.
fn of_importer(env: &Env) -> Result<OwnedFd> {
    let buf = Object::new(&env.device, PAGES)?.export()?;
    Object::of("/dev/pagekit-nouveau", &buf)?.read(0, &mut [0])?;
    Ok(buf)
}

/// Its pages are charged to who makes a buffer, for as long as it lives.
fn charged(make: impl Fn() -> Result<OwnedFd>) -> Result<()> {
    let cgroup = Cgroup::new("pagekit-charged")?;
    Child::spawn(|| {
        cgroup.enter()?;
        let before = cgroup.charge()?;
        let buf = make()?;
        let charge = cgroup.charge()?.saturating_sub(before);
        // It may be less: the kernel charges ahead for each CPU, and has done so before.
        ensure!(
            charge.abs_diff(SIZE) < SLACK,
            "{charge} bytes charged for {SIZE}"
        );
        drop(buf);
        let charge = cgroup.charge()?;
        ensure!(charge < before + SLACK, "{charge} bytes after release");
        Ok(())
    })?
    .join("child")
}

/// Who asks for more than it may have gets an error or is killed, and all that it had is given
/// back.
fn memory_limit(make: impl Fn() -> Result<OwnedFd>) -> Result<()> {
    let cgroup = Cgroup::new("pagekit-limit")?;
    cgroup.limit(SIZE / 2)?;
    let before = kernel::buffers()?;
    let end = Child::spawn(|| {
        cgroup.enter()?;
        match make() {
            Ok(_) => bail!("it has more than it may"),
            Err(e) if e.downcast_ref() == Some(&Errno::NOMEM) => Ok(()),
            Err(e) => Err(e),
        }
    })?
    .wait()?;
    ensure!(
        matches!(end, End::Done | End::Killed(libc::SIGKILL)),
        "{end:?}"
    );
    let charge = cgroup.charge()?;
    ensure!(charge < SLACK, "{charge} bytes stay charged");
    ensure!(kernel::buffers()? == before, "a buffer stays");
    Ok(())
}

/// Where memory is accounted before it is there, to the last page: `ENOMEM`, as the header says.
fn strict_overcommit(env: &Env) -> Result<()> {
    let (total, used) = (kernel::memory("MemTotal")?, kernel::memory("Committed_AS")?);
    let ratio = (used * 100 / total + 5).to_string();
    let _ratio = Setting::set("/proc/sys/vm/overcommit_ratio", &ratio)?;
    let _strict = Setting::set("/proc/sys/vm/overcommit_memory", "2")?;
    let refused = |what, result: Result<()>| {
        let error = result.err().and_then(|e| e.downcast::<Errno>().ok());
        ensure!(error == Some(Errno::NOMEM), "{what}: {error:?}");
        Ok(())
    };
    let pages = total as usize / 8 / PAGE;
    let object = match Object::new(&env.device, pages) {
        Ok(object) => object,
        Err(e) => return refused("CREATE", Err(e)),
    };
    // One that gets pages when it needs them. It has all that is to be had then: no more forks.
    let buf = object.export()?;
    let map = Mapping::shared(&buf, 0, PAGE)?;
    let signal = signal_of(|| map.touch())?;
    ensure!(signal == Some(libc::SIGBUS), "ended with {signal:?}");
    refused(
        "ACCESS",
        object.read(0, &mut [0]).map_err(anyhow::Error::from),
    )?;
    for importer in ["/dev/pagekit-radeon", "/dev/pagekit-nouveau"] {
        let import = Object::of(importer, &buf)?;
        refused(importer, import.map(MAP_READ).map_err(Into::into))?;
    }
    Ok(())
}

/// A process that has all memory but so much, until dropped. It would be the first to be killed.
/// What the kernel keeps for itself, more with larger pages, is not counted.
fn leave(bytes: u64) -> Result<Child> {
    let free = kernel::memory("MemFree")?;
    let reserve: u64 = kernel::read("/proc/sys/vm/min_free_kbytes")?.parse()?;
    let size = free
        .checked_sub(bytes + (reserve << 10))
        .context("memory is short already")? as usize;
    let done = Mapping::anonymous_with(PAGE, MapFlags::SHARED)?;
    let child = Child::spawn(|| {
        let memory = Mapping::anonymous(size)?;
        // SAFETY: it is mapped, and the kernel only makes it stay.
        let ret = unsafe { libc::mlock(memory.at(0).cast(), size) };
        ensure!(ret == 0, "mlock");
        done.write(0, &[1]);
        loop {
            std::thread::park();
        }
    })?;
    while done.page(0)[0] == 0 {
        ensure!(!child.ends_within(Duration::from_millis(10))?, "it ended");
    }
    Ok(child)
}

/// Of pages so far apart each has its own.
const STRIDE: usize = 64;

/// Objects that fit into memory one by one, and only some at a time, have their content.
fn one_by_one(env: &Env, objects: usize, pages: usize) -> Result<()> {
    let objects: Vec<_> = (0..objects)
        .map(|_| Object::new(&env.device, pages))
        .collect::<Result<_>>()?;
    let maps: Vec<_> = objects
        .iter()
        .map(|object| Ok(Mapping::shared(object.export()?, 0, pages * PAGE)?))
        .collect::<Result<_>>()?;
    for (id, map) in (1..).zip(&maps) {
        for page in (0..pages).step_by(STRIDE) {
            map.write(page * PAGE, &Content::Page(id, page).bytes());
        }
    }
    // All of an object is pinned for a copy.
    for (id, object) in (1..).zip(&objects) {
        let mut bytes = [0; PAGE];
        object.read(STRIDE * PAGE, &mut bytes)?;
        Content::Page(id, STRIDE).check(&bytes)?;
    }
    for page in (0..pages).step_by(STRIDE) {
        Content::Page(1, page).check(&maps[0].page(page))?;
    }
    Ok(())
}

/// What nobody uses is swapped out for what somebody does, though the device is locked meanwhile.
fn more_than_memory(env: &Env) -> Result<()> {
    let _swap = ZramSwap::new(1 << 30)?;
    let others = leave(360 << 20)?;
    let before = kernel::event("oom_kill")?;
    one_by_one(env, 3, (160 << 20) / PAGE)?;
    let killed = kernel::event("oom_kill")? - before;
    ensure!(killed == 0, "{killed} processes were killed");
    ensure!(!others.ends_within(Duration::ZERO)?, "they ended");
    Ok(())
}

/// The same with the memory of a cgroup.
fn more_than_limit(env: &Env) -> Result<()> {
    let _swap = ZramSwap::new(64 << 20)?;
    let cgroup = Cgroup::new("pagekit-limit")?;
    cgroup.limit(SIZE + SIZE / 2)?;
    Child::spawn(|| {
        cgroup.enter()?;
        one_by_one(env, 2, PAGES)
    })?
    .join("child")
}

/// Belongs to `cgroup` from now on, with all memory that it has: its next page of text or heap,
/// which can't be had, would be a reason to kill it.
fn enter_whole(cgroup: &Cgroup) -> Result<()> {
    mlockall(MlockAllFlags::CURRENT)?;
    cgroup.enter()
}

/// Who touches what can't be had is the one to end.
fn fault_beyond_limit(env: &Env) -> Result<()> {
    let cgroup = Cgroup::new("pagekit-limit")?;
    let before = kernel::event("oom_kill")?;
    let object = Object::new(&env.device, PAGES)?;
    let map = Mapping::shared(object.export()?, 0, SIZE as usize)?;
    // A process needs a page table, too, and is killed for want of one: there are a few pages more
    // than those before it have used up.
    let enter = |others: u64| {
        cgroup.limit(SIZE / 2 + others * 16 * PAGE as u64)?;
        enter_whole(&cgroup)
    };
    for others in 0..2 {
        let end = Child::spawn(|| {
            // Rust's handler runs on a stack of its own, for which there would be no memory.
            // SAFETY: no handler is needed for what the signal does by itself.
            unsafe { libc::signal(libc::SIGBUS, libc::SIG_DFL) };
            enter(others)?;
            map.touch();
            Ok(())
        })?
        .wait()?;
        ensure!(end == End::Killed(libc::SIGBUS), "{end:?}");
    }
    Child::spawn(|| {
        enter(2)?;
        let result = object.read(0, &mut [0]);
        ensure!(result == Err(Errno::NOMEM), "a copy: {result:?}");
        Ok(())
    })?
    .join("child")?;
    let killed = kernel::event("oom_kill")? - before;
    ensure!(killed == 0, "{killed} processes were killed");
    // What it got until then stays, and can be had by who may have more.
    Ok(object.read(0, &mut [0])?)
}

/// Objects are made until one is refused, because there is no memory, and nobody is killed for it.
///
/// Nor for this program's own pages: a process that touches what can't be had is a reason to kill.
/// So it has some more heap, and keeps all that it has.
fn create_beyond_memory(env: &Env) -> Result<()> {
    drop(std::hint::black_box(vec![1u8; 100 << 10]));
    let others = leave(64 << 20)?;
    // Not before: what a child has, too, is copied when it is written to.
    mlockall(MlockAllFlags::CURRENT)?;
    let before = kernel::event("oom_kill")?;
    let mut objects = Vec::new();
    let error = loop {
        match Object::new(&env.device, (64 << 20) / PAGE) {
            Ok(object) => objects.push(object),
            Err(error) => break error,
        }
    };
    let errno = error.downcast_ref::<Errno>();
    ensure!(errno == Some(&Errno::NOMEM), "{error:?}");
    let killed = kernel::event("oom_kill")? - before;
    ensure!(killed == 0, "{killed} processes were killed");
    ensure!(!others.ends_within(Duration::ZERO)?, "they ended");
    Ok(())
}

/// An object of more than a memory cgroup may have is refused, and nobody is killed.
fn create_beyond_limit(env: &Env) -> Result<()> {
    let cgroup = Cgroup::new("pagekit-limit")?;
    cgroup.limit(SIZE / 2)?;
    let before = kernel::buffers()?;
    Child::spawn(|| {
        enter_whole(&cgroup)?;
        let error = Object::new(&env.device, PAGES).err();
        let errno = error.as_ref().and_then(|e| e.downcast_ref::<Errno>());
        ensure!(errno == Some(&Errno::NOMEM), "{error:?}");
        Ok(())
    })?
    .join("child")?;
    ensure!(kernel::buffers()? == before, "a buffer stays");
    let charge = cgroup.charge()?;
    ensure!(charge < SLACK, "{charge} bytes stay charged");
    Ok(())
}

/// Swap with no room left, and the file that is in there.
fn full_swap() -> Result<(File, ZramSwap)> {
    const SWAP: usize = 1 << 20;
    let swap = ZramSwap::new(SWAP)?;
    let file = written(2, 2 * SWAP / PAGE)?;
    let result = evict(&file, 2 * SWAP / PAGE);
    ensure!(result.is_err(), "there is more swap than was made");
    // The kernel keeps a few pages for each CPU.
    let free = kernel::memory("SwapFree")?;
    ensure!(free < SWAP as u64 / 8, "{free} bytes of swap are free");
    Ok((file, swap))
}

/// Buffers are made and stay as they are when nothing can leave memory.
fn swap_full(env: &Env) -> Result<()> {
    let _swap = full_swap()?;
    let root = RootGroup::mount()?;
    let buf = env.filled(1, 256)?;
    let map = Mapping::shared(&buf, 0, 256 * PAGE)?;
    check_file(&map, 1, 0)?;
    root.reclaim(256 * PAGE)?;
    check_file(&map, 1, 0)?;
    drop(map);
    root.reclaim(256 * PAGE)?;
    let mut page = [0; PAGE];
    Importer::open()?.read(&buf, Through::Dma, 200 * PAGE, &mut page)?;
    Content::Page(1, 200).check(&page)?;
    check_file(&Mapping::shared(&buf, 0, 256 * PAGE)?, 1, 0)
}

/// Where the pages of a mapping are, if it isn't one of PFNs: their numbers.
fn frames(map: &Mapping) -> Result<Vec<u64>> {
    map.touch();
    let pagemap = File::open("/proc/self/pagemap")?;
    let first = map.at(0) as usize / PAGE;
    (first..first + map.len() / PAGE)
        .map(|page| {
            let mut entry = [0; 8];
            pagemap.read_exact_at(&mut entry, page as u64 * 8)?;
            // The upper bits are flags.
            let frame = u64::from_ne_bytes(entry) & ((1 << 55) - 1);
            ensure!(frame != 0, "page {page} is nowhere");
            Ok(frame)
        })
        .collect()
}

/// A memory error in a page of the mapping.
fn poison(map: &Mapping, page: usize) -> Result<()> {
    let corrupted = || kernel::memory("HardwareCorrupted");
    let (before, frame) = (corrupted()?, frames(map)?[page]);
    match std::fs::write("/sys/kernel/debug/hwpoison/corrupt-pfn", frame.to_string()) {
        // The kernel can't free it while there are users.
        Err(e) if e.kind() == ErrorKind::ResourceBusy => (),
        result => result.context("corrupt-pfn")?,
    }
    let now = corrupted()?;
    ensure!(now == before + PAGE as u64, "{now} bytes after {before}");
    Ok(())
}

/// A page that is broken already is not shared, the others are.
fn hwpoison_before(env: &Env) -> Result<()> {
    let memfd = written(1, 8)?;
    poison(&Mapping::shared(&memfd, 0, 8 * PAGE)?, 3)?;
    refuses(env, &memfd)
}

/// Pages 0 to 2 and 4 to 7 can be shared, and page 3 can't.
fn refuses(env: &Env, memfd: &File) -> Result<()> {
    for (first, pages) in [(0, 8), (3, 1), (2, 2)] {
        let result = env.try_export(memfd, first, pages)?.map(drop);
        ensure!(result == Err(Errno::IO), "{pages} from {first}: {result:?}");
    }
    for (first, pages) in [(0, 3), (4, 4)] {
        let buf = env.export(memfd, first, pages)?;
        check_file(&Mapping::shared(&buf, 0, pages * PAGE)?, 1, first)?;
    }
    Ok(())
}

/// One that breaks later hurts no other.
fn hwpoison_while_shared(env: &Env) -> Result<()> {
    let (memfd, buf) = env.buffer(1, 8)?;
    let map = Mapping::shared(&buf, 0, 8 * PAGE)?;
    map.touch();
    poison(&Mapping::shared(&memfd, 0, 8 * PAGE)?, 3)?;
    let good = |first, pages| -> Result<()> {
        check_file(
            &Mapping::shared(&buf, first * PAGE, pages * PAGE)?,
            1,
            first,
        )
    };
    good(0, 3)?;
    good(4, 4)?;
    let mut page = [0; PAGE];
    for way in [Through::Dma, Through::Vmap] {
        Importer::open()?.read(&buf, way, 5 * PAGE, &mut page)?;
        Content::Page(1, 5).check(&page)?;
    }
    refuses(env, &memfd)?;
    drop((map, buf));
    refuses(env, &memfd)
}

/// An object that is broken can't be pinned any more.
fn hwpoison_of_object(env: &Env) -> Result<()> {
    let object = Object::with(&env.device, 8, CREATE_SHMEM_MMAP, 0)?;
    style::fill(&object, 1, 8)?;
    let buf = object.export()?;
    let map = Mapping::shared(&buf, 0, 8 * PAGE)?;
    poison(&map, 3)?;
    let result = object.read(0, &mut [0]);
    ensure!(result == Err(Errno::IO), "a copy: {result:?}");
    for importer in ["/dev/pagekit-radeon", "/dev/pagekit-nouveau"] {
        let import = Object::of(importer, &buf)?;
        let result = import.map(MAP_READ);
        ensure!(result == Err(Errno::IO), "{importer}: {result:?}");
        // The core would warn if only mapping it for the kernel failed.
        let result = import.read(0, &mut [0]);
        ensure!(result == Err(Errno::IO), "a copy by {importer}: {result:?}");
    }
    let signal = signal_of(|| map.touch())?;
    ensure!(signal == Some(libc::SIGBUS), "ended with {signal:?}");
    check_file(&Mapping::shared(&buf, 4 * PAGE, 4 * PAGE)?, 1, 4)
}

/// The area that `cma=` has made, by its frames: movable pages come from there first.
fn cma() -> Result<Range<u64>> {
    let options = kernel::read("/proc/cmdline")?;
    let mut options = options.split_whitespace();
    let area = options.find_map(|option| option.strip_prefix("cma=")?.split_once('@'));
    let (size, start) = area.context("boot with cma=<MiB>M@<MiB>M")?;
    let frame = |mib: &str| -> Result<u64> {
        let mib: u64 = mib.trim_end_matches('M').parse()?;
        Ok((mib << 20) / PAGE as u64)
    };
    Ok(frame(start)?..frame(start)? + frame(size)?)
}

/// What is pinned has left the area.
fn leaves_cma(memory: &Mapping, pin: impl FnOnce() -> Result<()>) -> Result<()> {
    let cma = cma()?;
    let inside = || -> Result<usize> {
        Ok(frames(memory)?
            .iter()
            .filter(|frame| cma.contains(frame))
            .count())
    };
    let before = inside()?;
    ensure!(before > 0, "no page was in the CMA area");
    pin()?;
    let now = inside()?;
    ensure!(
        now == 0,
        "{now} of {before} pages are still in the CMA area"
    );
    Ok(())
}

fn file_leaves_cma(env: &Env) -> Result<()> {
    let memfd = written(1, 64)?;
    leaves_cma(&Mapping::shared(&memfd, 0, 64 * PAGE)?, || {
        let buf = env.export(&memfd, 0, 64)?;
        check_file(&Mapping::shared(&buf, 0, 64 * PAGE)?, 1, 0)
    })
}

fn memory_leaves_cma(_env: &Env) -> Result<()> {
    let memory = Mapping::anonymous(64 * PAGE)?;
    for page in 0..64 {
        memory.write(page * PAGE, &Content::Page(1, page).bytes());
    }
    leaves_cma(&memory, || {
        let address = memory.at(0) as usize;
        let object = Object::with("/dev/pagekit-radeon", 64, CREATE_USERPTR, address)?;
        style::check(&object, 1, 64)
    })
}

/// An object is held where it was when the CPU first used it, until a device does.
fn object_leaves_cma(_env: &Env) -> Result<()> {
    let object = Object::with("/dev/pagekit-i915", 64, CREATE_SHMEM_MMAP, 0)?;
    let buf = object.export()?;
    let map = Mapping::shared(&buf, 0, 64 * PAGE)?;
    for page in 0..64 {
        map.write(page * PAGE, &Content::Page(1, page).bytes());
    }
    leaves_cma(&map, || {
        let import = Object::of("/dev/pagekit-nouveau", &buf)?;
        import.map(MAP_READ)?;
        style::check(&import, 1, 64)
    })
}
