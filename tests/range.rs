// SPDX-License-Identifier: GPL-2.0

//! Property tests of `src/range.rs`, against the same questions asked in arithmetic that can't
//! overflow.

use pagekit_range::{around, file_bytes, window};
use proptest::prelude::*;

/// Numbers of all magnitudes, with what lies around zero, powers of two and the maximum.
fn number() -> impl Strategy<Value = usize> {
    prop_oneof![
        0..64usize,
        any::<usize>(),
        (0..usize::BITS, -2..=2isize).prop_map(|(bit, d)| (1usize << bit).wrapping_add_signed(d)),
        (0..64usize).prop_map(|d| usize::MAX - d),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4096, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn window_is_pgoff_minus_base(len in number(), base in number(), pgoff in number(), count in number()) {
        let (l, b, p, c) = (len as i128, base as i128, pgoff as i128, count as i128);
        let within = c > 0 && p >= b && p - b + c <= l && p + c <= usize::MAX as i128;
        match window(len, base, pgoff, count) {
            Some(range) => {
                prop_assert!(within);
                prop_assert_eq!(range.start as i128, p - b);
                prop_assert_eq!(range.end as i128, p - b + c);
            }
            None => prop_assert!(!within),
        }
    }

    #[test]
    fn window_of_a_part_is_part_of_the_window(len in 1..1000usize, base in number(), start in 0..1000usize, count in 1..1000usize, cut in 0..1000usize) {
        // What a VMA shows does not change when it is split.
        let Some(pgoff) = base.checked_add(start) else { return Ok(()) };
        if let Some(whole) = window(len, base, pgoff, count) {
            let cut = cut % count;
            if cut > 0 {
                prop_assert_eq!(window(len, base, pgoff, cut), Some(whole.start..whole.start + cut));
            }
            prop_assert_eq!(window(len, base, pgoff + cut, count - cut), Some(whole.start + cut..whole.end));
        }
    }

    #[test]
    fn file_bytes_fit_a_loff_t(pgoff in number(), count in number(), shift in 12..17u32) {
        let end = (pgoff as u128 + count as u128) << shift;
        let fits = count > 0 && end <= i64::MAX as u128;
        match file_bytes(pgoff, count, shift) {
            Some((first, last)) => {
                prop_assert!(fits);
                prop_assert_eq!(first as u128, (pgoff as u128) << shift);
                prop_assert_eq!(last as u128, end);
            }
            None => prop_assert!(!fits),
        }
    }

    #[test]
    fn around_is_the_aligned_block_cut_to_vma_and_array(start in number(), len in number(), page in number(), bits in 12..31u32, index in number(), pages in number()) {
        const SHIFT: u32 = 12;
        let (start, end) = (start >> SHIFT << SHIFT, start.saturating_add(len) >> SHIFT << SHIFT);
        let (address, size) = (page << SHIFT, 1usize << bits);
        match around(start..end, address, size, SHIFT, index, pages) {
            Some((before, after)) => {
                prop_assert!(after > 0 && before <= index && after <= pages - index);
                let (first, last) = (address - (before << SHIFT), address + ((after - 1) << SHIFT));
                prop_assert!(start <= first && last < end);
                prop_assert_eq!(first / size, address / size);
                prop_assert_eq!(last / size, address / size);
                // It can't be extended.
                prop_assert!(before == index || first == start || first % size == 0);
                prop_assert!(index + after == pages || last + (1 << SHIFT) == end || ((last >> SHIFT) + 1) % (size >> SHIFT) == 0);
            }
            None => prop_assert!(address < start || address >= end || index >= pages),
        }
    }
}
