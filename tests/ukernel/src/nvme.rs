//! An NVMe controller, and what nvme(4) tells it.
//!
//! nvme_sim_nvmeio() (dev/nvme/nvme_sim.c) decides by the data format and never
//! looks at the direction; nvme_payload_map() (dev/nvme/nvme_qpair.c) puts the
//! addresses of the segments into PRPs, which have no length: the controller
//! moves as many bytes as the command names, to the end of the first page and
//! then page by page.

use crate::{busdma::Map, model::Io, sys, thread::broken};

const PAGE: usize = sys::PAGE_SIZE as usize;
/// Bytes in a logical block.
const BLOCK: usize = 512;

/// Opcodes of the NVM command set and of the admin command set.
pub(crate) mod opcode {
    pub const WRITE: u8 = 0x01;
    pub const READ: u8 = 0x02;
    pub const COMPARE: u8 = 0x05;
    pub const DATASET_MANAGEMENT: u8 = 0x09;
    pub const CREATE_SQ: u8 = 0x01;
    pub const GET_LOG_PAGE: u8 = 0x02;
    pub const CREATE_CQ: u8 = 0x05;
    pub const IDENTIFY: u8 = 0x06;
    pub const SET_FEATURES: u8 = 0x09;
    pub const GET_FEATURES: u8 = 0x0a;
    pub const FORMAT_NVM: u8 = 0x80;
    pub const DOORBELL_BUFFER_CONFIG: u8 = 0x7c;
}

/// Generic status codes.
pub(crate) mod status {
    pub const INVALID_OPCODE: u16 = 0x01;
    pub const LBA_OUT_OF_RANGE: u16 = 0x80;
    pub const PRP_OFFSET_INVALID: u16 = 0x13;
    pub const WRITE_PROTECTED: u16 = 0x20;
    pub const UNRECOVERED_READ: u16 = 0x281;
}

/// COMPARE FAILURE, of the media errors.
const COMPARE_FAILURE: u16 = 0x285;

fn dword(command: &[u8; 64], n: usize) -> u32 {
    u32::from_le_bytes(command[n * 4..n * 4 + 4].try_into().expect("4 bytes"))
}

/// What the SIM, and the controller, make of a CCB before any byte is moved.
pub(crate) fn check(io: &Io) {
    let is_admin = match io.func_code {
        sys::XPT_NVME_IO => false,
        sys::XPT_NVME_ADMIN => true,
        _ => return,
    };
    let (has_list, is_null) = (io.flags & sys::CAM_DATA_SG != 0, io.data.is_null());
    if io.format() == sys::CAM_DATA_BIO && is_null {
        broken("page fault: nvme follows a null struct bio");
    }
    if has_list && is_null {
        broken("page fault: nvme follows a null list");
    }
    if io.format() == sys::CAM_DATA_PADDR {
        broken("page fault: nvme takes a physical address for a kernel's");
    }
    if io.flags & sys::CAM_DIR_MASK == sys::CAM_DIR_NONE && !is_null {
        broken("nvme loads the data of a command without data");
    }
    if io.command[1] & 0xc0 != 0 {
        broken("PSDT: the controller takes the PRPs for a scatter gather list");
    }
    if io.command[1] & 0x03 != 0 {
        broken("FUSE: half of a fused command stops the queue");
    }
    let names_memory = match io.command[0] {
        opcode::CREATE_SQ | opcode::CREATE_CQ | opcode::DOORBELL_BUFFER_CONFIG => is_admin,
        opcode::SET_FEATURES => is_admin && dword(&io.command, 10) & 0xff == 0x0d,
        _ => false,
    };
    if names_memory && !allowed() {
        broken("an admin command tells the controller of physical memory");
    }
}

/// Commands that name physical memory are what a test means to send.
pub static ALLOW_PHYSICAL: std::sync::atomic::AtomicBool =
    std::sync::atomic::AtomicBool::new(false);

