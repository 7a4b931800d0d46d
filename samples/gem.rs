// SPDX-License-Identifier: GPL-2.0

//! A DRM driver with the user interface of vgem: dumb buffers, PRIME, fences, and a render node.
//!
//! Its objects are composed of `pagekit_pages` and `pagekit_vma`. What DRM itself takes is in
//! `drm.rs`, what dma-bufs take in `dmabuf.rs`, fences in `fence.rs`. The policy of this driver,
//! which no helper knows of:
//!
//! * An object has its pages in its shmem file, or in swap. They are held, by references, from the
//!   first fault, device mapping or kernel mapping on, all at once. Nobody else has the file: held
//!   pages stay where they are, so that nothing is ever pinned, and `pagekit_pin` is not needed.
//! * Large objects have huge pages, where they can be had.
//! * CPU mappings are of PFNs, on fault, by huge pages where these fit, and addresses are chosen so
//!   that they do. Those of the device and of the dma-buf are alike: an object has one base, its
//!   fake offset, and page n is at base + n.
//! * A fault tries to reserve the object. If it can't, or the pages have to be got first, it lets
//!   go of the lock of the mm, waits, and is tried again.
//! * A shrinker evicts objects, the one that was used least recently first: it takes the pages out
//!   of all CPU mappings and lets go of them, so that reclaim can swap them out. The next fault
//!   brings them back. It leaves alone what devices or the kernel have mapped, what fences are
//!   pending for, and what is reserved.
//! * Pages are got as hard as may be, but nobody is killed for them: `ENOMEM` comes instead, and
//!   for a fault `SIGBUS`.
//! * Foreign buffers are attached and never mapped: there is no device that would use them. User
//!   space maps them by their own file, with the rights that this has.
//! * What devices have mapped is synced when CPU access begins and ends.
//! * With the parameter `write_combine`, the CPU doesn't cache new objects. shmem fills pages
//!   through caches, and swap reads them so. So the driver's own device has caches cleaned of pages
//!   that were got, before anybody has them, and of pages that go, when they are mapped nowhere. It
//!   is for devices that don't snoop: those that do see what is in caches.
//!
//! Lock order:
//!
//! 1. the mmap lock, or the lock of a VMA
//! 2. the reservation lock of an object, which all that an object has of its pages is under
//! 3. the list of fences of a file
//! 4. what memory reclaim takes; `i_mmap_rwsem` and the lock of the LRU list
//!
//! Memory is allocated under the reservation lock: so the shrinker, which runs in there, can only
//! try that lock. DRM does so in `drm_gem_lru_scan()`. No memory is allocated under the lock of the
//! LRU list.
//!
//! C: `drivers/gpu/drm/vgem/vgem_drv.c` and `drivers/gpu/drm/drm_gem_shmem_helper.c`.

use kernel::{
    bindings,
    device::{
        Bound,
        DeviceContext, //
    },
    drm::{
        self as kernel_drm,
        gem::BaseObject,
        ioctl::{
            DrmIoctlDescriptor,
            RENDER_ALLOW, //
        },
        DriverInfo,
        Registration,
        UnregisteredDevice, //
    },
    error::{
        from_result,
        to_result, //
    },
    faux,
    ioctl::{
        _IOW,
        _IOWR, //
    },
    mm::virt::VmaNew,
    prelude::*,
    str::as_char_ptr_in_const_context,
    sync::aref::ARef, //
};
use pagekit_pages::{
    PageArray,
    ShmemFlags, //
};
use pagekit_view::PageRef;
use pagekit_vma::{
    fault_pfns,
    huge_fault_pfns,
    setup_pfns,
    write_combine,
    VmFault, //
};

mod compat;
mod dmabuf;
mod drm;
mod fence;
mod shmem;

use compat::{
    DMA_BIDIRECTIONAL,
    DMA_TO_DEVICE, //
};
use drm::Reserved;
use fence::Fences;

module! {
    type: Module,
    name: "pagekit_gem",
    authors: ["The pagekit authors"],
    description: "pagekit sample: a GEM driver",
    license: "GPL",
    imports_ns: ["DMA_BUF"],
}

extern "C" {
    // Module parameters, see gem_shim.c. The strings are read only.
    static pagekit_gem_name: *const c_char;
    static pagekit_gem_huge: *const c_char;
    static pagekit_gem_write_combine: bool;
}

