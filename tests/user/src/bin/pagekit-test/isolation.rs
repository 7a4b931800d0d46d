// SPDX-License-Identifier: GPL-2.0
//! What nobody gets to see or to do: memory of others, writing to what is to be read only,
//! addresses of the kernel, and memory that nobody is charged for.

use std::fs;
use std::io;
use std::ops::RangeInclusive;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{bail, ensure, Context, Result};
use pagekit_user::abi;
use pagekit_user::drm::Card;
use pagekit_user::kernel::{address_in, Cgroup};
use pagekit_user::mapping::{Mapping, RW};
use pagekit_user::process::{signal_of, Child};
use pagekit_user::style::{self, Info, Object, CREATE_SHMEM_MMAP};
use pagekit_user::test_importer::{Attachment, Dir, Importer, Kind, Through};
use pagekit_user::{HUGE_PAGES, PAGE};
use rustix::fs::{fallocate, FallocateFlags, Mode, OFlags};
use rustix::io::Errno;
use rustix::mm::{Advice, MapFlags, MprotectFlags, ProtFlags};

use crate::env::{check_pages, item, written, Content, Env};
use crate::gem;
use crate::groups::Case;
use crate::heap::read_only;
use crate::mappings::process_vm;
use crate::memory::{allocated, dirty_free_memory};

/// For any exporter.
pub const CASES: &[Case] = &[
    Case::new("node_mode", node_mode).smoke(),
    Case::new("no_addresses", no_addresses).smoke(),
];

/// For any device.
pub const NODE: &[Case] = &[Case::new("node_mode", node_mode)];

pub const UDMABUF: &[Case] = &[
    Case::new("fresh_not_stale", |env| {
        never_written(|pages| {
            let memfd = abi::memfd((pages * PAGE) as u64)?;
            env.export(&memfd, 0, pages)
        })
    }),
    Case::new("partly_written_page", |env| partly_written(env, 1)),
    Case::new("partly_written_16_pages", |env| partly_written(env, 16)),
    Case::new("partly_written_huge", |env| partly_written(env, HUGE_PAGES)),
    Case::new("punched_meanwhile", punched_meanwhile).smoke(),
    Case::new("charged_tables", charged).smoke(),
];

pub const HEAP: &[Case] = &[
    Case::new("fresh_not_stale", |env| {
        never_written(|pages| {
            let mut allocation = abi::HeapAllocation {
                len: (pages * PAGE) as u64,
                fd: 0,
                fd_flags: (OFlags::RDWR | OFlags::CLOEXEC).bits(),
                heap_flags: 0,
            };
            Ok(abi::heap_alloc(env.open()?, &mut allocation)?)
        })
    }),
    Case::new("read_only", stays_read_only).smoke(),
    Case::new("read_only_imported", read_only_imported).smoke(),
];

pub const GEM: &[Case] = &[
    Case::new("fresh_not_stale", |env| {
        never_written(|pages| gem::pages_of(env, pages))
    }),
    Case::new("shrunk_not_stale", |env| {
        never_written(|pages| {
            let buf = gem::pages_of(env, pages)?;
            Mapping::shared(&buf, 0, pages * PAGE)?.touch();
            gem::shrink()?;
            dirty_free_memory(1)?;
            Ok(buf)
        })
    }),
];

/// For the drivers of `pagekit_style.h`.
pub const STYLE: &[Case] = &[
    Case::new("fresh_not_stale", |env| {
        never_written(|pages| Ok(Object::new(&env.device, pages)?.export()?))
    }),
    Case::new("info_is_whole", info_is_whole).smoke(),
    Case::new("exports_read_only", exports_read_only).smoke(),
];

pub const I915: &[Case] = &[
    Case::new("shrunk_not_stale", shrunk_not_stale).smoke(),
    Case::new("removed_not_stale", removed_not_stale).smoke(),
];

// --- Memory of others ---------------------------------------------------------------

