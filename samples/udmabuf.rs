// SPDX-License-Identifier: GPL-2.0

//! dma-bufs from memfds: a drop-in for `/dev/udmabuf`.
//!
//! The policy of this driver, which no helper knows of:
//!
//! * Pages are pinned when the buffer is created, under the shared inode lock of the memfd so that
//!   its seals stay as they were checked, and unpinned when the buffer is released.
//! * What is mapped for devices hangs off the attachments, and so is under the reservation lock of
//!   the buffer, which the dma-buf core holds in map, unmap, vmap and vunmap, and which
//!   begin/end_cpu_access take. There is no other lock.
//! * CPU mappings are of PFNs, on fault, by huge pages where buffer and address are aligned: users
//!   of the memfd may punch holes at will.
//!
//! C: `drivers/dma-buf/udmabuf.c`.

use core::{
    iter::from_fn,
    slice::from_raw_parts, //
};
use kernel::{
    bindings,
    fs::{
        file::flags::{
            O_ACCMODE,
            O_RDONLY, //
        },
        File,
        LocalFile, //
    },
    ioctl::_IOW,
    miscdevice::{
        MiscDevice,
        MiscDeviceOptions,
        MiscDeviceRegistration, //
    },
    page::{
        PAGE_SHIFT,
        PAGE_SIZE, //
    },
    prelude::*,
    sync::aref::ARef,
    transmute::FromBytes,
    uaccess::{
        UserPtr,
        UserSlice, //
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

use compat::{
    ebadfd,
    hold_module,
    this_module, //
};

module! {
    type: Device,
    name: "pagekit_udmabuf",
    authors: ["The pagekit authors"],
    description: "pagekit sample: dma-bufs from memfds",
    license: "GPL",
    imports_ns: ["DMA_BUF"],
}

#[allow(
    improper_ctypes,
    reason = "Some configurations have fields of size zero in structs that are only pointed to."
)]
extern "C" {
    // Module parameters and static inlines, see udmabuf_shim.c.
    static pagekit_udmabuf_name: *const c_char;
    static pagekit_udmabuf_list_limit: c_int;
    static pagekit_udmabuf_size_limit_mb: c_int;
    fn pagekit_udmabuf_name_is_taken() -> bool;
    fn pagekit_udmabuf_seals(file: *mut bindings::file) -> *const c_uint;
}

// --- The device -----------------------------------------------------------------

#[pin_data]
struct Device {
    #[pin]
    misc: MiscDeviceRegistration<Control>,
}

impl kernel::InPlaceModule for Device {
    fn init(_module: &'static ThisModule) -> impl PinInit<Self, Error> {
        // Not `CStr::from_char_ptr()`, which checks for overflow and says where.
        // SAFETY: The parameter is a string, and read only: it stays while the module is loaded.
        let name = unsafe {
            let len = bindings::strlen(pagekit_udmabuf_name).wrapping_add(1);
            CStr::from_bytes_with_nul_unchecked(from_raw_parts(pagekit_udmabuf_name.cast(), len))
        };
        try_pin_init!(Self {
            // Of either the core would warn.
            _: {
                if name.is_empty() {
                    return Err(EINVAL);
                }
                // SAFETY: It reads the parameter.
                if unsafe { pagekit_udmabuf_name_is_taken() } {
                    return Err(EBUSY);
                }
            },
            misc <- MiscDeviceRegistration::register(MiscDeviceOptions { name }),
        })
    }
}

/// `struct udmabuf_create` and `struct udmabuf_create_item`, which has padding for the flags.
#[repr(C)]
struct Item {
    memfd: u32,
    flags: u32,
    offset: u64,
    size: u64,
}

// SAFETY: It consists of integers, and has no padding.
unsafe impl FromBytes for Item {}

const UDMABUF_CREATE: u32 = _IOW::<Item>('u' as u32, 0x42);
/// Its size is that of `struct udmabuf_create_list` without the items: `flags` and `count`.
const UDMABUF_CREATE_LIST: u32 = _IOW::<[u32; 2]>('u' as u32, 0x43);
const UDMABUF_FLAGS_CLOEXEC: u32 = 1;

struct Control;

#[vtable]
impl MiscDevice for Control {
    type Ptr = ();

    fn open(file: &File, _misc: &MiscDeviceRegistration<Self>) -> Result {
        hold_module(file)
    }

