//! The names of commands.

use super::{
    ata, nvme,
    tables::opcodes::{ANY, SCSI, SERVICE_ACTIONS},
};

/// T10's name of a SCSI command, by its CDB, for a device of a peripheral device
/// type (SPC-6, table 151); with the service action where the operation code has
/// one. Of an empty CDB, and of a code that is nobody's, there is none.
pub fn scsi(cdb: &[u8], device_type: u8) -> Option<&'static str> {
    let opcode = *cdb.first()?;
    let action = match opcode {
        // A variable-length CDB.
        0x7f => cdb.get(8..10).map(|b| u16::from_be_bytes([b[0], b[1]])),
        _ => cdb.get(1).map(|b| u16::from(b & 0x1f)),
    };
    // What is of the type goes before what is of any.
    let fits = |of: u8| of == device_type || of == ANY;
    let of_action = SERVICE_ACTIONS
        .iter()
        .find(|(code, sa, of, _)| *code == opcode && Some(*sa) == action && fits(*of))
        .map(|(.., name)| *name);
    of_action.or_else(|| {
        let known = |e: &&(u8, u8, &str)| e.0 == opcode;
        let exact = SCSI.iter().filter(known).find(|(_, of, _)| fits(*of));
        // Another type's is better than none.
        exact.or_else(|| SCSI.iter().find(known)).map(|e| e.2)
    })
}

/// What a request is called, by CAM's function code (cam/cam_ccb.h) and the bytes
/// of its command as QPIOC_LIST gives them; an ATA command begins with CAM's flags
/// for it.
pub fn request(func_code: u32, command: &[u8], device_type: u8) -> String {
    let byte = |i: usize| command.get(i).copied().unwrap_or(0);
    let (kind, name, opcode) = match func_code & 0xff {
        0x01 => ("SCSI", scsi(command, device_type), byte(0)),
        0x18 => ("ATA", ata::command_name(byte(1)), byte(1)),
        0x1b => return "SMP".into(),
        0x1c => ("NVMe", nvme::command_name(byte(0), false), byte(0)),
        0x1f => ("NVMe admin", nvme::command_name(byte(0), true), byte(0)),
        other => return format!("CAM {other:02x}h"),
    };
    match name {
        Some(name) => name.into(),
        None => format!("{kind} {opcode:02x}h"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_has_the_name_of_its_device() {
        assert_eq!(scsi(&[0x34], 0), Some("PRE-FETCH(10)"));
        assert_eq!(scsi(&[0x34], 1), Some("READ POSITION"));
        assert_eq!(scsi(&[0x9e, 0x10], 0), Some("READ CAPACITY(16)"));
        assert_eq!(scsi(&[0x9e, 0x1f], 0), Some("SERVICE ACTION IN(16)"));
        assert_eq!(scsi(&[0x05], 0), Some("READ BLOCK LIMITS"));
        let mut long = [0; 32];
        (long[0], long[9]) = (0x7f, 9);
        assert_eq!(scsi(&long, 0), Some("READ(32)"));
        assert_eq!(scsi(&[0xff], 0), None);
        assert_eq!(scsi(&[], 0), None);
        assert_eq!(request(0x918, &[0, 0xc8], 0), "READ DMA");
        assert_eq!(request(0x91c, &[0xc0], 0), "NVMe c0h");
    }

    #[test]
    fn tables_are_in_order() {
        let of = |e: &(u8, u8, &str)| (e.0, e.1);
        assert!(SCSI.is_sorted_by(|a, b| of(a) < of(b)));
    }
}
