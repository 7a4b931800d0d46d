// SPDX-License-Identifier: GPL-2.0
//! What `/dev/udmabuf` refuses, with mainline's errors.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::ptr;

use anyhow::{Context, Result};
use pagekit_user::abi::{
    self, UdmabufCreate, UdmabufCreateItem, UdmabufCreateList, UDMABUF_CREATE, UDMABUF_CREATE_LIST,
};
use pagekit_user::kernel::Setting;
use pagekit_user::mapping::Mapping;
use pagekit_user::{kernel, PAGE};
use rustix::fs::{MemfdFlags, Mode, OFlags, SealFlags};
use rustix::io;
use rustix::ioctl::{opcode, Opcode};
use rustix::mm::MprotectFlags;

use super::{rows, tried, AllFds};
use crate::env::{item, written, Env};
use crate::groups::{Outcome, Row};
use crate::memory::{huge_memfd, HUGE_PAGES};

const P: u64 = PAGE as u64;
const NO_FD: u32 = 1000;
const SEALING: MemfdFlags = MemfdFlags::ALLOW_SEALING;

pub const ROWS: &[&[Row]] = &[
    rows! { "UDMABUF_CREATE", create;
    offset_odd: "offset 1" => INVAL, "create(): (offset | size) % PAGE_SIZE", |r| r.offset = 1;
    offset_half_page: "offset half a page" => INVAL, "create(): (offset | size) % PAGE_SIZE", |r| r.offset = P / 2;
    size_odd: "size 4097" => INVAL, "create(): (offset | size) % PAGE_SIZE", |r| r.size = P + 1;
    size_half_page: "size half a page" => INVAL, "create(): (offset | size) % PAGE_SIZE", |r| r.size = P / 2;
    size_zero: "size 0" => INVAL, "create(): count == 0", |r| r.size = 0;
    size_max: "size 2^64 but a page" => INVAL, "create(): count > limit", |r| r.size = P.wrapping_neg();
    size_sign: "size 2^63" => INVAL, "create(): count > limit", |r| r.size = 1 << 63;
    size_limit: "a page more than size_limit_mb" => INVAL, "create(): count > limit, changed",
        |r| { r.set("size_limit_mb", "1")?; r.file(abi::memfd((1 << 20) + P)?); r.size = (1 << 20) + P };
    size_memory: "size 2^50, within the limit" => NOMEM, "pin.rs with_capacity(): KVVec::with_capacity",
        |r| r.size = 1 << 50;
    size_unlimited: "size 2^63, size_limit_mb -1" => NOMEM, "create(): limit of a negative size_limit_mb",
        |r| { r.set("size_limit_mb", "-1")?; r.size = 1 << 63 };
    past_end: "9 of 8 pages" => INVAL, "pin.rs pin_memfd(): end > size", |r| r.size = 9 * P;
    crosses_end: "2 pages from page 7 of 8" => INVAL, "pin.rs pin_memfd(): end > size",
        |r| (r.offset, r.size) = (7 * P, 2 * P);
    at_end: "page 8 of 8" => INVAL, "pin.rs pin_memfd(): end > size", |r| r.offset = 8 * P;
    part_of_page: "a last page that is short of a byte" => INVAL, "pin.rs pin_memfd(): end > size, in bytes",
        |r| { r.file(abi::memfd(8 * P - 1)?); r.size = 8 * P };
    offset_huge: "offset 2^62" => INVAL, "pin.rs pin_memfd(): end > size", |r| r.offset = 1 << 62;
    offset_sign: "offset 2^63" => INVAL, "range.rs file_bytes(): end > MAX_FILE_BYTES", |r| r.offset = 1 << 63;
    sum_sign: "offset + size 2^63 and a page" => INVAL, "range.rs file_bytes(): end > MAX_FILE_BYTES",
        |r| (r.offset, r.size) = ((1 << 63) - P, 2 * P);
    sum_wraps: "offset + size 2^64 and a page" => INVAL, "range.rs file_bytes(): end > MAX_FILE_BYTES, in pages",
        |r| (r.offset, r.size) = (P.wrapping_neg(), 2 * P);
    hugetlb_none: "more holes than there are huge pages" => NOMEM, "pin.rs pin_chunk(): memfd_pin_folios()",
        |r| { r.file(huge_memfd(2 * HUGE_PAGES)?); r.size = 2 * HUGE_PAGES as u64 * P };
    not_sealed: "no F_SEAL_SHRINK" => INVAL, "lock(): seals & SHRINK", |r| r.sealed(SealFlags::empty())?;
    seal_write: "F_SEAL_WRITE" => INVAL, "lock(): seals & WRITE",
        |r| r.sealed(SealFlags::SHRINK | SealFlags::WRITE)?;
    seal_future_write: "F_SEAL_FUTURE_WRITE" => INVAL, "lock(): seals & FUTURE_WRITE",
        |r| r.sealed(SealFlags::SHRINK | SealFlags::FUTURE_WRITE)?;
    seal_grow_only: "F_SEAL_GROW alone" => INVAL, "lock(): seals & SHRINK", |r| r.sealed(SealFlags::GROW)?;
    no_sealing: "a memfd without sealing" => INVAL, "lock(): seals & SHRINK",
        |r| r.file(abi::memfd_with(8 * P, MemfdFlags::empty(), SealFlags::empty())?);
    hugetlb_not_sealed: "hugetlb, no F_SEAL_SHRINK" => INVAL, "udmabuf_shim.c: is_file_hugepages()",
        |r| r.file(abi::memfd_with(HUGE_PAGES as u64 * P, SEALING | MemfdFlags::HUGETLB, SealFlags::empty())?);
    tmpfs: "a file of a tmpfs" => INVAL, "udmabuf_shim.c: shmem_file()", |r| r.file(tmpfs_file()?);
    pipe: "a pipe" => BADFD, "lock(): no seals", |r| r.file(rustix::pipe::pipe()?.1.into());
    proc: "a file of /proc, past its end" => BADFD, "lock(): no seals, before the range",
        |r| { r.file(File::open("/proc/self/maps")?); r.size = 64 * P };
    dma_buf: "a dma-buf" => BADFD, "lock(): no seals", |r| r.file(r.env.buffer(1, 8)?.1.into());
    device: "the device" => BADFD, "lock(): no seals", |r| r.file(r.env.open()?);
    o_path: "an O_PATH file" => BADFD, "create(): fget()", |r| r.file(path_only(&r.memfd)?);
    no_fd: "no such file descriptor" => BADFD, "create(): fget()", |r| r.number = Some(NO_FD);
    fd_max: "file descriptor -1" => BADFD, "create(): fget()", |r| r.number = Some(!0);
    offset_before_fd: "offset 1, and no file" => INVAL, "create(): ranges first",
        |r| { r.number = Some(NO_FD); r.offset = 1 };
    size_before_fd: "size 0, and no file" => INVAL, "create(): count first",
        |r| { r.number = Some(NO_FD); r.size = 0 };
    no_fds_left: "no file descriptor is left" => MFILE, "dmabuf.rs into_fd(): dma_buf_fd()", |r| r.take_all_fds()?;
    },
    rows! { "UDMABUF_CREATE_LIST", list;
    list_empty: "count 0" => INVAL, "ioctl(): count == 0", |l| l.items.clear();
    list_too_long: "a count of list_limit + 1" => INVAL, "ioctl(): count > limit",
        |l| l.items = vec![l.items[0]; l.range.env.list_limit()? + 1];
    list_limit: "count 2, list_limit 1" => INVAL, "ioctl(): count > limit, changed",
        |l| l.range.set("list_limit", "1")?;
    list_zero_item: "an item of size 0" => INVAL, "range.rs file_bytes(): count == 0", |l| l.items[1].size = 0;
    list_offset_odd: "the last offset 1" => INVAL, "create(): each item", |l| l.items[1].offset = 1;
    list_past_end: "the last range past the end" => INVAL, "pin.rs pin_memfd(): unpin_from()",
        |l| (l.items[1].offset, l.items[1].size) = (5 * P, 4 * P);
    list_not_sealed: "the last file not sealed" => INVAL, "lock(): drop of what is pinned",
        |l| { l.range.sealed(SealFlags::empty())?; l.items[1].memfd = l.range.memfd.as_raw_fd() as u32 };
    list_no_fd: "the last file is none" => BADFD, "create(): fget(), drop of what is pinned",
        |l| l.items[1].memfd = NO_FD;
    list_sum: "sizes 2^63 + 2^63" => INVAL, "create(): count > limit, each time",
        |l| l.items.iter_mut().for_each(|item| item.size = 1 << 63);
    },
    rows! { "UDMABUF_CREATE_LIST", list_head;
    list_items_unmapped: "items where nothing is mapped" => FAULT, "ioctl(): read_all()", |h| h.count = 1;
    list_count_first: "a count of list_limit + 1, no items" => INVAL, "ioctl(): count before items",
        |h| h.count = h.env.list_limit()? as u32 + 1;
    list_count_max: "count 2^32 - 1" => INVAL, "ioctl(): count > limit", |h| h.count = !0;
    list_count_sign: "count 2^31, list_limit -1" => NOMEM, "ioctl(): room for the items",
        |h| { h.count = 1 << 31; h.set("list_limit", "-1")? };
    },
    rows! { "ioctl of /dev/udmabuf", pointer;
    null: "UDMABUF_CREATE at null" => FAULT, "ioctl(): read() of the head", |c| c.arg = ptr::null();
    list_null: "UDMABUF_CREATE_LIST at null" => FAULT, "ioctl(): read() of the head",
        |c| (c.cmd, c.arg) = (UDMABUF_CREATE_LIST, ptr::null());
    kernel_pointer: "UDMABUF_CREATE in kernel memory" => FAULT, "core: access_ok()",
        |c| c.arg = ptr::without_provenance(0xffff_8880_0000_0000);
    unknown: "an unknown number" => NOTTY, "ioctl(): match cmd",
        |c| c.cmd = opcode::write::<UdmabufCreate>(b'u', 0x44);
    other_size: "UDMABUF_CREATE of 8 bytes" => NOTTY, "ioctl(): match cmd, its size",
        |c| c.cmd = opcode::write::<UdmabufCreateList>(b'u', 0x42);
    other_direction: "UDMABUF_CREATE that reads" => NOTTY, "ioctl(): match cmd, its direction",
        |c| c.cmd = opcode::read_write::<UdmabufCreate>(b'u', 0x42);
    },
];

