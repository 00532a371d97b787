//! A unit: the periph that the driver has on one device, from AC_FOUND_DEVICE
//! to its last reference.

use crate::{
    buffer::{MAX_CHUNK, ZONES},
    ioctl::{Longest, Operation, Route},
    module,
    node::Qpass,
    nvme,
    queue::{Open, Queue},
    request::{Item, Request},
    room::Room,
    stats::Outcome,
};
use core::{
    ffi::{CStr, c_int, c_void},
    sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering},
};
use kpi::{
    alloc::{KBox, KVec},
    ccb::{self, Ccb, DoneFn, OwnCcb, Recovery, StartCcb},
    cdev::{DevSw, Node, Thread},
    devstat::{DevStat, Started},
    driver::{self, Driver, Routines},
    errno::{EBUSY, EINVAL, ENXIO, Result},
    fields::Field,
    fifo::Fifo,
    list::List,
    periph::{DeviceCell, Held, PHYSPATH, Periph, PeriphRef},
    print,
    shared::Shared,
    sysctl::{Number, Tree},
    task::{OnTaskqueueThread, run_later},
    time::uptime,
    zone::ZoneBox,
};
use sys_bindings as sys;

/// What a sent CCB comes back to.
pub const DONE: DoneFn = done_entry;

/// The driver's name, and its nodes'.
pub const NAME: &CStr = c"qpass";
/// The same, where it stands in for pass(4).
pub const REPLACED: &CStr = c"pass";

/// CAM's record of the driver.
pub static DRIVER: Driver = Driver::new(NAME, init_entry, deinit_entry);
/// devfs(5)'s record of the driver.
pub static DEVSW: DevSw = DevSw::new::<Qpass>();

/// Commands after which a device is asked anew how many it takes at a time: CAM
/// may have changed its mind, by tags or a full queue.
const OPENINGS_HOLD: u32 = 64;
/// The same, where it has as many as it took.
const OPENINGS_ASK: u32 = 8;
/// Nanoseconds that a device has between two probes, or two resets, that programs ask
/// for.
const PEACE: u64 = 1_000_000_000;

static ROUTINES: Routines = Routines {
    ctor: ctor_entry,
    oninvalidate: oninvalidate_entry,
    start: start_entry,
    async_event: async_entry,
};

/// What the driver keeps of a device.
pub struct Unit {
    pub(crate) maxio: u32,
    pub(crate) unmapped: bool,
    /// Bytes of the longest CDB that the SIM has room for.
    pub(crate) longest_cdb: u8,
    /// uptime(): until then the device is not reset anew.
    reset_until: AtomicU64,
    /// On a bus of ATA's: bytes of the longest CDB that CAM lets through.
    longest_packet: Option<AtomicU8>,
    /// The SIM answers no XPT_ABORT, and keeps none.
    pub(crate) forgets_aborts: bool,
    /// Abort CCBs that the SIM has not answered.
    pub(crate) kept: Shared<AtomicU32>,
    /// Of an NVMe device, its namespace.
    namespace: Option<Shared<Namespace>>,
    pub(crate) devstat: DevStat,
    pub(crate) room: Shared<Room>,
    _sysctls: Tree<Room>,
    pub(crate) state: DeviceCell<State>,
}

/// What the device lock guards.
pub(crate) struct State {
    /// Requests that wait for the device to have openings, of all opens.
    pub(crate) queued: Fifo<ZoneBox<Request>>,
    /// Of those that were sent, how many the device has.
    sent: u32,
    /// How many it takes at a time, as it said last, and how many were sent
    /// since; and the CCB by which it is asked.
    openings: u32,
    since_asked: u32,
    question: Option<KBox<Ccb>>,
    node: Option<Node>,
    pub(crate) gone: bool,
    /// uptime(): until then the device is not probed anew.
    probed_until: u64,
    pub(crate) opens: List<Queue>,
    last_open: u64,
}

/// A namespace, and how it was formatted when it was asked last.
pub struct Namespace {
    id: u64,
    /// [`nvme::Format`] in a word; 0 where CAM must be asked, which has read it when the
    /// namespace was probed, as the disk's own driver has it from there; and
    /// [`CHANGED`](Self::CHANGED) where the controller must be.
    format: AtomicU64,
    /// Commands outstanding that rely on the format, and above [`CHANGE`](Self::CHANGE)
    /// those that may change it: never both.
    uses: AtomicU64,
}

