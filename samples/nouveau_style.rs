// SPDX-License-Identifier: GPL-2.0

//! A driver in the style of nouveau: `/dev/pagekit-nouveau`, see `pagekit_style.h`.
//!
//! Its policy, which no helper knows of:
//!
//! * The only lock is that of the object, the reservation lock of its dma-buf. The core holds it
//!   where importers map, and the driver takes it for all else. It comes after the mmap lock.
//!   (There is another one for the list of objects that debugfs shows, and for nothing else.)
//! * Objects are created for export: each is a dma-buf from the start, and its pages are pinned
//!   then and unpinned when it is released. Nothing ever moves, and reclaim leaves it alone.
//! * CPU mappings are of PFNs, mapped at once: there is nothing to revoke.
//! * The mapping for the kernel is made when it is first asked for, and kept.
//! * Foreign buffers may move: their exporter says so, and the mapping is undone there and then.
//!   The next access makes it again.

use core::{
    cell::{
        Cell,
        UnsafeCell, //
    },
    ptr::{
        from_ref,
        null_mut, //
    }, //
};
use kernel::{
    bindings,
    container_of,
    debugfs,
    error::from_result,
    fs::File,
    miscdevice::{
        MiscDevice,
        MiscDeviceOptions,
        MiscDeviceRegistration, //
    },
    mm::virt::VmaNew,
    new_mutex,
    page::PAGE_SHIFT,
    prelude::*,
    seq_file::SeqFile,
    sync::{
        aref::ARef,
        Mutex, //
    }, //
};
use pagekit_pin::{
    PinArray,
    PinFlags, //
};
use pagekit_vma::map_pfns;

mod compat;
mod dmabuf;
mod import;
mod shmem;
mod style;

use compat::{
    hold_module,
    this_module, //
};
use import::{
    Attachment,
    Buf,
    Reserved, //
};
use style::{
    Command,
    Info,
    Objects, //
};

module! {
    type: Device,
    name: "pagekit_nouveau_style",
    authors: ["The pagekit authors"],
    description: "pagekit sample: a driver in the style of nouveau",
    license: "GPL",
    imports_ns: ["DMA_BUF"],
}

extern "C" {
    // A module parameter, see style_shim.h.
    #[link_name = "pagekit_nouveau_size_limit_mb"]
    static SIZE_LIMIT_MB: c_int;
}

// --- The device -----------------------------------------------------------------

#[pin_data]
struct Device {
    #[pin]
    misc: MiscDeviceRegistration<Context>,
    dma: import::Device,
    /// `/sys/kernel/debug/pagekit-nouveau/objects`
    #[pin]
    objects: debugfs::File<Mutex<Objects>>,
}

impl kernel::InPlaceModule for Device {
    fn init(_module: &'static ThisModule) -> impl PinInit<Self, Error> {
        let debugfs = debugfs::Dir::new(c"pagekit-nouveau");
        try_pin_init!(Self {
            objects <- debugfs.read_callback_file(
                c"objects",
                new_mutex!(Objects(KVVec::new()), "Device::objects"),
                &|objects: &Mutex<Objects>, f| {
                    // SAFETY: What is in the list is ours.
                    objects.lock().show(f, |bo| Ok(unsafe { info(bo) }))
                },
            ),
            dma: import::Device::new(c"pagekit-nouveau")?,
            misc <- MiscDeviceRegistration::register(MiscDeviceOptions {
                name: c"pagekit-nouveau",
            }),
        })
    }
}

type Context = style::Context<Device, Object>;
type Object = style::Object<Handle, Import>;

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
        match Command::read(cmd, arg)? {
            Command::Create(create) => context.fill(|| {
                Ok(Object::Own(Handle::create(
                    context.device,
                    create.pages(0)?,
                )?))
            }),
            Command::Import(buf) => context.fill(|| {
                Ok(if buf.has_ops(&OPS) {
                    // SAFETY: It was exported with them.
                    Object::Own(unsafe { Handle::new(buf) })
                } else {
                    Object::Foreign(Import::new(buf, &context.device.dma)?)
                })
            }),
            Command::Export { cloexec } => context.object()?.buf().fd(cloexec),
            Command::Map(dir) => context.object()?.foreign()?.map(dir),
            Command::Unmap => context.object()?.foreign()?.unmap(),
            Command::Access(access) => context.object()?.access(access),
            Command::Info(user) => context.object()?.info(false)?.reply(user),
            _ => Err(ENOTTY),
        }
    }

    fn show_fdinfo(context: &Self, m: &SeqFile, _file: &File) {
        context.show(m, Object::buf, |object| object.info(true));
    }
}

