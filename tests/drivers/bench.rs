// SPDX-License-Identifier: GPL-2.0

//! The helpers, for the benchmark to measure: `/dev/pagekit-bench`, see `bench.h`.

use kernel::{
    bindings,
    fs::{
        File,
        LocalFile, //
    },
    ioctl::_IOW,
    miscdevice::{
        MiscDevice,
        MiscDeviceOptions,
        MiscDeviceRegistration, //
    },
    mm::virt::VmaNew,
    prelude::*,
    sync::SetOnce,
    transmute::FromBytes,
    uaccess::{
        UserPtr,
        UserSlice, //
    }, //
};
use pagekit_pages::{
    AllocFlags,
    PageArray,
    ShmemFlags, //
};
use pagekit_pin::{
    PinArray,
    PinFlags, //
};
use pagekit_view::PageRef;
use pagekit_vma::{
    fault_pages,
    fault_pfns,
    huge_fault_pfns,
    map_pages,
    map_pfns,
    setup_pages,
    setup_pfns,
    VmFault, //
};

#[path = "../../samples/compat.rs"]
mod compat;

module! {
    type: Device,
    name: "pagekit_bench",
    authors: ["The pagekit authors"],
    description: "pagekit, to be measured",
    license: "GPL",
}

#[pin_data]
struct Device {
    #[pin]
    misc: MiscDeviceRegistration<Bench>,
}

impl kernel::InPlaceModule for Device {
    fn init(_module: &'static ThisModule) -> impl PinInit<Self, Error> {
        try_pin_init!(Self {
            misc <- MiscDeviceRegistration::register(MiscDeviceOptions {
                name: c"pagekit-bench",
            }),
        })
    }
}

/// C's `struct bench_make`.
#[repr(C)]
struct Make {
    how: u32,
    fd: u32,
    start: u64,
    count: u64,
}

// SAFETY: It consists of integers, and has no padding.
unsafe impl FromBytes for Make {}

const BENCH_MAKE: u32 = _IOW::<Make>('B' as u32, 1);

// C's `OURS_*`.
const PAGES: u32 = 0;
const MAP_PFNS: u32 = 1;
const FAULT_PFNS: u32 = 2;
const MAP_PAGES: u32 = 3;
const MAP_PAGES_LARGE: u32 = 4;
const PIN_USER: u32 = 5;
const PIN_MEMFD: u32 = 6;
const FAULT_PAGES: u32 = 7;
const FAULT_PAGES_LARGE: u32 = 8;

enum Array {
    Held(PageArray),
    Pinned(#[expect(dead_code, reason = "It unpins on drop.")] PinArray),
}

/// An open file: its pages, and how they are mapped.
struct Bench(SetOnce<(Array, u32)>);

impl Bench {
    /// What can be mapped, and how.
    fn pages(&self) -> Result<(&[PageRef<'_>], u32)> {
        match self.0.as_ref().ok_or(EINVAL)? {
            (Array::Held(array), how) => Ok((array.pages(), *how)),
            (Array::Pinned(_), _) => Err(ENODEV),
        }
    }

    fn set_ops(&self, vma: &VmaNew, ops: &'static bindings::vm_operations_struct) {
        // SAFETY: The VMA is being set up. It holds the file, and so this.
        unsafe {
            (*vma.as_ptr()).vm_private_data = core::ptr::from_ref(self).cast_mut().cast();
            (*vma.as_ptr()).vm_ops = ops;
        }
    }
}

fn make(make: &Make) -> Result<Array> {
    let (start, count) = (make.start as usize, make.count as usize);
    let file = || LocalFile::fget(make.fd);
    Ok(match make.how {
        PAGES | MAP_PFNS | FAULT_PFNS => Array::Held(PageArray::from_shmem(
            &*file()?,
            start,
            count,
            ShmemFlags::empty(),
        )?),
        MAP_PAGES | FAULT_PAGES => Array::Held(PageArray::alloc(count, AllocFlags::empty())?),
        MAP_PAGES_LARGE | FAULT_PAGES_LARGE => {
            Array::Held(PageArray::alloc(count, AllocFlags::LARGE)?)
        }
        PIN_USER => {
            let mut pins = PinArray::with_capacity(count, PinFlags::WRITE)?;
            pins.pin_user(start, count)?;
            Array::Pinned(pins)
        }
        PIN_MEMFD => {
            let mut pins = PinArray::with_capacity(count, PinFlags::WRITE)?;
            pins.pin_memfd(&*file()?, start, count)?;
            Array::Pinned(pins)
        }
        _ => return Err(EINVAL),
    })
}

#[vtable]
impl MiscDevice for Bench {
    type Ptr = KBox<Self>;

