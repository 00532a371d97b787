//! Any SCSI command.

use crate::{
    args::Cdb,
    copy::Target,
    fail::{Code, Fail},
    output::{self, dump, hex},
    stream::Reader,
};
use qpass_client::{Command, Device};
use serde::Serialize;
use std::path::Path;

#[derive(Serialize)]
struct Answer {
    device: String,
    cdb: String,
    ok: bool,
    moved: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    data: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<ErrorAnswer>,
}

#[derive(Serialize)]
struct ErrorAnswer {
    text: String,
    cam_status: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    key: Option<u8>,
    #[serde(skip_serializing_if = "Option::is_none")]
    asc: Option<u8>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ascq: Option<u8>,
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
    let (command, outcome) = device.run(command)?;
    let moved = outcome.unwrap_or(0).min(len);
    let data = command.buffer().map(|b| &b[..moved]);
    let read = data.filter(|_| args.data_in.is_some() && outcome.is_ok());
    if let (Some(target), Some(read)) = (target, read) {
        target.finish(read)?;
    }
    let to_stdout = args.file.as_deref() == Some(Path::new("-")) && args.data_in.is_some();
    if json && !to_stdout {
        let sense = outcome.err().and_then(|e| e.sense());
        output::json(&Answer {
            device: device.name().into(),
            cdb: hex(&cdb),
            ok: outcome.is_ok(),
            moved,
            data: read.filter(|_| args.file.is_none()).map(hex),
            error: outcome.err().map(|e| ErrorAnswer {
                text: e.to_string(),
                cam_status: e.cam.name(),
                key: sense.map(|s| s.key),
                asc: sense.map(|s| s.asc),
                ascq: sense.map(|s| s.ascq),
            }),
        })?;
    } else if let (None, Some(read)) = (&args.file, read) {
        output::text(&dump(read))?;
    }
    match outcome {
        Ok(_) => Ok(()),
        Err(error) => Err(Fail::command(
            device.name(),
            format!("command {}", hex(&cdb)),
            &error,
        )),
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
