//! The command line.

use clap::{Args, Parser, Subcommand, ValueEnum, ValueHint};
use clap_complete::Shell;
use std::{path::PathBuf, time::Duration};

/// Drive devices through qpass(4).
#[derive(Parser)]
#[command(
    name = "qpassctl",
    version,
    max_term_width = 80,
    about = "Drives disks, tapes, changers and enclosures through qpass(4)",
    long_about = "Drives disks, tapes, changers and enclosures through qpass(4): asks what is \
there, sends raw commands, copies to and from disks with many commands at a time, measures \
them, and shows and cancels what is outstanding.\n\n\
A DEVICE is a node of the driver (qpass0, /dev/qpass0), the name that another driver has for \
the same device (da0, /dev/ada1, nda0, cd0, sa0), or for most commands a node of pass(4) \
(pass0).\n\n\
Numbers of bytes are as they are printed: 4096, 0x1000, 128K, 128KiB or 128kB, always powers of \
1024. Times are seconds, or have a unit: 500ms, 2m.",
    after_help = "EXAMPLES
  qpassctl list                              what is there
  qpassctl inquiry da0 --page 0x83           a vital product data page
  qpassctl cdb qpass0 '12 00 00 00 24 00' --in 36
  qpassctl read da0 disk.img --depth 64      a disk into a file
  qpassctl write disk.img da1 --verify       and onto another
  qpassctl bench da0 --depth 1,8,32 --size 4K,128K --compare pass
  qpassctl outstanding --watch               what is on its way

EXIT STATUS
  0 done: all of what was asked for
  1 a command failed on the device
  2 bad arguments
  3 a system call failed: no such device, no permission, a file
  4 verification found a difference
  5 the device, or a file, is in use
  130 interrupted; 143, 129: it was sent SIGTERM, SIGHUP

On Linux there is no FreeBSD to talk to: qpassctl loads qpass.ko into a
user-mode kernel that QPASS_UKERNEL describes, such as
'disk=FILE;disk,size=1G,latency=1ms' (docs/user-mode-disks.md)."
)]
pub struct Cli {
    /// Print JSON instead of text; of a failure too
    #[arg(long, global = true)]
    pub json: bool,
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Subcommand)]
pub enum Command {
    /// List devices: what they are, who made them, what they take
    List {
        /// Devices; all without
        #[arg(value_hint = ValueHint::Other)]
        devices: Vec<String>,
    },
    /// Show what a device says of itself (INQUIRY)
    Inquiry {
        /// Device
        #[arg(value_hint = ValueHint::Other)]
        device: String,
        /// A vital product data page, such as 0x80 or 0x83; 0 lists them
        #[arg(long, value_parser = byte)]
        page: Option<u8>,
    },
    /// Ask whether a device is ready (TEST UNIT READY)
    Tur {
        /// Device
        #[arg(value_hint = ValueHint::Other)]
        device: String,
    },
    /// Show how large a disk is
    Readcap {
        /// Device
        #[arg(value_hint = ValueHint::Other)]
        device: String,
    },
    /// Send any SCSI command
    #[command(after_help = "EXAMPLES
  qpassctl cdb qpass0 '12 01 80 00 ff 00' --in 255       hex dump of a page
  qpassctl cdb qpass0 1201800 0ff00 --in 255 --file -    the same, as it is, to stdout
  qpassctl cdb qpass0 '55 10 00 00 00 00 00 00 18 00' --out --file select.bin")]
    Cdb(Cdb),
    /// Read a disk, or a part of it, into a file
    Read(Read),
    /// Write a file onto a disk
    Write(Write),
    /// Measure a device at some depths and transfer sizes
    #[command(
        after_help = "Every combination of method, size and depth takes its turn in every \
round, so that what else the machine does meets all of them alike. Rates are those of all rounds, \
latencies are merged. Without --writes and --destroy nothing is written."
    )]
    Bench(Bench),
    /// Show what programs have outstanding on devices
    Outstanding {
        /// Devices; all without
        #[arg(value_hint = ValueHint::Other)]
        devices: Vec<String>,
        #[command(flatten)]
        watch: Watch,
    },
    /// Take requests back that a program has outstanding
    #[command(
        after_help = "Requests that were not sent are done at once; those that the device \
has are aborted where its controller can. Either way the program that queued them reaps them, with \
CAM_REQ_ABORTED. Wants root."
    )]
    Cancel(Cancel),
    /// Show a device's counters
    Stats {
        /// Devices; all without
        #[arg(value_hint = ValueHint::Other)]
        devices: Vec<String>,
        #[command(flatten)]
        watch: Watch,
    },
    /// Show the driver's limits (kern.cam.qpass), or set some
    Limits {
        /// What to set, such as max_requests=2048 or max_bytes=128M
        #[arg(value_name = "NAME=VALUE")]
        set: Vec<String>,
    },
    /// Print the completions for a shell
    Completions {
        /// Which shell
        shell: Shell,
    },
}

