//! devfs(5): device nodes, opens of them, and cdevpriv(9).

use crate::{
    count, fault, kqueue,
    lock::may_sleep,
    sys, task,
    thread::{broken, current},
    user,
};
use std::{
    ffi::{CStr, c_char, c_int, c_void},
    sync::{Arc, Condvar, Mutex, Weak},
    time::{Duration, Instant},
};

type PrivDtor = unsafe extern "C" fn(*mut c_void);

/// A device node, or another name of one.
pub struct Dev {
    name: String,
    cdev: *mut sys::cdev,
    /// For an alias: the node itself.
    parent: Option<Arc<Dev>>,
    devsw: *mut sys::cdevsw,
    state: Mutex<DevState>,
    idle: Condvar,
}

// SAFETY: the raw parts belong to the module, which locks them itself.
unsafe impl Send for Dev {}
// SAFETY: as above.
unsafe impl Sync for Dev {}

#[derive(Default)]
struct DevState {
    gone: bool,
    /// Threads in a call of the device (`si_threadcount`).
    threads: usize,
    files: Vec<Weak<File>>,
}

static DEVS: Mutex<Vec<Arc<Dev>>> = Mutex::new(Vec::new());

/// An open of a node.
pub struct File {
    dev: Arc<Dev>,
    private: Mutex<Option<(usize, PrivDtor)>>,
}

impl File {
    fn destroy_private(&self) {
        let private = self.private.lock().unwrap().take();
        if let Some((data, dtor)) = private {
            may_sleep("a cdevpriv destructor");
            // SAFETY: the module's destructor with its own data, once.
            unsafe { dtor(data as *mut c_void) };
        }
    }
}

impl Drop for File {
    fn drop(&mut self) {
        self.destroy_private();
    }
}

/// A thread in a call of a device.
struct Call<'a> {
    dev: &'a Dev,
    before: Option<Arc<File>>,
}

impl<'a> Call<'a> {
    fn enter(dev: &'a Dev, file: Option<Arc<File>>) -> Option<Self> {
        let mut state = dev.state.lock().unwrap();
        if state.gone {
            return None;
        }
        state.threads += 1;
        let before = current().fpop.replace(file);
        Some(Call { dev, before })
    }
}

impl Drop for Call<'_> {
    fn drop(&mut self) {
        may_sleep("return from a device call");
        current().fpop.replace(self.before.take());
        self.dev.state.lock().unwrap().threads -= 1;
        self.dev.idle.notify_all();
    }
}

/// Whether `/dev/NAME` is there.
pub fn exists(name: &str) -> bool {
    find(name).is_some()
}

/// The names of the nodes.
pub fn names() -> Vec<String> {
    DEVS.lock()
        .unwrap()
        .iter()
        .map(|d| d.name.clone())
        .collect()
}

fn find(name: &str) -> Option<Arc<Dev>> {
    DEVS.lock()
        .unwrap()
        .iter()
        .find(|d| d.name == name)
        .cloned()
}

