// SPDX-License-Identifier: GPL-2.0
//! Mapping buffers, and what processes do to mappings afterwards. For any exporter that maps
//! PFNs.

use std::ffi::c_void;
use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;

use anyhow::{ensure, Context, Result};
use pagekit_user::abi::{self, SYNC_READ, SYNC_RW, SYNC_START, SYNC_WRITE};
use pagekit_user::kernel::{Zram, ZRAM};
use pagekit_user::mapping::{last_errno, Mapping};
use pagekit_user::process::{signal_of, Child};
use pagekit_user::{kernel, PAGE};
use rustix::io::{self, Errno};
use rustix::mm::{Advice, MapFlags, MprotectFlags, ProtFlags};

use crate::env::{check_file, check_pages, peek, Content, Env};
use crate::groups::Case;

pub const CASES: &[Case] = &[
    Case::new("map_offsets", map_offsets).smoke(),
    Case::new("map_read_only", map_read_only),
    Case::new("map_write_first", map_write_first),
    Case::new("split_mprotect", split_mprotect).smoke(),
    Case::new("split_munmap", split_munmap),
    Case::new("mremap_shrink", mremap_shrink),
    Case::new("mremap_move", mremap_move),
    Case::new("mremap_grow", mremap_grow),
    Case::new("fork", fork).smoke(),
    Case::new("fork_untouched", fork_untouched),
    Case::new("madv_dontneed", madv_dontneed),
    Case::new("outlives_fds", outlives_fds).smoke(),
    Case::new("gup_process_vm", gup_process_vm),
    Case::new("gup_o_direct", gup_o_direct),
    Case::new("sync", sync).smoke(),
];

fn map_offsets(env: &Env) -> Result<()> {
    let buf = env.filled(1, 32)?;
    for (first, pages) in [(10, 1), (10, 12), (1, 31), (31, 1), (16, 16)] {
        let map = Mapping::shared(&buf, first * PAGE, pages * PAGE)?;
        check_file(&map, 1, first).with_context(|| format!("mapped at page {first}"))?;
    }
    Ok(())
}

fn map_read_only(env: &Env) -> Result<()> {
    let buf = env.filled(1, 8)?;
    let map = Mapping::new(&buf, 0, 8 * PAGE, ProtFlags::READ, MapFlags::SHARED)?;
    let write = || {
        map.write(2 * PAGE, &Content::Page(2, 2).bytes());
    };
    ensure!(
        signal_of(write)? == Some(libc::SIGSEGV),
        "untouched: writable"
    );
    check_file(&map, 1, 0)?;
    ensure!(
        signal_of(write)? == Some(libc::SIGSEGV),
        "touched: writable"
    );
    Content::Page(1, 2).check(&peek(&buf, 2)?)?;
    // Made writable, it is.
    map.protect(0, 8 * PAGE, MprotectFlags::READ | MprotectFlags::WRITE)?;
    write();
    Content::Page(2, 2).check(&peek(&buf, 2)?)
}

/// The first access to a mapping is a write.
fn map_write_first(env: &Env) -> Result<()> {
    let buf = env.filled(1, 16)?;
    let map = Mapping::shared(&buf, 4 * PAGE, 8 * PAGE)?;
    map.write(3 * PAGE, &Content::Page(2, 7).bytes());
    Content::Page(2, 7).check(&peek(&buf, 7)?)?;
    check_pages(&map, |page| match page {
        3 => Content::Page(2, 7),
        _ => Content::Page(1, 4 + page),
    })
}

/// Once with untouched pages, and once with pages that were mapped before the split.
fn split_mprotect(env: &Env) -> Result<()> {
    let buf = env.filled(1, 32)?;
    for touched in [false, true] {
        let map = Mapping::shared(&buf, 4 * PAGE, 24 * PAGE)?;
        if touched {
            map.touch();
        }
        map.protect(8 * PAGE, 8 * PAGE, MprotectFlags::READ)?;
        check_file(&map, 1, 4).with_context(|| format!("touched before: {touched}"))?;
        let write = || map.write(9 * PAGE, b"no");
        ensure!(signal_of(write)? == Some(libc::SIGSEGV));
        map.protect(8 * PAGE, 8 * PAGE, MprotectFlags::empty())?;
        map.protect(
            8 * PAGE,
            8 * PAGE,
            MprotectFlags::READ | MprotectFlags::WRITE,
        )?;
        check_file(&map, 1, 4)?;
    }
    Ok(())
}

