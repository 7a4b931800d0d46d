// SPDX-License-Identifier: GPL-2.0
//! Calls that must fail, with mainline's error. The runner checks that no pin stays.

use std::fs::File;
use std::os::fd::{AsRawFd, OwnedFd};
use std::ptr;

use anyhow::{ensure, Context, Result};
use pagekit_user::abi::{
    self, UdmabufCreate, UdmabufCreateItem, UdmabufCreateList, UDMABUF_CREATE, UDMABUF_CREATE_LIST,
};
use pagekit_user::map::Mapping;
use pagekit_user::{kernel, PAGE};
use rustix::fs::{MemfdFlags, Mode, OFlags, SealFlags};
use rustix::io::{self, Errno};
use rustix::ioctl::{opcode, Opcode};
use rustix::mm::MprotectFlags;
use rustix::process::{setrlimit, Resource, Rlimit};

use crate::env::{item, written, Case, Env};

type Outcome = Result<io::Result<OwnedFd>>;

const P: u64 = PAGE as u64;
const NO_FD: u32 = 1000;

pub const CASES: &[Case] = &[
    // One range of a good memfd of 8 pages.
    Case::fails("err_offset_unaligned", Errno::INVAL, |env| range(env, 1, P)).smoke(),
    Case::fails("err_offset_half_page", Errno::INVAL, |env| {
        range(env, P / 2, P)
    }),
    Case::fails("err_size_unaligned", Errno::INVAL, |env| {
        range(env, 0, P + 1)
    }),
    Case::fails("err_size_half_page", Errno::INVAL, |env| {
        range(env, 0, P / 2)
    }),
    Case::fails("err_size_zero", Errno::INVAL, |env| range(env, 0, 0)).smoke(),
    Case::fails("err_past_end", Errno::INVAL, |env| range(env, 0, 9 * P)).smoke(),
    Case::fails("err_crosses_end", Errno::INVAL, |env| {
        range(env, 7 * P, 2 * P)
    }),
    Case::fails("err_at_end", Errno::INVAL, |env| range(env, 8 * P, P)),
    Case::fails("err_offset_huge", Errno::INVAL, |env| {
        range(env, 1 << 62, P)
    }),
    Case::fails("err_offset_negative", Errno::INVAL, |env| {
        range(env, 1 << 63, P)
    }),
    Case::fails("err_sum_negative", Errno::INVAL, |env| {
        range(env, (1 << 63) - P, 2 * P)
    }),
    Case::fails("err_sum_overflows", Errno::INVAL, |env| {
        range(env, P.wrapping_neg(), 2 * P)
    }),
    Case::fails("err_size_max", Errno::INVAL, |env| {
        range(env, 0, P.wrapping_neg())
    }),
    Case::fails("err_partial_last_page", Errno::INVAL, |env| {
        single(env, &abi::memfd(8 * P - 1)?, 0, 8 * P)
    }),
    // Files that won't do.
    Case::fails("err_not_sealed", Errno::INVAL, |env| {
        sealed(env, SealFlags::empty())
    })
    .smoke(),
    Case::fails("err_seal_write", Errno::INVAL, |env| {
        sealed(env, SealFlags::SHRINK | SealFlags::WRITE)
    }),
    Case::fails("err_seal_future_write", Errno::INVAL, |env| {
        sealed(env, SealFlags::SHRINK | SealFlags::FUTURE_WRITE)
    }),
    Case::fails("err_seal_grow_only", Errno::INVAL, |env| {
        sealed(env, SealFlags::GROW)
    }),
    Case::fails("err_sealing_not_allowed", Errno::INVAL, |env| {
        let none = SealFlags::empty();
        single(
            env,
            &abi::memfd_with(8 * P, MemfdFlags::empty(), none)?,
            0,
            P,
        )
    }),
    Case::fails("err_hugetlb_not_sealed", Errno::INVAL, |env| {
        let flags = MemfdFlags::ALLOW_SEALING | MemfdFlags::HUGETLB | MemfdFlags::HUGE_2MB;
        let memfd = abi::memfd_with(2 << 20, flags, SealFlags::empty())?;
        single(env, &memfd, 0, P)
    }),
    Case::fails("err_tmpfs_file", Errno::INVAL, |env| {
        single(env, &tmpfs_file()?, 0, P)
    }),
    Case::fails("err_pipe", Errno::BADFD, |env| {
        let (_read, write) = rustix::pipe::pipe()?;
        single(env, &File::from(write), 0, P)
    })
    .smoke(),
    Case::fails("err_proc_file", Errno::BADFD, |env| {
        single(env, &File::open("/proc/self/maps")?, 0, P)
    }),
    Case::fails("err_dma_buf", Errno::BADFD, |env| {
        let (_memfd, buf) = env.buffer(1, 8)?;
        single(env, &File::from(buf), 0, P)
    }),
    Case::fails("err_device_itself", Errno::BADFD, |env| {
        single(env, &env.open()?, 0, P)
    }),
    Case::fails("err_o_path", Errno::BADFD, |env| {
        let memfd = written(1, 8)?;
        let path = format!("/proc/self/fd/{}", memfd.as_raw_fd());
        let fd = rustix::fs::open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
        single(env, &File::from(fd), 0, P)
    }),
    Case::fails("err_no_fd", Errno::BADFD, |env| raw(env, NO_FD, 0, P)).smoke(),
    Case::fails("err_negative_fd", Errno::BADFD, |env| raw(env, !0, 0, P)),
    // What is checked first.
    Case::fails("err_unaligned_before_fd", Errno::INVAL, |env| {
        raw(env, NO_FD, 1, P)
    }),
    Case::fails("err_size_before_fd", Errno::INVAL, |env| {
        raw(env, NO_FD, 0, 0)
    }),
    Case::fails("err_seals_before_range", Errno::BADFD, |env| {
        single(env, &File::open("/proc/self/maps")?, 0, 64 * P)
    }),
    // Lists.
    Case::fails("err_list_empty", Errno::INVAL, |env| list(env, &[])).smoke(),
    Case::fails("err_list_too_long", Errno::INVAL, |env| {
        let memfd = written(1, 1)?;
        list(env, &vec![item(&memfd, 0, 1); env.list_limit()? + 1])
    }),
    Case::fails("err_list_count_before_items", Errno::INVAL, |env| {
        at_end_of_memory(env, env.list_limit()? as u32 + 1)
    }),
    Case::fails("err_list_count_max", Errno::INVAL, |env| {
        at_end_of_memory(env, !0)
    }),
    Case::fails("err_list_zero_item", Errno::INVAL, |env| {
        let memfd = written(1, 8)?;
        list(env, &[item(&memfd, 0, 2), item(&memfd, 2, 0)])
    }),
    Case::fails("err_list_last_unaligned", Errno::INVAL, |env| {
        let memfd = written(1, 8)?;
        let bad = UdmabufCreateItem {
            offset: 1,
            ..item(&memfd, 0, 1)
        };
        list(env, &[item(&memfd, 0, 8), bad])
    }),
    Case::fails("err_list_last_past_end", Errno::INVAL, |env| {
        let memfd = written(1, 8)?;
        list(
            env,
            &[item(&memfd, 0, 8), item(&memfd, 0, 8), item(&memfd, 5, 4)],
        )
    }),
    Case::fails("err_list_last_not_sealed", Errno::INVAL, |env| {
        let (good, flags) = (written(1, 8)?, MemfdFlags::ALLOW_SEALING);
        let bad = abi::memfd_with(8 * P, flags, SealFlags::empty())?;
        list(env, &[item(&good, 0, 8), item(&bad, 0, 8)])
    }),
    Case::fails("err_list_last_no_fd", Errno::BADFD, |env| {
        let memfd = written(1, 8)?;
        let bad = UdmabufCreateItem {
            memfd: NO_FD,
            ..item(&memfd, 0, 1)
        };
        list(env, &[item(&memfd, 0, 8), bad])
    }),
    Case::fails("err_list_sum_overflows", Errno::INVAL, |env| {
        let memfd = written(1, 8)?;
        let half = UdmabufCreateItem {
            size: 1 << 63,
            ..item(&memfd, 0, 0)
        };
        list(env, &[half, half, item(&memfd, 0, 1)])
    }),
    // Bad pointers and requests.
    Case::fails("err_null", Errno::FAULT, |env| {
        pointer(env, UDMABUF_CREATE, ptr::null())
    })
    .smoke(),
    Case::fails("err_list_null", Errno::FAULT, |env| {
        pointer(env, UDMABUF_CREATE_LIST, ptr::null())
    }),
    Case::fails("err_kernel_pointer", Errno::FAULT, |env| {
        pointer(
            env,
            UDMABUF_CREATE,
            ptr::without_provenance(0xffff_8880_0000_0000),
        )
    }),
    Case::fails("err_list_items_unmapped", Errno::FAULT, |env| {
        at_end_of_memory(env, 1)
    }),
    Case::fails("err_unknown_ioctl", Errno::NOTTY, |env| {
        pointer(env, opcode::write::<UdmabufCreate>(b'u', 0x44), ptr::null())
    })
    .smoke(),
    Case::fails("err_ioctl_other_size", Errno::NOTTY, |env| {
        pointer(
            env,
            opcode::write::<UdmabufCreateList>(b'u', 0x42),
            ptr::null(),
        )
    }),
    Case::fails("err_ioctl_other_direction", Errno::NOTTY, |env| {
        pointer(
            env,
            opcode::read_write::<UdmabufCreate>(b'u', 0x42),
            ptr::null(),
        )
    }),
    Case::fails("err_no_fds_left", Errno::MFILE, no_fds_left),
];

