// SPDX-License-Identifier: GPL-2.0

//! What drivers need whose objects have shmem files of their own, one to one over the C calls.
//!
//! Like `dmabuf.rs`, it counts as the driver's own code. Static inlines are in `shmem_shim.h`.

#![allow(dead_code, reason = "No driver needs all of it.")]

use kernel::{
    bindings,
    fs::LocalFile,
    prelude::*, //
};

#[allow(
    improper_ctypes,
    reason = "Some configurations have fields of size zero in structs that are only pointed to."
)]
extern "C" {
    // mm/vmscan.c exports it, `bindings` does not have it.
    fn check_move_unevictable_folios(batch: *mut bindings::folio_batch);

    // See shmem_shim.h.
    fn pagekit_shmem_set_unevictable(mapping: *mut bindings::address_space);
    fn pagekit_shmem_clear_unevictable(mapping: *mut bindings::address_space);
    fn pagekit_shmem_put_batch(batch: *mut bindings::folio_batch);
}

/// shmem says `ENOSPC`, as of a file system that is full, where the machine's limit for memory is
/// reached. Drivers say `ENOMEM` for that.
pub(crate) fn enomem(error: Error) -> Error {
    if error == ENOSPC {
        ENOMEM
    } else {
        error
    }
}

/// `mapping_set_unevictable()`: reclaim is to leave the pages of a file alone, which has no other
/// user than the driver. It couldn't free them, and would look at them time and again.
pub(crate) fn set_unevictable(file: &LocalFile) {
    // SAFETY: An open file has a mapping.
    unsafe { pagekit_shmem_set_unevictable((*file.as_ptr()).f_mapping) };
}

/// `mapping_clear_unevictable()`, and `shmem_unlock_mapping()`, which modules can't call: reclaim
/// finds the pages again. May be called by a shrinker.
pub(crate) fn clear_unevictable(file: &LocalFile) {
    let mut batch = bindings::folio_batch::default();
    let mut next = 0;
    // SAFETY: An open file has a mapping. The batch is an empty one each time it is filled, with a
    // reference on each folio.
    unsafe {
        let mapping = (*file.as_ptr()).f_mapping;
        pagekit_shmem_clear_unevictable(mapping);
        while bindings::filemap_get_folios(mapping, &mut next, c_ulong::MAX, &mut batch) != 0 {
            check_move_unevictable_folios(&mut batch);
            pagekit_shmem_put_batch(&mut batch);
        }
    }
}