/// All ways to a buffer show zeros, or what `want` says.
fn all_see(
    make: impl Fn() -> Result<OwnedFd>,
    pages: usize,
    want: fn(usize) -> Content,
) -> Result<()> {
    // Each with a buffer of its own: the first look may be what makes the pages.
    check_pages(&Mapping::shared(make()?, 0, pages * PAGE)?, want).context("mapped")?;
    for way in [Through::Dma, Through::Vmap] {
        let mut bytes = vec![1; pages * PAGE];
        Importer::open()?.read(make()?, way, 0, &mut bytes)?;
        for (page, bytes) in bytes.chunks_exact(PAGE).enumerate() {
            let seen = want(page).check(bytes.try_into()?);
            seen.with_context(|| format!("page {page}, {way:?}"))?;
        }
    }
    Ok(())
}

/// Buffers that nobody has written to, in memory that others had.
fn never_written(make: impl Fn(usize) -> Result<OwnedFd>) -> Result<()> {
    const PAGES: usize = (4 << 20) / PAGE;
    let make = || {
        dirty_free_memory(1)?;
        make(PAGES)
    };
    all_see(make, PAGES, |_| Content::Zero)
}

/// A page is written, and the rest of its folio never was.
fn partly_written(env: &Env, folio: usize) -> Result<()> {
    const SIZE: usize = 2 * HUGE_PAGES * PAGE;
    let want = |page| match page % HUGE_PAGES {
        100 => Content::Page(1, page),
        _ => Content::Zero,
    };
    let make = || {
        dirty_free_memory(folio)?;
        let memfd = allocated(folio, SIZE)?;
        for page in (0..SIZE / PAGE).filter(|page| page % HUGE_PAGES == 100) {
            memfd.write_all_at(&want(page).bytes(), (page * PAGE) as u64)?;
        }
        env.export(&memfd, 0, SIZE / PAGE)
    };
    all_see(make, SIZE / PAGE, want)
}

/// Pages leave the file, and others come that were never written, while it is exported.
fn punched_meanwhile(env: &Env) -> Result<()> {
    const PAGES: usize = 64;
    let size = (PAGES * PAGE) as u64;
    let memfd = abi::memfd(size)?;
    let (end, done) = (
        Instant::now() + Duration::from_secs(2),
        AtomicBool::new(false),
    );
    let punches = || -> Result<()> {
        while !done.load(Ordering::Relaxed) {
            fallocate(
                &memfd,
                FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE,
                0,
                size,
            )?;
            // What is free now was somebody's.
            let other = Mapping::anonymous(PAGES * PAGE)?;
            for page in 0..PAGES {
                other.write(page * PAGE, &[0xa5; PAGE]);
            }
            drop(other);
            fallocate(&memfd, FallocateFlags::empty(), 0, size)?;
        }
        Ok(())
    };
    let exports = || -> Result<()> {
        while Instant::now() < end {
            let buf = env.export(&memfd, 0, PAGES)?;
            check_pages(&Mapping::shared(&buf, 0, PAGES * PAGE)?, |_| Content::Zero)?;
        }
        Ok(())
    };
    std::thread::scope(|scope| {
        let other = scope.spawn(punches);
        let result = exports();
        done.store(true, Ordering::Relaxed);
        other.join().unwrap_or_else(|_| bail!("panic"))?;
        result
    })
}

/// Pages that were given back come back as they were.
fn shrunk_not_stale(env: &Env) -> Result<()> {
    const PAGES: usize = 1024;
    let make = || {
        let object = Object::new(&env.device, PAGES)?;
        let buf = object.export()?;
        Mapping::shared(&buf, 0, PAGES * PAGE)?.touch();
        ensure!(object.shrink(0)? == PAGES, "{:?}", object.info()?);
        dirty_free_memory(1)?;
        Ok(buf)
    };
    all_see(make, PAGES, |_| Content::Zero)
}

