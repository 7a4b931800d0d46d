// SPDX-License-Identifier: GPL-2.0

//! A driver in the style of radeon: `/dev/pagekit-radeon`, see `pagekit_style.h`.
//!
//! Its policy, which no helper knows of:
//!
//! * Each object has a reservation, a mutex of its own that comes after all other locks; only that
//!   of a foreign object comes before the reservation lock of its buffer. Who reserves an object
//!   waits for others unless it is killed, or asks not to (`EBUSY`). The copies of the driver and
//!   the count of those who share the object are under it.
//! * Pages are pinned when an object is created, while it is reserved, and unpinned when it is
//!   released. As pinned pages stay, mapping them needs no reservation, and reclaim leaves those of
//!   a file alone.
//! * Objects may be of user memory, which is accounted as locked memory of the user for as long as
//!   they exist: that of the process would end with it, or with an `exec()`, while pages stay
//!   pinned. They are not exported (`EPERM`): their memory goes with the process.
//! * CPU mappings are of PFNs, on fault, by huge pages where they fit.
//! * The mapping for the kernel lasts from the first to the last who asks for it.
//! * Foreign buffers may not move while they are mapped: the driver would not notice.

use core::{
    pin::Pin,
    ptr::{
        from_ref,
        NonNull, //
    }, //
};
use kernel::{
    bindings,
    container_of,
    debugfs,
    fs::File,
    miscdevice::{
        MiscDevice,
        MiscDeviceOptions,
        MiscDeviceRegistration, //
    },
    new_mutex,
    page::PAGE_SHIFT,
    prelude::*,
    seq_file::SeqFile,
    sync::{
        aref::ARef,
        Mutex,
        SetOnce, //
    }, //
};
use pagekit_pin::{
    PinArray,
    PinFlags, //
};
use pagekit_view::{
    PageRef,
    PfnOnly, //
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
use dmabuf::Pages;
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
    Info,
    Objects, //
};

module! {
    type: Device,
    name: "pagekit_radeon_style",
    authors: ["The pagekit authors"],
    description: "pagekit sample: a driver in the style of radeon",
    license: "GPL",
    imports_ns: ["DMA_BUF"],
}

#[allow(
    improper_ctypes,
    reason = "Some configurations have fields of size zero in structs that are only pointed to."
)]
extern "C" {
    // A module parameter, see style_shim.h.
    #[link_name = "pagekit_radeon_size_limit_mb"]
    static SIZE_LIMIT_MB: c_int;
    // See radeon_style_shim.c.
    fn pagekit_radeon_account(pages: usize) -> *mut bindings::user_struct;
    fn pagekit_radeon_unaccount(user: *mut bindings::user_struct, pages: usize);
}

// --- The device -----------------------------------------------------------------

#[pin_data]
struct Device {
    #[pin]
    misc: MiscDeviceRegistration<Context>,
    dma: import::Device,
    /// `/sys/kernel/debug/pagekit-radeon/objects`
    #[pin]
    objects: debugfs::File<Mutex<Objects>>,
}