#[derive(Args)]
pub struct Watch {
    /// Show it again every so often (seconds, or with a unit: 500ms)
    #[arg(long = "watch", value_name = "TIME", value_parser = duration, num_args = 0..=1, require_equals = true, default_missing_value = "1")]
    pub every: Option<Duration>,
    /// Stop after so many times
    #[arg(long, requires = "every")]
    pub times: Option<u32>,
}

#[derive(Args)]
pub struct Cdb {
    /// Device
    #[arg(value_hint = ValueHint::Other)]
    pub device: String,
    /// The CDB in hexadecimal: 1 to 16 bytes, with or without blanks
    #[arg(required = true, num_args = 1..)]
    pub cdb: Vec<String>,
    /// Data comes from the device: how much is asked for
    #[arg(long = "in", value_name = "BYTES", value_parser = size)]
    pub data_in: Option<usize>,
    /// Data goes to the device, from --file
    #[arg(long = "out", conflicts_with = "data_in", requires = "file")]
    pub data_out: bool,
    /// Where data comes from or goes to; - is stdin or stdout. Without, --in prints it
    #[arg(long, short)]
    pub file: Option<PathBuf>,
    /// How long the device may take: at least 1 ms, and for ever above 49 days
    #[arg(long, value_parser = timeout, default_value = "30s")]
    pub timeout: Duration,
}

#[derive(Args)]
pub struct Transfer {
    /// Commands at a time; one for a disk with zones that are written in order
    #[arg(long, short, default_value_t = 32, value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub depth: u32,
    /// Bytes of one command, whole blocks of them; the device's limit is kept
    #[arg(long, short, default_value = "256K", value_parser = size)]
    pub size: usize,
    /// Compare afterwards, reading the device again
    #[arg(long)]
    pub verify: bool,
    /// Keep what was done when it stops early, and go on there when run again
    #[arg(long)]
    pub resume: bool,
    /// Nothing but errors: no progress, and no word at the end
    #[arg(long, short)]
    pub quiet: bool,
    /// Flush, and with --resume note how far it is, every so many bytes
    #[arg(long, default_value = "256M", value_parser = size)]
    pub checkpoint: usize,
    /// How long the device may take for one command
    #[arg(long, value_parser = timeout, default_value = "60s")]
    pub timeout: Duration,
}

#[derive(Args)]
pub struct Read {
    /// Device
    #[arg(value_hint = ValueHint::Other)]
    pub device: String,
    /// File; - is stdout. It appears under its name when all of it is there
    #[arg(value_hint = ValueHint::FilePath)]
    pub file: PathBuf,
    /// First block
    #[arg(long, value_name = "BLOCK", default_value = "0", value_parser = number)]
    pub skip: u64,
    /// How many blocks; all the rest without
    #[arg(long, value_name = "BLOCKS", value_parser = number)]
    pub count: Option<u64>,
    #[command(flatten)]
    pub transfer: Transfer,
}

