// SPDX-License-Identifier: GPL-2.0

//! What a GEM driver with pages of its own needs and `kernel::drm` lacks, one to one over the C
//! calls.
//!
//! Like `dmabuf.rs`, it counts as the driver's own code: no policy, no lock of its own. Static
//! inlines are in `drm_shim.h`.
//!
//! Of `kernel::drm` it takes the device and its registration, files, objects with their shmem file
//! and their references, handles and fake offsets. What a later `kernel::drm` would have to offer
//! for this file to go:
//!
//! * Operations of one's own. `AllocImpl`, which has them, is sealed, and its two implementations
//!   leave out `dumb_create` and `gem_prime_import`. So [`take_over`] copies the `drm_driver`, the
//!   `file_operations` and the `drm_gem_object_funcs` that `kernel::drm` has made, and adds those
//!   of the driver. Likewise, a name that is not known at compile time.
//! * `mmap` and `get_unmapped_area` at an offset into an object. C's `drm_gem_mmap()` finds an
//!   object by the offset of its first page only.
//! * `drm_gem_private_object_init()`: an import has a shmem file that nobody uses.
//! * `Import` and `Bo::import`: an object that stands for a dma-buf.
//! * The reservation lock of an object as a guard ([`Reserved`]), data that it protects
//!   ([`Driver::Backing`]), and the fault that waits for it ([`wait_for_fault`]).
//! * `drm_gem_lru` and shrinkers: [`Lru`] and [`Shrinker`].
//! * The shmem file of an object: its pages' GFP mask, and whether reclaim looks at them.
//! * `drm_gem_huge_mnt_create()`.
//! * What `/proc/PID/fdinfo` shows: `status` and `rss` of an object, `show_fdinfo` of the driver.
//! * Ioctls whose arguments `uapi` doesn't have: `declare_drm_ioctls!` takes no others. And fences,
//!   which are in `fence.rs`.
//! * Raw pointers of the device and of open files, which are private to it.

use crate::dmabuf;
use core::{
    cell::UnsafeCell,
    mem::ManuallyDrop,
    ops::Deref,
    ptr::{
        null_mut,
        NonNull, //
    }, //
};
use kernel::{
    bindings,
    drm::{
        self,
        gem::{
            self,
            BaseObject,
            IntoGEMObject, //
        },
        UnregisteredDevice, //
    },
    error::{
        from_err_ptr,
        from_result,
        to_result, //
    },
    fs::LocalFile,
    mm::virt::VmaNew,
    page::{
        page_align,
        PAGE_SHIFT,
        PAGE_SIZE, //
    },
    prelude::*,
    sync::{
        aref::ARef,
        SetOnce, //
    },
    types::{
        NotThreadSafe,
        Opaque, //
    }, //
};
use pagekit_vma::zap;

#[allow(
    improper_ctypes,
    reason = "Some configurations have fields of size zero in structs that are only pointed to."
)]
extern "C" {
    // drivers/gpu/drm/drm_dumb_buffers.c exports it, `bindings` does not have it.
    fn drm_mode_size_dumb(
        dev: *mut bindings::drm_device,
        args: *mut bindings::drm_mode_create_dumb,
        hw_pitch_align: c_ulong,
        hw_size_align: c_ulong,
    ) -> c_int;

    // See drm_shim.h and import_shim.h.
    fn pagekit_import_lock_interruptible(resv: *mut bindings::dma_resv) -> c_int;
    fn pagekit_import_dma_mask(dev: *mut bindings::device) -> c_int;
    fn pagekit_import_trylock(resv: *mut bindings::dma_resv) -> bool;
    fn pagekit_drm_huge_mnt(dev: *mut bindings::drm_device, value: *const c_char) -> c_int;
    fn pagekit_drm_lock_lookup(manager: *mut bindings::drm_vma_offset_manager);
    fn pagekit_drm_unlock_lookup(manager: *mut bindings::drm_vma_offset_manager);
    fn pagekit_drm_get_unless_zero(obj: *mut bindings::drm_gem_object) -> bool;
    fn pagekit_drm_status(obj: *mut bindings::drm_gem_object) -> bindings::drm_gem_object_status;
    fn pagekit_drm_unlock_fault(vmf: *mut bindings::vm_fault);
    fn pagekit_drm_keep_in_place(mapping: *mut bindings::address_space);
}

