//! make_dev(9), cdevpriv(9) and the cdevsw: a device node whose every open has
//! a value of its own.

use super::{
    alloc::KBox,
    ccb::Ccb,
    errno::{EINVAL, ENOTTY, Result, check, to_c},
    knlist::Knote,
    periph::PeriphRef,
    task::OnTaskqueueThread,
    user::{Plain, UserPtr},
};
use core::{
    cell::UnsafeCell,
    ffi::{CStr, c_char, c_int, c_ulong, c_void},
    marker::PhantomData,
    ptr::NonNull,
};
use sys_bindings as sys;

/// The thread that called the device.
#[derive(Clone, Copy)]
pub struct Thread<'a>(NonNull<sys::thread>, PhantomData<&'a ()>);

impl Thread<'_> {
    /// Whether the process runs 32-bit code (COMPAT_FREEBSD32).
    pub fn is_32bit(self) -> bool {
        // SAFETY: a running thread has a process, and that a sysentvec.
        unsafe { (*(*(*self.0.as_ptr()).td_proc).p_sysent).sv_flags & sys::SV_ILP32 != 0 }
    }

    /// The number of its process.
    pub fn pid(self) -> i32 {
        // SAFETY: a running thread has a process.
        unsafe { (*(*self.0.as_ptr()).td_proc).p_pid }
    }

    /// priv_check(9).
    ///
    /// # Errors
    /// `EPERM`: the thread has not that privilege (`PRIV_…`).
    pub fn priv_check(self, privilege: u32) -> Result {
        // SAFETY: a running thread, the caller's own.
        check(unsafe { sys::priv_check(self.0.as_ptr(), privilege as c_int) })
    }

    /// securelevel_gt(9).
    ///
    /// # Errors
    /// `EPERM`: the securelevel is above `level`.
    pub fn securelevel_gt(self, level: c_int) -> Result {
        // SAFETY: a running thread has credentials.
        check(unsafe { sys::securelevel_gt((*self.0.as_ptr()).td_ucred, level) })
    }

    pub(super) fn as_ptr(self) -> *mut sys::thread {
        self.0.as_ptr()
    }
}

/// An ioctl(2) on the device: a number, and what the kernel copied in for it.
pub struct Ioctl<'a> {
    cmd: c_ulong,
    data: *mut c_void,
    marker: PhantomData<&'a mut ()>,
}

impl Ioctl<'_> {
    /// The request number.
    pub fn cmd(&self) -> c_ulong {
        self.cmd
    }

    /// The CCB of an `_IOWR(…, union ccb)`: the kernel copies it in before and,
    /// on success, out after.
    pub fn ccb(&mut self) -> Option<&mut Ccb> {
        // The length stands in the request number (ioccom.h), and the kernel
        // allocates that much.
        let len = (self.cmd >> 16) & ((1 << 13) - 1);
        let inout = (sys::IOC_IN | sys::IOC_OUT) as c_ulong;
        let whole = len == size_of::<Ccb>() as c_ulong && self.cmd & inout == inout;
        // SAFETY: a buffer of that size, aligned by malloc(9), ours for the
        // call, all initialised by copyin(9).
        whole.then(|| unsafe { &mut *self.data.cast::<Ccb>() })
    }

    /// The struct of a request of this driver's own.
    pub fn own<T: Plain>(&mut self) -> Option<&mut T> {
        const { assert!(align_of::<T>() <= 8) };
        let len = (self.cmd >> 16) & ((1 << 13) - 1);
        let has_data = self.cmd & (sys::IOC_IN | sys::IOC_OUT) as c_ulong != 0;
        let whole = len == size_of::<T>() as c_ulong && has_data;
        // SAFETY: a buffer of that size, aligned by malloc(9) or on the stack
        // as a long is, ours for the call; all initialised by copyin(9), or
        // zeroed where nothing comes in (sys_ioctl).
        whole.then(|| unsafe { &mut *self.data.cast::<T>() })
    }

    /// The request's buffer, for a kernel function that knows the request.
    pub(super) fn data(&mut self) -> *mut c_char {
        self.data.cast()
    }

    /// The argument of an `_IO()`: ioctl(2)'s third argument itself.
    pub fn pointer(&self) -> Option<UserPtr> {
        let void = self.cmd & (sys::IOC_IN | sys::IOC_OUT) as c_ulong == 0;
        // SAFETY: for such a request the kernel points at the argument.
        void.then(|| UserPtr::new(unsafe { *self.data.cast::<usize>() }))
    }
}

