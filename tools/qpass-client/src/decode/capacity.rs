//! How large a SCSI disk is: READ CAPACITY (SBC-4), REPORT ZONES (ZBC-2).

use super::be;

/// What READ CAPACITY says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Capacity {
    /// Blocks: one more than the last block's address; 0 if that does not fit.
    pub blocks: u64,
    /// Bytes of a logical block.
    pub block: u64,
    /// Logical blocks of a physical one, as a power of two.
    pub physical_exponent: u8,
    /// The first logical block that begins a physical one.
    pub lowest_aligned: u16,
    /// The type of protection, 1 to 3, if the disk is formatted with it.
    pub protection: Option<u8>,
    /// LBPME: blocks can be unmapped.
    pub can_unmap: bool,
    /// RC BASIS: what the address is of, of a host-managed disk: 0 is the
    /// conventional zones before the first of another kind, 1 the whole disk.
    pub basis: u8,
}

impl Capacity {
    /// READ CAPACITY(10): 8 bytes. `Ok(None)`: it does not fit, READ CAPACITY(16) says
    /// it.
    ///
    /// # Errors
    /// So many bytes are not all of it.
    pub fn of_10(data: &[u8]) -> Result<Option<Self>, usize> {
        let data = data.first_chunk::<8>().ok_or(data.len())?;
        let last = be(&data[..4]);
        Ok((last != 0xffff_ffff).then(|| Capacity {
            blocks: last + 1,
            block: be(&data[4..]),
            ..Capacity::default()
        }))
    }

    /// READ CAPACITY(16): 12 bytes at least, of 32.
    ///
    /// # Errors
    /// So many bytes are not all of it.
    pub fn of_16(data: &[u8]) -> Result<Self, usize> {
        if data.len() < 12 {
            return Err(data.len());
        }
        let at = |i: usize| data.get(i).copied().unwrap_or(0);
        Ok(Capacity {
            blocks: be(&data[..8]).checked_add(1).unwrap_or(0),
            block: be(&data[8..12]),
            physical_exponent: at(13) & 0xf,
            lowest_aligned: u16::from(at(14) & 0x3f) << 8 | u16::from(at(15)),
            protection: (at(12) & 1 != 0).then(|| (at(12) >> 1 & 7) + 1),
            can_unmap: at(14) & 0x80 != 0,
            basis: at(12) >> 4 & 3,
        })
    }

    /// Bytes of a physical block.
    pub fn physical(&self) -> u64 {
        self.block << self.physical_exponent
    }
}

/// Which zones a disk has: the header of REPORT ZONES (ZBC-2, 5.5), and the first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Zones {
    /// The last block's address.
    pub last: u64,
    /// Blocks of the first zone, and its type: 1 conventional, 2 sequential write
    /// required, 3 preferred; if there is one.
    pub first: Option<(u64, u8)>,
}

impl Zones {
    /// Decodes 64 bytes of header, and what there is of the first descriptor.
    ///
    /// # Errors
    /// So many bytes are not all of the header.
    pub fn parse(data: &[u8]) -> Result<Self, usize> {
        if data.len() < 64 {
            return Err(data.len());
        }
        let first = data.get(64..128);
        Ok(Zones {
            last: be(&data[8..16]),
            first: first.map(|zone| (be(&zone[8..16]), zone[0] & 0xf)),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Row 31.
    #[test]
    fn a_capacity_is_one_more_than_the_last_block() {
        let ten = Capacity::of_10(&[0x90, 0x83, 0xff, 0xff, 0, 0, 0x10, 0]);
        let ten = ten.expect("whole").expect("fits");
        assert_eq!(ten.blocks * ten.block, 9_931_038_130_176);
        assert_eq!(Capacity::of_10(&[0xff; 8]), Ok(None));
        assert_eq!(Capacity::of_10(&[0; 7]), Err(7));
        let mut data = [0; 32];
        data[3..8].copy_from_slice(&[5, 0x74, 0xff, 0xff, 0xff]);
        (data[10], data[12], data[13], data[14]) = (2, 3, 3, 0x80);
        let long = Capacity::of_16(&data).expect("whole");
        assert_eq!(
            (long.blocks, long.block, long.physical()),
            (0x5_7500_0000, 512, 4096)
        );
        assert_eq!((long.protection, long.can_unmap), (Some(2), true));
        assert_eq!(Capacity::of_16(&[0xff; 12]).map(|c| c.blocks), Ok(0));
        assert_eq!(Capacity::of_16(&[0; 11]), Err(11));
    }
}
