// SPDX-License-Identifier: GPL-2.0
//! What a DMA heap refuses: most of it is up to the core of the heaps.

use std::fs::File;
use std::os::fd::{FromRawFd, OwnedFd};

use anyhow::Result;
use pagekit_user::abi::{self, HeapAllocation, DMA_HEAP_IOCTL_ALLOC};
use pagekit_user::kernel::Setting;
use pagekit_user::mapping::{Mapping, RW};
use pagekit_user::{kernel, PAGE};
use rustix::fs::OFlags;
use rustix::io;
use rustix::ioctl::{opcode, Opcode};
use rustix::mm::{MapFlags, MprotectFlags, ProtFlags};

use super::{rows, tried, AllFds};
use crate::env::Env;
use crate::groups::{Outcome, Row};
use crate::heap::read_only;

const P: u64 = PAGE as u64;
const SIZE_LIMIT: &str = "/sys/module/pagekit_heap/parameters/size_limit_mb";
/// Flags that heaps don't know.
const APPEND: u32 = OFlags::APPEND.bits();

pub const ROWS: &[&[Row]] = &[
    rows! { "DMA_HEAP_IOCTL_ALLOC", alloc;
    len_zero: "len 0" => INVAL, "core: dma_heap_ioctl_allocate(): !len", |a| a.data.len = 0;
    len_max: "len 2^64 - 1" => INVAL, "core: dma_heap_ioctl_allocate(): PAGE_ALIGN() wraps", |a| a.data.len = !0;
    len_sign: "len 2^63" => INVAL, "allocate(): limit_mb", |a| a.data.len = 1 << 63;
    len_huge: "len 2^50" => NOMEM, "allocate(): count > ram_pages", |a| a.data.len = 1 << 50;
    more_than_memory: "a page more than memory" => NOMEM, "allocate(): count > ram_pages",
        |a| a.data.len = kernel::memory("MemTotal")? + P;
    size_limit: "a page more than size_limit_mb" => INVAL, "allocate(): limit_mb",
        |a| { a.limit = Some(Setting::set(SIZE_LIMIT, "1")?); a.data.len = (1 << 20) + 1 };
    unlimited: "len 2^63, size_limit_mb -1" => NOMEM, "allocate(): a negative limit_mb",
        |a| { a.limit = Some(Setting::set(SIZE_LIMIT, "-1")?); a.data.len = 1 << 63 };
    fd_given: "fd 1" => INVAL, "core: dma_heap_ioctl_allocate(): fd", |a| a.data.fd = 1;
    fd_flags: "O_APPEND" => INVAL, "core: dma_heap_ioctl_allocate(): fd_flags", |a| a.data.fd_flags |= APPEND;
    heap_flags: "heap flags 1" => INVAL, "core: dma_heap_ioctl_allocate(): heap_flags", |a| a.data.heap_flags = 1;
    heap_flags_high: "heap flags 2^63" => INVAL, "core: dma_heap_ioctl_allocate(): heap_flags",
        |a| a.data.heap_flags = 1 << 63;
    null: "null" => FAULT, "core: dma_heap_ioctl(): copy_from_user()", |a| a.at = Some(0);
    not_writable: "an argument that can't be written to" => FAULT,
        "core: dma_heap_ioctl(): copy_to_user(), release()", |a| a.read_only = true;
    unknown: "number 1" => INVAL, "core: dma_heap_ioctl(): nr",
        |a| a.cmd = opcode::read_write::<HeapAllocation>(b'H', 1);
    no_argument: "no argument" => INVAL, "core: dma_heap_ioctl(): in_size", |a| a.cmd = opcode::none(b'H', 0);
    no_fds_left: "no file descriptor is left" => MFILE,
        "core: dma_heap_ioctl_allocate(): get_unused_fd_flags(), release()", |a| a.fds = Some(AllFds::take(&a.heap)?);
    },
    rows! { "mmap of a read-only dma-buf", read_only_mmap;
    read_only_write: "PROT_WRITE" => ACCESS, "core: do_mmap(): FMODE_WRITE",
        |m| (m.prot, m.flags) = (RW, MapFlags::SHARED);
    read_only_private: "MAP_PRIVATE" => INVAL, "vma.rs is_cow(): MAYWRITE", |m| m.flags = MapFlags::PRIVATE;
    read_only_private_write: "MAP_PRIVATE, PROT_WRITE" => INVAL, "vma.rs is_cow(): MAYWRITE",
        |m| (m.prot, m.flags) = (RW, MapFlags::PRIVATE);
    },
    rows! { "mprotect of a read-only dma-buf", read_only_mprotect;
    read_only_mprotect: "PROT_WRITE" => ACCESS, "core: mprotect_fixup(): VM_MAYWRITE",
        |p| *p |= MprotectFlags::WRITE;
    },
];

