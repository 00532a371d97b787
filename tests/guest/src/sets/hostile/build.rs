//! What attackers hand to the calls: CCBs, lists of segments and addresses.

use super::{
    attacker::{ARENA, Attacker, CCB, CCBS, LIST, LISTS, Open, TARGET},
    round::Phase,
    trial::Disk,
};
use sys_bindings as sys;

const OPCODES: &[sys::xpt_opcode] = &[
    sys::XPT_NOOP,
    sys::XPT_GDEV_TYPE,
    sys::XPT_GDEVLIST,
    sys::XPT_PATH_INQ,
    sys::XPT_REL_SIMQ,
    sys::XPT_SASYNC_CB,
    sys::XPT_SDEV_TYPE,
    sys::XPT_SCAN_BUS,
    sys::XPT_DEV_MATCH,
    sys::XPT_DEBUG,
    sys::XPT_PATH_STATS,
    sys::XPT_GDEV_STATS,
    sys::XPT_DEV_ADVINFO,
    sys::XPT_ASYNC,
    sys::XPT_ABORT,
    sys::XPT_RESET_BUS,
    sys::XPT_TERM_IO,
    sys::XPT_SCAN_LUN,
    sys::XPT_GET_TRAN_SETTINGS,
    sys::XPT_SET_TRAN_SETTINGS,
    sys::XPT_CALC_GEOMETRY,
    sys::XPT_GET_SIM_KNOB_OLD,
    sys::XPT_SET_SIM_KNOB,
    sys::XPT_GET_SIM_KNOB,
    sys::XPT_SMP_IO,
    sys::XPT_MMC_IO,
    sys::XPT_SCAN_TGT,
    sys::XPT_ENG_INQ,
    sys::XPT_ENG_EXEC,
    sys::XPT_EN_LUN,
    sys::XPT_TARGET_IO,
    sys::XPT_ACCEPT_TARGET_IO,
    sys::XPT_CONT_TARGET_IO,
    sys::XPT_IMMED_NOTIFY,
    sys::XPT_NOTIFY_ACK,
    sys::XPT_IMMEDIATE_NOTIFY,
    sys::XPT_NOTIFY_ACKNOWLEDGE,
    sys::XPT_MMC_SET_TRAN_SETTINGS,
    sys::XPT_MMC_GET_TRAN_SETTINGS,
    sys::XPT_VUNIQUE,
    0x7f,
    0x1ff,
    u32::MAX,
];

/// Addresses that are nobody's to give.
pub const WILD: &[usize] = &[
    0,
    1,
    0x7fff_ffff_f000,
    0x7fff_ffff_ffff,
    0x8000_0000_0000,
    0x0000_ffff_ffff_f000,
    0xffff_f800_0000_0000,
    0xffff_ffff_8020_0000,
    usize::MAX,
    usize::MAX - 4095,
];

