//! What sets one SIM apart from another, as a driver above them meets it. Each
//! model follows the kernel's source that it names (FreeBSD 14.2, below sys/).

use crate::{busdma::Tag, memory, nvme::opcode, scsi::is_read_or_write, sys, thread::broken};
use std::time::Duration;

/// What a SIM makes of CAM_DATA_SG.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lists {
    /// It takes lists.
    Taken,
    /// It answers CAM_REQ_INVALID, as mrsas_map_request() (dev/mrsas/mrsas_cam.c)
    /// and mpi3mr_map_request() (dev/mpi3mr/mpi3mr_cam.c) do.
    Refused,
    /// It has no code for them, and what it does is undefined.
    Undefined,
}

/// What a SIM does about XPT_ABORT.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Aborts {
    /// It answers a little later, and is through with the CCB then.
    Answers,
    /// It never answers, forgets the XPT_ABORT's CCB, and ends the target as
    /// aborted so much later; not before the device goes, if it does not say.
    NeverAnswers(Option<Duration>),
    /// It keeps the XPT_ABORT's CCB until a test has it answer.
    AnswersWhenTold,
    /// It writes the status first and goes on to read the CCB for so long, with
    /// its own lock held.
    ReadsOn(Duration),
    /// It follows the pointer that it has put into the target's header.
    FollowsPrivate,
}

/// A kind of SIM.
#[derive(Clone, Copy, Debug)]
pub struct Model {
    /// Its driver.
    pub name: &'static str,
    /// How it loads its data; without one, every address reaches the device.
    pub tag: Option<Tag>,
    /// Lists of segments.
    pub lists: Lists,
    /// XPT_ABORT.
    pub aborts: Aborts,
    /// It is an NVMe controller: see the module [`nvme`](crate::nvme).
    pub is_nvme: bool,
    /// It translates SCSI to ATA and writes what a command other than READ or
    /// WRITE answers through the CCB's pointer.
    pub translates: bool,
    /// It corrects INQUIRY data in place when a command is through.
    pub patches_inquiry: bool,
    /// It is handed what an in-tree peripheral would send, and nothing else.
    pub is_strict: bool,
}

impl Model {
    /// A SIM that takes everything.
    pub const PLAIN: Model = Model {
        name: "ram",
        tag: None,
        lists: Lists::Taken,
        aborts: Aborts::Answers,
        is_nvme: false,
        translates: false,
        patches_inquiry: false,
        is_strict: false,
    };

    /// The same, that lets nothing pass which no peripheral sends.
    pub const STRICT: Model = Model {
        is_strict: true,
        ..Model::PLAIN
    };

    /// iscsi(4), iscsi_action_abort(): the task management request is queued
    /// without the XPT_ABORT's CCB, whose status nobody writes; when it is
    /// answered, iscsi_pdu_handle_task_response() ends the aborted command.
    /// iscsi_action_scsiio() and iscsi_pdu_handle_data_in() have no case for
    /// CAM_DATA_SG.
    pub const ISCSI: Model = Model {
        name: "iscsi",
        lists: Lists::Undefined,
        aborts: Aborts::NeverAnswers(Some(Duration::from_millis(50))),
        ..Model::STRICT
    };

    /// The same, with a target that answers no task management request: the
    /// command ends with the session.
    pub const ISCSI_SILENT: Model = Model {
        aborts: Aborts::NeverAnswers(None),
        ..Model::ISCSI
    };

    /// nvme(4): nvme_sim_nvmeio() (dev/nvme/nvme_sim.c), the payload's tag of
    /// nvme_qpair_construct() and nvme_payload_map() (dev/nvme/nvme_qpair.c).
    pub const NVME: Model = Model {
        name: "nvme",
        tag: Some(Tag {
            alignment: 4,
            boundary: sys::PAGE_SIZE as usize,
            longest: sys::PAGE_SIZE as usize,
            lockfunc: false,
            prewrite: true,
        }),
        is_nvme: true,
        ..Model::STRICT
    };

    /// ahci(4): the data tag of ahci_dmainit(), the sync of ahci_dmasetprd()
    /// (dev/ahci/ahci.c).
    pub const AHCI: Model = Model {
        name: "ahci",
        tag: Some(Tag {
            alignment: 2,
            boundary: 0,
            longest: 4 << 20,
            lockfunc: true,
            prewrite: false,
        }),
        ..Model::STRICT
    };