/// A command that is outstanding and relies on the format of a namespace, or may
/// change it.
pub struct FormatUse {
    namespace: Shared<Namespace>,
    is_change: bool,
}

impl FormatUse {
    /// # Errors
    /// `EBUSY`: one of the other kind is outstanding.
    fn begin(namespace: &Shared<Namespace>, is_change: bool) -> Result<Self> {
        let (others, one) = if is_change {
            (Namespace::CHANGE - 1, Namespace::CHANGE)
        } else {
            (!(Namespace::CHANGE - 1), 1)
        };
        let begun = namespace
            .uses
            .try_update(Ordering::SeqCst, Ordering::SeqCst, |uses| {
                (uses & others == 0).then_some(uses + one)
            });
        begun.map_err(|_| EBUSY)?;
        Ok(FormatUse {
            namespace: namespace.clone(),
            is_change,
        })
    }
}

impl Drop for FormatUse {
    fn drop(&mut self) {
        let one = if self.is_change {
            self.namespace.forget();
            Namespace::CHANGE
        } else {
            1
        };
        self.namespace.uses.fetch_sub(one, Ordering::SeqCst);
    }
}

impl Namespace {
    const CHANGE: u64 = 1 << 32;
    const CHANGED: u64 = 1 << 63;
    const EXTENDED: u64 = 1 << 48;
    const PROTECTION: u64 = 1 << 49;

    fn new(id: u64) -> Self {
        Namespace {
            id,
            format: AtomicU64::new(0),
            uses: AtomicU64::new(0),
        }
    }

    fn format(&self) -> Option<nvme::Format> {
        let word = self.format.load(Ordering::Relaxed);
        (word != 0 && word != Self::CHANGED).then_some(nvme::Format {
            block: word as u32,
            metadata: (word >> 32) as u16,
            is_extended: word & Self::EXTENDED != 0,
            is_protection: word & Self::PROTECTION != 0,
        })
    }

    /// It may be formatted in another way from now on.
    fn forget(&self) {
        self.format.store(Self::CHANGED, Ordering::Relaxed);
    }

    /// CAM has asked it how it is formatted.
    fn relearn(&self) {
        self.format.store(0, Ordering::Relaxed);
    }

    fn learn(&self, format: nvme::Format) {
        let flag = |is_set: bool, flag: u64| if is_set { flag } else { 0 };
        let word = u64::from(format.block)
            | u64::from(format.metadata) << 32
            | flag(format.is_extended, Self::EXTENDED)
            | flag(format.is_protection, Self::PROTECTION);
        self.format.store(word, Ordering::Relaxed);
    }
}

impl Unit {
    /// Whether an NVMe command may be carried out. Sleeps.
    ///
    /// # Errors
    /// `EINVAL`: see [`nvme::Entry::check`]; `EPERM`: see
    /// [`nvme::Entry::is_privileged`] and [`Request::check_privilege`]; `EBUSY`: it
    /// moves blocks while their format may change, or the other way round.
    pub fn check_nvme(
        &self,
        periph: &Periph,
        ccb: &Ccb,
        operation: &Operation,
        thread: Thread<'_>,
    ) -> Result<Option<FormatUse>> {
        let entry = nvme::Entry(ccb.nvme_command());
        entry.check_form()?;
        if entry.is_privileged() {
            Request::check_privilege(thread)?;
        }
        // Another kind of device answers that it knows no such command.
        let Some(namespace) = &self.namespace else {
            return Ok(None);
        };
        let (relies, changes) = (entry.moves_blocks(), entry.changes_format());
        // First, so that what is found out holds while the command is outstanding.
        let format_use = (relies || changes)
            .then(|| FormatUse::begin(namespace, changes))
            .transpose()?;
        let len = operation.transfers[0].map_or(0, |transfer| transfer.len);
        let check = |format| entry.check(len, namespace.id, format);
        check(namespace.format()).or_else(|errno| {
            if !relies {
                return Err(errno);
            }
            // It was not asked for yet, or it was probed anew since.
            check(self.ask_format(periph, namespace))
        })?;
        Ok(format_use)
    }

