// SPDX-License-Identifier: GPL-2.0

//! The user interface that three samples share, `pagekit_style.h`: what comes in is read and
//! checked, and data is copied to user space and back.
//!
//! What a command does, when and under which lock is the driver's.

#![allow(dead_code, reason = "No driver has all commands.")]

use crate::{
    compat::{
        DMA_BIDIRECTIONAL,
        DMA_FROM_DEVICE,
        DMA_TO_DEVICE, //
    },
    dmabuf,
    import::{
        try_reserve,
        Buf,
        Reserved, //
    },
    shmem::{
        enomem,
        set_unevictable, //
    }, //
};
use core::ptr::{
    from_ref,
    NonNull, //
};
use kernel::{
    bindings,
    error::{
        from_err_ptr,
        to_result, //
    },
    fmt,
    fs::File,
    ioctl::{
        _IO,
        _IOR,
        _IOW, //
    },
    page::{
        PAGE_SHIFT,
        PAGE_SIZE, //
    },
    prelude::*,
    seq_file::SeqFile,
    seq_print,
    sync::{
        aref::ARef,
        lock::mutex::MutexGuard,
        Mutex,
        SetOnce, //
    },
    transmute::{
        AsBytes,
        FromBytes, //
    },
    uaccess::{
        UserPtr,
        UserSlice, //
    }, //
};

#[allow(
    improper_ctypes,
    reason = "Some configurations have fields of size zero in structs that are only pointed to."
)]
extern "C" {
    // Static inlines, see style_shim.h.
    fn pagekit_style_lock_killable(mutex: *mut bindings::mutex) -> c_int;
    fn pagekit_style_shmem(size: bindings::loff_t) -> *mut bindings::file;
    fn pagekit_style_kill_nobody(mapping: *mut bindings::address_space);
    fn pagekit_style_copy_from(
        to: *mut c_void,
        map: *const bindings::iosys_map,
        offset: usize,
        len: usize,
    );
    fn pagekit_style_copy_to(
        map: *mut bindings::iosys_map,
        offset: usize,
        from: *const c_void,
        len: usize,
    );
}

pub(crate) const CREATE_SHMEM_MMAP: u32 = 1 << 0;
pub(crate) const CREATE_USERPTR: u32 = 1 << 1;
const EXPORT_CLOEXEC: u32 = 1 << 0;
const MAP_READ: u32 = 1 << 0;
const MAP_WRITE: u32 = 1 << 1;
const ACCESS_WRITE: u32 = 1 << 0;
const ACCESS_NOWAIT: u32 = 1 << 1;
const WEDGE_MAX: u32 = 100_000;
pub(crate) const INFO_IMPORTED: u32 = 1 << 0;
pub(crate) const INFO_WEDGED: u32 = 1 << 1;
const SHRINK_REVOKE: u32 = 1 << 0;

/// `struct pagekit_create`.
#[repr(C)]
pub(crate) struct Create {
    size: u64,
    address: u64,
    flags: u32,
    reserved: u32,
}

// SAFETY: It consists of integers, and has no padding.
unsafe impl FromBytes for Create {}

impl Create {
    /// The number of pages, if they are no more than the driver's parameter allows and no other
    /// flags are set than those that it knows.
    pub(crate) fn pages(&self, known: u32) -> Result<usize> {
        // A file can't be larger.
        let pages = bindings::loff_t::try_from(self.size)? as usize >> PAGE_SHIFT;
        // SAFETY: The parameter is an int that may be written to at any time.
        let limit_mb = unsafe { (&raw const crate::SIZE_LIMIT_MB).read_volatile() };
        if self.flags & !known != 0
            || self.address != 0 && self.flags & CREATE_USERPTR == 0
            || self.size % PAGE_SIZE as u64 != 0
            || pages == 0
            // A negative limit is none, as for mainline's udmabuf.
            || pages as u64 > ((limit_mb as u64) << 20) >> PAGE_SHIFT
        {
            return Err(EINVAL);
        }
        // Objects are in memory as a whole or not at all.
        dmabuf::check_fits_ram(pages)?;
        // The kernel makes no larger array.
        if pages > i32::MAX as usize / size_of::<usize>() {
            return Err(ENOMEM);
        }
        Ok(pages)
    }

