//! Scatter/gather arithmetic: which bytes of a transfer are where.
//!
//! A transfer is one run of bytes. The user has it in segments, the kernel in
//! chunks; neither knows of the other's boundaries.

use crate::kpi::errno::{EINVAL, Result};

/// One segment of a user's list, as `bus_dma_segment_t` has it.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Segment {
    /// The user's address.
    pub address: u64,
    /// Bytes, which may be none.
    pub len: u64,
}

static_assertions::assert_eq_size!(Segment, sys_bindings::bus_dma_segment_t);

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

/// A part of a transfer that lies in one segment and in one chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece {
    /// The user's address.
    pub address: u64,
    /// Which chunk.
    pub chunk: usize,
    /// Where in the chunk, in bytes.
    pub offset: usize,
    /// Bytes, never none.
    pub len: usize,
}

/// The pieces of the first `len` bytes of a transfer, in order.
pub struct Pieces<'a> {
    segments: &'a [Segment],
    /// Bytes of the first segment that are behind us.
    used: u64,
    chunk_size: usize,
    at: usize,
    end: usize,
}

impl<'a> Pieces<'a> {
    /// Of a transfer in chunks of `chunk_size` bytes, which is not zero.
    pub fn new(segments: &'a [Segment], chunk_size: usize, len: usize) -> Self {
        Pieces {
            segments,
            used: 0,
            chunk_size,
            at: 0,
            end: len,
        }
    }
}

impl Iterator for Pieces<'_> {
    type Item = Piece;

    fn next(&mut self) -> Option<Piece> {
        if self.at >= self.end {
            return None;
        }
        while self.segments.first()?.len == self.used {
            self.segments = &self.segments[1..];
            self.used = 0;
        }
        let segment = self.segments[0];
        let offset = self.at % self.chunk_size;
        let len = (self.end - self.at)
            .min(self.chunk_size - offset)
            .min(usize::try_from(segment.len - self.used).unwrap_or(usize::MAX));
        let piece = Piece {
            // A wild address wraps here and is refused by copyin(9).
            address: segment.address.wrapping_add(self.used),
            chunk: self.at / self.chunk_size,
            offset,
            len,
        };
        self.at += len;
        self.used += len as u64;
        Some(piece)
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
    fn pieces_end_at_every_boundary_of_either_side() {
        let list = [segment(0x1000, 6), segment(0x9000, 20)];
        let pieces: Vec<_> = Pieces::new(&list, 8, 20).collect();
        let piece = |address, chunk, offset, len| Piece {
            address,
            chunk,
            offset,
            len,
        };
        assert_eq!(
            pieces,
            [
                piece(0x1000, 0, 0, 6),
                piece(0x9000, 0, 6, 2),
                piece(0x9002, 1, 0, 8),
                piece(0x900a, 2, 0, 4),
            ]
        );
    }

    proptest! {
        /// Byte for byte: the n-th byte of the transfer is the n-th byte of
        /// the list, in chunk n / size at n % size.
        #[test]
        fn every_byte_is_in_one_piece(
            lens in prop::collection::vec(0u64..70, 1..20),
            chunk_size in 1usize..50,
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
            for piece in Pieces::new(&list, chunk_size, len) {
                prop_assert!(piece.len > 0);
                for i in 0..piece.len {
                    prop_assert_eq!(piece.chunk * chunk_size + piece.offset + i, seen.len());
                    prop_assert!(piece.offset + i < chunk_size);
                    seen.push(piece.address + i as u64);
                }
            }
            prop_assert_eq!(&seen[..], &bytes[..len]);
        }
    }
}