/// A driver whose objects are composed here.
pub(crate) trait Driver:
    drm::Driver<Object = Object<Self>, File = Self::Client, Data = Lru> + Sized + 'static
{
    /// `drm::Driver::File`, so that handles can be made.
    type Client: drm::file::DriverFile<Driver = Self>;

    /// What an object is made as, and stays.
    type Attributes: Default + Send + Sync;

    /// What an object has under its reservation lock.
    type Backing: Default + Send;

    /// What is added to the object operations that `kernel::drm` and this file have. `mmap` is only
    /// called for objects that are not imported.
    const FUNCS: bindings::drm_gem_object_funcs;

    /// The operations of the dma-bufs of objects.
    fn dma_buf_ops() -> &'static bindings::dma_buf_ops;

    /// Gives the pages of an object back and takes it off the LRU list, if that can be done.
    ///
    /// Called by a shrinker: must not allocate, and takes no lock that somebody holds who does.
    fn evict(bo: &mut Reserved<'_, Self>) -> bool;
}

pub(crate) type Object<D> = gem::Object<Bo<D>>;

/// What an object has beyond C's `drm_gem_object`.
pub(crate) struct Bo<D: Driver> {
    /// Which buffer it stands for, unless it has pages of its own.
    import: Option<Import>,
    pub(crate) attributes: D::Attributes,
    /// Only to be used through [`Reserved`].
    backing: UnsafeCell<D::Backing>,
}

// SAFETY: A buffer is used by any thread, and what is in the cell may be sent.
unsafe impl<D: Driver> Send for Bo<D> {}
// SAFETY: Who uses what is in the cell holds the reservation lock. The attributes are `Sync`.
unsafe impl<D: Driver> Sync for Bo<D> {}

impl<D: Driver> gem::DriverObject for Bo<D> {
    type Driver = D;
    type Args = Option<Import>;

    fn new(
        _dev: &drm::Device<D>,
        _size: usize,
        import: Option<Import>,
    ) -> impl PinInit<Self, Error> {
        Ok(Self {
            import,
            attributes: D::Attributes::default(),
            backing: UnsafeCell::new(D::Backing::default()),
        })
    }
}

impl<D: Driver> Bo<D> {
    /// The buffer that it stands for, if it is an import.
    pub(crate) fn import(&self) -> Option<&Import> {
        self.import.as_ref()
    }
}

// --- Operations ---------------------------------------------------------------------

/// A table of operations, which are made when the device is and stay as they are.
struct Table<T>(T);

// SAFETY: It is constant.
unsafe impl<T> Send for Table<T> {}
// SAFETY: It is constant, so that all threads only read it.
unsafe impl<T> Sync for Table<T> {}

// They are those of the one device that a module has, and stay as long as the module.
static FUNCS: SetOnce<Table<bindings::drm_gem_object_funcs>> = SetOnce::new();
static FOPS: SetOnce<Table<bindings::file_operations>> = SetOnce::new();
static DRIVER: SetOnce<Table<bindings::drm_driver>> = SetOnce::new();

/// Sets a table, and returns it. The second device of a module gets `EBUSY`.
fn set<T>(table: &'static SetOnce<Table<T>>, value: T) -> Result<&'static T> {
    if !table.populate(Table(value)) {
        return Err(EBUSY);
    }
    table.as_ref().map(|table| &table.0).ok_or(EBUSY)
}

/// Adds the operations of `D` to a device that is not registered yet, gives it a name, and lets it
/// map any memory.
///
/// # Safety
///
/// `name` must be a string that stays as long as the module.
pub(crate) unsafe fn take_over<D: Driver>(
    dev: &UnregisteredDevice<D>,
    name: *const c_char,
) -> Result<NonNull<bindings::drm_device>> {
    // An object knows its device and its operations, which are private otherwise.
    let probe = Object::<D>::new(dev, PAGE_SIZE, None)?;
    // SAFETY: The object exists, and so do its device and all the operations. Nobody else uses the
    // device before it is registered.
    unsafe {
        let obj = IntoGEMObject::as_raw(&*probe);
        let dev = NonNull::new((*obj).dev).ok_or(ENODEV)?;
        to_result(pagekit_import_dma_mask((*dev.as_ptr()).dev))?;
        let theirs = *(*obj).funcs;
        set(
            &FUNCS,
            bindings::drm_gem_object_funcs {
                free: theirs.free,
                open: theirs.open,
                close: theirs.close,
                export: Some(export::<D>),
                status: Some(pagekit_drm_status),
                rss: Some(rss),
                ..D::FUNCS
            },
        )?;
        let theirs = *(*dev.as_ptr()).driver;
        let fops = set(
            &FOPS,
            bindings::file_operations {
                mmap: Some(mmap::<D>),
                get_unmapped_area: Some(get_unmapped_area::<D>),
                show_fdinfo: Some(bindings::drm_show_fdinfo),
                ..*theirs.fops
            },
        )?;
        (*dev.as_ptr()).driver = set(
            &DRIVER,
            bindings::drm_driver {
                name: name.cast_mut(),
                dumb_create: Some(dumb_create::<D>),
                gem_prime_import: Some(prime_import::<D>),
                show_fdinfo: Some(bindings::drm_show_memory_stats),
                fops,
                ..theirs
            },
        )?;
        Ok(dev)
    }
}

/// `drm_gem_huge_mnt_create()`: objects of the device have huge pages where they can be had.
///
/// # Safety
///
/// `dev` must be a device that is not registered yet, and `value` a string.
pub(crate) unsafe fn use_huge_pages(
    dev: NonNull<bindings::drm_device>,
    value: *const c_char,
) -> Result {
    // SAFETY: The caller promises a device that is not registered yet, and a string.
    to_result(unsafe { pagekit_drm_huge_mnt(dev.as_ptr(), value) })
}

/// A new object. It has a fake offset unless it is imported: whoever has a buffer that is read only
/// could map it by that for writing.
fn create<D: Driver>(
    dev: &drm::Device<D>,
    size: usize,
    import: Option<Import>,
) -> Result<ARef<Object<D>>> {
    let obj = Object::<D>::new(dev, size, import)?;
    if obj.import().is_none() {
        obj.create_mmap_offset()?;
    }
    let raw = IntoGEMObject::as_raw(&*obj);
    let funcs = &FUNCS.as_ref().ok_or(ENODEV)?.0;
    // SAFETY: Nobody else has the object yet. It has a shmem file, and that a mapping.
    unsafe {
        (*raw).funcs = funcs;
        pagekit_drm_keep_in_place((*(*raw).filp).f_mapping);
    }
    Ok(obj)
}

/// # Safety
///
/// To be called by the DRM core, for a device and a file of `D`.
unsafe extern "C" fn dumb_create<D: Driver>(
    file: *mut bindings::drm_file,
    dev: *mut bindings::drm_device,
    args: *mut bindings::drm_mode_create_dumb,
) -> c_int {
    // SAFETY: The core passes a device and a file of ours, and arguments that nobody else uses.
    from_result(|| unsafe {
        to_result(drm_mode_size_dumb(dev, args, 0, 0))?;
        // Arguments lie on the stack of drm_ioctl(), in an array of bytes: aligned as one.
        let size = usize::try_from((&raw const (*args).size).read_unaligned())?;
        dmabuf::check_fits_ram(size >> PAGE_SHIFT)?;
        let dev: &drm::Device<D> = drm::Device::from_raw(dev);
        let file: &drm::File<D::Client> = drm::File::from_raw(file);
        let handle = create::<D>(dev, size, None)?.create_handle(file)?;
        (&raw mut (*args).handle).write_unaligned(handle);
        Ok(0)
    })
}

/// # Safety
///
/// To be called by the DRM core, for an object of `D` that is not imported.
unsafe extern "C" fn export<D: Driver>(
    obj: *mut bindings::drm_gem_object,
    flags: c_int,
) -> *mut bindings::dma_buf {
    // SAFETY: The core passes an object that exists, and so its device does. This takes the
    // references that the release operation gives back.
    unsafe {
        let mut info = bindings::dma_buf_export_info {
            exp_name: (*(*(*obj).dev).driver).name,
            owner: (*(*(*(*obj).dev).driver).fops).owner,
            ops: D::dma_buf_ops(),
            size: (*obj).size,
            flags,
            resv: (*obj).resv,
            priv_: obj.cast(),
        };
        bindings::drm_gem_dmabuf_export((*obj).dev, &mut info)
    }
}

/// # Safety
///
/// To be called by the DRM core, for a device of `D`.
unsafe extern "C" fn prime_import<D: Driver>(
    dev: *mut bindings::drm_device,
    buf: *mut bindings::dma_buf,
) -> *mut bindings::drm_gem_object {
    let import = || -> Result<*mut bindings::drm_gem_object> {
        // SAFETY: The core passes a device of ours, and a buffer on which it has a reference. With
        // our operations it has an object of ours, on which it has a reference.
        unsafe {
            let own = (*buf).priv_.cast::<bindings::drm_gem_object>();
            if core::ptr::eq((*buf).ops, D::dma_buf_ops()) && (*own).dev == dev {
                bindings::drm_gem_object_get(own);
                return Ok(own);
            }
            let import = Import::new(buf, (*dev).dev)?;
            let attachment = import.0.as_ptr();
            let dev = drm::Device::from_raw(dev);
            let obj = create::<D>(dev, page_align((*buf).size).ok_or(EINVAL)?, Some(import))?;
            let raw = IntoGEMObject::as_raw(&*obj);
            (*raw).import_attach = attachment;
            (*raw).resv = (*buf).resv;
            Ok(IntoGEMObject::as_raw(ARef::into_raw(obj).as_ref()))
        }
    };
    import().unwrap_or_else(|e| e.to_ptr())
}

/// The object whose fake offsets have so many pages at `pgoff`, for a file that has a handle of it.
///
/// # Safety
///
/// `file` must be an open file of a device of `D`.
unsafe fn lookup<D: Driver>(
    file: *mut bindings::file,
    pgoff: usize,
    pages: usize,
) -> Result<ARef<Object<D>>> {
    // SAFETY: An open file has a `drm_file`, and that the device, whose objects are all in the
    // manager while they exist: under its lock they can't go. One whose references have gone is
    // left alone.
    unsafe {
        let client = (*file).private_data.cast::<bindings::drm_file>();
        let manager = (*(*(*client).minor).dev).vma_offset_manager;
        pagekit_drm_lock_lookup(manager);
        let node = bindings::drm_vma_offset_lookup_locked(manager, pgoff, pages);
        let found = NonNull::new(node)
            .map(|node| kernel::container_of!(node.as_ptr(), bindings::drm_gem_object, vma_node))
            .filter(|obj| pagekit_drm_get_unless_zero(*obj));
        pagekit_drm_unlock_lookup(manager);
        let obj = found.ok_or(EINVAL)?;
        let obj = ARef::from_raw(NonNull::from(object::<D>(obj)));
        if !bindings::drm_vma_node_is_allowed(node, client) {
            return Err(EACCES);
        }
        Ok(obj)
    }
}

/// # Safety
///
/// To be called by the kernel, for an open file of a device of `D` and a VMA that is being set up.
unsafe extern "C" fn mmap<D: Driver>(
    file: *mut bindings::file,
    vma: *mut bindings::vm_area_struct,
) -> c_int {
    // SAFETY: The kernel passes a file of ours, and a VMA that is being set up. If this succeeds,
    // the VMA owns the reference, which its close operation gives back.
    from_result(|| unsafe {
        let new = VmaNew::from_raw(vma);
        let pages = (new.end() - new.start()) >> PAGE_SHIFT;
        let obj = lookup::<D>(file, (*vma).vm_pgoff, pages)?;
        let raw = IntoGEMObject::as_raw(&*obj);
        let mmap = D::FUNCS.mmap.ok_or(EINVAL)?;
        (*vma).vm_ops = D::FUNCS.vm_ops;
        to_result(mmap(raw, vma))?;
        (*vma).vm_private_data = raw.cast();
        let _ = ARef::into_raw(obj);
        Ok(0)
    })
}

/// How many bytes of an object are in memory, held or not: what `/proc/PID/fdinfo` shows.
///
/// # Safety
///
/// To be called by the DRM core, for an object with a shmem file.
unsafe extern "C" fn rss(obj: *mut bindings::drm_gem_object) -> usize {
    // SAFETY: The core passes an object that exists, and so its file does. The number may be out of
    // date.
    unsafe { (&raw const (*(*(*obj).filp).f_mapping).nrpages).read_volatile() << PAGE_SHIFT }
}

/// Addresses that have the alignment of huge pages where the object has.
///
/// # Safety
///
/// To be called by the kernel, for an open file of a device of `D`.
unsafe extern "C" fn get_unmapped_area<D: Driver>(
    file: *mut bindings::file,
    addr: c_ulong,
    len: c_ulong,
    pgoff: c_ulong,
    flags: c_ulong,
) -> c_ulong {
    // SAFETY: The kernel passes a file of ours. The shmem file of the object and its operations
    // exist while that does.
    unsafe {
        if let Ok(obj) = lookup::<D>(file, pgoff, len >> PAGE_SHIFT) {
            let shmem = (*IntoGEMObject::as_raw(&*obj)).filp;
            if let Some(get) = (*(*shmem).f_op).get_unmapped_area {
                return get(shmem, addr, len, pgoff - base(&obj), flags);
            }
        }
        bindings::mm_get_unmapped_area(file, addr, len, 0, flags)
    }
}

// --- Objects ------------------------------------------------------------------------

/// A foreign buffer that the device is attached to, `dma_buf_detach()` and `dma_buf_put()` on drop.
///
/// # Invariants
///
/// It is an attachment, of which nothing is mapped, with a reference on its buffer.
pub(crate) struct Import(NonNull<bindings::dma_buf_attachment>);

impl Import {
    /// # Safety
    ///
    /// There must be a reference on `buf`, and `dev` must stay for as long as this.
    unsafe fn new(buf: *mut bindings::dma_buf, dev: *mut bindings::device) -> Result<Self> {
        // SAFETY: The caller promises a buffer and a device. The reference is taken here.
        unsafe {
            let attachment = from_err_ptr(bindings::dma_buf_attach(buf, dev))?;
            bindings::get_file((*buf).file);
            // INVARIANT: It was attached just now. The kernel returns no null.
            Ok(Self(NonNull::new_unchecked(attachment)))
        }
    }

    pub(crate) fn buf(&self) -> *mut bindings::dma_buf {
        // SAFETY: By the type invariants, it is an attachment.
        unsafe { (*self.0.as_ptr()).dmabuf }
    }
}

impl Drop for Import {
    fn drop(&mut self) {
        let buf = self.buf();
        // SAFETY: By the type invariants, it is attached, not mapped, and owns a reference.
        unsafe {
            bindings::dma_buf_detach(buf, self.0.as_ptr());
            bindings::dma_buf_put(buf);
        }
    }
}

/// The object that the DRM core passes.
///
/// # Safety
///
/// `obj` must be an object of a device of `D`, which stays for `'a`.
pub(crate) unsafe fn object<'a, D: Driver>(obj: *mut bindings::drm_gem_object) -> &'a Object<D> {
    // SAFETY: All objects of such a device are those of `create`.
    unsafe { IntoGEMObject::from_raw(obj) }
}

/// The fake offset of an object that is not imported, in pages: the base of its mappings.
pub(crate) fn base<D: Driver>(obj: &Object<D>) -> usize {
    // SAFETY: The object exists. Its offset was made with it and never changes.
    unsafe { (*IntoGEMObject::as_raw(obj)).vma_node.vm_node.start as usize }
}

/// The device that the DRM device is of.
pub(crate) fn device<D: Driver>(obj: &Object<D>) -> *mut bindings::device {
    // SAFETY: The object keeps its DRM device, and that the device.
    unsafe { (*(*IntoGEMObject::as_raw(obj)).dev).dev }
}

/// How many pages an object has.
pub(crate) fn pages<D: Driver>(obj: &Object<D>) -> usize {
    obj.size() >> PAGE_SHIFT
}

/// The reservation lock of an object is held, `dma_resv_unlock()` on drop.
///
/// # Invariants
///
/// It is held by this thread, which has no other of these for the object.
pub(crate) struct Reserved<'a, D: Driver>(&'a Object<D>, NotThreadSafe);

impl<'a, D: Driver> Reserved<'a, D> {
    pub(crate) fn resv(obj: &Object<D>) -> *mut bindings::dma_resv {
        // SAFETY: The object exists, and has a reservation lock.
        unsafe { (*IntoGEMObject::as_raw(obj)).resv }
    }

    /// `dma_resv_trylock()`.
    pub(crate) fn try_lock(obj: &'a Object<D>) -> Option<Self> {
        // SAFETY: The object exists, and with it its reservation lock.
        unsafe { pagekit_import_trylock(Self::resv(obj)) }
            // INVARIANT: It was locked just now.
            .then(|| Self(obj, NotThreadSafe))
    }

    /// `dma_resv_lock_interruptible()`.
    pub(crate) fn lock_interruptible(obj: &'a Object<D>) -> Result<Self> {
        // SAFETY: The object exists, and with it its reservation lock.
        to_result(unsafe { pagekit_import_lock_interruptible(Self::resv(obj)) })?;
        // INVARIANT: It was locked just now.
        Ok(Self(obj, NotThreadSafe))
    }

    /// In an operation that is called under the lock, which stays locked.
    ///
    /// # Safety
    ///
    /// The lock must be held by this thread for `'a`, which must have no other of these.
    pub(crate) unsafe fn held(obj: &'a Object<D>) -> ManuallyDrop<Self> {
        // INVARIANT: As the caller promises.
        ManuallyDrop::new(Self(obj, NotThreadSafe))
    }

    pub(crate) fn backing(&mut self) -> &mut D::Backing {
        // SAFETY: By the type invariants, nobody else has the lock, and this thread no other
        // `Reserved`, which is borrowed for as long as what this returns.
        unsafe { &mut *self.0.backing.get() }
    }

    /// The shmem file.
    pub(crate) fn file(&self) -> &'a LocalFile {
        // SAFETY: The object has one, for which there is no file descriptor, until it goes.
        unsafe { LocalFile::from_raw_file((*IntoGEMObject::as_raw(self.0)).filp) }
    }

    /// Whether devices are done with it.
    pub(crate) fn is_idle(&self) -> bool {
        let usage = bindings::dma_resv_usage_DMA_RESV_USAGE_BOOKKEEP;
        // SAFETY: The object exists, and with it its reservation lock.
        unsafe { bindings::dma_resv_test_signaled(Self::resv(self.0), usage) }
    }

    /// Takes all of its pages out of all mappings: those of the device, and those of its dma-buf,
    /// which DRM has share one `address_space` and one base. May be called by a shrinker.
    pub(crate) fn zap(&self) {
        // SAFETY: The object keeps its device, and that an inode.
        unsafe {
            let dev = (*IntoGEMObject::as_raw(self.0)).dev;
            let mapping = (*(*dev).anon_inode).i_mapping;
            zap(mapping, 0..pages(self.0), base(self.0));
        }
    }

    /// `drm_gem_lru_move_tail()`: it is the last one that a shrinker looks at.
    pub(crate) fn move_to_lru(&self) {
        let lru: &Lru = self.0.dev();
        // SAFETY: Both exist, and the object leaves the list before it goes, and that before the
        // device.
        unsafe {
            bindings::drm_gem_lru_move_tail(lru.list.get(), IntoGEMObject::as_raw(self.0));
        }
    }

    /// `drm_gem_lru_remove()`: no shrinker looks at it.
    pub(crate) fn leave_lru(&self) {
        // SAFETY: The object exists.
        unsafe { bindings::drm_gem_lru_remove(IntoGEMObject::as_raw(self.0)) };
    }
}