    pub(crate) fn has(&self, flag: u32) -> bool {
        self.flags & flag != 0
    }

    pub(crate) fn address(&self) -> Result<usize> {
        Ok(usize::try_from(self.address)?)
    }
}

/// `struct pagekit_access`.
#[repr(C)]
pub(crate) struct Access {
    offset: u64,
    length: u64,
    address: u64,
    flags: u32,
    reserved: u32,
}

// SAFETY: It consists of integers, and has no padding.
unsafe impl FromBytes for Access {}

impl Access {
    pub(crate) fn nowait(&self) -> bool {
        self.flags & ACCESS_NOWAIT != 0
    }

    /// Fetches what is to be written, begins CPU access to `buf` and maps it. No lock may be held:
    /// user memory may be a mapping of this very buffer.
    pub(crate) fn begin(self, buf: &Buf) -> Result<Copy<'_>> {
        let offset = usize::try_from(self.offset)?;
        let len = usize::try_from(self.length)?;
        if offset > buf.size() || len > buf.size() - offset {
            return Err(EINVAL);
        }
        let user = UserPtr::from_addr(usize::try_from(self.address)?);
        let write = self.flags & ACCESS_WRITE != 0;
        let mut data = KVVec::with_capacity(len, GFP_KERNEL_ACCOUNT | __GFP_NOWARN)?;
        let dir = if write {
            UserSlice::new(user, len).read_all(&mut data, GFP_KERNEL_ACCOUNT)?;
            DMA_TO_DEVICE
        } else {
            DMA_FROM_DEVICE
        };
        // SAFETY: There is a reference on the buffer, and its reservation lock is not held.
        to_result(unsafe { bindings::dma_buf_begin_cpu_access(buf.as_ptr(), dir) })?;
        let mut map = bindings::iosys_map::default();
        let mapped = buf.reserve_interruptible().and_then(|_reserved| {
            // SAFETY: There is a reference on the buffer, and it is reserved.
            to_result(unsafe { bindings::dma_buf_vmap(buf.as_ptr(), &mut map) })
        });
        mapped.inspect_err(|_| {
            // SAFETY: There is a reference on the buffer, and the access to it has begun.
            unsafe { bindings::dma_buf_end_cpu_access(buf.as_ptr(), dir) };
        })?;
        // INVARIANT: As was just done and checked.
        Ok(Copy {
            buf,
            map,
            dir,
            offset,
            len,
            data,
            user,
            write,
        })
    }
}

/// A copy to or from a buffer, for which the driver chooses the moment.
///
/// # Invariants
///
/// CPU access to `buf` has begun, and it is mapped as `map`. `offset` and `len` lie within it.
/// `data` has room for `len` bytes, and as many if they are to be written.
pub(crate) struct Copy<'a> {
    buf: &'a Buf,
    map: bindings::iosys_map,
    dir: bindings::dma_data_direction,
    offset: usize,
    len: usize,
    data: KVVec<u8>,
    user: UserPtr,
    write: bool,
}

impl Copy<'_> {
    /// Copies, touching no user memory.
    pub(crate) fn run(&mut self) {
        if self.write {
            // SAFETY: By the type invariants, both sides have as many bytes.
            unsafe {
                pagekit_style_copy_to(
                    &mut self.map,
                    self.offset,
                    self.data.as_ptr().cast(),
                    self.len,
                )
            };
        } else {
            self.data.clear();
            // SAFETY: By the type invariants, both sides have as many bytes, which are initialised
            // then.
            unsafe {
                pagekit_style_copy_from(
                    self.data.spare_capacity_mut().as_mut_ptr().cast(),
                    &self.map,
                    self.offset,
                    self.len,
                );
                self.data.inc_len(self.len);
            }
        }
    }

    /// Ends CPU access and delivers what was read. No lock may be held.
    pub(crate) fn finish(mut self) -> Result {
        let data = core::mem::replace(&mut self.data, KVVec::new());
        let (user, write) = (self.user, self.write);
        drop(self);
        if write {
            return Ok(());
        }
        UserSlice::new(user, data.len()).writer().write_slice(&data)
    }
}

