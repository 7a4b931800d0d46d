// SPDX-License-Identifier: GPL-2.0

//! Test nodes: a device for each kind of mapping, as short as it gets.
//!
//! An open file of a node has [`PAGES`] fresh pages, which live until it is released: a mapping
//! holds its file. An mmap at page offset n shows page n. It begins with the word [`MAGIC`] | n.
//!
//! [`SHOW_FILE`] has it show pages of a memfd instead, [`SHOW_USER`] memory of a process that this
//! may read: nobody may write to that through a node.

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
    new_mutex,
    prelude::*,
    sync::{
        Mutex,
        SetOnce, //
    },
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
use pagekit_view::{
    PageRef,
    PfnOnly,
    PMD_ORDER, //
};
use pagekit_vma::{
    fault_pages,
    fault_pfns,
    huge_fault_pages,
    huge_fault_pfns,
    map_pages,
    map_pfns,
    map_pfns_ro,
    setup_pages,
    setup_pfns,
    setup_pfns_ro,
    VmFault, //
};

#[path = "../../samples/compat.rs"]
mod compat;

module! {
    type: Nodes,
    name: "pagekit_node",
    authors: ["The pagekit authors"],
    description: "Test nodes for the kinds of mappings",
    license: "GPL",
}

/// Two huge pages, and a rest that is no power of two.
const PAGES: usize = (2 << PMD_ORDER) + 37;
const MAGIC: u64 = 0x7061_6765_0100_0000;

// --- The nodes --------------------------------------------------------------------

#[derive(Copy, Clone)]
enum Show {
    Pfns,
    Pages,
}
use Show::*;

#[derive(Copy, Clone)]
enum When {
    OnFault,
    OnHugeFault,
    AtMmap,
}
use When::*;

struct Kind {
    name: &'static CStr,
    show: Show,
    when: When,
}

const fn kind(name: &'static CStr, show: Show, when: When) -> Kind {
    Kind { name, show, when }
}

static KINDS: [Kind; 6] = [
    kind(c"pagekit-node-pfns", Pfns, OnFault),
    kind(c"pagekit-node-huge-pfns", Pfns, OnHugeFault),
    kind(c"pagekit-node-eager-pfns", Pfns, AtMmap),
    kind(c"pagekit-node-pages", Pages, OnFault),
    kind(c"pagekit-node-huge-pages", Pages, OnHugeFault),
    kind(c"pagekit-node-eager-pages", Pages, AtMmap),
];

struct Nodes {
    _misc: KVec<Pin<KBox<MiscDeviceRegistration<Node>>>>,
}

impl kernel::Module for Nodes {
    fn init(_module: &'static ThisModule) -> Result<Self> {
        let mut misc = KVec::with_capacity(KINDS.len(), GFP_KERNEL)?;
        for &Kind { name, .. } in &KINDS {
            let options = MiscDeviceOptions { name };
            let node = KBox::pin_init(MiscDeviceRegistration::register(options), GFP_KERNEL)?;
            misc.push(node, GFP_KERNEL)?;
        }
        Ok(Self { _misc: misc })
    }
}

// --- Files of the nodes -----------------------------------------------------------

/// `struct { __u32 memfd; __u32 count; __u64 pgoff; }`
#[repr(C)]
struct FileRange {
    memfd: u32,
    count: u32,
    pgoff: u64,
}

// SAFETY: It consists of integers, and has no padding.
unsafe impl FromBytes for FileRange {}

/// Shows `count` pages of a memfd from page `pgoff` on, instead of the fresh ones.
///
/// `EBUSY` after an mmap or another one of these; `EBADF`; `EFAULT`; else what
/// [`PageArray::from_shmem`] returns.
const SHOW_FILE: u32 = _IOW::<FileRange>('P' as u32, 3);

/// `struct { __u64 address; __u64 count; }`
#[repr(C)]
struct UserRange {
    address: u64,
    count: u64,
}

// SAFETY: It consists of integers, and has no padding.
unsafe impl FromBytes for UserRange {}