/// Holes in the driver's own file, where something was.
fn removed_not_stale(env: &Env) -> Result<()> {
    const PAGES: usize = 256;
    let make = || {
        let object = Object::with(&env.device, PAGES, CREATE_SHMEM_MMAP, 0)?;
        let map = Mapping::shared(object.export()?, 0, PAGES * PAGE)?;
        for page in 0..PAGES {
            map.write(page * PAGE, &[0xa5; PAGE]);
        }
        map.advise(Advice::LinuxRemove)?;
        dirty_free_memory(1)?;
        Ok(object.export()?)
    };
    all_see(make, PAGES, |_| Content::Zero)
}

// --- Read only ------------------------------------------------------------------------

/// What of a buffer that is read only can't be written: `who` has the file descriptor.
fn refuses_writes(buf: BorrowedFd<'_>) -> Result<()> {
    let map = |prot, flags| Mapping::new(buf, 0, PAGE, prot, flags);
    let is = |what: &str, result: rustix::io::Result<()>, want: Errno| {
        ensure!(result == Err(want), "{what}: {result:?}, not {want:?}");
        Ok(())
    };
    is("mmap", map(RW, MapFlags::SHARED).map(drop), Errno::ACCESS)?;
    let mut shown = map(ProtFlags::READ, MapFlags::SHARED)?;
    let own = Mapping::anonymous(PAGE)?;
    own.write(0, &[1; PAGE]);
    for touched in [false, true] {
        if touched {
            shown.touch();
        }
        let rw = MprotectFlags::READ | MprotectFlags::WRITE;
        is("mprotect", shown.protect(0, PAGE, rw), Errno::ACCESS)?;
        let write = || shown.write(0, b"no");
        ensure!(signal_of(write)? == Some(libc::SIGSEGV), "written to");
        let id = std::process::id() as i32;
        let result = process_vm(id, &own, &shown, true).map(drop);
        is("process_vm_writev", result, Errno::FAULT)?;
        // The way of debuggers, which may write to what is read only.
        let memory = fs::File::options().write(true).open("/proc/self/mem")?;
        let result = memory.write_at(b"no", shown.at(0) as u64);
        let error = result.as_ref().err().and_then(io::Error::raw_os_error);
        ensure!(error == Some(libc::EIO), "/proc/self/mem: {result:?}");
        shown.move_to(Mapping::anonymous(PAGE)?)?;
    }
    let path = format!("/proc/self/fd/{}", buf.as_raw_fd());
    let again = rustix::fs::open(path, OFlags::RDWR | OFlags::CLOEXEC, Mode::empty());
    ensure!(again.is_err(), "opened once more");
    rustix::fs::fcntl_setfl(buf, OFlags::RDWR)?;
    is(
        "F_SETFL",
        map(RW, MapFlags::SHARED).map(drop),
        Errno::ACCESS,
    )?;
    Content::Zero.check(&shown.page(0))
}

fn stays_read_only(env: &Env) -> Result<()> {
    let buf = read_only(env)?;
    refuses_writes(buf.as_fd())?;
    for prot in [ProtFlags::READ, RW] {
        // Else a debugger could write where there is no copy yet.
        let result = Mapping::new(&buf, 0, PAGE, prot, MapFlags::PRIVATE);
        ensure!(matches!(result, Err(Errno::INVAL)), "private: {result:?}");
    }
    refuses_writes(rustix::io::dup(&buf)?.as_fd()).context("duplicated")?;
    let card = Card::find("vgem")?;
    let handle = card.import(buf.as_fd())?;
    refuses_writes(handle.export()?.as_fd()).context("there and back")?;
    ensure!(handle.map(PAGE).is_err(), "mapped by vgem");
    Ok(())
}

/// There and back, with a buffer of mainline's heap.
fn exports_read_only(env: &Env) -> Result<()> {
    let mut heap = Env::new(env.fill);
    heap.device = "/dev/dma_heap/system".into();
    let buf = read_only(&heap)?;
    refuses_writes(Object::of(&env.device, &buf)?.export()?.as_fd())
}