/// A range of a memfd of 8 pages, and what must stay until the call is done.
struct Range<'a> {
    env: &'a Env,
    memfd: File,
    /// Instead of the memfd's.
    number: Option<u32>,
    offset: u64,
    size: u64,
    setting: Option<Setting>,
    fds: Option<AllFds>,
}

impl<'a> Range<'a> {
    fn good(env: &'a Env) -> Result<Self> {
        Ok(Self {
            env,
            memfd: written(1, 8)?,
            number: None,
            offset: 0,
            size: P,
            setting: None,
            fds: None,
        })
    }

    fn file(&mut self, file: File) {
        self.memfd = file;
    }

    fn sealed(&mut self, seals: SealFlags) -> Result<()> {
        self.memfd = abi::memfd_with(8 * P, SEALING, seals)?;
        Ok(())
    }

    fn set(&mut self, parameter: &str, value: &str) -> Result<()> {
        self.setting = Some(set(self.env, parameter, value)?);
        Ok(())
    }

    fn take_all_fds(&mut self) -> Result<()> {
        self.fds = Some(AllFds::take(&self.memfd)?);
        Ok(())
    }

    fn create(&self, dev: &File) -> io::Result<()> {
        let arg = UdmabufCreate {
            memfd: self.number.unwrap_or(self.memfd.as_raw_fd() as u32),
            flags: 0,
            offset: self.offset,
            size: self.size,
        };
        abi::create(dev, &arg).map(drop)
    }
}

