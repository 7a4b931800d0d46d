// SPDX-License-Identifier: GPL-2.0

//! The plumbing that the `kernel` crate lacks, one to one over the C calls.
//!
//! No state, no lock of its own, no policy: a driver includes this file and it counts as the
//! driver's own code. It goes away the day `kernel::dma_buf` exists. Static inlines are in
//! `dmabuf_shim.h`.

#![allow(dead_code, reason = "No driver needs all of it.")]

use crate::compat::{
    this_module,
    DMA_BIDIRECTIONAL,
    DMA_FROM_DEVICE, //
};
use core::ptr::{
    null_mut,
    without_provenance_mut,
    NonNull, //
};
use kernel::{
    bindings,
    error::{
        from_err_ptr,
        from_result,
        to_result, //
    },
    mm::virt::VmaNew,
    prelude::*,
    sizes::SZ_64K,
    task::MAX_SCHEDULE_TIMEOUT,
    time::Jiffies, //
};
use pagekit_view::{
    PageRef,
    PfnOnly, //
};
use pagekit_vma::{
    fault_pfns,
    huge_fault_pfns,
    setup_pfns,
    VmFault, //
};

#[allow(
    improper_ctypes,
    reason = "Some configurations have fields of size zero in structs that are only pointed to."
)]
extern "C" {
    // mm/vmalloc.c exports this, `bindings` does not have it.
    #[link_name = "vunmap"]
    fn kernel_vunmap(mem: *const c_void);

    // See dmabuf_shim.h.
    fn pagekit_dmabuf_vmap(
        pages: *const PageRef<'_, PfnOnly>,
        count: c_uint,
        write_combine: bool,
    ) -> *mut c_void;
    fn pagekit_dmabuf_for_cpu(
        dev: *mut bindings::device,
        table: *mut bindings::sg_table,
        dir: bindings::dma_data_direction,
    );
    fn pagekit_dmabuf_for_device(
        dev: *mut bindings::device,
        table: *mut bindings::sg_table,
        dir: bindings::dma_data_direction,
    );
    fn pagekit_dmabuf_assert_held(resv: *mut bindings::dma_resv);
    fn pagekit_dmabuf_ram_pages() -> usize;
}

/// Refuses more pages than there is memory: the kernel would kill one process after another for
/// them, and then have none after all.
pub(crate) fn check_fits_ram(pages: usize) -> Result {
    // SAFETY: It reads a counter.
    if pages > unsafe { pagekit_dmabuf_ram_pages() } {
        Err(ENOMEM)
    } else {
        Ok(())
    }
}

/// `dma_resv_assert_held()`: warns where lockdep can tell that the caller doesn't hold the
/// reservation lock of `buf`.
///
/// # Safety
///
/// `buf` must be a buffer.
#[inline]
pub(crate) unsafe fn assert_held(buf: *mut bindings::dma_buf) {
    if cfg!(CONFIG_LOCKDEP) {
        // SAFETY: The caller promises a buffer, which has a reservation lock.
        unsafe { pagekit_dmabuf_assert_held((*buf).resv) };
    }
}

