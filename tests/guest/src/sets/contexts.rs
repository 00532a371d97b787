//! Who may do what: processes of other users, in jails, in capability mode, of 32 bits,
//! and at securelevels. What is allowed is tried as well as what is not.

use super::{Batch, RDWR, Sheet, info};
use crate::freebsd::FreeBsd;
use conform::{
    Line,
    command::Command,
    sys::{Fd, Memory, Sys, call},
};
use core::fmt::Write;
use sys_bindings as sys;

const EPERM: i32 = sys::EPERM as i32;
const EACCES: i32 = sys::EACCES as i32;
/// errno.h: a right that a descriptor has not; what capability mode does not have.
const ENOTCAPABLE: i32 = 93;
const ECAPMODE: i32 = 94;

/// A user and a group that nothing belongs to, and the group of the nodes.
const USER: usize = 1000;
const GROUP: u32 = 1000;
const OPERATOR: u32 = sys::QPC_GID_OPERATOR;

/// What went wrong: what was done, and how that ended.
type Outcome = Result<(), (&'static str, i32)>;

/// The step is as it should be.
fn holds<T: PartialEq>(
    step: &'static str,
    found: Result<T, i32>,
    wanted: Result<T, i32>,
) -> Outcome {
    if found == wanted {
        return Ok(());
    }
    Err((step, found.err().unwrap_or(0)))
}

/// Whether a call is allowed.
fn allowed<T>(step: &'static str, found: Result<T, i32>) -> Outcome {
    holds(step, found.map(|_| ()), Ok(()))
}

fn refused<T>(step: &'static str, found: Result<T, i32>, errno: i32) -> Outcome {
    holds(step, found.map(|_| ()), Err(errno))
}

struct Case {
    name: &'static str,
    run: fn(&mut FreeBsd, &str) -> Outcome,
}

/// The last two change the machine for good.
const CASES: &[Case] = &[
    Case {
        name: "a user of no group may not open a node",
        run: stranger,
    },
    Case {
        name: "a user of the group operator may send commands, and no more",
        run: operator,
    },
    Case {
        name: "root in a jail may send commands, and no more",
        run: jail,
    },
    Case {
        name: "a jail at securelevel 2 may not open a node",
        run: jail_at_securelevel,
    },
    Case {
        name: "a process in capability mode keeps its opens, and opens nothing",
        run: capsicum,
    },
    Case {
        name: "a descriptor takes the requests that it is limited to",
        run: limited,
    },
    Case {
        name: "a 32-bit process has the calls without CCBs",
        run: compat32,
    },
    Case {
        name: "at securelevel 1 commands go on, and memory is safe",
        run: securelevel_1,
    },
    Case {
        name: "at securelevel 2 nothing is opened, and what is open goes on",
        run: securelevel_2,
    },
];

/// Runs each case in a process of its own. The module stays loaded: at a securelevel
/// above 0 nothing is unloaded.
pub fn contexts(sheet: &mut Sheet<'_>) {
    let Some(node) = sheet.sys.wait_disk() else {
        sheet.check("the disk is there", "", false);
        return;
    };
    sheet.sys.set_sysctl("kern.cam.qpass.allow_paddr", 1);
    for case in CASES {
        let Ok(pid) = sheet.sys.fork() else {
            sheet.check("fork for", case.name, false);
            return;
        };
        if pid == 0 {
            let answer = (case.run)(sheet.sys, node);
            if let Err((step, errno)) = answer {
                let mut line = Line::new();
                let _ = write!(line, "guest: {step}: {errno}");
                sheet.sys.print(line.as_str());
            }
            sheet.sys.exit(i32::from(answer.is_err()));
        }
        let ended = sheet.sys.wait_ms(pid, 60_000);
        let word = if ended.is_none() {
            "it does not end"
        } else {
            ""
        };
        sheet.check(case.name, word, ended == Some(0));
        sheet.sys.set_mode(node, 0o600);
    }
}

/// Commands by every call.
fn commands(sys: &mut FreeBsd, fd: Fd) -> Outcome {
    let mut command = Command::new(sys, 4096);
    let good = |step, command: &Command| {
        let status = command.ended().status;
        holds(step, Ok(status), Ok(sys::CAM_REQ_CMP))
    };
    command.rw10(false, 0, 8);
    allowed("CAMIOCOMMAND", command.send(sys, fd))?;
    good("its status", &command)?;
    command.rw10(false, 0, 8);
    allowed("CAMIOQUEUE", command.queue(sys, fd))?;
    let polled = sys.poll(fd, sys::POLLIN as i16, 20_000);
    holds("poll", polled, Ok(sys::POLLIN as i16))?;
    allowed("CAMIOGET", command.get(sys, fd))?;
    good("the status of a queued one", &command)?;
    command.rw10(false, 0, 8);
    let mut batch = Batch::new(sys, 1);
    batch.set(0, command.ccb.address(), 1);
    holds("QPIOC_ENTER", batch.enter(sys, fd, 1, 1), Ok((1, 1, 0, 0)))?;
    allowed("QPIOC_CANCEL", cancel(sys, fd, 0))
}

fn cancel(sys: &mut FreeBsd, fd: Fd, flags: u32) -> Result<(), i32> {
    // SAFETY: integers.
    let mut what: sys::qpass_cancel = unsafe { core::mem::zeroed() };
    what.flags = flags;
    call(sys, fd, sys::QPC_QPIOC_CANCEL, what).map(|_| ())
}

/// What the privileged may do besides.
fn privileges(sys: &mut FreeBsd, fd: Fd) -> Outcome {
    refused(
        "QPASS_CANCEL_DEVICE",
        cancel(sys, fd, sys::QPASS_CANCEL_DEVICE),
        EPERM,
    )?;
    let mut entries = Memory::new(sys, 4096);
    entries.bytes_mut().fill(0);
    // SAFETY: integers.
    let mut list: sys::qpass_list = unsafe { core::mem::zeroed() };
    (list.entries, list.room) = (entries.address() as u64, 1);
    allowed("QPIOC_LIST", call(sys, fd, sys::QPC_QPIOC_LIST, list))?;
    list.flags = sys::QPASS_LIST_DEVICE;
    let told = call(sys, fd, sys::QPC_QPIOC_LIST, list);
    refused("QPASS_LIST_DEVICE", told, EPERM)?;
    physical(sys, fd)
}

/// Data at a physical address. Should it be taken, memory is read, and not written.
fn physical(sys: &mut FreeBsd, fd: Fd) -> Outcome {
    let mut command = Command::new(sys, 4096);
    command.rw10(true, 16384, 8);
    command.hdr().flags |= sys::CAM_DATA_PADDR;
    command.csio().data_ptr = 0x10_0000 as *mut u8;
    refused("CAM_DATA_PADDR, queued", command.queue(sys, fd), EPERM)?;
    refused("CAM_DATA_PADDR", command.send(sys, fd), EPERM)
}

fn open(sys: &mut FreeBsd, node: &str) -> Result<Fd, (&'static str, i32)> {
    sys.open(node, RDWR).map_err(|errno| ("open", errno))
}

/// Sends commands, and may do nothing that is for the privileged.
fn commands_alone(sys: &mut FreeBsd, node: &str) -> Outcome {
    let fd = open(sys, node)?;
    commands(sys, fd)?;
    privileges(sys, fd)?;
    let is_set = sys.set_sysctl("kern.cam.qpass.max_requests", 7);
    holds("a sysctl", Ok(is_set), Ok(false))?;
    let id = sys.kldfind("qpass.ko").unwrap_or(0);
    refused("kldunload", sys.kldunload(id), EPERM)
}

fn stranger(sys: &mut FreeBsd, node: &str) -> Outcome {
    sys.set_mode(node, 0o660);
    sys.set_group(GROUP);
    sys.set_user(USER);
    refused("open", sys.open(node, RDWR), EACCES)?;
    refused("open for reading", sys.open(node, 0), EACCES)
}

fn operator(sys: &mut FreeBsd, node: &str) -> Outcome {
    // As it comes, a node is root's.
    let early = sys.fork().map_err(|errno| ("fork", errno))?;
    if early == 0 {
        sys.set_group(OPERATOR);
        sys.set_user(USER);
        let refused = sys.open(node, RDWR) == Err(EACCES);
        sys.exit(i32::from(!refused));
    }
    holds("a node of mode 0600", Ok(sys.wait(early)), Ok(0))?;
    sys.set_mode(node, 0o660);
    sys.set_group(OPERATOR);
    sys.set_user(USER);
    commands_alone(sys, node)
}

fn jail(sys: &mut FreeBsd, node: &str) -> Outcome {
    allowed("jail_set", sys.enter_jail(0))?;
    // What devfs(5) shows in there is the administrator's to say.
    commands_alone(sys, node)
}

fn jail_at_securelevel(sys: &mut FreeBsd, node: &str) -> Outcome {
    let fd = open(sys, node)?;
    allowed("jail_set", sys.enter_jail(2))?;
    refused("open", sys.open(node, RDWR), EPERM)?;
    commands(sys, fd)
}

fn capsicum(sys: &mut FreeBsd, node: &str) -> Outcome {
    let fd = open(sys, node)?;
    let kq = sys.kqueue().map_err(|errno| ("kqueue", errno))?;
    allowed("cap_enter", sys.enter_capability_mode())?;
    refused("open", sys.open(node, RDWR), ECAPMODE)?;
    commands(sys, fd)?;
    // SAFETY: plain data.
    let mut event: sys::kevent = unsafe { core::mem::zeroed() };
    (event.ident, event.filter, event.flags) = (fd as u64, -1, 1);
    let mut command = Command::new(sys, 4096);
    command.rw10(false, 0, 8);
    allowed("CAMIOQUEUE", command.queue(sys, fd))?;
    let mut events = [event];
    let told = sys.kevent(kq, &[event], &mut events, 20_000);
    holds("kevent", told, Ok(1))?;
    allowed("CAMIOGET", command.get(sys, fd))
}

fn limited(sys: &mut FreeBsd, node: &str) -> Outcome {
    // capability.h: the words' own marks; CAP_EVENT and CAP_IOCTL are of the second.
    const NOTHING: [u64; 2] = [1 << 57, 1 << 58];
    const EVENT: u64 = 0x20;
    const IOCTL: u64 = 0x80;
    let fd = open(sys, node)?;
    let other = open(sys, node)?;
    let requests = [sys::QPC_CAMIOQUEUE, sys::QPC_CAMIOGET];
    let rights = [NOTHING[0], NOTHING[1] | EVENT | IOCTL];
    allowed(
        "cap_ioctls_limit",
        sys.limit_rights(fd, rights, Some(&requests)),
    )?;
    let mut command = Command::new(sys, 4096);
    command.rw10(false, 0, 8);
    allowed("CAMIOQUEUE", command.queue(sys, fd))?;
    let polled = sys.poll(fd, sys::POLLIN as i16, 20_000);
    holds("poll", polled, Ok(sys::POLLIN as i16))?;
    allowed("CAMIOGET", command.get(sys, fd))?;
    refused("CAMIOCOMMAND", command.send(sys, fd), ENOTCAPABLE)?;
    holds("QPIOC_INFO", Ok(info(sys, fd).is_none()), Ok(true))?;
    allowed("cap_rights_limit", sys.limit_rights(other, NOTHING, None))?;
    refused("any request", command.send(sys, other), ENOTCAPABLE)?;
    let told = sys.poll(other, sys::POLLIN as i16, 100);
    // POLLNVAL.
    holds(
        "poll without CAP_EVENT",
        told.map(|events| events & 0x20),
        Ok(0x20),
    )
}

fn compat32(sys: &mut FreeBsd, node: &str) -> Outcome {
    const PROGRAMS: [&str; 2] = ["/sbin/guest32", "/mnt/sbin/guest32"];
    let at = usize::from(!sys.has(PROGRAMS[0]));
    holds("its steps", sys.run(PROGRAMS[at], &[node]), Ok(0))
}

fn securelevel_1(sys: &mut FreeBsd, node: &str) -> Outcome {
    let is_set = sys.set_sysctl("kern.securelevel", 1);
    holds("kern.securelevel", Ok(is_set), Ok(true))?;
    let fd = open(sys, node)?;
    commands(sys, fd)?;
    physical(sys, fd)?;
    let is_set = sys.set_sysctl("kern.cam.qpass.allow_paddr", 0);
    holds("allow_paddr", Ok(is_set), Ok(false))?;
    let is_set = sys.set_sysctl("kern.cam.qpass.max_requests", 7);
    holds("another sysctl", Ok(is_set), Ok(true))?;
    let id = sys.kldfind("qpass.ko").unwrap_or(0);
    refused("kldunload", sys.kldunload(id), EPERM)
}

fn securelevel_2(sys: &mut FreeBsd, node: &str) -> Outcome {
    let fd = open(sys, node)?;
    let is_set = sys.set_sysctl("kern.securelevel", 2);
    holds("kern.securelevel", Ok(is_set), Ok(true))?;
    refused("open", sys.open(node, RDWR), EPERM)?;
    commands(sys, fd)?;
    physical(sys, fd)
}
