// SPDX-License-Identifier: GPL-2.0
//! What a dma-buf and its mappings refuse, whoever has exported it. Much of it is up to the kernel,
//! which looks at what the driver has set up.

use std::ffi::c_void;
use std::os::fd::OwnedFd;

use anyhow::Result;
use pagekit_user::abi::{self, SYNC_READ, SYNC_RW};
use pagekit_user::mapping::{last_errno, Mapping, RW};
use pagekit_user::PAGE;
use rustix::fs::{FallocateFlags, SealFlags, SeekFrom};
use rustix::io;
use rustix::ioctl::{opcode, Opcode};
use rustix::mm::{Advice, MapFlags, MprotectFlags, ProtFlags};

use super::{rows, tried};
use crate::env::Env;
use crate::groups::{Outcome, Row};

const PAGES: usize = 8;
const SYNC: Opcode = opcode::write::<u64>(b'b', 0);
const SET_NAME: Opcode = opcode::write::<u64>(b'b', 1);
const EXPORT_SYNC_FILE: Opcode = opcode::read_write::<u64>(b'b', 2);
const IMPORT_SYNC_FILE: Opcode = opcode::write::<u64>(b'b', 3);

pub const ROWS: &[&[Row]] = &[
    rows! { "DMA_BUF_IOCTL_SYNC", ioctl;
    sync_none: "no direction" => INVAL, "core: dma_buf_ioctl(): SYNC_RW", |i| i.words[0] = 0;
    sync_unknown: "flag 8" => INVAL, "core: dma_buf_ioctl(): VALID_FLAGS_MASK", |i| i.words[0] = SYNC_RW | 8;
    sync_unknown_high: "flag 2^40" => INVAL, "core: dma_buf_ioctl(): VALID_FLAGS_MASK",
        |i| i.words[0] = SYNC_RW | 1 << 40;
    sync_null: "null" => FAULT, "core: dma_buf_ioctl(): copy_from_user()", |i| i.null = true;
    },
    rows! { "ioctl of a dma-buf", ioctl;
    name_long: "a name of 32 bytes" => INVAL, "core: dma_buf_set_name(): DMA_BUF_NAME_LEN",
        |i| (i.cmd, i.words) = (SET_NAME, [0x6161_6161_6161_6161; 5]);
    name_null: "a name at null" => FAULT, "core: dma_buf_set_name(): strndup_user()",
        |i| (i.cmd, i.null) = (SET_NAME, true);
    export_fence_none: "a fence for no direction" => INVAL, "core: dma_buf_export_sync_file(): SYNC_RW",
        |i| (i.cmd, i.words[0]) = (EXPORT_SYNC_FILE, 0);
    export_fence_unknown: "a fence, flag 4" => INVAL, "core: dma_buf_export_sync_file(): flags",
        |i| (i.cmd, i.words[0]) = (EXPORT_SYNC_FILE, 4 | SYNC_RW);
    export_fence_null: "a fence at null" => FAULT, "core: dma_buf_export_sync_file(): copy_from_user()",
        |i| (i.cmd, i.null) = (EXPORT_SYNC_FILE, true);
    import_fence_none: "a fence for no direction, to it" => INVAL, "core: dma_buf_import_sync_file(): SYNC_RW",
        |i| (i.cmd, i.words[0]) = (IMPORT_SYNC_FILE, 0);
    import_fence_no_fd: "no fence, to it" => INVAL, "core: dma_buf_import_sync_file(): sync_file_get_fence()",
        |i| (i.cmd, i.words[0]) = (IMPORT_SYNC_FILE, SYNC_RW | !0 << 32);
    ioctl_unknown: "an unknown number" => NOTTY, "core: dma_buf_ioctl(): switch",
        |i| i.cmd = opcode::write::<u64>(b'b', 9);
    },
    rows! { "lseek of a dma-buf", seek;
    seek_current: "SEEK_CUR" => INVAL, "core: dma_buf_llseek(): whence", |s| *s = SeekFrom::Current(0);
    seek_data: "SEEK_DATA" => INVAL, "core: dma_buf_llseek(): whence", |s| *s = SeekFrom::Data(0);
    seek_start: "byte 1" => INVAL, "core: dma_buf_llseek(): offset", |s| *s = SeekFrom::Start(1);
    seek_past_end: "a byte past the end" => INVAL, "core: dma_buf_llseek(): offset", |s| *s = SeekFrom::End(1);
    seek_lowest: "2^63 bytes before the end" => INVAL, "core: dma_buf_llseek(): offset",
        |s| *s = SeekFrom::End(i64::MIN);
    },
    rows! { "mmap of a dma-buf", mmap;
    map_past_end: "9 of 8 pages" => INVAL, "core: dma_buf_mmap_internal(): size", |m| m.pages = PAGES + 1;
    map_crosses_end: "2 pages from page 7 of 8" => INVAL, "core: dma_buf_mmap_internal(): size",
        |m| (m.first, m.pages) = (PAGES - 1, 2);
    map_at_end: "page 8 of 8" => INVAL, "core: dma_buf_mmap_internal(): size", |m| (m.first, m.pages) = (PAGES, 1);
    map_offset_huge: "page 2^48" => INVAL, "core: dma_buf_mmap_internal(): size", |m| m.first = 1 << 48;
    map_offset_last: "8 pages from the last page of 2^64 bytes" => OVERFLOW, "core: file_mmap_ok(): pgoff",
        |m| m.first = usize::MAX / PAGE;
    map_length_max: "2^64 bytes but a page" => NOMEM, "core: do_mmap(): TASK_SIZE", |m| m.pages = usize::MAX / PAGE;
    map_private: "MAP_PRIVATE" => INVAL, "vma.rs is_cow(): MAYWRITE", |m| m.flags = MapFlags::PRIVATE;
    map_private_read: "MAP_PRIVATE, PROT_READ" => INVAL, "vma.rs is_cow(): MAYWRITE, not WRITE",
        |m| (m.flags, m.prot) = (MapFlags::PRIVATE, ProtFlags::READ);
    map_exec: "PROT_EXEC" => PERM, "core: do_mmap(): path_noexec()", |m| m.prot |= ProtFlags::EXEC;
    },
    rows! { "mprotect of a mapping", mprotect;
    protect_exec: "PROT_EXEC" => ACCESS, "core: mprotect_fixup(): VM_MAYEXEC", |p| *p |= MprotectFlags::EXEC;
    },
    rows! { "mremap of a mapping", mremap;
    remap_past_end: "9 pages for 8" => FAULT, "vma.rs setup(), map_pfns(): DONTEXPAND", |m| m.new = PAGES + 1;
    remap_wraps: "2^52 - 1 pages for 8" => INVAL, "core: check_mremap_params(): TASK_SIZE",
        |m| m.new = usize::MAX / PAGE;
    remap_twice: "the same pages once more, by 0 for 8" => FAULT, "vma.rs setup(), map_pfns(): DONTEXPAND, old_len 0",
        |m| m.old = 0;
    remap_keep: "MREMAP_DONTUNMAP" => INVAL, "vma.rs setup(), map_pfns(): DONTEXPAND, PFNMAP",
        |m| m.flags |= libc::MREMAP_DONTUNMAP;
    },
    rows! { "madvise of a mapping", madvise;
    advise_dontneed: "MADV_DONTNEED" => INVAL, "vma.rs setup(), map_pfns(): PFNMAP", |a| *a = Advice::LinuxDontNeed;
    advise_free: "MADV_FREE" => INVAL, "core: madvise_free_single_vma(): anonymous", |a| *a = Advice::LinuxFree;
    advise_remove: "MADV_REMOVE" => NODEV, "core: vfs_fallocate(): S_ISREG", |a| *a = Advice::LinuxRemove;
    advise_dodump: "MADV_DODUMP" => INVAL, "vma.rs setup(), map_pfns(): DONTEXPAND, PFNMAP",
        |a| *a = Advice::LinuxDoDump;
    advise_populate: "MADV_POPULATE_WRITE" => INVAL, "vma.rs setup(), map_pfns(): PFNMAP",
        |a| *a = Advice::LinuxPopulateWrite;
    },
    rows! { "file operation of a dma-buf", file;
    read: "read()" => INVAL, "core: vfs_read(): FMODE_CAN_READ", |f| *f = |buf| io::read(buf, &mut [0]).map(drop);
    write: "write()" => INVAL, "core: vfs_write(): FMODE_CAN_WRITE", |f| *f = |buf| io::write(buf, &[0]).map(drop);
    truncate: "ftruncate()" => INVAL, "core: do_ftruncate(): S_ISREG", |f| *f = |buf| rustix::fs::ftruncate(buf, 0);
    allocate: "fallocate()" => NODEV, "core: vfs_fallocate(): S_ISREG",
        |f| *f = |buf| rustix::fs::fallocate(buf, FallocateFlags::empty(), 0, 1);
    seal: "F_ADD_SEALS" => INVAL, "core: memfd_add_seals(): memfd_file_seals_ptr()",
        |f| *f = |buf| rustix::fs::fcntl_add_seals(buf, SealFlags::WRITE);
    },
];

