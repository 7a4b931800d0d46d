// SPDX-License-Identifier: GPL-2.0

//! What importers of dma-bufs need and the `kernel` crate lacks, one to one over the C calls.
//!
//! Like `dmabuf.rs`, it counts as the driver's own code. Static inlines are in `import_shim.h`.

#![allow(dead_code, reason = "No driver needs all of it.")]

use crate::dmabuf::{
    self,
    into_fd, //
};
use core::{
    marker::PhantomData,
    ptr::{
        null,
        null_mut,
        NonNull, //
    }, //
};
use kernel::{
    bindings,
    error::{
        from_err_ptr,
        to_result, //
    },
    prelude::*,
    task::MAX_SCHEDULE_TIMEOUT,
    time::Jiffies,
    types::NotThreadSafe, //
};

#[allow(
    improper_ctypes,
    reason = "Some configurations have fields of size zero in structs that are only pointed to."
)]
extern "C" {
    // See import_shim.h.
    fn pagekit_import_lock_interruptible(resv: *mut bindings::dma_resv) -> c_int;
    fn pagekit_import_trylock(resv: *mut bindings::dma_resv) -> bool;
    fn pagekit_import_dma_mask(dev: *mut bindings::device) -> c_int;
}

/// A reference on a `struct dma_buf`, `dma_buf_put()` on drop.
///
/// # Invariants
///
/// It is a buffer, on which this owns a reference.
pub(crate) struct Buf(NonNull<bindings::dma_buf>);

// SAFETY: Buffers are reference counted and used by any thread.
unsafe impl Send for Buf {}
// SAFETY: What a buffer is made of is looked at under its own locks only, by any thread.
unsafe impl Sync for Buf {}

impl Buf {
    /// Takes over a reference.
    ///
    /// # Safety
    ///
    /// The caller must own a reference on `buf`.
    pub(crate) unsafe fn from_raw(buf: NonNull<bindings::dma_buf>) -> Self {
        // INVARIANT: By the safety requirements of this function.
        Self(buf)
    }

    /// `dma_buf_get()`.
    pub(crate) fn get(fd: c_int) -> Result<Self> {
        // SAFETY: Any number may be passed.
        let buf = from_err_ptr(unsafe { bindings::dma_buf_get(fd) })?;
        // SAFETY: It is no error, and the kernel returns no null. The reference is ours.
        Ok(unsafe { Self::from_raw(NonNull::new_unchecked(buf)) })
    }

    /// `dma_buf_fd()`.
    pub(crate) fn fd(&self, flags: u32) -> Result<isize> {
        // SAFETY: This owns a reference, and the one made here is given away.
        unsafe {
            bindings::get_file((*self.as_ptr()).file);
            Ok(into_fd(self.0, flags)? as isize)
        }
    }

    pub(crate) fn as_ptr(&self) -> *mut bindings::dma_buf {
        self.0.as_ptr()
    }

    pub(crate) fn as_non_null(&self) -> NonNull<bindings::dma_buf> {
        self.0
    }

    pub(crate) fn size(&self) -> usize {
        // SAFETY: This owns a reference. The size never changes.
        unsafe { (*self.as_ptr()).size }
    }

    /// Whether it was exported with `ops`, and so with their private data.
    pub(crate) fn has_ops(&self, ops: &'static bindings::dma_buf_ops) -> bool {
        // SAFETY: This owns a reference. The operations never change.
        unsafe { core::ptr::eq((*self.as_ptr()).ops, ops) }
    }

    /// `dma_resv_lock()`.
    pub(crate) fn reserve(&self) -> Reserved<'_> {
        // SAFETY: This owns a reference.
        unsafe { reserve(self.as_ptr()) }
    }

    /// `dma_resv_lock_interruptible()`.
    pub(crate) fn reserve_interruptible(&self) -> Result<Reserved<'_>> {
        // SAFETY: This owns a reference.
        unsafe { reserve_interruptible(self.as_ptr()) }
    }
}

