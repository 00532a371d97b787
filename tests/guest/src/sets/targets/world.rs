//! What makes targets: CTL's LUNs and ports, ctld(8), iscsid(8), the loopback and
//! the monitor; how each is made slow, faulty or gone; and how all are cured.
//!
//! CTL's LUNs have the SCSI disk behind them, so that its blocks, which hold their
//! numbers, outlive a LUN, and the monitor makes the LUNs slow where the kernel
//! cannot (`ctladm delay` wants one compiled with CTL_IO_DELAY).

use super::super::faults::trial::{self, Disk, NUMBERED, Node, Trial};
use crate::freebsd::{FreeBsd, SIGKILL, SIGTERM};
use conform::{
    Line,
    command::Command,
    sys::{Memory, Sys, call},
};
use core::fmt::Write;
use sys_bindings as sys;

/// What is attacked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// A LUN of CTL's over 127.0.0.1.
    Iscsi,
    /// A LUN of CTL's behind the SIM of its own port.
    Camsim,
    Scsi,
    Ata,
    Nvme,
}

impl Target {
    pub const ALL: [Target; 5] = [
        Target::Iscsi,
        Target::Camsim,
        Target::Scsi,
        Target::Ata,
        Target::Nvme,
    ];

    pub fn name(self) -> &'static str {
        ["iscsi", "camsim", "da", "ada", "nda"][self as usize]
    }

    /// The number that CTL has for its LUN.
    fn lun(self) -> Option<&'static str> {
        match self {
            Target::Iscsi => Some("1"),
            Target::Camsim => Some("8"),
            _ => None,
        }
    }

    /// The disk whose throttle makes it slow.
    fn backing(self) -> Disk {
        match self {
            Target::Ata => Disk::Ata,
            Target::Nvme => Disk::Nvme,
            _ => Disk::Scsi,
        }
    }

    /// Its node.
    pub fn node(self, sys: &mut FreeBsd) -> Option<Node> {
        if self.lun().is_none() {
            return Trial::new(sys, 1).open(self.backing());
        }
        let mut command = Command::new(sys, 1);
        let mut found = None;
        for path in sys.nodes("qpass") {
            let Ok(fd) = sys.open(path, sys::O_RDWR as i32) else {
                continue;
            };
            command.immediate(sys::XPT_PATH_INQ);
            let told = command.send(sys, fd);
            // SAFETY: what the opcode says.
            let name = unsafe { command.ccb.ccb().cpi.dev_name };
            let mut bytes = name.iter().map(|c| *c as u8).take_while(|c| *c != 0);
            if told.is_ok()
                && bytes.by_ref().eq(self.name().bytes())
                && let Some(kind) = sys.kind(path).filter(|kind| kind.device_type == 0)
            {
                found = Some(Node {
                    disk: Disk::Scsi,
                    path,
                    kind,
                    fd,
                });
                break;
            }
            sys.close(fd);
        }
        command.free(sys);
        found
    }
}

/// What is done to a target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mood {
    /// Its medium does so many commands a second.
    Slow,
    /// CTL holds each command for some seconds before its data, or its status.
    Datamove,
    Done,
    /// CTL fails reads of some blocks, or every command, in some way.
    Medium,
    Aborted,
    Attention,
    Custom,
    /// Its LUN is removed.
    Removed,
    /// Its port goes offline.
    Offline,
    /// The initiator logs out.
    LoggedOut,
    /// The target ends the connection.
    Terminated,
    /// ctld(8) ends, by SIGTERM, and takes port and LUN with it; or by SIGKILL.
    Ended,
    Killed,
    /// The network is gone, so that nobody says anything.
    Mute,
}

impl Mood {
    pub const ALL: [Mood; 14] = [
        Mood::Slow,
        Mood::Datamove,
        Mood::Done,
        Mood::Medium,
        Mood::Aborted,
        Mood::Attention,
        Mood::Custom,
        Mood::Removed,
        Mood::Offline,
        Mood::LoggedOut,
        Mood::Terminated,
        Mood::Ended,
        Mood::Killed,
        Mood::Mute,
    ];

