//! Devices as people have met them, as qpassctl shows them. Each answer is a script's;
//! each right value is that of a standard, or of a tool that was mended.

#![cfg(target_os = "linux")]

use serde_json::Value;
use std::{
    fs,
    path::Path,
    process::{Command, Stdio},
    time::Duration,
};
use tempfile::TempDir;

struct Ran {
    code: i32,
    out: String,
    err: String,
}

impl Ran {
    fn json(&self) -> Value {
        serde_json::from_str(&self.out).unwrap_or_else(|e| panic!("{e}: {}{}", self.out, self.err))
    }

    #[track_caller]
    fn good(self) -> Self {
        assert_eq!(self.code, 0, "{}{}", self.out, self.err);
        self
    }

    #[track_caller]
    fn failed(self, words: &[&str]) -> Self {
        assert_eq!(self.code, 1, "{}{}", self.out, self.err);
        assert_eq!(self.err.lines().count(), 1, "{}", self.err);
        self.says(words)
    }

    #[track_caller]
    fn says(self, words: &[&str]) -> Self {
        let all = format!("{}{}", self.out, self.err);
        for word in words {
            assert!(all.contains(word), "{word:?} in {all}");
        }
        self
    }
}

/// A disk that answers as a script says.
struct Disk {
    dir: TempDir,
    machine: String,
}

impl Disk {
    fn new(options: &str, script: &str) -> Self {
        let dir = tempfile::tempdir().expect("a folder");
        let file = dir.path().join("script");
        fs::write(&file, script).expect("a script");
        let machine = format!("disk{options},script={}", file.display());
        Disk { dir, machine }
    }

    fn run(&self, args: &[&str]) -> Ran {
        run(&self.machine, args)
    }

    fn path(&self, name: &str) -> String {
        self.dir.path().join(name).display().to_string()
    }
}

fn run(machine: &str, args: &[&str]) -> Ran {
    let out = Command::new(env!("CARGO_BIN_EXE_qpassctl"))
        .env("QPASS_UKERNEL", machine)
        .args(args)
        .output()
        .expect("qpassctl runs");
    Ran {
        code: out.status.code().unwrap_or(-1),
        out: String::from_utf8(out.stdout).expect("text"),
        err: String::from_utf8(out.stderr).expect("text"),
    }
}

const OCZ: &str = "inquiry 00 00 05 02 5b 00 00 02 \"ATA     OCZ-AGILITY3    2.50\" 00*60\n";
const DVD: &str = "05 80 05 32 5b 00 00 00 \"hp      DVD-RAM GH80N   RF03\" 00*60";

/// Row 1: doug-gilbert/sg3_utils#34, spdk/spdk#750: SPC-6, 6.7.
#[test]
fn standard_data_in_the_place_of_a_page_are_refused() {
    let script = format!("on scsi 12 01\n data {DVD}\n");
    let dvd = Disk::new(",type=5", &script);
    let script = format!("{OCZ}on scsi 12 01\n data {}", &OCZ["inquiry ".len()..]);
    let ocz = Disk::new("", &script);
    for disk in [&dvd, &ocz] {
        for page in ["0", "0x80", "0x83", "0xb0"] {
            let refused = disk.run(&["inquiry", "qpass0", "--page", page]);
            let refused = refused.failed(&["standard INQUIRY data"]);
            assert_eq!(refused.out, "");
            let json = disk.run(&["--json", "inquiry", "qpass0", "--page", page]);
            assert_eq!(json.code, 1);
            assert!(!json.out.contains("serial"), "{}", json.out);
        }
    }
}

/// Row 2: ZuluSCSI-firmware#818: before SPC-3 the length is one byte.
#[test]
fn a_device_with_a_short_allocation_length_gives_its_serial() {
    let script = "on scsi 12 01 80\n data 00 80 00 08 \"SERIAL01\"\n allocation 4\n";
    let disk = Disk::new("", script);
    let text = disk.run(&["inquiry", "qpass0", "--page", "0x80"]).good();
    assert_eq!(text.out, "SERIAL01\n");
}

/// A page of more than 255 bytes is asked for again.
#[test]
fn a_long_page_is_whole() {
    let script = "on scsi 12 01 83\n data 00 83 01 30 41*304\n allocation 3-4\n";
    let disk = Disk::new("", script);
    let json = disk
        .run(&["--json", "inquiry", "qpass0", "--page", "0x83"])
        .good()
        .json();
    assert_eq!(
        (&json["length"], &json["short"]),
        (&308.into(), &false.into())
    );
    assert_eq!(json["raw"].as_str().expect("hex").len(), 308 * 3 - 1);
    for key in ["pages", "serial"] {
        assert_eq!(json.get(key), Some(&Value::Null), "{key} is always there");
    }
}