/// A driver may map what it has imported into a file of its own, with that one's rights.
fn read_only_imported(env: &Env) -> Result<()> {
    let (importer, buf) = (Importer::open()?, read_only(env)?);
    let attachment = importer.attach(&buf, Kind::Static)?;
    let result = Mapping::shared(&importer, 0, PAGE).map(drop);
    ensure!(result == Err(Errno::ACCESS), "writable: {result:?}");
    let shown = Mapping::new(&importer, 0, PAGE, ProtFlags::READ, MapFlags::SHARED);
    let shown = shown.context("for reading")?;
    Content::Zero.check(&shown.page(0))?;
    let result = shown.protect(0, PAGE, MprotectFlags::READ | MprotectFlags::WRITE);
    ensure!(result == Err(Errno::ACCESS), "made writable: {result:?}");
    attachment.write(Through::Vmap, 0, &Content::Page(1, 0).bytes())?;
    Content::Page(1, 0).check(&shown.page(0))?;
    drop((shown, attachment));
    let writable = env.filled(1, 1)?;
    let _attachment = importer.attach(&writable, Kind::Static)?;
    let map = Mapping::shared(&importer, 0, PAGE).context("of a writable one")?;
    Content::Page(1, 0).check(&map.page(0))
}

// --- Addresses of the kernel ----------------------------------------------------------

fn check_text(path: &Path) -> Result<()> {
    // Some can't be read, or only by who has asked first.
    let Ok(bytes) = fs::read(path) else {
        return Ok(());
    };
    match address_in(&String::from_utf8_lossy(&bytes)) {
        None => Ok(()),
        Some(address) => bail!("{}: {address}", path.display()),
    }
}

/// All files in and below `folder`. Returns how many.
fn check_folder(folder: &Path) -> Result<usize> {
    let mut count = 0;
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let kind = entry.file_type()?;
        // Where modules lie is what these are for: for root, and not ours.
        if kind.is_dir()
            && !["sections", "notes"]
                .iter()
                .any(|name| entry.file_name() == *name)
        {
            count += check_folder(&entry.path())?;
        } else if kind.is_file() {
            check_text(&entry.path())?;
            count += 1;
        }
    }
    Ok(count)
}

/// Neither what the kernel shows of buffers, files and modules, nor the log has any. The runner
/// looks at the log, too.
fn no_addresses(env: &Env) -> Result<()> {
    let control = format!("at {:016x}, it says", 0xffff_8880_1234_5678u64);
    ensure!(address_in(&control).is_some() && address_in("ffffffffffffffea 0x12").is_none());
    let (buf, device) = (env.filled(1, 16)?, env.open()?);
    let map = Mapping::shared(&buf, 0, 16 * PAGE)?;
    map.touch();
    let importer = Importer::open()?;
    let attachment = importer.attach(&buf, Kind::Static)?;
    attachment.map(Dir::Both)?;
    check_text(Path::new("/sys/kernel/debug/dma_buf/bufinfo"))?;
    for fd in [buf.as_raw_fd(), device.as_raw_fd()] {
        check_text(Path::new(&format!("/proc/self/fdinfo/{fd}")))?;
    }
    check_text(Path::new("/proc/self/maps"))?;
    check_text(Path::new("/proc/self/smaps"))?;
    let mut files = 0;
    for entry in fs::read_dir("/sys/module")? {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with("pagekit_") {
            files += check_folder(&entry.path())?;
        }
    }
    for entry in fs::read_dir("/sys/class/misc")?.chain(fs::read_dir("/sys/class/dma_heap")?) {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with("pagekit") {
            files += check_folder(&entry.path())?;
        }
    }
    ensure!(files > 10, "only {files} files");
    Ok(())
}

