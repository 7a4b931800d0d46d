// SPDX-License-Identifier: GPL-2.0

//! A driver in the style of i915: `/dev/pagekit-i915`, see `pagekit_style.h`.
//!
//! Its policy, which no helper knows of:
//!
//! * One lock for the whole device. Who needs the device to work waits first until it doesn't hang,
//!   which signals end and which fails with `EIO` after some time, and takes the lock
//!   interruptibly. What gets by with memory alone takes the lock at once, and only a fatal signal
//!   ends that. What can't fail waits for it. Creating an object and releasing it don't take it.
//! * Pages are pinned while a device or the kernel has them mapped, and no longer. If a fence of
//!   the buffer is pending then, they stay pinned until it has signalled, and go as held pages do.
//!   For the CPU alone they are only held. An object that nobody uses has none: they are in its
//!   shmem file, or in swap.
//! * Reclaim leaves pages alone while they are held or pinned.
//! * Held pages are given back under memory pressure, or when user space asks.
//! * Pages of an object come from free memory. If there is none, or no more in the memory cgroup,
//!   all held pages are given back, so that they can be swapped out, and memory is reclaimed. If
//!   that doesn't do it, it ends in `ENOMEM`, and for a fault in `SIGBUS`: nobody else is killed.
//! * CPU mappings are of PFNs, on fault, and revoked when the pages go. Or they are those of the
//!   shmem file, if the object was created so.
//! * Importers that can do without for a while are asked for pinned pages, too, but only by user
//!   space, which waits until they have unmapped them and their fences have signalled: signals end
//!   that, and it fails with `EBUSY` after some time.
//! * CPU access to an object with importers begins only if its pages can be pinned: an importer may
//!   map it for the kernel next, and the core warns if that fails. It still does if the pages go in
//!   between and can't be had again, or if an importer maps before it begins.
//! * Foreign buffers are pinned while they are mapped: the device can't stop to have them moved.
//!
//! Lock order:
//!
//! 1. the mmap lock; `Import::mapping`
//! 2. the reservation lock of a buffer, which the core holds where importers map
//! 3. the lock of the device
//! 4. the lock of its list of objects
//! 5. what memory reclaim takes
//!
//! So importers that map wait for a reset with the reservation lock held, and keep other importers
//! of the same buffer waiting, as the core calls the driver under it.
//!
//! Under the lock of the list, debugfs tries to reserve buffers and to lock the device, and goes
//! without if it can't.
//!
//! The device and its list are locked while memory is allocated, so that the shrinker can only try
//! to lock them. It takes no folio lock either, for somebody who allocates memory may hold it.

use core::{
    marker::PhantomData,
    mem::replace,
    pin::Pin,
    ptr::{
        from_ref,
        null_mut,
        NonNull, //
    }, //
};
use kernel::{
    bindings,
    container_of,
    debugfs,
    error::{
        from_result,
        to_result, //
    },
    fs::File,
    miscdevice::{
        MiscDevice,
        MiscDeviceOptions,
        MiscDeviceRegistration, //
    },
    mm::virt::VmaNew,
    new_condvar,
    new_mutex,
    page::PAGE_SHIFT,
    prelude::*,
    seq_file::SeqFile,
    sync::{
        aref::ARef,
        atomic::{
            Atomic,
            Relaxed, //
        },
        lock::mutex::MutexGuard,
        CondVar,
        CondVarTimeoutResult,
        LockedBy,
        Mutex,
        SetOnce, //
    },
    time::msecs_to_jiffies, //
};
use pagekit_pages::{
    PageArray,
    ShmemFlags, //
};
use pagekit_pin::{
    PinArray,
    PinCount,
    PinFlags, //
};
use pagekit_view::{
    PageRef,
    PfnOnly, //
};
use pagekit_vma::{
    fault_pfns,
    setup_pfns,
    zap,
    VmFault, //
};

mod compat;
mod dmabuf;
mod import;
mod shmem;
mod style;

use compat::{
    hold_module,
    this_module, //
};
use dmabuf::For;
use import::{
    Attachment,
    Buf,
    Mapping,
    Reserved, //
};
use style::{
    lock,
    Command,
    Create,
    Info, //
};

module! {
    type: Device,
    name: "pagekit_i915_style",
    authors: ["The pagekit authors"],
    description: "pagekit sample: a driver in the style of i915",
    license: "GPL",
    imports_ns: ["DMA_BUF"],
}

#[allow(
    improper_ctypes,
    reason = "Some configurations have fields of size zero in structs that are only pointed to."
)]
extern "C" {
    // A module parameter, see style_shim.h.
    #[link_name = "pagekit_i915_size_limit_mb"]
    static SIZE_LIMIT_MB: c_int;
    // Static inlines, see i915_style_shim.c.
    fn pagekit_i915_pin_save() -> c_uint;
    fn pagekit_i915_pin_restore(flags: c_uint);
    fn pagekit_i915_lock_interruptible(mutex: *mut bindings::mutex) -> c_int;
    fn pagekit_i915_mmap(file: *mut bindings::file, vma: *mut bindings::vm_area_struct) -> c_int;
}

