// SPDX-License-Identifier: GPL-2.0
//! What the nodes of `tests/drivers/node.rs` refuse, and with them each kind of mapping.

use std::fs::File;
use std::os::fd::{AsRawFd, OwnedFd};

use anyhow::Result;
use pagekit_user::abi::{FileRange, UserRange, SHOW_FILE, SHOW_USER};
use pagekit_user::mapping::{last_errno, Mapping};
use pagekit_user::{abi, PAGE};
use rustix::fs::{MemfdFlags, SealFlags};
use rustix::io;
use rustix::ioctl::{opcode, Opcode};
use rustix::mm::{Advice, MapFlags, ProtFlags};

use super::buffer::Mmap;
use super::{rows, tried};
use crate::env::{written, Env};
use crate::groups::{Outcome, Row};
use crate::memory::{huge_memfd, HUGE_PAGES};
use crate::nodes::PAGES;

/// For each kind of mapping.
pub const ROWS: &[&[Row]] = &[
    rows! { "mmap of a node", mmap;
    past_end: "a page more than there is" => INVAL, "range.rs window(): end > len", |m| m.pages = PAGES + 1;
    crosses_end: "2 pages from the last" => INVAL, "range.rs window(): end > len",
        |m| (m.first, m.pages) = (PAGES - 1, 2);
    at_end: "the page after the last" => INVAL, "range.rs window(): end > len", |m| (m.first, m.pages) = (PAGES, 1);
    offset_huge: "page 2^48" => INVAL, "range.rs window(): end > len", |m| m.first = 1 << 48;
    offset_last: "the last pages that there can be" => OVERFLOW, "core: file_mmap_ok(): pgoff",
        |m| m.first = usize::MAX / PAGE;
    private: "MAP_PRIVATE" => INVAL, "vma.rs is_cow(): MAYWRITE", |m| m.flags = MapFlags::PRIVATE;
    private_read: "MAP_PRIVATE, PROT_READ" => INVAL, "vma.rs is_cow(): MAYWRITE, not WRITE",
        |m| (m.flags, m.prot) = (MapFlags::PRIVATE, ProtFlags::READ);
    },
    rows! { "mremap of a node's mapping", mremap;
    grow: "a page more" => FAULT, "vma.rs: DONTEXPAND", |pages| *pages += 1;
    },
];

/// For those that map PFNs.
pub const PFNS: &[&[Row]] = &[rows! { "madvise of a node's mapping", madvise;
dontneed: "MADV_DONTNEED" => INVAL, "vma.rs: PFNMAP", |a| *a = Advice::LinuxDontNeed;
}];