fn allowed() -> bool {
    ALLOW_PHYSICAL.load(std::sync::atomic::Ordering::SeqCst)
}

/// Bytes that a command moves, whatever the CCB says.
fn length(is_admin: bool, command: &[u8; 64], block: usize) -> Result<usize, u16> {
    match (is_admin, command[0]) {
        (false, 0) => Ok(0),
        (false, opcode::WRITE | opcode::READ | opcode::COMPARE) => {
            Ok(((dword(command, 12) & 0xffff) as usize + 1) * block)
        }
        (false, opcode::DATASET_MANAGEMENT) => Ok(((dword(command, 10) & 0xff) as usize + 1) * 16),
        (true, opcode::IDENTIFY) => Ok(PAGE),
        (true, opcode::GET_LOG_PAGE) => {
            let dwords = dword(command, 10) >> 16 | dword(command, 11) << 16;
            Ok((dwords as usize).saturating_add(1) * 4)
        }
        (true, opcode::SET_FEATURES | opcode::FORMAT_NVM | opcode::GET_FEATURES) => Ok(0),
        (true, opcode::CREATE_SQ | opcode::CREATE_CQ | opcode::DOORBELL_BUFFER_CONFIG)
            if allowed() =>
        {
            Ok(0)
        }
        _ => Err(status::INVALID_OPCODE),
    }
}

/// A list of PRPs, where nvme(4) has it: somewhere inside a page.
#[repr(C, align(4096))]
struct List {
    before: [u64; 64],
    entries: [u64; 448],
}

/// PRP1 and PRP2 of a command, and the list that PRP2 may point at.
struct Prps {
    first: usize,
    second: usize,
    list: Box<List>,
    listed: usize,
}

impl Prps {
    /// nvme_payload_map().
    fn new(map: &Map) -> Self {
        let mut list = Box::new(List {
            before: [0; 64],
            entries: [0; 448],
        });
        let rest = map.segments.get(1..).unwrap_or_default();
        if rest.len() > list.entries.len() {
            broken("nvme: more segments than a list of PRPs has room for");
        }
        for (entry, (at, ..)) in list.entries.iter_mut().zip(rest) {
            *entry = *at as u64;
        }
        let second = match rest {
            [] => 0,
            [(at, ..)] => *at,
            _ => list.entries.as_ptr() as usize,
        };
        Prps {
            first: map.segments.first().map_or(0, |(at, ..)| *at),
            second,
            listed: rest.len(),
            list,
        }
    }

    /// Where the controller moves `len` bytes: page by page, by address.
    fn pages(&self, len: usize) -> Result<Vec<(usize, usize)>, u16> {
        if self.first == 0 && len != 0 {
            broken("the controller follows PRP1 to physical 0");
        }
        if !self.first.is_multiple_of(4) {
            return Err(status::PRP_OFFSET_INVALID);
        }
        let mut pages = vec![(self.first, len.min(PAGE - self.first % PAGE))];
        let mut left = len - pages[0].1;
        let count = left.div_ceil(PAGE);
        for i in 0..count {
            let at = if count == 1 {
                self.second
            } else if self.second == self.list.entries.as_ptr() as usize {
                if i >= self.listed {
                    broken("the controller follows a stale entry of a PRP list");
                }
                self.list.entries[i] as usize
            } else if self.second == 0 {
                broken("the controller follows a PRP list at physical 0");
            } else {
                broken("the controller takes data for a PRP list");
            };
            if at == 0 {
                broken("the controller follows PRP2 to physical 0");
            }
            if !at.is_multiple_of(PAGE) {
                return Err(status::PRP_OFFSET_INVALID);
            }
            pages.push((at, left.min(PAGE)));
            left -= left.min(PAGE);
        }
        Ok(pages)
    }
}

