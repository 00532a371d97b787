//! How a command ended, as JSON and as text. Every key is always there; what there
//! is nothing of is null.

use crate::{
    fail::{Fail, Reason},
    output::hex,
};
use qpass_client::{
    CommandError, Ended, Outcome, Sense, Specific,
    decode::{ata, nvme, sense::Descriptor},
    scsi_status,
};
use serde::Serialize;

/// An outcome.
#[derive(Serialize)]
pub struct Answer {
    /// Whether the command was carried out.
    pub ok: bool,
    /// Bytes of data that were moved.
    pub moved: usize,
    /// Bytes that the controller says were not; below 0 if the device had more.
    pub residual: i32,
    /// CAM's status.
    pub cam_status: &'static str,
    /// SCSI status.
    pub scsi_status: Option<u8>,
    /// Its name.
    pub scsi_status_name: Option<&'static str>,
    /// What is to be said of one that was carried out.
    pub remark: Option<String>,
    /// Sense data.
    pub sense: Option<SenseAnswer>,
    /// Its bytes, in hexadecimal, of a format that is not known too.
    pub sense_raw: Option<String>,
    /// An ATA device's registers.
    pub registers: Option<Registers>,
    /// An NVMe completion.
    pub nvme: Option<Nvme>,
    /// Sense data of tries that were followed by another.
    pub earlier: Vec<SenseAnswer>,
    /// Why it was not carried out.
    pub error: Option<Reason>,
}

/// Sense data.
#[derive(Serialize)]
pub struct SenseAnswer {
    text: String,
    /// All bytes, in hexadecimal.
    raw: String,
    format: &'static str,
    key: u8,
    key_name: &'static str,
    asc: u8,
    ascq: u8,
    meaning: Option<&'static str>,
    deferred: bool,
    filemark: bool,
    end_of_medium: bool,
    incorrect_length: bool,
    overflow: bool,
    information: Option<u64>,
    /// The information, where it is what was not moved, with its sign.
    residual: Option<i64>,
    command_specific: Option<u64>,
    unit: Option<u8>,
    progress_percent: Option<f64>,
    retries: Option<u16>,
    field: Option<Field>,
    descriptors: Vec<DescriptorAnswer>,
}

/// Which field is wrong.
#[derive(Serialize)]
struct Field {
    /// "cdb", "parameters" or "segment".
    of: &'static str,
    byte: u16,
    bit: Option<u8>,
}

#[derive(Serialize)]
struct DescriptorAnswer {
    #[serde(rename = "type")]
    kind: u8,
    raw: String,
}

/// An ATA device's registers.
#[derive(Serialize)]
pub struct Registers {
    status: u8,
    error: u8,
    count: u16,
    lba: u64,
    device: u8,
    is_48bit: bool,
    /// "controller", "sense", or "guess": sense data that look like registers.
    source: &'static str,
}

/// An NVMe completion.
#[derive(Serialize)]
pub struct Nvme {
    dword0: u32,
    status_code_type: u8,
    status_code: u8,
    meaning: &'static str,
    retry_delay: u8,
    more: bool,
    do_not_retry: bool,
}

impl From<&Sense> for SenseAnswer {
    fn from(s: &Sense) -> Self {
        let two_places = |n: f64| (n * 100.0).round() / 100.0;
        let field = match s.specific {
            Some(Specific::Field { in_cdb, byte, bit }) => Some(Field {
                of: if in_cdb { "cdb" } else { "parameters" },
                byte,
                bit,
            }),
            Some(Specific::Segment {
                in_segment,
                byte,
                bit,
            }) => Some(Field {
                of: if in_segment { "segment" } else { "parameters" },
                byte,
                bit,
            }),
            _ => None,
        };
        let descriptor = |d: &Descriptor| DescriptorAnswer {
            kind: d.kind,
            raw: hex(&d.body),
        };
        SenseAnswer {
            text: s.to_string(),
            raw: hex(s.raw()),
            format: if s.is_descriptor {
                "descriptor"
            } else {
                "fixed"
            },
            key: s.key,
            key_name: s.key_name(),
            asc: s.asc,
            ascq: s.ascq,
            meaning: s.meaning(),
            deferred: s.deferred,
            filemark: s.filemark,
            end_of_medium: s.end_of_medium,
            incorrect_length: s.incorrect_length,
            overflow: s.overflow,
            information: s.information,
            residual: s.residual(),
            command_specific: s.command_specific,
            unit: s.unit,
            progress_percent: s.progress().map(two_places),
            retries: match s.specific {
                Some(Specific::Retries(n)) => Some(n),
                _ => None,
            },
            field,
            descriptors: s.descriptors.iter().map(descriptor).collect(),
        }
    }
}

impl From<&ata::Status> for Registers {
    fn from(r: &ata::Status) -> Self {
        Registers {
            status: r.status,
            error: r.error,
            count: r.count,
            lba: r.lba,
            device: r.device,
            is_48bit: r.is_48bit,
            source: match r.source {
                ata::Source::Controller => "controller",
                ata::Source::Sense => "sense",
                ata::Source::Guess => "guess",
            },
        }
    }
}

fn nvme((dword0, s): (u32, nvme::Status)) -> Nvme {
    Nvme {
        dword0,
        status_code_type: s.sct,
        status_code: s.sc,
        meaning: s.meaning(),
        retry_delay: s.retry_delay,
        more: s.more,
        do_not_retry: s.do_not_retry,
    }
}

fn error(device: &str, what: &str, e: &CommandError) -> Reason {
    Reason::of(&Fail::command(device, what, e))
}

/// What there is of it, whether it was carried out or not.
pub fn outcome(ended: &Ended) -> &Outcome {
    match ended {
        Ok(outcome) => outcome,
        Err(error) => error,
    }
}

impl Answer {
    /// Of a command to a device; `what` is said of it if it was not carried out.
    pub fn of(device: &str, what: &str, ended: &Ended) -> Self {
        let o = outcome(ended);
        let status = o.scsi_status();
        Answer {
            ok: ended.is_ok(),
            moved: o.moved,
            residual: o.residual,
            cam_status: o.cam.name(),
            scsi_status: status,
            scsi_status_name: status.map(scsi_status),
            remark: o.remark().map(|remark| remark.to_string()),
            sense: o.sense().map(SenseAnswer::from),
            sense_raw: Some(o.raw_sense()).filter(|b| !b.is_empty()).map(hex),
            registers: o.registers().map(Registers::from),
            nvme: o.nvme().map(nvme),
            earlier: o.earlier.iter().map(SenseAnswer::from).collect(),
            error: ended.as_ref().err().map(|e| error(device, what, e)),
        }
    }
}

/// What is to be said beside the data, a line each: the remark, registers, dword 0,
/// and the sense data as they came. Nothing of a command that is GOOD and no more.
pub fn lines(ended: &Ended) -> Vec<String> {
    let o = outcome(ended);
    let mut lines = Vec::new();
    if let Some(remark) = o.remark() {
        lines.push(format!("remark  {remark}"));
    }
    if let (Some(registers), None) = (o.registers(), o.sense()) {
        lines.push(format!("ATA     {registers}"));
    }
    if let Some((dword0, _)) = o.nvme() {
        lines.push(format!("dword 0 {dword0:#010x}"));
    }
    if !o.raw_sense().is_empty() {
        lines.push(format!("sense   {}", hex(o.raw_sense())));
    }
    lines
}
