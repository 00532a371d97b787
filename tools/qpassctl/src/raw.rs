//! Any SCSI command.

use crate::{
    answer::{self, Answer, SenseAnswer},
    args::Cdb,
    copy::Target,
    disk,
    fail::{Code, Fail},
    output::{self, dump, hex},
    stopped,
    stream::Reader,
};
use qpass_client::{Command, Device, Outcome, Sense, decode::opcode};
use serde::Serialize;
use std::path::Path;

#[derive(Serialize)]
struct Sent {
    device: String,
    cdb: String,
    /// T10's name of the command.
    command: Option<&'static str>,
    #[serde(flatten)]
    answer: Answer,
    /// What was moved from the device, unless it went into a file.
    data: Option<String>,
    /// Of REQUEST SENSE: what its data are.
    returned: Option<SenseAnswer>,
}

/// Words of hexadecimal digits, together a CDB.
fn parse(words: &[String]) -> Result<Vec<u8>, Fail> {
    let text: String = words
        .iter()
        .flat_map(|w| w.split([' ', ',', ':']))
        .map(|w| w.strip_prefix("0x").unwrap_or(w))
        // A single digit between blanks is a byte.
        .map(|w| {
            if w.len() == 1 {
                format!("0{w}")
            } else {
                w.to_owned()
            }
        })
        .collect();
    if !text.len().is_multiple_of(2) || !text.chars().all(|c| c.is_ascii_hexdigit()) {
        return Err(Fail::usage(format!(
            "{:?}: a CDB is two hexadecimal digits a byte, such as '12 00 00 00 24 00'",
            words.join(" ")
        )));
    }
    let bytes: Vec<u8> = (0..text.len())
        .step_by(2)
        .map(|i| u8::from_str_radix(&text[i..i + 2], 16).unwrap_or(0))
        .collect();
    match bytes.len() {
        1..=16 => Ok(bytes),
        n => Err(Fail::usage(format!("a CDB has 1 to 16 bytes, not {n}"))),
    }
}

/// What goes to the device.
fn input(path: &Path) -> Result<Vec<u8>, Fail> {
    let fail = |e: std::io::Error| Fail::file(path, "read", &e);
    let mut reader = Reader::new(path, 1 << 20).map_err(fail)?;
    let mut data = Vec::new();
    while let Some(piece) = reader.piece().map_err(fail)? {
        data.extend(piece);
    }
    if data.is_empty() {
        return Err(Fail::usage(format!("{}: it is empty", path.display())));
    }
    Ok(data)
}

pub fn cdb(device: &Device, args: &Cdb, json: bool) -> Result<(), Fail> {
    let cdb = parse(&args.cdb)?;
    if args.file.is_some() && args.data_in.is_none() && !args.data_out {
        return Err(Fail::usage("--file wants --in BYTES or --out with it"));
    }
    let mut command = Command::cdb(&cdb).timeout(args.timeout);
    let mut len = 0;
    if args.data_out {
        let data = input(args.file.as_deref().unwrap_or(Path::new("-")))?;
        len = data.len();
        check_len(device, len)?;
        let mut buffer = device.buffer(len)?;
        buffer.copy_from_slice(&data);
        command = command.data_out(buffer);
    } else if let Some(bytes) = args.data_in {
        check_len(device, bytes)?;
        len = bytes;
        command = command.data_in(device.buffer(bytes)?);
    }
    // A file that cannot be had is known before the device does anything.
    let target = match &args.file {
        Some(path) if args.data_in.is_some() => Some(Target::open(path)?),
        _ => None,
    };
    let sent = disk::run(device, command);
    if stopped() {
        return Err(Fail::interrupted());
    }
    let (command, ended) = sent?;
    let moved = answer::outcome(&ended).moved.min(len);
    let data = command.buffer().map(|b| &b[..moved]);
    // What came with an error came all the same; of an error without, there is none.
    let read = data.filter(|_| args.data_in.is_some() && (ended.is_ok() || moved != 0));
    if let (Some(target), Some(read)) = (target, read) {
        target.finish(read)?;
    }
    let returned = match cdb[0] {
        0x03 => read.and_then(Sense::parse),
        _ => None,
    };
    let to_stdout = args.file.as_deref() == Some(Path::new("-")) && args.data_in.is_some();
    if json && !to_stdout {
        let device_type = device.identity().map_or(0, |i| i.device_type);
        let what = format!("command {}", hex(&cdb));
        output::json(&Sent {
            device: device.name().into(),
            cdb: hex(&cdb),
            command: opcode::scsi(&cdb, device_type),
            answer: Answer::of(device.name(), &what, &ended),
            data: read.filter(|_| args.file.is_none()).map(hex),
            returned: returned.as_ref().map(SenseAnswer::from),
        })?;
    } else {
        let mut lines = answer::lines(&ended);
        lines.extend(smart(&cdb, answer::outcome(&ended)).map(String::from));
        if let Some(returned) = returned {
            lines.push(format!("returned {returned}"));
        }
        if let Some(read) = read
            && read.len() < len
        {
            lines.insert(0, format!("moved   {moved} of {len} bytes"));
        }
        if to_stdout {
            // stdout is the data.
            lines.iter().for_each(|line| eprintln!("{line}"));
        } else {
            if let (None, Some(read)) = (&args.file, read)
                && !read.is_empty()
            {
                lines.insert(0, dump(read));
            }
            if !lines.is_empty() {
                output::text(&lines.join("\n"))?;
            }
        }
    }
    match ended {
        Ok(_) => Ok(()),
        Err(error) => Err(Fail::command(
            device.name(),
            format!("command {}", hex(&cdb)),
            &error,
        )),
    }
}

/// What SMART RETURN STATUS through ATA PASS-THROUGH says (ACS-4, 7.44.8).
fn smart(cdb: &[u8], outcome: &Outcome) -> Option<&'static str> {
    let (features, command) = match cdb {
        [0x85, ..] => (cdb.get(4)?, cdb.get(14)?),
        [0xa1, ..] => (cdb.get(3)?, cdb.get(9)?),
        _ => return None,
    };
    let registers = outcome.registers()?;
    match (*command, *features, registers.lba >> 8 & 0xffff) {
        (0xb0, 0xda, 0xc24f) => Some("SMART   no threshold is exceeded"),
        (0xb0, 0xda, 0x2cf4) => Some("SMART   a threshold is exceeded"),
        _ => None,
    }
}

fn check_len(device: &Device, len: usize) -> Result<(), Fail> {
    let maxio = device.maxio()?;
    if len > maxio as usize {
        return Err(Fail::new(
            Code::Usage,
            format!(
                "{}: {len} bytes are more than its controller takes, {maxio}",
                device.name()
            ),
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> Option<Vec<u8>> {
        parse(&[text.to_owned()]).ok()
    }

    #[test]
    fn a_cdb_is_written_in_several_ways() {
        let inquiry = Some(vec![0x12, 0, 0, 0, 0x24, 0]);
        for text in [
            "12 00 00 00 24 00",
            "120000002400",
            "0x12 0 0 0 0x24 0",
            "12:00:00:00:24:00",
        ] {
            assert_eq!(parsed(text), inquiry, "{text}");
        }
        for bad in ["", "1x", "123", "zz", "é0", &"00".repeat(17)] {
            assert_eq!(parsed(bad), None, "{bad}");
        }
    }
}