// --- The device -----------------------------------------------------------------

/// How long importers have to unmap pages when they are told to, in milliseconds.
const REVOKE_MS: u32 = 2000;
/// All fences are of this usage, whatever else they are.
const BOOKKEEP: bindings::dma_resv_usage = bindings::dma_resv_usage_DMA_RESV_USAGE_BOOKKEEP;

#[pin_data]
struct Device {
    #[pin]
    misc: MiscDeviceRegistration<Context>,
    shrinker: Shrinker,
    dma: import::Device,
    /// What all objects have of their pages is under it.
    #[pin]
    lock: Mutex<Objects>,
    /// `/sys/kernel/debug/pagekit-i915/objects`
    #[pin]
    list: debugfs::File<Mutex<style::Objects>>,
    /// While the device hangs, for how many milliseconds others wait for a reset.
    #[pin]
    wedged: Mutex<Option<u32>>,
    #[pin]
    reset: CondVar,
    /// An object has no mapping for a device any more.
    #[pin]
    unmapped: CondVar,
}

impl kernel::InPlaceModule for Device {
    fn init(_module: &'static ThisModule) -> impl PinInit<Self, Error> {
        let debugfs = debugfs::Dir::new(c"pagekit-i915");
        try_pin_init!(&this in Self {
            lock <- new_mutex!(Objects { next: 0 }, "Device::lock"),
            list <- debugfs.read_callback_file(
                c"objects",
                new_mutex!(style::Objects(KVVec::new()), "Device::list"),
                &|list: &Mutex<style::Objects>, f| {
                    list.lock().show(f, |reserved| {
                        // SAFETY: What is in the list is ours.
                        unsafe { Own::new(reserved.as_ptr()) }.info(reserved, true)
                    })
                },
            ),
            wedged <- new_mutex!(None, "Device::wedged"),
            reset <- new_condvar!("Device::reset"),
            unmapped <- new_condvar!("Device::unmapped"),
            dma: import::Device::new(c"pagekit-i915")?,
            // SAFETY: The shrinker goes before the device, of which it needs the locks.
            shrinker: unsafe { Shrinker::new(this) }?,
            misc <- MiscDeviceRegistration::register(MiscDeviceOptions {
                name: c"pagekit-i915",
            }),
        })
    }
}

impl Device {
    /// Waits until the device doesn't hang.
    fn wait_for_error(&self) -> Result {
        let mut wedged = self.wedged.lock();
        let mut left = wedged.map_or(0, msecs_to_jiffies);
        while wedged.is_some() {
            left = match self.reset.wait_interruptible_timeout(&mut wedged, left) {
                CondVarTimeoutResult::Woken { jiffies } => jiffies,
                CondVarTimeoutResult::Signal { .. } => return Err(ERESTARTSYS),
                CondVarTimeoutResult::Timeout => break,
            };
        }
        if wedged.is_some() {
            Err(EIO)
        } else {
            Ok(())
        }
    }

    /// Takes the lock of a device that works.
    fn lock_interruptible(&self) -> Result<MutexGuard<'_, Objects>> {
        self.wait_for_error()?;
        let mutex = from_ref::<Mutex<Objects>>(&self.lock).cast_mut().cast();
        // SAFETY: `Lock` has C layout, and the mutex is what it begins with.
        to_result(unsafe { pagekit_i915_lock_interruptible(mutex) })?;
        // SAFETY: It was locked just now.
        Ok(unsafe { MutexGuard::new(&self.lock, ()) })
    }

    /// Gives back all pages that are held, and returns how many.
    fn shrink(&self) -> Result<usize> {
        let mut objects = lock(&self.lock, false)?;
        Ok(objects.shrink(&self.list.lock(), usize::MAX))
    }

    fn set_wedged(&self, wedged: Option<u32>) -> Result<isize> {
        *self.wedged.lock() = wedged;
        self.reset.notify_all();
        Ok(0)
    }
}

type Context = style::Context<Device, Object>;
type Object = style::Object<Handle, Pin<KBox<Import>>>;

#[vtable]
impl MiscDevice for Context {
    type Ptr = KBox<Self>;

    fn open(file: &File, misc: &MiscDeviceRegistration<Self>) -> Result<KBox<Self>> {
        hold_module(file)?;
        // SAFETY: The registration is that of the `Device` that is the module, which stays loaded
        // while there are open files.
        Context::new(unsafe { &*container_of!(from_ref(misc).cast_mut(), Device, misc) })
    }

