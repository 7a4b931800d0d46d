// SPDX-License-Identifier: GPL-2.0

//! Page range arithmetic, checked for overflow.
//!
//! Nothing here needs a kernel: the file is compiled into the helpers, and on the host for its
//! property tests (`tests/range.rs`).

/// Largest file size in bytes, C's `MAX_LFS_FILESIZE` where `loff_t` is 64 bits wide.
const MAX_FILE_BYTES: u64 = i64::MAX as u64;

/// Indices of the `count` pages that a mapping shows from `pgoff` on, in an array of `len` pages
/// that starts at page offset `base`.
///
/// This is the one offset rule: index = pgoff - base. [`None`] if the window is empty, does not lie
/// wholly within the array, or wraps around.
#[inline]
pub const fn window(
    len: usize,
    base: usize,
    pgoff: usize,
    count: usize,
) -> Option<core::ops::Range<usize>> {
    let (Some(start), Some(end)) = (pgoff.checked_sub(base), pgoff.checked_add(count)) else {
        return None;
    };
    // Not less than the start, and so than the base.
    let end = end.wrapping_sub(base);
    if count == 0 || end > len {
        return None;
    }
    Some(start..end)
}

/// First and one-past-last byte of `count` pages at page offset `pgoff` of a file.
///
/// [`None`] if the range is empty or reaches past the largest file size.
#[inline]
pub const fn file_bytes(pgoff: usize, count: usize, page_shift: u32) -> Option<(i64, i64)> {
    let Some(end) = pgoff.checked_add(count) else {
        return None;
    };
    if count == 0 || end as u64 > MAX_FILE_BYTES >> page_shift {
        return None;
    }
    Some((
        ((pgoff as u64) << page_shift) as i64,
        ((end as u64) << page_shift) as i64,
    ))
}

/// How many pages one fault at `address` may map around page `index` of an array of `len` pages:
/// before that page, and from it on. They lie in the array, in `vma`, and in the aligned block of
/// `size` bytes (a power of two) around the address.
///
/// [`None`] if `address` is not in `vma`, or `index` not in the array.
#[inline]
pub const fn around(
    vma: core::ops::Range<usize>,
    address: usize,
    size: usize,
    page_shift: u32,
    index: usize,
    len: usize,
) -> Option<(usize, usize)> {
    if address < vma.start || address >= vma.end || index >= len {
        return None;
    }
    let floor = address & !(size - 1);
    let start = if floor > vma.start { floor } else { vma.start };
    let end = match floor.checked_add(size) {
        Some(end) if end < vma.end => end,
        _ => vma.end,
    };
    // Neither is negative, as the address is in the VMA and the block.
    let before = address.wrapping_sub(start) >> page_shift;
    let after = end.wrapping_sub(address) >> page_shift;
    // Not negative: `index` is in the array.
    let left = len.wrapping_sub(index);
    Some((
        if before < index { before } else { index },
        if after < left { after } else { left },
    ))
}