fn set(env: &Env, parameter: &str, value: &str) -> Result<Setting> {
    let path = env.parameter(parameter).context("not in sysfs")?;
    Setting::set(path, value)
}

fn create(env: &Env, change: impl FnOnce(&mut Range<'_>) -> Result<()>) -> Outcome {
    let (dev, mut bad, good) = (env.open()?, Range::good(env)?, Range::good(env)?);
    change(&mut bad)?;
    let dev = &dev;
    tried(move || bad.create(dev), || good.create(dev))
}

/// Two ranges of a good memfd.
struct List<'a> {
    items: Vec<UdmabufCreateItem>,
    range: Range<'a>,
}

fn list(env: &Env, change: impl FnOnce(&mut List<'_>) -> Result<()>) -> Outcome {
    let (dev, memfd) = (env.open()?, written(1, 8)?);
    let good = [item(&memfd, 0, 8), item(&memfd, 2, 3)];
    let mut bad = List {
        items: good.to_vec(),
        range: Range::good(env)?,
    };
    change(&mut bad)?;
    let create = |items: &[UdmabufCreateItem]| abi::create_list(&dev, 0, items).map(drop);
    tried(
        || {
            let bad = bad;
            create(&bad.items)
        },
        || create(&good),
    )
}

/// The head of a list, which is the last thing in mapped memory.
struct Head<'a> {
    env: &'a Env,
    count: u32,
    setting: Option<Setting>,
}