    /// A SCSI adapter whose data must begin at a block's boundary.
    pub const BLOCKWISE: Model = Model {
        name: "blockwise",
        tag: Some(Tag {
            alignment: 512,
            boundary: 0,
            longest: 64 << 10,
            lockfunc: true,
            prewrite: false,
        }),
        ..Model::STRICT
    };

    /// isci(4): scif_cb_io_request_get_virtual_address_from_sgl()
    /// (dev/isci/isci_io_request.c) panics on what is no virtual address.
    pub const ISCI: Model = Model {
        name: "isci",
        translates: true,
        ..Model::PLAIN
    };

    /// smartpqi(4), smartpqi_fix_ld_inquiry() (dev/smartpqi/smartpqi_cam.c);
    /// mfi_cam_done() (dev/mfi/mfi_cam.c) and mpt_scsi_reply_handler()
    /// (dev/mpt/mpt_cam.c) do the same to the first byte.
    pub const SMARTPQI: Model = Model {
        name: "smartpqi",
        patches_inquiry: true,
        ..Model::PLAIN
    };

    /// pvscsi(4), pvscsi_action() (dev/vmware/pvscsi/pvscsi.c): its control
    /// block is found by the target's own header.
    pub const PVSCSI: Model = Model {
        name: "pvscsi",
        aborts: Aborts::FollowsPrivate,
        ..Model::STRICT
    };

    /// mrsas(4): no lists.
    pub const MRSAS: Model = Model {
        name: "mrsas",
        lists: Lists::Refused,
        ..Model::STRICT
    };

    /// virtio_scsi(4) with a device that takes its time: vtscsi_execute_abort_task_cmd()
    /// sends the request and returns, and the CCB is the SIM's until then.
    pub const VIRTIO_SLOW: Model = Model {
        aborts: Aborts::AnswersWhenTold,
        ..Model::VIRTIO
    };

    /// virtio_scsi(4), vtscsi_complete_abort_task_cmd()
    /// (dev/virtio/scsi/virtio_scsi.c): the status is written before xpt_done()
    /// (cam/cam_xpt.c), which reads the CCB.
    pub const VIRTIO: Model = Model {
        name: "virtio_scsi",
        aborts: Aborts::ReadsOn(Duration::from_millis(20)),
        ..Model::STRICT
    };
}

/// Ends the process unless an XPT_ABORT's CCB is there still.
pub(crate) fn check_abort(ccb: *mut sys::ccb) {
    let is_there = memory::is_live(ccb.cast(), "CAM CCB") || memory::is_item(ccb.cast());
    // SAFETY: freed memory is kept, and poisoned.
    if !is_there || unsafe { (*ccb).ccb_h.func_code } != sys::XPT_ABORT {
        broken("an XPT_ABORT's CCB is freed, or another's, while the SIM has it");
    }
}

/// A CCB's data, as a SIM finds it.
#[derive(Clone, Copy, Debug)]
pub struct Io {
    /// XPT_.
    pub func_code: u32,
    /// `ccb_h.flags`.
    pub flags: u32,
    /// `data_ptr`.
    pub data: *mut u8,
    /// `sglist_cnt`, 0 where there is none.
    pub segments: u16,
    /// `dxfer_len`.
    pub len: usize,
    /// The CDB, the task file or the submission queue entry.
    pub command: [u8; 64],
}

// SAFETY: the pointer is only a number to whoever gets it from another thread.
unsafe impl Send for Io {}

impl Io {
    /// Of a CCB that the SIM has; none if its opcode has no data.
    pub(crate) fn of(ccb: *mut sys::ccb) -> Option<Self> {
        // SAFETY: the SIM's CCB, which is what its opcode says.
        unsafe {
            let hdr = &(*ccb).ccb_h;
            let mut command = [0; 64];
            let mut take = |from: *const u8, len: usize| {
                core::ptr::copy_nonoverlapping(from, command.as_mut_ptr(), len.min(64));
            };
            let (data, segments, len) = match hdr.func_code {
                sys::XPT_SCSI_IO | sys::XPT_CONT_TARGET_IO => {
                    let io = &(*ccb).csio;
                    let cdb_len = usize::from(io.cdb_len);
                    if hdr.flags & sys::CAM_CDB_POINTER != 0 {
                        take(io.cdb_io.cdb_ptr, cdb_len);
                    } else {
                        take(io.cdb_io.cdb_bytes.as_ptr(), cdb_len.min(16));
                    }
                    (io.data_ptr, io.sglist_cnt, io.dxfer_len)
                }
                sys::XPT_ATA_IO => {
                    let io = &(*ccb).ataio;
                    take((&raw const io.cmd).cast(), size_of_val(&io.cmd));
                    command[0] = io.cmd.command;
                    (io.data_ptr, 0, io.dxfer_len)
                }
                sys::XPT_NVME_IO | sys::XPT_NVME_ADMIN => {
                    let io = &(*ccb).nvmeio;
                    take((&raw const io.cmd).cast(), 64);
                    (io.data_ptr, io.sglist_cnt, io.dxfer_len)
                }
                _ => return None,
            };
            Some(Io {
                func_code: hdr.func_code,
                flags: hdr.flags,
                data,
                segments,
                len: len as usize,
                command,
            })
        }
    }

