//! What goes to stdout.

use crate::{
    fail::{Code, Fail, Reason, words},
    stream::Writer,
};
use comfy_table::{CellAlignment, Table, presets::NOTHING};
use serde::Serialize;
use std::{
    io::{self, ErrorKind, IsTerminal},
    path::Path,
    sync::atomic::{AtomicBool, AtomicU8, Ordering},
};

/// Bytes as they are. Whoever closed the pipe has seen enough.
pub fn bytes(data: &[u8]) -> Result<(), Fail> {
    let out = Writer::new(Path::new("-")).and_then(|mut out| {
        if data.is_empty() {
            return Ok(());
        }
        out.write(data.to_vec())?;
        out.finish()
    });
    out.map_err(|error| match error.kind() {
        // Nothing to say, and nobody to say it to.
        ErrorKind::BrokenPipe => Fail::new(Code::System, ""),
        ErrorKind::Interrupted => Fail::interrupted(),
        _ => Fail::new(Code::System, format!("standard output: {}", words(&error))),
    })
}

/// Data, which is not for a terminal's eyes.
pub fn raw(data: &[u8]) -> Result<(), Fail> {
    let is_text = |b: &u8| (0x20..0x7f).contains(b) || b.is_ascii_whitespace();
    if io::stdout().is_terminal() && !data.iter().all(is_text) {
        return Err(not_to_a_terminal());
    }
    bytes(data)
}

/// Data are not written to a terminal.
pub fn not_to_a_terminal() -> Fail {
    Fail::usage("standard output is a terminal: data are not written there")
}

/// JSON was printed, and whether in lines: a failure is then a line more, or was in it.
static PRINTED: AtomicU8 = AtomicU8::new(NOTHING_YET);
const NOTHING_YET: u8 = 0;
const ONE_VALUE: u8 = 1;
const LINES: u8 = 2;

/// Standard output has data: JSON goes to standard error.
static DATA_ON_STDOUT: AtomicBool = AtomicBool::new(false);

/// From now on JSON goes to standard error.
pub fn stdout_has_data() {
    DATA_ON_STDOUT.store(true, Ordering::Relaxed);
}

/// What `--json` shows of a failure.
#[derive(Serialize)]
struct Failed {
    ok: bool,
    error: Reason,
}

/// A failure as JSON, unless the answer has said it already.
pub fn failure(fail: &Fail) {
    let value = Failed {
        ok: false,
        error: Reason::of(fail),
    };
    let _ = match PRINTED.load(Ordering::Relaxed) {
        NOTHING_YET if !DATA_ON_STDOUT.load(Ordering::Relaxed) => json(&value),
        ONE_VALUE => Ok(()),
        _ => json_line(&value),
    };
}

/// A line, or several.
pub fn text(text: &str) -> Result<(), Fail> {
    let mut all = text.to_owned();
    if !all.ends_with('\n') {
        all.push('\n');
    }
    bytes(all.as_bytes())
}

/// A value as JSON.
pub fn json(value: &impl Serialize) -> Result<(), Fail> {
    if DATA_ON_STDOUT.load(Ordering::Relaxed) {
        return json_line(value);
    }
    PRINTED.store(ONE_VALUE, Ordering::Relaxed);
    text(&serde_json::to_string_pretty(value).expect("plain data"))
}

/// One of a series as JSON: a line.
pub fn json_line(value: &impl Serialize) -> Result<(), Fail> {
    let line = serde_json::to_string(value).expect("plain data");
    if DATA_ON_STDOUT.load(Ordering::Relaxed) {
        eprintln!("{line}");
        return Ok(());
    }
    PRINTED.store(LINES, Ordering::Relaxed);
    text(&line)
}

/// A table: columns whose name begins with `>` are numbers.
pub fn table(columns: &[&str], rows: &[Vec<String>]) -> String {
    let mut table = Table::new();
    table.load_preset(NOTHING);
    table.set_header(columns.iter().map(|c| c.trim_start_matches('>')));
    for row in rows {
        table.add_row(row);
    }
    for (i, name) in columns.iter().enumerate() {
        let column = table.column_mut(i).expect("a column");
        column.set_padding((u16::from(i != 0), 1));
        if name.starts_with('>') {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    let lines: Vec<_> = table.lines().map(|l| l.trim_end().to_owned()).collect();
    lines.join("\n")
}

/// Whether what is written to a terminal may be more than ASCII: it is none of the
/// dumb ones, and its locale is of UTF-8.
pub fn shows_unicode() -> bool {
    let set = |name: &str| std::env::var(name).ok().filter(|v| !v.is_empty());
    let locale = set("LC_ALL")
        .or_else(|| set("LC_CTYPE"))
        .or_else(|| set("LANG"));
    let is_utf8 = locale.is_some_and(|l| {
        let l = l.to_ascii_lowercase();
        l.contains("utf-8") || l.contains("utf8")
    });
    is_utf8 && !is_dumb()
}

/// A terminal that understands no escape sequences.
pub fn is_dumb() -> bool {
    std::env::var_os("TERM").is_none_or(|term| term.is_empty() || term == "dumb")
}

/// Bytes with a unit of 1024.
pub fn human(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];
    let mut unit = 0;
    let mut value = bytes as f64;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    if value.fract() == 0.0 || unit == 0 {
        format!("{value:.0} {}", UNITS[unit])
    } else {
        format!("{value:.1} {}", UNITS[unit])
    }
}

/// Bytes as hexadecimal and ASCII, 16 a line.
pub fn dump(data: &[u8]) -> String {
    let line = |(i, line): (usize, &[u8])| {
        format!("{:04x}  {:<47}  {}", i * 16, hex(line), ascii(line, '.'))
    };
    let lines: Vec<_> = data.chunks(16).enumerate().map(line).collect();
    lines.join("\n")
}

/// Bytes as ASCII, with something in the place of what cannot be printed.
pub fn ascii(data: &[u8], instead: char) -> String {
    let char = |b: &u8| match b {
        0x20..=0x7e => char::from(*b),
        _ => instead,
    };
    data.iter().map(char).collect()
}

/// Bytes as hexadecimal.
pub fn hex(data: &[u8]) -> String {
    let hex: Vec<_> = data.iter().map(|b| format!("{b:02x}")).collect();
    hex.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dump_has_sixteen_bytes_a_line() {
        let data: Vec<u8> = (0x3f..0x51).collect();
        assert_eq!(
            dump(&data),
            "0000  3f 40 41 42 43 44 45 46 47 48 49 4a 4b 4c 4d 4e  ?@ABCDEFGHIJKLMN\n\
             0010  4f 50                                            OP"
        );
    }

    #[test]
    fn sizes_are_short() {
        assert_eq!(human(1 << 20), "1 MiB");
        assert_eq!(human(1536), "1.5 KiB");
        assert_eq!(human(999), "999 B");
    }
}