/// Row 3: TkTech/smartie#14, raspberrypi/pico-bootrom-rp2040#14.
#[test]
fn only_what_was_moved_is_shown() {
    let script = "inquiry 00 80 02 02 20 00 00 00 \"RPI     RP2             1   \"\n\
                  on scsi 12 01 83\n data 00 83 00 40 02 01 00 04 41 42\n";
    let disk = Disk::new("", script);
    let text = disk.run(&["inquiry", "qpass0", "--page", "0x83"]).good();
    assert_eq!(text.out.lines().count(), 1, "{}", text.out);
    text.says(&["00 83 00 40 02 01 00 04 41 42", "gave 10 of 68 bytes"]);
    let json = disk.run(&["inquiry", "qpass0", "--json"]).good().json();
    assert_eq!(
        (&json["length"], &json["short"]),
        (&37.into(), &true.into())
    );
    assert_eq!(json["raw"].as_str().expect("hex").len(), 36 * 3 - 1);
}

/// Row 4: smartmontools#340.
#[test]
fn good_without_data_is_an_error() {
    let disk = Disk::new("", "on scsi 12\non scsi 25\n");
    for args in [
        &["inquiry", "qpass0"][..],
        &["inquiry", "qpass0", "--page", "0x80"],
        &["readcap", "qpass0"],
    ] {
        let failed = disk.run(args).failed(&["qpass0: "]);
        assert_eq!(failed.out, "");
    }
}

/// Rows 7 and 8: systemd#13654, #2362: SAT-4, 12.2.2.6 and 12.2.2.7.
#[test]
fn an_ata_command_through_sat_gives_its_registers() {
    let script = "on scsi 85 08\n data 41*512\n sense 72 01 00 1d 00 00 00 0e 09 0c 00*11 50\n\
                  on scsi 85 0a\n sense f0 00 01 00 50 00 01 0a 80 00 00 00 00 1d\n\
                  on scsi 85\n\
                  sense 72 01 00 1d 00 00 00 0e 09 0c 00 00 00 00 00 00 00 f4 00 2c 00 50\n";
    let disk = Disk::new("", script);
    let smart = "85 06 2c 00 da 00 00 00 00 00 4f 00 c2 00 b0 00";
    let text = disk.run(&["cdb", "qpass0", smart]).good();
    text.says(&[
        "RECOVERED ERROR",
        "lba 0x2cf400",
        "SMART   a threshold is exceeded",
        "sense   72 01 00 1d 00 00 00 0e 09 0c 00 00 00 00 00 00 00 f4 00 2c 00 50",
    ]);
    let json = disk.run(&["cdb", "qpass0", smart, "--json"]).good().json();
    assert_eq!(json["ok"], true);
    assert_eq!(json["registers"]["lba"], 0x2c_f400);
    assert_eq!(json["registers"]["status"], 0x50);
    assert_eq!(json["sense"]["descriptors"][0]["type"], 9);
    let fixed = smart.replacen("06", "0a", 1);
    let json = disk.run(&["cdb", "qpass0", &fixed, "--json"]).good().json();
    assert_eq!(json["registers"]["is_48bit"], true);
    assert_eq!(json["registers"]["count"], 1);
    // With data.
    let file = disk.path("identify");
    let identify = "85 08 2e 00 00 00 01 00 00 00 00 00 00 00 ec 00";
    let args = ["cdb", "qpass0", identify, "--in", "512"];
    let json = disk.run(&[&args[..], &["--json"]].concat()).good().json();
    assert_eq!(json["moved"], 512);
    assert!(json["data"].as_str().expect("hex").starts_with("41 41"));
    disk.run(&[&args[..], &["--file", &file]].concat()).good();
    assert_eq!(fs::read(&file).expect("it is there"), [0x41; 512]);
}

