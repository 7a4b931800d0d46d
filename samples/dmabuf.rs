// SPDX-License-Identifier: GPL-2.0

//! The plumbing that the `kernel` crate lacks, one to one over the C calls.
//!
//! No state, no lock, no policy: a driver includes this file and it counts as the driver's own
//! code. It goes away the day `kernel::dma_buf` exists.

#![allow(dead_code, reason = "No driver needs all of it.")]

use core::ptr::NonNull;
use kernel::{
    bindings,
    error::{
        from_err_ptr,
        to_result, //
    },
    prelude::*,
    sizes::SZ_64K, //
};
use pagekit_view::PageRef;

#[allow(
    improper_ctypes,
    reason = "Some configurations have fields of size zero deep in structs that are only pointed to."
)]
extern "C" {
    // mm/vmalloc.c exports these, `bindings` does not have them.
    fn vm_map_ram(pages: *const PageRef<'_>, count: c_uint, node: c_int) -> *mut c_void;
    fn vm_unmap_ram(mem: *const c_void, count: c_uint);
}

/// `dma_buf_export()`. The buffer owns `data` from here on, and gives it to `ops.release`.
///
/// # Safety
///
/// `ops` must be made for buffers whose private data is a `T`, and have a `release` that takes it
/// back with [`release`].
pub(crate) unsafe fn export<T>(
    name: &'static CStr,
    owner: &ThisModule,
    ops: &'static bindings::dma_buf_ops,
    size: usize,
    flags: u32,
    data: KBox<T>,
) -> Result<NonNull<bindings::dma_buf>> {
    let data = KBox::into_raw(data);
    let info = bindings::dma_buf_export_info {
        exp_name: name.as_char_ptr(),
        owner: owner.as_ptr(),
        ops,
        size,
        flags: flags as c_int,
        resv: core::ptr::null_mut(),
        priv_: data.cast(),
    };
    // SAFETY: All pointers are valid, and those that are kept are for as long as the module is.
    from_err_ptr(unsafe { bindings::dma_buf_export(&info) })
        .map(|buf| {
            // SAFETY: It is no error, and the kernel returns no null.
            unsafe { NonNull::new_unchecked(buf) }
        })
        .inspect_err(|_| {
            // SAFETY: There is no buffer that would own it.
            drop(unsafe { KBox::from_raw(data) })
        })
}

/// `dma_buf_fd()`, which takes over the reference of the caller, on failure too.
///
/// # Safety
///
/// The caller must own a reference on `buf`.
pub(crate) unsafe fn into_fd(buf: NonNull<bindings::dma_buf>, flags: u32) -> Result<isize> {
    // SAFETY: The caller owns a reference.
    let fd = unsafe { bindings::dma_buf_fd(buf.as_ptr(), flags as c_int) };
    if fd < 0 {
        // SAFETY: As above; it ends here.
        unsafe { bindings::dma_buf_put(buf.as_ptr()) };
    }
    to_result(fd)?;
    Ok(fd as isize)
}

/// Borrows what the buffer was exported with.
///
/// # Safety
///
/// `buf` must have been exported with a `T` and not be released before `'a` ends.
pub(crate) unsafe fn data<'a, T>(buf: *mut bindings::dma_buf) -> &'a T {
    // SAFETY: The caller promises that a `T` is there, which only `release` takes.
    unsafe { &*(*buf).priv_.cast() }
}

/// Takes what the buffer was exported with, in the release operation.
///
/// # Safety
///
/// `buf` must have been exported with a `T` and be in its release operation.
pub(crate) unsafe fn release<T>(buf: *mut bindings::dma_buf) -> KBox<T> {
    // SAFETY: `export` made this of a box, and release is called once, as the last operation.
    unsafe { KBox::from_raw((*buf).priv_.cast()) }
}

/// A `struct sg_table` of an array of pages, `sg_alloc_table_from_pages()`.
///
/// # Invariants
///
/// The table is allocated.
#[repr(transparent)]
pub(crate) struct SgTable(bindings::sg_table);

impl SgTable {
    /// With segments that are as long as the device may take them. May sleep.
    ///
    /// # Safety
    ///
    /// `dev` must be a device.
    pub(crate) unsafe fn new(pages: &[PageRef<'_>], dev: *mut bindings::device) -> Result<Self> {
        let mut table = bindings::sg_table::default();
        let count = c_uint::try_from(pages.len())?;
        // SAFETY: The caller promises a device. C's `dma_get_max_seg_size()` is inline.
        let max_segment = unsafe {
            let claimed = (*dev)
                .dma_parms
                .as_ref()
                .map(|p| p.max_segment_size as usize);
            let claimed = claimed.filter(|&max| max != 0).unwrap_or(SZ_64K);
            claimed.min(bindings::dma_max_mapping_size(dev))
        };
        // SAFETY: A slice of `PageRef` is an array of `struct page` pointers.
        to_result(unsafe {
            bindings::sg_alloc_table_from_pages_segment(
                &mut table,
                pages.as_ptr().cast_mut().cast(),
                count,
                0,
                (pages.len() as c_ulong) << bindings::PAGE_SHIFT,
                max_segment as c_uint,
                bindings::GFP_KERNEL,
            )
        })?;
        // INVARIANT: It was allocated just now.
        Ok(Self(table))
    }

    pub(crate) fn as_ptr(&mut self) -> *mut bindings::sg_table {
        &mut self.0
    }
}

impl Drop for SgTable {
    fn drop(&mut self) {
        // SAFETY: By the type invariants the table is allocated.
        unsafe { bindings::sg_free_table(&mut self.0) };
    }
}

/// `vm_map_ram()`: the pages in kernel virtual memory. May sleep.
pub(crate) fn vmap(pages: &[PageRef<'_>], map: &mut bindings::iosys_map) -> Result {
    // SAFETY: The slice is an array of pointers to pages that exist.
    let vaddr = unsafe {
        vm_map_ram(
            pages.as_ptr(),
            c_uint::try_from(pages.len())?,
            bindings::NUMA_NO_NODE,
        )
    };
    if vaddr.is_null() {
        return Err(ENOMEM);
    }
    map.is_iomem = false;
    map.__bindgen_anon_1.vaddr = vaddr;
    Ok(())
}

/// `vm_unmap_ram()`.
///
/// # Safety
///
/// `map` must be from [`vmap`] of `pages`, and nobody may use it any more.
pub(crate) unsafe fn vunmap(pages: &[PageRef<'_>], map: &bindings::iosys_map) {
    // SAFETY: As the caller promises. `vmap` has checked that the length fits.
    unsafe { vm_unmap_ram(map.__bindgen_anon_1.vaddr, pages.len() as c_uint) };
}

/// Calls `f` with each attachment of `buf`.
///
/// # Safety
///
/// The caller must hold the reservation lock of `buf`.
pub(crate) unsafe fn for_each_attachment(
    buf: *mut bindings::dma_buf,
    mut f: impl FnMut(&mut bindings::dma_buf_attachment),
) {
    // SAFETY: The lock that the caller holds is that of the list, whose elements are attachments.
    unsafe {
        let head = &raw mut (*buf).attachments;
        let mut node = (*head).next;
        while node != head {
            f(&mut *kernel::container_of!(
                node,
                bindings::dma_buf_attachment,
                node
            ));
            node = (*node).next;
        }
    }
}