    fn ioctl(_device: (), _file: &File, cmd: u32, arg: usize) -> Result<isize> {
        let is_list = match cmd {
            UDMABUF_CREATE => false,
            UDMABUF_CREATE_LIST => true,
            _ => return Err(ENOTTY),
        };
        let user = |at, len| UserSlice::new(UserPtr::from_addr(at), len);
        // `memfd` and `flags` of one item, `flags` and `count` of a list.
        let head: [u32; 2] = user(arg, size_of::<[u32; 2]>()).reader().read()?;
        let (flags, count, at) = if is_list {
            // SAFETY: The parameter is an int that may be written to at any time.
            let limit = unsafe { (&raw const pagekit_udmabuf_list_limit).read_volatile() };
            // Not 0 either, which wraps.
            if head[1].wrapping_sub(1) >= limit as u32 {
                return Err(EINVAL);
            }
            (head[0], head[1], arg.wrapping_add(size_of_val(&head)))
        } else {
            (head[1], 1, arg)
        };
        let mut items = KVVec::new();
        user(at, count as usize * size_of::<Item>())
            .read_all(&mut items, GFP_KERNEL_ACCOUNT | __GFP_NOWARN)?;
        Ok(create(flags, &items)? as isize)
    }
}

/// Makes a buffer of ranges of memfds and returns a file descriptor for it.
fn create(flags: u32, items: &[u8]) -> Result<c_int> {
    let items = || {
        let mut rest = items;
        from_fn(move || {
            let (item, tail) = Item::from_bytes_copy_prefix(rest)?;
            rest = tail;
            Some(item)
        })
    };
    // SAFETY: The parameter is an int that may be written to at any time.
    let limit_mb = unsafe { (&raw const pagekit_udmabuf_size_limit_mb).read_volatile() };
    // A negative limit is none, as for mainline's driver.
    let limit = ((limit_mb as u64) << 20) >> PAGE_SHIFT;
    let mut count = 0;
    for item in items() {
        // No overflow: `count` is at most `limit`.
        count += item.size >> PAGE_SHIFT;
        if (item.offset | item.size) % PAGE_SIZE as u64 != 0 || count > limit {
            return Err(EINVAL);
        }
    }
    if count == 0 {
        return Err(EINVAL);
    }

    let room = KBox::new_uninit(GFP_KERNEL_ACCOUNT)?;
    let pins = PinArray::with_capacity(count as usize, PinFlags::WRITE)?;
    let mut data = KBox::write(room, Udmabuf { pins });
    for item in items() {
        let memfd = SealedFile::lock(LocalFile::fget(item.memfd).map_err(|_| ebadfd())?)?;
        data.pins.pin_memfd(
            &memfd.0,
            (item.offset >> PAGE_SHIFT) as usize,
            (item.size >> PAGE_SHIFT) as usize,
        )?;
    }

    let cloexec = if flags & UDMABUF_FLAGS_CLOEXEC != 0 {
        bindings::O_CLOEXEC
    } else {
        0
    };
    // SAFETY: `OPS` is made for `Udmabuf`. The reference on the new buffer is ours.
    unsafe {
        let buf = dmabuf::export(
            c"pagekit_udmabuf",
            this_module::<LocalModule>(),
            &OPS,
            (count as usize) << PAGE_SHIFT,
            bindings::O_RDWR,
            data,
        )?;
        dmabuf::into_fd(buf, cloexec)
    }
}

/// A memfd that may be written to, and whose seals are as udmabuf wants them and stay so while this
/// lives.
///
/// # Invariants
///
/// The inode of the file is locked shared.
struct SealedFile(ARef<LocalFile>);

impl SealedFile {
    fn lock(file: ARef<LocalFile>) -> Result<Self> {
        let raw = file.as_ptr();
        // SAFETY: The file is open, and so has an inode.
        unsafe { bindings::down_read(&raw mut (*(*raw).f_inode).i_rwsem) };
        // INVARIANT: It was locked just now.
        let this = Self(file);
        // SAFETY: The file is open. The seals that this points to don't change: that takes the lock
        // of the inode exclusively.
        let seals = *unsafe { pagekit_udmabuf_seals(raw).as_ref() }.ok_or_else(ebadfd)?;
        let denied = bindings::F_SEAL_WRITE | bindings::F_SEAL_FUTURE_WRITE;
        if seals & (bindings::F_SEAL_SHRINK | denied) != bindings::F_SEAL_SHRINK {
            return Err(EINVAL);
        }
        // Whoever has the buffer may write.
        if this.0.flags() & O_ACCMODE == O_RDONLY {
            return Err(EACCES);
        }
        Ok(this)
    }
}

impl Drop for SealedFile {
    fn drop(&mut self) {
        // SAFETY: By the type invariants it is locked, by us.
        unsafe { bindings::up_read(&raw mut (*(*self.0.as_ptr()).f_inode).i_rwsem) };
    }
}

// --- The buffers ------------------------------------------------------------------

struct Udmabuf {
    pins: PinArray,
}

impl dmabuf::Pages for Udmabuf {
    fn pages(&self) -> &[PageRef<'_, PfnOnly>] {
        self.pins.pages()
    }
}

static OPS: bindings::dma_buf_ops = bindings::dma_buf_ops {
    mmap: Some(dmabuf::mmap::<Udmabuf>),
    ..dmabuf::ops::<Udmabuf>()
};