    pub fn name(self) -> &'static str {
        [
            "slow",
            "datamove",
            "done",
            "medium",
            "aborted",
            "attention",
            "custom",
            "removed",
            "offline",
            "logout",
            "terminated",
            "ended",
            "killed",
            "mute",
        ][self as usize]
    }

    /// Whether it makes commands late, and no more than that.
    pub fn delays(self) -> bool {
        matches!(self, Mood::Slow | Mood::Datamove | Mood::Done)
    }

    /// Whether commands fail by what CTL is told to fail.
    pub fn fails(self) -> bool {
        self.injection().is_some()
    }

    /// Whether it can be done to a target.
    pub fn is_for(self, target: Target) -> bool {
        match self {
            Mood::Slow => true,
            Mood::LoggedOut | Mood::Terminated | Mood::Ended | Mood::Killed | Mood::Mute => {
                target == Target::Iscsi
            }
            Mood::Offline => target == Target::Camsim,
            _ => target.lun().is_some(),
        }
    }

    /// How `ctladm inject` is told: which error, and of which commands.
    fn injection(self) -> Option<&'static [&'static str]> {
        match self {
            // CTL says how a read ended with its data, before it looks for errors: what
            // fails are writes, here to most of the blocks that are written.
            Mood::Medium => Some(&["-i", "mediumerr", "-p", "write", "-r", "16384,114688", "-c"]),
            Mood::Aborted => Some(&["-i", "aborted", "-p", "any", "-c"]),
            Mood::Attention => Some(&["-i", "ua", "-p", "rw", "-c"]),
            // HARDWARE ERROR, INTERNAL TARGET FAILURE, of fixed format.
            Mood::Custom => Some(&[
                "-i",
                "custom",
                "-p",
                "rw",
                "-s",
                "18",
                "f0 0 4 0 0 0 0 a 0 0 0 0 44 0 0 0 0 0",
                "-c",
            ]),
            _ => None,
        }
    }
}

#[derive(Clone, Copy)]
enum Tool {
    Ctladm,
    Ctld,
    Iscsid,
    Iscsictl,
    Ifconfig,
}

/// Where the programs are: on the small root, or in a whole system.
const PATHS: [[&str; 2]; 5] = [
    ["/sbin/ctladm", "/usr/sbin/ctladm"],
    ["/sbin/ctld", "/usr/sbin/ctld"],
    ["/sbin/iscsid", "/usr/sbin/iscsid"],
    ["/bin/iscsictl", "/usr/bin/iscsictl"],
    ["/sbin/ifconfig", "/sbin/ifconfig"],
];

const NAME: &str = "iqn.2012-06.org.example:qpass";
const SAID: &str = "/tmp/said";
const CONFIG: &str = "/tmp/qpass-ctl.conf";
const CTLD_PID: &str = "/tmp/qpass-ctld.pid";
const ISCSID_PID: &str = "/tmp/qpass-iscsid.pid";
const CONFIGURATION: &str = "pidfile /tmp/qpass-ctld.pid
portal-group qpass {
	tag 300
	discovery-auth-group no-authentication
	listen 127.0.0.1
}
target iqn.2012-06.org.example:qpass {
	auth-group no-authentication
	portal-group qpass
	lun 0 {
		ctl-lun 1
		backend block
		path /dev/da0
		serial qpassiscsi
	}
}
";

/// How a file is opened to write it.
const WRITTEN: i32 = (sys::O_WRONLY | sys::O_CREAT | sys::O_TRUNC) as i32;

/// How long a program may take.
const TOOL_MS: u64 = 15_000;
/// How many programs may be at work beside the set.
const BESIDE: usize = 4;

