//! What a device answers.

use crate::{
    answer::{Answer, lines},
    disk::{Disk, ask, kind, run},
    fail::{Code, Fail},
    output::{self, dump, hex, human},
    stopped,
};
use qpass_client::{
    Command, Device, Protocol,
    decode::{
        inquiry::{Bad, Page, Standard},
        text,
    },
};
use serde::Serialize;

#[derive(Serialize)]
struct Inquiry {
    device: String,
    kind: &'static str,
    /// What the qualifier says, if the unit is not there.
    absent: Option<&'static str>,
    vendor: String,
    product: String,
    revision: String,
    removable: bool,
    version: u8,
    version_name: &'static str,
    queueing: bool,
    /// Bytes that there are of it.
    length: usize,
    /// Fewer came.
    short: bool,
    raw: String,
}

#[derive(Serialize)]
struct PageAnswer {
    device: String,
    page: u8,
    /// Of page 0: which pages there are.
    pages: Option<Vec<u8>>,
    /// Of page 80h.
    serial: Option<String>,
    /// Bytes that there are of it, with its header.
    length: usize,
    /// Fewer came.
    short: bool,
    raw: String,
}

/// Most that INQUIRY is asked for: some controllers hang at more.
const MOST: usize = 0x4000;
/// What it is asked for first: before SPC-3 the length had one byte.
const FIRST: usize = 255;

fn bad(device: &Device, what: &str, why: Bad) -> Fail {
    Fail::new(Code::Command, format!("{}: {what}: {why}", device.name()))
}

/// The standard data, as far as they came. Some devices take no more than 36 bytes'
/// room for a question; what is longer than one byte says is asked for again.
fn standard(device: &Device) -> Result<Vec<u8>, Fail> {
    let question = |len| -> Result<Vec<u8>, Fail> {
        let command = Command::inquiry(None, device.buffer(len)?);
        ask(device, "INQUIRY", command)
    };
    let first = match question(FIRST) {
        Ok(data) => data,
        Err(fail) if fail.code != Code::Command => return Err(fail),
        Err(fail) => question(36).map_err(|_| fail)?,
    };
    let length = Standard::parse(&first).map_or(0, |found| found.length);
    if length <= FIRST || first.len() < FIRST {
        return Ok(first);
    }
    Ok(question(length)
        .ok()
        .filter(|again| again.len() > first.len())
        .unwrap_or(first))
}

/// A page: 255 bytes first, and again if it says that it has more.
fn page(device: &Device, number: u8) -> Result<Vec<u8>, Fail> {
    let what = format!("INQUIRY page {number:#04x}");
    let question = |len| -> Result<Vec<u8>, Fail> {
        let command = Command::inquiry(Some(number), device.buffer(len)?);
        ask(device, &what, command)
    };
    let first = question(FIRST)?;
    // One that has no pages may give these; that it has none is no error here.
    let known = standard(device).unwrap_or_default();
    let length = Page::parse(&first, number, &known)
        .map_err(|why| bad(device, &what, why))?
        .length;
    if length <= FIRST {
        return Ok(first);
    }
    // One that refuses, or gives less, has said what it has.
    let again = question(length.min(MOST)).unwrap_or_default();
    let is_better = again.len() > first.len() && Page::parse(&again, number, &known).is_ok();
    Ok(if is_better { again } else { first })
}

fn show_page(device: &Device, number: u8, json: bool) -> Result<(), Fail> {
    let data = page(device, number)?;
    let what = format!("INQUIRY page {number:#04x}");
    let page = Page::parse(&data, number, &[]).map_err(|why| bad(device, &what, why))?;
    let short = page.raw.len() < page.length;
    if json {
        return output::json(&PageAnswer {
            device: device.name().into(),
            page: number,
            pages: (number == 0).then(|| page.body.to_vec()),
            serial: (number == 0x80).then(|| text(page.body)),
            length: page.length,
            short,
            raw: hex(page.raw),
        });
    }
    match number {
        0 => {
            let pages: Vec<_> = page.body.iter().map(|p| format!("{p:#04x}")).collect();
            output::text(&pages.join("\n"))?;
        }
        0x80 => output::text(&text(page.body))?,
        _ => output::text(&dump(page.raw))?,
    }
    if short {
        say_short(device, page.raw.len(), page.length);
    }
    Ok(())
}

/// On stderr: stdout has what there is.
fn say_short(device: &Device, came: usize, length: usize) {
    eprintln!(
        "qpassctl: {}: short: the device gave {came} of {length} bytes",
        device.name()
    );
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
        return show_page(device, page, json);
    }
    let data = standard(device)?;
    let found = Standard::parse(&data).map_err(|why| bad(device, "INQUIRY", why))?;
    let short = found.came < found.length;
    let answer = Inquiry {
        device: name.into(),
        kind: match found.absence() {
            Some(why) => why,
            None => qpass_client::decode::inquiry::type_name(found.device_type),
        },
        absent: found.absence(),
        removable: found.removable,
        version: found.version,
        version_name: found.version_name(),
        queueing: found.queueing,
        length: found.length,
        short,
        raw: hex(&data[..found.came]),
        vendor: found.vendor,
        product: found.product,
        revision: found.revision,
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
        answer.version_name,
        yes(answer.removable),
        yes(answer.queueing),
    ))?;
    if short {
        say_short(device, found.came, found.length);
    }
    Ok(())
}

#[derive(Serialize)]
struct Ready {
    device: String,
    ready: bool,
    #[serde(flatten)]
    answer: Answer,
}

pub fn tur(device: &Device, json: bool) -> Result<(), Fail> {
    let sent = run(device, Command::test_unit_ready());
    if stopped() {
        return Err(Fail::interrupted());
    }
    let (_, ended) = sent?;
    if json {
        output::json(&Ready {
            device: device.name().into(),
            ready: ended.is_ok(),
            answer: Answer::of(device.name(), "not ready", &ended),
        })?;
    } else {
        let mut text = lines(&ended);
        if ended.is_ok() {
            text.insert(0, format!("{}: ready", device.name()));
        }
        if !text.is_empty() {
            output::text(&text.join("\n"))?;
        }
    }
    match ended {
        Ok(_) => Ok(()),
        Err(error) => Err(Fail::command(device.name(), "not ready", &error)),
    }
}

#[derive(Serialize)]
struct Capacity {
    device: String,
    blocks: u64,
    block: usize,
    physical_block: u64,
    bytes: u64,
    /// Blocks of a zone that is written in order, 0 if it is not known; null: none is.
    zone: Option<u64>,
}

pub fn readcap(device: Device, json: bool) -> Result<(), Fail> {
    let disk = Disk::probe(device)?;
    let name = disk.device.name();
    if json {
        return output::json(&Capacity {
            device: name.into(),
            blocks: disk.blocks,
            block: disk.block,
            physical_block: disk.physical,
            bytes: disk.bytes(),
            zone: disk.zone,
        });
    }
    output::text(&format!(
        "{name}: {} blocks of {} bytes, {}",
        disk.blocks,
        disk.block,
        human(disk.bytes())
    ))
}
