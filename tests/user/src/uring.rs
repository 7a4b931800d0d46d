// SPDX-License-Identifier: GPL-2.0
//! A ring of io_uring, with just what it takes to use one registered buffer.

use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::ptr;

use rustix::io;

use crate::mapping::{last_errno, Mapping};
use crate::PAGE;

/// C: `struct io_uring_params`.
#[repr(C)]
#[derive(Default)]
struct Params {
    entries: u32,
    completions: u32,
    flags: u32,
    _unused: [u32; 7],
    submit: Offsets,
    complete: Offsets,
}

/// C: `struct io_sqring_offsets` and `struct io_cqring_offsets`.
#[repr(C)]
#[derive(Default)]
struct Offsets {
    head: u32,
    tail: u32,
    mask: u32,
    _entries: u32,
    _counts: u32,
    completions: u32,
    _unused: [u32; 4],
}

/// C: `IORING_SETUP_NO_SQARRAY`.
const NO_ARRAY: u32 = 1 << 16;
/// C: `IORING_OFF_SQES`.
const SUBMISSIONS: usize = 0x1000_0000;
/// C: `IORING_OP_READ_FIXED`, `IORING_OP_WRITE_FIXED`.
const READ: u64 = 4;
const WRITE: u64 = 5;

/// With room for one request at a time.
pub struct Ring {
    fd: OwnedFd,
    params: Params,
    rings: Mapping,
    submissions: Mapping,
}

impl Ring {
    pub fn new() -> io::Result<Self> {
        let mut params = Params {
            flags: NO_ARRAY,
            ..Params::default()
        };
        // SAFETY: the kernel reads and writes `params`.
        let fd = unsafe { libc::syscall(libc::SYS_io_uring_setup, 1, &raw mut params) };
        let fd = match fd {
            // SAFETY: the kernel just created it for us.
            0.. => unsafe { OwnedFd::from_raw_fd(fd as i32) },
            _ => return Err(last_errno()),
        };
        Ok(Self {
            rings: Mapping::shared(&fd, 0, PAGE)?,
            submissions: Mapping::shared(&fd, SUBMISSIONS, PAGE)?,
            params,
            fd,
        })
    }

    /// C: `IORING_REGISTER_BUFFERS`.
    pub fn register(&self, memory: &Mapping) -> io::Result<()> {
        let iovec = libc::iovec {
            iov_base: memory.at(0).cast(),
            iov_len: memory.len(),
        };
        self.call_register(0, &raw const iovec, 1)
    }

    /// C: `IORING_UNREGISTER_BUFFERS`.
    pub fn unregister(&self) -> io::Result<()> {
        self.call_register(1, ptr::null(), 0)
    }

    fn call_register(&self, what: i32, iovecs: *const libc::iovec, n: u32) -> io::Result<()> {
        let fd = self.fd.as_raw_fd();
        // SAFETY: the kernel only reads the buffers, which others have no references to.
        match unsafe { libc::syscall(libc::SYS_io_uring_register, fd, what, iovecs, n) } {
            0 => Ok(()),
            _ => Err(last_errno()),
        }
    }

    /// Reads a page from `file` to `addr`, where the registered buffer was mapped.
    pub fn read(&self, file: impl AsFd, addr: *mut u8) -> io::Result<usize> {
        self.submit(READ, file, addr)
    }

    pub fn write(&self, file: impl AsFd, addr: *mut u8) -> io::Result<usize> {
        self.submit(WRITE, file, addr)
    }

    fn submit(&self, what: u64, file: impl AsFd, addr: *mut u8) -> io::Result<usize> {
        let load = |at: u32| {
            let mut word = [0; 4];
            self.rings.read(at as usize, &mut word);
            u32::from_ne_bytes(word)
        };
        let store = |at: u32, word: u32| self.rings.write(at as usize, &word.to_ne_bytes());
        let Params {
            submit, complete, ..
        } = &self.params;
        let file = (file.as_fd().as_raw_fd() as u64) << 32;
        // C: `struct io_uring_sqe`: an offset that is none, and the first buffer.
        let request = [what | file, u64::MAX, addr as u64, PAGE as u64, 0, 0, 0, 0];
        for (i, word) in request.iter().enumerate() {
            self.submissions.write(i * 8, &word.to_ne_bytes());
        }
        store(submit.tail, load(submit.tail).wrapping_add(1));
        let (fd, sigset) = (self.fd.as_raw_fd(), ptr::null::<u8>());
        // SAFETY: the buffer is one that was registered, whatever is at the address now.
        let n = unsafe { libc::syscall(libc::SYS_io_uring_enter, fd, 1, 1, 1, sigset, 0) };
        if n != 1 {
            return Err(last_errno());
        }
        let head = load(complete.head);
        // C: `struct io_uring_cqe`, whose result comes after `user_data`.
        let result = load(complete.completions + (head & load(complete.mask)) * 16 + 8) as i32;
        store(complete.head, head.wrapping_add(1));
        usize::try_from(result).map_err(|_| io::Errno::from_raw_os_error(-result))
    }
}