impl Drop for Copy<'_> {
    fn drop(&mut self) {
        // SAFETY: By the type invariants, it is mapped and CPU access has begun. No driver calls
        // this with the reservation lock held.
        unsafe {
            bindings::dma_buf_vunmap_unlocked(self.buf.as_ptr(), &mut self.map);
            bindings::dma_buf_end_cpu_access(self.buf.as_ptr(), self.dir);
        }
    }
}

/// `struct pagekit_info`.
#[repr(C)]
#[derive(Default)]
pub(crate) struct Info {
    pub(crate) size: u64,
    pub(crate) pinned: u64,
    pub(crate) held: u64,
    pub(crate) resident: u64,
    pub(crate) attachments: u32,
    pub(crate) mappings: u32,
    pub(crate) sharers: u32,
    pub(crate) flags: u32,
}

// SAFETY: It consists of integers, and has no padding.
unsafe impl AsBytes for Info {}

impl Info {
    /// What all drivers say of an object of theirs: they add what is pinned, and so on.
    ///
    /// # Safety
    ///
    /// It must be a buffer whose attachments are mapped by `dmabuf::map`.
    pub(crate) unsafe fn of_object(reserved: &Reserved<'_>) -> Self {
        let buf = reserved.as_ptr();
        // SAFETY: Its attachments are mapped by `dmabuf::map`, and it is reserved. Its size never
        // changes.
        let ((attachments, mappings), size) = unsafe { (dmabuf::users(buf), (*buf).size) };
        Self {
            size: size as u64,
            attachments,
            mappings,
            ..Self::default()
        }
    }

    /// What they say of an import.
    pub(crate) fn of_import(buf: &Buf, is_mapped: bool) -> Self {
        Self {
            size: buf.size() as u64,
            attachments: 1,
            mappings: is_mapped.into(),
            sharers: 1,
            flags: INFO_IMPORTED,
            ..Self::default()
        }
    }

    fn fields(&self) -> [(&'static str, u64); 8] {
        [
            ("size", self.size),
            ("pinned", self.pinned),
            ("held", self.held),
            ("resident", self.resident),
            ("attachments", self.attachments.into()),
            ("mappings", self.mappings.into()),
            ("sharers", self.sharers.into()),
            ("object_flags", self.flags.into()),
        ]
    }

    pub(crate) fn reply(&self, user: UserPtr) -> Result<isize> {
        UserSlice::new(user, size_of::<Self>())
            .writer()
            .write(self)?;
        Ok(0)
    }
}

/// Whether an import is mapped. It is locked while its mapping comes, is used or goes, which an
/// exporter can keep waiting: then it is.
pub(crate) fn is_mapped<T>(mapping: &Mutex<Option<T>>) -> bool {
    mapping.try_lock().is_none_or(|it| it.is_some())
}

/// Takes a mutex, unless a fatal signal comes first, or without waiting: `EBUSY`.
///
/// Faults take it so. Other signals can't end their wait: a fault that gives up is tried again at
/// once, until the lock is free.
pub(crate) fn lock<T>(mutex: &Mutex<T>, nowait: bool) -> Result<MutexGuard<'_, T>> {
    if nowait {
        return mutex.try_lock().ok_or(EBUSY);
    }
    let raw = from_ref(mutex).cast_mut().cast();
    // SAFETY: `Lock` has C layout, and the mutex is what it begins with.
    to_result(unsafe { pagekit_style_lock_killable(raw) })?;
    // SAFETY: It was locked just now.
    Ok(unsafe { MutexGuard::new(mutex, ()) })
}

/// Reserves a buffer, unless a signal comes first, or without waiting: `EBUSY`.
pub(crate) fn reserve(buf: &Buf, nowait: bool) -> Result<Reserved<'_>> {
    if nowait {
        // SAFETY: There is a reference on the buffer for as long as it is borrowed.
        unsafe { try_reserve(buf.as_ptr()) }.ok_or(EBUSY)
    } else {
        buf.reserve_interruptible()
    }
}