impl Head<'_> {
    fn set(&mut self, parameter: &str, value: &str) -> Result<()> {
        self.setting = Some(set(self.env, parameter, value)?);
        Ok(())
    }
}

fn list_head(env: &Env, change: impl FnOnce(&mut Head<'_>) -> Result<()>) -> Outcome {
    let (dev, memfd, memory) = (env.open()?, written(1, 8)?, Mapping::anonymous(2 * PAGE)?);
    memory.protect(PAGE, PAGE, MprotectFlags::empty())?;
    let at = PAGE - size_of::<UdmabufCreateList>();
    let mut bad = Head {
        env,
        count: 0,
        setting: None,
    };
    change(&mut bad)?;
    memory.write(at + 4, &bad.count.to_ne_bytes());
    tried(
        || {
            let _bad = bad;
            call(&dev, UDMABUF_CREATE_LIST, memory.at(at).cast())
        },
        || abi::create_list(&dev, 0, &[item(&memfd, 0, 8)]).map(drop),
    )
}

fn call(dev: &File, cmd: Opcode, arg: *const libc::c_void) -> io::Result<()> {
    // SAFETY: the device's ioctls read their argument and write nothing; those that
    // don't exist do neither.
    unsafe { abi::ioctl_for_fd(dev, cmd, arg) }.map(drop)
}

struct Pointer {
    cmd: Opcode,
    arg: *const libc::c_void,
}

fn pointer(env: &Env, change: impl FnOnce(&mut Pointer) -> Result<()>) -> Outcome {
    let (dev, memfd) = (env.open()?, written(1, 8)?);
    let good = UdmabufCreate {
        memfd: memfd.as_raw_fd() as u32,
        flags: 0,
        offset: 0,
        size: P,
    };
    let arg = (&raw const good).cast();
    let mut bad = Pointer {
        cmd: UDMABUF_CREATE,
        arg,
    };
    change(&mut bad)?;
    tried(
        || call(&dev, bad.cmd, bad.arg),
        || call(&dev, UDMABUF_CREATE, arg),
    )
}

/// A file of a mounted tmpfs: shmem, but not a memfd.
fn tmpfs_file() -> Result<File> {
    let mounts = kernel::read("/proc/mounts")?;
    let file = mounts
        .lines()
        .filter_map(|line| {
            let mut words = line.split_whitespace().skip(1);
            let (dir, kind) = (words.next()?, words.next()?);
            (kind == "tmpfs").then_some(dir)
        })
        .find_map(|dir| {
            let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
            rustix::fs::open(dir, flags, Mode::RUSR | Mode::WUSR).ok()
        })
        .context("no writable tmpfs is mounted")?;
    rustix::fs::ftruncate(&file, 8 * P)?;
    Ok(File::from(file))
}

fn path_only(file: &File) -> Result<File> {
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    let fd = rustix::fs::open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
    Ok(File::from(fd))
}