    /// CAM knows more of the device than it did.
    fn relearn(&self, held: &mut Held<'_>) {
        if let Some(namespace) = &self.namespace {
            namespace.relearn();
        }
        if let Some(longest) = &self.longest_packet
            && let Some(mut question) = self.state.get(held).question.take()
        {
            longest.store(held.longest_packet(&mut question), Ordering::Relaxed);
            self.state.get(held).question = Some(question);
        }
    }

    /// Keeps a command from CAM that it would refuse: one by a CDB for a device on a
    /// bus of ATA's that takes none, or none so long. It ends with CAM_REQ_INVALID, as
    /// by CAM. CAM would count it among the commands that the device has had and has
    /// given back, so that the device and the SIM would have an opening more each time
    /// (cam_xpt.c, xpt_done_process()).
    pub fn refuse(&self, ccb: &Ccb, operation: &mut Operation) {
        if let Some(longest) = &self.longest_packet
            && ccb.has(Field::Scsi)
            && ccb.csio().cdb_len > longest.load(Ordering::Relaxed)
        {
            operation.route = Route::Refused;
        }
    }

    /// Asks how the namespace is formatted: CAM, or after a command of this driver's
    /// that may have changed it the controller, which CAM does not ask again. Sleeps.
    fn ask_format(&self, periph: &Periph, namespace: &Namespace) -> Option<nvme::Format> {
        let mut own = OwnCcb::alloc();
        let mut page = KVec::zeroed(nvme::PAGE / size_of::<u64>());
        let ccb = own.ccb_mut();
        let has_changed = namespace.format.load(Ordering::Relaxed) == Namespace::CHANGED;
        if has_changed {
            ccb.build_identify(namespace.id as u32, &mut page);
        } else {
            ccb.build_nvme_advinfo(&mut page);
        }
        let mut held = periph.lock();
        if self.state.get(&mut held).gone {
            // The page is freed with no lock held.
            drop::<Held>(held);
            return None;
        }
        ccb.setup(sys::QPC_CAM_PRIORITY_NORMAL, &mut held);
        if has_changed {
            ccb::run(ccb, &self.devstat, &mut held);
        } else {
            held.action(ccb);
        }
        drop::<Held>(held);
        if !ccb.is_good() {
            return None;
        }
        let format = nvme::Format::parse(page.bytes().first_chunk()?)?;
        namespace.learn(format);
        Some(format)
    }

    /// Attaches to a device, or lets it go again. The lock is dropped and taken
    /// again.
    ///
    /// # Errors
    /// `ENXIO`: nothing was done.
    fn attach(periph: &Periph, held: &mut Held<'_>) -> Result {
        // The node's, and until there is one, what keeps the periph here if
        // the device leaves while the lock is dropped.
        let lease = PeriphRef::first(periph, &DRIVER, held)?;
        let made = Self::set_up(periph, held).and_then(|()| {
            // make_dev_s(9) sleeps.
            held.unlocked(|| Node::make(&DEVSW, DRIVER.name(), lease.clone()))
        });
        match made {
            Ok(node) => {
                let unit = periph.softc::<Unit>().ok_or(ENXIO)?;
                let state = unit.state.get(held);
                if state.gone {
                    // It left while the node was made: nobody else knew it.
                    node.destroy();
                    // Cannot fail: nothing is allocated to deregister.
                    let _ = held.register_async(0, async_entry);
                } else {
                    state.node = Some(node);
                    unit.alias_later(held);
                }
            }
            Err(errno) => {
                print::warn(periph.unit_number(), c"cannot attach, errno", errno.get());
                // CAM frees the periph of a constructor that fails at once,
                // whoever has found it while the lock was dropped. So this one
                // does not fail: the unit goes as every other does.
                // Cannot fail: nothing is allocated to deregister.
                let _ = held.register_async(0, async_entry);
                held.invalidate();
            }
        }
        Ok(())
    }