#[derive(Args)]
pub struct Write {
    /// File; - is stdin
    #[arg(value_hint = ValueHint::FilePath)]
    pub file: PathBuf,
    /// Device
    #[arg(value_hint = ValueHint::Other)]
    pub device: String,
    /// First block
    #[arg(long, value_name = "BLOCK", default_value = "0", value_parser = number)]
    pub seek: u64,
    /// Fill the last block with zeroes, should the file not end at a block's end
    #[arg(long)]
    pub pad: bool,
    /// Write although the device is in use: what is on it may be destroyed, and
    /// its file system, and the system with it
    #[arg(long)]
    pub force: bool,
    #[command(flatten)]
    pub transfer: Transfer,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Op {
    /// At random places
    Random,
    /// One behind the other
    Sequential,
    /// TEST UNIT READY: no data
    Tur,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Method {
    /// QPIOC_ENTER: batches in one call
    Enter,
    /// CAMIOQUEUE and CAMIOGET
    Queue,
}

#[derive(Args)]
pub struct Bench {
    /// Device
    #[arg(value_hint = ValueHint::Other)]
    pub device: String,
    /// Where commands go, or that they move nothing
    #[arg(long, value_enum, default_value = "random")]
    pub op: Op,
    /// Commands at a time, one or several
    #[arg(long, value_delimiter = ',', default_value = "1,8,32", value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub depth: Vec<u32>,
    /// Bytes of a command, one or several: whole blocks, no more than the
    /// device takes at once
    #[arg(long, value_delimiter = ',', default_value = "4K,128K", value_parser = size)]
    pub size: Vec<usize>,
    /// How commands get to the driver, one or several
    #[arg(long, value_enum, value_delimiter = ',', default_value = "enter")]
    pub method: Vec<Method>,
    /// Take turns with the same device's node of another driver: pass finds
    /// /dev/passN by itself
    #[arg(long, value_name = "pass|NODE", value_hint = ValueHint::Other)]
    pub compare: Option<String>,
    /// How long a turn is measured
    #[arg(long, value_parser = duration, default_value = "1s")]
    pub time: Duration,
    /// How long each turn runs before it is measured
    #[arg(long, value_parser = duration_or_none, default_value = "0")]
    pub ramp: Duration,
    /// How many turns each has
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub rounds: u32,
    /// How many of 100 commands write. Wants --destroy
    #[arg(long, value_name = "PERCENT", default_value_t = 0, value_parser = clap::value_parser!(u32).range(0..=100))]
    pub writes: u32,
    /// Writes may destroy what is on those blocks of the device
    #[arg(long)]
    pub destroy: bool,
    /// With --writes: although the device is in use
    #[arg(long, requires = "destroy")]
    pub force: bool,
    /// First block of those that are read and written
    #[arg(long, value_name = "BLOCK", default_value = "0", value_parser = number)]
    pub skip: u64,
    /// How many blocks; all the rest without
    #[arg(long, value_name = "BLOCKS", value_parser = number)]
    pub count: Option<u64>,
    /// Commands begin at multiples of so many bytes; of their size without
    #[arg(long, value_name = "BYTES", value_parser = size)]
    pub align: Option<usize>,
    /// Of the random places, and of which commands write: the same numbers for
    /// the same seed
    #[arg(long, value_parser = number)]
    pub seed: Option<u64>,
    /// No more commands a second than that
    #[arg(long, value_name = "IOPS", value_parser = clap::value_parser!(u32).range(1..))]
    pub rate: Option<u32>,
    /// Write a table of all results there; - is stdout
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub csv: Option<PathBuf>,
    /// No charts behind the table; a terminal that shows UTF-8 has them else
    #[arg(long)]
    pub no_chart: bool,
}

#[derive(Args)]
pub struct Cancel {
    /// Device
    #[arg(value_hint = ValueHint::Other)]
    pub device: String,
    /// All requests of the device
    #[arg(long, conflicts_with_all = ["open", "request"])]
    pub all: bool,
    /// Those of one open, by its number in `qpassctl outstanding`
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..))]
    pub open: Option<u64>,
    /// One request of that open, by its number
    #[arg(long, requires = "open", value_parser = clap::value_parser!(u64).range(1..))]
    pub request: Option<u64>,
}

fn byte(text: &str) -> Result<u8, String> {
    number(text)
        .ok()
        .and_then(|n| u8::try_from(n).ok())
        .ok_or_else(|| "0 to 255, or 0x00 to 0xff".into())
}

