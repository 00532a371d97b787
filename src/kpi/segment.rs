//! Scatter/gather lists, as `bus_dma_segment_t` has them.

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

/// The non-empty segments of the first `len` bytes, the last cut to fit.
pub fn runs(segments: &[Segment], len: u32) -> impl Iterator<Item = Segment> + Clone {
    let mut left = u64::from(len);
    segments.iter().filter_map(move |segment| {
        let len = segment.len.min(left);
        left -= len;
        (len != 0).then_some(Segment { len, ..*segment })
    })
}