    fn set_up(periph: &Periph, held: &mut Held<'_>) -> Result {
        // From here on the device may leave at any time.
        held.register_async(sys::AC_LOST_DEVICE | sys::AC_ADVINFO_CHANGED, async_entry)?;
        let inq = held.path_inq();
        let maxio = match inq.maxio {
            0 => sys::DFLTPHYS,
            maxio => maxio,
        };
        let number = periph.unit_number();
        let (devstat, room, sysctls, mut question, kept, namespace) = held.unlocked(|| {
            let room = Shared::new(Room::new());
            let sysctls = Self::sysctls(number, room.clone());
            let devstat = DevStat::new(DRIVER.name(), number, inq.devstat_type);
            let kept = Shared::new(AtomicU32::new(0));
            let question = KBox::new(Ccb::zeroed());
            let namespace = inq.nvme.then(|| Shared::new(Namespace::new(inq.lun)));
            (devstat, room, sysctls, question, kept, namespace)
        });
        let longest_packet = inq
            .ata
            .then(|| AtomicU8::new(held.longest_packet(&mut question)));
        let state = State {
            queued: Fifo::new(),
            sent: 0,
            openings: 1,
            since_asked: OPENINGS_HOLD,
            question: Some(question),
            node: None,
            gone: periph.is_invalid(held),
            opens: List::new(),
            last_open: 0,
            probed_until: 0,
        };
        let unit = Unit {
            maxio,
            unmapped: inq.unmapped,
            longest_cdb: inq.longest_cdb,
            longest_packet,
            reset_until: AtomicU64::new(0),
            forgets_aborts: inq.forgets_aborts,
            kept,
            namespace,
            devstat,
            room,
            _sysctls: sysctls,
            state: DeviceCell::new(periph, state),
        };
        periph.attach_softc(unit, held).map_err(|(errno, unit)| {
            held.unlocked(|| drop(unit));
            errno
        })
    }

    /// `kern.cam.qpass.N`.
    fn sysctls(number: u32, room: Shared<Room>) -> Tree<Room> {
        Tree::new(
            &Number::new(number),
            c"CAM queued pass-through device",
            room,
        )
        .with(c"submitted", c"Commands taken", |room| {
            &room.stats.submitted
        })
        .with(c"completed", c"Commands that have an outcome", |room| {
            &room.stats.completed
        })
        .with(
            c"outstanding",
            c"Commands that have no outcome yet",
            |room| &room.stats.outstanding.now,
        )
        .with(
            c"outstanding_max",
            c"Most commands outstanding at a time",
            |room| &room.stats.outstanding.max,
        )
        .with(
            c"errors",
            c"Commands that ended with a status other than CAM_REQ_CMP",
            |room| &room.stats.errors,
        )
        .with(
            c"cancelled",
            c"Commands taken back before they were sent",
            |room| &room.stats.cancelled,
        )
        .with(
            c"copied_bytes",
            c"Bytes copied between processes and bounce buffers",
            |room| &room.stats.copied_bytes,
        )
        .with(
            c"zerocopy_bytes",
            c"Bytes of transfers to and from processes' own pages",
            |room| &room.stats.zerocopy_bytes,
        )
        .with(c"bounce_bytes", c"Bytes of bounce buffers in use", |room| {
            &room.stats.bounce_bytes.now
        })
        .with(
            c"bounce_bytes_max",
            c"Most bytes of bounce buffers in use at a time",
            |room| &room.stats.bounce_bytes.max,
        )
    }

    /// What the device has room for.
    pub fn room(&self) -> &Shared<Room> {
        &self.room
    }

    /// The device is going: no new call gets in.
    fn invalidate(&self, held: &mut Held<'_>) {
        // Cannot fail: nothing is allocated to deregister.
        let _ = held.register_async(0, async_entry);
        let state = self.state.get(held);
        state.gone = true;
        if let Some(node) = state.node.take() {
            node.destroy();
        }
        // devfs(5) waits until no call is left in the node.
        for queue in state.opens.iter() {
            queue.depart();
        }
        self.room.depart();
    }

    /// Has the node's alias by physical path made, or made anew.
    fn alias_later(&self, held: &mut Held<'_>) {
        let Some(node) = &self.state.get(held).node else {
            return;
        };
        if let Err((errno, periph)) = run_later(node.periph(), Self::alias) {
            let unit = periph.unit_number();
            print::warn(unit, c"no alias by physical path, errno", errno.get());
        }
    }

    /// On `taskqueue_thread`.
    fn alias(periph: PeriphRef, here: OnTaskqueueThread) {
        let mut buffer = [0; PHYSPATH];
        let mut held = periph.lock();
        let Some(unit) = periph.softc::<Unit>() else {
            return;
        };
        let Some(path) = held.physpath(&mut buffer) else {
            return;
        };
        let Some(node) = &unit.state.get(&mut held).node else {
            return;
        };
        let alias = node.alias();
        let made = held.unlocked(|| alias.make(path, &here));
        if let Some(node) = &mut unit.state.get(&mut held).node {
            node.set_alias(made);
        }
    }