/// `dma_resv_lock()`, in an operation.
///
/// # Safety
///
/// `buf` must stay for `'a`.
pub(crate) unsafe fn reserve<'a>(buf: *mut bindings::dma_buf) -> Reserved<'a> {
    // SAFETY: `buf` stays, and with it its reservation lock.
    unsafe { bindings::dma_resv_lock((*buf).resv, null_mut()) };
    // INVARIANT: It was locked just now: without a context that can't fail.
    Reserved(buf, PhantomData, NotThreadSafe)
}

/// `dma_resv_lock_interruptible()`, in an operation.
///
/// # Safety
///
/// `buf` must stay for `'a`.
pub(crate) unsafe fn reserve_interruptible<'a>(
    buf: *mut bindings::dma_buf,
) -> Result<Reserved<'a>> {
    // SAFETY: `buf` stays, and with it its reservation lock.
    to_result(unsafe { pagekit_import_lock_interruptible((*buf).resv) })?;
    // INVARIANT: It was locked just now.
    Ok(Reserved(buf, PhantomData, NotThreadSafe))
}

/// `dma_resv_trylock()`.
///
/// # Safety
///
/// `buf` must stay for `'a`.
pub(crate) unsafe fn try_reserve<'a>(buf: *mut bindings::dma_buf) -> Option<Reserved<'a>> {
    // SAFETY: `buf` stays, and with it its reservation lock.
    unsafe { pagekit_import_trylock((*buf).resv) }
        // INVARIANT: It was locked just now.
        .then(|| Reserved(buf, PhantomData, NotThreadSafe))
}

impl Clone for Buf {
    fn clone(&self) -> Self {
        // SAFETY: This owns a reference.
        unsafe { bindings::get_file((*self.as_ptr()).file) };
        // INVARIANT: The reference was made just now.
        Self(self.0)
    }
}

impl Drop for Buf {
    fn drop(&mut self) {
        // SAFETY: By the type invariants, this owns a reference.
        unsafe { bindings::dma_buf_put(self.as_ptr()) };
    }
}

/// The reservation lock of a buffer is held, `dma_resv_unlock()` on drop.
///
/// # Invariants
///
/// It is held by this thread, and the buffer stays for `'a`.
pub(crate) struct Reserved<'a>(*mut bindings::dma_buf, PhantomData<&'a Buf>, NotThreadSafe);

impl Reserved<'_> {
    pub(crate) fn as_ptr(&self) -> *mut bindings::dma_buf {
        self.0
    }
}

impl Drop for Reserved<'_> {
    fn drop(&mut self) {
        // SAFETY: By the type invariants, the lock is held.
        unsafe { bindings::dma_resv_unlock((*self.0).resv) };
    }
}

/// A device attached to a buffer, `dma_buf_detach()` and `dma_buf_put()` on drop.
///
/// # Invariants
///
/// It is an attachment to `buf`, of which nothing is mapped when this is dropped.
pub(crate) struct Attachment<'a> {
    raw: NonNull<bindings::dma_buf_attachment>,
    buf: Buf,
    _device: PhantomData<&'a Device>,
}

// SAFETY: Attachments may be used by any thread.
unsafe impl Send for Attachment<'_> {}
// SAFETY: What changes of an attachment does so under the reservation lock.
unsafe impl Sync for Attachment<'_> {}

impl<'a> Attachment<'a> {
    /// `dma_buf_attach()`: for a device that can't live with the buffer being moved.
    pub(crate) fn new(buf: Buf, dev: &'a Device) -> Result<Self> {
        // SAFETY: There is no callback to be called.
        unsafe { Self::dynamic(buf, dev, null(), null_mut()) }
    }

    /// `dma_buf_dynamic_attach()`.
    ///
    /// # Safety
    ///
    /// `ops` must be null or valid for as long as the attachment. `data` must be what they need.
    pub(crate) unsafe fn dynamic(
        buf: Buf,
        dev: &'a Device,
        ops: *const bindings::dma_buf_attach_ops,
        data: *mut c_void,
    ) -> Result<Self> {
        // SAFETY: The buffer stays for it is in here, the device for it is borrowed. The rest is as
        // the caller promises.
        let raw = from_err_ptr(unsafe {
            bindings::dma_buf_dynamic_attach(buf.as_ptr(), dev.as_ptr(), ops, data)
        })?;
        Ok(Self {
            // SAFETY: It is no error, and the kernel returns no null.
            raw: unsafe { NonNull::new_unchecked(raw) },
            buf,
            _device: PhantomData,
        })
    }