    fn ioctl(context: &Self, _file: &File, cmd: u32, arg: usize) -> Result<isize> {
        let device = context.device;
        match Command::read(cmd, arg)? {
            Command::Create(create) => {
                context.fill(|| Ok(Object::Own(Handle::create(device, &create)?)))
            }
            Command::Import(buf) => context.fill(|| {
                Ok(if buf.has_ops(&OPS) {
                    // SAFETY: It was exported with them.
                    Object::Own(unsafe { Handle::new(buf) })
                } else {
                    Object::Foreign(Import::new(buf, device)?)
                })
            }),
            Command::Export { cloexec } => context.object()?.buf().fd(cloexec),
            Command::Map(dir) => context.object()?.foreign()?.map(device, dir),
            Command::Unmap => context.object()?.foreign()?.unmap(),
            Command::Access(access) => context.object()?.access(device, access),
            Command::Info(user) => context.object()?.info(device, false)?.reply(user),
            Command::Wedge { milliseconds } => device.set_wedged(Some(milliseconds)),
            Command::Reset => device.set_wedged(None),
            Command::Shrink { revoke: false } => Ok(device.shrink()? as isize),
            Command::Shrink { revoke: true } => {
                let revoked = context.object()?.own()?.revoke()?;
                Ok((revoked + device.shrink()?) as isize)
            }
        }
    }

    fn show_fdinfo(context: &Self, m: &SeqFile, _file: &File) {
        context.show(m, Object::buf, |object| object.info(context.device, true));
    }
}

impl Object {
    fn buf(&self) -> &Buf {
        match self {
            Self::Own(handle) => &handle.0,
            Self::Foreign(import) => import.attachment.buf(),
        }
    }

    fn access(&self, device: &Device, access: style::Access) -> Result<isize> {
        if access.nowait() {
            return Err(EINVAL);
        }
        // The core warns if a buffer can't be mapped for the kernel. What can fail has been done
        // then.
        let _pinned = match self {
            Self::Own(handle) => Some(Pinned::new(handle.own())?),
            Self::Foreign(_) => None,
        };
        let mut copy = access.begin(self.buf())?;
        let engine = device.lock_interruptible()?;
        copy.run();
        drop(engine);
        copy.finish()?;
        Ok(0)
    }

    fn info(&self, device: &Device, nowait: bool) -> Result<Info> {
        let mut info = match self {
            Self::Own(handle) => {
                let reserved = style::reserve(&handle.0, nowait)?;
                handle.own().info(&reserved, nowait)?
            }
            Self::Foreign(import) => Info::of_import(self.buf(), style::is_mapped(&import.mapping)),
        };
        if device.wedged.lock().is_some() {
            info.flags |= style::INFO_WEDGED;
        }
        Ok(info)
    }
}

// --- Its objects ------------------------------------------------------------------

/// An object.
struct Bo {
    device: &'static Device,
    /// Which the pages are from.
    file: ARef<File>,
    /// Which the CPU mappings are of, once there is a buffer.
    inode: SetOnce<Inode>,
    pages: usize,
    /// Whether CPU mappings are those of the file.
    has_file_mmap: bool,
    /// How many open files have it.
    files: Atomic<u32>,
    backing: LockedBy<Backing, Objects>,
}

/// The inode of a buffer, `iput()` on drop.
///
/// A path to the buffer, as `O_PATH` files have, keeps it when its file has gone: so the shrinker
/// can't take a reference on the file, nor look at it.
///
/// # Invariants
///
/// It is an inode, on which this owns a reference.
struct Inode(NonNull<bindings::inode>);

// SAFETY: Inodes are reference counted and used by any thread.
unsafe impl Send for Inode {}
// SAFETY: All that is done with a shared reference may be done by any thread.
unsafe impl Sync for Inode {}

impl Inode {
    fn of(buf: &Buf) -> Self {
        // SAFETY: There is a reference on the buffer and so on its file, which has an inode.
        // INVARIANT: The reference is taken here.
        unsafe {
            let inode = (*(*buf.as_ptr()).file).f_inode;
            bindings::ihold(inode);
            Self(NonNull::new_unchecked(inode))
        }
    }

    /// Revokes all mappings of so many pages. May sleep.
    fn unmap(&self, pages: usize) {
        // SAFETY: By the type invariants, the inode exists.
        unsafe { zap((*self.0.as_ptr()).i_mapping, 0..pages, 0) };
    }
}

impl Drop for Inode {
    fn drop(&mut self) {
        // SAFETY: By the type invariants, this owns a reference.
        unsafe { bindings::iput(self.0.as_ptr()) };
    }
}

/// What an object has of its pages, under the lock of the device.
struct Backing {
    pages: Pages,
    /// Devices that have them mapped, mappings for the kernel, and pins of importers.
    users: PinCount,
    /// Whether there are any. Pages without may be pinned still, because of a fence.
    is_used: bool,
    /// The first of these users.
    mappings: usize,
    /// Pins of importers: those that can't do without.
    fixed: usize,
}

enum Pages {
    Away,
    Held(PageArray),
    Pinned(PinArray),
}

impl Pages {
    fn as_slice(&self) -> &[PageRef<'_, PfnOnly>] {
        match self {
            Self::Away => &[],
            Self::Held(array) => PageRef::pfns(array.pages()),
            Self::Pinned(array) => array.pages(),
        }
    }
}

/// A buffer of ours, borrowed.
///
/// # Invariants
///
/// It was exported with `OPS`, and its release operation has not returned for `'a`.
#[derive(Copy, Clone)]
struct Own<'a>(*mut bindings::dma_buf, PhantomData<&'a Bo>);