/// A number: decimal, or hexadecimal behind 0x.
fn number(text: &str) -> Result<u64, String> {
    let hex = text.strip_prefix("0x").or_else(|| text.strip_prefix("0X"));
    // A sign is taken by neither.
    let is_digits = |t: &str| t.chars().all(|c| c.is_ascii_hexdigit());
    match hex {
        Some(hex) if is_digits(hex) => u64::from_str_radix(hex, 16).ok(),
        None if is_digits(text) => text.parse().ok(),
        _ => None,
    }
    .ok_or_else(|| "a number, such as 4096 or 0x1000".into())
}

/// Bytes: a number, with K, M, G or T, or KiB, MiB and so on as they are printed,
/// for powers of 1024, as expand_number(3) has them.
pub fn size(text: &str) -> Result<usize, String> {
    let bad = || "a number of bytes, such as 4096, 0x1000, 128K, 128KiB or 1M".into();
    if text.starts_with("0x") || text.starts_with("0X") {
        let bytes = number(text).ok().and_then(|n| usize::try_from(n).ok());
        return bytes.filter(|n| *n != 0).ok_or_else(bad);
    }
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit = text[digits.len()..].to_ascii_uppercase();
    let shift = match unit
        .strip_suffix("IB")
        .or(unit.strip_suffix('B'))
        .unwrap_or(&unit)
    {
        "" if unit == "IB" => return Err(bad()),
        "" => 0,
        "K" => 10,
        "M" => 20,
        "G" => 30,
        "T" => 40,
        _ => return Err(bad()),
    };
    number(digits.trim_end())
        .ok()
        .and_then(|n| usize::try_from(n).ok()?.checked_mul(1 << shift))
        .filter(|n| *n != 0)
        .ok_or_else(bad)
}

/// A time: seconds, or with a unit.
pub fn duration(text: &str) -> Result<Duration, String> {
    duration_or_none(text)
        .ok()
        .filter(|t| !t.is_zero())
        .ok_or_else(|| "a time, such as 30s, 500ms or 2m".into())
}

/// A time that may be 0.
fn duration_or_none(text: &str) -> Result<Duration, String> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit = match &text[digits.len()..] {
        "" | "s" => 1.0,
        "ms" => 1e-3,
        "us" => 1e-6,
        "m" | "min" => 60.0,
        "h" => 3600.0,
        _ => return Err("a time, such as 30s, 500ms or 2m".into()),
    };
    digits
        .parse::<f64>()
        .ok()
        .and_then(|n| Duration::try_from_secs_f64(n * unit).ok())
        // For ever; what is added to a clock does not overflow it.
        .map(|t| t.min(TEN_YEARS))
        .ok_or_else(|| "a time, such as 30s, 500ms or 2m".into())
}

const TEN_YEARS: Duration = Duration::from_secs(10 * 366 * 86_400);

