// SPDX-License-Identifier: GPL-2.0

//! A driver to start from: an ioctl of `/dev/pagekit-template` makes a dma-buf of new pages.
//!
//! Its policy is simple enough to need no lock: the pages are allocated with the buffer, and stay
//! where they are until it is released. What it does when is decided here, and only here: see the
//! other samples for drivers that pin later, revoke, or let users bring the pages.

use kernel::{
    bindings,
    fs::File,
    miscdevice,
    prelude::*, //
};
use pagekit_pages::PageArray;

mod compat;
mod dmabuf;

module! {
    type: Driver,
    name: "pagekit_template",
    authors: ["The pagekit authors"],
    description: "pagekit sample: a driver to start from",
    license: "GPL",
    imports_ns: ["DMA_BUF"],
}

/// The device, for as long as the module is loaded.
struct Driver(#[expect(dead_code)] Pin<KBox<miscdevice::MiscDeviceRegistration<Self>>>);

impl kernel::Module for Driver {
    fn init(_module: &'static ThisModule) -> Result<Self> {
        let name = c"pagekit-template";
        let options = miscdevice::MiscDeviceOptions { name };
        let misc = miscdevice::MiscDeviceRegistration::register(options);
        Ok(Self(KBox::pin_init(misc, GFP_KERNEL_ACCOUNT)?))
    }
}

/// Takes a number of pages. Returns a file descriptor of a new dma-buf.
const CREATE: u32 = kernel::ioctl::_IO('K' as u32, 0);

#[vtable]
impl miscdevice::MiscDevice for Driver {
    type Ptr = ();

    fn open(file: &File, _misc: &miscdevice::MiscDeviceRegistration<Self>) -> Result {
        compat::hold_module(file)
    }

    fn ioctl(_device: (), _file: &File, cmd: u32, pages: usize) -> Result<isize> {
        if cmd != CREATE {
            return Err(ENOTTY);
        }
        dmabuf::check_fits_ram(pages)?;
        // Charged to the memory cgroup of the caller, like all that user space chooses the size of.
        let array = PageArray::alloc(pages, pagekit_pages::AllocFlags::ACCOUNT)?;
        let data = KBox::new(array, GFP_KERNEL_ACCOUNT)?;
        let size = pages << kernel::page::PAGE_SHIFT;
        // SAFETY: `OPS` is made for this.
        unsafe { dmabuf::export_fd(c"pagekit_template", &OPS, size, bindings::O_CLOEXEC, data) }
    }
}

impl dmabuf::Pages for PageArray {
    fn pages(&self) -> &[pagekit_view::PageRef<'_, pagekit_view::PfnOnly>] {
        pagekit_view::PageRef::pfns(self.pages())
    }
}

static OPS: bindings::dma_buf_ops = bindings::dma_buf_ops {
    mmap: Some(mmap),
    ..dmabuf::ops::<PageArray>()
};

/// # Safety
///
/// To be called by the dma-buf core, for a buffer that was exported with `OPS`.
unsafe extern "C" fn mmap(buf: *mut bindings::dma_buf, vma: *mut bindings::vm_area_struct) -> i32 {
    // SAFETY: The core passes a VMA that is being set up and is never made a mixed mapping. It
    // holds the file of the buffer, so that the pages are released after the mapping has gone. They
    // are the driver's own: whoever has the buffer may write to them.
    kernel::error::from_result(|| unsafe {
        let pages = dmabuf::data::<PageArray>(buf).pages();
        pagekit_vma::map_pfns(kernel::mm::virt::VmaNew::from_raw(vma), pages, 0)?;
        Ok(0)
    })
}