/// All objects of a driver. Each is in here from its creation until its release operation.
pub(crate) struct Objects(pub(crate) KVVec<NonNull<bindings::dma_buf>>);

// SAFETY: Buffers may be used by any thread.
unsafe impl Send for Objects {}

impl Objects {
    pub(crate) fn add(&mut self, buf: &Buf) -> Result {
        let flags = GFP_KERNEL_ACCOUNT | __GFP_NOWARN;
        Ok(self.0.push(buf.as_non_null(), flags)?)
    }

    pub(crate) fn remove(&mut self, buf: *mut bindings::dma_buf) {
        self.0.retain(|other| other.as_ptr() != buf);
    }

    /// Has a line for each object in a file of debugfs. Nobody has to wait for who reads it: of an
    /// object that is reserved, or for which `info` would wait, there is only the size.
    pub(crate) fn show(
        &self,
        f: &mut fmt::Formatter<'_>,
        info: impl Fn(&Reserved<'_>) -> Result<Info>,
    ) -> fmt::Result {
        for buf in self.0.iter().map(|buf| buf.as_ptr()) {
            // SAFETY: It is in the list, and stays while that is borrowed. Its size never changes.
            let (reserved, size) = unsafe { (try_reserve(buf), (*buf).size) };
            if let Some(Ok(info)) = reserved.map(|reserved| info(&reserved)) {
                for (name, value) in info.fields() {
                    write!(f, "{name} {value} ")?;
                }
                writeln!(f)?;
            } else {
                writeln!(f, "size {size} reserved")?;
            }
        }
        Ok(())
    }
}

/// What user space asks for.
pub(crate) enum Command {
    Create(Create),
    Import(Buf),
    Export { cloexec: u32 },
    Map(bindings::dma_data_direction),
    Unmap,
    Access(Access),
    Info(UserPtr),
    Wedge { milliseconds: u32 },
    Reset,
    Shrink { revoke: bool },
}

const CREATE: u32 = _IOW::<Create>('K' as u32, 0);
const IMPORT: u32 = _IOW::<i32>('K' as u32, 1);
const EXPORT: u32 = _IOW::<u32>('K' as u32, 2);
const MAP: u32 = _IOW::<u32>('K' as u32, 3);
const UNMAP: u32 = _IO('K' as u32, 4);
const ACCESS: u32 = _IOW::<Access>('K' as u32, 5);
const INFO: u32 = _IOR::<Info>('K' as u32, 6);
const WEDGE: u32 = _IOW::<u32>('K' as u32, 7);
const RESET: u32 = _IO('K' as u32, 8);
const SHRINK: u32 = _IOW::<u32>('K' as u32, 9);

impl Command {
    /// Reads the command, and checks flags and reserved fields.
    pub(crate) fn read(cmd: u32, arg: usize) -> Result<Self> {
        Ok(match cmd {
            CREATE => {
                let create: Create = read(arg)?;
                if create.reserved != 0 {
                    return Err(EINVAL);
                }
                Self::Create(create)
            }
            IMPORT => Self::Import(Buf::get(read(arg)?)?),
            EXPORT => Self::Export {
                cloexec: if flags(arg, EXPORT_CLOEXEC)? != 0 {
                    bindings::O_CLOEXEC
                } else {
                    0
                },
            },
            MAP => Self::Map(match flags(arg, MAP_READ | MAP_WRITE)? {
                MAP_READ => DMA_TO_DEVICE,
                MAP_WRITE => DMA_FROM_DEVICE,
                0 => return Err(EINVAL),
                _ => DMA_BIDIRECTIONAL,
            }),
            UNMAP => Self::Unmap,
            ACCESS => {
                let access: Access = read(arg)?;
                if access.flags & !(ACCESS_WRITE | ACCESS_NOWAIT) != 0 || access.reserved != 0 {
                    return Err(EINVAL);
                }
                Self::Access(access)
            }
            INFO => Self::Info(UserPtr::from_addr(arg)),
            WEDGE => Self::Wedge {
                milliseconds: Some(read(arg)?)
                    .filter(|&milliseconds| milliseconds <= WEDGE_MAX)
                    .ok_or(EINVAL)?,
            },
            RESET => Self::Reset,
            SHRINK => Self::Shrink {
                revoke: flags(arg, SHRINK_REVOKE)? != 0,
            },
            _ => return Err(ENOTTY),
        })
    }
}

fn read<T: FromBytes>(arg: usize) -> Result<T> {
    UserSlice::new(UserPtr::from_addr(arg), size_of::<T>())
        .reader()
        .read()
}

fn flags(arg: usize, known: u32) -> Result<u32> {
    let flags: u32 = read(arg)?;
    if flags & !known != 0 {
        return Err(EINVAL);
    }
    Ok(flags)
}

/// An open file of a device, and its object once it has one.
pub(crate) struct Context<D: 'static, O> {
    pub(crate) device: &'static D,
    object: SetOnce<O>,
}