/// Row 9: TalAloni/iSCSIConsole#25, uweseimet/scsi2pi#100: SSC-5.
#[test]
fn a_tapes_data_and_sense_come_together() {
    for (sense, words, residual) in [
        ("f0 00 20 00 00 0f b0 0a", "incorrect length (ILI)", 4016),
        ("f0 00 20 ff ff f0 00", "incorrect length (ILI)", -4096),
        ("f0 00 80 00 00 10 00 0a 00*10", "filemark", 4096),
        ("f0 00 40 00 00 00 00 0a 00*10", "end of medium (EOM)", 0),
        (
            "72 00 00 00 00 00 00 10 00 0a 80 00 ff*6 f0 00 04 02 00 20",
            "incorrect length (ILI)",
            -4096,
        ),
    ] {
        let script = format!("on scsi 08\n data 42*80\n sense {sense}\n");
        let disk = Disk::new(",type=1", &script);
        let args = ["cdb", "qpass0", "08 00 00 10 00 00", "--in", "4096"];
        let text = disk.run(&args).good();
        text.says(&[
            words,
            "moved   80 of 4096 bytes",
            &format!("residual {residual}"),
        ]);
        let json = disk.run(&[&args[..], &["--json"]].concat()).good().json();
        assert_eq!((&json["ok"], &json["moved"]), (&true.into(), &80.into()));
        assert_eq!(json["residual"], 4016);
        assert_eq!(json["sense"]["residual"], residual, "{sense}");
    }
}

/// Row 11: scsi2pi#111, nwipe#547.
#[test]
fn a_recovered_error_stops_nothing() {
    let recovered = "sense f0 00 01 00 00 00 05 0a 00 00 00 00 17 01";
    let warns = "sense 70 00 01 00 00 00 00 0a 00 00 00 00 5d 00";
    let script = format!(
        "on scsi 28\n do\n {recovered}\non scsi 2a\n do\n {warns}\non scsi 25\n do\n {warns}\n"
    );
    let disk = Disk::new(",size=1M", &script);
    let (image, back) = (disk.path("image"), disk.path("back"));
    let data: Vec<u8> = (0..1 << 20).map(|i: u32| (i / 512) as u8).collect();
    fs::write(&image, &data).expect("a file");
    disk.run(&["readcap", "da0"]).good().says(&["2048 blocks"]);
    disk.run(&["write", &image, "da0", "--verify"]).good();
    disk.run(&["read", "da0", &back]).good();
    assert_eq!(fs::metadata(&back).expect("it is there").len(), 1 << 20);
    let read = ["cdb", "da0", "28 00 00 00 00 05 00 00 01 00", "--in", "512"];
    disk.run(&read)
        .good()
        .says(&["remark  RECOVERED ERROR, asc 17h/01h", "sense   f0 00 01"]);
}

/// Rows 12 and 14: SPC-6, 4.4.7. The other half, notes, is of copies.
#[test]
fn an_error_of_an_earlier_write_fails_the_copy() {
    let deferred = "times 1\n sense f1 00 03 00 00 00 00 0a 00 00 00 00 0c 00";
    for script in [
        format!("on scsi 2a 00 00 00 00 80\n {deferred}\n"),
        format!("on scsi 35\n {deferred}\n"),
    ] {
        let disk = Disk::new(",size=1M", &script);
        let image = disk.path("image");
        fs::write(&image, vec![1; 1 << 20]).expect("a file");
        let write = ["write", &image, "da0", "--depth", "1", "--size", "64K"];
        disk.run(&write).failed(&["of an earlier command"]);
    }
}

/// Row 15: PRE-FETCH (SBC-4).
#[test]
fn condition_met_is_success() {
    let disk = Disk::new("", "on scsi 34\n status 04\n");
    let args = ["cdb", "da0", "34 00 00 00 00 00 00 00 01 00"];
    disk.run(&args).good().says(&["CONDITION MET"]);
    let json = disk.run(&[&args[..], &["--json"]].concat()).good().json();
    assert_eq!(json["scsi_status_name"], "CONDITION MET");
    assert_eq!(json["error"], Value::Null);
}

/// A device may refuse what is longer than it knows; and sense data of a format that
/// is nobody's are shown all the same.
#[test]
fn odd_answers_are_shown_as_they_are() {
    let refuses = "sense 70 00 05 00 00 00 00 0a 00 00 00 00 24 00";
    let script = format!("on scsi 12 00 00 00 ff\n {refuses}\n");
    let disk = Disk::new("", &script);
    disk.run(&["inquiry", "da0"])
        .good()
        .says(&["product    RAM DISK"]);
    let script =
        format!("on scsi 12 01 83 00 ff\n data 00 83 01 30 41*251\non scsi 12 01 83\n {refuses}\n");
    let disk = Disk::new("", &script);
    let page = disk.run(&["inquiry", "da0", "--page", "0x83"]).good();
    page.says(&["gave 255 of 308 bytes"]);
    let disk = Disk::new("", "on scsi 00\n sense 7f 01 02\n");
    let tur = disk.run(&["tur", "da0"]);
    tur.failed(&["no known format", "sense   7f 01 02"]);
    let json = disk.run(&["tur", "da0", "--json"]).json();
    assert_eq!(
        (&json["sense"], &json["sense_raw"]),
        (&Value::Null, &"7f 01 02".into())
    );
}

