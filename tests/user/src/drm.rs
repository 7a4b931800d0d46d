// SPDX-License-Identifier: GPL-2.0
//! The PRIME ioctls of `<drm/drm.h>`: dma-bufs in and out of a DRM device.

use std::ffi::c_char;
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::path::Path;

use anyhow::{Context, Result};
use rustix::io;
use rustix::ioctl::{opcode, Opcode};

use crate::abi::ioctl;
use crate::mapping::Mapping;
use crate::PAGE;

/// C: `struct drm_version`.
#[repr(C)]
struct DrmVersion {
    version_major: i32,
    version_minor: i32,
    version_patchlevel: i32,
    name_len: usize,
    name: *mut c_char,
    date_len: usize,
    date: *mut c_char,
    desc_len: usize,
    desc: *mut c_char,
}

/// C: `struct drm_prime_handle`.
#[repr(C)]
struct DrmPrimeHandle {
    handle: u32,
    flags: u32,
    fd: i32,
}

/// C: `struct drm_mode_create_dumb`.
#[repr(C)]
struct DrmModeCreateDumb {
    height: u32,
    width: u32,
    bpp: u32,
    flags: u32,
    handle: u32,
    pitch: u32,
    size: u64,
}

/// What a dumb buffer is to have, in pixels and bits.
#[derive(Clone, Copy, Debug)]
pub struct Dumb {
    pub width: u32,
    pub height: u32,
    pub bpp: u32,
}

/// C: `struct drm_mode_map_dumb`.
#[repr(C)]
struct DrmModeMapDumb {
    handle: u32,
    pad: u32,
    offset: u64,
}

/// C: `struct drm_gem_close`.
#[repr(C)]
struct DrmGemClose {
    handle: u32,
    pad: u32,
}

/// C: `struct drm_vgem_fence_attach`.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct FenceAttach {
    pub handle: u32,
    pub flags: u32,
    pub out_fence: u32,
    pub pad: u32,
}

/// C: `VGEM_FENCE_WRITE`.
pub const FENCE_WRITE: u32 = 1;

/// C: `struct drm_vgem_fence_signal`.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct FenceSignal {
    pub fence: u32,
    pub flags: u32,
}

/// C: `DRM_IOCTL_VERSION`.
const DRM_IOCTL_VERSION: Opcode = opcode::read_write::<DrmVersion>(b'd', 0x00);
/// C: `DRM_IOCTL_GEM_CLOSE`.
const DRM_IOCTL_GEM_CLOSE: Opcode = opcode::write::<DrmGemClose>(b'd', 0x09);
/// C: `DRM_IOCTL_PRIME_HANDLE_TO_FD`.
const DRM_IOCTL_PRIME_HANDLE_TO_FD: Opcode = opcode::read_write::<DrmPrimeHandle>(b'd', 0x2d);
/// C: `DRM_IOCTL_PRIME_FD_TO_HANDLE`.
const DRM_IOCTL_PRIME_FD_TO_HANDLE: Opcode = opcode::read_write::<DrmPrimeHandle>(b'd', 0x2e);
/// C: `DRM_IOCTL_MODE_CREATE_DUMB`.
const DRM_IOCTL_MODE_CREATE_DUMB: Opcode = opcode::read_write::<DrmModeCreateDumb>(b'd', 0xb2);
/// C: `DRM_IOCTL_VGEM_FENCE_ATTACH`, `DRM_IOCTL_VGEM_FENCE_SIGNAL`.
const DRM_IOCTL_VGEM_FENCE_ATTACH: Opcode = opcode::read_write::<FenceAttach>(b'd', 0x41);
const DRM_IOCTL_VGEM_FENCE_SIGNAL: Opcode = opcode::write::<FenceSignal>(b'd', 0x42);
/// C: `DRM_IOCTL_MODE_MAP_DUMB`.
const DRM_IOCTL_MODE_MAP_DUMB: Opcode = opcode::read_write::<DrmModeMapDumb>(b'd', 0xb3);

/// What there is for buffers.
pub const COMMANDS: &[Opcode] = &[
    DRM_IOCTL_GEM_CLOSE,
    DRM_IOCTL_PRIME_HANDLE_TO_FD,
    DRM_IOCTL_PRIME_FD_TO_HANDLE,
    DRM_IOCTL_MODE_CREATE_DUMB,
    DRM_IOCTL_MODE_MAP_DUMB,
];

/// A DRM device opened by its driver's name.
#[derive(Debug)]
pub struct Card(File);

impl Card {
    pub fn find(driver: &str) -> Result<Self> {
        let nodes = std::fs::read_dir("/dev/dri").context("reading /dev/dri")?;
        for node in nodes {
            let node = node?;
            if !node.file_name().as_encoded_bytes().starts_with(b"card") {
                continue;
            }
            let card = Self::open(node.path())?;
            if card.driver()? == driver {
                return Ok(card);
            }
        }
        anyhow::bail!("no DRM device of driver {driver}")
    }

    pub fn open(node: impl AsRef<Path>) -> Result<Self> {
        let node = node.as_ref();
        let file = File::options().read(true).write(true).open(node);
        Ok(Self(file.with_context(|| node.display().to_string())?))
    }

    /// The name of its driver.
    pub fn driver(&self) -> Result<String> {
        let mut name = [0u8; 64];
        // SAFETY: plain numbers and pointers, all of which may be zero.
        let mut version: DrmVersion = unsafe { std::mem::zeroed() };
        version.name_len = name.len();
        version.name = name.as_mut_ptr().cast();
        self.call(DRM_IOCTL_VERSION, &mut version)
            .context("DRM_IOCTL_VERSION")?;
        let len = version.name_len.min(name.len());
        Ok(String::from_utf8_lossy(&name[..len]).into_owned())
    }