/// What there is, and what was done to it since the last cure.
pub struct World {
    pub slow: u64,
    /// How many commands a second a slow medium does.
    pub rate: u32,
    tools: [Option<&'static str>; 5],
    /// CTL's number of the camsim port.
    port: Line,
    /// Why a target cannot be had.
    pub missing: [Option<&'static str>; 5],
    /// Whether the kernel's CTL can delay commands.
    pub can_delay: bool,
    beside: [Option<usize>; BESIDE],
    throttled: [bool; 3],
    delayed: bool,
    /// CTL's numbers of the errors that it was told of, and their LUNs.
    injected: [Option<(Target, Line)>; 4],
    removed: [bool; 2],
    is_offline: bool,
    is_mute: bool,
    /// Whether ctld(8) is to be started anew, and whether to be logged in again.
    restart: bool,
    was_killed: bool,
    login: bool,
}

impl World {
    /// Makes the targets that can be made.
    pub fn new(sys: &mut FreeBsd, slow: u64) -> Self {
        let tools = PATHS.map(|paths| paths.into_iter().find(|path| sys.has(path)));
        let mut world = World {
            slow,
            rate: 3,
            tools,
            port: Line::new(),
            missing: [None; 5],
            can_delay: false,
            beside: [None; BESIDE],
            throttled: [false; 3],
            delayed: false,
            injected: [const { None }; 4],
            removed: [false; 2],
            is_offline: false,
            is_mute: false,
            restart: false,
            was_killed: false,
            login: false,
        };
        // The small root can only be read.
        if sys.open(SAID, WRITTEN).map(|fd| sys.close(fd)).is_err() {
            let _ = sys.mount("tmpfs", "/tmp");
        }
        for (module, device) in [("ctl", "/dev/cam/ctl"), ("iscsi", "/dev/iscsi")] {
            if !sys.is_there(device) {
                let _ = sys.kldload(module);
            }
        }
        let _ = sys.kldload("cfiscsi");
        for target in Target::ALL {
            world.missing[target as usize] = match target {
                Target::Camsim => world.make_camsim(sys),
                Target::Iscsi => world.make_iscsi(sys),
                _ => target
                    .node(sys)
                    .map(|node| sys.close(node.fd))
                    .map_or(Some("there is no such disk"), |()| None),
            };
        }
        let made = Target::ALL
            .into_iter()
            .filter(|target| world.missing[*target as usize].is_none());
        if let Some(lun) = made.filter_map(Target::lun).next() {
            world.can_delay = world.ctladm(sys, &["delay", lun, "-l", "done", "-t", "0"]);
        }
        world
    }

    fn has(&self, tool: Tool) -> bool {
        self.tools[tool as usize].is_some()
    }

    /// Runs a program to its end, within some seconds: whether it ended well.
    fn run(&self, sys: &mut FreeBsd, tool: Tool, args: &[&str]) -> bool {
        let Some(path) = self.tools[tool as usize] else {
            return false;
        };
        let Ok(pid) = sys.start_into(SAID, path, args) else {
            return false;
        };
        let ended = sys.wait_ms(pid, TOOL_MS * self.slow);
        if ended.is_none() {
            sys.kill(pid, SIGKILL);
            sys.wait_ms(pid, TOOL_MS);
        }
        ended == Some(0)
    }

    fn ctladm(&self, sys: &mut FreeBsd, args: &[&str]) -> bool {
        self.run(sys, Tool::Ctladm, args)
    }

    /// Starts a program that may take as long as a target does.
    fn run_beside(&mut self, sys: &mut FreeBsd, tool: Tool, args: &[&str]) {
        let place = self.beside.iter().position(Option::is_none);
        if let (Some(place), Some(path)) = (place, self.tools[tool as usize]) {
            self.beside[place] = sys.start_into("/tmp/beside", path, args).ok();
        }
    }

    fn make_camsim(&mut self, sys: &mut FreeBsd) -> Option<&'static str> {
        if !self.has(Tool::Ctladm) {
            return Some("there is no ctladm");
        }
        if !sys.is_there("/dev/cam/ctl") {
            return Some("the kernel has no ctl(4)");
        }
        if !sys.is_there("/dev/da0") {
            return Some("there is no da0 for its LUN");
        }
        self.run(sys, Tool::Ctladm, &["portlist", "-f", "camsim", "-q"]);
        let mut text = [0; 64];
        let len = sys.read_text(SAID, &mut text);
        let digits = text[..len].iter().skip_while(|b| **b == b' ');
        for digit in digits.take_while(|b| b.is_ascii_digit()) {
            let _ = self.port.write_char(char::from(*digit));
        }
        if self.port.as_str().is_empty() {
            return Some("ctl(4) has no camsim port");
        }
        let made = self.create_camsim(sys);
        if !made || !self.set_port(sys, "on") {
            return Some("ctladm makes no LUN, or no port of it");
        }
        self.wait_healthy(sys, Target::Camsim, 20_000)
            .err()
            .map(|_| "the LUN of the camsim port does not answer")
    }

    fn create_camsim(&self, sys: &mut FreeBsd) -> bool {
        let [file, serial] = ["file=/dev/da0", "qpasscamsim"];
        let create = ["create", "-b", "block", "-l", "8", "-o", file, "-S", serial];
        let port = self.port.as_str();
        self.ctladm(sys, &create) && self.ctladm(sys, &["lunmap", "-p", port, "-l", "0", "-L", "8"])
    }

    fn set_port(&self, sys: &mut FreeBsd, to: &str) -> bool {
        self.ctladm(sys, &["port", "-o", to, "-p", self.port.as_str()])
    }

    fn make_iscsi(&mut self, sys: &mut FreeBsd) -> Option<&'static str> {
        for (tool, why) in [
            (Tool::Ctladm, "there is no ctladm"),
            (Tool::Ctld, "there is no ctld"),
            (Tool::Iscsid, "there is no iscsid"),
            (Tool::Iscsictl, "there is no iscsictl"),
            (Tool::Ifconfig, "there is no ifconfig"),
        ] {
            if !self.has(tool) {
                return Some(why);
            }
        }
        for (device, why) in [
            ("/dev/cam/ctl", "the kernel has no ctl(4)"),
            ("/dev/iscsi", "the kernel has no iscsi(4)"),
            ("/dev/da0", "there is no da0 for its LUN"),
        ] {
            if !sys.is_there(device) {
                return Some(why);
            }
        }
        let Ok(fd) = sys.open(CONFIG, WRITTEN) else {
            return Some("/tmp cannot be written");
        };
        let written = sys.pwrite(fd, CONFIGURATION.as_bytes(), 0);
        sys.close(fd);
        self.set_network(sys, true);
        // A minute is long for a case to wait for a login that the network lost.
        for (name, seconds) in [
            ("kern.iscsi.login_timeout", 3),
            ("kern.iscsi.iscsid_timeout", 10),
        ] {
            let _ = sys.set_sysctl(name, seconds);
        }
        if !written || !self.start_ctld(sys) {
            return Some("ctld does not start");
        }
        if !self.run(sys, Tool::Iscsid, &["-P", ISCSID_PID]) {
            return Some("iscsid does not start");
        }
        if !self.log_in(sys) {
            return Some("iscsictl does not log in");
        }
        self.wait_healthy(sys, Target::Iscsi, 30_000)
            .err()
            .map(|_| "the iSCSI disk does not answer")
    }

