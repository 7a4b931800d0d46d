// SPDX-License-Identifier: GPL-2.0
//! Creating buffers that work.

use std::os::fd::AsRawFd;

use anyhow::{ensure, Context, Result};
use pagekit_user::abi::{self, UDMABUF_FLAGS_CLOEXEC};
use pagekit_user::mapping::{Mapping, RW};
use pagekit_user::{kernel, PAGE};
use rustix::io::{fcntl_getfd, Errno, FdFlags};
use rustix::mm::MapFlags;

use crate::env::{check_file, check_pages, item, written, Content, Env};
use crate::groups::Case;

pub const CASES: &[Case] = &[
    Case::new("create_readback", create_readback).smoke(),
    Case::new("create_range", create_range),
    Case::new("size", size).smoke(),
    Case::new("cloexec", cloexec),
    Case::new("unknown_flags", unknown_flags),
    Case::new("pins", pins).smoke(),
    Case::new("list", list).smoke(),
    Case::new("list_limit", list_limit),
    Case::new("size_limit", size_limit),
    Case::new("large_64m", large_64m),
    Case::new("many_buffers", many_buffers),
    Case::new("file_grows", file_grows),
    #[cfg(target_arch = "x86_64")]
    Case::new("compat_ioctl", compat::ioctl),
];

fn create_readback(env: &Env) -> Result<()> {
    let (_memfd, buf) = env.buffer(1, 32)?;
    check_file(&Mapping::shared(&buf, 0, 32 * PAGE)?, 1, 0)
}

/// Part of a file.
fn create_range(env: &Env) -> Result<()> {
    let memfd = written(1, 64)?;
    for (first, pages) in [(0, 1), (5, 7), (63, 1), (32, 32)] {
        let buf = env.export(&memfd, first, pages)?;
        ensure!(abi::size(&buf)? == (pages * PAGE) as u64);
        check_file(&Mapping::shared(&buf, 0, pages * PAGE)?, 1, first)?;
    }
    Ok(())
}

fn size(env: &Env) -> Result<()> {
    let (_memfd, buf) = env.buffer(1, 7)?;
    ensure!(abi::size(&buf)? == 7 * PAGE as u64);
    let fd = buf.as_raw_fd();
    ensure!(abi::fdinfo(fd, "size")? == (7 * PAGE).to_string());
    let name = abi::fdinfo(fd, "exp_name")?;
    // That of the module, as the device is called in all cases.
    let device = env.device.file_name().context("no device")?;
    let module = device.to_string_lossy().replace('-', "_");
    ensure!(name == module, "exporter is called {name}, not {module}");
    Ok(())
}

/// Creates in both ways with `flags`; returns whether the fds close on exec.
fn closes_on_exec(env: &Env, flags: u32) -> Result<[bool; 2]> {
    let memfd = written(1, 1)?;
    let dev = env.open()?;
    let single = abi::UdmabufCreate {
        memfd: memfd.as_raw_fd() as u32,
        flags,
        offset: 0,
        size: PAGE as u64,
    };
    let single = abi::create(&dev, &single).context("UDMABUF_CREATE")?;
    let list = abi::create_list(&dev, flags, &[item(&memfd, 0, 1)]).context("CREATE_LIST")?;
    Ok([
        fcntl_getfd(single)?.contains(FdFlags::CLOEXEC),
        fcntl_getfd(list)?.contains(FdFlags::CLOEXEC),
    ])
}

fn cloexec(env: &Env) -> Result<()> {
    ensure!(closes_on_exec(env, UDMABUF_FLAGS_CLOEXEC)? == [true; 2]);
    ensure!(closes_on_exec(env, 0)? == [false; 2]);
    Ok(())
}

/// Mainline takes no notice of flags it doesn't know.
fn unknown_flags(env: &Env) -> Result<()> {
    ensure!(closes_on_exec(env, !UDMABUF_FLAGS_CLOEXEC)? == [false; 2]);
    ensure!(closes_on_exec(env, !0)? == [true; 2]);
    Ok(())
}