    /// Whether there is data to move.
    pub fn has_data(&self) -> bool {
        self.flags & sys::CAM_DIR_MASK != sys::CAM_DIR_NONE && self.len != 0
    }

    /// The format of the data.
    pub fn format(&self) -> u32 {
        self.flags & sys::CAM_DATA_MASK
    }

    /// Whether in-tree peripherals send the command with pages.
    fn may_have_pages(&self) -> bool {
        match self.func_code {
            sys::XPT_SCSI_IO => is_read_or_write(&self.command),
            // READ DMA, WRITE DMA, their 48-bit forms, with FUA, queued by NCQ.
            sys::XPT_ATA_IO => matches!(
                self.command[0],
                0xc8 | 0xca | 0x25 | 0x35 | 0x3d | 0x60 | 0x61
            ),
            sys::XPT_NVME_IO => matches!(
                self.command[0],
                opcode::WRITE | opcode::READ | opcode::COMPARE
            ),
            _ => false,
        }
    }

    /// Ends the process unless it is what a peripheral would have sent.
    fn check_built(&self) {
        if !self.has_data() {
            if self.format() != 0
                || self.flags & sys::CAM_DIR_MASK != sys::CAM_DIR_NONE
                || !self.data.is_null()
                || self.len != 0
                || self.segments != 0
            {
                broken(&format!(
                    "a command without data comes with some: flags {:#x}, data {:p}, {} bytes, {} segments",
                    self.flags, self.data, self.len, self.segments
                ));
            }
            return;
        }
        if self.data.is_null() {
            broken("a command with data has no pointer to it");
        }
        let is_list = self.flags & sys::CAM_DATA_SG != 0;
        if is_list != (self.segments != 0) {
            broken("a count of segments without a list, or the other way round");
        }
        if self.format() == sys::CAM_DATA_BIO {
            // SAFETY: the CCB names a bio, which stays until it is done.
            let bio = unsafe { &*self.data.cast::<sys::bio>() };
            if !self.may_have_pages() {
                broken("pages for a command that no peripheral sends with pages");
            }
            if bio.bio_ma_offset % 512 != 0 || !self.len.is_multiple_of(512) {
                broken("pages for a transfer that does not begin or end at a block's boundary");
            }
        }
    }
}

impl Model {
    /// Looks at a CCB as the SIM's action routine does.
    pub(crate) fn check(&self, io: &Io) {
        if self.is_nvme {
            crate::nvme::check(io);
        }
        if self.translates
            && io.format() == sys::CAM_DATA_BIO
            && io.func_code == sys::XPT_SCSI_IO
            && !is_read_or_write(&io.command)
        {
            broken("panic: isci: requesting pointer into unmapped ccb");
        }
        if self.is_strict {
            io.check_built();
        }
        if self.lists == Lists::Undefined && io.has_data() && io.flags & sys::CAM_DATA_SG != 0 {
            broken("panic: a SIM without code for CAM_DATA_SG is given some");
        }
    }

    /// Corrects INQUIRY data where the CCB's pointer points, once it is there.
    pub(crate) fn patch(&self, io: &Io) {
        let is_standard = io.command[0] == 0x12 && io.command[1] & 1 == 0;
        let reads = io.flags & sys::CAM_DIR_MASK == sys::CAM_DIR_IN;
        if !self.patches_inquiry
            || io.func_code != sys::XPT_SCSI_IO
            || !is_standard
            || !reads
            || io.len < 36
        {
            return;
        }
        if io.format() != sys::CAM_DATA_VADDR {
            broken("a SIM corrects INQUIRY data inside a struct bio, or a list");
        }
        // SAFETY: 36 bytes of kernel memory at least.
        unsafe {
            let vendor = crate::scsi::standard_inquiry();
            core::ptr::copy_nonoverlapping(vendor[8..].as_ptr(), io.data.add(8), 28);
        }
    }
}