/// `dma_buf_export()`. The buffer owns `data` from here on, and gives it to `ops.release`.
///
/// Operations on a buffer run in any thread, and several at the same time: so `data` must be `Send`
/// and `Sync`.
///
/// # Safety
///
/// `ops` must be made for buffers whose private data is a `T`, and have a `release` that takes it
/// back with [`release`].
pub(crate) unsafe fn export<T: Send + Sync>(
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
        resv: null_mut(),
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
#[inline(always)] // A driver has one call, at the end of a function.
pub(crate) unsafe fn into_fd(buf: NonNull<bindings::dma_buf>, flags: u32) -> Result<c_int> {
    // SAFETY: The caller owns a reference.
    let fd = unsafe { bindings::dma_buf_fd(buf.as_ptr(), flags as c_int) };
    to_result(fd).inspect_err(|_| {
        // SAFETY: The caller owns a reference, which was not taken. It ends here.
        unsafe { bindings::dma_buf_put(buf.as_ptr()) };
    })?;
    Ok(fd)
}

/// [`export`] for reading and writing, and [`into_fd`]: what an ioctl returns.
///
/// # Safety
///
/// As for [`export`].
#[inline(always)] // A driver has one call, at the end of a function.
pub(crate) unsafe fn export_fd<T: Send + Sync>(
    name: &'static CStr,
    ops: &'static bindings::dma_buf_ops,
    size: usize,
    cloexec: u32,
    data: KBox<T>,
) -> Result<isize> {
    let owner = this_module::<crate::LocalModule>();
    // SAFETY: The caller promises that `ops` are for a `T`, and release it. The reference on the
    // new buffer is ours.
    unsafe {
        let buf = export(name, owner, ops, size, bindings::O_RDWR, data)?;
        Ok(into_fd(buf, cloexec)? as isize)
    }
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
/// The table is allocated, or zeroed.
#[repr(transparent)]
pub(crate) struct SgTable(bindings::sg_table);

impl SgTable {
    pub(crate) fn empty() -> Self {
        // INVARIANT: It is zeroed.
        Self(pin_init::zeroed())
    }

    /// Allocates the table, with segments that are as long as the device may take them. May sleep.
    ///
    /// # Safety
    ///
    /// `dev` must be a device. The table must be an empty one.
    pub(crate) unsafe fn fill<Of>(
        &mut self,
        pages: &[PageRef<'_, Of>],
        dev: *mut bindings::device,
    ) -> Result {
        let count = c_uint::try_from(pages.len())?;
        // SAFETY: The caller promises a device. C's `dma_get_max_seg_size()` is inline.
        let max_segment = unsafe {
            let claimed = (*dev).dma_parms.as_ref().map_or(0, |p| p.max_segment_size);
            let claimed = if claimed != 0 {
                claimed as usize
            } else {
                SZ_64K
            };
            claimed.min(bindings::dma_max_mapping_size(dev))
        };
        // SAFETY: A slice of `PageRef` is an array of `struct page` pointers.
        // INVARIANT: If this fails, it leaves the table zeroed.
        to_result(unsafe {
            bindings::sg_alloc_table_from_pages_segment(
                &mut self.0,
                pages.as_ptr().cast_mut().cast(),
                count,
                0,
                (pages.len() as c_ulong) << bindings::PAGE_SHIFT,
                max_segment as c_uint,
                bindings::GFP_KERNEL_ACCOUNT,
            )
        })
    }

    /// `dma_map_sgtable()`, and at once `dma_unmap_sgtable()`: writes what caches have of the pages
    /// to memory, and for `DMA_BIDIRECTIONAL` has caches forget it. Does nothing if the device
    /// snoops. Never sleeps.
    ///
    /// # Safety
    ///
    /// The table must be filled for `dev`, which must be a device. Nobody may use the pages.
    pub(crate) unsafe fn clean(
        &mut self,
        dev: *mut bindings::device,
        dir: bindings::dma_data_direction,
    ) -> Result {
        // SAFETY: The caller promises a device, and a table that was filled for it.
        unsafe {
            to_result(bindings::dma_map_sgtable(dev, &mut self.0, dir, 0))?;
            bindings::dma_unmap_sgtable(dev, &mut self.0, dir, 0);
        }
        Ok(())
    }

    pub(crate) fn as_ptr(&mut self) -> *mut bindings::sg_table {
        &mut self.0
    }
}

// SAFETY: Any thread may use a table, and free it.
unsafe impl Send for SgTable {}

impl Drop for SgTable {
    fn drop(&mut self) {
        // SAFETY: By the type invariants the table is allocated, or zeroed, which this leaves
        // alone.
        unsafe { bindings::sg_free_table(&mut self.0) };
    }
}

/// What is mapped of a buffer for one device, in a list that hangs off the attachment.
///
/// # Invariants
///
/// `table` is mapped for the device of the attachment and for `dir`.
#[repr(C)]
struct Mapping {
    table: SgTable,
    dir: bindings::dma_data_direction,
    next: *mut Mapping,
}

/// What a map operation returns: the table, or C's `ERR_PTR()` of the error, which is only a cast.
pub(crate) fn table_or_err(table: Result<*mut bindings::sg_table>) -> *mut bindings::sg_table {
    table.unwrap_or_else(|e| without_provenance_mut(e.to_errno() as usize))
}

/// Maps `pages` for the device of `attachment`, `dma_map_sgtable()`: what a map operation returns.
///
/// # Safety
///
/// The attachment must be one of a buffer of the driver's own, which uses its `priv` for nothing
/// else. The caller must hold the reservation lock of the buffer. Until [`unmap`] the pages must
/// stay where they are.
pub(crate) unsafe fn map<Of>(
    attachment: *mut bindings::dma_buf_attachment,
    pages: &[PageRef<'_, Of>],
    dir: bindings::dma_data_direction,
) -> Result<*mut bindings::sg_table> {
    // SAFETY: The caller promises that only this file uses `priv`, which is null or a mapping, and
    // holds the lock.
    let attachment = unsafe {
        assert_held((*attachment).dmabuf);
        &mut *attachment
    };
    let mut mapping = KBox::write(
        KBox::new_uninit(GFP_KERNEL_ACCOUNT)?,
        Mapping {
            table: SgTable::empty(),
            dir,
            next: attachment.priv_.cast(),
        },
    );
    let table = mapping.table.as_ptr();
    // SAFETY: The device stays while it is attached.
    // INVARIANT: If this succeeds, the table is mapped; else the mapping goes.
    unsafe {
        mapping.table.fill(pages, attachment.dev)?;
        to_result(bindings::dma_map_sgtable(attachment.dev, table, dir, 0))?;
    }
    attachment.priv_ = KBox::into_raw(mapping).cast();
    Ok(table)
}

/// `dma_unmap_sgtable()`: an unmap operation.
///
/// # Safety
///
/// `table` must be from [`map`] for this attachment, with this `dir`. The caller must hold the
/// reservation lock of the buffer.
pub(crate) unsafe extern "C" fn unmap(
    attachment: *mut bindings::dma_buf_attachment,
    table: *mut bindings::sg_table,
    dir: bindings::dma_data_direction,
) {
    // SAFETY: The caller promises a table from `map`, which is mapped, and is the first field of a
    // mapping in the list of this attachment. Under the lock that it holds, nobody else uses that.
    unsafe {
        assert_held((*attachment).dmabuf);
        bindings::dma_unmap_sgtable((*attachment).dev, table, dir, 0);
        let mut link = (&raw mut (*attachment).priv_).cast::<*mut Mapping>();
        while *link != table.cast() {
            link = &raw mut (**link).next;
        }
        let mapping = KBox::from_raw(*link);
        *link = mapping.next;
    }
}

/// Whom memory is made coherent for.
#[derive(Copy, Clone)]
pub(crate) enum For {
    Cpu,
    Device,
}

impl For {
    /// `dma_sync_sgtable_for_cpu()`, `dma_sync_sgtable_for_device()`: when access by the CPU in
    /// direction `dir` begins or ends.
    ///
    /// # Safety
    ///
    /// `table` must be mapped for `dev`, in direction `mapped`.
    pub(crate) unsafe fn sync(
        self,
        dev: *mut bindings::device,
        table: *mut bindings::sg_table,
        mapped: bindings::dma_data_direction,
        dir: bindings::dma_data_direction,
    ) {
        const BOTH: bindings::dma_data_direction = DMA_BIDIRECTIONAL;
        // Only what both sides do: a bounce buffer must not be copied over what the other one has
        // written.
        let dir = match (mapped, self) {
            // The CPU has changed nothing, so the device need not be told.
            (_, For::Device) if dir == DMA_FROM_DEVICE => return,
            // In the direction of the mapping: only that lets `DMA_API_DEBUG` find which it is for
            // where a page is mapped twice. Also where the CPU will only write: the end copies that
            // back with all around it.
            (BOTH, _) => BOTH,
            _ if dir == BOTH || dir == mapped => mapped,
            _ => return,
        };
        let sync = match self {
            For::Cpu => pagekit_dmabuf_for_cpu,
            For::Device => pagekit_dmabuf_for_device,
        };
        // SAFETY: The caller promises that the table is mapped for the device.
        unsafe { sync(dev, table, dir) };
    }
}

/// [`For::sync`] with all that is mapped of a buffer.
///
/// # Safety
///
/// `buf` must be a buffer whose attachments are mapped by [`map`]. The caller must hold its
/// reservation lock.
pub(crate) unsafe fn sync(
    buf: *mut bindings::dma_buf,
    dir: bindings::dma_data_direction,
    whom: For,
) {
    // SAFETY: Under the lock that the caller holds, the attachments and their lists of mappings are
    // stable, and the mappings mapped.
    unsafe {
        for_each_attachment(buf, |attachment| {
            let mut mapping = attachment.priv_.cast::<Mapping>();
            while let Some(m) = mapping.as_mut() {
                whom.sync(attachment.dev, m.table.as_ptr(), m.dir, dir);
                mapping = m.next;
            }
        });
    }
}

/// `dma_resv_wait_timeout()`, which signals end: waits for the fences of that usage. Returns how
/// much of the time was left, 0 if it has taken too long.
///
/// # Safety
///
/// `buf` must be a buffer.
pub(crate) unsafe fn wait(
    buf: *mut bindings::dma_buf,
    usage: bindings::dma_resv_usage,
    timeout: Jiffies,
) -> Result<Jiffies> {
    // SAFETY: The caller promises a buffer, which has a reservation object.
    let left = unsafe { bindings::dma_resv_wait_timeout((*buf).resv, usage, true, timeout) };
    if left < 0 {
        return Err(Error::from_errno(left as c_int));
    }
    Ok(left as Jiffies)
}

/// Waits until devices have written what the CPU is to read, and read what it is to write. The core
/// does so, too, but when `begin_cpu_access` has returned: what is synced there must be there.
///
/// # Safety
///
/// `buf` must be a buffer.
pub(crate) unsafe fn wait_for_devices(
    buf: *mut bindings::dma_buf,
    dir: bindings::dma_data_direction,
) -> Result {
    // C's `dma_resv_usage_rw()` is inline: who reads waits for writes, and who writes for all.
    let usage = if dir == DMA_FROM_DEVICE {
        bindings::dma_resv_usage_DMA_RESV_USAGE_WRITE
    } else {
        bindings::dma_resv_usage_DMA_RESV_USAGE_READ
    };
    // SAFETY: The caller promises a buffer.
    unsafe { wait(buf, usage, MAX_SCHEDULE_TIMEOUT as Jiffies) }.map(drop)
}

/// [`sync`], under the reservation lock, and nothing else.
///
/// # Safety
///
/// `buf` must be a buffer whose attachments are mapped by [`map`]. The caller must not hold its
/// reservation lock.
#[inline(never)]
unsafe fn lock_and_sync(
    buf: *mut bindings::dma_buf,
    dir: bindings::dma_data_direction,
    whom: For,
) -> c_int {
    // SAFETY: The caller promises a buffer whose attachments are mapped by `map`, and that it
    // doesn't hold the lock.
    unsafe {
        bindings::dma_resv_lock((*buf).resv, null_mut());
        sync(buf, dir, whom);
        bindings::dma_resv_unlock((*buf).resv);
    }
    0
}

/// A `begin_cpu_access` operation of buffers that are mapped by [`map`].
///
/// # Safety
///
/// To be called by the core, which holds no lock.
pub(crate) unsafe extern "C" fn begin_cpu_access(
    buf: *mut bindings::dma_buf,
    dir: bindings::dma_data_direction,
) -> c_int {
    // SAFETY: The core passes a buffer of the driver's.
    from_result(|| unsafe {
        wait_for_devices(buf, dir)?;
        Ok(lock_and_sync(buf, dir, For::Cpu))
    })
}

/// The same at the end.
///
/// # Safety
///
/// As for [`begin_cpu_access`].
pub(crate) unsafe extern "C" fn end_cpu_access(
    buf: *mut bindings::dma_buf,
    dir: bindings::dma_data_direction,
) -> c_int {
    // SAFETY: The core passes a buffer of the driver's.
    unsafe { lock_and_sync(buf, dir, For::Device) }
}

/// How many attachments `buf` has, and how often it is mapped.
///
/// # Safety
///
/// As for [`sync`].
pub(crate) unsafe fn users(buf: *mut bindings::dma_buf) -> (u32, u32) {
    let (mut attachments, mut mappings) = (0, 0);
    // SAFETY: Under the lock that the caller holds, the attachments and their lists of mappings are
    // stable.
    unsafe {
        for_each_attachment(buf, |attachment| {
            attachments += 1;
            let mut mapping = attachment.priv_.cast::<Mapping>();
            while let Some(m) = mapping.as_ref() {
                mappings += 1;
                mapping = m.next;
            }
        });
    }
    (attachments, mappings)
}

/// `vmap()`: the pages in kernel virtual memory. May sleep.
///
/// Importers may keep such a mapping. `vm_map_ram()` is for short-lived ones: small ones share a
/// block of addresses, which is free again only when all of them have gone.
pub(crate) fn vmap<Of>(pages: &[PageRef<'_, Of>], map: &mut bindings::iosys_map) -> Result {
    vmap_as(false, pages, map)
}

/// [`vmap`], past the caches if `write_combine`, as `pagekit_vma::write_combine()` has it.
pub(crate) fn vmap_as<Of>(
    write_combine: bool,
    pages: &[PageRef<'_, Of>],
    map: &mut bindings::iosys_map,
) -> Result {
    // SAFETY: The slice is an array of pointers to pages that exist.
    let vaddr = unsafe {
        let count = c_uint::try_from(pages.len())?;
        pagekit_dmabuf_vmap(PageRef::pfns(pages).as_ptr(), count, write_combine)
    };
    if vaddr.is_null() {
        return Err(ENOMEM);
    }
    map.is_iomem = false;
    map.__bindgen_anon_1.vaddr = vaddr;
    Ok(())
}

/// `vunmap()`.
///
/// # Safety
///
/// `map` must be from [`vmap`], and nobody may use it any more.
pub(crate) unsafe fn vunmap(map: &bindings::iosys_map) {
    // SAFETY: The caller promises that it is from `vmap`, so that the address is that of a mapping,
    // and that it is not used any more.
    unsafe { kernel_vunmap(map.__bindgen_anon_1.vaddr) };
}

/// What a buffer is exported with whose pages stay where they are until it is released.
///
/// Whoever maps the buffer may read and write the pages. If it is mapped by [`mmap`], none is
/// memory of a process.
pub(crate) trait Pages: Send + Sync + 'static {
    fn pages(&self) -> &[PageRef<'_, PfnOnly>];
}

/// The operations of such buffers that are calls of this file. `mmap` is for the driver to add: the
/// one below, say.
pub(crate) const fn ops<T: Pages>() -> bindings::dma_buf_ops {
    /// # Safety
    ///
    /// To be called by the core, under the reservation lock.
    unsafe extern "C" fn map_dma_buf<T: Pages>(
        attachment: *mut bindings::dma_buf_attachment,
        dir: bindings::dma_data_direction,
    ) -> *mut bindings::sg_table {
        // SAFETY: The core passes an attachment of a buffer that was exported with a `T`, whose
        // pages stay.
        unsafe {
            let pages = data::<T>((*attachment).dmabuf).pages();
            table_or_err(map(attachment, pages, dir))
        }
    }

    /// # Safety
    ///
    /// As for `map_dma_buf`.
    unsafe extern "C" fn vmap_op<T: Pages>(
        buf: *mut bindings::dma_buf,
        map: *mut bindings::iosys_map,
    ) -> c_int {
        // SAFETY: The core passes a buffer that was exported with a `T`, and a map to be filled in.
        from_result(|| unsafe {
            vmap(data::<T>(buf).pages(), &mut *map)?;
            Ok(0)
        })
    }

    /// # Safety
    ///
    /// As for `map_dma_buf`.
    unsafe extern "C" fn vunmap_op(_buf: *mut bindings::dma_buf, map: *mut bindings::iosys_map) {
        // SAFETY: The core passes a map that `vmap_op` has filled in and nobody uses any more.
        unsafe { vunmap(&*map) };
    }

    /// # Safety
    ///
    /// To be called by the core, when the last file descriptor, mapping and importer has gone.
    unsafe extern "C" fn release_op<T>(buf: *mut bindings::dma_buf) {
        // SAFETY: The core passes a buffer that was exported with a `T`, for the last time.
        drop(unsafe { release::<T>(buf) });
    }

    bindings::dma_buf_ops {
        map_dma_buf: Some(map_dma_buf::<T>),
        unmap_dma_buf: Some(unmap),
        begin_cpu_access: Some(begin_cpu_access),
        end_cpu_access: Some(end_cpu_access),
        vmap: Some(vmap_op::<T>),
        vunmap: Some(vunmap_op),
        release: Some(release_op::<T>),
        ..pin_init::zeroed()
    }
}

/// An `mmap` operation of such buffers: PFNs on fault, by huge pages where they fit.
///
/// # Safety
///
/// To be called by the core, for a buffer that was exported with a `T`, under the mmap lock.
pub(crate) unsafe extern "C" fn mmap<T: Pages>(
    buf: *mut bindings::dma_buf,
    vma: *mut bindings::vm_area_struct,
) -> c_int {
    // SAFETY: The core passes a buffer that was exported with a `T`, whose pages may be written to,
    // and a VMA that is being set up and is never made a mixed mapping.
    from_result(|| unsafe {
        (*vma).vm_ops = const { &vm_ops::<T>() };
        (*vma).vm_private_data = (*buf).priv_;
        setup_pfns(VmaNew::from_raw(vma), data::<T>(buf).pages().len(), 0)?;
        Ok(0)
    })
}

/// The operations of VMAs whose private data is a `T`: those that [`mmap`] sets up.
pub(crate) const fn vm_ops<T: Pages>() -> bindings::vm_operations_struct {
    /// # Safety
    ///
    /// The private data of the VMA of `vmf` must be a `T` that stays until the mapping has gone.
    unsafe fn pages<T: Pages>(vmf: &VmFault) -> &[PageRef<'_, PfnOnly>] {
        // SAFETY: The caller promises that a `T` is there.
        unsafe { (*(*vmf.vma().as_ptr()).vm_private_data.cast::<T>()).pages() }
    }

    /// # Safety
    ///
    /// To be called by the kernel, for a fault in such a VMA.
    unsafe extern "C" fn fault<T: Pages>(vmf: *mut bindings::vm_fault) -> bindings::vm_fault_t {
        // SAFETY: The kernel passes a fault that is being handled. The VMA holds the file of the
        // buffer, so that this is released, and its pages go, after the mapping has gone. They may
        // be written to, and are no memory of a process.
        unsafe {
            let vmf = VmFault::from_raw(vmf);
            fault_pfns(vmf, pages::<T>(vmf), 0)
        }
    }

    /// # Safety
    ///
    /// To be called by the kernel, for a fault in such a VMA.
    unsafe extern "C" fn huge_fault<T: Pages>(
        vmf: *mut bindings::vm_fault,
        order: c_uint,
    ) -> bindings::vm_fault_t {
        // SAFETY: The kernel passes a fault that is being handled. The VMA holds the file of the
        // buffer, so that this is released, and its pages go, after the mapping has gone. They may
        // be written to, and are no memory of a process.
        unsafe {
            let vmf = VmFault::from_raw(vmf);
            huge_fault_pfns(vmf, order, pages::<T>(vmf), 0)
        }
    }

    bindings::vm_operations_struct {
        fault: Some(fault::<T>),
        huge_fault: Some(huge_fault::<T>),
        ..pin_init::zeroed()
    }
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
        assert_held(buf);
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
