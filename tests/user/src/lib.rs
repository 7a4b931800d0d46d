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

/// The page size of the kernel that this is built for.
pub const PAGE: usize = match option_env!("PAGEKIT_PAGE_SHIFT") {
    None => 1 << 12,
    Some(shift) => match shift.as_bytes() {
        b"14" => 1 << 14,
        b"16" => 1 << 16,
        _ => panic!("PAGEKIT_PAGE_SHIFT: none has such pages"),
    },
};
/// Pages of a huge page: as many as a page has entries of page tables.
pub const HUGE_PAGES: usize = PAGE / 8;
/// Pages that one fault maps at the most, where it maps no huge one: a page table's, up to 2 MiB.
pub const AROUND: usize = if HUGE_PAGES * PAGE < 2 << 20 {
    HUGE_PAGES
} else {
    (2 << 20) / PAGE
};
