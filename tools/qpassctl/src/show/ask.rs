//! What a device answers.

use crate::{
    disk::{Disk, ask, kind},
    fail::Fail,
    output::{self, ascii, dump, hex, human},
};
use qpass_client::{Command, Device, Protocol};
use serde::Serialize;

#[derive(Serialize)]
struct Inquiry {
    device: String,
    kind: &'static str,
    vendor: String,
    product: String,
    revision: String,
    removable: bool,
    version: u8,
    queueing: bool,
    raw: String,
}

#[derive(Serialize)]
struct Page {
    device: String,
    page: u8,
    #[serde(skip_serializing_if = "Option::is_none")]
    pages: Option<Vec<u8>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    serial: Option<String>,
    raw: String,
}

fn printable(data: &[u8]) -> String {
    ascii(data, ' ').trim().into()
}

/// What version of the SCSI primary commands it follows (SPC-5, table 151).
fn version(byte: u8) -> &'static str {
    match byte {
        0 => "no standard",
        2 => "SCSI-2",
        3 => "SPC",
        4 => "SPC-2",
        5 => "SPC-3",
        6 => "SPC-4",
        7 => "SPC-5",
        _ => "unknown",
    }
}

pub fn inquiry(device: &Device, page: Option<u8>, json: bool) -> Result<(), Fail> {
    let name = device.name();
    let identity = device.identity()?;
    if identity.protocol != Protocol::Scsi {
        return Err(Fail::usage(format!(
            "{name}: not a SCSI device but {}; qpassctl list says what it is",
            kind(&identity)
        )));
    }
    if let Some(page) = page {
        let command = Command::inquiry(Some(page), device.buffer(4096)?);
        let data = ask(device, &format!("INQUIRY page {page:#04x}"), command)?;
        let len = 4 + usize::from(u16::from_be_bytes([data[2], data[3]]));
        let data = &data[..len.min(data.len())];
        let body = &data[4..];
        if json {
            return output::json(&Page {
                device: name.into(),
                page,
                pages: (page == 0).then(|| body.to_vec()),
                serial: (page == 0x80).then(|| printable(body)),
                raw: hex(data),
            });
        }
        return match page {
            0 => {
                let pages: Vec<_> = body.iter().map(|p| format!("{p:#04x}")).collect();
                output::text(&pages.join("\n"))
            }
            0x80 => output::text(&printable(body)),
            _ => output::text(&dump(data)),
        };
    }
    let data = ask(
        device,
        "INQUIRY",
        Command::inquiry(None, device.buffer(255)?),
    )?;
    let len = 5 + usize::from(data[4]);
    let data = &data[..len.clamp(36, data.len())];
    let answer = Inquiry {
        device: name.into(),
        kind: kind(&identity),
        vendor: printable(&data[8..16]),
        product: printable(&data[16..32]),
        revision: printable(&data[32..36]),
        removable: data[1] & 0x80 != 0,
        version: data[2],
        queueing: data[7] & 2 != 0,
        raw: hex(data),
    };
    if json {
        return output::json(&answer);
    }
    let yes = |b: bool| if b { "yes" } else { "no" };
    output::text(&format!(
        "device     {name}\nkind       {}\nvendor     {}\nproduct    {}\nrevision   {}\n\
         standard   {}\nremovable  {}\nqueueing   {}",
        answer.kind,
        answer.vendor,
        answer.product,
        answer.revision,
        version(answer.version),
        yes(answer.removable),
        yes(answer.queueing),
    ))
}

#[derive(Serialize)]
struct Ready {
    device: String,
    ready: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
}

pub fn tur(device: &Device, json: bool) -> Result<(), Fail> {
    let (_, outcome) = device.run(Command::test_unit_ready())?;
    if json {
        output::json(&Ready {
            device: device.name().into(),
            ready: outcome.is_ok(),
            error: outcome.as_ref().err().map(ToString::to_string),
        })?;
    } else if outcome.is_ok() {
        output::text(&format!("{}: ready", device.name()))?;
    }
    match outcome {
        Ok(_) => Ok(()),
        Err(error) => Err(Fail::command(device.name(), "not ready", &error)),
    }
}

#[derive(Serialize)]
struct Capacity {
    device: String,
    blocks: u64,
    block: usize,
    bytes: u64,
}

pub fn readcap(device: Device, json: bool) -> Result<(), Fail> {
    let disk = Disk::probe(device)?;
    let name = disk.device.name();
    if json {
        return output::json(&Capacity {
            device: name.into(),
            blocks: disk.blocks,
            block: disk.block,
            bytes: disk.bytes(),
        });
    }
    output::text(&format!(
        "{name}: {} blocks of {} bytes, {}",
        disk.blocks,
        disk.block,
        human(disk.bytes())
    ))
}
