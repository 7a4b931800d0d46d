// SPDX-License-Identifier: GPL-2.0

//! A DMA heap: `/dev/dma_heap/pagekit`, or as the parameter `name` says.
//!
//! The policy of this driver, which no helper knows of:
//!
//! * Pages are allocated when the buffer is, large folios first, and stay where they are until it
//!   is released. They belong to nobody else, so that nothing is ever pinned: `pagekit_pin` is not
//!   needed, and not loaded.
//! * What is mapped for devices is in a list of the buffer, under a mutex of its own. So CPU access
//!   waits for other CPU access, which may copy bounce buffers, but not for what importers do under
//!   the reservation lock.
//! * CPU mappings are of PFNs, mapped at once: buffers of a heap are made to be used as a whole,
//!   and nothing is revoked, so that there is nothing to do in a fault. Referenced pages would let
//!   `O_DIRECT` at the mapping, and cost four times as much; mainline's heaps do without, too. Huge
//!   pages are mapped in faults only, where the address is aligned, and few users choose one.
//! * With the parameter `write_combine`, the CPU doesn't cache new buffers. They are zeroed through
//!   caches, which a device of the heap's own has cleaned before anybody gets the buffer. It is for
//!   devices that don't snoop: those that do see what is in caches.
//!
//! The kernel can't remove a heap, so that the module is never unloaded.
//!
//! C: `drivers/dma-buf/heaps/system_heap.c`.

use core::pin::Pin;
use kernel::{
    bindings,
    error::{
        from_result,
        to_result, //
    },
    mm::virt::{
        flags,
        VmaNew, //
    },
    new_mutex,
    page::PAGE_SHIFT,
    prelude::*,
    sync::Mutex, //
};
use pagekit_pages::{
    AllocFlags,
    PageArray, //
};
use pagekit_vma::{
    map_pfns,
    map_pfns_ro,
    write_combine, //
};

mod compat;
mod dmabuf;
mod import;

use compat::{
    this_module,
    DMA_TO_DEVICE, //
};

module! {
    type: Heap,
    name: "pagekit_heap",
    authors: ["The pagekit authors"],
    description: "pagekit sample: a DMA heap",
    license: "GPL",
    imports_ns: ["DMA_BUF", "DMA_BUF_HEAP"],
}

#[allow(
    improper_ctypes,
    reason = "Some configurations have fields of size zero in structs that are only pointed to."
)]
extern "C" {
    // drivers/dma-buf/dma-heap.c exports these, `bindings` does not have them.
    static mem_accounting: bool;
    fn dma_heap_get_drvdata(heap: *mut dma_heap) -> *mut c_void;

    // See heap_shim.c.
    static pagekit_heap_name: *const c_char;
    static pagekit_heap_size_limit_mb: c_int;
    static pagekit_heap_write_combine: bool;
    fn pagekit_heap_name_is_taken() -> bool;
    fn pagekit_heap_add(device: *const import::Device) -> c_int;
}

struct Heap;

impl kernel::Module for Heap {
    fn init(module: &'static ThisModule) -> Result<Self> {
        // The core takes the name for a format, and warns of one that is taken.
        // SAFETY: The parameter is a string, and read only.
        unsafe {
            let name = pagekit_heap_name;
            if *name == 0 || !bindings::strchr(name, c_int::from(b'%')).is_null() {
                return Err(EINVAL);
            }
            if pagekit_heap_name_is_taken() {
                return Err(EBUSY);
            }
        }
        let device = KBox::new(import::Device::new(c"pagekit-heap")?, GFP_KERNEL_ACCOUNT)?;
        // SAFETY: It adds a heap whose operations are constant, and whose device stays.
        to_result(unsafe { pagekit_heap_add(&*device) })?;
        KBox::leak(device);
        // SAFETY: The module is being loaded. The heap has pointers to it from here on.
        unsafe { bindings::__module_get(module.as_ptr()) };
        Ok(Self)
    }
}

/// `struct dma_heap`, which `bindings` does not have. The core calls `allocate` by a pointer, and
/// kCFI has that trap unless the types of its arguments have the names that they have in C.
#[repr(C)]
struct dma_heap {
    _opaque: [u8; 0],
}

/// Makes a buffer for the heap, whose core has checked the flags.
///
/// # Safety
///
/// To be called by the core, with a length that is page aligned and not 0.
#[no_mangle]
unsafe extern "C" fn pagekit_heap_allocate(
    heap: *mut dma_heap,
    len: c_ulong,
    fd_flags: u32,
    _heap_flags: u64,
) -> *mut bindings::dma_buf {
    // SAFETY: The core passes a heap of ours, which was added with a device that stays.
    let device = unsafe { &*dma_heap_get_drvdata(heap).cast() };
    allocate(device, len, fd_flags).unwrap_or_else(|e| e.to_ptr())
}