// --- The device -----------------------------------------------------------------------

/// What goes when the module does, in this order.
struct Module {
    _shrinker: drm::Shrinker,
    _registration: Registration<'static, Gem>,
    _parent: Pin<KBox<faux::Registration>>,
}

impl kernel::Module for Module {
    fn init(_module: &'static ThisModule) -> Result<Self> {
        // SAFETY: The parameter is a string.
        if unsafe { *pagekit_gem_name } == 0 {
            return Err(EINVAL);
        }
        let parent = faux::Registration::new(c"pagekit-gem", None)?;
        let parent = KBox::pin(parent, GFP_KERNEL_ACCOUNT)?;
        // SAFETY: The box stays where it is until the registration has gone, here and in `Module`.
        let bound: &'static faux::Device<Bound> =
            unsafe { &*core::ptr::from_ref((*parent).as_ref()) };
        let device = UnregisteredDevice::<Gem>::new(bound, drm::Lru::new())?;
        // If this fails, it goes after the shrinker.
        let _device = ARef::<kernel_drm::Device<Gem>>::from(&*device);
        // SAFETY: The parameters are strings, which stay as long as the module. The shrinker goes
        // before the registration, which has the device. The registration is dropped with `Module`.
        unsafe {
            let raw = drm::take_over(&device, pagekit_gem_name)?;
            if drm::use_huge_pages(raw, pagekit_gem_huge).is_err() {
                pr_warn!("no huge pages\n");
            }
            let shrinker = drm::Shrinker::new::<Gem>(raw)?;
            let data = Ok::<(), Error>(());
            let registration = Registration::new(bound.as_ref(), device, data, 0)?;
            Ok(Self {
                _shrinker: shrinker,
                _registration: registration,
                _parent: parent,
            })
        }
    }
}

/// The driver.
struct Gem;

#[vtable]
impl kernel_drm::Driver for Gem {
    type Data = drm::Lru;
    type RegistrationData<'a> = ();
    type Object = drm::Object<Self>;
    type File = Client;
    type ParentDevice<Ctx: DeviceContext> = faux::Device<Ctx>;

    // Its name is the parameter of the module.
    const INFO: DriverInfo = DriverInfo {
        major: 1,
        minor: 0,
        patchlevel: 0,
        name: c"pagekit-gem",
        desc: c"Virtual GEM provider",
    };
    const FEAT_RENDER: bool = true;
    // By their numbers, of which vgem leaves out the first one.
    const IOCTLS: &'static [DrmIoctlDescriptor] = &[
        pin_init::zeroed(),
        DrmIoctlDescriptor {
            cmd: _IOWR::<FenceAttach>(DRM, 0x41),
            flags: RENDER_ALLOW,
            func: Some(fence_attach),
            name: as_char_ptr_in_const_context(c"VGEM_FENCE_ATTACH"),
        },
        DrmIoctlDescriptor {
            cmd: _IOW::<FenceSignal>(DRM, 0x42),
            flags: RENDER_ALLOW,
            func: Some(fence_signal),
            name: as_char_ptr_in_const_context(c"VGEM_FENCE_SIGNAL"),
        },
    ];
}

/// An open file.
#[pin_data]
struct Client {
    #[pin]
    fences: Fences,
}

type File = kernel_drm::File<Client>;

impl kernel_drm::file::DriverFile for Client {
    type Driver = Gem;

    fn open(_device: &kernel_drm::Device<Gem>) -> Result<Pin<KBox<Self>>> {
        KBox::pin_init(
            pin_init!(Self { fences <- Fences::new() }),
            GFP_KERNEL_ACCOUNT,
        )
    }
}

impl drm::Driver for Gem {
    type Client = Client;
    type Attributes = Attributes;
    type Backing = Backing;

    const FUNCS: bindings::drm_gem_object_funcs = bindings::drm_gem_object_funcs {
        mmap: Some(mmap),
        vm_ops: VM_OPS,
        vmap: Some(vmap),
        vunmap: Some(vunmap),
        ..pin_init::zeroed()
    };