struct Ioctl {
    cmd: Opcode,
    words: [u64; 5],
    null: bool,
}

fn ioctl(env: &Env, change: impl FnOnce(&mut Ioctl) -> Result<()>) -> Outcome {
    let buf = env.filled(1, PAGES)?;
    let mut bad = Ioctl {
        cmd: SYNC,
        words: [SYNC_READ, 0, 0, 0, 0],
        null: false,
    };
    change(&mut bad)?;
    let arg: *const u64 = match bad.null {
        true => std::ptr::null(),
        false => bad.words.as_ptr(),
    };
    tried(
        // SAFETY: the kernel writes a word at most, and fails before.
        || unsafe { abi::ioctl(&buf, bad.cmd, arg.cast()) }.map(drop),
        || abi::sync(&buf, SYNC_READ),
    )
}

fn seek(env: &Env, change: impl FnOnce(&mut SeekFrom) -> Result<()>) -> Outcome {
    let (buf, mut bad) = (env.filled(1, PAGES)?, SeekFrom::End(0));
    change(&mut bad)?;
    let seek = |from| rustix::fs::seek(&buf, from).map(drop);
    tried(|| seek(bad), || seek(SeekFrom::End(0)))
}

#[derive(Clone, Copy)]
pub struct Mmap {
    pub first: usize,
    pub pages: usize,
    pub prot: ProtFlags,
    pub flags: MapFlags,
}