/// A time that a device has for a command, in milliseconds: 0 would be the
/// controller's own.
fn timeout(text: &str) -> Result<Duration, String> {
    let time = duration(text)?;
    let ms = time.as_nanos().div_ceil(1_000_000) as u64;
    Ok(Duration::from_millis(ms))
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_makes_sense_to_clap() {
        Cli::command().debug_assert();
    }

    /// As a console of 80 columns shows it, whatever it is asked on.
    #[test]
    fn help_fits_80_columns() {
        let mut root = Cli::command();
        root.build();
        let mut all: Vec<_> = root.get_subcommands().cloned().collect();
        all.push(root);
        for mut command in all {
            for text in [command.render_long_help(), command.render_help()] {
                for line in text.to_string().lines() {
                    assert!(line.chars().count() <= 80, "{}: {line}", command.get_name());
                }
            }
        }
    }

    /// Every option, and what it is without, is in the manual page.
    #[test]
    fn the_manual_has_every_option_and_its_default() {
        let manual = include_str!("../../../man/qpassctl.8");
        // Options are Fl, and a long one begins with a second dash.
        let has = |flag: &str| {
            manual.contains(&format!("Fl {flag}")) || manual.contains(&format!(", {flag}"))
        };
        let mut root = Cli::command();
        root.build();
        let commands = root.get_subcommands();
        for command in commands.filter(|c| c.get_name() != "help") {
            let name = command.get_name();
            assert!(manual.contains(&format!(".Cm {name}")), "{name}");
            for option in command.get_arguments().filter(|a| !a.is_positional()) {
                if let Some(long) = option.get_long() {
                    assert!(has(&format!("-{long}")), "{name} --{long}");
                }
                if let Some(short) = option.get_short() {
                    assert!(has(&short.to_string()), "{name} -{short}");
                }
                let takes_value = option.get_action().takes_values();
                for default in option.get_default_values().iter().filter(|_| takes_value) {
                    let default = default.to_str().expect("text");
                    let said = [format!("default {default}"), format!("Cm {default}")];
                    assert!(
                        said.iter().any(|s| manual.contains(s)),
                        "{name}: {option}: {default}"
                    );
                }
            }
        }
    }

    /// What the manual page, the help and the README show is understood.
    #[test]
    fn every_example_is_understood() {
        let texts = [
            include_str!("../../../man/qpassctl.8"),
            include_str!("args.rs"),
            include_str!("../../../README.md"),
            include_str!("../../../docs/from-pass.md"),
        ];
        let mut seen = 0;
        let lines = texts.iter().flat_map(|text| text.lines());
        // A line of its own, or in a line between two of these.
        let pieces = |line: &'static str| {
            let quoted = line.split('`').skip(1).step_by(2);
            std::iter::once(line).chain(quoted)
        };
        for line in lines.flat_map(pieces) {
            let line = line.trim().trim_start_matches(".Dl ");
            let line = line
                .trim_start_matches("# ")
                .trim_start_matches("after_help = \"");
            let Some(rest) = line.strip_prefix("qpassctl ") else {
                continue;
            };
            // What is said of it comes behind some blanks.
            let rest = rest.split("  ").next().expect("words");
            let mut words = vec![String::from("qpassctl")];
            for (i, part) in rest.split('\'').enumerate() {
                match i % 2 {
                    0 => words.extend(part.split_whitespace().map(String::from)),
                    _ => words.push(part.into()),
                }
            }
            if words[1].starts_with(|c: char| !c.is_ascii_lowercase()) || words.len() < 3 {
                continue;
            }
            seen += 1;
            if let Err(error) = Cli::try_parse_from(&words) {
                panic!("{line}: {error}");
            }
        }
        assert!(seen >= 20, "{seen}");
    }

    #[test]
    fn sizes_and_times_have_units() {
        assert_eq!(size("128K"), Ok(131_072));
        assert_eq!(size("1m"), Ok(1 << 20));
        for same in [
            "128KiB", "128kB", "128k", "131072", "131072B", "0x20000", "128 KiB",
        ] {
            assert_eq!(size(same), Ok(131_072), "{same}");
        }
        assert_eq!(size("1MB"), Ok(1 << 20));
        for bad in [
            "",
            "0",
            "0x0",
            "1X",
            "K",
            "KiB",
            "-1",
            "+1",
            "1iB",
            "1BK",
            "99999999999999999999",
        ] {
            assert!(size(bad).is_err(), "{bad}");
        }
        assert_eq!((number("0x1F"), number("17")), (Ok(31), Ok(17)));
        for bad in ["", "0x", "+1", "-1", "1K", "a"] {
            assert!(number(bad).is_err(), "{bad}");
        }
        assert_eq!(timeout("1us"), Ok(Duration::from_millis(1)));
        assert_eq!(timeout("1500us"), Ok(Duration::from_millis(2)));
        assert_eq!(timeout("2340s"), Ok(Duration::from_millis(2_340_000)));
        assert_eq!(duration_or_none("0"), Ok(Duration::ZERO));
        assert_eq!(duration("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(duration("1e19"), Ok(TEN_YEARS));
        assert_eq!(duration("2"), Ok(Duration::from_secs(2)));
        for bad in ["", "0", "1d", "-1", "1e999s", "inf", "nan"] {
            assert!(duration(bad).is_err(), "{bad}");
        }
    }
}