impl<'a> Own<'a> {
    /// # Safety
    ///
    /// As the type invariants.
    unsafe fn new(buf: *mut bindings::dma_buf) -> Self {
        // INVARIANT: The caller promises that it was exported with `OPS` and stays for `'a`.
        Self(buf, PhantomData)
    }

    /// In an operation that the core calls under the reservation lock.
    ///
    /// # Safety
    ///
    /// As the type invariants.
    unsafe fn reserved(buf: *mut bindings::dma_buf) -> Self {
        // SAFETY: The caller promises a buffer that was exported with `OPS` and stays for `'a`.
        unsafe {
            dmabuf::assert_held(buf);
            Self::new(buf)
        }
    }

    fn bo(self) -> &'a Bo {
        // SAFETY: By the type invariants.
        unsafe { dmabuf::data(self.0) }
    }

    fn backing<'b>(self, objects: &'b mut Objects) -> &'b mut Backing
    where
        'a: 'b,
    {
        self.bo().backing.access_mut(objects)
    }

    /// How many pages are pinned.
    fn pinned(self, objects: &mut Objects) -> usize {
        match &self.backing(objects).pages {
            Pages::Pinned(pins) => pins.pages().len(),
            _ => 0,
        }
    }

    fn info(self, reserved: &Reserved<'_>, nowait: bool) -> Result<Info> {
        let mut objects = lock(&self.bo().device.lock, nowait)?;
        let pinned = self.pinned(&mut objects);
        let backing = self.backing(&mut objects);
        Ok(Info {
            pinned: pinned as u64,
            held: (backing.pages.as_slice().len() - pinned) as u64,
            // SAFETY: An open file has a mapping. The number may be out of date.
            resident: unsafe { (*(*self.bo().file.as_ptr()).f_mapping).nrpages as u64 },
            sharers: self.bo().files.load(Relaxed),
            // SAFETY: It is ours.
            ..unsafe { Info::of_object(reserved) }
        })
    }

    /// Has the pages held, unless they are there.
    fn hold(self, objects: &mut Objects) -> Result {
        if let Pages::Away = self.backing(objects).pages {
            self.backing(objects).pages = Pages::Held(self.fill(objects)?);
        }
        Ok(())
    }

    /// Fills the file, from which reclaim takes nothing from here on.
    ///
    /// C: `shmem_sg_alloc_table()` in `drivers/gpu/drm/i915/gem/i915_gem_shmem.c`.
    fn fill(self, objects: &mut Objects) -> Result<PageArray> {
        let bo = self.bo();
        let fill = |how| PageArray::from_shmem(&bo.file, 0, bo.pages, ShmemFlags::WRITE | how);
        // Before, so that new pages are marked at once.
        shmem::set_unevictable(&bo.file);
        fill(ShmemFlags::NO_RECLAIM)
            .or_else(|e| {
                if e != ENOMEM {
                    return Err(e);
                }
                // The shrinker can't do it, as the device is locked.
                objects.shrink(&bo.device.list.lock(), usize::MAX);
                fill(ShmemFlags::RETRY_MAYFAIL)
            })
            .inspect_err(|_| shmem::clear_unevictable(&bo.file))
            .map_err(shmem::enomem)
    }

    /// The same, and pins what is there then.
    fn fill_and_pin(self, objects: &mut Objects) -> Result<PinArray> {
        let bo = self.bo();
        let flags = PinFlags::WRITE | PinFlags::RETRY_MAYFAIL;
        let mut pins = PinArray::with_capacity(bo.pages, flags)?;
        // New pages are of memory where they can stay.
        // SAFETY: What is saved here is restored below, by the same task.
        let scope = unsafe { pagekit_i915_pin_save() };
        let filled = self.fill(objects);
        // SAFETY: It was saved above.
        unsafe { pagekit_i915_pin_restore(scope) };
        // References would keep old pages where they are, which may be where none are pinned.
        drop(filled?);
        pins.pin_memfd(&bo.file, 0, bo.pages)
            .inspect_err(|_| shmem::clear_unevictable(&bo.file))
            .map_err(shmem::enomem)?;
        Ok(pins)
    }

    /// Pins the pages for one user more, and returns them.
    fn pin<'b>(self, objects: &'b mut Objects) -> Result<&'b [PageRef<'b, PfnOnly>]>
    where
        'a: 'b,
    {
        if self.backing(objects).users.pin() {
            if let Pages::Pinned(_) = self.backing(objects).pages {
                // A fence has kept them.
                self.backing(objects).is_used = true;
                return Ok(self.backing(objects).pages.as_slice());
            }
            // Their mappings go, too: pages may be moved to be pinned.
            self.give_back(objects);
            let pins = self.fill_and_pin(objects);
            let backing = self.backing(objects);
            backing.pages = Pages::Pinned(pins.inspect_err(|_| {
                backing.users.unpin();
            })?);
            backing.is_used = true;
        }
        Ok(self.backing(objects).pages.as_slice())
    }

    fn unpin(self, objects: &mut Objects) {
        let backing = self.backing(objects);
        if backing.users.unpin() {
            backing.is_used = false;
            if self.is_idle(objects) {
                self.give_back(objects);
            }
        }
    }

    /// Whether it has pages that nobody uses, nor may use until a fence signals.
    fn is_idle(self, objects: &mut Objects) -> bool {
        let backing = self.backing(objects);
        match backing.pages {
            Pages::Away => false,
            Pages::Held(_) => true,
            Pages::Pinned(_) if backing.is_used => false,
            // SAFETY: By the type invariants it is a buffer, which has a reservation object.
            Pages::Pinned(_) => unsafe {
                bindings::dma_resv_test_signaled((*self.0).resv, BOOKKEEP)
            },
        }
    }

    /// Revokes all CPU mappings and lets go of the pages. Returns how many.
    fn give_back(self, objects: &mut Objects) -> usize {
        let pages = replace(&mut self.backing(objects).pages, Pages::Away);
        let count = pages.as_slice().len();
        if let Some(inode) = self.bo().inode.as_ref().filter(|_| count != 0) {
            // Faults wait for the lock of the device.
            inode.unmap(count);
        }
        // Dropping them marks them dirty, without a lock that whoever called the shrinker may hold.
        drop(pages);
        if count != 0 {
            shmem::clear_unevictable(&self.bo().file);
        }
        count
    }
}