/// Rows 16 and 17: T10's whole list.
#[test]
fn each_code_has_its_words() {
    for (sense, words) in [
        (
            "f0 00 05 00 58 00 01 0a 00 00 00 00 21 04 00 00",
            &["unaligned write command", "as ATA registers: status 0x58"][..],
        ),
        (
            "70 00 05 00 00 00 00 0a 04 51 40 01 21 04",
            &["status 0x51, error 0x04 command aborted, count 0x1"],
        ),
        (
            "f0 00 08 00 00 11 01 12 00 00 00 00 30 01 00 00 22 00",
            &["cannot read medium - unknown format", "information 0x1101"],
        ),
        (
            "70 00 03 00 00 00 00 0a 00 00 00 00 11 05",
            &["L-EC uncorrectable error"],
        ),
    ] {
        let disk = Disk::new("", &format!("on scsi 00\n sense {sense}\n"));
        let text = disk.run(&["cdb", "da0", "00 00 00 00 00 00"]);
        text.failed(words).says(&[&format!("sense   {sense}")]);
    }
}

/// Row 18: openSeaChest#204, pali/udftools#33: SPC-6, 4.4.2.4.
#[test]
fn progress_is_a_number() {
    let script = "on scsi 00\n sense 70 00 02 00 00 00 00 0a 00 00 00 00 04 04 00 80 d4 a9\n\
                  on scsi 03\n data 72 00 00 16 00 00 00 08 02 06 00 00 80 40 00 00\n";
    let disk = Disk::new("", script);
    disk.run(&["tur", "da0"]).failed(&["progress 83.07 %"]);
    let json = disk.run(&["tur", "da0", "--json"]).json();
    assert_eq!(json["sense"]["progress_percent"], 83.07);
    assert_eq!(
        (&json["error"]["key"], &json["error"]["asc"]),
        (&2.into(), &4.into())
    );
    let sense = ["cdb", "da0", "03 00 00 00 fc 00", "--in", "252"];
    disk.run(&sense)
        .good()
        .says(&["returned NO SENSE", "progress 25 %"]);
    let json = disk.run(&[&sense[..], &["--json"]].concat()).good().json();
    assert_eq!(json["returned"]["progress_percent"], 25.0);
}

/// Row 19: mhvtl#197.
#[test]
fn the_field_that_is_wrong_is_named() {
    let script = "on scsi 15\n sense 70 00 05 00 00 00 00 0a 00 00 00 00 26 00 00 8f 00 12\n";
    let disk = Disk::new("", script);
    let input = disk.path("input");
    fs::write(&input, [0; 24]).expect("a file");
    let args = ["cdb", "da0", "15 10 00 00 18 00", "--out", "--file", &input];
    disk.run(&args)
        .failed(&["byte 0x12 bit 7 of the parameters"]);
    let json = disk.run(&[&args[..], &["--json"]].concat()).json();
    let field = &json["sense"]["field"];
    assert_eq!(
        (&field["of"], &field["byte"], &field["bit"]),
        (&"parameters".into(), &0x12.into(), &7.into())
    );
}

/// Rows 24 to 28, as a copy meets them.
#[test]
fn commands_are_those_that_the_device_takes() {
    let dir = tempfile::tempdir().expect("a folder");
    let image = dir.path().join("image").display().to_string();
    fs::write(&image, vec![9; 256 << 10]).expect("a file");
    for machine in ["disk,ata,lba28,size=4M", "disk,zoned=1M,size=4M"] {
        let write = ["write", &image, "qpass0", "--verify", "--depth", "1"];
        run(machine, &[&write[..], &["--size", "64K"]].concat()).good();
        let back = dir.path().join("back").display().to_string();
        run(machine, &["read", "qpass0", &back]).good();
    }
    let metadata = "namespace 25=01 26=11 132=08,00,09\n";
    let disk = Disk::new(",nvme", metadata);
    for args in [
        &["readcap", "qpass0"][..],
        &["read", "qpass0", "/dev/null", "--size", "64K"],
    ] {
        disk.run(args).failed(&["8 bytes of metadata"]);
    }
}