    /// The longest runs of data that the device and this driver take.
    pub fn longest(&self) -> Longest {
        Longest {
            device: self.maxio,
            chunk: MAX_CHUNK,
        }
    }

    /// Counts an open.
    ///
    /// # Errors
    /// `ENXIO`: the device is gone.
    pub fn opened(&self, held: &mut Held<'_>, queue: &Shared<Queue>) -> Result {
        let state = self.state.get(held);
        if state.gone {
            return Err(ENXIO);
        }
        let state = self.state.get(held);
        state.last_open += 1;
        queue.number.store(state.last_open, Ordering::Relaxed);
        state.opens.insert(queue);
        Ok(())
    }

    /// Takes an open off.
    pub fn closed(&self, held: &mut Held<'_>, queue: &Shared<Queue>) {
        self.state.get(held).opens.remove(queue);
    }

    /// Queues requests that all go to the device.
    ///
    /// # Errors
    /// `ENXIO`: the device is gone; none of them was taken.
    pub fn submit_all(&self, open: &Open, mut requests: Fifo<ZoneBox<Request>>) -> Result {
        open.queue.admit(&mut requests);
        let mut held = open.periph().lock();
        let state = self.state.get(&mut held);
        if state.gone {
            // What is dropped is freed with no lock held.
            drop::<Held>(held);
            return Err(ENXIO);
        }
        self.room.stats.submit(requests.len() as u64);
        state.queued.append(requests);
        self.send_queued(&mut held);
        Ok(())
    }

    /// Whether an XPT_RESET_DEV comes long enough after the last one. Each fails what
    /// other drivers have at the device, and da(4) tries a command five times only: it
    /// would give the disk up.
    ///
    /// # Errors
    /// `EBUSY`: no.
    pub fn check_reset(&self, ccb: &Ccb) -> Result {
        if ccb.hdr().func_code != sys::XPT_RESET_DEV {
            return Ok(());
        }
        let (now, until) = (uptime(), self.reset_until.load(Ordering::Relaxed));
        let (order, next) = (Ordering::Relaxed, now + PEACE);
        let is_soon = now < until
            || self
                .reset_until
                .compare_exchange(until, next, order, order)
                .is_err();
        if is_soon { Err(EBUSY) } else { Ok(()) }
    }

    /// What a request would do to the device for everybody, and may not.
    ///
    /// # Errors
    /// `EINVAL`: an XPT_REL_SIMQ asks for openings that the SIM has no slots for;
    /// `EBUSY`: the device is probed anew, or was a second ago. Its own driver waits
    /// meanwhile, and would for as long as a program went on asking.
    pub fn check_shared(&self, ccb: &Ccb, held: &mut Held<'_>) -> Result {
        match ccb.hdr().func_code {
            sys::XPT_REL_SIMQ => match ccb.fields().openings {
                Some(openings) if openings > held.sim_openings() => Err(EINVAL),
                _ => Ok(()),
            },
            sys::XPT_REPROBE_LUN => {
                let now = uptime();
                let is_probed = held.is_probed();
                let until = &mut self.state.get(held).probed_until;
                // CAM answers before it begins: for a second it may not have.
                let is_soon = now < *until;
                if is_probed || !is_soon {
                    *until = now + PEACE;
                }
                if is_probed || is_soon {
                    Err(EBUSY)
                } else {
                    Ok(())
                }
            }
            _ => Ok(()),
        }
    }