impl Object {
    fn buf(&self) -> &Buf {
        match self {
            Self::Own(handle) => &handle.0,
            Self::Foreign(import) => import.attachment.buf(),
        }
    }

    fn access(&self, access: style::Access) -> Result<isize> {
        if access.nowait() {
            return Err(EINVAL);
        }
        let mut copy = access.begin(self.buf())?;
        {
            let _reserved = self.buf().reserve_interruptible()?;
            if let Self::Foreign(import) = self {
                // SAFETY: It is reserved, and this is its attachment.
                unsafe { import.mapping.again(&import.attachment) }?;
            }
            copy.run();
        }
        copy.finish()?;
        Ok(0)
    }

    fn info(&self, nowait: bool) -> Result<Info> {
        let buf = self.buf();
        let reserved = style::reserve(buf, nowait)?;
        Ok(match self {
            // SAFETY: It is ours.
            Self::Own(_) => unsafe { info(&reserved) },
            Self::Foreign(import) => Info::of_import(buf, !import.mapping.table.get().is_null()),
        })
    }
}

// --- Its objects ------------------------------------------------------------------

/// An object, all of it under its reservation lock.
struct Bo {
    device: &'static Device,
    pins: PinArray,
    /// Which the pages are from.
    file: ARef<File>,
    /// Once it was asked for.
    vmap: Option<bindings::iosys_map>,
    /// How many open files have it.
    files: u32,
}

// SAFETY: What `vmap` points to is only used under the lock.
unsafe impl Send for Bo {}

/// An object, as it is behind its buffer.
struct Locked(UnsafeCell<Bo>);

// SAFETY: Whoever holds the reservation lock has it to itself.
unsafe impl Sync for Locked {}

/// The object behind a buffer that was exported with `OPS`.
///
/// # Safety
///
/// It must be reserved while the result is used.
unsafe fn bo<'a>(buf: *mut bindings::dma_buf) -> &'a mut Bo {
    // SAFETY: Who holds the reservation lock is the only user.
    unsafe {
        dmabuf::assert_held(buf);
        &mut *dmabuf::data::<Locked>(buf).0.get()
    }
}

/// # Safety
///
/// It must be a buffer that was exported with `OPS`.
unsafe fn info(reserved: &Reserved<'_>) -> Info {
    // SAFETY: It was exported with `OPS`, and so has a `Bo`, which is ours while it is reserved.
    unsafe {
        let bo = bo(reserved.as_ptr());
        Info {
            pinned: bo.pins.pages().len() as u64,
            resident: bo.pins.pages().len() as u64,
            sharers: bo.files,
            ..Info::of_object(reserved)
        }
    }
}

/// An object that an open file has.
///
/// # Invariants
///
/// The buffer was exported with `OPS`.
struct Handle(Buf);

impl Handle {
    fn create(device: &'static Device, pages: usize) -> Result<Self> {
        let size = pages << PAGE_SHIFT;
        let bo = KBox::new(
            Locked(UnsafeCell::new(Bo {
                device,
                pins: PinArray::with_capacity(pages, PinFlags::WRITE | PinFlags::RETRY_MAYFAIL)?,
                file: style::shmem_unevictable(size)?,
                vmap: None,
                files: 0,
            })),
            GFP_KERNEL_ACCOUNT,
        )?;
        // SAFETY: `OPS` is made for this. The reference on the new buffer is ours.
        let handle = unsafe {
            Self::new(Buf::from_raw(dmabuf::export(
                c"pagekit_nouveau_style",
                this_module::<LocalModule>(),
                &OPS,
                size,
                bindings::O_RDWR,
                bo,
            )?))
        };
        handle
            .reserved(|bo| bo.pins.pin_memfd(&bo.file, 0, pages))
            .map_err(shmem::enomem)?;
        let mut objects = device.objects.lock();
        objects.add(&handle.0)?;
        drop(objects);
        Ok(handle)
    }