/// Shows `count` pages of the caller's memory from `address` on, pinned for reading.
///
/// `EBUSY` as above; `EFAULT`; else what [`PinArray::pin_user`] returns.
const SHOW_USER: u32 = _IOW::<UserRange>('P' as u32, 4);

/// What is shown.
enum Shown {
    Fresh,
    File(PageArray),
    User(PinArray),
}

/// An open file of a node.
#[pin_data]
struct Node {
    kind: &'static Kind,
    fresh: PageArray,
    /// The first mmap or ioctl decides, for good: what mappings show never changes.
    shown: SetOnce<Shown>,
    /// Where huge pages are referenced, one fault is handled at a time. All kinds take it: so it is
    /// shorter.
    #[pin]
    fault: Mutex<()>,
}

impl Node {
    /// Decides what to show, if nobody did. [`None`] while an ioctl is about to.
    fn decide(&self) -> Option<&Shown> {
        self.shown.populate(Shown::Fresh);
        self.shown.as_ref()
    }

    /// The pages to show by their PFNs.
    fn pages(&self) -> &[PageRef<'_, PfnOnly>] {
        match self.shown.as_ref() {
            Some(Shown::User(pins)) => pins.pages(),
            _ => PageRef::pfns(self.counted()),
        }
    }

    /// The pages to show by reference.
    fn counted(&self) -> &[PageRef<'_>] {
        match self.shown.as_ref() {
            Some(Shown::Fresh) => self.fresh.pages(),
            Some(Shown::File(array)) => array.pages(),
            // Such nodes show no memory of processes.
            _ => &[],
        }
    }
}

#[vtable]
impl MiscDevice for Node {
    type Ptr = Pin<KBox<Self>>;

    fn open(file: &File, misc: &MiscDeviceRegistration<Self>) -> Result<Pin<KBox<Self>>> {
        compat::hold_module(file)?;
        let name = misc.device().name();
        let kind = KINDS.iter().find(|kind| kind.name == name).ok_or(ENODEV)?;
        let fresh = PageArray::alloc(PAGES, AllocFlags::ACCOUNT | AllocFlags::LARGE)?;
        for (i, page) in fresh.pages().iter().enumerate() {
            // SAFETY: The page is ours alone, and mapped until we unmap it.
            unsafe {
                let start = bindings::kmap_local_page(page.as_ptr());
                start.cast::<u64>().write(MAGIC | i as u64);
                bindings::kunmap_local(start);
            }
        }
        KBox::try_pin_init(
            try_pin_init!(Self {
                kind,
                fresh,
                shown: SetOnce::new(),
                fault <- new_mutex!(()),
            }),
            GFP_KERNEL_ACCOUNT,
        )
    }

    fn ioctl(node: Pin<&Self>, _file: &File, cmd: u32, arg: usize) -> Result<isize> {
        let user = |len| UserSlice::new(UserPtr::from_addr(arg), len).reader();
        let shown = match cmd {
            SHOW_FILE => {
                let range: FileRange = user(size_of::<FileRange>()).read()?;
                let memfd = LocalFile::fget(range.memfd)?;
                let (pgoff, count) = (range.pgoff as usize, range.count as usize);
                // Mappings of PFNs don't mark what is written: the array does, on drop.
                Shown::File(PageArray::from_shmem(
                    &memfd,
                    pgoff,
                    count,
                    ShmemFlags::WRITE,
                )?)
            }
            SHOW_USER if matches!(node.kind.show, Pfns) => {
                let range: UserRange = user(size_of::<UserRange>()).read()?;
                let (address, count) = (range.address as usize, range.count as usize);
                let mut pins = PinArray::with_capacity(count, PinFlags::empty())?;
                pins.pin_user(address, count)?;
                Shown::User(pins)
            }
            _ => return Err(ENOTTY),
        };
        if node.shown.populate(shown) {
            Ok(0)
        } else {
            Err(EBUSY)
        }
    }

