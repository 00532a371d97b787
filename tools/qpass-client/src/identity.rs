//! What a device is, as CAM knows it, and which there are.

use crate::{
    decode::text,
    device::Device,
    errno::Errno,
    error::Error,
    kernel::{Buffer, Kernel},
};
use std::sync::Arc;
use sys_bindings as sys;

/// What a device speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// SCSI, and ATAPI.
    Scsi,
    /// ATA.
    Ata,
    /// NVMe.
    Nvme,
    /// Another: `ccb_getdev.protocol`.
    Other(u32),
}

/// What a device is.
#[derive(Clone, Debug)]
pub struct Identity {
    /// Bus, as CAM numbers them.
    pub bus: u32,
    /// Target.
    pub target: u32,
    /// LUN.
    pub lun: u64,
    /// What it speaks.
    pub protocol: Protocol,
    /// Peripheral device type (SPC-5): 0 a disk, 1 a tape, 5 a CD, 8 a changer,
    /// 13 an enclosure.
    pub device_type: u8,
    /// Peripheral qualifier (SPC-6): 0, or there is no such unit, see
    /// [`absence`](crate::decode::inquiry::absence).
    pub qualifier: u8,
    /// Vendor; of an ATA or an NVMe device, empty.
    pub vendor: String,
    /// Product, or model.
    pub product: String,
    /// Revision of the firmware.
    pub revision: String,
    /// Serial number, empty if CAM does not know it.
    pub serial: String,
    /// The peripherals on it: `da0`, `pass0`, `qpass0`.
    pub peripherals: Vec<String>,
    /// The controller, such as `ahcich0`.
    pub controller: String,
    /// The longest transfer of the controller, in bytes.
    pub maxio: u32,
}

fn c_text(name: &[core::ffi::c_char]) -> String {
    text(&name.iter().map(|c| *c as u8).collect::<Vec<u8>>())
}

impl Device {
    /// XPT_PATH_INQ.
    pub(crate) fn path_inquiry(&self) -> Result<sys::ccb_pathinq, Error> {
        let ccb = self
            .open
            .immediate(sys::XPT_PATH_INQ, None, |_| ())
            .map_err(|errno| self.open.error("path inquiry", errno))?;
        // SAFETY: what the opcode says.
        Ok(unsafe { ccb.cpi })
    }

    /// The longest transfer, in bytes.
    ///
    /// # Errors
    /// ENXIO.
    pub fn maxio(&self) -> Result<u32, Error> {
        if self.is_qpass() {
            return Ok(self.info()?.maxio);
        }
        match self.path_inquiry()?.maxio {
            0 => Ok(sys::DFLTPHYS),
            some => Ok(some),
        }
    }

    /// What the device is, as CAM knows it: no command is sent to it.
    ///
    /// # Errors
    /// ENXIO.
    pub fn identity(&self) -> Result<Identity, Error> {
        let ccb = self
            .open
            .immediate(sys::XPT_GDEV_TYPE, None, |_| ())
            .map_err(|errno| self.open.error("get device type", errno))?;
        let inquiry = self.path_inquiry()?;
        // SAFETY: what the opcode says.
        let (dev, hdr) = unsafe { (&ccb.cgd, &ccb.ccb_h) };
        let mut identity = Identity {
            bus: hdr.path_id,
            target: hdr.target_id,
            lun: hdr.target_lun,
            protocol: match dev.protocol {
                sys::PROTO_SCSI | sys::PROTO_ATAPI | sys::PROTO_SEMB => Protocol::Scsi,
                sys::PROTO_ATA => Protocol::Ata,
                sys::PROTO_NVME => Protocol::Nvme,
                other => Protocol::Other(other),
            },
            device_type: 0,
            qualifier: 0,
            vendor: String::new(),
            product: String::new(),
            revision: String::new(),
            serial: text(&dev.serial_num[..usize::from(dev.serial_num_len)]),
            peripherals: self.peripherals()?,
            controller: format!("{}{}", c_text(&inquiry.dev_name), inquiry.unit_number),
            maxio: self.maxio()?,
        };
        match identity.protocol {
            Protocol::Scsi => {
                // SAFETY: plain bytes, longer than the standard data's strings.
                let data: &[u8; 36] = unsafe { &*(&raw const dev.inq_data).cast() };
                identity.device_type = data[0] & 0x1f;
                identity.qualifier = data[0] >> 5;
                identity.vendor = text(&data[8..16]);
                identity.product = text(&data[16..32]);
                identity.revision = text(&data[32..36]);
            }
            Protocol::Ata => {
                // CAM keeps the strings in the order of their bytes, unlike the device.
                // SAFETY: plain bytes, 512 of them.
                let data: &[u8; 512] = unsafe { &*(&raw const dev.ident_data).cast() };
                identity.product = text(&data[54..94]);
                identity.revision = text(&data[46..54]);
                if identity.serial.is_empty() {
                    identity.serial = text(&data[20..40]);
                }
            }
            Protocol::Nvme => {
                if let Ok(data) = self.advanced_info(sys::CDAI_TYPE_NVME_CNTRL, 4096) {
                    identity.serial = text(&data[4..24]);
                    identity.product = text(&data[24..64]);
                    identity.revision = text(&data[64..72]);
                }
            }
            Protocol::Other(_) => {}
        }
        Ok(identity)
    }

