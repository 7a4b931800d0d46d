// SPDX-License-Identifier: GPL-2.0
// error[E0277]
//! Operations on a buffer run in several threads at the same time, and share what it owns.
use core::cell::Cell;
use kernel::{bindings, prelude::*};

#[path = "../../samples/compat.rs"]
mod compat;
#[path = "../../samples/dmabuf.rs"]
mod dmabuf;

module! {
    type: Nobody,
    name: "buffer_of_cells",
    authors: ["The pagekit authors"],
    description: "Exports what only one thread may use",
    license: "GPL",
}

struct Nobody;

impl kernel::Module for Nobody {
    fn init(_module: &'static ThisModule) -> Result<Self> {
        Ok(Self)
    }
}

static OPS: bindings::dma_buf_ops = pin_init::zeroed();

/// Has a buffer own a cell.
pub fn wrong(data: KBox<Cell<usize>>) -> Result<isize> {
    // SAFETY: Nobody calls it.
    unsafe { dmabuf::export_fd(c"wrong", &OPS, 0, 0, data) }
}