/// The pages of an object are pinned for one user more, until this is dropped.
struct Pinned<'a>(Own<'a>);

impl<'a> Pinned<'a> {
    fn new(own: Own<'a>) -> Result<Self> {
        let mut objects = own.bo().device.lock_interruptible()?;
        own.pin(&mut objects)?;
        drop(objects);
        Ok(Self(own))
    }
}

impl Drop for Pinned<'_> {
    fn drop(&mut self) {
        self.0.unpin(&mut self.0.bo().device.lock.lock());
    }
}

/// What is under the lock of the device, beside each [`Bo::backing`].
struct Objects {
    /// Where in the list the shrinker goes on, so that it takes objects in turn.
    next: usize,
}

impl Objects {
    /// Gives back pages of idle objects, and returns how many: `target`, if there are as many.
    fn shrink(&mut self, list: &style::Objects, target: usize) -> usize {
        let mut given = 0;
        for _ in 0..list.0.len() {
            if given >= target {
                break;
            }
            self.next = (self.next + 1) % list.0.len();
            // SAFETY: All in the list are ours, and leave it in their release operation.
            let own = unsafe { Own::new(list.0[self.next].as_ptr()) };
            if own.is_idle(self) {
                given += own.give_back(self);
            }
        }
        given
    }

    fn held(&mut self, list: &style::Objects) -> usize {
        let mut held = 0;
        for buf in &list.0 {
            // SAFETY: All in the list are ours, and leave it in their release operation.
            let own = unsafe { Own::new(buf.as_ptr()) };
            if own.is_idle(self) {
                held += own.backing(self).pages.as_slice().len();
            }
        }
        held
    }
}

/// An object that an open file has.
///
/// # Invariants
///
/// The buffer was exported with `OPS`.
struct Handle(Buf);

impl Handle {
    fn create(device: &'static Device, create: &Create) -> Result<Self> {
        let pages = create.pages(style::CREATE_SHMEM_MMAP)?;
        let size = pages << PAGE_SHIFT;
        let backing = Backing {
            pages: Pages::Away,
            users: PinCount::default(),
            is_used: false,
            mappings: 0,
            fixed: 0,
        };
        let bo = KBox::new(
            Bo {
                device,
                file: style::shmem(size)?,
                inode: SetOnce::new(),
                pages,
                has_file_mmap: create.has(style::CREATE_SHMEM_MMAP),
                files: Atomic::new(0),
                backing: LockedBy::new(&device.lock, backing),
            },
            GFP_KERNEL_ACCOUNT,
        )?;
        // SAFETY: `OPS` is made for this. The reference on the new buffer is ours.
        let buf = unsafe {
            let buf = dmabuf::export(
                c"pagekit_i915_style",
                this_module::<LocalModule>(),
                &OPS,
                size,
                bindings::O_RDWR,
                bo,
            )?;
            Buf::from_raw(buf)
        };
        // SAFETY: It is ours, as was just said.
        unsafe { Own::new(buf.as_ptr()) }
            .bo()
            .inode
            .populate(Inode::of(&buf));
        device.list.lock().add(&buf)?;
        // SAFETY: It was exported with `OPS` above.
        Ok(unsafe { Self::new(buf) })
    }

    /// # Safety
    ///
    /// `buf` must have been exported with `OPS`.
    unsafe fn new(buf: Buf) -> Self {
        // INVARIANT: The caller promises that it was exported with `OPS`.
        let this = Self(buf);
        this.own().bo().files.add(1, Relaxed);
        this
    }