    /// Queues a request, or answers it at once.
    ///
    /// # Errors
    /// `ENXIO`: the device is gone; `EBUSY`, `EINVAL`: see
    /// [`check_shared`](Self::check_shared).
    pub fn submit(&self, mut request: ZoneBox<Request>) -> Result {
        let open = request.open().clone();
        let route = request.route();
        match route {
            Route::Device => return self.submit_all(&open, Fifo::of(request)),
            Route::UserCcb => open.queue.admit_one(&request),
            _ => {}
        }
        let mut held = open.periph().lock();
        let mut taken = self.check_shared(request.ccb(), &mut held);
        if self.state.get(&mut held).gone {
            taken = Err(ENXIO);
        }
        if taken.is_err() {
            // What is dropped is freed with no lock held.
            drop::<Held>(held);
            return taken;
        }
        self.room.stats.submit(1);
        if route == Route::UserCcb {
            Self::send(&mut held, request);
            return Ok(());
        }
        let priority = request.priority();
        let ccb = request.ccb_mut();
        ccb.setup(priority, &mut held);
        if route == Route::Refused {
            drop::<Held>(held);
            request.ccb_mut().refuse();
            self.room.stats.complete(Outcome::of(false));
        } else if route == Route::Abort {
            drop::<Held>(held);
            let status = self.abort(&open, ccb.abort_target());
            ccb.set_status(status);
        } else {
            held.action(ccb);
            self.room.stats.complete(Outcome::of(ccb.is_good()));
            drop::<Held>(held);
        }
        drop(Queue::complete(&open.queue, request));
        Ok(())
    }

    /// Sends what waited longest, while the device has openings. CAM would take
    /// more, but they would be before those of other drivers that come later.
    fn send_queued(&self, held: &mut Held<'_>) {
        // What is sent together begins together.
        let mut now = None;
        loop {
            let state = self.state.get(held);
            if state.queued.is_empty() {
                return;
            }
            let is_full = state.sent >= state.openings;
            if state.since_asked >= if is_full { OPENINGS_ASK } else { OPENINGS_HOLD } {
                self.ask_openings(held);
            }
            let state = self.state.get(held);
            if state.sent >= state.openings {
                return;
            }
            let Some(mut request) = state.queued.pop() else {
                return;
            };
            state.sent += 1;
            state.since_asked += 1;
            let now = now.get_or_insert_with(Started::now);
            self.devstat.start(now);
            request.started = Some(*now);
            Self::send(held, request);
        }
    }

    fn ask_openings(&self, held: &mut Held<'_>) {
        let Some(mut question) = self.state.get(held).question.take() else {
            return;
        };
        let openings = held.openings(&mut question);
        let state = self.state.get(held);
        state.question = Some(question);
        (state.openings, state.since_asked) = (openings.max(1), 0);
    }

    fn send(held: &mut Held<'_>, mut request: ZoneBox<Request>) {
        let priority = request.priority();
        request.ccb_mut().setup(priority, held);
        request.known().sent.set(request.ccb(), held);
        request.send(done_entry, held);
    }

    /// A sent CCB has completed: the request is done, or on its way again.
    fn done(&self, held: &mut Held<'_>, mut request: ZoneBox<Request>) {
        let is_device = request.route() == Route::Device;
        let is_closed = request.open().queue.is_closed();
        let (is_aborted, is_replaced) = request.known().aborted(held);
        let ccb = request.ccb_mut();
        let may_recover = !is_aborted && is_device && !is_closed;
        if may_recover
            && !ccb.is_good()
            && let Recovery::Resent = ccb.recover(held)
        {
            request.leave_sent();
            return;
        }
        // What was cancelled, or nobody waits for, is not sent again.
        ccb.release_frozen(held);
        if is_replaced {
            ccb.set_status(sys::CAM_REQ_ABORTED);
            let len = request.data_len();
            request.ccb_mut().set_not_moved(len);
        }
        request.end_use();
        request.known().sent.clear(held);
        if let Some(started) = &request.started {
            let ccb = request.ccb();
            let moved = request.moved(ccb);
            self.devstat.end(started, moved, ccb.tag_type());
        }
        self.room
            .stats
            .complete(Outcome::of(request.ccb().is_good()));
        // Keeps the device, and with it the lock, while that is dropped.
        let open = request.open().clone();
        let after = Queue::complete(&open.queue, request);
        if is_device {
            self.state.get(held).sent -= 1;
            self.send_queued(held);
        }
        if after.is_something() {
            held.unlocked(|| drop(after));
        }
    }
}

/// CAM is up: hear of every device there is, and of every one that comes.
unsafe extern "C" fn init_entry() {
    module::started(driver::register_global_async(
        sys::AC_FOUND_DEVICE,
        async_entry,
    ));
}

