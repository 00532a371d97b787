//! What goes to stdout.

use crate::fail::{Code, Fail, words};
use comfy_table::{CellAlignment, Table, presets::NOTHING};
use serde::Serialize;
use std::io::{self, ErrorKind, Write};

/// Bytes as they are. Whoever closed the pipe has seen enough.
pub fn bytes(data: &[u8]) -> Result<(), Fail> {
    let mut out = io::stdout().lock();
    match out.write_all(data).and_then(|()| out.flush()) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == ErrorKind::BrokenPipe => {
            // Nothing to say, and nobody to say it to.
            Err(Fail::new(Code::System, ""))
        }
        Err(error) => Err(Fail::new(
            Code::System,
            format!("stdout: {}", words(&error)),
        )),
    }
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
    let all = serde_json::to_string_pretty(value).expect("plain data");
    text(&all)
}

/// One of a series as JSON: a line.
pub fn json_line(value: &impl Serialize) -> Result<(), Fail> {
    text(&serde_json::to_string(value).expect("plain data"))
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