/// Row 33: PiSCSI#458, BlueSCSI-v2#127, sasutils#28.
#[test]
fn old_and_absent_devices_are_told() {
    let names = "\"DEC     RZ24            4041\"";
    let of = |head: &str| Disk::new("", &format!("inquiry {head} {names}\n"));
    let disk = of("00 00 01 00 1f 00 00 00");
    disk.run(&["inquiry", "qpass0"])
        .good()
        .says(&["standard   SCSI-1"]);
    let disk = of("00 00 92 00 1f 00 00 00");
    disk.run(&["inquiry", "qpass0"])
        .good()
        .says(&["standard   SCSI-2"]);
    let disk = of("7f 00 05 00 1f 00 00 00");
    disk.run(&["inquiry", "qpass0"])
        .good()
        .says(&["no such LUN"]);
    disk.run(&["list"]).good().says(&["no such LUN"]);
    let json = disk.run(&["inquiry", "qpass0", "--json"]).good().json();
    assert_eq!(json["absent"], "no such LUN");
    // One text, wherever it is shown.
    let disk = Disk::new(
        "",
        "inquiry 0d 00 05 02 1f 00 00 00 \"AVAGO   \" 00 00 \"HBA355e       0001\"\n",
    );
    disk.run(&["inquiry", "qpass0"])
        .good()
        .says(&["product    HBA355e\n"]);
    disk.run(&["list"]).good().says(&["AVAGO HBA355e"]);
}

/// Row 34: a residual below 0 says that the device had more.
#[test]
fn a_negative_residual_hides_nothing() {
    let disk = Disk::new("", "on scsi 12\n data 41*36\n residual -60\n");
    let args = ["cdb", "da0", "12 00 00 00 60 00", "--in", "36", "--json"];
    let json = disk.run(&args).good().json();
    assert_eq!(
        (&json["moved"], &json["residual"]),
        (&36.into(), &(-60).into())
    );
    assert_eq!(json["data"].as_str().expect("hex").len(), 36 * 3 - 1);
}

/// Row 36 and E2.
#[test]
fn a_short_time_is_a_time() {
    let out = run(
        "disk,dead",
        &["cdb", "da0", "000000000000", "--timeout", "100us"],
    );
    out.failed(&["timed out (CAM_CMD_TIMEOUT)"]);
}

/// A1: an image is what it was, whatever is asked of it.
#[test]
fn an_image_keeps_its_size_and_its_bytes() {
    let dir = tempfile::tempdir().expect("a folder");
    let image = dir.path().join("precious.img");
    let data: Vec<u8> = (0..100u32 << 10).map(|i| (i % 251) as u8).collect();
    let put = |data: &[u8]| fs::write(&image, data).expect("a file");
    let get = || fs::read(&image).expect("it is there");
    put(&data);
    let machine = format!("disk={}", image.display());
    run(&machine, &["list"]).good();
    run(&machine, &["readcap", "da0"])
        .good()
        .says(&["200 blocks of 512 bytes"]);
    assert!(get() == data);
    run(&format!("{machine},size=8K"), &["readcap", "da0"])
        .good()
        .says(&["16 blocks"]);
    assert!(get() == data);
    let fails = |machine: &str, words: &str| {
        let ran = run(machine, &["list"]);
        assert_ne!(ran.code, 0);
        ran.says(&[words]);
    };
    fails(&format!("{machine},size=1M"), "the disk is to have 1048576");
    fails(&format!("{machine};{machine}"), "another process has it");
    put(&data[..1000]);
    fails(&machine, "1000 bytes are no whole number of blocks of 512");
    assert!(get() == data[..1000]);
    // E13: what there is, for who gets it wrong.
    fails("disk,foo", "there are size=");
    fails("tape", "there are disk");
    fails("disk,script=/no/such/file", "/no/such/file");
}

/// Nothing is read from a file that is not a script, and the line is named.
#[test]
fn a_bad_script_names_its_line() {
    let disk = Disk::new("", "# good\non scsi 00\n sense 7\n");
    let ran = disk.run(&["list"]);
    assert_eq!(ran.code, 3, "{}", ran.err);
    ran.says(&["script:3: not a line of a script"]);
    assert!(Path::new(&disk.path("script")).exists());
}