    /// # Safety
    ///
    /// `buf` must have been exported with `OPS`.
    unsafe fn new(buf: Buf) -> Self {
        // INVARIANT: As the caller promises.
        let this = Self(buf);
        this.reserved(|bo| bo.files += 1);
        this
    }

    fn reserved<R>(&self, work: impl FnOnce(&mut Bo) -> R) -> R {
        let _reserved = self.0.reserve();
        // SAFETY: It was reserved just now, and is ours by the type invariants.
        work(unsafe { bo(self.0.as_ptr()) })
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.reserved(|bo| bo.files -= 1);
    }
}

static OPS: bindings::dma_buf_ops = bindings::dma_buf_ops {
    map_dma_buf: Some(map_dma_buf),
    unmap_dma_buf: Some(dmabuf::unmap),
    begin_cpu_access: Some(dmabuf::begin_cpu_access),
    end_cpu_access: Some(dmabuf::end_cpu_access),
    mmap: Some(mmap),
    vmap: Some(vmap),
    vunmap: Some(vunmap),
    release: Some(release),
    ..pin_init::zeroed()
};

// What the dma-buf core calls, with buffers that were exported with `OPS`.

/// # Safety
///
/// To be called by the core, under the reservation lock.
unsafe extern "C" fn map_dma_buf(
    attachment: *mut bindings::dma_buf_attachment,
    dir: bindings::dma_data_direction,
) -> *mut bindings::sg_table {
    // SAFETY: The core passes an attachment of a buffer of ours, which stays pinned.
    unsafe {
        let pages = bo((*attachment).dmabuf).pins.pages();
        dmabuf::table_or_err(dmabuf::map(attachment, pages, dir))
    }
}

/// # Safety
///
/// To be called by the core, under the mmap lock.
unsafe extern "C" fn mmap(
    buf: *mut bindings::dma_buf,
    vma: *mut bindings::vm_area_struct,
) -> c_int {
    // SAFETY: The core passes a buffer of ours, and a VMA that is being set up and is never made a
    // mixed mapping. The VMA holds the file of the buffer, so that the pages outlive it. They were
    // pinned for writing.
    from_result(|| unsafe {
        bindings::dma_resv_lock((*buf).resv, null_mut());
        let result = map_pfns(VmaNew::from_raw(vma), bo(buf).pins.pages(), 0);
        bindings::dma_resv_unlock((*buf).resv);
        result.map(|()| 0)
    })
}

/// # Safety
///
/// To be called by the core, under the reservation lock.
unsafe extern "C" fn vmap(buf: *mut bindings::dma_buf, map: *mut bindings::iosys_map) -> c_int {
    // SAFETY: The core passes a buffer of ours, and a map to be filled in.
    from_result(|| unsafe {
        let bo = bo(buf);
        if let Some(kept) = bo.vmap {
            *map = kept;
        } else {
            dmabuf::vmap(bo.pins.pages(), &mut *map)?;
            bo.vmap = Some(*map);
        }
        Ok(0)
    })
}

/// # Safety
///
/// To be called by the core, under the reservation lock.
unsafe extern "C" fn vunmap(_buf: *mut bindings::dma_buf, _map: *mut bindings::iosys_map) {
    // It is kept.
}

/// # Safety
///
/// To be called by the core, when the last file descriptor, mapping and importer has gone.
unsafe extern "C" fn release(buf: *mut bindings::dma_buf) {
    // SAFETY: The core passes a buffer of ours.
    let device = unsafe {
        let _reserved = import::reserve(buf);
        bo(buf).device
    };
    device.objects.lock().remove(buf);
    // SAFETY: The core passes a buffer of ours, for the last time, and it is in no list any more.
    let mut bo = unsafe { dmabuf::release::<Locked>(buf) };
    let bo = bo.0.get_mut();
    if let Some(map) = bo.vmap {
        // SAFETY: `vmap` has filled it in, and nobody uses it any more.
        unsafe { dmabuf::vunmap(&map) };
    }
}

// --- Foreign buffers ----------------------------------------------------------------

