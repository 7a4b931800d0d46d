// SPDX-License-Identifier: GPL-2.0
//! ioctls of `<linux/udmabuf.h>`, `<linux/dma-heap.h>`, `<linux/dma-buf.h>` and
//! `tests/drivers/bench.h`, defined here so that a change of the driver's idea of them shows.

use std::ffi::{c_void, CStr};
use std::fmt::Display;
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};

use anyhow::{Context, Result};
use rustix::fs::{MemfdFlags, SealFlags, SeekFrom};
use rustix::io;
use rustix::ioctl::{self, opcode, IoctlOutput, Opcode};

use crate::mapping::Mapping;
use crate::PAGE;

/// C: `UDMABUF_FLAGS_CLOEXEC`.
pub const UDMABUF_FLAGS_CLOEXEC: u32 = 1;

/// C: `struct udmabuf_create`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct UdmabufCreate {
    pub memfd: u32,
    pub flags: u32,
    pub offset: u64,
    pub size: u64,
}

/// C: `struct udmabuf_create_item`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct UdmabufCreateItem {
    pub memfd: u32,
    pub pad: u32,
    pub offset: u64,
    pub size: u64,
}

/// C: `struct udmabuf_create_list`, without its flexible array.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct UdmabufCreateList {
    pub flags: u32,
    pub count: u32,
}

/// C: `struct dma_heap_allocation_data`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct HeapAllocation {
    pub len: u64,
    pub fd: u32,
    pub fd_flags: u32,
    pub heap_flags: u64,
}

/// C: `struct bench_make`, see `tests/drivers/bench.h`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct BenchMake {
    pub how: u32,
    pub fd: RawFd,
    pub start: u64,
    pub count: u64,
}

/// C: `struct dma_buf_sync`.
#[repr(C)]
struct DmaBufSync {
    flags: u64,
}

/// C: `UDMABUF_CREATE`.
pub const UDMABUF_CREATE: Opcode = opcode::write::<UdmabufCreate>(b'u', 0x42);
/// C: `UDMABUF_CREATE_LIST`.
pub const UDMABUF_CREATE_LIST: Opcode = opcode::write::<UdmabufCreateList>(b'u', 0x43);
/// C: `DMA_HEAP_IOCTL_ALLOC`.
pub const DMA_HEAP_IOCTL_ALLOC: Opcode = opcode::read_write::<HeapAllocation>(b'H', 0);
/// C: `BENCH_MAKE`.
const BENCH_MAKE: Opcode = opcode::write::<BenchMake>(b'B', 1);
/// C: `DMA_BUF_IOCTL_SYNC`.
pub const DMA_BUF_IOCTL_SYNC: Opcode = opcode::write::<DmaBufSync>(b'b', 0);

/// C: `DMA_BUF_SYNC_READ`, `_WRITE`, `_RW`; added to one of the next two.
pub const SYNC_READ: u64 = 1;
pub const SYNC_WRITE: u64 = 2;
pub const SYNC_RW: u64 = SYNC_READ | SYNC_WRITE;
/// C: `DMA_BUF_SYNC_START`, `DMA_BUF_SYNC_END`.
pub const SYNC_START: u64 = 0;
pub const SYNC_END: u64 = 4;

/// The argument of `SHOW_FILE`.
#[repr(C)]
pub struct FileRange {
    pub memfd: u32,
    pub count: u32,
    pub pgoff: u64,
}

/// C: `SHOW_FILE` of `tests/drivers/node.rs`.
pub const SHOW_FILE: Opcode = opcode::write::<FileRange>(b'P', 3);

/// The argument of `SHOW_USER`.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct UserRange {
    pub address: u64,
    pub count: u64,
}

/// C: `SHOW_USER` of `tests/drivers/node.rs`.
pub const SHOW_USER: Opcode = opcode::write::<UserRange>(b'P', 4);

/// An ioctl with an arbitrary argument, so that tests can pass wrong ones.
struct Raw {
    opcode: Opcode,
    arg: *mut c_void,
}

// SAFETY: `opcode` and `as_ptr` return what `ioctl` was given; whether they fit
// together is what `ioctl`'s callers promise. `IS_MUTATING` is the cautious choice.
unsafe impl ioctl::Ioctl for Raw {
    type Output = IoctlOutput;
    const IS_MUTATING: bool = true;

    fn opcode(&self) -> Opcode {
        self.opcode
    }

    fn as_ptr(&mut self) -> *mut c_void {
        self.arg
    }

