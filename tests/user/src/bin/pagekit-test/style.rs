// SPDX-License-Identifier: GPL-2.0
//! What the drivers of `samples/pagekit_style.h` have in common.

use std::io::{Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Barrier;

use anyhow::{bail, ensure, Context, Result};
use pagekit_user::abi::{self, SYNC_RW};
use pagekit_user::drm::{same_buffer, Card};
use pagekit_user::mapping::{last_errno, Mapping};
use pagekit_user::process::{Child, End};
use pagekit_user::style::{self, Create, Info, Object, INFO_IMPORTED, MAP_READ, MAP_WRITE};
use pagekit_user::test_importer::{Importer, Through};
use pagekit_user::{kernel, PAGE};
use rustix::io::{self, Errno};

use crate::env::{check_file, check_pages, read_page, Content, Env};
use crate::groups::Case;

pub const CASES: &[Case] = &[
    Case::new("fresh", fresh).smoke(),
    Case::new("access", access).smoke(),
    Case::new("one_memory", one_memory).smoke(),
    Case::new("outlives_file", outlives_file).smoke(),
    Case::new("import_self", import_self).smoke(),
    Case::new("import_foreign", import_foreign).smoke(),
    Case::new("import_directions", import_directions).smoke(),
    Case::new("import_outlives", import_outlives),
    Case::new("one_wins", one_wins),
    Case::new("compat", compat).smoke(),
    Case::new("all_share", all_share).smoke(),
    Case::new("killed_importing", killed_importing).smoke(),
    Case::new("unload_refused", unload_refused).smoke(),
];

/// A buffer of `pages`, written as file `id`.
pub fn filled(env: &Env, id: u8, pages: usize) -> Result<OwnedFd> {
    Ok(written(env, id, pages)?.export()?)
}

/// An object of `pages` that say who they are.
pub fn written(env: &Env, id: u8, pages: usize) -> Result<Object> {
    let object = Object::new(&env.device, pages)?;
    fill(&object, id, pages)?;
    Ok(object)
}

pub fn fill(object: &Object, id: u8, pages: usize) -> Result<()> {
    let bytes: Vec<u8> = (0..pages)
        .flat_map(|page| Content::Page(id, page).bytes())
        .collect();
    object.write(0, &bytes).context("ACCESS to write")
}

/// The object is what `fill` has written.
pub fn check(object: &Object, id: u8, pages: usize) -> Result<()> {
    let mut bytes = vec![0; pages * PAGE];
    object.read(0, &mut bytes).context("ACCESS to read")?;
    for (page, bytes) in bytes.chunks_exact(PAGE).enumerate() {
        let content = Content::Page(id, page);
        content
            .check(bytes.try_into()?)
            .with_context(|| format!("page {page} of the object"))?;
    }
    Ok(())
}

/// A buffer of another driver, over a memfd of file `id`.
pub fn foreign(id: u8, pages: usize) -> Result<(std::fs::File, OwnedFd)> {
    let mut udmabuf = Env::new(|_, _, _| bail!("not of this kind"));
    udmabuf.device = "/dev/pagekit-udmabuf".into();
    udmabuf.buffer(id, pages)
}

/// A number of pages that nobody else maps.
pub const ODD_SIZE: usize = 1237;

/// How many mappings of `pages` by `vmap()`, which are for as long as one likes, the kernel has.
pub fn vmaps(pages: usize) -> Result<usize> {
    // With a page behind, as a guard.
    let size = ((pages + 1) * PAGE).to_string();
    let areas = kernel::read("/proc/vmallocinfo")?;
    let is = |line: &&str| -> bool {
        let words: Vec<_> = line.split_whitespace().skip(1).collect();
        words.first() == Some(&size.as_str()) && words.contains(&"vmap")
    };
    Ok(areas.lines().filter(is).count())
}

/// How many pages reclaim doesn't look at.
pub fn unevictable() -> Result<i64> {
    // New pages wait in lists of each CPU: this drains them.
    kernel::write("/proc/sys/vm/compact_memory", "1")?;
    // The counters drift per CPU until this is written.
    kernel::write("/proc/sys/vm/stat_refresh", "1")?;
    Ok(kernel::memory("Unevictable")? as i64 / PAGE as i64)
}

/// A number of pages beside which those that come and go elsewhere are few.
pub const MANY: usize = 2048;

/// For drivers that pin from creation to release: reclaim leaves their pages alone.
pub fn unevictable_from_creation(env: &Env) -> Result<()> {
    let before = unevictable()?;
    let object = Object::new(&env.device, MANY)?;
    let now = unevictable()? - before;
    ensure!(now > MANY as i64 * 7 / 8, "{now} pages of {MANY}");
    drop(object);
    let now = unevictable()? - before;
    ensure!(now < MANY as i64 / 8, "{now} pages after release");
    Ok(())
}

/// For drivers that pin from creation to release, whatever happens in between.
pub fn pins_from_creation(env: &Env) -> Result<()> {
    let before = kernel::pins()?;
    let pinned = |what| {
        let now = kernel::pins()? - before;
        ensure!(now == 16, "{now} pins after {what}");
        Ok(())
    };
    let object = Object::new(&env.device, 16)?;
    pinned("create")?;
    ensure!(object.info()?.pinned == 16 && object.info()?.held == 0);
    let buf = object.export()?;
    let map = Mapping::shared(&buf, 0, 16 * PAGE)?;
    map.touch();
    pinned("mmap")?;
    Importer::open()?.read(&buf, Through::Dma, 0, &mut [0])?;
    pinned("map")?;
    let again = Object::of(&env.device, &buf)?;
    pinned("import")?;
    drop((object, again));
    drop(buf);
    pinned("close")?;
    drop(map);
    let now = kernel::pins()? - before;
    ensure!(now == 0, "{now} pins after release");
    Ok(())
}

fn fresh(env: &Env) -> Result<()> {
    let object = Object::new(&env.device, 32)?;
    let mut bytes = vec![1; 32 * PAGE];
    object.read(0, &mut bytes)?;
    ensure!(bytes.iter().all(|&byte| byte == 0), "not zeros");
    let info = object.info()?;
    ensure!(
        info.size == 32 * PAGE as u64
            && (info.attachments, info.mappings) == (0, 0)
            && (info.sharers, info.flags) == (1, 0),
        "{info:?}"
    );
    let buf = object.export()?;
    check_pages(&Mapping::shared(&buf, 0, 32 * PAGE)?, |_| Content::Zero)
}

/// Any part of it, across pages.
fn access(env: &Env) -> Result<()> {
    let object = written(env, 1, 16)?;
    check(&object, 1, 16)?;
    let whole: Vec<u8> = (0..16)
        .flat_map(|page| Content::Page(1, page).bytes())
        .collect();
    for (offset, len) in [
        (0, 1),
        (PAGE - 1, 2),
        (5 * PAGE + 17, 3 * PAGE),
        (7, 0),
        (16 * PAGE, 0),
    ] {
        let mut bytes = vec![0; len];
        object.read(offset, &mut bytes)?;
        ensure!(bytes == whole[offset..][..len], "{len} bytes at {offset}");
    }
    object.write(3 * PAGE + 100, b"in the middle")?;
    let mut bytes = [0; 15];
    object.read(3 * PAGE + 99, &mut bytes)?;
    ensure!(&bytes[1..14] == b"in the middle", "{bytes:?}");
    ensure!(bytes[0] == whole[3 * PAGE + 99] && bytes[14] == whole[3 * PAGE + 113]);
    Ok(())
}

/// An object and mappings of its dma-buf are one memory, at any offset.
fn one_memory(env: &Env) -> Result<()> {
    let object = written(env, 1, 32)?;
    let buf = object.export()?;
    for (first, pages) in [(10, 1), (10, 12), (1, 31), (31, 1), (16, 16), (0, 32)] {
        let map = Mapping::shared(&buf, first * PAGE, pages * PAGE)?;
        check_file(&map, 1, first).with_context(|| format!("mapped at page {first}"))?;
    }
    let map = Mapping::shared(&buf, 7 * PAGE, 3 * PAGE)?;
    map.write(PAGE, &Content::Page(2, 8).bytes());
    let mut page = [0; PAGE];
    object.read(8 * PAGE, &mut page)?;
    Content::Page(2, 8).check(&page)?;
    object.write(9 * PAGE, &Content::Page(2, 9).bytes())?;
    Content::Page(2, 9).check(&map.page(2))?;
    // To and from a mapping of the very buffer.
    object.access(8 * PAGE, map.at(0), PAGE, 0)?;
    Content::Page(2, 8).check(&map.page(0))?;
    object.access(0, map.at(0), PAGE, style::ACCESS_WRITE)?;
    object.read(0, &mut page)?;
    Content::Page(2, 8).check(&page)
}

/// The dma-buf is the object: it needs no open file of the device.
fn outlives_file(env: &Env) -> Result<()> {
    let object = written(env, 1, 16)?;
    let buf = object.export()?;
    ensure!(same_buffer(&buf, object.export()?)?, "another dma-buf");
    drop(object);
    let map = Mapping::shared(&buf, 4 * PAGE, 12 * PAGE)?;
    drop(buf);
    check_file(&map, 1, 4)
}

/// The same device has the same object, neither attached nor mapped.
fn import_self(env: &Env) -> Result<()> {
    let first = written(env, 1, 16)?;
    let buf = first.export()?;
    let second = Object::of(&env.device, &buf)?;
    let info = second.info()?;
    ensure!(info == first.info()?, "{info:?}, {:?}", first.info()?);
    ensure!(info.sharers == 2 && info.attachments == 0 && info.flags & INFO_IMPORTED == 0);
    ensure!(same_buffer(&buf, second.export()?)?, "another dma-buf");
    ensure!(second.map(MAP_READ) == Err(Errno::INVAL), "mapped");
    ensure!(second.unmap() == Err(Errno::INVAL), "unmapped");
    second.write(3 * PAGE, &Content::Page(2, 3).bytes())?;
    let mut page = [0; PAGE];
    first.read(3 * PAGE, &mut page)?;
    Content::Page(2, 3).check(&page)?;
    fill(&second, 3, 16)?;
    drop((first, buf));
    ensure!(second.info()?.sharers == 1);
    check(&second, 3, 16)?;
    check_file(&Mapping::shared(second.export()?, 0, 16 * PAGE)?, 3, 0)
}

/// What is written on one side is seen on the other.
fn import_foreign(env: &Env) -> Result<()> {
    let (memfd, buf) = foreign(1, 16)?;
    let object = Object::of(&env.device, &buf)?;
    let info = object.info()?;
    let want = Info {
        size: 16 * PAGE as u64,
        attachments: 1,
        sharers: 1,
        flags: INFO_IMPORTED,
        ..Info::default()
    };
    ensure!(info == want, "{info:?}");
    for mapped in [false, true] {
        if mapped {
            object.map(MAP_READ | MAP_WRITE)?;
            ensure!(object.info()?.mappings == 1);
            ensure!(object.map(MAP_READ) == Err(Errno::BUSY), "mapped twice");
        }
        check(&object, 1, 16)?;
        for (page, offset) in [(0, 0), (9, 9 * PAGE)] {
            let content = Content::Page(2, page);
            object.write(offset, &content.bytes())?;
            content.check(&read_page(&memfd, page)?)?;
        }
        fill(&object, 1, 16)?;
    }
    object.unmap()?;
    ensure!(object.unmap() == Err(Errno::INVAL), "unmapped twice");
    ensure!(object.info()? == want, "{:?}", object.info()?);
    ensure!(same_buffer(&buf, object.export()?)?, "another dma-buf");
    // Another file with the same buffer has an attachment of its own.
    let other = Object::of(&env.device, &buf)?;
    other.map(MAP_READ)?;
    check(&other, 1, 16)?;
    let info = object.info()?;
    ensure!(info == want, "{info:?}");
    Ok(())
}

/// Each direction, and closed while it is mapped.
fn import_directions(env: &Env) -> Result<()> {
    let (_memfd, buf) = foreign(1, 4)?;
    for flags in [MAP_READ, MAP_WRITE, MAP_READ | MAP_WRITE] {
        let object = Object::of(&env.device, &buf)?;
        object.map(flags)?;
        object.unmap()?;
        object.map(flags)?;
        check(&object, 1, 4)?;
    }
    Ok(())
}

fn import_outlives(env: &Env) -> Result<()> {
    let before = kernel::pins()?;
    let (memfd, buf) = foreign(1, 8)?;
    let object = Object::of(&env.device, &buf)?;
    object.map(MAP_READ)?;
    drop((memfd, buf));
    check(&object, 1, 8)?;
    ensure!(kernel::pins()? > before, "unpinned while imported");
    drop(object);
    ensure!(kernel::pins()? == before, "pinned after the last user");
    Ok(())
}

/// Of those that make the same file an object at the same time. The others leave nothing.
fn one_wins(env: &Env) -> Result<()> {
    let (pins, buffers) = (kernel::pins()?, kernel::buffers()?);
    let (memfd, foreign) = foreign(1, 4)?;
    let create = Create {
        size: 4 * PAGE as u64,
        ..Create::default()
    };
    for _ in 0..50 {
        let own = Object::new(&env.device, 4)?.export()?;
        let object = Object::open(&env.device)?;
        let start = Barrier::new(3);
        let results = std::thread::scope(|scope| {
            let threads = [
                scope.spawn(|| {
                    start.wait();
                    object.create(&create)
                }),
                scope.spawn(|| {
                    start.wait();
                    object.import(&own)
                }),
                scope.spawn(|| {
                    start.wait();
                    object.import(&foreign)
                }),
            ];
            threads.map(|thread| thread.join().unwrap_or(Err(Errno::IO)))
        });
        let lost = results.iter().filter(|&&r| r == Err(Errno::EXIST)).count();
        ensure!(lost == 2 && results.contains(&Ok(())), "{results:?}");
        object.write(0, b"it works")?;
    }
    drop((memfd, foreign));
    ensure!(kernel::pins()? == pins && kernel::buffers()? == buffers);
    Ok(())
}

/// A 32-bit program has the same interface.
fn compat(env: &Env) -> Result<()> {
    let (memfd, buf) = foreign(1, 4)?;
    io::fcntl_setfd(&buf, io::FdFlags::empty())?;
    let program = std::env::current_exe()?.with_file_name("pagekit-compat");
    let status = Command::new(program)
        .arg(&env.device)
        .arg(buf.as_raw_fd().to_string())
        .status()?;
    ensure!(status.success(), "its check that fails: {status}");
    let page = read_page(&memfd, 0)?;
    ensure!(page.starts_with(b"from a 32-bit program\0"), "nothing");
    Ok(())
}

/// All drivers there are have the buffer, at the same time.
fn all_share(env: &Env) -> Result<()> {
    let object = written(env, 1, 16)?;
    let buf = object.export()?;
    let see = |bytes: &[u8], page| Content::Page(1, page).check(bytes.try_into()?);
    let imports = |device: &str| -> Result<()> {
        for page in 0..8 {
            let import = Object::of(device, &buf)?;
            if import.info()?.flags & INFO_IMPORTED != 0 {
                import.map(MAP_READ)?;
            }
            check(&import, 1, 16)?;
            import.write(page * PAGE, &Content::Page(1, page).bytes())?;
        }
        Ok(())
    };
    let device = |way| -> Result<()> {
        let importer = Importer::open()?;
        let mut bytes = [0; PAGE];
        for page in 0..16 {
            importer.read(&buf, way, page * PAGE, &mut bytes)?;
            see(&bytes, page)?;
        }
        Ok(())
    };
    let maps = |buf: BorrowedFd<'_>| -> Result<()> {
        for first in 0..8 {
            let map = Mapping::shared(buf, first * PAGE, (16 - first) * PAGE)?;
            abi::with_cpu_access(buf, SYNC_RW, || check_file(&map, 1, first))?;
        }
        Ok(())
    };
    let vgem = || {
        let card = Card::find("vgem")?;
        let handle = card.import(buf.as_fd())?;
        maps(handle.export()?.as_fd())
    };
    std::thread::scope(|scope| {
        let threads = [
            scope.spawn(|| imports("/dev/pagekit-i915")),
            scope.spawn(|| imports("/dev/pagekit-nouveau")),
            scope.spawn(|| imports("/dev/pagekit-radeon")),
            scope.spawn(|| device(Through::Dma)),
            scope.spawn(|| device(Through::Vmap)),
            scope.spawn(vgem),
            scope.spawn(|| maps(buf.as_fd())),
        ];
        threads.into_iter().try_for_each(|thread| {
            let result = thread.join();
            result.unwrap_or_else(|_| bail!("panic"))
        })
    })?;
    let info = object.info()?;
    ensure!((info.sharers, info.attachments) == (1, 0), "{info:?}");
    check(&object, 1, 16)
}