/// A kind of device node.
pub trait Device: 'static {
    /// The cdevsw's name.
    const NAME: &'static CStr;
    /// What an open holds. It is dropped on the last close, or when the device
    /// has gone and no call is left in it; dropping may sleep.
    type Open: Send + Sync + 'static;

    /// open(2), with the flags in `FREAD`, `FWRITE` form.
    ///
    /// # Errors
    /// What open(2) returns.
    fn open(periph: &PeriphRef, flags: c_int, thread: Thread<'_>) -> Result<Self::Open>;
    /// ioctl(2).
    ///
    /// # Errors
    /// What ioctl(2) returns.
    fn ioctl(open: &Self::Open, call: Ioctl<'_>, thread: Thread<'_>) -> Result;
    /// poll(2): which of `events` hold now; records the thread if none does.
    fn poll(open: &Self::Open, events: c_int, thread: Thread<'_>) -> c_int;
    /// kevent(2): takes the knote.
    ///
    /// # Errors
    /// `EINVAL`: a filter that the device does not have.
    fn kqfilter(open: &Self::Open, knote: Knote<'_>) -> Result;
}

/// The `struct cdevsw` of a kind of device.
pub struct DevSw(UnsafeCell<sys::cdevsw>);

// SAFETY: devfs(5) changes it under its own lock.
unsafe impl Sync for DevSw {}

impl DevSw {
    /// The switch of `D`.
    pub const fn new<D: Device>() -> Self {
        // SAFETY: plain data; what is left out is zero in C as well.
        let mut sw: sys::cdevsw = unsafe { core::mem::zeroed() };
        sw.d_version = sys::QPC_D_VERSION as c_int;
        sw.d_name = D::NAME.as_ptr();
        sw.d_open = Some(open_entry::<D>);
        sw.d_ioctl = Some(ioctl_entry::<D>);
        sw.d_poll = Some(poll_entry::<D>);
        sw.d_kqfilter = Some(kqfilter_entry::<D>);
        DevSw(UnsafeCell::new(sw))
    }

    /// destroy_dev_drain(9): waits until no node uses the switch. Sleeps.
    pub fn drain(&'static self) {
        // SAFETY: static.
        unsafe { sys::destroy_dev_drain(self.0.get()) };
    }
}

/// A device node, with the lease on the periph that its calls rely on.
pub struct Node {
    cdev: NonNull<sys::cdev>,
    /// Its other name, by physical path; it goes with the node.
    alias: *mut sys::cdev,
}

/// What [`Aliasing::make`] works on while nobody holds the node.
#[derive(Clone, Copy)]
pub struct Aliasing {
    cdev: NonNull<sys::cdev>,
    alias: *mut sys::cdev,
}

// SAFETY: devfs(5) locks its nodes itself.
unsafe impl Send for Node {}

impl Node {
    /// make_dev_s(9): `/dev/NAMEn`, root:operator 0600. Sleeps.
    ///
    /// # Errors
    /// Those of make_dev_s(9).
    pub fn make(devsw: &'static DevSw, name: &'static CStr, periph: PeriphRef) -> Result<Node> {
        // SAFETY: plain data; make_dev_args_init(9) is this and the size.
        let mut args: sys::make_dev_args = unsafe { core::mem::zeroed() };
        args.mda_size = size_of::<sys::make_dev_args>();
        args.mda_devsw = devsw.0.get();
        args.mda_uid = sys::UID_ROOT as sys::uid_t;
        args.mda_gid = sys::QPC_GID_OPERATOR as sys::gid_t;
        args.mda_mode = 0o600;
        args.mda_unit = periph.unit_number() as c_int;
        args.mda_flags = (sys::MAKEDEV_WAITOK | sys::MAKEDEV_CHECKNAME) as c_int;
        let unit = periph.unit_number();
        let periph = periph.into_raw();
        args.mda_si_drv1 = periph;
        let mut dev = core::ptr::null_mut();
        // SAFETY: the arguments live for the call; the format takes a string
        // and a number.
        let error = check(unsafe {
            sys::make_dev_s(&mut args, &mut dev, c"%s%u".as_ptr(), name.as_ptr(), unit)
        });
        match (error, NonNull::new(dev)) {
            (Ok(()), Some(cdev)) => Ok(Node {
                cdev,
                alias: core::ptr::null_mut(),
            }),
            (error, _) => {
                // SAFETY: no node keeps the lease.
                drop(unsafe { PeriphRef::from_raw(periph) });
                Err(error.err().unwrap_or(EINVAL))
            }
        }
    }

    /// A lease on its periph.
    pub fn periph(&self) -> PeriphRef {
        // SAFETY: the node, which is not destroyed, keeps the lease of make().
        let lease = unsafe { PeriphRef::peek((*self.cdev.as_ptr()).si_drv1) };
        PeriphRef::clone(&lease)
    }

    /// What [`Aliasing::make`] needs.
    pub fn alias(&self) -> Aliasing {
        Aliasing {
            cdev: self.cdev,
            alias: self.alias,
        }
    }

    /// Keeps what [`Aliasing::make`] has made.
    pub fn set_alias(&mut self, made: Aliasing) {
        self.alias = made.alias;
    }

    /// destroy_dev_sched_cb(9): the name goes now; opens are torn down on
    /// `taskqueue_thread` when no call is left in them; then the lease on the
    /// periph goes. Does not sleep.
    pub fn destroy(self) {
        // SAFETY: the node is ours, once; si_drv1 is read before devfs(5)
        // clears it.
        unsafe {
            let periph = (*self.cdev.as_ptr()).si_drv1;
            sys::destroy_dev_sched_cb(self.cdev.as_ptr(), Some(destroyed), periph);
        }
    }
}

impl Aliasing {
    /// make_dev_physpath_alias(9): `/dev/PATH/NAMEn`, in place of the alias
    /// that was there. Sleeps. A path that makes no name leaves none.
    pub fn make(mut self, path: &CStr, _here: &OnTaskqueueThread) -> Self {
        let mut made = core::ptr::null_mut();
        // SAFETY: nodes are destroyed on taskqueue_thread, and this is it: the
        // node, which was there when this was taken of it, is there still. The
        // old alias is its own.
        unsafe {
            sys::make_dev_physpath_alias(
                (sys::MAKEDEV_WAITOK | sys::MAKEDEV_CHECKNAME) as c_int,
                &mut made,
                self.cdev.as_ptr(),
                self.alias,
                path.as_ptr(),
            );
        }
        self.alias = made;
        self
    }
}

unsafe extern "C" fn destroyed(periph: *mut c_void) {
    // SAFETY: the lease that make() gave to the node.
    drop(unsafe { PeriphRef::from_raw(periph) });
}

unsafe extern "C" fn open_entry<D: Device>(
    dev: *mut sys::cdev,
    flags: c_int,
    _fmt: c_int,
    td: *mut sys::thread,
) -> c_int {
    // SAFETY: devfs(5) keeps the node, and the node its lease, for the call.
    let (periph, thread) = unsafe {
        (
            PeriphRef::peek((*dev).si_drv1),
            Thread(NonNull::new_unchecked(td), PhantomData),
        )
    };
    let open = match D::open(&periph, flags, thread) {
        Ok(open) => KBox::new(open).into_raw(),
        Err(errno) => return errno.get(),
    };
    // SAFETY: in open(2) a file is being opened; the destructor matches.
    let error = unsafe { sys::devfs_set_cdevpriv(open, Some(close_entry::<D>)) };
    if error != 0 {
        // SAFETY: devfs(5) did not take it.
        drop(unsafe { KBox::<D::Open>::from_raw(open) });
    }
    error
}

unsafe extern "C" fn close_entry<D: Device>(open: *mut c_void) {
    // SAFETY: the value of open_entry(), which devfs(5) gives back once.
    drop(unsafe { KBox::<D::Open>::from_raw(open) });
}

/// The open that the current call is on.
///
/// # Safety
/// Called in a cdevsw routine of a `D`; the reference ends with it.
unsafe fn current<'a, D: Device>() -> Result<&'a D::Open> {
    let mut open = core::ptr::null_mut();
    // SAFETY: devfs(5) set the current file; it destroys the value only when
    // no call is left.
    unsafe {
        check(sys::devfs_get_cdevpriv(&mut open))?;
        Ok(&*open.cast::<D::Open>())
    }
}

/// A program that was built for an older CAM has other numbers and layouts,
/// which cam_compat translates, calling back with today's.
unsafe extern "C" fn ioctl_entry<D: Device>(
    dev: *mut sys::cdev,
    cmd: c_ulong,
    data: *mut c_char,
    fflag: c_int,
    td: *mut sys::thread,
) -> c_int {
    // SAFETY: the arguments of this call, handed on.
    unsafe {
        let error = current_ioctl_entry::<D>(dev, cmd, data, fflag, td);
        if error != ENOTTY.get() {
            return error;
        }
        sys::cam_compat_ioctl(dev, cmd, data, fflag, td, Some(current_ioctl_entry::<D>))
    }
}

unsafe extern "C" fn current_ioctl_entry<D: Device>(
    _dev: *mut sys::cdev,
    cmd: c_ulong,
    data: *mut c_char,
    _fflag: c_int,
    td: *mut sys::thread,
) -> c_int {
    let call = Ioctl {
        cmd,
        data: data.cast(),
        marker: PhantomData,
    };
    // SAFETY: a cdevsw routine; td is the caller.
    let (open, thread) = unsafe {
        (
            current::<D>(),
            Thread(NonNull::new_unchecked(td), PhantomData),
        )
    };
    to_c(open.and_then(|open| D::ioctl(open, call, thread)))
}

unsafe extern "C" fn poll_entry<D: Device>(
    _dev: *mut sys::cdev,
    events: c_int,
    td: *mut sys::thread,
) -> c_int {
    // SAFETY: a cdevsw routine; td is the caller.
    let (open, thread) = unsafe {
        (
            current::<D>(),
            Thread(NonNull::new_unchecked(td), PhantomData),
        )
    };
    open.map_or(sys::POLLHUP as c_int, |open| D::poll(open, events, thread))
}

unsafe extern "C" fn kqfilter_entry<D: Device>(_dev: *mut sys::cdev, kn: *mut sys::knote) -> c_int {
    // SAFETY: a cdevsw routine; kn is its argument.
    let (open, knote) = unsafe { (current::<D>(), Knote::from_raw(kn)) };
    to_c(open.and_then(|open| D::kqfilter(open, knote)))
}