/// All of it is written, and nothing behind.
fn info_is_whole(env: &Env) -> Result<()> {
    const SIZE: usize = size_of::<Info>();
    let own = Object::new(&env.device, 4)?;
    let (_memfd, buf) = crate::style::foreign(1, 4)?;
    for object in [own, Object::of(&env.device, &buf)?] {
        let seen = [0x5a, 0xa5].map(|poison| {
            let mut bytes = [poison; SIZE + 64];
            // SAFETY: the kernel writes an `Info`, for which there is room.
            let result = unsafe { abi::ioctl(&object, style::INFO, bytes.as_mut_ptr().cast()) };
            result.map(|_| (bytes, poison))
        });
        let [(first, a), (second, b)] = [seen[0]?, seen[1]?];
        ensure!(first[..SIZE] == second[..SIZE], "not all of it is written");
        ensure!(
            first[SIZE..] == [a; 64] && second[SIZE..] == [b; 64],
            "more is written"
        );
        for word in first[..SIZE].chunks_exact(8) {
            let word = u64::from_ne_bytes(word.try_into()?);
            ensure!(word < 1 << 48, "{word:x}");
        }
    }
    Ok(())
}

// --- Rights and charges -----------------------------------------------------------------

/// Nobody but root opens it: the kernel's default, as for mainline's, which rules of udev may know.
fn node_mode(env: &Env) -> Result<()> {
    let meta = fs::metadata(&env.device)?;
    let got = (meta.mode() & 0o7777, meta.uid(), meta.gid());
    ensure!(meta.file_type().is_char_device(), "no device");
    ensure!(got == (0o600, 0, 0), "{:o} of {}:{}", got.0, got.1, got.2);
    Ok(())
}

/// What the kernel needs for a buffer beside its pages is charged to who makes and who maps it.
fn charged(env: &Env) -> Result<()> {
    const PAGES: usize = 1024;
    const BATCH: usize = 64;
    /// Each CPU charges ahead in batches, and small things are charged, too.
    const SLACK: u64 = 256 * PAGE as u64;
    // Charged elsewhere.
    let memfd = written(1, 2 * PAGES)?;
    let cgroup = Cgroup::new("pagekit-charged")?;
    Child::spawn(|| {
        cgroup.enter()?;
        let charges = |what: &str, before: u64, count: usize, each: RangeInclusive<usize>| {
            let charge = cgroup.charge()?.saturating_sub(before);
            let (least, most) = (count * each.start(), count * each.end());
            ensure!(
                (least as u64..most as u64 + SLACK).contains(&charge),
                "{charge} bytes are charged for {what}, not {least}"
            );
            Ok(())
        };
        let dev = env.open()?;
        let before = cgroup.charge()?;
        let items = vec![item(&memfd, 0, PAGES); 512];
        let buf = abi::create_list(&dev, 0, &items)?;
        charges("arrays of pages", before, 512 * PAGES, 8..=8)?;
        drop(buf);
        // DMA_API_DEBUG warns of so many mappings of a page.
        if Path::new("/sys/kernel/debug/dma-api").exists() {
            return Ok(());
        }
        // Few of which follow each other.
        let items: Vec<_> = (0..PAGES).map(|i| item(&memfd, 2 * i, 1)).collect();
        let buf = abi::create_list(&dev, 0, &items)?;
        let importers: Vec<_> = (0..BATCH)
            .map(|_| Importer::open())
            .collect::<Result<_>>()?;
        let segments = importers[0].attach(&buf, Kind::Static)?.map_twice()?;
        ensure!(segments >= PAGES / 4, "only {segments} segments");
        let before = cgroup.charge()?;
        let attachments = importers
            .iter()
            .map(|importer| -> rustix::io::Result<Attachment<'_>> {
                let attachment = importer.attach(&buf, Kind::Static)?;
                attachment.map(Dir::Both)?;
                Ok(attachment)
            });
        let _attachments: Vec<_> = attachments.collect::<rustix::io::Result<_>>()?;
        // C: `struct scatterlist`, with `dma_length` where the machine needs that.
        charges("tables of segments", before, BATCH * segments, 24..=32)
    })?
    .join("child")
}