    fn dma_buf_ops() -> &'static bindings::dma_buf_ops {
        &OPS
    }

    fn evict(bo: &mut Reserved<'_, Self>) -> bool {
        if bo.backing().users != 0 || !bo.is_idle() {
            return false;
        }
        // Faults wait for the reservation lock.
        bo.zap();
        // Caches may have read ahead, and then have what is old: swap is not to read that.
        let dev = drm::device(bo);
        if let Some(table) = &mut bo.backing().table {
            // SAFETY: The table was filled for the device, which the object keeps. The pages are
            // mapped nowhere.
            if unsafe { table.clean(dev, DMA_BIDIRECTIONAL) }.is_err() {
                return false;
            }
        }
        bo.backing().table = None;
        // This marks them dirty, without a folio lock, which whoever allocates may hold.
        drop(bo.backing().pages.take());
        shmem::clear_unevictable(bo.file());
        bo.leave_lru();
        true
    }
}

static OPS: bindings::dma_buf_ops = bindings::dma_buf_ops {
    map_dma_buf: Some(map_dma_buf),
    unmap_dma_buf: Some(unmap_dma_buf),
    begin_cpu_access: Some(dmabuf::begin_cpu_access),
    end_cpu_access: Some(dmabuf::end_cpu_access),
    mmap: Some(bindings::drm_gem_dmabuf_mmap),
    vmap: Some(bindings::drm_gem_dmabuf_vmap),
    vunmap: Some(bindings::drm_gem_dmabuf_vunmap),
    release: Some(bindings::drm_gem_dmabuf_release),
    ..pin_init::zeroed()
};

const VM_OPS: &bindings::vm_operations_struct = &bindings::vm_operations_struct {
    open: Some(bindings::drm_gem_vm_open),
    close: Some(bindings::drm_gem_vm_close),
    fault: Some(fault),
    huge_fault: Some(huge_fault),
    ..pin_init::zeroed()
};

// --- Its objects ----------------------------------------------------------------------

/// What an object is made as.
struct Attributes {
    /// Whether no mapping of the CPU is cached. Caches are cleaned of its pages, then.
    write_combine: bool,
}

impl Default for Attributes {
    fn default() -> Self {
        // SAFETY: The parameter is a bool that may be written to at any time.
        let write_combine = unsafe { (&raw const pagekit_gem_write_combine).read_volatile() };
        Self { write_combine }
    }
}

/// What an object has of its pages, under its reservation lock.
#[derive(Default)]
struct Backing {
    pages: Option<PageArray>,
    /// The same for the driver's own device, if caches have to be cleaned of them: a shrinker could
    /// not allocate it.
    table: Option<dmabuf::SgTable>,
    /// Device mappings and kernel mappings.
    users: usize,
}

/// Has the pages held, and returns them.
fn hold<'b>(bo: &'b mut Reserved<'_, Gem>) -> Result<&'b [PageRef<'b>]> {
    if bo.backing().pages.is_none() {
        // Before, so that new pages are marked at once.
        shmem::set_unevictable(bo.file());
        let (pages, table) = get(bo)
            .inspect_err(|_| shmem::clear_unevictable(bo.file()))
            .map_err(shmem::enomem)?;
        bo.backing().pages = Some(pages);
        bo.backing().table = table;
    }
    if bo.backing().users == 0 {
        bo.move_to_lru();
    }
    Ok(bo.backing().pages.as_ref().map_or(&[], PageArray::pages))
}

/// Gets the pages, with caches cleaned of them if that is needed.
fn get(bo: &Reserved<'_, Gem>) -> Result<(PageArray, Option<dmabuf::SgTable>)> {
    let flags = ShmemFlags::WRITE | ShmemFlags::RETRY_MAYFAIL;
    let array = PageArray::from_shmem(bo.file(), 0, drm::pages(bo), flags)?;
    if !bo.attributes.write_combine {
        return Ok((array, None));
    }
    let (mut table, dev) = (dmabuf::SgTable::empty(), drm::device(bo));
    // SAFETY: The object keeps the device. Nobody has the pages yet.
    unsafe {
        table.fill(array.pages(), dev)?;
        table.clean(dev, DMA_TO_DEVICE)?;
    }
    Ok((array, Some(table)))
}