/// For one of them: this has nothing to do with mapping.
pub const FILE: &[&[Row]] = &[
    rows! { "SHOW_FILE", show;
    show_null: "null" => FAULT, "node.rs ioctl(): read()", |s| s.null = true;
    show_unknown: "an unknown number" => NOTTY, "node.rs ioctl(): cmd",
            |s| s.cmd = opcode::write::<FileRange>(b'P', 9);
    show_size: "an argument of 4 bytes" => NOTTY, "node.rs ioctl(): cmd, its size",
            |s| s.cmd = opcode::write::<u32>(b'P', 3);
    show_no_fd: "file descriptor -1" => BADF, "node.rs ioctl(): fget()", |s| s.number = Some(!0);
    show_node: "a node" => INVAL, "pages.rs from_shmem(): end > size", |s| s.file = s.env.open()?;
    show_hugetlb: "a hugetlb memfd" => INVAL, "pages.rs from_shmem(): shmem_mapping()", |s| s.file = huge_memfd(HUGE_PAGES)?;
    show_none: "count 0" => INVAL, "range.rs file_bytes(): count == 0", |s| s.count = 0;
    show_past_end: "17 of 16 pages" => INVAL, "pages.rs from_shmem(): end > size", |s| s.count = 17;
    show_at_end: "page 16 of 16" => INVAL, "pages.rs from_shmem(): end > size", |s| (s.pgoff, s.count) = (16, 1);
    show_part_of_page: "a last page that is short of a byte" => INVAL, "pages.rs from_shmem(): end > size, in bytes",
        |s| s.file.set_len(16 * PAGE as u64 - 1)?;
    show_offset_huge: "page 2^60" => INVAL, "range.rs file_bytes(): MAX_FILE_BYTES", |s| s.pgoff = 1 << 60;
    show_offset_wraps: "page 2^64 - 1" => INVAL, "range.rs file_bytes(): checked_add()",
            |s| (s.pgoff, s.count) = (!0, 1);
    show_count_max: "count 2^32 - 1" => INVAL, "pages.rs from_shmem(): end > size", |s| s.count = !0;
    show_large_file: "count 2^32 - 1, of a file as large" => NOMEM, "pages.rs with_capacity(): KVVec::with_capacity",
        |s| { s.file.set_len((PAGE as u64) << 32)?; s.count = !0 };
    show_twice: "once more" => BUSY, "node.rs ioctl(): populate()", |s| s.shown = true;
    show_mapped: "a node that was mapped" => BUSY, "node.rs decide(): populate()", |s| s.mapped = true;
    },
    rows! { "SHOW_USER", show_user;
    user_null: "null" => FAULT, "node.rs ioctl(): read()", |u| u.null = true;
    user_none: "count 0" => INVAL, "pin.rs pin_user(): count == 0", |u| u.range.count = 0;
    user_part_of_page: "an address within a page" => INVAL, "pin.rs pin_user(): addr % PAGE_SIZE",
        |u| u.range.address += 8;
    user_wraps: "the last page of all and one more" => INVAL, "pin.rs pin_user(): wraps",
        |u| (u.range.address, u.range.count) = (!0 << PAGE.ilog2(), 2);
    user_kernel: "an address of the kernel" => FAULT, "pin.rs pin_user_chunks(): pin_user_pages_fast()",
        |u| u.range.address = 1 << 63;
    user_unmapped: "memory that is not mapped" => FAULT, "pin.rs pin_user_chunks(): pin_user_pages_fast()",
        |u| u.range.address = PAGE as u64;
    user_count_max: "count 2^64 - 1" => NOMEM, "pin.rs with_capacity(): KVVec::with_capacity", |u| u.range.count = !0;
    user_twice: "once more" => BUSY, "node.rs ioctl(): populate()", |u| u.shown = true;
    },
];

/// For those that show referenced pages.
pub const FAULTS: &[&[Row]] = &[rows! { "write() of a node's mapping", write_out;
file_page: "a page of a file" => FAULT, "vma.rs fault_pages(): are_free_standing()", |file| *file = true;
}];

/// For those that map them at once.
pub const EAGER: &[&[Row]] = &[rows! { "mmap of a node", mmap_file;
file_page: "pages of a file" => INVAL, "vma.rs map_pages(): are_free_standing()", |file| *file = true;
}];

fn mmap(env: &Env, change: impl FnOnce(&mut Mmap) -> Result<()>) -> Outcome {
    let (node, good) = (env.open()?, Mmap::all(PAGES));
    let mut bad = good;
    change(&mut bad)?;
    tried(|| bad.of(&node).map(drop), || good.of(&node).map(drop))
}

fn mremap(env: &Env, change: impl FnOnce(&mut usize) -> Result<()>) -> Outcome {
    let (mut map, mut bad) = (Mmap::all(PAGES).of(env.open()?)?, PAGES);
    change(&mut bad)?;
    let map = std::cell::RefCell::new(&mut map);
    tried(
        || map.borrow_mut().resize(bad * PAGE),
        || map.borrow_mut().resize(PAGES * PAGE),
    )
}

fn madvise(env: &Env, change: impl FnOnce(&mut Advice) -> Result<()>) -> Outcome {
    let (map, mut bad) = (Mmap::all(PAGES).of(env.open()?)?, Advice::Normal);
    change(&mut bad)?;
    tried(|| map.advise(bad), || map.advise(Advice::Normal))
}

struct Show<'a> {
    env: &'a Env,
    cmd: Opcode,
    null: bool,
    file: File,
    /// Instead of the file's.
    number: Option<u32>,
    count: u32,
    pgoff: u64,
    /// It is shown already, or something else is mapped.
    shown: bool,
    mapped: bool,
}

