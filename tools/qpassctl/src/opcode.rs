//! The names of common commands, for people who look at what is outstanding.

use qpass_client::Outstanding;

/// SPC-5, SBC-4, SSC-5, SMC-3, SES-3.
const SCSI: &[(u8, &str)] = &[
    (0x00, "TEST UNIT READY"),
    (0x01, "REWIND"),
    (0x03, "REQUEST SENSE"),
    (0x04, "FORMAT UNIT"),
    (0x05, "READ BLOCK LIMITS"),
    (0x08, "READ(6)"),
    (0x0a, "WRITE(6)"),
    (0x10, "WRITE FILEMARKS"),
    (0x11, "SPACE"),
    (0x12, "INQUIRY"),
    (0x15, "MODE SELECT(6)"),
    (0x1a, "MODE SENSE(6)"),
    (0x1b, "START STOP UNIT"),
    (0x1c, "RECEIVE DIAGNOSTIC"),
    (0x1d, "SEND DIAGNOSTIC"),
    (0x25, "READ CAPACITY(10)"),
    (0x28, "READ(10)"),
    (0x2a, "WRITE(10)"),
    (0x2e, "WRITE AND VERIFY(10)"),
    (0x2f, "VERIFY(10)"),
    (0x34, "READ POSITION"),
    (0x35, "SYNCHRONIZE CACHE(10)"),
    (0x3b, "WRITE BUFFER"),
    (0x3c, "READ BUFFER"),
    (0x41, "WRITE SAME(10)"),
    (0x42, "UNMAP"),
    (0x43, "READ TOC"),
    (0x48, "SANITIZE"),
    (0x4d, "LOG SENSE"),
    (0x55, "MODE SELECT(10)"),
    (0x5a, "MODE SENSE(10)"),
    (0x5e, "PERSISTENT RESERVE IN"),
    (0x5f, "PERSISTENT RESERVE OUT"),
    (0x85, "ATA PASS-THROUGH(16)"),
    (0x88, "READ(16)"),
    (0x8a, "WRITE(16)"),
    (0x8f, "VERIFY(16)"),
    (0x91, "SYNCHRONIZE CACHE(16)"),
    (0x93, "WRITE SAME(16)"),
    (0x9e, "SERVICE ACTION IN(16)"),
    (0xa0, "REPORT LUNS"),
    (0xa1, "ATA PASS-THROUGH(12)"),
    (0xa2, "SECURITY PROTOCOL IN"),
    (0xa5, "MOVE MEDIUM"),
    (0xa8, "READ(12)"),
    (0xaa, "WRITE(12)"),
    (0xb5, "SECURITY PROTOCOL OUT"),
    (0xb8, "READ ELEMENT STATUS"),
];

/// ACS-4.
const ATA: &[(u8, &str)] = &[
    (0x06, "DATA SET MANAGEMENT"),
    (0x25, "READ DMA EXT"),
    (0x2f, "READ LOG EXT"),
    (0x35, "WRITE DMA EXT"),
    (0x47, "READ LOG DMA EXT"),
    (0x60, "READ FPDMA QUEUED"),
    (0x61, "WRITE FPDMA QUEUED"),
    (0xa1, "IDENTIFY PACKET DEVICE"),
    (0xb0, "SMART"),
    (0xc8, "READ DMA"),
    (0xca, "WRITE DMA"),
    (0xe0, "STANDBY IMMEDIATE"),
    (0xe5, "CHECK POWER MODE"),
    (0xe7, "FLUSH CACHE"),
    (0xea, "FLUSH CACHE EXT"),
    (0xec, "IDENTIFY DEVICE"),
    (0xef, "SET FEATURES"),
];

/// NVM Express 2.0, NVM command set.
const NVME: &[(u8, &str)] = &[
    (0x00, "Flush"),
    (0x01, "Write"),
    (0x02, "Read"),
    (0x05, "Compare"),
    (0x08, "Write Zeroes"),
    (0x09, "Dataset Management"),
    (0x0c, "Verify"),
];

/// NVM Express 2.0, admin commands.
const NVME_ADMIN: &[(u8, &str)] = &[
    (0x02, "Get Log Page"),
    (0x06, "Identify"),
    (0x09, "Set Features"),
    (0x0a, "Get Features"),
    (0x10, "Firmware Commit"),
    (0x11, "Firmware Image Download"),
    (0x14, "Device Self-test"),
    (0x80, "Format NVM"),
    (0x84, "Sanitize"),
];

/// CAM's function codes (cam/cam_ccb.h), by their low byte.
pub fn name(request: &Outstanding) -> String {
    let byte = |i: usize| request.command.get(i).copied().unwrap_or(0);
    // An ATA command begins with CAM's flags for it.
    let (kind, table, opcode) = match request.func_code & 0xff {
        0x01 => ("SCSI", SCSI, byte(0)),
        0x18 => ("ATA", ATA, byte(1)),
        0x1b => return "SMP".into(),
        0x1c => ("NVMe", NVME, byte(0)),
        0x1f => ("NVMe admin", NVME_ADMIN, byte(0)),
        other => return format!("CAM {other:02x}h"),
    };
    match table.iter().find(|(known, _)| *known == opcode) {
        Some((_, name)) => (*name).into(),
        None => format!("{kind} {opcode:02x}h"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn they_are_in_order_and_once() {
        for table in [SCSI, ATA, NVME, NVME_ADMIN] {
            assert!(table.is_sorted_by(|a, b| a.0 < b.0));
        }
    }
}
