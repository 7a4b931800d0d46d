// SPDX-License-Identifier: GPL-2.0
//! Memory that is short, or broken.

use std::fs::File;
use std::io::ErrorKind;
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;

use anyhow::{bail, ensure, Context, Result};
use pagekit_user::kernel::{self, Cgroup, RootGroup, ZramSwap};
use pagekit_user::mapping::Mapping;
use pagekit_user::process::{signal_of, Child, End};
use pagekit_user::style::{Object, CREATE_SHMEM_MMAP, CREATE_USERPTR, MAP_READ};
use pagekit_user::test_importer::{Importer, Through};
use pagekit_user::{abi, PAGE};
use rustix::io::Errno;

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
];

pub const I915: &[Case] = &[
    Case::new("hwpoison", hwpoison_of_object).smoke(),
    Case::new("imported_limit", |env| memory_limit(|| of_importer(env))).smoke(),
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
const SLACK: u64 = 2 << 20;

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
        let charge = cgroup.charge()? - before;
        ensure!(
            (SIZE..SIZE + SLACK).contains(&charge),
            "{charge} bytes charged for {SIZE}"
        );
        drop(buf);
        let charge = cgroup.charge()?;
        ensure!(charge < before + SLACK, "{charge} bytes after release");
        Ok(())
    })?
    .join("child")
}

/// Who asks for more than it may have gets an error or is killed, and all that it had is given back.
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
