// SPDX-License-Identifier: GPL-2.0
//! What the demo and the tests share: the kernel's ABI, memory mappings that
//! can be cut up, processes and the kernel's counters.

pub mod abi;
pub mod drm;
pub mod fds;
pub mod kernel;
pub mod mapping;
pub mod process;
pub mod style;
pub mod test_importer;
pub mod uring;

pub const PAGE: usize = 4096;