impl<D, O> Context<D, O> {
    pub(crate) fn new(device: &'static D) -> Result<KBox<Self>> {
        let this = Self {
            device,
            object: SetOnce::new(),
        };
        Ok(KBox::new(this, GFP_KERNEL_ACCOUNT)?)
    }

    pub(crate) fn object(&self) -> Result<&O> {
        self.object.as_ref().ok_or(ENOENT)
    }

    /// The lines of the file in `/proc/PID/fdinfo`. Nobody has to wait for who reads it, nor reads
    /// it in vain: of an object for which `info` would wait, there is only the size.
    pub(crate) fn show(
        &self,
        m: &SeqFile,
        buf: impl FnOnce(&O) -> &Buf,
        info: impl FnOnce(&O) -> Result<Info>,
    ) {
        let Ok(object) = self.object() else { return };
        if let Ok(info) = info(object) {
            for (name, value) in info.fields() {
                seq_print!(m, "{name}:\t{value}\n");
            }
        } else {
            seq_print!(m, "size:\t{}\n", buf(object).size());
        }
    }

    /// Makes the object, if there is none.
    pub(crate) fn fill(&self, make: impl FnOnce() -> Result<O>) -> Result<isize> {
        if self.object.as_ref().is_none() && self.object.populate(make()?) {
            Ok(0)
        } else {
            Err(EEXIST)
        }
    }
}

/// An object: one that the device itself has exported, or a foreign buffer.
pub(crate) enum Object<O, F> {
    Own(O),
    Foreign(F),
}

impl<O, F> Object<O, F> {
    pub(crate) fn own(&self) -> Result<&O> {
        match self {
            Self::Own(own) => Ok(own),
            Self::Foreign(_) => Err(EINVAL),
        }
    }

    pub(crate) fn foreign(&self) -> Result<&F> {
        match self {
            Self::Own(_) => Err(EINVAL),
            Self::Foreign(foreign) => Ok(foreign),
        }
    }
}

/// `shmem_file_setup()`: a file of a driver's own, for the pages of an object.
pub(crate) fn shmem(size: usize) -> Result<ARef<File>> {
    // SAFETY: Any size will do: those that are too large are refused.
    let file = from_err_ptr(unsafe { pagekit_style_shmem(bindings::loff_t::try_from(size)?) })
        .map_err(enomem)?;
    // SAFETY: The new file's reference is ours, and nobody has a file descriptor for it. It is no
    // error, and the kernel returns no null.
    Ok(unsafe { ARef::from_raw(NonNull::new_unchecked(file.cast())) })
}

/// The same, of pages that are pinned for as long as there is the file. They go with it, so that
/// reclaim need not find them again. Nobody is killed to get them: only the driver fills the file,
/// and says `ENOMEM`.
pub(crate) fn shmem_unevictable(size: usize) -> Result<ARef<File>> {
    let file = shmem(size)?;
    set_unevictable(&file);
    // SAFETY: An open file has a mapping, and nobody else has this file yet.
    unsafe { pagekit_style_kill_nobody((*file.as_ptr()).f_mapping) };
    Ok(file)
}
