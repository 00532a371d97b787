//! Scatter/gather arithmetic: which bytes of a transfer are where.
//!
//! A transfer is one run of bytes. The user has it in segments, the kernel in one
//! piece, or in the user's own pages.

use kpi::{
    errno::{EINVAL, Result},
    segment::{Segment, runs},
};

/// A list must hold the whole transfer.
///
/// # Errors
/// `EINVAL`: no segment, or less than `len` bytes in all of them.
pub fn check(segments: &[Segment], len: u32) -> Result {
    let mut left = u64::from(len);
    for segment in segments {
        left = left.saturating_sub(segment.len);
    }
    if segments.is_empty() || left != 0 {
        return Err(EINVAL);
    }
    Ok(())
}

/// The alignment that busdma(9) never has to bounce for: no SIM's DMA tag asks
/// for more, and blocks have no less. Where it bounces, a segment no longer ends
/// where its page does, and NVMe's PRPs, which have no length, then name other
/// bytes than were meant.
pub const ALIGNMENT: u64 = 512;

/// How many pages `len` bytes from `address` on are in, if they start and end at a
/// multiple of [`ALIGNMENT`]. `None` if not, or if the address is absurd.
pub fn pages_of_one(address: u64, len: u32) -> Option<usize> {
    const PAGE: u64 = sys_bindings::PAGE_SIZE as u64;
    let len = u64::from(len);
    let end = address.checked_add(len)?;
    let is_aligned = (address | len).is_multiple_of(ALIGNMENT);
    (is_aligned && len != 0).then(|| (end.div_ceil(PAGE) - address / PAGE) as usize)
}

/// How many pages the first `len` bytes are in, if these make one run of pages:
/// every segment starts and ends at a multiple of [`ALIGNMENT`], and wherever one
/// ends and another begins is the end and the beginning of a page. `None` if not,
/// or if an address is absurd.
pub fn pages_of(segments: &[Segment], len: u32) -> Option<usize> {
    const PAGE: u64 = sys_bindings::PAGE_SIZE as u64;
    let (mut pages, mut end) = (0, None);
    for run in runs(segments, len) {
        if !(run.address | run.len).is_multiple_of(ALIGNMENT) {
            return None;
        }
        let starts_a_page = run.address.is_multiple_of(PAGE);
        if end.is_some_and(|end: u64| !end.is_multiple_of(PAGE) || !starts_a_page) {
            return None;
        }
        let last = run.address.checked_add(run.len)?;
        pages += last.div_ceil(PAGE) - run.address / PAGE;
        end = Some(last);
    }
    end?;
    usize::try_from(pages).ok()
}

/// A part of a transfer that lies in one segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece {
    /// The user's address.
    pub address: u64,
    /// Where in the transfer, in bytes.
    pub offset: usize,
    /// Bytes, never none.
    pub len: usize,
}

/// The pieces of the first `len` bytes of a transfer, in order.
pub struct Pieces<'a> {
    segments: &'a [Segment],
    at: usize,
    end: usize,
}

impl<'a> Pieces<'a> {
    /// Of a transfer of `len` bytes.
    pub fn new(segments: &'a [Segment], len: usize) -> Self {
        Pieces {
            segments,
            at: 0,
            end: len,
        }
    }
}