impl<D: Driver> Deref for Reserved<'_, D> {
    type Target = Object<D>;

    fn deref(&self) -> &Object<D> {
        self.0
    }
}

impl<D: Driver> Drop for Reserved<'_, D> {
    fn drop(&mut self) {
        // SAFETY: By the type invariants, it is locked.
        unsafe { bindings::dma_resv_unlock(Self::resv(self.0)) };
    }
}

/// The object that a fault is in.
///
/// # Safety
///
/// `vmf` must be a fault that is being handled, in a VMA of an object of `D`.
pub(crate) unsafe fn object_of_fault<'a, D: Driver>(vmf: *mut bindings::vm_fault) -> &'a Object<D> {
    // SAFETY: The VMA has the object for its private data, and a reference on it.
    unsafe { object((*(*vmf).__bindgen_anon_1.vma).vm_private_data.cast()) }
}

/// Has a fault tried again when the object can be reserved, without the lock of the mm or VMA
/// meanwhile: others of the process can go on. `ready` is called when it is reserved. `None` if the
/// kernel doesn't want that, and the lock is still held.
///
/// # Safety
///
/// `vmf` must be a fault that is being handled, in a VMA of `obj`. If this returns something, the
/// operation must return that, and use the fault no more.
pub(crate) unsafe fn wait_for_fault<D: Driver>(
    vmf: *mut bindings::vm_fault,
    obj: &Object<D>,
    ready: impl FnOnce(&mut Reserved<'_, D>),
) -> Option<bindings::vm_fault_t> {
    // SAFETY: The fault is being handled.
    let flags = unsafe { (*vmf).flags };
    if flags & bindings::fault_flag_FAULT_FLAG_ALLOW_RETRY == 0
        || flags & bindings::fault_flag_FAULT_FLAG_TRIED != 0
    {
        return None;
    }
    if flags & bindings::fault_flag_FAULT_FLAG_RETRY_NOWAIT == 0 {
        // Without the lock the VMA may go, and its reference with it.
        let obj = ARef::from(obj);
        // SAFETY: The fault is being handled, so that the lock is held. The caller doesn't use it
        // any more.
        unsafe { pagekit_drm_unlock_fault(vmf) };
        // A signal ends it: the kernel looks for one.
        let _ = Reserved::lock_interruptible(&*obj).map(|mut bo| ready(&mut bo));
    }
    Some(bindings::vm_fault_reason_VM_FAULT_RETRY)
}

// --- Memory pressure ------------------------------------------------------------------

/// `struct drm_gem_lru`: the objects that a shrinker may look at, under a lock of the device. The
/// data of a device.
#[pin_data]
pub(crate) struct Lru {
    #[pin]
    list: Opaque<bindings::drm_gem_lru>,
}

// SAFETY: Any thread may use it, under the lock of the device.
unsafe impl Send for Lru {}
// SAFETY: All that is done with it is done under the lock of the device, but for a look at the
// count.
unsafe impl Sync for Lru {}

impl Lru {
    pub(crate) fn new() -> impl PinInit<Self, Error> {
        try_pin_init!(Self {
            // SAFETY: It is initialised where it stays.
            list <- Opaque::ffi_init(|list| unsafe { bindings::drm_gem_lru_init(list) }),
        })
    }
}

/// A registered shrinker, `shrinker_free()` on drop.
pub(crate) struct Shrinker(NonNull<bindings::shrinker>);

// SAFETY: It may be freed by any thread.
unsafe impl Send for Shrinker {}
// SAFETY: There is nothing to be done with a shared reference.
unsafe impl Sync for Shrinker {}

impl Shrinker {
    /// # Safety
    ///
    /// `dev` must be a device of `D`, which stays for as long as the shrinker.
    pub(crate) unsafe fn new<D: Driver>(dev: NonNull<bindings::drm_device>) -> Result<Self> {
        // SAFETY: The device has a name, which is no format here.
        let shrinker = unsafe {
            bindings::shrinker_alloc(0, c"drm-%s".as_char_ptr(), (*(*dev.as_ptr()).driver).name)
        };
        let this = Self(NonNull::new(shrinker).ok_or(ENOMEM)?);
        // SAFETY: It is not registered yet. The callbacks find the device there, which the caller
        // promises to stay.
        unsafe {
            (*shrinker).count_objects = Some(count_objects::<D>);
            (*shrinker).scan_objects = Some(scan_objects::<D>);
            (*shrinker).private_data = dev.as_ptr().cast();
            bindings::shrinker_register(shrinker);
        }
        Ok(this)
    }
}

impl Drop for Shrinker {
    fn drop(&mut self) {
        // SAFETY: It was allocated, and nobody else frees it.
        unsafe { bindings::shrinker_free(self.0.as_ptr()) };
    }
}

/// # Safety
///
/// `shrinker` must be one of [`Shrinker::new`] with `D`.
unsafe fn lru<D: Driver>(
    shrinker: *mut bindings::shrinker,
) -> (*mut bindings::drm_device, *mut bindings::drm_gem_lru) {
    // SAFETY: The private data is a device of `D`, whose data is the list.
    unsafe {
        let dev = (*shrinker).private_data.cast();
        let lru: &Lru = drm::Device::<D>::from_raw(dev);
        (dev, lru.list.get())
    }
}

/// # Safety
///
/// To be called by memory reclaim, for a shrinker of `D`.
unsafe extern "C" fn count_objects<D: Driver>(
    shrinker: *mut bindings::shrinker,
    _control: *mut bindings::shrink_control,
) -> c_ulong {
    // SAFETY: The shrinker is ours. The count may be out of date.
    unsafe { (&raw const (*lru::<D>(shrinker).1).count).read_volatile() as c_ulong }
}

/// # Safety
///
/// To be called by memory reclaim, for a shrinker of `D`.
unsafe extern "C" fn scan_objects<D: Driver>(
    shrinker: *mut bindings::shrinker,
    control: *mut bindings::shrink_control,
) -> c_ulong {
    /// # Safety
    ///
    /// To be called by `drm_gem_lru_scan()`, for an object that it has reserved.
    unsafe extern "C" fn evict<D: Driver>(
        obj: *mut bindings::drm_gem_object,
        _ticket: *mut bindings::ww_acquire_ctx,
    ) -> bool {
        // SAFETY: The kernel passes an object on which it has a reference, and which it has
        // reserved: this thread didn't hold the lock before.
        D::evict(unsafe { &mut Reserved::held(object::<D>(obj)) })
    }

    let mut remaining = 0;
    // SAFETY: The shrinker is ours. Memory reclaim passes what it asks for.
    let freed = unsafe {
        let (dev, lru) = lru::<D>(shrinker);
        let count = (*control).nr_to_scan.min(c_uint::MAX as c_ulong) as c_uint;
        bindings::drm_gem_lru_scan(
            dev,
            lru,
            count,
            &mut remaining,
            Some(evict::<D>),
            null_mut(),
        )
    };
    if freed != 0 {
        freed
    } else {
        bindings::SHRINK_STOP as c_ulong
    }
}