/// One user more has the pages where they are, if `with` succeeds with them.
fn use_pages<T>(
    bo: &mut Reserved<'_, Gem>,
    with: impl FnOnce(&[PageRef<'_>]) -> Result<T>,
) -> Result<T> {
    let result = with(hold(bo)?)?;
    bo.backing().users += 1;
    bo.leave_lru();
    Ok(result)
}

/// One less does.
fn unuse_pages(bo: &mut Reserved<'_, Gem>) {
    bo.backing().users -= 1;
    if bo.backing().users == 0 {
        bo.move_to_lru();
    }
}

// What the DRM core calls.

/// # Safety
///
/// To be called by the core, for an object that is not imported, and a VMA that is being set up.
unsafe extern "C" fn mmap(
    obj: *mut bindings::drm_gem_object,
    vma: *mut bindings::vm_area_struct,
) -> c_int {
    // SAFETY: The core passes an object of ours, and a VMA that is being set up and is never made a
    // mixed mapping. The file is the driver's own: whoever has the object may write to its pages.
    // Caches are cleaned of what is mapped past them, before it is.
    from_result(|| unsafe {
        let (obj, vma) = (drm::object::<Gem>(obj), VmaNew::from_raw(vma));
        if obj.attributes.write_combine {
            write_combine(vma);
        }
        setup_pfns(vma, drm::pages(obj), drm::base(obj))?;
        Ok(0)
    })
}

/// Handles a fault with `map`.
///
/// # Safety
///
/// To be called in a fault operation of a VMA that [`mmap`] has set up.
unsafe fn any_fault(
    vmf: *mut bindings::vm_fault,
    map: impl FnOnce(&VmFault, &[PageRef<'_>], usize) -> bindings::vm_fault_t,
) -> bindings::vm_fault_t {
    // SAFETY: The kernel passes a fault that is being handled in a VMA of an object of ours.
    let obj = unsafe { drm::object_of_fault::<Gem>(vmf) };
    let mut reserved = Reserved::try_lock(obj);
    let has_pages = |bo: &mut Reserved<'_, Gem>| bo.backing().pages.is_some();
    if reserved.as_mut().is_none_or(|bo| !has_pages(bo)) {
        drop(reserved);
        // SAFETY: The fault is being handled, and nobody uses it after this.
        let waited = unsafe {
            drm::wait_for_fault(vmf, obj, |bo| {
                // If it fails now, it does when it is tried again.
                let _ = hold(bo);
            })
        };
        if let Some(result) = waited {
            return result;
        }
        reserved = Reserved::lock_interruptible(obj).ok();
    }
    let Some(mut bo) = reserved else {
        // There is a signal to be handled first.
        return bindings::vm_fault_reason_VM_FAULT_NOPAGE;
    };
    let Ok(pages) = hold(&mut bo) else {
        // Also if memory is short. `VM_FAULT_OOM` would have it tried again, for ever.
        return bindings::vm_fault_reason_VM_FAULT_SIGBUS;
    };
    // SAFETY: The fault is still being handled.
    map(unsafe { VmFault::from_raw(vmf) }, pages, drm::base(obj))
}

/// # Safety
///
/// To be called by the kernel, for a fault in a VMA that [`mmap`] has set up.
unsafe extern "C" fn fault(vmf: *mut bindings::vm_fault) -> bindings::vm_fault_t {
    // SAFETY: The kernel passes such a fault. Before the pages go, their mappings do, under the
    // lock that is held where they are mapped. Whoever has the object may write to them.
    unsafe { any_fault(vmf, |vmf, pages, base| fault_pfns(vmf, pages, base)) }
}

/// # Safety
///
/// To be called by the kernel, for a fault in a VMA that [`mmap`] has set up.
unsafe extern "C" fn huge_fault(
    vmf: *mut bindings::vm_fault,
    order: c_uint,
) -> bindings::vm_fault_t {
    // SAFETY: The kernel passes such a fault. Before the pages go, their mappings do, under the
    // lock that is held where they are mapped. Whoever has the object may write to them. They are
    // no memory of a process.
    unsafe {
        any_fault(vmf, |vmf, pages, base| {
            huge_fault_pfns(vmf, order, pages, base)
        })
    }
}

/// # Safety
///
/// To be called by the core, under the reservation lock.
unsafe extern "C" fn vmap(
    obj: *mut bindings::drm_gem_object,
    map: *mut bindings::iosys_map,
) -> c_int {
    // SAFETY: The core passes an object of ours that is reserved, and a map to be filled in.
    from_result(|| unsafe {
        let bo = &mut Reserved::held(drm::object::<Gem>(obj));
        match bo.import() {
            Some(import) => to_result(bindings::dma_buf_vmap(import.buf(), map))?,
            None => {
                let write_combine = bo.attributes.write_combine;
                use_pages(bo, |pages| dmabuf::vmap_as(write_combine, pages, &mut *map))?;
            }
        }
        Ok(0)
    })
}

/// # Safety
///
/// To be called by the core, under the reservation lock.
unsafe extern "C" fn vunmap(obj: *mut bindings::drm_gem_object, map: *mut bindings::iosys_map) {
    // SAFETY: The core passes an object of ours that is reserved, and what `vmap` has filled in.
    unsafe {
        let bo = &mut Reserved::held(drm::object::<Gem>(obj));
        if let Some(import) = bo.import() {
            return bindings::dma_buf_vunmap(import.buf(), map);
        }
        dmabuf::vunmap(&*map);
        unuse_pages(bo);
    }
}

// What user space calls: the ioctls of vgem.

const DRM: u32 = 'd' as u32;
const FENCE_WRITE: u32 = 1;

/// `struct drm_vgem_fence_attach`.
#[repr(C)]
struct FenceAttach {
    handle: u32,
    flags: u32,
    out_fence: u32,
    pad: u32,
}

/// `struct drm_vgem_fence_signal`.
#[repr(C)]
struct FenceSignal {
    fence: u32,
    flags: u32,
}

/// # Safety
///
/// To be called by the core.
unsafe extern "C" fn fence_attach(
    _dev: *mut bindings::drm_device,
    data: *mut c_void,
    file: *mut bindings::drm_file,
) -> c_int {
    // SAFETY: The core passes a file of ours, and arguments that nobody else uses.
    from_result(|| unsafe {
        let (arg, file) = (&mut *data.cast::<FenceAttach>(), File::from_raw(file));
        if arg.flags & !FENCE_WRITE != 0 || arg.pad != 0 {
            return Err(EINVAL);
        }
        let obj = drm::Object::<Gem>::lookup_handle(file, arg.handle)?;
        let _reserved = Reserved::lock_interruptible(&obj)?;
        let (resv, write) = (Reserved::resv(&obj), arg.flags & FENCE_WRITE != 0);
        arg.out_fence = file.inner().fences.add(resv, write)?;
        Ok(0)
    })
}

/// # Safety
///
/// To be called by the core.
unsafe extern "C" fn fence_signal(
    _dev: *mut bindings::drm_device,
    data: *mut c_void,
    file: *mut bindings::drm_file,
) -> c_int {
    // SAFETY: The core passes a file of ours, and arguments that nobody else uses.
    from_result(|| unsafe {
        let (arg, file) = (&*data.cast::<FenceSignal>(), File::from_raw(file));
        if arg.flags != 0 {
            return Err(EINVAL);
        }
        file.inner().fences.signal(arg.fence)?;
        Ok(0)
    })
}

// What the dma-buf core calls, with buffers that were exported with `OPS`.

/// # Safety
///
/// To be called by the core, under the reservation lock.
unsafe extern "C" fn map_dma_buf(
    attachment: *mut bindings::dma_buf_attachment,
    dir: bindings::dma_data_direction,
) -> *mut bindings::sg_table {
    // SAFETY: The core passes an attachment of a buffer of an object of ours, which is reserved.
    // While it has users, its pages stay.
    dmabuf::table_or_err(unsafe {
        let obj = drm::object::<Gem>((*(*attachment).dmabuf).priv_.cast());
        use_pages(&mut Reserved::held(obj), |pages| {
            dmabuf::map(attachment, pages, dir)
        })
    })
}

/// # Safety
///
/// To be called by the core, under the reservation lock.
unsafe extern "C" fn unmap_dma_buf(
    attachment: *mut bindings::dma_buf_attachment,
    table: *mut bindings::sg_table,
    dir: bindings::dma_data_direction,
) {
    // SAFETY: The core passes what `map_dma_buf` has returned for this attachment of a buffer of an
    // object of ours, which is reserved.
    unsafe {
        dmabuf::unmap(attachment, table, dir);
        let obj = drm::object::<Gem>((*(*attachment).dmabuf).priv_.cast());
        unuse_pages(&mut Reserved::held(obj));
    }
}
