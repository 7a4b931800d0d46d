// SPDX-License-Identifier: GPL-2.0

//! All that Linux 7.2 has otherwise than 7.3, under the names of 7.3. It goes when 7.2 does.
//!
//! `Kbuild` says which it is: `linux_7_2`.

#![allow(dead_code, unused_imports, reason = "No driver needs all of it.")]

pub(crate) use imp::*;

#[cfg(not(linux_7_2))]
mod imp {
    use kernel::{
        bindings::dma_data_direction,
        fs::File,
        prelude::*, //
    };

    pub(crate) use kernel::module::this_module;

    pub(crate) fn ebadfd() -> Error {
        EBADFD
    }

    pub(crate) const DMA_BIDIRECTIONAL: dma_data_direction = dma_data_direction::DMA_BIDIRECTIONAL;
    pub(crate) const DMA_TO_DEVICE: dma_data_direction = dma_data_direction::DMA_TO_DEVICE;
    pub(crate) const DMA_FROM_DEVICE: dma_data_direction = dma_data_direction::DMA_FROM_DEVICE;

    /// What a misc device does first when it is opened: the module stays loaded until the file is
    /// released. Nothing, as misc devices of 7.3 do it themselves.
    pub(crate) fn hold_module(_file: &File) -> Result {
        Ok(())
    }
}

#[cfg(linux_7_2)]
mod imp {
    use kernel::{
        bindings,
        fs::File,
        prelude::*,
        sync::SetOnce, //
    };

    pub(crate) use bindings::{
        dma_data_direction_DMA_BIDIRECTIONAL as DMA_BIDIRECTIONAL,
        dma_data_direction_DMA_FROM_DEVICE as DMA_FROM_DEVICE,
        dma_data_direction_DMA_TO_DEVICE as DMA_TO_DEVICE, //
    };

    pub(crate) fn ebadfd() -> Error {
        Error::from_errno(-(bindings::EBADFD as c_int))
    }

    pub(crate) fn this_module<T>() -> &'static ThisModule {
        &crate::THIS_MODULE
    }

    struct Operations(bindings::file_operations);

    // SAFETY: They are constant.
    unsafe impl Send for Operations {}
    // SAFETY: They are constant, so that all threads only read them.
    unsafe impl Sync for Operations {}

    /// The operations of the misc device of this module, with an owner, which 7.2 leaves out.
    static OPERATIONS: SetOnce<Operations> = SetOnce::new();

    pub(crate) fn hold_module(file: &File) -> Result {
        let owner = this_module::<crate::LocalModule>().as_ptr();
        let file = file.as_ptr();
        // SAFETY: The file is being opened, so that nobody else uses it. misc_open() holds the lock
        // that the module needs to unregister the device and go, so that its state can be looked
        // at. From here on the operations and the reference are the file's: both stay until the
        // kernel has called its release operation, and puts the owner of its operations.
        unsafe {
            OPERATIONS.populate(Operations(bindings::file_operations {
                owner,
                ..*(*file).f_op
            }));
            if !bindings::try_module_get(owner) {
                return Err(ENODEV);
            }
            (*file).f_op = &OPERATIONS.as_ref().ok_or(ENODEV)?.0;
        }
        Ok(())
    }
}