fn split_munmap(env: &Env) -> Result<()> {
    let buf = env.filled(1, 32)?;
    for touched in [false, true] {
        let map = Mapping::shared(&buf, 2 * PAGE, 30 * PAGE)?;
        if touched {
            map.touch();
        }
        let hole = map.at(10 * PAGE);
        let (head, tail) = map.cut_out(10 * PAGE, 5 * PAGE)?;
        check_file(&head, 1, 2)?;
        check_file(&tail, 1, 17)?;
        let read = || {
            // SAFETY: runs in a child that must not survive it.
            unsafe { hole.read_volatile() };
        };
        ensure!(signal_of(read)? == Some(libc::SIGSEGV));
    }
    Ok(())
}

fn mremap_shrink(env: &Env) -> Result<()> {
    let buf = env.filled(1, 32)?;
    for touched in [false, true] {
        let mut map = Mapping::shared(&buf, 8 * PAGE, 24 * PAGE)?;
        if touched {
            map.touch();
        }
        map.resize(5 * PAGE)?;
        check_file(&map, 1, 8)?;
    }
    Ok(())
}

fn mremap_move(env: &Env) -> Result<()> {
    let buf = env.filled(1, 32)?;
    for touched in [false, true] {
        let mut map = Mapping::shared(&buf, 8 * PAGE, 16 * PAGE)?;
        if touched {
            map.touch();
        }
        map.move_to(Mapping::anonymous(16 * PAGE)?)?;
        check_file(&map, 1, 8)?;
    }
    Ok(())
}

/// Pages behind the buffer's end must stay out of reach.
fn mremap_grow(env: &Env) -> Result<()> {
    let buf = env.filled(1, 16)?;
    for (first, pages, grown) in [(0, 16, 17), (0, 8, 64), (0, 8, 16)] {
        let mut map = Mapping::shared(&buf, first * PAGE, pages * PAGE)?;
        map.touch();
        let result = map.resize(grown * PAGE);
        ensure!(
            matches!(result, Err(Errno::FAULT)),
            "from {pages} to {grown} pages: {result:?}"
        );
        check_file(&map, 1, first)?;
    }
    Ok(())
}

fn fork(env: &Env) -> Result<()> {
    share_with_child(env, true)
}

fn fork_untouched(env: &Env) -> Result<()> {
    share_with_child(env, false)
}

/// A child sees and writes the same memory through the mapping it inherits.
fn share_with_child(env: &Env, touched: bool) -> Result<()> {
    let buf = env.filled(1, 16)?;
    let map = Mapping::shared(&buf, 4 * PAGE, 12 * PAGE)?;
    if touched {
        map.touch();
    }
    Child::spawn(|| {
        check_file(&map, 1, 4)?;
        map.write(6 * PAGE, &Content::Page(2, 10).bytes());
        Ok(())
    })?
    .join("child")?;
    Content::Page(2, 10).check(&map.page(6))?;
    Content::Page(2, 10).check(&peek(&buf, 10)?)
}

/// Either refused (PFN mappings) or without loss.
fn madv_dontneed(env: &Env) -> Result<()> {
    let buf = env.filled(1, 16)?;
    let map = Mapping::shared(&buf, 4 * PAGE, 8 * PAGE)?;
    map.touch();
    match map.advise(Advice::LinuxDontNeed) {
        Ok(()) | Err(Errno::INVAL) => check_file(&map, 1, 4),
        Err(error) => Err(error.into()),
    }
}

fn outlives_fds(env: &Env) -> Result<()> {
    let buf = env.filled(1, 16)?;
    let early = Mapping::shared(&buf, 0, 16 * PAGE)?;
    early.touch();
    let late = Mapping::shared(&buf, 8 * PAGE, 8 * PAGE)?;
    drop(buf);
    check_file(&early, 1, 0)?;
    check_file(&late, 1, 8)?;
    late.write(0, &Content::Page(2, 8).bytes());
    Content::Page(2, 8).check(&early.page(8))
}