/// A foreign buffer that an open file has, attached to our device.
struct Import {
    attachment: Attachment<'static>,
    /// Also a pointer to this is in the attachment. Under the reservation lock.
    mapping: KBox<Mapping>,
}

// SAFETY: The mapping is only used under the reservation lock, by any thread.
unsafe impl Send for Import {}
// SAFETY: Nothing in it is used without the reservation lock, which one thread has at a time.
unsafe impl Sync for Import {}

/// How the device has a foreign buffer mapped. Cells, because exporters may also call back while
/// they map.
struct Mapping {
    wanted: Cell<Option<bindings::dma_data_direction>>,
    /// Null if it is not, or not now. Mapped as is wanted.
    table: Cell<*mut bindings::sg_table>,
}

static ATTACH_OPS: bindings::dma_buf_attach_ops = bindings::dma_buf_attach_ops {
    allow_peer2peer: false,
    invalidate_mappings: Some(invalidate_mappings),
};

/// # Safety
///
/// To be called by the exporter, under the reservation lock.
unsafe extern "C" fn invalidate_mappings(attachment: *mut bindings::dma_buf_attachment) {
    // SAFETY: The attachment is ours, and has a pointer to its mapping.
    unsafe { (*(*attachment).importer_priv.cast::<Mapping>()).undo(attachment) };
}

impl Import {
    fn new(buf: Buf, device: &'static import::Device) -> Result<Self> {
        let mapping = KBox::new(
            Mapping {
                wanted: Cell::new(None),
                table: Cell::new(null_mut()),
            },
            GFP_KERNEL_ACCOUNT,
        )?;
        let data = from_ref(&*mapping).cast_mut().cast();
        // SAFETY: The mapping is dropped after the attachment.
        let attachment = unsafe { Attachment::dynamic(buf, device, &ATTACH_OPS, data) }?;
        Ok(Self {
            attachment,
            mapping,
        })
    }

    fn map(&self, dir: bindings::dma_data_direction) -> Result<isize> {
        let _reserved = self.attachment.buf().reserve_interruptible()?;
        if self.mapping.wanted.get().is_some() {
            return Err(EBUSY);
        }
        self.mapping.wanted.set(Some(dir));
        // SAFETY: It is reserved, and this is its attachment.
        unsafe { self.mapping.again(&self.attachment) }
            .inspect_err(|_| self.mapping.wanted.set(None))?;
        Ok(0)
    }

    fn unmap(&self) -> Result<isize> {
        let _reserved = self.attachment.buf().reserve();
        if self.mapping.wanted.get().is_none() {
            return Err(EINVAL);
        }
        // SAFETY: It is reserved, and this is its attachment.
        unsafe { self.mapping.undo(self.attachment.as_ptr()) };
        self.mapping.wanted.set(None);
        Ok(0)
    }
}

impl Drop for Import {
    fn drop(&mut self) {
        // Unless it was not mapped.
        let _ = self.unmap();
    }
}

impl Mapping {
    /// Maps what is wanted, if it isn't mapped.
    ///
    /// # Safety
    ///
    /// `attachment` must be the one of this mapping, and the buffer reserved.
    unsafe fn again(&self, attachment: &Attachment<'_>) -> Result {
        // SAFETY: It is attached to a buffer.
        unsafe { dmabuf::assert_held(attachment.buf().as_ptr()) };
        if let Some(dir) = self.wanted.get().filter(|_| self.table.get().is_null()) {
            // SAFETY: The buffer is reserved. `Import` unmaps the attachment before it detaches.
            self.table.set(unsafe { attachment.map(dir) }?);
        }
        Ok(())
    }

    /// Unmaps it, if it is mapped.
    ///
    /// # Safety
    ///
    /// `attachment` must be the one of this mapping, and the buffer reserved.
    unsafe fn undo(&self, attachment: *mut bindings::dma_buf_attachment) {
        // SAFETY: It is attached to a buffer.
        unsafe { dmabuf::assert_held((*attachment).dmabuf) };
        let table = self.table.replace(null_mut());
        if let Some(dir) = self.wanted.get().filter(|_| !table.is_null()) {
            // SAFETY: It was mapped so, for this attachment, and the buffer is reserved.
            unsafe { bindings::dma_buf_unmap_attachment(attachment, table, dir) };
        }
    }
}