fn allocate(device: &import::Device, len: usize, fd_flags: u32) -> Result<*mut bindings::dma_buf> {
    let count = len >> PAGE_SHIFT;
    // SAFETY: The parameter is an int that may be written to at any time.
    let limit_mb = unsafe { (&raw const pagekit_heap_size_limit_mb).read_volatile() };
    // A negative limit is none, as for mainline's udmabuf.
    if len as u64 > (limit_mb as u64) << 20 {
        return Err(EINVAL);
    }
    dmabuf::check_fits_ram(count)?;
    // SAFETY: The parameter is a bool, and read only.
    let flags = if unsafe { mem_accounting } {
        AllocFlags::LARGE | AllocFlags::ACCOUNT
    } else {
        AllocFlags::LARGE
    };
    let array = PageArray::alloc(count, flags)?;
    // SAFETY: The parameter is a bool that may be written to at any time.
    let write_combine = unsafe { (&raw const pagekit_heap_write_combine).read_volatile() };
    if write_combine {
        let mut table = dmabuf::SgTable::empty();
        // SAFETY: The device exists. Nobody has the pages yet.
        unsafe {
            table.fill(array.pages(), device.as_ptr())?;
            table.clean(device.as_ptr(), DMA_TO_DEVICE)?;
        }
    }
    let buffer = KBox::pin_init(
        pin_init!(Buffer {
            array,
            write_combine,
            mappings <- new_mutex!(None),
        }),
        GFP_KERNEL_ACCOUNT,
    )?;
    // SAFETY: The buffer stays in the box. `OPS` is made for it.
    let buf = unsafe {
        dmabuf::export(
            c"pagekit",
            this_module::<LocalModule>(),
            &OPS,
            len,
            fd_flags,
            Pin::into_inner_unchecked(buffer),
        )
    }?;
    Ok(buf.as_ptr())
}

#[pin_data]
struct Buffer {
    array: PageArray,
    /// Whether no mapping of the CPU is cached. Caches have been cleaned of the pages, then.
    write_combine: bool,
    #[pin]
    mappings: Mutex<Option<KBox<Mapping>>>,
}

/// The pages as a device sees them.
///
/// # Invariants
///
/// `table` is mapped for `dev` and `dir`.
struct Mapping {
    table: dmabuf::SgTable,
    dev: *mut bindings::device,
    dir: bindings::dma_data_direction,
    next: Option<KBox<Mapping>>,
}

// SAFETY: Any thread may use the table and the device, and unmap.
unsafe impl Send for Mapping {}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: By the type invariants it is mapped so. The device stays while it is attached.
        unsafe { bindings::dma_unmap_sgtable(self.dev, self.table.as_ptr(), self.dir, 0) };
    }
}

static OPS: bindings::dma_buf_ops = bindings::dma_buf_ops {
    map_dma_buf: Some(map_dma_buf),
    unmap_dma_buf: Some(unmap_dma_buf),
    begin_cpu_access: Some(begin_cpu_access),
    end_cpu_access: Some(end_cpu_access),
    mmap: Some(mmap),
    vmap: Some(vmap),
    vunmap: Some(vunmap),
    release: Some(release),
    ..pin_init::zeroed()
};

// What the dma-buf core calls, with buffers that were exported with `OPS`.

/// # Safety
///
/// To be called by the core.
unsafe extern "C" fn map_dma_buf(
    attachment: *mut bindings::dma_buf_attachment,
    dir: bindings::dma_data_direction,
) -> *mut bindings::sg_table {
    // SAFETY: The core passes an attachment of a buffer that we exported.
    let (dev, buffer) = unsafe {
        (
            (*attachment).dev,
            dmabuf::data::<Buffer>((*attachment).dmabuf),
        )
    };
    let map = || -> Result<*mut bindings::sg_table> {
        let mut table = dmabuf::SgTable::empty();
        // SAFETY: The device stays while it is attached.
        unsafe {
            table.fill(buffer.array.pages(), dev)?;
            to_result(bindings::dma_map_sgtable(dev, table.as_ptr(), dir, 0))?;
        }
        let mut mapping = KBox::new(
            // INVARIANT: It was mapped just now.
            Mapping {
                table,
                dev,
                dir,
                next: None,
            },
            GFP_KERNEL_ACCOUNT,
        )?;
        let table = mapping.table.as_ptr();
        let mut mappings = buffer.mappings.lock();
        mapping.next = mappings.take();
        *mappings = Some(mapping);
        Ok(table)
    };
    dmabuf::table_or_err(map())
}

