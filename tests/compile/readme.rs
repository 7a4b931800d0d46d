// SPDX-License-Identifier: GPL-2.0
// ok
//! The code that README.md shows.
use kernel::{bindings, bindings::vm_fault_t, fs::LocalFile, mm::virt::VmaNew, prelude::*};

use pagekit_pin::{PinArray, PinFlags};
use pagekit_vma::{fault_pfns, huge_fault_pfns, setup_pfns, VmFault};

/// A buffer of a driver.
pub struct Buffer {
    pins: PinArray,
}

// When your driver decides that it is time, under whatever lock it likes:
/// Pins a buffer.
pub fn pin(memfd: &LocalFile, pgoff: usize, count: usize) -> Result<Buffer> {
    let mut pins = PinArray::with_capacity(count, PinFlags::WRITE)?;
    pins.pin_memfd(memfd, pgoff, count)?;
    Ok(Buffer { pins }) // Unpinned on drop.
}

/// # Safety
///
/// To be called by the mmap operation of a driver whose buffer outlives the file.
pub unsafe fn mmap(vma: &VmaNew, buffer: &Buffer) -> Result {
    // SAFETY: The VMA is being set up, and the buffer outlives it.
    unsafe { setup_pfns(vma, buffer.pins.pages().len(), 0)? };
    Ok(())
}

/// # Safety
///
/// To be called by the fault operation.
pub unsafe fn fault(vmf: *mut bindings::vm_fault, buffer: &Buffer) -> vm_fault_t {
    // SAFETY: The kernel passes a fault in such a VMA, and the buffer outlives it.
    unsafe { fault_pfns(VmFault::from_raw(vmf), buffer.pins.pages(), 0) }
}

/// # Safety
///
/// To be called by the huge_fault operation.
pub unsafe fn huge(vmf: *mut bindings::vm_fault, order: c_uint, buffer: &Buffer) -> vm_fault_t {
    // SAFETY: The kernel passes a fault in such a VMA, and the buffer outlives it.
    unsafe { huge_fault_pfns(VmFault::from_raw(vmf), order, buffer.pins.pages(), 0) }
}