impl kernel::InPlaceModule for Device {
    fn init(_module: &'static ThisModule) -> impl PinInit<Self, Error> {
        let debugfs = debugfs::Dir::new(c"pagekit-radeon");
        try_pin_init!(Self {
            objects <- debugfs.read_callback_file(
                c"objects",
                new_mutex!(Objects(KVVec::new()), "Device::objects"),
                &|objects: &Mutex<Objects>, f| {
                    // SAFETY: What is in the list is ours.
                    objects.lock().show(f, |bo| unsafe { info(bo, true) })
                },
            ),
            dma: import::Device::new(c"pagekit-radeon")?,
            misc <- MiscDeviceRegistration::register(MiscDeviceOptions {
                name: c"pagekit-radeon",
            }),
        })
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
        match Command::read(cmd, arg)? {
            Command::Create(create) => {
                context.fill(|| Ok(Object::Own(Handle::create(context.device, &create)?)))
            }
            Command::Import(buf) => context.fill(|| {
                Ok(if buf.has_ops(&OPS) {
                    // SAFETY: It was exported with them.
                    Object::Own(unsafe { Handle::new(buf) })
                } else {
                    Object::Foreign(Import::new(buf, &context.device.dma)?)
                })
            }),
            Command::Export { cloexec } => context.object()?.export(cloexec),
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

    fn export(&self, cloexec: u32) -> Result<isize> {
        match self {
            Self::Own(handle) if handle.bo().account.is_some() => Err(EPERM),
            _ => self.buf().fd(cloexec),
        }
    }

    fn access(&self, access: style::Access) -> Result<isize> {
        let nowait = access.nowait();
        let mut copy = access.begin(self.buf())?;
        match self {
            Self::Own(handle) => {
                let _reserved = lock(&handle.bo().reservation, nowait)?;
                copy.run();
            }
            Self::Foreign(import) => {
                let _reserved = lock(&import.mapping, nowait)?;
                copy.run();
            }
        }
        copy.finish()?;
        Ok(0)
    }

    fn info(&self, nowait: bool) -> Result<Info> {
        let buf = self.buf();
        match self {
            // SAFETY: It is ours.
            Self::Own(_) => unsafe { info(&style::reserve(buf, nowait)?, nowait) },
            Self::Foreign(import) => Ok(Info::of_import(buf, style::is_mapped(&import.mapping))),
        }
    }
}

// --- Its objects ------------------------------------------------------------------

/// An object.
#[pin_data]
struct Bo {
    device: &'static Device,
    /// Since its creation.
    pins: SetOnce<PinArray>,
    #[pin]
    reservation: Mutex<Shared>,
    /// Which the pages are from, unless they are user memory.
    file: Option<ARef<File>>,
    /// If they are.
    account: Option<Account>,
}

/// What is under the reservation of an object.
struct Shared {
    /// How many open files have it, and how many devices are attached to it.
    sharers: u32,
}

impl Bo {
    fn new(device: &'static Device, create: &Create) -> Result<Pin<KBox<Self>>> {
        let pages = create.pages(style::CREATE_USERPTR)?;
        let mut pins = PinArray::with_capacity(pages, PinFlags::WRITE | PinFlags::RETRY_MAYFAIL)?;
        // Before anything is pinned, so that nothing that is pinned is ever not accounted for.
        let room = KBox::<Self>::new_uninit(GFP_KERNEL_ACCOUNT)?;
        let (file, account) = if create.has(style::CREATE_USERPTR) {
            let account = Account::new(pages)?;
            // Takes the mmap lock, after which comes the reservation.
            pins.pin_user(create.address()?, pages)?;
            (None, Some(account))
        } else {
            (Some(style::shmem_unevictable(pages << PAGE_SHIFT)?), None)
        };
        let bo = room.write_pin_init(pin_init!(Self {
            device,
            pins: SetOnce::new(),
            reservation <- new_mutex!(Shared { sharers: 0 }, "Bo::reservation"),
            file,
            account,
        }))?;
        let reserved = lock(&bo.reservation, false)?;
        if let Some(file) = &bo.file {
            pins.pin_memfd(file, 0, pages).map_err(shmem::enomem)?;
        }
        bo.pins.populate(pins);
        drop(reserved);
        Ok(bo)
    }
}

// Nobody maps user memory here: that takes a file descriptor of the buffer, and there is none.
impl dmabuf::Pages for Bo {
    fn pages(&self) -> &[PageRef<'_, PfnOnly>] {
        self.pins.as_ref().map_or(&[], PinArray::pages)
    }
}

/// # Safety
///
/// It must be a buffer that was exported with `OPS`.
unsafe fn info(reserved: &Reserved<'_>, nowait: bool) -> Result<Info> {
    // SAFETY: The caller promises that it was exported with `OPS`, and so with a `Bo`. It stays
    // while it is reserved.
    unsafe {
        let bo = dmabuf::data::<Bo>(reserved.as_ptr());
        Ok(Info {
            pinned: bo.pages().len() as u64,
            resident: bo.pages().len() as u64,
            sharers: lock(&bo.reservation, nowait)?.sharers,
            ..Info::of_object(reserved)
        })
    }
}

/// Pages accounted as locked memory of the user whose process has made an object of them.
///
/// # Invariants
///
/// They are accounted to `user`, on which this owns a reference.
struct Account {
    user: NonNull<bindings::user_struct>,
    pages: usize,
}

// SAFETY: Users are reference counted, and any thread may account to them.
unsafe impl Send for Account {}
// SAFETY: There is nothing to be done with a shared reference.
unsafe impl Sync for Account {}

impl Account {
    fn new(pages: usize) -> Result<Self> {
        // SAFETY: This is a system call of a process, which has a user.
        let user = NonNull::new(unsafe { pagekit_radeon_account(pages) }).ok_or(ENOMEM)?;
        // INVARIANT: They were accounted just now, and the reference is ours.
        Ok(Self { user, pages })
    }
}

impl Drop for Account {
    fn drop(&mut self) {
        // SAFETY: By the type invariants, they were accounted.
        unsafe { pagekit_radeon_unaccount(self.user.as_ptr(), self.pages) };
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
        let bo = Bo::new(device, create)?;
        let size = bo.pages().len() << PAGE_SHIFT;
        // SAFETY: `OPS` is made for this, and doesn't move it. The reference on the new buffer is
        // ours.
        let handle = unsafe {
            Self::new(Buf::from_raw(dmabuf::export(
                c"pagekit_radeon_style",
                this_module::<LocalModule>(),
                &OPS,
                size,
                bindings::O_RDWR,
                Pin::into_inner_unchecked(bo),
            )?))
        };
        let mut objects = device.objects.lock();
        objects.add(&handle.0)?;
        drop(objects);
        Ok(handle)
    }

    /// # Safety
    ///
    /// `buf` must have been exported with `OPS`.
    unsafe fn new(buf: Buf) -> Self {
        // INVARIANT: The caller promises that it was exported with `OPS`.
        let this = Self(buf);
        this.bo().reservation.lock().sharers += 1;
        this
    }

    fn bo(&self) -> &Bo {
        // SAFETY: By the type invariants, it is ours. It stays while this has a reference.
        unsafe { dmabuf::data(self.0.as_ptr()) }
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.bo().reservation.lock().sharers -= 1;
    }
}

static OPS: bindings::dma_buf_ops = bindings::dma_buf_ops {
    attach: Some(attach),
    detach: Some(detach),
    mmap: Some(dmabuf::mmap::<Bo>),
    release: Some(release),
    ..dmabuf::ops::<Bo>()
};

// What the dma-buf core calls beside that, with buffers that were exported with `OPS`.

/// # Safety
///
/// To be called by the core, which holds no lock.
unsafe extern "C" fn attach(
    buf: *mut bindings::dma_buf,
    _attachment: *mut bindings::dma_buf_attachment,
) -> c_int {
    // SAFETY: The core passes a buffer of ours.
    unsafe { dmabuf::data::<Bo>(buf) }
        .reservation
        .lock()
        .sharers += 1;
    0
}

/// # Safety
///
/// To be called by the core, which holds no lock.
unsafe extern "C" fn detach(
    buf: *mut bindings::dma_buf,
    _attachment: *mut bindings::dma_buf_attachment,
) {
    // SAFETY: The core passes a buffer of ours.
    unsafe { dmabuf::data::<Bo>(buf) }
        .reservation
        .lock()
        .sharers -= 1;
}

/// # Safety
///
/// To be called by the core, when the last file descriptor, mapping and importer has gone.
unsafe extern "C" fn release(buf: *mut bindings::dma_buf) {
    // SAFETY: The core passes a buffer of ours, for the last time. Who looks at the list is done
    // with it when it has been removed. This unpins.
    unsafe {
        dmabuf::data::<Bo>(buf).device.objects.lock().remove(buf);
        drop(dmabuf::release::<Bo>(buf));
    }
}

// --- Foreign buffers ----------------------------------------------------------------

/// A foreign buffer that an open file has, attached to our device.
#[pin_data(PinnedDrop)]
struct Import {
    attachment: Attachment<'static>,
    /// How the device has it mapped. The reservation of the object here, which comes before the
    /// reservation lock of the buffer.
    #[pin]
    mapping: Mutex<Option<Mapping>>,
}

impl Import {
    fn new(buf: Buf, device: &'static import::Device) -> Result<Pin<KBox<Self>>> {
        KBox::try_pin_init(
            try_pin_init!(Self {
                attachment: Attachment::new(buf, device)?,
                mapping <- new_mutex!(None, "Import::mapping"),
            }),
            GFP_KERNEL_ACCOUNT,
        )
    }

    fn map(&self, dir: bindings::dma_data_direction) -> Result<isize> {
        let mut mapping = lock(&self.mapping, false)?;
        if mapping.is_some() {
            return Err(EBUSY);
        }
        let _reserved = self.attachment.buf().reserve_interruptible()?;
        // SAFETY: It is reserved. What was mapped is unmapped before it is detached.
        let table = unsafe { self.attachment.map(dir) }?;
        *mapping = Some(Mapping { table, dir });
        Ok(0)
    }

    fn unmap(&self) -> Result<isize> {
        let Mapping { table, dir } = self.mapping.lock().take().ok_or(EINVAL)?;
        // SAFETY: It was mapped so. Its reservation lock is not held.
        unsafe {
            bindings::dma_buf_unmap_attachment_unlocked(self.attachment.as_ptr(), table, dir);
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