    fn set_network(&self, sys: &mut FreeBsd, up: bool) {
        // An address that is set brings it up.
        let args: &[&str] = if up {
            &["lo0", "127.0.0.1/8", "up"]
        } else {
            &["lo0", "down"]
        };
        self.run(sys, Tool::Ifconfig, args);
    }

    /// Gives the network back, if it was taken.
    pub fn unmute(&mut self, sys: &mut FreeBsd) {
        if core::mem::take(&mut self.is_mute) {
            self.set_network(sys, true);
        }
    }

    fn start_ctld(&self, sys: &mut FreeBsd) -> bool {
        self.run(sys, Tool::Ctld, &["-f", CONFIG])
    }

    fn log_in(&self, sys: &mut FreeBsd) -> bool {
        self.run(sys, Tool::Iscsictl, &["-A", "-p", "127.0.0.1", "-t", NAME])
    }

    /// The process of a daemon, by its file.
    fn daemon(sys: &mut FreeBsd, file: &str) -> Option<usize> {
        let mut text = [0; 16];
        let len = sys.read_text(file, &mut text);
        let digits = text[..len].iter().take_while(|b| b.is_ascii_digit());
        let pid = digits.fold(0, |n, digit| n * 10 + usize::from(digit - b'0'));
        (pid > 1).then_some(pid)
    }