/// Pages are pinned while the buffer lives, no longer.
fn pins(env: &Env) -> Result<()> {
    let before = kernel::pins()?;
    let (_memfd, buf) = env.buffer(1, 64)?;
    let map = Mapping::shared(&buf, 0, 64 * PAGE)?;
    map.touch();
    let held = kernel::pins()? - before;
    ensure!(held == 64, "{held} pins for 64 pages");
    drop(buf);
    let held = kernel::pins()? - before;
    ensure!(held == 64, "{held} pins for 64 mapped pages");
    drop(map);
    let held = kernel::pins()? - before;
    ensure!(held == 0, "{held} pins after release");
    Ok(())
}

/// Several files in any order, repeated and overlapping.
fn list(env: &Env) -> Result<()> {
    let files = [written(0, 16)?, written(1, 16)?, written(2, 16)?];
    // File, first page, pages.
    let ranges = [
        (2, 15, 1),
        (0, 0, 16),
        (1, 8, 8),
        (1, 0, 8),
        (0, 3, 5),
        (0, 3, 5),
        (2, 2, 1),
        (2, 1, 1),
        (2, 0, 1),
    ];
    let mut items: Vec<_> = ranges
        .iter()
        .map(|&(file, first, pages)| item(&files[file], first, pages))
        .collect();
    // Mainline ignores the padding.
    items[1].pad = !0;
    let want: Vec<_> = ranges
        .iter()
        .flat_map(|&(file, first, pages)| {
            (first..first + pages).map(move |page| Content::Page(file as u8, page))
        })
        .collect();

    let buf = abi::create_list(env.open()?, 0, &items).context("UDMABUF_CREATE_LIST")?;
    drop(files);
    ensure!(abi::size(&buf)? == (want.len() * PAGE) as u64);
    let map = Mapping::shared(&buf, 0, want.len() * PAGE)?;
    check_pages(&map, |page| want[page])?;
    // A page that is in the buffer three times is the same memory three times.
    let same: Vec<_> = (0..want.len())
        .filter(|&page| want[page] == Content::Page(0, 3))
        .collect();
    ensure!(same.len() == 3);
    map.write(same[0] * PAGE, b"same");
    for page in same {
        let mut word = [0; 4];
        map.read(page * PAGE, &mut word);
        ensure!(&word == b"same", "page {page} is other memory");
    }
    Ok(())
}

fn list_limit(env: &Env) -> Result<()> {
    let limit = env.list_limit()?;
    let memfd = written(1, 4)?;
    let items: Vec<_> = (0..limit).map(|i| item(&memfd, i % 4, 1)).collect();
    let buf = abi::create_list(env.open()?, 0, &items)
        .with_context(|| format!("{limit} items are allowed"))?;
    check_pages(&Mapping::shared(&buf, 0, limit * PAGE)?, |page| {
        Content::Page(1, page % 4)
    })
}

/// Up to the limit is allowed. Only where the limit can be changed: memory is finite.
fn size_limit(env: &Env) -> Result<()> {
    let _limit = match env.parameter("size_limit_mb") {
        Some(path) => Some(kernel::Setting::set(path, "1")?),
        None => None,
    };
    let limit = env.size_limit()?;
    // The limit is in the way before the pages are looked for: a hole will do.
    let memfd = abi::memfd(limit + PAGE as u64)?;
    let pages = (limit as usize) / PAGE;
    let result = env.try_export(&memfd, 0, pages + 1)?;
    ensure!(
        matches!(result, Err(Errno::INVAL)),
        "a page more than {limit}: {result:?}"
    );
    let halves = [item(&memfd, 0, pages / 2), item(&memfd, 0, pages / 2 + 1)];
    let result = abi::create_list(env.open()?, 0, &halves);
    ensure!(
        matches!(result, Err(Errno::INVAL)),
        "a list of a page more than {limit}: {result:?}"
    );
    if limit <= 64 << 20 {
        env.export(&memfd, 0, pages)?;
    }
    Ok(())
}

fn large_64m(env: &Env) -> Result<()> {
    const PAGES: usize = (64 << 20) / PAGE;
    let (_memfd, buf) = env.buffer(1, PAGES)?;
    check_file(&Mapping::shared(&buf, 0, PAGES * PAGE)?, 1, 0)?;
    check_file(
        &Mapping::shared(&buf, (PAGES - 3) * PAGE, 3 * PAGE)?,
        1,
        PAGES - 3,
    )
}