impl<'a> Show<'a> {
    fn good(env: &'a Env) -> Result<Self> {
        let file = abi::memfd_with(0, MemfdFlags::ALLOW_SEALING, SealFlags::empty())?;
        file.set_len(16 * PAGE as u64)?;
        Ok(Self {
            env,
            cmd: SHOW_FILE,
            null: false,
            file,
            number: None,
            count: 16,
            pgoff: 0,
            shown: false,
            mapped: false,
        })
    }

    fn show(&self, node: &File) -> io::Result<()> {
        let range = FileRange {
            memfd: self.number.unwrap_or(self.file.as_raw_fd() as u32),
            count: self.count,
            pgoff: self.pgoff,
        };
        let arg = if self.null {
            std::ptr::null()
        } else {
            &raw const range
        };
        // SAFETY: the kernel only reads `range`.
        unsafe { abi::ioctl(node, self.cmd, arg.cast()) }.map(drop)
    }
}

fn show(env: &Env, change: impl FnOnce(&mut Show<'_>) -> Result<()>) -> Outcome {
    let (mut bad, good) = (Show::good(env)?, Show::good(env)?);
    let (node, other) = (env.open()?, env.open()?);
    change(&mut bad)?;
    if bad.shown {
        good.show(&node)?;
    }
    if bad.mapped {
        drop(Mapping::shared(&node, 0, PAGE)?);
    }
    // A failure leaves it as it was.
    let same = !bad.shown && !bad.mapped;
    tried(
        || {
            let bad = bad;
            bad.show(&node)
        },
        || good.show(if same { &node } else { &other }),
    )
}

struct ShowUser {
    null: bool,
    range: UserRange,
    /// It is shown already.
    shown: bool,
}

fn show_user(env: &Env, change: impl FnOnce(&mut ShowUser) -> Result<()>) -> Outcome {
    let memory = Mapping::anonymous(4 * PAGE)?;
    let range = UserRange {
        address: memory.at(0) as u64,
        count: 4,
    };
    let mut bad = ShowUser {
        null: false,
        range,
        shown: false,
    };
    change(&mut bad)?;
    let (node, other) = (env.open()?, env.open()?);
    if bad.shown {
        abi::show_user(&node, &memory)?;
    }
    let arg = if bad.null {
        std::ptr::null()
    } else {
        &raw const bad.range
    };
    tried(
        // SAFETY: the kernel only reads the argument.
        || unsafe { abi::ioctl(&node, SHOW_USER, arg.cast()) }.map(drop),
        // A failure leaves it as it was.
        || abi::show_user(if bad.shown { &other } else { &node }, &memory),
    )
}

/// A node that shows pages of a file, or its own.
fn node_of(env: &Env, file: bool) -> Result<File> {
    let node = env.open()?;
    if file {
        let mut show = Show::good(env)?;
        show.file = written(1, 16)?;
        show.show(&node)?;
    }
    Ok(node)
}

fn write_out(env: &Env, change: impl FnOnce(&mut bool) -> Result<()>) -> Outcome {
    let mut bad = false;
    change(&mut bad)?;
    let map = |file| -> Result<Mapping> { Ok(Mapping::shared(node_of(env, file)?, 0, PAGE)?) };
    let (bad, good) = (map(bad)?, map(false)?);
    let (_read, pipe) = rustix::pipe::pipe()?;
    let write = |pipe: &OwnedFd, map: &Mapping| {
        // SAFETY: a page that nobody has references to.
        match unsafe { libc::write(pipe.as_raw_fd(), map.at(0).cast(), 8) } {
            8 => Ok(()),
            _ => Err(last_errno()),
        }
    };
    tried(|| write(&pipe, &bad), || write(&pipe, &good))
}

fn mmap_file(env: &Env, change: impl FnOnce(&mut bool) -> Result<()>) -> Outcome {
    let mut bad = false;
    change(&mut bad)?;
    let (bad, good) = (node_of(env, bad)?, node_of(env, false)?);
    let map = |node| Mapping::shared(node, 0, PAGE).map(drop);
    tried(|| map(&bad), || map(&good))
}