impl Iterator for Pieces<'_> {
    type Item = Piece;

    fn next(&mut self) -> Option<Piece> {
        while self.at < self.end {
            let (segment, rest) = self.segments.split_first()?;
            self.segments = rest;
            let left = self.end - self.at;
            let len = usize::try_from(segment.len).map_or(left, |len| len.min(left));
            let offset = self.at;
            self.at += len;
            if len != 0 {
                return Some(Piece {
                    // A wild one is refused by copyin(9).
                    address: segment.address,
                    offset,
                    len,
                });
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    extern crate std;
    use proptest::prelude::*;
    use std::{vec, vec::Vec};

    fn segment(address: u64, len: u64) -> Segment {
        Segment { address, len }
    }

    #[test]
    fn a_list_that_is_too_short_is_refused_and_a_longer_one_is_not() {
        let list = [
            segment(0x1000, 100),
            segment(0x2000, 0),
            segment(0x3000, 28),
        ];
        assert_eq!(check(&list, 128), Ok(()));
        assert_eq!(check(&list, 127), Ok(()));
        assert_eq!(check(&list, 129), Err(EINVAL));
        assert_eq!(check(&[], 1), Err(EINVAL));
        let huge = [segment(0, u64::MAX), segment(0, u64::MAX)];
        assert_eq!(check(&huge, u32::MAX), Ok(()));
    }

    #[test]
    fn pieces_are_the_segments_that_have_bytes_cut_to_the_transfer() {
        let list = [
            segment(0x1000, 6),
            segment(0x5000, 0),
            segment(0x9000, 20),
            segment(0xa000, 1),
        ];
        let pieces: Vec<_> = Pieces::new(&list, 20).collect();
        let piece = |address, offset, len| Piece {
            address,
            offset,
            len,
        };
        assert_eq!(pieces, [piece(0x1000, 0, 6), piece(0x9000, 6, 14)]);
        let huge = [segment(u64::MAX, u64::MAX)];
        let pieces: Vec<_> = Pieces::new(&huge, 20).collect();
        assert_eq!(pieces, [piece(u64::MAX, 0, 20)]);
    }

    #[test]
    fn a_list_is_a_run_of_pages_if_its_inner_ends_are_pages_ends() {
        let pages = |list: &[(u64, u64)], len| {
            let list: Vec<_> = list.iter().map(|(a, l)| segment(*a, *l)).collect();
            pages_of(&list, len)
        };
        assert_eq!(pages(&[(0x1000, 0x1000)], 0x1000), Some(1));
        assert_eq!(pages(&[(0x1e00, 0x400)], 0x400), Some(2), "a block in each");
        assert_eq!(pages(&[(0x1800, 0x800), (0x9000, 0x1200)], 0x1a00), Some(3));
        assert_eq!(pages(&[(0x1800, 0x600), (0x9000, 0x1000)], 0x1600), None);
        assert_eq!(pages(&[(0x1000, 0x1000), (0x9200, 0x200)], 0x1200), None);
        // What is behind the transfer, or empty, does not count.
        assert_eq!(pages(&[(0x1000, 0x1000), (0x9001, 1)], 0x1000), Some(1));
        assert_eq!(
            pages(&[(7, 0), (0x1000, 0x1000), (9, 0), (0x4000, 512)], 0x1200),
            Some(2)
        );
        assert_eq!(pages(&[(u64::MAX - 511, 1024)], 1024), None);
        assert_eq!(pages(&[(0x1000, 512)], 0), None, "nothing is no run");
    }

    #[test]
    fn what_busdma_would_bounce_is_no_run_of_pages() {
        for off in (0..1024).filter(|off| off % 512 != 0) {
            assert_eq!(pages_of(&[segment(0x1000 + off, 4096)], 4096), None);
            assert_eq!(pages_of_one(0x1000 + off, 4096), None);
            assert_eq!(pages_of_one(0x1000, 4096 + off as u32), None);
            assert_eq!(
                pages_of(&[segment(0x1000, 4096 + off)], 4096 + off as u32),
                None
            );
            // The first of two, the second of two.
            let two = [segment(0x1000 + off, 4096 - off), segment(0x9000, 512)];
            assert_eq!(pages_of(&two, 4096 - off as u32 + 512), None);
            let two = [segment(0x1000, 4096), segment(0x9000, off)];
            assert_eq!(pages_of(&two, 4096 + off as u32), None);
        }
        assert_eq!(pages_of(&[segment(0x1200, 1024)], 1024), Some(1));
    }

    proptest! {
        /// Against every byte's page, told apart from its neighbour's.
        #[test]
        fn a_run_of_pages_is_one_byte_for_byte(
            list in prop::collection::vec((0u64..6, 0u64..3, 0u64..3, 0u64..2), 1..6),
            cut in 0u32..20_000,
        ) {
            let list: Vec<_> = list
                .iter()
                .map(|(page, off, len, more)| segment(page * 4096 + off * 2048, len * 2048 + more))
                .collect();
            let total = list.iter().map(|s| s.len).sum::<u64>() as u32;
            let len = total.min(cut);
            let bytes: Vec<u64> = list
                .iter()
                .flat_map(|s| s.address..s.address + s.len)
                .take(len as usize)
                .collect();
            // One run: each byte is behind the last in its page, or each is at
            // an end of its page; segments that touch are one run as well.
            let mut pages = usize::from(!bytes.is_empty());
            let aligned = |run: Segment| (run.address | run.len).is_multiple_of(ALIGNMENT);
            let mut good = !bytes.is_empty() && runs(&list, len).all(aligned);
            for pair in bytes.windows(2) {
                if pair[0] % 4096 == 4095 || pair[1] % 4096 == 0 {
                    good &= pair[0] % 4096 == 4095 && pair[1] % 4096 == 0;
                    pages += 1;
                } else {
                    good &= pair[1] == pair[0] + 1;
                }
            }
            let found = pages_of(&list, len);
            let first = runs(&list[..1], len).next();
            if let Some(first) = first {
                let one = pages_of_one(first.address, first.len as u32);
                prop_assert_eq!(one, pages_of(&[first], first.len as u32));
            }
            if found.is_some() {
                prop_assert!(good);
                prop_assert_eq!(found, Some(pages));
            } else {
                // Segments that touch inside a page are not taken for a run.
                let touching = runs(&list, len)
                    .zip(runs(&list, len).skip(1))
                    .any(|(a, b)| a.address + a.len == b.address && b.address % 4096 != 0);
                prop_assert!(!good || touching);
            }
        }

        /// Byte for byte: the n-th byte of the transfer is the n-th byte of
        /// the list.
        #[test]
        fn every_byte_is_in_one_piece(
            lens in prop::collection::vec(0u64..70, 1..20),
            cut in 0usize..200,
        ) {
            let list: Vec<_> = lens
                .iter()
                .enumerate()
                .map(|(i, len)| segment(i as u64 * 0x1000, *len))
                .collect();
            let total = lens.iter().sum::<u64>() as usize;
            let len = total.min(cut);
            let bytes: Vec<u64> = list
                .iter()
                .flat_map(|s| s.address..s.address + s.len)
                .collect();
            let mut seen = vec![];
            for piece in Pieces::new(&list, len) {
                prop_assert!(piece.len > 0);
                prop_assert_eq!(piece.offset, seen.len());
                for i in 0..piece.len {
                    seen.push(piece.address + i as u64);
                }
            }
            prop_assert_eq!(&seen[..], &bytes[..len]);
        }
    }
}
