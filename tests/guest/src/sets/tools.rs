//! The programs that people use.

use super::Sheet;
use conform::sys::Sys;
use sys_bindings as sys;

/// A short benchmark, of several methods or drivers.
fn bench<'a>(name: &'a str, option: &'a str, value: &'a str) -> [&'a str; 10] {
    let short = ["--time", "200ms", "--rounds", "2", "--depth", "1,16"];
    let [a, b, c, d, e, f] = short;
    ["bench", name, a, b, c, d, e, f, option, value]
}

/// qpassctl, and what it says.
pub fn tools(sheet: &mut Sheet<'_>) {
    let Some(node) = sheet.sys.wait_disk() else {
        sheet.check("the disk is there", "", false);
        return;
    };
    let name = node.strip_prefix("/dev/").unwrap_or(node);
    const TOOLS: [&str; 2] = ["/bin/qpassctl", "/mnt/bin/qpassctl"];
    const REACTORS: [&str; 2] = ["/bin/reactor", "/mnt/bin/reactor"];
    let at = usize::from(!sheet.sys.has(TOOLS[0]));
    let (tool, file) = (TOOLS[at], sheet.sys.module());
    let runs: [(&str, &[&str], i32); 15] = [
        ("list", &["list"], 0),
        ("list --json", &["list", "--json"], 0),
        ("inquiry", &["inquiry", name], 0),
        ("tur", &["tur", name], 0),
        ("readcap", &["readcap", name], 0),
        ("cdb", &["cdb", name, "120000002400", "--in", "36"], 0),
        ("cdb that fails", &["cdb", name, "ff"], 1),
        (
            "write",
            &["write", file, name, "--pad", "--verify", "--seek", "64"],
            0,
        ),
        ("read", &["read", name, "/dev/null", "--count", "65536"], 0),
        ("bench", &bench(name, "--method", "enter,queue"), 0),
        ("outstanding", &["outstanding"], 0),
        ("cancel", &["cancel", name, "--all"], 0),
        ("stats", &["stats"], 0),
        ("limits", &["limits", "max_requests=512"], 0),
        ("no device", &["tur", "qpass99"], 3),
    ];
    for (what, args, wanted) in runs {
        let code = sheet.sys.run(tool, args);
        sheet.check("qpassctl", what, code == Ok(wanted));
    }
    // The disks that are not SCSI, by what they speak.
    for node in sheet.sys.nodes("qpass") {
        let Some(kind) = sheet.sys.kind(node) else {
            continue;
        };
        if matches!(kind.protocol, sys::PROTO_ATA | sys::PROTO_NVME) {
            let name = node.strip_prefix("/dev/").unwrap_or(node);
            let code = sheet.sys.run(tool, &["readcap", name]);
            sheet.check("qpassctl readcap", node, code == Ok(0));
            let code = sheet
                .sys
                .run(tool, &["write", file, name, "--pad", "--verify"]);
            sheet.check("qpassctl write", node, code == Ok(0));
        }
    }
    if sheet.sys.disk_of("pass").is_some() {
        let args = bench(name, "--compare", "pass");
        let code = sheet.sys.run(tool, &args);
        sheet.check("qpassctl bench", "beside pass(4)", code == Ok(0));
    }
    ended_by_another(sheet, tool);
    pulled_meanwhile(sheet, tool, name);
    let reactor = sheet.sys.run(REACTORS[at], &[name, name]);
    sheet.check("a reactor with two queues", node, reactor == Ok(0));
    // The CD is mounted: it is the root.
    let cd = sheet.sys.nodes("qpass").find(|node| {
        let kind = sheet.sys.kind(node);
        kind.is_some_and(|k| k.device_type == 5)
    });
    if let Some(cd) = cd {
        let code = sheet.sys.run(tool, &["write", file, cd, "--pad"]);
        sheet.check("a mounted device is refused", cd, code == Ok(5));
    }
}

/// What one program has outstanding is shown by another, and ended. On the ATA
/// disk, which takes so few at a time that most of them wait.
fn ended_by_another(sheet: &mut Sheet<'_>, tool: &str) {
    let ata = sheet.sys.nodes("qpass").find(|node| {
        let kind = sheet.sys.kind(node);
        kind.is_some_and(|k| k.protocol == sys::PROTO_ATA)
    });
    let Some(node) = ata else {
        sheet.skip("qpassctl cancel of a benchmark", "there is no ATA disk");
        return;
    };
    let name = node.strip_prefix("/dev/").unwrap_or(node);
    let [time, rounds, depth] = ["--time=10s", "--rounds=1", "--depth=64"];
    let bench = sheet
        .sys
        .start(tool, &["bench", name, time, rounds, depth, "--size=128K"]);
    sheet.sys.sleep_ms(1500);
    let shown = sheet
        .sys
        .run(tool, &["outstanding", name, "--watch=100ms", "--times=3"]);
    sheet.check("qpassctl outstanding of a benchmark", node, shown == Ok(0));
    for _ in 0..5 {
        let _ = sheet.sys.run(tool, &["cancel", name, "--all"]);
    }
    let ended = bench.map(|pid| sheet.sys.wait(pid));
    sheet.check("qpassctl cancel of a benchmark", node, ended == Ok(1));
}

/// A disk that is pulled ends a program with a word, and not with a wait.
fn pulled_meanwhile(sheet: &mut Sheet<'_>, tool: &str, name: &str) {
    if !sheet.sys.can_depart() {
        sheet.skip(
            "qpassctl and a pulled disk",
            "there is no monitor to pull it",
        );
        return;
    }
    let args = [
        "bench",
        name,
        "--time=60s",
        "--rounds=1",
        "--depth=32",
        "--size=64K",
    ];
    let bench = sheet.sys.start(tool, &args);
    sheet.sys.sleep_ms(1500);
    sheet.sys.ask_to_pull();
    let ended = bench.map(|pid| sheet.sys.wait(pid));
    let is_told = [Ok(1), Ok(3)].contains(&ended);
    sheet.check("qpassctl ends when a disk is pulled", name, is_told);
    sheet.sys.arrive();
}