/// Waits until `condition` holds.
pub fn wait_until(what: &str, condition: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while !condition() {
        if Instant::now() > deadline {
            broken(&format!("waited 30 s in vain until {what}"));
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// open(2) of a node; flags in O_ form.
pub fn open(path: &str, flags: i32) -> Result<Arc<File>, i32> {
    let name = path.strip_prefix("/dev/").unwrap_or(path);
    let dev = find(name).ok_or(sys::ENOENT as i32)?;
    let dev = dev.parent.clone().unwrap_or(dev);
    let file = Arc::new(File {
        dev: dev.clone(),
        private: Mutex::new(None),
    });
    // O_RDONLY, O_WRONLY, O_RDWR are 0, 1, 2; FREAD and FWRITE bits 1 and 2.
    let mode = (flags & 3) + 1;
    let call = Call::enter(&dev, Some(file.clone())).ok_or(sys::ENXIO as i32)?;
    dev.state.lock().unwrap().files.push(Arc::downgrade(&file));
    // SAFETY: the module's own switch and node.
    let error = unsafe {
        let open = (*dev.devsw).d_open.expect("d_open");
        open(dev.cdev, (flags & !3) | mode, 0o020000, current().as_ptr())
    };
    if error != 0 {
        file.destroy_private();
        drop(call);
        return Err(error);
    }
    Ok(file)
}

impl File {
    fn call<R>(self: &Arc<Self>, f: impl FnOnce(&sys::cdevsw, *mut sys::cdev) -> R) -> Option<R> {
        let _call = Call::enter(&self.dev, Some(self.clone()))?;
        // SAFETY: the switch outlives its nodes, and the node is in a call.
        let devsw = unsafe { &*self.dev.devsw };
        Some(f(devsw, self.dev.cdev))
    }

    /// ioctl(2).
    ///
    /// # Errors
    /// The errno.
    pub fn ioctl(self: &Arc<Self>, request: u64, arg: usize) -> Result<(), i32> {
        let copies_in = request & u64::from(sys::IOC_IN) != 0;
        let copies_out = request & u64::from(sys::IOC_OUT) != 0;
        let len = (request >> 16) as usize & 0x1fff;
        // What the module may take for aligned memory of malloc(9).
        let mut buffer = vec![0u64; len.div_ceil(8).max(1)];
        // SAFETY: plain words as bytes.
        let bytes =
            unsafe { core::slice::from_raw_parts_mut(buffer.as_mut_ptr().cast::<u8>(), len) };
        if copies_in {
            user::read(arg, bytes)?;
        }
        if !copies_in && !copies_out {
            buffer[0] = arg as u64;
        }
        let data = buffer.as_mut_ptr().cast::<c_char>();
        let error = self
            .call(|devsw, cdev| {
                let ioctl = devsw.d_ioctl.expect("d_ioctl");
                // SAFETY: as the kernel calls it.
                count::stepping(|| unsafe { ioctl(cdev, request, data, 3, current().as_ptr()) })
            })
            .unwrap_or(sys::ENXIO as i32);
        match error {
            0 if copies_out => {
                // SAFETY: as above; the module may have changed it.
                let bytes = unsafe { core::slice::from_raw_parts(data.cast::<u8>(), len) };
                user::write(bytes, arg)
            }
            0 => Ok(()),
            error => Err(error),
        }
    }

    /// The device's part of poll(2).
    pub(crate) fn poll_once(self: &Arc<Self>, events: i16) -> i16 {
        self.call(|devsw, cdev| {
            let poll = devsw.d_poll.expect("d_poll");
            // SAFETY: as the kernel calls it.
            unsafe { poll(cdev, c_int::from(events), current().as_ptr()) as i16 }
        })
        // What the file system's own poll says of a dead node.
        .unwrap_or((sys::POLLHUP as i16) | (events & (sys::POLLIN | sys::POLLRDNORM) as i16))
    }

    /// The device's part of EV_ADD.
    pub(crate) fn kqfilter(self: &Arc<Self>, kn: *mut sys::knote) -> i32 {
        self.call(|devsw, cdev| {
            let kqfilter = devsw.d_kqfilter.expect("d_kqfilter");
            // SAFETY: as the kernel calls it.
            unsafe { kqfilter(cdev, kn) }
        })
        .unwrap_or(sys::ENXIO as i32)
    }

    /// poll(2).
    pub fn poll(self: &Arc<Self>, events: i16, timeout: Option<Duration>) -> i16 {
        kqueue::poll(|| self.poll_once(events), timeout)
    }
}

/// make_dev_s(9), its name formatted.
#[unsafe(no_mangle)]
extern "C" fn uk_make_dev(args: *mut c_void, out: *mut *mut c_void, name: *const c_char) -> c_int {
    let args = args.cast::<sys::make_dev_args>();
    // SAFETY: varargs.c passes the module's arguments and its own buffer.
    let (args, name) = unsafe { (&*args, CStr::from_ptr(name).to_string_lossy().into_owned()) };
    if args.mda_size != size_of::<sys::make_dev_args>() {
        broken("make_dev_s: mda_size");
    }
    if args.mda_flags & sys::MAKEDEV_NOWAIT as i32 == 0 {
        may_sleep("make_dev_s");
    }
    // SAFETY: the module's switch.
    if unsafe { (*args.mda_devsw).d_version } != sys::QPC_D_VERSION as i32 {
        broken("make_dev_s: d_version");
    }
    if fault::MAKE_DEV.fails() {
        return sys::ENOMEM as c_int;
    }
    if exists(&name) {
        return sys::EEXIST as c_int;
    }
    // SAFETY: plain data.
    let mut cdev: Box<sys::cdev> = Box::new(unsafe { core::mem::zeroed() });
    cdev.si_drv1 = args.mda_si_drv1;
    cdev.si_drv2 = args.mda_si_drv2;
    cdev.si_devsw = args.mda_devsw;
    cdev.si_uid = args.mda_uid;
    cdev.si_gid = args.mda_gid;
    cdev.si_mode = args.mda_mode as sys::mode_t;
    let cdev = Box::into_raw(cdev);
    // SAFETY: the caller's place for the result.
    unsafe { *out = cdev.cast() };
    DEVS.lock().unwrap().push(Arc::new(Dev {
        name,
        cdev,
        parent: None,
        devsw: args.mda_devsw,
        state: Mutex::default(),
        idle: Condvar::new(),
    }));
    0
}

/// Owner, group and mode of a node.
pub fn ownership(name: &str) -> Option<(u32, u32, u32)> {
    find(name).map(|dev| {
        // SAFETY: a node that is there.
        unsafe {
            let cdev = &*dev.cdev;
            (cdev.si_uid, cdev.si_gid, u32::from(cdev.si_mode))
        }
    })
}

pub(crate) unsafe extern "C" fn make_dev_physpath_alias(
    _flags: c_int,
    out: *mut *mut sys::cdev,
    of: *mut sys::cdev,
    old: *mut sys::cdev,
    path: *const c_char,
) -> c_int {
    may_sleep("make_dev_physpath_alias");
    // SAFETY: the module's own path, and its place for the result.
    let path = unsafe {
        *out = core::ptr::null_mut();
        CStr::from_ptr(path).to_string_lossy().into_owned()
    };
    let mut devs = DEVS.lock().unwrap();
    let Some(parent) = devs.iter().find(|d| d.cdev == of).cloned() else {
        drop(devs);
        broken("make_dev_physpath_alias of a node that is not there");
    };
    if !old.is_null() && !devs.iter().any(|d| d.cdev == old) {
        drop(devs);
        broken("make_dev_physpath_alias: the old alias is not there");
    }
    let name = format!("{path}/{}", parent.name);
    if let Some(same) = devs.iter().find(|d| d.cdev == old && d.name == name) {
        // SAFETY: the caller's place for the result.
        unsafe { *out = same.cdev };
        return 0;
    }
    devs.retain(|d| d.cdev != old || old.is_null());
    // SAFETY: plain data; an alias is a cdev of its own.
    let cdev = Box::into_raw(Box::new(unsafe { core::mem::zeroed::<sys::cdev>() }));
    // SAFETY: the caller's place for the result.
    unsafe { *out = cdev };
    devs.push(Arc::new(Dev {
        name,
        cdev,
        devsw: parent.devsw,
        parent: Some(parent),
        state: Mutex::default(),
        idle: Condvar::new(),
    }));
    0
}

pub(crate) unsafe extern "C" fn destroy_dev_sched_cb(
    cdev: *mut sys::cdev,
    cb: Option<PrivDtor>,
    arg: *mut c_void,
) -> c_int {
    let dev = DEVS
        .lock()
        .unwrap()
        .iter()
        .find(|d| d.cdev == cdev)
        .cloned();
    let Some(dev) = dev else {
        broken("destroy_dev_sched_cb: no such node, or destroyed before");
    };
    let arg = arg as usize;
    task::enqueue(move || {
        destroy(&dev);
        if let Some(cb) = cb {
            // SAFETY: the module's own callback and argument.
            unsafe { cb(arg as *mut c_void) };
        }
    });
    1
}

fn destroy(dev: &Arc<Dev>) {
    let is_child = |d: &Dev| d.parent.as_ref().is_some_and(|p| Arc::ptr_eq(p, dev));
    DEVS.lock()
        .unwrap()
        .retain(|d| !Arc::ptr_eq(d, dev) && !is_child(d));
    let mut state = dev.state.lock().unwrap();
    state.gone = true;
    while state.threads != 0 {
        state = dev.idle.wait(state).unwrap();
    }
    let files = std::mem::take(&mut state.files);
    drop(state);
    for file in files.iter().filter_map(Weak::upgrade) {
        file.destroy_private();
    }
    // SAFETY: no call is in it and none can begin; dev.cdev is not used again.
    drop(unsafe { Box::from_raw(dev.cdev) });
}

pub(crate) unsafe extern "C" fn destroy_dev_drain(devsw: *mut sys::cdevsw) {
    may_sleep("destroy_dev_drain");
    wait_until("no node uses the switch", || {
        !DEVS.lock().unwrap().iter().any(|d| d.devsw == devsw)
    });
}

pub(crate) unsafe extern "C" fn devfs_set_cdevpriv(data: *mut c_void, dtor: PrivDtor) -> c_int {
    may_sleep("devfs_set_cdevpriv");
    let fpop = current().fpop.borrow();
    let Some(file) = &*fpop else {
        return sys::ENOENT as c_int;
    };
    let mut private = file.private.lock().unwrap();
    if private.is_some() {
        return sys::EBUSY as c_int;
    }
    *private = Some((data as usize, dtor));
    0
}

pub(crate) unsafe extern "C" fn devfs_get_cdevpriv(data: *mut *mut c_void) -> c_int {
    let fpop = current().fpop.borrow();
    let Some(file) = &*fpop else {
        return sys::EBADF as c_int;
    };
    match *file.private.lock().unwrap() {
        Some((private, _)) => {
            // SAFETY: the caller's place for the result.
            unsafe { *data = private as *mut c_void };
            0
        }
        None => sys::ENOENT as c_int,
    }
}