/// Pages are mapped by PFN: nobody can get references to them through the mapping.
fn gup_process_vm(env: &Env) -> Result<()> {
    let buf = env.filled(1, 4)?;
    let map = Mapping::shared(&buf, 0, 4 * PAGE)?;
    map.touch();
    let own = Mapping::anonymous(PAGE)?;
    let into = Mapping::anonymous(PAGE)?;
    // Control: it works on ordinary memory.
    let own_pid = std::process::id() as i32;
    ensure!(
        process_vm(own_pid, &into, &own, false) == Ok(PAGE),
        "process_vm_readv doesn't work"
    );
    let result = process_vm(own_pid, &into, &map, false);
    ensure!(result == Err(Errno::FAULT), "process_vm_readv: {result:?}");
    Ok(())
}

/// One page between our memory and that of another process: what it has where `remote` is here.
pub fn process_vm(pid: i32, local: &Mapping, remote: &Mapping, write: bool) -> io::Result<usize> {
    let iovec = |map: &Mapping| libc::iovec {
        iov_base: map.at(0).cast::<c_void>(),
        iov_len: PAGE,
    };
    let (local, remote) = (iovec(local), iovec(remote));
    // SAFETY: a page of memory that is ours, and one of the other process: the cases fork no
    // process that anything else depends on.
    let len = unsafe {
        match write {
            true => libc::process_vm_writev(pid, &local, 1, &remote, 1, 0),
            false => libc::process_vm_readv(pid, &local, 1, &remote, 1, 0),
        }
    };
    usize::try_from(len).map_err(|_| last_errno())
}

fn gup_o_direct(env: &Env) -> Result<()> {
    let (_zram, disk) = direct_disk()?;
    let buf = env.filled(1, 4)?;
    let map = Mapping::shared(&buf, 0, 4 * PAGE)?;
    map.touch();
    let own = Mapping::anonymous(PAGE)?;
    own.write(0, b"control");
    ensure!(
        direct(&disk, &own, true) == Ok(PAGE),
        "O_DIRECT doesn't work"
    );
    for write in [true, false] {
        let result = direct(&disk, &map, write);
        ensure!(result == Err(Errno::FAULT), "write: {write}: {result:?}");
    }
    check_file(&map, 1, 0)
}

/// A disk, open with O_DIRECT. To be dropped in reverse order.
pub fn direct_disk() -> Result<(Zram, File)> {
    let zram = Zram::new(1 << 20)?;
    let disk = File::options()
        .read(true)
        .write(true)
        .custom_flags(libc::O_DIRECT)
        .open(ZRAM)?;
    Ok((zram, disk))
}

/// One page between the disk and memory.
pub fn direct(disk: &File, map: &Mapping, write: bool) -> io::Result<usize> {
    let (fd, addr) = (disk.as_raw_fd(), map.at(0).cast::<c_void>());
    // SAFETY: a page of memory that is ours and that nobody has references into.
    let len = unsafe {
        match write {
            true => libc::pwrite(fd, addr, PAGE, 0),
            false => libc::pread(fd, addr, PAGE, 0),
        }
    };
    usize::try_from(len).map_err(|_| last_errno())
}

fn sync(env: &Env) -> Result<()> {
    let buf = env.filled(1, 8)?;
    let map = Mapping::shared(&buf, 0, 8 * PAGE)?;
    for dir in [SYNC_READ, SYNC_WRITE, SYNC_RW] {
        abi::with_cpu_access(&buf, dir, || check_file(&map, 1, 0))?;
    }
    // Two users at once: begin, begin, end, end.
    abi::with_cpu_access(&buf, SYNC_RW, || {
        abi::with_cpu_access(&buf, SYNC_READ, || check_file(&map, 1, 0))
    })?;
    drop(map);
    // Begun and never ended: release must cope.
    abi::sync(&buf, SYNC_START | SYNC_RW)?;
    let before = kernel::buffers()?;
    drop(buf);
    ensure!(kernel::buffers()? == before - 1, "not released");
    Ok(())
}