    fn own(&self) -> Own<'_> {
        // SAFETY: By the type invariants. There is a reference on it.
        unsafe { Own::new(self.0.as_ptr()) }
    }

    /// Asks importers to unmap the pages, and waits for them. Returns how many pages are no longer
    /// pinned.
    fn revoke(&self) -> Result<usize> {
        let (own, device) = (self.own(), self.own().bo().device);
        let reserved = self.0.reserve_interruptible()?;
        let mut objects = lock(&device.lock, false)?;
        if own.backing(&mut objects).fixed != 0 {
            return Err(EBUSY);
        }
        let pinned = own.pinned(&mut objects);
        drop(objects);
        // SAFETY: It is reserved. Importers come back to `unmap_dma_buf`, so the device is not
        // locked.
        unsafe { bindings::dma_buf_invalidate_mappings(self.0.as_ptr()) };
        let mut objects = lock(&device.lock, false)?;
        let mut is_mapped = own.backing(&mut objects).mappings != 0;
        drop(objects);
        // Importers may use the pages until their fences have signalled, and unmap them then, for
        // which they reserve the buffer. Meanwhile others may map them again.
        drop(reserved);
        // SAFETY: There is a reference on the buffer.
        let mut left =
            unsafe { dmabuf::wait(self.0.as_ptr(), BOOKKEEP, msecs_to_jiffies(REVOKE_MS)) }?;
        let mut objects = lock(&device.lock, false)?;
        while is_mapped && left != 0 {
            is_mapped = own.backing(&mut objects).mappings != 0;
            if is_mapped {
                left = match device
                    .unmapped
                    .wait_interruptible_timeout(&mut objects, left)
                {
                    CondVarTimeoutResult::Woken { jiffies } => jiffies,
                    CondVarTimeoutResult::Signal { .. } => return Err(ERESTARTSYS),
                    CondVarTimeoutResult::Timeout => 0,
                };
            }
        }
        if left == 0 {
            return Err(EBUSY);
        }
        if own.is_idle(&mut objects) {
            own.give_back(&mut objects);
        }
        // Copies don't reserve the buffer: one may have pinned them meanwhile.
        Ok(pinned.saturating_sub(own.pinned(&mut objects)))
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.own().bo().files.fetch_sub(1, Relaxed);
    }
}