/// Whether the controller may touch these bytes: those of one segment, or of a
/// bounce page, all of which is memory whatever it stands for.
fn check_inside(map: &Map, at: usize, len: usize) {
    let inside = map.segments.iter().any(|(start, size, is_bounce)| {
        let end = if *is_bounce { PAGE } else { *size };
        *start <= at && at + len <= start + end
    });
    // What lies in two segments that touch is inside as well.
    let bytes = |at: usize| {
        map.segments
            .iter()
            .any(|(start, size, _)| (*start..start + size).contains(&at))
    };
    if !inside && !(at..at + len).all(bytes) {
        broken("the controller moves more than the CCB has memory for");
    }
}

/// Carries out a command of `blocks`, of so many bytes each, in a namespace with such
/// Identify data; the error is its status.
pub(crate) fn execute(
    io: &Io,
    map: Option<&Map>,
    blocks: &mut [u8],
    block: usize,
    identify: impl FnOnce() -> Vec<u8>,
) -> Result<(), u16> {
    let is_admin = io.func_code == sys::XPT_NVME_ADMIN;
    let len = length(is_admin, &io.command, block)?;
    if len == 0 {
        return Ok(());
    }
    let Some(map) = map else {
        broken("the controller follows PRP1 to physical 0");
    };
    let pages = Prps::new(map).pages(len)?;
    for (at, part) in &pages {
        check_inside(map, *at, *part);
    }
    // SAFETY: just checked; the memory is the transfer's until it is done.
    let memory =
        |at: usize, part: usize| unsafe { core::slice::from_raw_parts_mut(at as *mut u8, part) };
    if is_admin {
        let mut page = vec![0; len];
        // CNS 00h is a namespace's data, 01h the controller's.
        if io.command[0] == opcode::IDENTIFY && dword(&io.command, 10) & 0xff == 0 {
            page = identify();
            page.resize(len, 0);
        } else if io.command[0] == opcode::IDENTIFY {
            page = controller("QPNVME");
        }
        let mut from = &page[..];
        for (at, part) in pages {
            memory(at, part).copy_from_slice(&from[..part]);
            from = &from[part..];
        }
        return Ok(());
    }
    if io.command[0] == opcode::DATASET_MANAGEMENT {
        return Ok(());
    }
    let lba = u64::from_le_bytes(io.command[40..48].try_into().expect("8 bytes"));
    let start = usize::try_from(lba).ok().and_then(|n| n.checked_mul(block));
    let range = start.and_then(|start| blocks.get_mut(start..start.checked_add(len)?));
    let mut rest = range.ok_or(status::LBA_OUT_OF_RANGE)?;
    for (at, part) in pages {
        let (here, behind) = rest.split_at_mut(part);
        rest = behind;
        match io.command[0] {
            opcode::WRITE => here.copy_from_slice(memory(at, part)),
            opcode::READ => memory(at, part).copy_from_slice(here),
            _ if here != memory(at, part) => return Err(COMPARE_FAILURE),
            _ => {}
        }
    }
    Ok(())
}

/// Identify Namespace data (NVM Express NVM Command Set Specification): the size
/// in blocks, and one format, of blocks of 512 bytes.
pub fn namespace(blocks: usize) -> Vec<u8> {
    namespace_of(blocks, BLOCK)
}

/// Identify Controller data (NVM Express Base Specification 2.0, 5.17.2.1).
pub fn controller(serial: &str) -> Vec<u8> {
    let mut data = vec![0; PAGE];
    data[4..72].fill(b' ');
    for (at, text) in [(4, serial), (24, "QPASS RAM DISK"), (64, "0001")] {
        data[at..at + text.len()].copy_from_slice(text.as_bytes());
    }
    data
}

/// The same, of blocks of a size that is a power of two.
pub fn namespace_of(blocks: usize, block: usize) -> Vec<u8> {
    let mut data = vec![0; PAGE];
    for field in [0, 8, 16] {
        data[field..field + 8].copy_from_slice(&(blocks as u64).to_le_bytes());
    }
    // LBAF0's LBADS, a power of two.
    data[130] = block.trailing_zeros() as u8;
    data
}