struct Alloc {
    heap: File,
    cmd: Opcode,
    data: HeapAllocation,
    /// Where it is passed instead.
    at: Option<usize>,
    read_only: bool,
    fds: Option<AllFds>,
    limit: Option<Setting>,
}

impl Alloc {
    fn good(env: &Env) -> Result<Self> {
        Ok(Self {
            heap: env.open()?,
            cmd: DMA_HEAP_IOCTL_ALLOC,
            data: HeapAllocation {
                len: P,
                fd: 0,
                fd_flags: (OFlags::RDWR | OFlags::CLOEXEC).bits(),
                heap_flags: 0,
            },
            at: None,
            read_only: false,
            fds: None,
            limit: None,
        })
    }

    fn call(&self) -> io::Result<()> {
        let memory = Mapping::anonymous(PAGE)?;
        // SAFETY: it consists of integers, and has no padding.
        let bytes = unsafe { std::mem::transmute::<HeapAllocation, [u8; 24]>(self.data) };
        memory.write(0, &bytes);
        if self.read_only {
            memory.protect(0, PAGE, MprotectFlags::READ)?;
        }
        let arg = self.at.unwrap_or(memory.at(0) as usize);
        // SAFETY: the kernel reads and writes memory of ours, or fails.
        unsafe { abi::ioctl(&self.heap, self.cmd, arg as *const _) }?;
        let mut fd = [0; 4];
        memory.read(8, &mut fd);
        // SAFETY: the kernel just created it for us.
        drop(unsafe { OwnedFd::from_raw_fd(i32::from_ne_bytes(fd)) });
        Ok(())
    }
}

fn alloc(env: &Env, change: impl FnOnce(&mut Alloc) -> Result<()>) -> Outcome {
    let (mut bad, good) = (Alloc::good(env)?, Alloc::good(env)?);
    change(&mut bad)?;
    tried(move || bad.call(), || good.call())
}

struct Mmap {
    prot: ProtFlags,
    flags: MapFlags,
}

fn read_only_mmap(env: &Env, change: impl FnOnce(&mut Mmap) -> Result<()>) -> Outcome {
    let buf = read_only(env)?;
    let (prot, flags) = (ProtFlags::READ, MapFlags::SHARED);
    let mut bad = Mmap { prot, flags };
    change(&mut bad)?;
    let map = |prot, flags| Mapping::new(&buf, 0, PAGE, prot, flags).map(drop);
    tried(|| map(bad.prot, bad.flags), || map(prot, flags))
}

fn read_only_mprotect(env: &Env, change: impl FnOnce(&mut MprotectFlags) -> Result<()>) -> Outcome {
    let buf = read_only(env)?;
    let map = Mapping::new(&buf, 0, PAGE, ProtFlags::READ, MapFlags::SHARED)?;
    let mut bad = MprotectFlags::READ;
    change(&mut bad)?;
    tried(
        || map.protect(0, PAGE, bad),
        || map.protect(0, PAGE, MprotectFlags::READ),
    )
}