    fn open(file: &File, _misc: &MiscDeviceRegistration<Self>) -> Result<KBox<Self>> {
        compat::hold_module(file)?;
        Ok(KBox::new(Self(SetOnce::new()), GFP_KERNEL)?)
    }

    fn ioctl(bench: &Self, _file: &File, cmd: u32, arg: usize) -> Result<isize> {
        if cmd != BENCH_MAKE {
            return Err(ENOTTY);
        }
        let user = UserSlice::new(UserPtr::from_addr(arg), size_of::<Make>());
        let arg: Make = user.reader().read()?;
        let array = make(&arg)?;
        if bench.0.populate((array, arg.how)) {
            Ok(0)
        } else {
            Err(EBUSY)
        }
    }

    fn mmap(bench: &Self, _file: &File, vma: &VmaNew) -> Result {
        let (pages, how) = bench.pages()?;
        match how {
            // SAFETY: The VMA is of this kind only, and holds the file, whose pages are released
            // with it and may be written to.
            MAP_PFNS => unsafe { map_pfns(vma, pages, 0) },
            FAULT_PFNS => {
                // SAFETY: The VMA is of this kind only, and its pages may be written to.
                unsafe { setup_pfns(vma, pages.len(), 0) }?;
                bench.set_ops(vma, VM_OPS);
                Ok(())
            }
            FAULT_PAGES | FAULT_PAGES_LARGE => {
                bench.set_ops(vma, PAGES_VM_OPS);
                setup_pages(vma, pages.len(), 0)
            }
            MAP_PAGES | MAP_PAGES_LARGE => map_pages(vma, pages, 0),
            _ => Err(ENODEV),
        }
    }
}

const VM_OPS: &bindings::vm_operations_struct = &bindings::vm_operations_struct {
    fault: Some(fault),
    huge_fault: Some(huge_fault),
    ..pin_init::zeroed()
};

const PAGES_VM_OPS: &bindings::vm_operations_struct = &bindings::vm_operations_struct {
    fault: Some(pages_fault),
    ..pin_init::zeroed()
};

/// # Safety
///
/// `vmf` must be in a VMA that `mmap` has set up.
unsafe fn pages(vmf: &VmFault) -> &[PageRef<'_>] {
    // SAFETY: `mmap` has set the private data, which lives as long as the VMA.
    let bench = unsafe { &*(*vmf.vma().as_ptr()).vm_private_data.cast::<Bench>() };
    bench.pages().map_or(&[], |(pages, _)| pages)
}

/// # Safety
///
/// To be called by the kernel, for a fault in a VMA that `mmap` has set up.
unsafe extern "C" fn fault(vmf: *mut bindings::vm_fault) -> bindings::vm_fault_t {
    // SAFETY: The kernel passes a fault that is being handled, and the VMA holds the pages, which
    // may be written to and are no memory of a process.
    unsafe {
        let vmf = VmFault::from_raw(vmf);
        fault_pfns(vmf, pages(vmf), 0)
    }
}

/// # Safety
///
/// As for `fault`.
unsafe extern "C" fn pages_fault(vmf: *mut bindings::vm_fault) -> bindings::vm_fault_t {
    // SAFETY: The kernel passes a fault that is being handled.
    unsafe {
        let vmf = VmFault::from_raw(vmf);
        fault_pages(vmf, pages(vmf), 0)
    }
}

/// # Safety
///
/// As for `fault`.
unsafe extern "C" fn huge_fault(
    vmf: *mut bindings::vm_fault,
    order: c_uint,
) -> bindings::vm_fault_t {
    // SAFETY: The kernel passes a fault that is being handled, and the VMA holds the pages, which
    // may be written to and are no memory of a process.
    unsafe {
        let vmf = VmFault::from_raw(vmf);
        huge_fault_pfns(vmf, order, pages(vmf), 0)
    }
}