impl Attacker<'_> {
    /// An address for `len` bytes of data.
    pub fn address(&mut self, len: usize) -> usize {
        if self.dice.one_in(25) {
            return self.dice.of(WILD);
        }
        let room = ARENA.saturating_sub(len).max(1);
        let at = self.arena + self.dice.below(room);
        match self.dice.below(4) {
            0 => at,
            1 => at & !511,
            _ => at & !4095,
        }
    }

    pub fn len(&mut self) -> usize {
        match self.dice.below(8) {
            0 => self.dice.below(20000),
            1 => 512 * self.dice.below(300),
            2 => self
                .dice
                .of(&[0, 1, 511, 513, 131_072, 131_073, 1 << 20, (1 << 20) + 512]),
            3 => self
                .dice
                .of(&[0x7fff_ffff, 0xffff_ffff, 0x8000_0000, 64 << 20]),
            _ => 512 * (1 + self.dice.below(64)),
        }
    }

    /// A list of segments for about `len` bytes: its address, and how many.
    pub fn list(&mut self, len: usize) -> (usize, u16) {
        let at = self.safe + LISTS + self.dice.below(8) * LIST;
        let many = self.dice.one_in(8);
        let n = 1 + self.dice.below(if many { 1024 } else { 6 });
        let mut left = len;
        for i in 0..n {
            let part = match self.dice.below(6) {
                0 => 0,
                1 => self.dice.below(5000),
                2 => usize::MAX - self.dice.below(3),
                _ => (left / (n - i)) & !511,
            };
            let part = if i + 1 == n { part.max(left) } else { part };
            left = left.saturating_sub(part);
            let to = self.address(part);
            // SAFETY: inside the list's room of this process's memory.
            unsafe {
                let to_list = (at as *mut u64).add(i * 2);
                to_list.write_volatile(to as u64);
                to_list.add(1).write_volatile(part as u64);
            }
        }
        if self.dice.one_in(20) {
            return (self.dice.of(WILD), n as u16);
        }
        let n = if self.dice.one_in(20) {
            self.dice.of(&[0, 1, 4096, 65535])
        } else {
            n as u16
        };
        (at, n)
    }

    fn flags(&mut self) -> u32 {
        const SOME: &[u32] = &[
            sys::CAM_DEV_QFRZDIS,
            sys::CAM_DEV_QFREEZE,
            sys::CAM_HIGH_POWER,
            sys::CAM_PASS_ERR_RECOVER,
            sys::CAM_NEGOTIATE,
            sys::CAM_DIS_AUTOSENSE,
            sys::CAM_TAG_ACTION_VALID,
            sys::CAM_SEND_STATUS,
            sys::CAM_SEND_SENSE,
            sys::CAM_CDB_POINTER,
        ];
        let mut flags = sys::CAM_DEV_QFRZDIS;
        for flag in SOME {
            if self.dice.one_in(6) {
                flags ^= flag;
            }
        }
        if self.dice.one_in(30) {
            flags ^= 1 << self.dice.below(32);
        }
        if self.dice.one_in(60) {
            flags = self.dice.next() as u32;
        }
        flags
    }

    /// Writes a CCB: its address.
    pub fn ccb(&mut self, open: Open) -> usize {
        let at = self.safe + self.dice.below(CCBS) * CCB;
        let dirty = self.dice.one_in(4);
        // SAFETY: a CCB's room of this process's memory; the device may not write
        // it, and a thread that shares it has plain data in it.
        let ccb = unsafe { &mut *(at as *mut sys::ccb) };
        let bytes = size_of::<sys::ccb>();
        for i in 0..bytes / 8 {
            let word = if dirty { self.dice.next() >> 1 } else { 0 };
            // SAFETY: inside the CCB.
            unsafe {
                (at as *mut u64)
                    .add(i)
                    .write_volatile(word & !(0xffff << 47))
            };
        }
        let own = self.phase != Phase::Opcodes || self.dice.one_in(2);
        let code = if own {
            match open.disk {
                Some(Disk::Ata) => sys::XPT_ATA_IO,
                Some(Disk::Nvme) => sys::XPT_NVME_IO,
                _ => sys::XPT_SCSI_IO,
            }
        } else {
            self.dice.of(OPCODES)
        };
        let flags = self.flags();
        let priority = self.dice.next() as u32;
        let retries = self.dice.of(&[0, 1, 4]);
        // SAFETY: plain data.
        let hdr = unsafe { &mut ccb.ccb_h };
        (hdr.func_code, hdr.flags) = (code, flags);
        hdr.retry_count = retries;
        hdr.pinfo.priority = priority;
        hdr.timeout = match (open.disk, self.phase) {
            // QEMU's AHCI and NVMe do not survive the resets that follow.
            (Some(Disk::Ata | Disk::Nvme), _) => 60_000,
            (Some(Disk::Scsi), Phase::Timeouts) => self.dice.of(&[1, 5, 20, 50, 300, 1000]),
            (Some(Disk::Scsi), _) if self.dice.one_in(6) => self.dice.of(&[1, 5, 50]),
            _ => 60_000,
        };
        self.trace(format_args!("ccb {code:#x} flags {flags:#x} at {at:#x}"));
        match code {
            sys::XPT_SCSI_IO | sys::XPT_CONT_TARGET_IO => self.scsi(ccb),
            sys::XPT_ATA_IO => self.ata(ccb),
            sys::XPT_NVME_IO => self.nvme(ccb),
            sys::XPT_ABORT => {
                ccb.cab.abort_ccb = (self.safe + self.dice.below(CCBS) * CCB) as *mut sys::ccb;
            }
            sys::XPT_SMP_IO => {
                let (one, two) = (self.len(), self.len());
                let (request, response) = (self.address(one), self.address(two));
                // SAFETY: plain data.
                let smp = unsafe { &mut ccb.smpio };
                (smp.smp_request, smp.smp_request_len) = (request as *mut u8, one as i32);
                (smp.smp_response, smp.smp_response_len) = (response as *mut u8, two as i32);
            }
            sys::XPT_DEV_ADVINFO => {
                let len = self.len();
                let to = self.address(len);
                let kind = self.dice.below(12);
                let store = self.dice.one_in(4);
                // SAFETY: plain data.
                let cdai = unsafe { &mut ccb.cdai };
                (cdai.buf, cdai.bufsiz) = (to as *mut u8, len as _);
                cdai.buftype = kind as u32;
                cdai.flags = u32::from(store);
            }
            sys::XPT_REL_SIMQ => {
                ccb.crs.release_flags = self.dice.next() as u32;
                ccb.crs.openings = self.dice.of(&[0, 1, 2, 8, 16, 32, 255, 65536, u32::MAX]);
            }
            sys::XPT_MMC_IO => {
                let to = self.address(4096);
                ccb.mmcio.cmd.data = (to & !7) as *mut sys::mmc_data;
            }
            _ => {}
        }
        at
    }

    /// What a command's data is: pointer, length, segments, and its flags.
    fn data(&mut self, writes: bool, exact: Option<usize>) -> (usize, u32, u16, u32) {
        let len = exact.unwrap_or_else(|| self.len());
        let direction = match self.dice.below(12) {
            0 => self.dice.of(&[sys::CAM_DIR_NONE, sys::CAM_DIR_BOTH]),
            _ if writes => sys::CAM_DIR_OUT,
            _ => sys::CAM_DIR_IN,
        };
        let (format, (at, n)) = match self.dice.below(10) {
            0..=2 => (sys::CAM_DATA_SG, self.list(len)),
            3 if self.phase == Phase::Opcodes => (
                self.dice.of(&[
                    sys::CAM_DATA_PADDR,
                    sys::CAM_DATA_SG_PADDR,
                    sys::CAM_DATA_BIO,
                ]),
                (self.address(len), 1),
            ),
            _ => (sys::CAM_DATA_VADDR, (self.address(len), 0)),
        };
        (at, len as u32, n, direction | format)
    }

    fn scsi(&mut self, ccb: &mut sys::ccb) {
        // Nothing that stops or formats the medium.
        const COMMANDS: &[u8] = &[
            0x00, 0x03, 0x08, 0x12, 0x12, 0x1a, 0x25, 0x28, 0x28, 0x28, 0x28, 0x2a, 0x2a, 0x2f,
            0x35, 0x4d, 0x5a, 0x88, 0x8a, 0x9e, 0xa0, 0xa3, 0xa8, 0xff,
        ];
        let command = self.dice.of(COMMANDS);
        let writes = matches!(command, 0x2a | 0x8a);
        let (at, len, segments, flags) = self.data(writes, None);
        let blocks = if self.dice.one_in(6) {
            self.dice.below(70_000) as u32
        } else {
            len.min(1 << 22) / 512
        };
        let lba = self.lba(writes).to_be_bytes();
        let count = blocks.to_be_bytes();
        let mut cdb = [0; 16];
        cdb[0] = command;
        match command {
            0x28 | 0x2a | 0x2f => {
                cdb[2..6].copy_from_slice(&lba);
                cdb[7..9].copy_from_slice(&count[2..]);
            }
            0x88 | 0x8a => {
                cdb[6..10].copy_from_slice(&lba);
                cdb[10..14].copy_from_slice(&count);
            }
            0xa8 => {
                cdb[2..6].copy_from_slice(&lba);
                cdb[6..10].copy_from_slice(&count);
            }
            0x08 => (cdb[3], cdb[4]) = (lba[3], count[3]),
            _ => {
                for byte in &mut cdb[1..] {
                    *byte = if self.dice.one_in(2) {
                        0
                    } else {
                        self.dice.next() as u8
                    };
                }
                cdb[3] = 0;
            }
        }
        if writes {
            // What is long would reach blocks of others.
            let most = 2048u32.min(blocks).to_be_bytes();
            let to = if command == 0x2a { 7..9 } else { 12..14 };
            cdb[10..12].fill(0);
            cdb[to].copy_from_slice(&most[2..]);
        }
        let cdb_len = match self.dice.below(20) {
            0 => self.dice.next() as u8,
            1 => self.dice.of(&[0, 1, 17, 32, 255]),
            _ => [6, 10, 10, 12, 16, 12, 16, 16][usize::from(command >> 5)],
        };
        let wild = self.dice.one_in(10);
        let elsewhere = if wild {
            self.dice.of(WILD)
        } else {
            core::ptr::from_mut(ccb) as usize + CCB - 16
        };
        let tag = self.dice.next() as u8;
        let sense = self.dice.next() as u8;
        // SAFETY: plain data.
        let io = unsafe { &mut ccb.csio };
        io.ccb_h.flags |= flags;
        (io.data_ptr, io.dxfer_len, io.sglist_cnt) = (at as *mut u8, len, segments);
        (io.cdb_len, io.sense_len, io.tag_action) = (cdb_len, sense, tag);
        io.cdb_io.cdb_bytes = cdb;
        if io.ccb_h.flags & sys::CAM_CDB_POINTER != 0 {
            // Behind the CCB, in its room: what lies elsewhere may be any command.
            if !wild {
                // SAFETY: the last bytes of the CCB's room.
                unsafe { (elsewhere as *mut [u8; 16]).write(cdb) };
            }
            io.cdb_io.cdb_ptr = elsewhere as *mut u8;
            io.cdb_len = cdb_len.min(16);
        }
    }

    fn lba(&mut self, writes: bool) -> u32 {
        if writes {
            return TARGET + self.dice.below(60_000) as u32;
        }
        if self.dice.one_in(10) {
            return self.dice.next() as u32;
        }
        self.dice.below(131_072) as u32
    }

    fn ata(&mut self, ccb: &mut sys::ccb) {
        let writes = self.dice.one_in(4);
        let blocks = 1 + self.dice.below(256);
        let (at, len, _, flags) = self.data(writes, Some(blocks * 512));
        let flags = (flags & !sys::CAM_DIR_MASK & !sys::CAM_DATA_MASK)
            | if writes {
                sys::CAM_DIR_OUT
            } else {
                sys::CAM_DIR_IN
            };
        let lba = if writes {
            TARGET + self.dice.below(60_000) as u32
        } else {
            self.dice.below(120_000) as u32
        };
        // SAFETY: plain data.
        let io = unsafe { &mut ccb.ataio };
        io.ccb_h.flags = (io.ccb_h.flags & !sys::CAM_DIR_MASK & !sys::CAM_DATA_MASK) | flags;
        // SAFETY: plain data.
        unsafe { (&raw mut io.cmd).write_bytes(0, 1) };
        io.cmd.flags = (sys::CAM_ATAIO_48BIT | sys::CAM_ATAIO_DMA) as u8;
        io.cmd.command = if writes { 0x35 } else { 0x25 };
        io.cmd.device = 0x40;
        let [low, mid, high, rest] = lba.to_le_bytes();
        (io.cmd.lba_low, io.cmd.lba_mid, io.cmd.lba_high) = (low, mid, high);
        io.cmd.lba_low_exp = rest;
        let [low, high] = (blocks as u16).to_le_bytes();
        (io.cmd.sector_count, io.cmd.sector_count_exp) = (low, high);
        (io.data_ptr, io.dxfer_len) = (at as *mut u8, len);
    }

    fn nvme(&mut self, ccb: &mut sys::ccb) {
        let opcode = self.dice.of(&[2u8, 2, 2, 1, 0, 5, 4, 8, 9, 0x0c, 0x7f]);
        let blocks = 1 + self.dice.below(256);
        let exact = (!self.dice.one_in(4)).then_some(blocks * 512);
        let (at, len, segments, flags) = self.data(opcode == 1, exact);
        let lba = if matches!(opcode, 1 | 4 | 8) {
            TARGET + self.dice.below(60_000) as u32
        } else {
            self.dice.below(130_000) as u32
        };
        let nsid = self.dice.of(&[1, 1, 1, 1, 0, 2, u32::MAX]);
        let odd = self.dice.next() as u32;
        // SAFETY: plain data.
        let io = unsafe { &mut ccb.nvmeio };
        io.ccb_h.flags |= flags;
        let (low, high) = (odd, 0);
        // SAFETY: plain data.
        unsafe { (&raw mut io.cmd).write_bytes(0, 1) };
        (io.cmd.opc, io.cmd.nsid) = (opcode, nsid);
        (io.cmd.cdw10, io.cmd.cdw11) = (lba, high);
        io.cmd.cdw12 = blocks as u32 - 1;
        if opcode == 9 {
            // Deallocating what is not said is for nobody's blocks.
            (io.cmd.cdw10, io.cmd.cdw11) = (0, 0);
            io.cmd.opc = 2;
        }
        io.cmd.cdw13 = low;
        (io.data_ptr, io.dxfer_len, io.sglist_cnt) = (at as *mut u8, len, segments);
    }
}