static OPS: bindings::dma_buf_ops = bindings::dma_buf_ops {
    pin: Some(pin),
    unpin: Some(unpin),
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

/// For importers that can't do without the pages once they have them mapped.
///
/// # Safety
///
/// To be called by the core, under the reservation lock.
unsafe extern "C" fn pin(attachment: *mut bindings::dma_buf_attachment) -> c_int {
    // SAFETY: The core passes an attachment of a buffer of ours.
    let own = unsafe { Own::reserved((*attachment).dmabuf) };
    from_result(|| {
        let mut objects = own.bo().device.lock_interruptible()?;
        own.pin(&mut objects)?;
        own.backing(&mut objects).fixed += 1;
        Ok(0)
    })
}

/// # Safety
///
/// To be called by the core, under the reservation lock.
unsafe extern "C" fn unpin(attachment: *mut bindings::dma_buf_attachment) {
    // SAFETY: The core passes an attachment of a buffer of ours.
    let own = unsafe { Own::reserved((*attachment).dmabuf) };
    let mut objects = own.bo().device.lock.lock();
    own.backing(&mut objects).fixed -= 1;
    own.unpin(&mut objects);
}

/// # Safety
///
/// To be called by the core, under the reservation lock.
unsafe extern "C" fn map_dma_buf(
    attachment: *mut bindings::dma_buf_attachment,
    dir: bindings::dma_data_direction,
) -> *mut bindings::sg_table {
    // SAFETY: The core passes an attachment of a buffer of ours.
    let own = unsafe { Own::reserved((*attachment).dmabuf) };
    let map = || {
        let mut objects = own.bo().device.lock_interruptible()?;
        let pages = own.pin(&mut objects)?;
        // SAFETY: The attachment is one of a buffer of ours, whose reservation lock the core holds.
        // The pages stay pinned until it is unmapped.
        let table = unsafe { dmabuf::map(attachment, pages, dir) }
            .inspect_err(|_| own.unpin(&mut objects))?;
        own.backing(&mut objects).mappings += 1;
        Ok(table)
    };
    dmabuf::table_or_err(map())
}

/// # Safety
///
/// To be called by the core, under the reservation lock.
unsafe extern "C" fn unmap_dma_buf(
    attachment: *mut bindings::dma_buf_attachment,
    table: *mut bindings::sg_table,
    dir: bindings::dma_data_direction,
) {
    // SAFETY: The core passes what `map_dma_buf` has returned for this attachment.
    let own = unsafe {
        dmabuf::unmap(attachment, table, dir);
        Own::reserved((*attachment).dmabuf)
    };
    let device = own.bo().device;
    let mut objects = device.lock.lock();
    own.backing(&mut objects).mappings -= 1;
    own.unpin(&mut objects);
    device.unmapped.notify_all();
}

/// # Safety
///
/// To be called by the core, which holds no lock.
unsafe extern "C" fn begin_cpu_access(
    buf: *mut bindings::dma_buf,
    dir: bindings::dma_data_direction,
) -> c_int {
    // SAFETY: The core passes a buffer of ours.
    from_result(|| unsafe {
        let own = Own::new(buf);
        let device = own.bo().device;
        // Others should not have to wait for the reservation meanwhile.
        device.wait_for_error()?;
        dmabuf::wait_for_devices(buf, dir)?;
        let _reserved = import::reserve_interruptible(buf)?;
        let mut objects = device.lock_interruptible()?;
        // Importers may map it for the kernel next.
        if dmabuf::users(buf).0 != 0 {
            own.pin(&mut objects)?;
            own.unpin(&mut objects);
        }
        dmabuf::sync(buf, dir, For::Cpu);
        Ok(0)
    })
}

/// # Safety
///
/// To be called by the core, which holds no lock.
unsafe extern "C" fn end_cpu_access(
    buf: *mut bindings::dma_buf,
    dir: bindings::dma_data_direction,
) -> c_int {
    // What has begun must end, whether the device works or not.
    // SAFETY: The core passes a buffer of ours.
    unsafe {
        let _reserved = import::reserve(buf);
        let _objects = Own::new(buf).bo().device.lock.lock();
        dmabuf::sync(buf, dir, For::Device);
    }
    0
}

const VM_OPS: &bindings::vm_operations_struct = &bindings::vm_operations_struct {
    fault: Some(fault),
    ..pin_init::zeroed()
};

/// # Safety
///
/// To be called by the core, under the mmap lock.
unsafe extern "C" fn mmap(
    buf: *mut bindings::dma_buf,
    vma: *mut bindings::vm_area_struct,
) -> c_int {
    // SAFETY: The core passes a buffer of ours, and a VMA that is being set up. It becomes one of
    // the file, or is never made a mixed mapping. The file is the driver's own: whoever has the
    // buffer may write to its pages.
    from_result(|| unsafe {
        let bo = Own::new(buf).bo();
        if bo.has_file_mmap {
            to_result(pagekit_i915_mmap(bo.file.as_ptr(), vma))?;
            bindings::vma_set_file(vma, bo.file.as_ptr());
        } else {
            setup_pfns(VmaNew::from_raw(vma), bo.pages, 0)?;
            (*vma).vm_ops = VM_OPS;
            (*vma).vm_private_data = buf.cast();
        }
        Ok(0)
    })
}

/// # Safety
///
/// To be called by the kernel, for a fault in a VMA that `mmap` has set up.
unsafe extern "C" fn fault(vmf: *mut bindings::vm_fault) -> bindings::vm_fault_t {
    // SAFETY: The kernel passes a fault that is being handled. `mmap` has set the private data to
    // the buffer, whose file the VMA holds.
    let (vmf, own) = unsafe {
        let vmf = VmFault::from_raw(vmf);
        let buf = (*vmf.vma().as_ptr()).vm_private_data;
        (vmf, Own::new(buf.cast()))
    };
    let bo = own.bo();
    // No need for a device that works.
    let Ok(mut objects) = lock(&bo.device.lock, false) else {
        // The process never sees it: it is killed first.
        return bindings::vm_fault_reason_VM_FAULT_SIGBUS;
    };
    if own.hold(&mut objects).is_err() {
        // Also if memory is short. `VM_FAULT_OOM` would have it tried again, for ever.
        return bindings::vm_fault_reason_VM_FAULT_SIGBUS;
    }
    // SAFETY: Before the pages go, their mappings do, under the lock that is held here. Whoever has
    // the buffer may write to them.
    unsafe { fault_pfns(vmf, own.backing(&mut objects).pages.as_slice(), 0) }
}

/// # Safety
///
/// To be called by the core, under the reservation lock.
unsafe extern "C" fn vmap(buf: *mut bindings::dma_buf, map: *mut bindings::iosys_map) -> c_int {
    // SAFETY: The core passes a buffer of ours.
    let own = unsafe { Own::reserved(buf) };
    from_result(|| {
        // The core warns of errors, so none that can be avoided: it doesn't take a device that
        // works.
        let mut objects = own.bo().device.lock.lock();
        let pages = own.pin(&mut objects)?;
        // SAFETY: The core passes a map to be filled in.
        dmabuf::vmap(pages, unsafe { &mut *map }).inspect_err(|_| own.unpin(&mut objects))?;
        Ok(0)
    })
}

/// # Safety
///
/// To be called by the core, under the reservation lock.
unsafe extern "C" fn vunmap(buf: *mut bindings::dma_buf, map: *mut bindings::iosys_map) {
    // SAFETY: The core passes a buffer of ours.
    let own = unsafe { Own::reserved(buf) };
    // SAFETY: The core passes what `vmap` has filled in, for its last user.
    unsafe { dmabuf::vunmap(&*map) };
    own.unpin(&mut own.bo().device.lock.lock());
}

/// # Safety
///
/// To be called by the core, when the last file descriptor, mapping and importer has gone.
unsafe extern "C" fn release(buf: *mut bindings::dma_buf) {
    // No lock of the device, which may be filling another object: a process that was killed would
    // wait for that.
    // SAFETY: The core passes a buffer of ours, for the last time. Who looks at the list is done
    // with it when it has been removed, and nobody else has it.
    unsafe {
        dmabuf::data::<Bo>(buf).device.list.lock().remove(buf);
        drop(dmabuf::release::<Bo>(buf));
    }
}

// --- Memory pressure ----------------------------------------------------------------

/// A registered shrinker, `shrinker_free()` on drop.
struct Shrinker(NonNull<bindings::shrinker>);

// SAFETY: It may be freed by any thread.
unsafe impl Send for Shrinker {}
// SAFETY: There is nothing to be done with a shared reference.
unsafe impl Sync for Shrinker {}

impl Shrinker {
    /// # Safety
    ///
    /// The locks of `device` must be initialised, and stay for as long as the shrinker.
    unsafe fn new(device: NonNull<Device>) -> Result<Self> {
        // SAFETY: The name has no directives.
        let shrinker = unsafe { bindings::shrinker_alloc(0, c"pagekit-i915".as_char_ptr()) };
        let this = Self(NonNull::new(shrinker).ok_or(ENOMEM)?);
        // SAFETY: It is not registered yet. The callbacks find a device there, whose locks the
        // caller promises to be initialised and to stay as long.
        unsafe {
            (*shrinker).count_objects = Some(count_objects);
            (*shrinker).scan_objects = Some(scan_objects);
            (*shrinker).private_data = device.as_ptr().cast();
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
/// To be called by the shrinker that `Shrinker::new` has set up.
unsafe fn try_lock<'a>(
    shrinker: *mut bindings::shrinker,
) -> Option<(MutexGuard<'a, Objects>, MutexGuard<'a, style::Objects>)> {
    // SAFETY: The private data is the device, whose locks stay.
    unsafe {
        let device = (*shrinker).private_data.cast::<Device>();
        Some(((*device).lock.try_lock()?, (*device).list.try_lock()?))
    }
}

/// # Safety
///
/// To be called by memory reclaim.
unsafe extern "C" fn count_objects(
    shrinker: *mut bindings::shrinker,
    _control: *mut bindings::shrink_control,
) -> c_ulong {
    // SAFETY: The shrinker is ours.
    unsafe { try_lock(shrinker) }.map_or(0, |(mut objects, list)| objects.held(&list))
}

/// # Safety
///
/// To be called by memory reclaim.
unsafe extern "C" fn scan_objects(
    shrinker: *mut bindings::shrinker,
    control: *mut bindings::shrink_control,
) -> c_ulong {
    // SAFETY: The shrinker is ours.
    let Some((mut objects, list)) = (unsafe { try_lock(shrinker) }) else {
        return bindings::SHRINK_STOP as c_ulong;
    };
    // SAFETY: Memory reclaim passes what it asks for.
    objects.shrink(&list, unsafe { (*control).nr_to_scan })
}

// --- Foreign buffers ----------------------------------------------------------------

/// A foreign buffer that an open file has, attached to our device.
#[pin_data(PinnedDrop)]
struct Import {
    attachment: Attachment<'static>,
    /// How the device has it mapped.
    #[pin]
    mapping: Mutex<Option<Mapping>>,
}

/// The device tells which buffers may move, but never lets one move that it has mapped.
static ATTACH_OPS: bindings::dma_buf_attach_ops = bindings::dma_buf_attach_ops {
    allow_peer2peer: false,
    invalidate_mappings: None,
};

impl Import {
    fn new(buf: Buf, device: &'static Device) -> Result<Pin<KBox<Self>>> {
        KBox::try_pin_init(
            try_pin_init!(Self {
                // SAFETY: There is no callback that could be called.
                attachment: unsafe {
                    Attachment::dynamic(buf, &device.dma, &ATTACH_OPS, null_mut())
                }?,
                mapping <- new_mutex!(None, "Import::mapping"),
            }),
            GFP_KERNEL_ACCOUNT,
        )
    }

    fn map(&self, device: &Device, dir: bindings::dma_data_direction) -> Result<isize> {
        device.wait_for_error()?;
        let mut mapping = lock(&self.mapping, false)?;
        if mapping.is_some() {
            return Err(EBUSY);
        }
        let attachment = self.attachment.as_ptr();
        let _reserved = self.attachment.buf().reserve_interruptible()?;
        // SAFETY: It is attached and reserved. What was pinned is mapped or unpinned.
        let table = unsafe {
            to_result(bindings::dma_buf_pin(attachment))?;
            self.attachment
                .map(dir)
                .inspect_err(|_| bindings::dma_buf_unpin(attachment))?
        };
        *mapping = Some(Mapping { table, dir });
        Ok(0)
    }

    fn unmap(&self) -> Result<isize> {
        let mut mapping = self.mapping.lock();
        let Mapping { table, dir } = mapping.take().ok_or(EINVAL)?;
        let attachment = self.attachment.as_ptr();
        let _reserved = self.attachment.buf().reserve();
        // SAFETY: It was pinned and mapped so, and is reserved.
        unsafe {
            bindings::dma_buf_unmap_attachment(attachment, table, dir);
            bindings::dma_buf_unpin(attachment);
        }
        Ok(0)
    }
}

#[pinned_drop]
impl PinnedDrop for Import {
    fn drop(self: Pin<&mut Self>) {
        // Unless it was not mapped.
        let _ = self.unmap();
    }
}