    /// XPT_DEV_ADVINFO: what CAM keeps of a device.
    fn advanced_info(&self, kind: u32, len: usize) -> Result<Buffer, Error> {
        let mut buffer = self.buffer(len)?;
        let at = buffer.address() as *mut u8;
        let ccb = self
            .open
            .immediate(sys::XPT_DEV_ADVINFO, Some(&mut buffer), |ccb| {
                // SAFETY: a union of plain data.
                let info = unsafe { &mut ccb.cdai };
                info.ccb_h.flags = sys::CAM_DIR_IN;
                info.buftype = kind;
                (info.bufsiz, info.buf) = (len as i64, at);
            });
        let ccb = ccb.map_err(|errno| self.open.error("device information", errno))?;
        // SAFETY: what the opcode says.
        if unsafe { ccb.ccb_h.status } & sys::CAM_STATUS_MASK == sys::CAM_REQ_CMP {
            Ok(buffer)
        } else {
            Err(self.open.error("device information", Errno::EOPNOTSUPP))
        }
    }

    /// XPT_GDEVLIST: the names of the peripherals on the device.
    ///
    /// # Errors
    /// ENXIO.
    pub fn peripherals(&self) -> Result<Vec<String>, Error> {
        let (mut index, mut generation) = (0, 0);
        let mut names = Vec::new();
        // As many as there may be, should the list change for ever.
        for _ in 0..1000 {
            let ccb = self
                .open
                .immediate(sys::XPT_GDEVLIST, None, |ccb| {
                    ccb.cgdl.index = index;
                    ccb.cgdl.generation = generation;
                })
                .map_err(|errno| self.open.error("list of peripherals", errno))?;
            // SAFETY: what the opcode says.
            let list = unsafe { ccb.cgdl };
            match list.status {
                sys::CAM_GDEVLIST_LIST_CHANGED => {
                    names.clear();
                    (index, generation) = (0, list.generation);
                    continue;
                }
                sys::CAM_GDEVLIST_ERROR => break,
                _ => {}
            }
            let name = c_text(&list.periph_name);
            if !name.is_empty() {
                names.push(format!("{name}{}", list.unit_number));
            }
            if list.status != sys::CAM_GDEVLIST_MORE_DEVS || list.index == index {
                break;
            }
            (index, generation) = (list.index, list.generation);
        }
        Ok(names)
    }
}

/// The nodes of qpass(4): `qpassN`, or, where it stands in for pass(4), those of
/// `passN` that are its.
///
/// # Errors
/// Of reading `/dev`.
pub fn own_nodes(kernel: &Arc<dyn Kernel>) -> Result<Vec<String>, Error> {
    let own = nodes(kernel, "qpass")?;
    if !own.is_empty() {
        return Ok(own);
    }
    let is_own = |name: &String| Device::open(kernel, name).is_ok_and(|d| d.is_qpass());
    let theirs = nodes(kernel, "pass")?;
    Ok(theirs.into_iter().filter(is_own).collect())
}

/// The nodes of a driver, `qpass` or `pass`, in the order of their numbers.
///
/// # Errors
/// Of reading `/dev`.
pub fn nodes(kernel: &Arc<dyn Kernel>, driver: &str) -> Result<Vec<String>, Error> {
    let names = kernel.nodes().map_err(|errno| Error {
        what: "/dev".into(),
        doing: "read",
        errno,
    })?;
    let unit = |name: &String| name.strip_prefix(driver)?.parse::<u32>().ok();
    let mut found: Vec<_> = names
        .into_iter()
        .filter_map(|name| Some((unit(&name)?, name)))
        .collect();
    found.sort();
    Ok(found.into_iter().map(|(_, name)| name).collect())
}