    /// Sends a daemon a signal: whether it has ended some seconds later.
    fn signal(&self, sys: &mut FreeBsd, file: &str, signal: u32, ms: u64) -> bool {
        let Some(pid) = Self::daemon(sys, file) else {
            return true;
        };
        sys.kill(pid, signal);
        // This process is init, and so the daemon's parent; or else init is, and
        // there is nothing to wait for.
        let end = sys.now() + ms * self.slow * 1_000_000;
        while sys.now() < end {
            sys.wait_ms(pid, 0);
            if !sys.is_alive(pid) {
                return true;
            }
            sys.sleep_ms(20);
        }
        false
    }

    /// Whether a target answers, as a pass-through device and as a disk, with what
    /// is there: within some seconds, or what did not.
    pub fn is_healthy(&self, sys: &mut FreeBsd, target: Target, ms: u64) -> Result<(), Line> {
        let mut trial = Trial::new(sys, self.slow);
        let ended = trial.within(ms, |sys| answers(sys, target));
        let what = match ended {
            trial::Ended::With(0) => return Ok(()),
            trial::Ended::With(code) => {
                WORDS[usize::try_from(code).unwrap_or(0).min(WORDS.len() - 1)]
            }
            trial::Ended::Killed => "waits",
            trial::Ended::Unkillable => "UNKILLABLE",
        };
        let mut line = Line::new();
        let _ = write!(line, "{} {what}", target.name());
        Err(line)
    }

    fn wait_healthy(&self, sys: &mut FreeBsd, target: Target, ms: u64) -> Result<(), Line> {
        let end = sys.now() + ms * self.slow * 1_000_000;
        loop {
            let answer = self.is_healthy(sys, target, 10_000);
            if answer.is_ok() || sys.now() >= end {
                return answer;
            }
            sys.sleep_ms(200);
        }
    }