    unsafe fn output_from_ptr(out: IoctlOutput, _: *mut c_void) -> io::Result<IoctlOutput> {
        Ok(out)
    }
}

/// Any ioctl.
///
/// # Safety
///
/// The kernel must not write memory through `arg` that the caller doesn't own;
/// an `arg` that it only reads may be anything (`EFAULT`).
pub unsafe fn ioctl(fd: impl AsFd, opcode: Opcode, arg: *const c_void) -> io::Result<IoctlOutput> {
    let raw = Raw {
        opcode,
        arg: arg.cast_mut(),
    };
    // SAFETY: as promised by the caller.
    unsafe { ioctl::ioctl(fd, raw) }
}

/// An ioctl that returns a new file descriptor.
///
/// # Safety
///
/// As for `ioctl`, and what it returns is a new file descriptor.
pub unsafe fn ioctl_for_fd(
    dev: impl AsFd,
    opcode: Opcode,
    arg: *const c_void,
) -> io::Result<OwnedFd> {
    // SAFETY: as promised by the caller.
    let fd = unsafe { ioctl(dev, opcode, arg) }?;
    // SAFETY: the kernel just created it for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// `UDMABUF_CREATE`.
pub fn create(dev: impl AsFd, arg: &UdmabufCreate) -> io::Result<OwnedFd> {
    // SAFETY: the kernel only reads `arg`.
    unsafe { ioctl_for_fd(dev, UDMABUF_CREATE, (&raw const *arg).cast()) }
}

/// `UDMABUF_CREATE_LIST`; the head's `count` is the number of items.
pub fn create_list(dev: impl AsFd, flags: u32, items: &[UdmabufCreateItem]) -> io::Result<OwnedFd> {
    let head = UdmabufCreateList {
        flags,
        count: items.len() as u32,
    };
    // Head and items must be contiguous: put the head's eight bytes in front as words.
    let mut words = vec![u64::from(head.flags) | u64::from(head.count) << 32];
    for item in items {
        words.push(u64::from(item.memfd) | u64::from(item.pad) << 32);
        words.extend([item.offset, item.size]);
    }
    // SAFETY: the kernel only reads `words`, and as many as `count` says.
    unsafe { ioctl_for_fd(dev, UDMABUF_CREATE_LIST, words.as_ptr().cast()) }
}

/// `DMA_HEAP_IOCTL_ALLOC`.
pub fn heap_alloc(heap: impl AsFd, arg: &mut HeapAllocation) -> io::Result<OwnedFd> {
    // SAFETY: the kernel reads and writes `arg`.
    unsafe { ioctl(heap, DMA_HEAP_IOCTL_ALLOC, (&raw mut *arg).cast()) }?;
    // SAFETY: the kernel just created it for us.
    Ok(unsafe { OwnedFd::from_raw_fd(arg.fd as RawFd) })
}

/// The ioctl of `samples/template.rs`.
pub fn template_create(dev: impl AsFd, pages: usize) -> io::Result<OwnedFd> {
    let create = opcode::none(b'K', 0);
    // SAFETY: the argument is a number.
    unsafe { ioctl_for_fd(dev, create, std::ptr::without_provenance(pages)) }
}

/// `SHOW_FILE`: pages of a memfd become those of a node.
pub fn show_file(node: impl AsFd, memfd: impl AsFd, pgoff: usize, count: usize) -> io::Result<()> {
    let range = FileRange {
        memfd: memfd.as_fd().as_raw_fd() as u32,
        count: count as u32,
        pgoff: pgoff as u64,
    };
    // SAFETY: the kernel only reads `range`.
    unsafe { ioctl(node, SHOW_FILE, (&raw const range).cast()) }.map(drop)
}

/// `SHOW_USER`: pages of this process, for reading.
pub fn show_user(node: impl AsFd, memory: &Mapping) -> io::Result<()> {
    let range = UserRange {
        address: memory.at(0) as u64,
        count: (memory.len() / PAGE) as u64,
    };
    // SAFETY: the kernel only reads `range`.
    unsafe { ioctl(node, SHOW_USER, (&raw const range).cast()) }.map(drop)
}

/// `BENCH_MAKE`.
pub fn bench_make(device: impl AsFd, arg: &BenchMake) -> io::Result<()> {
    // SAFETY: the kernel only reads `arg`.
    unsafe { ioctl(device, BENCH_MAKE, (&raw const *arg).cast()) }.map(drop)
}

/// `DMA_BUF_IOCTL_SYNC` with any flags.
pub fn sync(buf: impl AsFd, flags: u64) -> io::Result<()> {
    let arg = DmaBufSync { flags };
    // SAFETY: the kernel only reads `arg`.
    unsafe { ioctl(buf, DMA_BUF_IOCTL_SYNC, (&raw const arg).cast()) }.map(drop)
}

/// C: `struct dma_buf_export_sync_file`, `struct dma_buf_import_sync_file`.
#[repr(C)]
struct SyncFile {
    flags: u32,
    fd: RawFd,
}

/// `DMA_BUF_IOCTL_EXPORT_SYNC_FILE`: the fences of a buffer that such an access would wait for.
pub fn export_fences(buf: impl AsFd, flags: u64) -> io::Result<OwnedFd> {
    let mut arg = SyncFile {
        flags: flags as u32,
        fd: -1,
    };
    let export = opcode::read_write::<SyncFile>(b'b', 2);
    // SAFETY: the kernel reads and writes `arg`.
    unsafe { ioctl(buf, export, (&raw mut arg).cast()) }?;
    // SAFETY: the kernel just created it for us.
    Ok(unsafe { OwnedFd::from_raw_fd(arg.fd) })
}

/// `DMA_BUF_IOCTL_IMPORT_SYNC_FILE`: adds them to those of another buffer, as of such an access.
pub fn import_fences(buf: impl AsFd, fences: impl AsFd, flags: u64) -> io::Result<()> {
    let arg = SyncFile {
        flags: flags as u32,
        fd: fences.as_fd().as_raw_fd(),
    };
    let import = opcode::write::<SyncFile>(b'b', 3);
    // SAFETY: the kernel only reads `arg`.
    unsafe { ioctl(buf, import, (&raw const arg).cast()) }.map(drop)
}

/// Runs `access` between the begin and the end of CPU access.
pub fn with_cpu_access<T>(
    buf: impl AsFd,
    dir: u64,
    access: impl FnOnce() -> Result<T>,
) -> Result<T> {
    sync(&buf, SYNC_START | dir).context("DMA_BUF_IOCTL_SYNC start")?;
    let value = access();
    sync(&buf, SYNC_END | dir).context("DMA_BUF_IOCTL_SYNC end")?;
    value
}

/// `DMA_BUF_SET_NAME`.
pub fn set_name(buf: impl AsFd, name: &CStr) -> io::Result<()> {
    let set_name = opcode::write::<u64>(b'b', 1);
    // SAFETY: the kernel only reads the name.
    unsafe { ioctl(buf, set_name, name.as_ptr().cast()) }.map(drop)
}

/// The size of a dma-buf.
pub fn size(buf: impl AsFd) -> io::Result<u64> {
    let size = rustix::fs::seek(&buf, SeekFrom::End(0))?;
    rustix::fs::seek(&buf, SeekFrom::Start(0))?;
    Ok(size)
}

/// A field of `/proc/self/fdinfo/N`; dma-bufs show `size`, `count`, `exp_name`.
pub fn fdinfo(fd: RawFd, field: &str) -> Result<String> {
    fdinfo_of("self", fd, field)
}

/// The same of another process.
pub fn fdinfo_of(process: impl Display, fd: impl Display, field: &str) -> Result<String> {
    let info = std::fs::read_to_string(format!("/proc/{process}/fdinfo/{fd}"))?;
    info.lines()
        .filter_map(|line| line.split_once(':'))
        .find(|(name, _)| *name == field)
        .map(|(_, value)| value.trim().to_owned())
        .with_context(|| format!("fdinfo of {fd} has no {field}"))
}

/// A memfd of `size` bytes, all hole, with the seals that udmabuf asks for.
pub fn memfd(size: u64) -> Result<File> {
    memfd_with(size, MemfdFlags::ALLOW_SEALING, SealFlags::SHRINK)
}

pub fn memfd_with(size: u64, flags: MemfdFlags, seals: SealFlags) -> Result<File> {
    let fd =
        rustix::fs::memfd_create("pagekit", flags | MemfdFlags::CLOEXEC).context("memfd_create")?;
    rustix::fs::ftruncate(&fd, size).with_context(|| format!("ftruncate to {size}"))?;
    if !seals.is_empty() {
        rustix::fs::fcntl_add_seals(&fd, seals).context("F_ADD_SEALS")?;
    }
    Ok(File::from(fd))
}