/// periphdriver_unregister(9): the module lets every unit go.
unsafe extern "C" fn deinit_entry() -> c_int {
    let gone = module::detach_all(async_entry);
    if gone.is_ok() {
        // SAFETY: every open has gone, and with it every item; none can come.
        unsafe { ZONES.destroy() };
    }
    kpi::errno::to_c(gone)
}

/// AC_FOUND_DEVICE without a periph, AC_LOST_DEVICE with one.
unsafe extern "C" fn async_entry(
    arg: *mut c_void,
    code: u32,
    path: *mut sys::cam_path,
    data: *mut c_void,
) {
    if code == sys::AC_ADVINFO_CHANGED {
        if data as usize == sys::CDAI_TYPE_PHYS_PATH as usize {
            // SAFETY: registered with the periph as argument; CAM calls with
            // the device lock held.
            let (periph, mut held) = unsafe {
                let periph = Periph::from_raw(arg.cast());
                (periph, periph.locked())
            };
            if let Some(unit) = periph.softc::<Unit>() {
                unit.alias_later(&mut held);
            }
        }
        return;
    }
    if code != sys::AC_FOUND_DEVICE {
        // SAFETY: registered with the periph as argument.
        unsafe { driver::default_async(arg, code, path, data) };
        return;
    }
    if data.is_null() || module::is_unloading() {
        return;
    }
    // SAFETY: the callback's own arguments; CAM calls with the device lock held.
    if let Some(periph) = unsafe { DRIVER.periph_of(path) } {
        // It was probed anew.
        // SAFETY: CAM calls with the device lock held.
        let mut held = unsafe { periph.locked() };
        if let Some(unit) = periph.softc::<Unit>() {
            unit.relearn(&mut held);
        }
        return;
    }
    // SAFETY: the callback's own arguments.
    if let Err(status) = unsafe { DRIVER.attach(&ROUTINES, path, data) } {
        print::warn(
            0,
            c"cannot attach to a new device, CAM status",
            status as c_int,
        );
    }
}

/// cam_periph_alloc(9) has made a periph; the device lock is held.
unsafe extern "C" fn ctor_entry(
    periph: *mut sys::cam_periph,
    _arg: *mut c_void,
) -> sys::cam_status {
    // SAFETY: CAM's own arguments, the lock held throughout.
    let (periph, mut held) = unsafe {
        let periph = Periph::from_raw(periph);
        (periph, periph.locked())
    };
    match Unit::attach(periph, &mut held) {
        Ok(()) => sys::CAM_REQ_CMP,
        Err(_) => sys::CAM_REQ_CMP_ERR,
    }
}

/// The device lock is held.
unsafe extern "C" fn oninvalidate_entry(periph: *mut sys::cam_periph) {
    // SAFETY: CAM's own argument, the lock held throughout.
    let (periph, mut held) = unsafe {
        let periph = Periph::from_raw(periph);
        (periph, periph.locked())
    };
    if let Some(unit) = periph.softc::<Unit>() {
        unit.invalidate(&mut held);
    }
}

/// CAM has a CCB for this periph, for which it was not asked: requests bring
/// their own. The device lock is held.
unsafe extern "C" fn start_entry(periph: *mut sys::cam_periph, ccb: *mut sys::ccb) {
    // SAFETY: CAM's own arguments, the lock held throughout.
    let (mut held, start) = unsafe {
        let periph = Periph::from_raw(periph);
        (periph.locked(), StartCcb::from_raw(ccb))
    };
    held.release_ccb(start);
}

/// A request that [`Unit::send`] sent has completed; the device lock is held.
unsafe extern "C" fn done_entry(periph: *mut sys::cam_periph, ccb: *mut sys::ccb) {
    // SAFETY: CAM's own arguments, the lock held throughout; the CCB is back
    // once for every time that it was sent.
    let (periph, mut held, mut request) = unsafe {
        let periph = Periph::from_raw(periph);
        (periph, periph.locked(), ZoneBox::<Request>::from_ccb(ccb))
    };
    if driver::has_panicked() {
        // xpt_sim_poll() completes what was under way beside the dump. The queues
        // that it belongs to may be half changed: it is left alone.
        request.ccb_mut().release_frozen(&mut held);
        request.leave_sent();
        return;
    }
    match periph.softc::<Unit>() {
        Some(unit) => unit.done(&mut held, request),
        // A request holds its open, and that the periph and its unit.
        None => unreachable!(),
    }
}