/// B3, C4, E4, E7 and E8.
#[test]
fn watches_and_limits_say_what_they_do() {
    let refused = |args: &[&str], words: &[&str]| {
        let ran = run("disk", args);
        assert_eq!(ran.code, 2, "{}", ran.err);
        ran.says(words);
    };
    refused(&["limits", "max_requests=0"], &["1 is the least"]);
    refused(&["limits", "allow_paddr=2"], &["1 is the most"]);
    refused(
        &["limits", "zerocopy_min=banana"],
        &["banana is not a number"],
    );
    let ran = run("disk", &["limits", "max_bytes=1M", "max_requests=8G"]);
    assert_eq!(ran.code, 3);
    ran.says(&["max_bytes=1048576 was set before"]);
    // Once more is later than there is a time for.
    for time in ["--watch=1e19", "--watch=18446744073709549568"] {
        let watch = ["stats", time, "--times", "1"];
        assert_eq!(run("disk", &watch).good().out.lines().count(), 2);
    }
    let json = run("disk", &["stats", "--watch=10ms", "--times", "2", "--json"]).good();
    let lines: Vec<Value> = json
        .out
        .lines()
        .map(|l| serde_json::from_str(l).expect("a line"))
        .collect();
    assert_eq!(lines[0][0]["rates"], Value::Null);
    assert!(lines[1][0]["rates"]["submitted"].is_number());
    assert!(lines[1][0]["time"].as_f64().expect("a time") > 1e9);
    let text = run("disk", &["stats", "--watch=10ms", "--times", "2"]).good();
    assert!(
        text.out.lines().nth(3).expect("rates").contains("/s"),
        "{}",
        text.out
    );
    let gone = run(
        "disk,vanish=100ms",
        &["outstanding", "--watch=20ms", "qpass0"],
    );
    assert_eq!(gone.code, 3, "{}", gone.err);
    gone.says(&["the device has gone"]);
}

/// Two processes on one kernel: what the one has outstanding, the other sees and ends;
/// and one that is killed leaves nothing behind.
#[test]
fn two_processes_share_a_kernel() {
    let dir = tempfile::tempdir().expect("a folder");
    let socket = dir.path().join("socket").display().to_string();
    let join = format!("shared={socket}");
    let none = run(&join, &["list"]);
    assert_eq!(none.code, 3);
    none.says(&["no process shares its kernel there"]);
    let machine = format!("disk,latency=50ms,openings=2;disk;{join}");
    let start = |machine: &str, args: &[&str]| {
        Command::new(env!("CARGO_BIN_EXE_qpassctl"))
            .env("QPASS_UKERNEL", machine)
            .args(args)
            .stderr(Stdio::piped())
            .spawn()
            .expect("qpassctl runs")
    };
    let read = ["read", "da0", "/dev/null", "--size", "64K", "--depth", "6"];
    let host = start(&machine, &read);
    let pids = |wanted: &dyn Fn(&[u64]) -> bool| {
        for _ in 0..400 {
            let ran = run(&join, &["outstanding", "da0", "--json"]);
            let all = (ran.code == 0).then(|| ran.json());
            let all = all
                .and_then(|all| all.as_array().cloned())
                .unwrap_or_default();
            let mut pids: Vec<_> = all.iter().filter_map(|r| r["pid"].as_u64()).collect();
            pids.sort_unstable();
            pids.dedup();
            if wanted(&pids) {
                return;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        panic!("not what is outstanding");
    };
    let own = u64::from(host.id());
    pids(&|pids| pids == [own]);
    let mut other = start(&join, &read);
    let theirs = u64::from(other.id());
    pids(&|pids| pids.len() == 2 && pids.contains(&theirs));
    other.kill().expect("killed");
    other.wait().expect("it has ended");
    pids(&|pids| pids == [own]);
    // Data go through memory that both have.
    let image = dir.path().join("image").display().to_string();
    fs::write(&image, vec![3; 1 << 20]).expect("a file");
    run(&join, &["write", &image, "da1", "--verify"]).good();
    run(&join, &["cancel", "da0", "--all"]).good();
    let host = host.wait_with_output().expect("it ends");
    let err = String::from_utf8_lossy(&host.stderr);
    assert_eq!(host.status.code(), Some(1), "{err}");
    assert!(err.contains("aborted"), "{err}");
    assert!(!Path::new(&socket).exists());
}