    /// `dma_buf_map_attachment()`, and `dma_resv_wait_timeout()`: the exporter may still be moving
    /// what it has mapped. The core waits for static attachments only.
    ///
    /// # Safety
    ///
    /// The caller must hold the reservation lock of the buffer, and unmap it before it is detached.
    pub(crate) unsafe fn map(
        &self,
        dir: bindings::dma_data_direction,
    ) -> Result<*mut bindings::sg_table> {
        // SAFETY: This owns a reference on the buffer.
        unsafe { dmabuf::assert_held(self.buf.as_ptr()) };
        // SAFETY: The buffer is attached and reserved, and is unmapped before it is detached.
        let table = from_err_ptr(unsafe { bindings::dma_buf_map_attachment(self.as_ptr(), dir) })?;
        let usage = bindings::dma_resv_usage_DMA_RESV_USAGE_KERNEL;
        // SAFETY: This owns a reference on the buffer.
        unsafe { dmabuf::wait(self.buf.as_ptr(), usage, MAX_SCHEDULE_TIMEOUT as Jiffies) }
            .inspect_err(|_| {
                // SAFETY: It was mapped just now, and the lock is still held.
                unsafe { bindings::dma_buf_unmap_attachment(self.as_ptr(), table, dir) };
            })?;
        Ok(table)
    }

    pub(crate) fn as_ptr(&self) -> *mut bindings::dma_buf_attachment {
        self.raw.as_ptr()
    }

    pub(crate) fn buf(&self) -> &Buf {
        &self.buf
    }
}

impl Drop for Attachment<'_> {
    fn drop(&mut self) {
        // SAFETY: By the type invariants, it is attached and not mapped.
        unsafe { bindings::dma_buf_detach(self.buf.as_ptr(), self.as_ptr()) };
    }
}

/// How a device has a foreign buffer mapped: what it takes to unmap it.
pub(crate) struct Mapping {
    pub(crate) table: *mut bindings::sg_table,
    pub(crate) dir: bindings::dma_data_direction,
}

// SAFETY: The table may be used by any thread.
unsafe impl Send for Mapping {}

/// A device that reaches all memory, `faux_device_create()`, `faux_device_destroy()` on drop.
///
/// # Invariants
///
/// The device is registered.
pub(crate) struct Device {
    faux: NonNull<bindings::faux_device>,
    /// Which the device points to.
    parms: KBox<bindings::device_dma_parameters>,
}

// SAFETY: Devices may be used, and destroyed, by any thread.
unsafe impl Send for Device {}
// SAFETY: The driver core has locks of its own for what threads do with a device.
unsafe impl Sync for Device {}

impl Device {
    pub(crate) fn new(name: &'static CStr) -> Result<Self> {
        // In segments of any length: who doesn't say so claims 64 KiB, and exporters needn't look.
        let parms = bindings::device_dma_parameters {
            max_segment_size: u32::MAX,
            ..pin_init::zeroed()
        };
        let parms = KBox::new(parms, GFP_KERNEL_ACCOUNT)?;
        // SAFETY: The name is copied. No parent and no operations are needed.
        let faux = unsafe { bindings::faux_device_create(name.as_char_ptr(), null_mut(), null()) };
        // INVARIANT: It was registered just now.
        let mut this = Self {
            faux: NonNull::new(faux).ok_or(ENODEV)?,
            parms,
        };
        // SAFETY: The device exists, and maps nothing yet. The box outlives it.
        to_result(unsafe {
            (*this.as_ptr()).dma_parms = &mut *this.parms;
            pagekit_import_dma_mask(this.as_ptr())
        })?;
        Ok(this)
    }

    pub(crate) fn as_ptr(&self) -> *mut bindings::device {
        // SAFETY: By the type invariants, the device exists.
        unsafe { &raw mut (*self.faux.as_ptr()).dev }
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        // SAFETY: By the type invariants, it is registered, and nobody else destroys it.
        unsafe { bindings::faux_device_destroy(self.faux.as_ptr()) };
    }
}