/// A process that dies with objects, mappings and imports leaves nothing.
fn killed_importing(env: &Env) -> Result<()> {
    let before = kernel::pins()?;
    let (mut ours, mut theirs) = UnixStream::pair()?;
    let child = Child::spawn(|| {
        let object = written(env, 1, 32)?;
        let map = Mapping::shared(object.export()?, 0, 32 * PAGE)?;
        map.touch();
        let _again = Object::of(&env.device, object.export()?)?;
        let (_memfd, buf) = foreign(1, 8)?;
        let import = Object::of(&env.device, &buf)?;
        import.map(MAP_READ | MAP_WRITE)?;
        theirs.write_all(b"x")?;
        loop {
            std::thread::park();
        }
    })?;
    drop(theirs);
    if ours.read_exact(&mut [0]).is_err() {
        return child.join("child");
    }
    ensure!(kernel::pins()? > before, "nothing was pinned");
    child.kill()?;
    let end = child.wait()?;
    ensure!(end == End::Killed(libc::SIGKILL), "{end:?}");
    ensure!(kernel::pins()? == before, "pinned after the kill");
    Ok(())
}

/// The module stays while somebody has a buffer, whoever that is.
fn unload_refused(env: &Env) -> Result<()> {
    let module = module_of(&env.device)?;
    let object = Object::new(&env.device, 4)?;
    refused(&module).context("with an open file")?;
    let buf = object.export()?;
    drop(object);
    refused(&module).context("with a dma-buf")?;
    let map = Mapping::shared(&buf, 0, PAGE)?;
    drop(buf);
    refused(&module).context("with a mapping")?;
    drop(map);
    Ok(())
}

fn refused(module: &str) -> Result<()> {
    let name = std::ffi::CString::new(module)?;
    // SAFETY: a NUL-terminated name.
    let ret = unsafe { libc::syscall(libc::SYS_delete_module, name.as_ptr(), libc::O_NONBLOCK) };
    ensure!(ret != 0, "{module} was unloaded");
    let error = last_errno();
    ensure!(error == Errno::WOULDBLOCK, "{error:?}");
    Ok(())
}

/// `/dev/pagekit-x` is that of `pagekit_x_style`.
fn module_of(device: &Path) -> Result<String> {
    let name = device.file_name().and_then(|name| name.to_str());
    let name = name.context("no device")?.replace('-', "_");
    Ok(format!("{name}_style"))
}

/// The parameter of the driver that bounds the size of its objects.
pub fn size_limit(env: &Env) -> Result<PathBuf> {
    let module = module_of(&env.device)?;
    Ok(format!("/sys/module/{module}/parameters/size_limit_mb").into())
}