fn many_buffers(env: &Env) -> Result<()> {
    let memfds = (0..4)
        .map(|id| written(id, 8))
        .collect::<Result<Vec<_>>>()?;
    let mut buffers = Vec::new();
    for i in 0..256 {
        let buf = env.export(&memfds[i % 4], i % 8, 8 - i % 8)?;
        buffers.push(Mapping::shared(&buf, 0, (8 - i % 8) * PAGE)?);
    }
    for (i, map) in buffers.iter().enumerate() {
        check_file(map, (i % 4) as u8, i % 8)?;
    }
    Ok(())
}

/// A file that grows leaves the buffer as it was.
fn file_grows(env: &Env) -> Result<()> {
    let (memfd, buf) = env.buffer(1, 4)?;
    memfd.set_len(64 * PAGE as u64)?;
    ensure!(abi::size(&buf)? == 4 * PAGE as u64);
    check_file(&Mapping::shared(&buf, 0, 4 * PAGE)?, 1, 0)?;
    let result = Mapping::new(&buf, 0, 5 * PAGE, RW, MapFlags::SHARED);
    ensure!(
        matches!(result, Err(Errno::INVAL)),
        "mapping more than the buffer: {result:?}"
    );
    Ok(())
}

/// The ioctls of a 32-bit program. Only on x86 a 64-bit program can call them.
#[cfg(target_arch = "x86_64")]
mod compat {
    use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

    use anyhow::{Context, Result};
    use pagekit_user::abi::{UDMABUF_CREATE, UDMABUF_CREATE_LIST, UDMABUF_FLAGS_CLOEXEC};
    use pagekit_user::mapping::Mapping;
    use pagekit_user::PAGE;
    use rustix::io::Errno;
    use rustix::mm::MapFlags;

    use crate::env::{check_file, check_pages, written, Content, Env};

    pub fn ioctl(env: &Env) -> Result<()> {
        let memfd = written(1, 8)?;
        let dev = env.open()?;
        // 32-bit pointers: the argument must be low.
        let low = MapFlags::PRIVATE | MapFlags::from_bits_retain(libc::MAP_32BIT as u32);
        let arg = Mapping::anonymous_with(PAGE, low)?;
        let mut words = vec![memfd.as_raw_fd() as u32, UDMABUF_FLAGS_CLOEXEC];
        words.extend([2 * PAGE as u32, 0, 3 * PAGE as u32, 0]);
        put(&arg, &words);
        let single = ioctl32(&dev, UDMABUF_CREATE, &arg).context("UDMABUF_CREATE")?;
        check_file(&Mapping::shared(&single, 0, 3 * PAGE)?, 1, 2)?;

        let mut words = vec![0, 2];
        for first in [4, 1] {
            words.extend([memfd.as_raw_fd() as u32, 0]);
            words.extend([first * PAGE as u32, 0, PAGE as u32, 0]);
        }
        put(&arg, &words);
        let list = ioctl32(&dev, UDMABUF_CREATE_LIST, &arg).context("UDMABUF_CREATE_LIST")?;
        check_pages(&Mapping::shared(&list, 0, 2 * PAGE)?, |page| {
            Content::Page(1, [4, 1][page])
        })
    }

    fn put(arg: &Mapping, words: &[u32]) {
        for (i, word) in words.iter().enumerate() {
            arg.write(4 * i, &word.to_ne_bytes());
        }
    }

    /// ioctl as 32-bit programs call it, through `int 0x80`.
    fn ioctl32(dev: &impl AsRawFd, opcode: u32, arg: &Mapping) -> Result<OwnedFd> {
        const NR_IOCTL: u64 = 54;
        let ret: u64;
        // SAFETY: an `_IOW` ioctl: the kernel writes no memory. rbx, which may not be
        // named, is swapped in and back; r8 to r11 the kernel may clear.
        unsafe {
            std::arch::asm!(
                "xchg {fd:r}, rbx",
                "int 0x80",
                "xchg {fd:r}, rbx",
                fd = inout(reg) dev.as_raw_fd() as u64 => _,
                inout("rax") NR_IOCTL => ret,
                in("rcx") u64::from(opcode),
                in("rdx") arg.at(0) as u64,
                out("r8") _, out("r9") _, out("r10") _, out("r11") _,
                options(nostack),
            );
        }
        let ret = ret as i32;
        if ret < 0 {
            return Err(Errno::from_raw_os_error(-ret).into());
        }
        // SAFETY: the kernel just created it for us.
        Ok(unsafe { OwnedFd::from_raw_fd(ret) })
    }
}