impl Mmap {
    pub fn all(pages: usize) -> Self {
        Self {
            first: 0,
            pages,
            prot: RW,
            flags: MapFlags::SHARED,
        }
    }

    pub fn of(self, file: impl std::os::fd::AsFd) -> io::Result<Mapping> {
        let (offset, len) = (self.first.wrapping_mul(PAGE), self.pages.wrapping_mul(PAGE));
        Mapping::new(file, offset, len, self.prot, self.flags)
    }
}

fn mmap(env: &Env, change: impl FnOnce(&mut Mmap) -> Result<()>) -> Outcome {
    let (buf, good) = (env.filled(1, PAGES)?, Mmap::all(PAGES));
    let mut bad = good;
    change(&mut bad)?;
    tried(|| bad.of(&buf).map(drop), || good.of(&buf).map(drop))
}

fn mprotect(env: &Env, change: impl FnOnce(&mut MprotectFlags) -> Result<()>) -> Outcome {
    let map = Mmap::all(PAGES).of(env.filled(1, PAGES)?)?;
    let good = MprotectFlags::READ | MprotectFlags::WRITE;
    let mut bad = good;
    change(&mut bad)?;
    let protect = |prot| map.protect(0, map.len(), prot);
    tried(|| protect(bad), || protect(good))
}

#[derive(Clone, Copy)]
struct Mremap {
    old: usize,
    new: usize,
    flags: i32,
}

fn mremap(env: &Env, change: impl FnOnce(&mut Mremap) -> Result<()>) -> Outcome {
    let map = Mmap::all(PAGES).of(env.filled(1, PAGES)?)?;
    let good = Mremap {
        old: PAGES,
        new: PAGES,
        flags: libc::MREMAP_MAYMOVE,
    };
    let mut bad = good;
    change(&mut bad)?;
    let remap = |m: Mremap| {
        let addr = map.at(0).cast::<c_void>();
        // SAFETY: our mapping, to which nobody has references. What succeeds moves nothing.
        match unsafe { libc::mremap(addr, m.old * PAGE, m.new * PAGE, m.flags) } {
            libc::MAP_FAILED => Err(last_errno()),
            _ => Ok(()),
        }
    };
    tried(|| remap(bad), || remap(good))
}

fn madvise(env: &Env, change: impl FnOnce(&mut Advice) -> Result<()>) -> Outcome {
    let map = Mmap::all(PAGES).of(env.filled(1, PAGES)?)?;
    map.touch();
    let mut bad = Advice::Normal;
    change(&mut bad)?;
    tried(|| map.advise(bad), || map.advise(Advice::Normal))
}

type FileCall = fn(&OwnedFd) -> io::Result<()>;

fn file(env: &Env, change: impl FnOnce(&mut FileCall) -> Result<()>) -> Outcome {
    let buf = env.filled(1, PAGES)?;
    let good: FileCall = |buf| rustix::fs::fstat(buf).map(drop);
    let mut bad = good;
    change(&mut bad)?;
    tried(|| bad(&buf), || good(&buf))
}