fn raw(env: &Env, memfd: u32, offset: u64, size: u64) -> Outcome {
    let arg = UdmabufCreate {
        memfd,
        flags: 0,
        offset,
        size,
    };
    Ok(abi::create(env.open()?, &arg))
}

fn single(env: &Env, file: &File, offset: u64, size: u64) -> Outcome {
    raw(env, file.as_raw_fd() as u32, offset, size)
}

fn range(env: &Env, offset: u64, size: u64) -> Outcome {
    single(env, &written(1, 8)?, offset, size)
}

fn sealed(env: &Env, seals: SealFlags) -> Outcome {
    let memfd = abi::memfd_with(8 * P, MemfdFlags::ALLOW_SEALING, seals)?;
    single(env, &memfd, 0, P)
}

fn list(env: &Env, items: &[UdmabufCreateItem]) -> Outcome {
    Ok(abi::create_list(env.open()?, 0, items))
}

fn pointer(env: &Env, opcode: Opcode, arg: *const libc::c_void) -> Outcome {
    // SAFETY: the device's ioctls read their argument and write nothing; those that
    // don't exist do neither.
    Ok(unsafe { abi::ioctl_for_fd(env.open()?, opcode, arg) })
}

/// A list head that is the last thing in mapped memory.
fn at_end_of_memory(env: &Env, count: u32) -> Outcome {
    let memory = Mapping::anonymous(2 * PAGE)?;
    memory.protect(PAGE, PAGE, MprotectFlags::empty())?;
    let head = PAGE - size_of::<UdmabufCreateList>();
    memory.write(head, &0u32.to_ne_bytes());
    memory.write(head + 4, &count.to_ne_bytes());
    pointer(env, UDMABUF_CREATE_LIST, memory.at(head).cast())
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

/// The buffer is complete when there is no fd for it.
fn no_fds_left(env: &Env) -> Outcome {
    let (memfd, dev) = (written(1, 8)?, env.open()?);
    let mut files = Vec::new();
    let limit = Rlimit {
        current: Some(64),
        maximum: Some(64),
    };
    setrlimit(Resource::Nofile, limit)?;
    let error = loop {
        match memfd.try_clone() {
            Ok(file) => files.push(file),
            Err(error) => break error,
        }
    };
    ensure!(
        Errno::from_io_error(&error) == Some(Errno::MFILE),
        "filling the fd table: {error}"
    );
    let arg = UdmabufCreate {
        memfd: memfd.as_raw_fd() as u32,
        flags: 0,
        offset: 0,
        size: 8 * P,
    };
    Ok(abi::create(&dev, &arg))
}
