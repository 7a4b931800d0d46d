// SPDX-License-Identifier: GPL-2.0
//! The test importer of `tests/importer.c`, which gets at a dma-buf as a device would.

use std::fs::File;
use std::os::fd::{AsFd, AsRawFd};

use anyhow::{Context, Result};
use rustix::io;
use rustix::ioctl::opcode;

use crate::abi;

const DEVICE: &str = "/dev/pagekit-importer";
/// C: `IMPORTER_WRITE`, `IMPORTER_VMAP`.
const WRITE: u32 = 1;
const VMAP: u32 = 2;

/// Which way the importer goes.
#[derive(Clone, Copy, Debug)]
pub enum Through {
    Dma,
    Vmap,
}

/// C: `struct importer_access`.
#[repr(C)]
struct Access {
    fd: i32,
    flags: u32,
    offset: u64,
    len: u64,
    user: u64,
}

pub struct Importer(File);

impl Importer {
    pub fn open() -> Result<Self> {
        File::open(DEVICE).context(DEVICE).map(Self)
    }

    /// Reads what the device, or the kernel, sees at `offset`.
    pub fn read(
        &self,
        buf: impl AsFd,
        way: Through,
        offset: usize,
        to: &mut [u8],
    ) -> io::Result<()> {
        self.access(buf, way, 0, offset, to.as_mut_ptr(), to.len())
    }

    /// Writes to the buffer at `offset`.
    pub fn write(
        &self,
        buf: impl AsFd,
        way: Through,
        offset: usize,
        from: &[u8],
    ) -> io::Result<()> {
        let user = from.as_ptr().cast_mut(); // The importer only reads it.
        self.access(buf, way, WRITE, offset, user, from.len())
    }

    fn access(
        &self,
        buf: impl AsFd,
        way: Through,
        flags: u32,
        offset: usize,
        user: *mut u8,
        len: usize,
    ) -> io::Result<()> {
        let arg = Access {
            fd: buf.as_fd().as_raw_fd(),
            flags: flags
                | if matches!(way, Through::Vmap) {
                    VMAP
                } else {
                    0
                },
            offset: offset as u64,
            len: len as u64,
            user: user as u64,
        };
        // SAFETY: the kernel reads `arg`, and accesses `len` bytes at `user`, which `read` has
        // borrowed mutably and `write` is only read from.
        unsafe {
            abi::ioctl(
                &self.0,
                opcode::write::<Access>(b'P', 1),
                (&raw const arg).cast(),
            )
        }?;
        Ok(())
    }

    /// Maps the buffer twice through one attachment. Returns the segments of the mapping.
    pub fn map_twice(&self, buf: impl AsFd) -> io::Result<usize> {
        let fd = buf.as_fd().as_raw_fd();
        // SAFETY: the kernel reads an int.
        let n = unsafe {
            abi::ioctl(
                &self.0,
                opcode::write::<i32>(b'P', 2),
                (&raw const fd).cast(),
            )
        };
        n.map(|n| n as usize)
    }
}