/// # Safety
///
/// To be called by the core, with what `map_dma_buf` has returned.
unsafe extern "C" fn unmap_dma_buf(
    attachment: *mut bindings::dma_buf_attachment,
    table: *mut bindings::sg_table,
    _dir: bindings::dma_data_direction,
) {
    // SAFETY: The core passes an attachment of a buffer that we exported.
    let buffer = unsafe { dmabuf::data::<Buffer>((*attachment).dmabuf) };
    let mapping = take(&mut buffer.mappings.lock(), table);
    // This unmaps, when the lock is free again: a bounce buffer may have to be copied.
    drop(mapping);
}

/// Takes the mapping with that table out of a list.
fn take(
    mut list: &mut Option<KBox<Mapping>>,
    table: *mut bindings::sg_table,
) -> Option<KBox<Mapping>> {
    while list.as_mut()?.table.as_ptr() != table {
        list = &mut list.as_mut()?.next;
    }
    let mut mapping = list.take()?;
    *list = mapping.next.take();
    Some(mapping)
}

/// Syncs all that is mapped of the buffer.
///
/// # Safety
///
/// `buf` must be a buffer of ours.
unsafe fn sync(
    buf: *mut bindings::dma_buf,
    dir: bindings::dma_data_direction,
    whom: dmabuf::For,
) -> c_int {
    // SAFETY: `buf` is a buffer of ours, and those have a `Buffer`.
    let buffer = unsafe { dmabuf::data::<Buffer>(buf) };
    let mut mappings = buffer.mappings.lock();
    let mut next = &mut *mappings;
    while let Some(m) = next {
        // SAFETY: By the type invariants it is mapped for this device, in this direction.
        unsafe { whom.sync(m.dev, m.table.as_ptr(), m.dir, dir) };
        next = &mut m.next;
    }
    0
}

/// # Safety
///
/// To be called by the core.
unsafe extern "C" fn begin_cpu_access(
    buf: *mut bindings::dma_buf,
    dir: bindings::dma_data_direction,
) -> c_int {
    // SAFETY: The core passes a buffer of ours.
    from_result(|| unsafe {
        dmabuf::wait_for_devices(buf, dir)?;
        Ok(sync(buf, dir, dmabuf::For::Cpu))
    })
}

/// # Safety
///
/// To be called by the core.
unsafe extern "C" fn end_cpu_access(
    buf: *mut bindings::dma_buf,
    dir: bindings::dma_data_direction,
) -> c_int {
    // SAFETY: The core passes a buffer of ours.
    unsafe { sync(buf, dir, dmabuf::For::Device) }
}

/// # Safety
///
/// To be called by the core, under the mmap lock.
unsafe extern "C" fn mmap(
    buf: *mut bindings::dma_buf,
    vma: *mut bindings::vm_area_struct,
) -> c_int {
    // SAFETY: The core passes a buffer of ours, and a VMA that is being set up. It is never made a
    // mixed mapping. It holds the file of the buffer, so that the pages are released after the
    // mapping has gone. Caches have been cleaned of what is mapped past them.
    from_result(|| unsafe {
        let vma = VmaNew::from_raw(vma);
        let buffer = dmabuf::data::<Buffer>(buf);
        let pages = buffer.array.pages();
        if buffer.write_combine {
            write_combine(vma);
        }
        // `mmap()` of the buffer has looked. An importer maps it into a file of its own, which may
        // be writable where the buffer is not. Private mappings are refused as those of others are.
        if (*(*buf).file).f_flags & bindings::O_ACCMODE == bindings::O_RDONLY
            && vma.flags() & flags::SHARED != 0
        {
            map_pfns_ro(vma, pages, 0)?;
        } else {
            map_pfns(vma, pages, 0)?;
        }
        Ok(0)
    })
}

/// # Safety
///
/// To be called by the core, which counts: there is one at a time.
unsafe extern "C" fn vmap(buf: *mut bindings::dma_buf, map: *mut bindings::iosys_map) -> c_int {
    // SAFETY: The core passes a buffer of ours, and a map to be filled in.
    from_result(|| unsafe {
        let buffer = dmabuf::data::<Buffer>(buf);
        dmabuf::vmap_as(buffer.write_combine, buffer.array.pages(), &mut *map)?;
        Ok(0)
    })
}

/// # Safety
///
/// To be called by the core, for the last user of what `vmap` has filled in.
unsafe extern "C" fn vunmap(_buf: *mut bindings::dma_buf, map: *mut bindings::iosys_map) {
    // SAFETY: The core passes what `vmap` has filled in, for its last user.
    unsafe { dmabuf::vunmap(&*map) };
}

/// # Safety
///
/// To be called by the core, when the last file descriptor, mapping and importer has gone.
unsafe extern "C" fn release(buf: *mut bindings::dma_buf) {
    // SAFETY: The core passes a buffer of ours, for the last time. This frees the pages.
    drop(unsafe { dmabuf::release::<Buffer>(buf) });
}