    fn mmap(node: Pin<&Self>, _file: &File, vma: &VmaNew) -> Result {
        let read_only = matches!(node.decide().ok_or(EBUSY)?, Shown::User(_));
        let (pages, counted) = (node.pages(), node.counted());
        let Kind { show, when, .. } = *node.kind;
        // SAFETY: The VMA is being set up, and holds the file, which owns the node.
        unsafe {
            (*vma.as_ptr()).vm_private_data = core::ptr::from_ref(&*node).cast_mut().cast();
            match when {
                OnFault => (*vma.as_ptr()).vm_ops = VM_OPS,
                OnHugeFault => (*vma.as_ptr()).vm_ops = HUGE_VM_OPS,
                AtMmap => (),
            }
        }
        match (show, when, read_only) {
            // SAFETY: Nobody makes it a mixed mapping. The pages stay until the file is released,
            // and may be written to.
            (Pfns, AtMmap, false) => unsafe { map_pfns(vma, pages, 0) },
            // SAFETY: Nobody makes it a mixed mapping. The pages stay until the file is released.
            (Pfns, AtMmap, true) => unsafe { map_pfns_ro(vma, pages, 0) },
            // SAFETY: Nobody makes it a mixed mapping. The pages may be written to.
            (Pfns, _, false) => unsafe { setup_pfns(vma, pages.len(), 0) },
            // SAFETY: Nobody makes it a mixed mapping.
            (Pfns, _, true) => unsafe { setup_pfns_ro(vma, pages.len(), 0) },
            (Pages, AtMmap, _) => map_pages(vma, counted, 0),
            (Pages, _, _) => setup_pages(vma, counted.len(), 0),
        }
    }
}

const VM_OPS: &bindings::vm_operations_struct = &bindings::vm_operations_struct {
    fault: Some(fault),
    ..pin_init::zeroed()
};

const HUGE_VM_OPS: &bindings::vm_operations_struct = &bindings::vm_operations_struct {
    fault: Some(fault),
    huge_fault: Some(huge_fault),
    ..pin_init::zeroed()
};

/// The node that a VMA of ours shows.
///
/// # Safety
///
/// `mmap` must have set up the VMA of `vmf`.
unsafe fn shown(vmf: &VmFault) -> &Node {
    // SAFETY: `mmap` has set the private data to the node, which the file that the VMA holds owns.
    unsafe { &*(*vmf.vma().as_ptr()).vm_private_data.cast() }
}

/// # Safety
///
/// To be called by the kernel, for a fault in a VMA that `mmap` has set up.
unsafe extern "C" fn fault(vmf: *mut bindings::vm_fault) -> bindings::vm_fault_t {
    // SAFETY: The kernel passes a fault that is being handled, in a VMA of ours. Its pages stay, in
    // their places, until the file is released.
    unsafe {
        let vmf = VmFault::from_raw(vmf);
        let node = shown(vmf);
        let _one = node.fault.lock();
        match node.kind.show {
            Pfns => fault_pfns(vmf, node.pages(), 0),
            Pages => fault_pages(vmf, node.counted(), 0),
        }
    }
}

/// # Safety
///
/// As for `fault`.
unsafe extern "C" fn huge_fault(
    vmf: *mut bindings::vm_fault,
    order: c_uint,
) -> bindings::vm_fault_t {
    // SAFETY: The kernel passes a fault that is being handled, in a VMA of ours. Its pages stay, in
    // their places, until the file is released. `fault` takes the same lock.
    unsafe {
        let vmf = VmFault::from_raw(vmf);
        let node = shown(vmf);
        let _one = node.fault.lock();
        match node.kind.show {
            // Two huge entries for the same memory of a process are a bug.
            Pfns if matches!(node.shown.as_ref(), Some(Shown::User(_))) => {
                bindings::vm_fault_reason_VM_FAULT_FALLBACK
            }
            Pfns => huge_fault_pfns(vmf, order, node.pages(), 0),
            Pages => huge_fault_pages(vmf, order, node.counted(), 0),
        }
    }
}