    /// Imports a dma-buf; importing it again gives the same handle.
    pub fn import(&self, buf: BorrowedFd<'_>) -> io::Result<Handle<'_>> {
        self.import_raw(buf.as_raw_fd())
    }

    /// As `import`, of what may be no file descriptor.
    pub fn import_raw(&self, fd: i32) -> io::Result<Handle<'_>> {
        let mut prime = DrmPrimeHandle {
            handle: 0,
            flags: 0,
            fd,
        };
        self.call(DRM_IOCTL_PRIME_FD_TO_HANDLE, &mut prime)?;
        Ok(Handle {
            card: self,
            handle: prime.handle,
        })
    }

    /// A buffer of `pages`: as many rows of a page each.
    pub fn create_dumb(&self, pages: usize) -> io::Result<Handle<'_>> {
        self.create(Dumb {
            width: PAGE as u32 / 4,
            height: pages as u32,
            bpp: 32,
        })
    }

    pub fn create(&self, dumb: Dumb) -> io::Result<Handle<'_>> {
        let mut dumb = DrmModeCreateDumb {
            height: dumb.height,
            width: dumb.width,
            bpp: dumb.bpp,
            flags: 0,
            handle: 0,
            pitch: 0,
            size: 0,
        };
        self.call(DRM_IOCTL_MODE_CREATE_DUMB, &mut dumb)?;
        Ok(Handle {
            card: self,
            handle: dumb.handle,
        })
    }

    /// Exports what has that handle.
    pub fn export(&self, handle: u32) -> io::Result<OwnedFd> {
        let mut prime = DrmPrimeHandle {
            handle,
            // C: `DRM_CLOEXEC | DRM_RDWR`.
            flags: (libc::O_CLOEXEC | libc::O_RDWR) as u32,
            fd: -1,
        };
        self.call(DRM_IOCTL_PRIME_HANDLE_TO_FD, &mut prime)?;
        // SAFETY: the kernel just created it for us.
        Ok(unsafe { OwnedFd::from_raw_fd(prime.fd) })
    }

    /// Where the device has the dumb buffer with that handle.
    pub fn offset(&self, handle: u32) -> io::Result<usize> {
        let mut map = DrmModeMapDumb {
            handle,
            pad: 0,
            offset: 0,
        };
        self.call(DRM_IOCTL_MODE_MAP_DUMB, &mut map)?;
        Ok(map.offset as usize)
    }

    pub fn close(&self, handle: u32) -> io::Result<()> {
        let mut close = DrmGemClose { handle, pad: 0 };
        self.call(DRM_IOCTL_GEM_CLOSE, &mut close)
    }

    /// Has a buffer get a fence, and returns its number. Only for vgem and the like.
    pub fn attach_fence(&self, mut attach: FenceAttach) -> io::Result<u32> {
        self.call(DRM_IOCTL_VGEM_FENCE_ATTACH, &mut attach)?;
        Ok(attach.out_fence)
    }

    /// Signals a fence, which vgem does itself after ten seconds.
    pub fn signal(&self, fence: u32) -> io::Result<()> {
        self.signal_with(FenceSignal { fence, flags: 0 })
    }

    pub fn signal_with(&self, mut signal: FenceSignal) -> io::Result<()> {
        self.call(DRM_IOCTL_VGEM_FENCE_SIGNAL, &mut signal)
    }

    fn call<T>(&self, opcode: Opcode, arg: &mut T) -> io::Result<()> {
        // SAFETY: each opcode's structure is the `T` it is used with here; the kernel
        // writes into it and (version) into the buffers it points to.
        unsafe { ioctl(self.0.as_fd(), opcode, (&raw mut *arg).cast()) }.map(drop)
    }
}

impl From<File> for Card {
    fn from(file: File) -> Self {
        Self(file)
    }
}

impl From<Card> for File {
    fn from(card: Card) -> Self {
        card.0
    }
}

impl AsFd for Card {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// A GEM handle, closed on drop.
#[derive(Debug)]
pub struct Handle<'a> {
    card: &'a Card,
    pub handle: u32,
}

impl Handle<'_> {
    pub fn export(&self) -> io::Result<OwnedFd> {
        self.card.export(self.handle)
    }

    /// Leaves it open until the file of the device is closed.
    pub fn keep(self) -> u32 {
        let handle = self.handle;
        std::mem::forget(self);
        handle
    }

    /// Has the buffer get a fence of somebody who writes.
    pub fn write_fence(&self) -> io::Result<u32> {
        self.fence(FENCE_WRITE)
    }

    /// The same of somebody who reads.
    pub fn read_fence(&self) -> io::Result<u32> {
        self.fence(0)
    }

    fn fence(&self, flags: u32) -> io::Result<u32> {
        self.card.attach_fence(FenceAttach {
            handle: self.handle,
            flags,
            out_fence: 0,
            pad: 0,
        })
    }

    /// Maps a dumb buffer through the device.
    pub fn map(&self, len: usize) -> io::Result<Mapping> {
        Mapping::shared(&self.card.0, self.offset()?, len)
    }

    /// Where the device has a dumb buffer.
    pub fn offset(&self) -> io::Result<usize> {
        self.card.offset(self.handle)
    }
}

impl Drop for Handle<'_> {
    fn drop(&mut self) {
        let _ = self.card.close(self.handle);
    }
}

/// Whether two file descriptors are the same dma-buf: each has an inode of its own.
pub fn same_buffer(a: impl AsFd, b: impl AsFd) -> io::Result<bool> {
    let (a, b) = (rustix::fs::fstat(a)?, rustix::fs::fstat(b)?);
    Ok((a.st_dev, a.st_ino) == (b.st_dev, b.st_ino))
}