    /// Why a mood cannot be had.
    pub fn lacks(&self, sys: &FreeBsd, mood: Mood) -> Option<&'static str> {
        match mood {
            Mood::Slow if !sys.can_depart() => Some("there is no monitor to throttle a disk"),
            Mood::Datamove | Mood::Done if !self.can_delay => {
                Some("ctl(4) is compiled without CTL_IO_DELAY")
            }
            _ => None,
        }
    }

    /// Makes the medium of a target slow: so many commands a second.
    pub fn throttle(&mut self, sys: &mut FreeBsd, target: Target, commands: u32) -> bool {
        let disk = target.backing();
        if !sys.can_depart() {
            return false;
        }
        self.throttled[disk as usize] = true;
        Trial::new(sys, self.slow).throttle(disk, commands)
    }

    /// Takes a throttle away: again, where the kernel's own words on the console
    /// came between those to the monitor.
    fn let_go(&self, sys: &mut FreeBsd, disk: Disk) {
        for _ in 0..5 {
            trial::let_go(sys);
            let start = sys.now();
            for _ in 0..4 {
                disk.read_by_its_driver(sys);
            }
            if sys.now() - start < 1_000_000_000 {
                break;
            }
        }
    }

    /// Does something to a target. What takes as long as the target is left to
    /// itself.
    pub fn set(&mut self, sys: &mut FreeBsd, target: Target, mood: Mood) -> bool {
        let lun = target.lun().unwrap_or("");
        if let Some(how) = mood.injection() {
            let Some(place) = self.injected.iter().position(Option::is_none) else {
                return true;
            };
            let mut args = [""; 16];
            args[..2].copy_from_slice(&["inject", lun]);
            args[2..2 + how.len()].copy_from_slice(how);
            let done = self.ctladm(sys, &args[..2 + how.len()]);
            let mut text = [0; 128];
            let len = sys.read_text(SAID, &mut text);
            let mut serial = Line::new();
            let digits = text[..len].rsplit(|b| *b == b' ').next().unwrap_or(&[]);
            for digit in digits.iter().take_while(|b| b.is_ascii_digit()) {
                let _ = serial.write_char(char::from(*digit));
            }
            self.injected[place] = Some((target, serial));
            return done;
        }
        match mood {
            Mood::Slow => self.throttle(sys, target, self.rate),
            Mood::Datamove | Mood::Done => {
                self.delayed = true;
                self.ctladm(
                    sys,
                    &["delay", lun, "-l", mood.name(), "-t", "4", "-T", "cont"],
                )
            }
            Mood::Removed => {
                self.removed[target as usize] = true;
                self.run_beside(sys, Tool::Ctladm, &["remove", "-b", "block", "-l", lun]);
                true
            }
            Mood::Offline => {
                self.is_offline = true;
                let port = word(self.port.as_str());
                let off = ["port", "-o", "off", "-p", port.as_str()];
                self.run_beside(sys, Tool::Ctladm, &off);
                true
            }
            Mood::LoggedOut => {
                self.login = true;
                self.run_beside(sys, Tool::Iscsictl, &["-R", "-t", NAME]);
                true
            }
            Mood::Terminated => {
                self.run_beside(sys, Tool::Ctladm, &["isterminate", "-a"]);
                true
            }
            Mood::Ended => {
                self.restart = true;
                let pid = Self::daemon(sys, CTLD_PID);
                if let Some(pid) = pid {
                    sys.kill(pid, SIGTERM);
                }
                // It may wait for the LUN's commands.
                if let Some(place) = self.beside.iter_mut().find(|pid| pid.is_none()) {
                    *place = pid;
                }
                pid.is_some()
            }
            Mood::Killed => {
                (self.restart, self.was_killed) = (true, true);
                self.signal(sys, CTLD_PID, SIGKILL, 5000)
            }
            Mood::Mute => {
                self.is_mute = true;
                self.set_network(sys, false);
                true
            }
            _ => true,
        }
    }

    /// Undoes everything, and waits until all targets answer.
    ///
    /// # Errors
    /// What does not come back.
    pub fn cure(&mut self, sys: &mut FreeBsd) -> Result<(), Line> {
        for disk in Disk::ALL {
            if core::mem::take(&mut self.throttled[disk as usize]) {
                self.let_go(sys, disk);
            }
        }
        self.unmute(sys);
        for lun in Target::ALL.into_iter().filter_map(Target::lun) {
            for place in ["datamove", "done"] {
                if self.delayed {
                    let _ = self.ctladm(sys, &["delay", lun, "-l", place, "-t", "0"]);
                }
            }
        }
        self.delayed = false;
        for (target, serial) in core::mem::take(&mut self.injected).into_iter().flatten() {
            let lun = target.lun().unwrap_or("");
            let _ = self.ctladm(sys, &["inject", lun, "-d", serial.as_str()]);
        }
        for pid in core::mem::take(&mut self.beside).into_iter().flatten() {
            if sys.wait_ms(pid, 30_000 * self.slow).is_none() {
                sys.kill(pid, SIGKILL);
                let ended = sys.wait_ms(pid, TOOL_MS * self.slow).is_some();
                return Err(word(if ended {
                    "ctladm, ctld or iscsictl waits"
                } else {
                    "ctladm, ctld or iscsictl is UNKILLABLE"
                }));
            }
        }
        let removed = core::mem::take(&mut self.removed);
        let mut is_offline = core::mem::take(&mut self.is_offline);
        if removed[Target::Camsim as usize] {
            // CAM looks for LUNs when the port comes.
            is_offline = true;
            self.set_port(sys, "off");
            if !self.create_camsim(sys) {
                return Err(word("the LUN of the camsim port is not made again"));
            }
        }
        if is_offline && !self.set_port(sys, "on") {
            return Err(word("the camsim port does not come back"));
        }
        let restart = core::mem::take(&mut self.restart);
        if core::mem::take(&mut self.was_killed) {
            // A new ctld(8) does not take the port over that it left.
            let mut target = word("cfiscsi_target=");
            let _ = target.write_str(NAME);
            let (target, tag) = (target.as_str(), "cfiscsi_portal_group_tag=300");
            let _ = self.ctladm(sys, &["port", "-r", "-d", "iscsi", "-O", target, "-O", tag]);
        }
        if restart || removed[Target::Iscsi as usize] {
            if !self.signal(sys, CTLD_PID, SIGTERM, 10_000) {
                self.signal(sys, CTLD_PID, SIGKILL, 5000);
            }
            if !self.start_ctld(sys) {
                return Err(word("ctld does not start again"));
            }
            if removed[Target::Iscsi as usize] {
                // The initiator looks for LUNs when it logs in.
                self.run(sys, Tool::Iscsictl, &["-R", "-a"]);
                self.login = true;
            }
        }
        if core::mem::take(&mut self.login) {
            let _ = self.log_in(sys);
        }
        for target in [Target::Iscsi, Target::Camsim] {
            if self.missing[target as usize].is_some() {
                continue;
            }
            // Of a LUN that was away the initiator may look only when it logs in.
            let patience = if restart && target == Target::Iscsi {
                4000
            } else {
                20_000
            };
            let mut answer = self.wait_healthy(sys, target, patience);
            if answer.is_err() && target == Target::Iscsi {
                self.run(sys, Tool::Iscsictl, &["-R", "-a"]);
                sys.sleep_ms(500);
                let _ = self.log_in(sys);
                answer = self.wait_healthy(sys, target, 20_000);
            }
            answer?;
        }
        Ok(())
    }

    /// Takes everything away again.
    pub fn end(&mut self, sys: &mut FreeBsd) {
        if self.missing[Target::Iscsi as usize].is_none() {
            self.run(sys, Tool::Iscsictl, &["-R", "-a"]);
            self.signal(sys, ISCSID_PID, SIGTERM, 5000);
            self.signal(sys, CTLD_PID, SIGTERM, 10_000);
        }
        if self.missing[Target::Camsim as usize].is_none() {
            self.set_port(sys, "off");
            self.ctladm(sys, &["remove", "-b", "block", "-l", "8"]);
        }
    }
}

fn word(what: &str) -> Line {
    let mut line = Line::new();
    let _ = line.write_str(what);
    line
}

/// What the exit status of [`answers`] says.
const WORDS: [&str; 8] = [
    "answers",
    "has no node",
    "does not answer the driver under test",
    "has other data",
    "has no disk of its own driver's",
    "does not answer its own driver",
    "has other data for its own driver",
    "?",
];

/// Whether a target answers with what is there: a number of [`WORDS`].
fn answers(sys: &mut FreeBsd, target: Target) -> i32 {
    let Some(node) = target.node(sys) else {
        return 1;
    };
    let lba = (sys.now() / 1000 % u64::from(NUMBERED / 8)) as u32 * 8;
    let mut command = Command::new(sys, 4096);
    let mut good = false;
    for _ in 0..8 {
        let to = command.data.address();
        node.transfer(&mut command, false, lba, to, 4096);
        let sent = command.send(sys, node.fd);
        good = sent.is_ok() && command.ended().status == sys::CAM_REQ_CMP;
        if good {
            break;
        }
        // It may have a unit attention to tell first.
        sys.sleep_ms(50);
    }
    if !good {
        return 2;
    }
    if trial::differs(&command.data.bytes()[..4096], lba, 0).is_some() {
        return 3;
    }
    let Some(disk) = disk_of(sys, &node) else {
        return 4;
    };
    let Ok(fd) = sys.open(disk.as_str(), sys::O_RDONLY as i32) else {
        return 5;
    };
    let mut memory = Memory::new(sys, 4096);
    if !sys.pread(fd, &mut memory, 4096, lba as usize * 512) {
        return 5;
    }
    if trial::differs(memory.bytes(), lba, 0).is_some() {
        return 6;
    }
    0
}

/// The disk that its own driver has for a node.
fn disk_of(sys: &mut FreeBsd, node: &Node) -> Option<Line> {
    // SAFETY: plain data.
    let mut ccb: sys::ccb = unsafe { core::mem::zeroed() };
    ccb.ccb_h.func_code = sys::XPT_GDEVLIST;
    for _ in 0..8 {
        let told = call(sys, node.fd, sys::QPC_CAMIOCOMMAND, ccb).ok()?;
        // SAFETY: what the opcode says.
        let (name, unit, generation, next) = unsafe {
            let told = told.cgdl;
            (
                told.periph_name,
                told.unit_number,
                told.generation,
                told.index,
            )
        };
        (ccb.cgdl.generation, ccb.cgdl.index) = (generation, next);
        let name = name.map(|c| c as u8);
        let mut path = Line::new();
        if let Some(own) = ["da", "ada", "nda"]
            .into_iter()
            .find(|own| name.starts_with(own.as_bytes()) && name[own.len()] == 0)
        {
            let _ = write!(path, "/dev/{own}{unit}");
            return Some(path);
        }
    }
    None
}
