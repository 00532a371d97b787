//! A request: one user's CCB on its way through the kernel.
//!
//! It is owned by one place at a time, and the place says its state:
//!
//! | owner | state |
//! | --- | --- |
//! | the calling thread, in [`Request::from_user`] | being set up |
//! | [`Unit`]'s list | queued: waits for CAM to have a CCB |
//! | CAM, which has its CCB | sent |
//! | [`Queue`](crate::queue::Queue)'s list | done |
//! | the calling thread, in `reap` | being reaped |
//!
//! Dropping it in any state gives back its memory and its place in the limits.

use crate::{
    buffer::{self, Bounce, Buffer, Segments},
    ioctl::{self, Format, Operation, Route},
    queue::{Charge, Open, Taken},
    sg, tunable,
    unit::{FormatUse, Unit},
};
use core::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use kpi::{
    abort::Sent,
    ccb::Ccb,
    cdev::Thread,
    devstat::{Moved, Started},
    errno::{EINVAL, EPERM, Result},
    fields::{Direction, Field, Transfer},
    list::{Links, Node},
    pages::{Access, HeldPages},
    periph::Held,
    segment::Segment,
    shared::Shared,
    time::uptime_of_last_tick,
    user::UserPtr,
    zone::{Draft, ZoneBox, ZoneItem},
};
use sys_bindings as sys;

/// In [`Ticket::abort`]: it ends as aborted, whatever CAM says, for what CAM still
/// sent of it was another command. The lower bits count the aborts that CAM was asked
/// for and has not declined.
const REPLACED: u8 = 1 << 7;

/// See the module's page.
pub struct Request {
    open: Shared<Open>,
    operation: Operation,
    buffers: [Option<Buffer>; 2],
    charge: Charge,
    /// It relies on the format of a namespace, or may change it.
    format_use: Option<FormatUse>,
    /// When it was sent.
    pub started: Option<Started>,
}

/// How a program names a request.
#[derive(Clone, Copy)]
pub struct Name {
    /// The address of its CCB.
    pub user_ccb: UserPtr,
    /// What comes back with it.
    pub tag: u64,
}

/// What the open knows of a request, wherever it is.
pub struct Ticket {
    links: Links<Ticket>,
    /// The user's address of the CCB, which names the request.
    pub user_ccb: UserPtr,
    /// The program's own number of it.
    pub tag: u64,
    /// Which request of the open it is: the list is in this order.
    pub number: AtomicU64,
    /// What it asks for, for who asks what is outstanding.
    pub asked: Asked,
    /// The CCB that CAM has, while it has it.
    pub sent: Sent,
    /// CAM carries it out (Route::UserCcb): no SIM has it that could abort it.
    pub is_cams: bool,
    /// It is on the done queue.
    pub is_done: AtomicBool,
    /// What became of it before it came back; guarded by the device lock.
    abort: AtomicU8,
    /// The last round of aborts that has seen it, see [`Room::next_round`].
    ///
    /// [`Room::next_round`]: crate::room::Room::next_round
    round: AtomicU64,
}

/// What a request asks for, and who asked when.
pub struct Asked {
    /// `ccb_h.func_code`.
    pub func_code: sys::xpt_opcode,
    /// Bytes of data.
    pub len: u32,
    /// `QPASS_DIRECTION_…`.
    pub direction: u8,
    /// Bytes of a CDB.
    pub cdb_len: u8,
    /// The command's first bytes.
    pub cdb: [u8; 16],
    /// The process.
    pub pid: i32,
    /// When, in nanoseconds since boot, to a clock tick.
    pub since: u64,
}

impl Asked {
    fn new(ccb: &Ccb, operation: &Operation, thread: Thread<'_>) -> Self {
        let (cdb, cdb_len) = ccb.command();
        let (mut len, mut direction) = (0, 0);
        let mut add = |transfer: Transfer| {
            len += transfer.len;
            if transfer.direction.copies_out() {
                direction |= sys::QPASS_DIRECTION_IN as u8;
            }
            if transfer.direction.copies_in() {
                direction |= sys::QPASS_DIRECTION_OUT as u8;
            }
        };
        let [first, second] = operation.transfers;
        first.map(&mut add);
        second.map(&mut add);
        Asked {
            func_code: ccb.hdr().func_code,
            len,
            direction,
            cdb_len,
            cdb,
            pid: thread.pid(),
            since: uptime_of_last_tick(),
        }
    }
}

impl Ticket {
    /// CAM is being asked to abort it: it is not sent again.
    pub fn ask_abort(&self, _held: &Held<'_>) {
        let now = self.abort.load(Ordering::Relaxed);
        // Should ever so many ask at a time, it stays as it is.
        if now & !REPLACED < REPLACED - 1 {
            self.abort.store(now + 1, Ordering::Relaxed);
        }
    }

    /// CAM has declined one: it goes on as if it had not been asked.
    pub fn decline_abort(&self, _held: &Held<'_>) {
        let now = self.abort.load(Ordering::Relaxed);
        if now & !REPLACED != 0 {
            self.abort.store(now - 1, Ordering::Relaxed);
        }
    }

    /// Another command was put in its place.
    pub fn replace(&self, _held: &Held<'_>) {
        self.abort.fetch_or(REPLACED, Ordering::Relaxed);
    }

    /// Whether it must not be sent again, and whether another command was put in its
    /// place.
    pub fn aborted(&self, _held: &Held<'_>) -> (bool, bool) {
        let now = self.abort.load(Ordering::Relaxed);
        (now != 0, now & REPLACED != 0)
    }

    /// Whether the round of aborts, or a later one, has seen it.
    pub fn is_seen_in(&self, round: u64) -> bool {
        self.round.load(Ordering::Relaxed) >= round
    }

    /// Whether a round of aborts sees it for the first time, and no later round
    /// has.
    pub fn is_first_in(&self, round: u64) -> bool {
        self.round.fetch_max(round, Ordering::Relaxed) < round
    }
}

impl Node for Ticket {
    fn links(&self) -> &Links<Self> {
        &self.links
    }
}

impl ZoneItem for Request {
    type Known = Ticket;
    fn leave(item: &ZoneBox<Self>) {
        if item.is_known() {
            item.open.queue.forget(item);
        }
    }
    type Keeper = Shared<Open>;
    fn keeper(&self) -> Shared<Open> {
        self.open.clone()
    }
}

impl Request {
    /// Copies a user's CCB and its data in. Sleeps.
    ///
    /// The request is charged once, when its CCB has told what it will take and
    /// before any of that is allocated. The copy of the CCB comes before: a thread
    /// has one such at a time, as it has one synchronous command.
    ///
    /// # Errors
    /// `EAGAIN`: the open or the device is at its limits; `EFAULT`: a bad
    /// pointer; `EINVAL`, `ENODEV`: see [`Operation::parse`]; `EPERM`: see
    /// [`check_physical`](Self::check_physical); `EINVAL`: the CDB or the
    /// transfer is too long; `EBUSY`: see [`Unit::check_reset`] and
    /// [`Unit::check_nvme`]; `ENXIO`: the device is gone.
    pub fn from_user(open: &Shared<Open>, name: Name, thread: Thread<'_>) -> Taken<ZoneBox<Self>> {
        open.zones()?;
        let mut draft = Draft::copyin(open.clone(), name.user_ccb)?;
        let ccb = draft.ccb();
        let mut operation = Operation::parse(&ccb.fields())?;
        Self::check_physical(&operation, thread)?;
        if ccb.has(Field::Scsi) {
            Self::copyin_cdb(ccb)?;
        }
        let unit = open.unit()?;
        unit.longest().check_queued(&operation)?;
        unit.refuse(ccb, &mut operation);
        unit.check_reset(ccb)?;
        let mut format_use = None;
        if ccb.has(Field::Nvme) {
            format_use = unit.check_nvme(open.periph(), ccb, &operation, thread)?;
        }
        let asked = Asked::new(ccb, &operation, thread);
        let plan = if operation.has_data() {
            Self::plan(unit, ccb, &operation, &asked.cdb)
        } else {
            Plan::NOTHING
        };
        let charge = Charge::take(&open.queue, plan.bytes)?;
        let ticket = Ticket {
            links: Links::new(),
            user_ccb: name.user_ccb,
            tag: name.tag,
            number: AtomicU64::new(0),
            asked,
            sent: Sent::none(),
            is_cams: operation.route == Route::UserCcb,
            is_done: AtomicBool::new(false),
            abort: AtomicU8::new(0),
            round: AtomicU64::new(0),
        };
        let mut request = Request {
            open: open.clone(),
            operation,
            buffers: [None, None],
            charge,
            format_use,
            started: None,
        };
        request.set_up_data(ccb, &plan, thread)?;
        Ok(draft.finish(request, ticket))
    }

    /// Physical addresses are for whoever may write kernel memory anyway, and
    /// only where the administrator says so.
    ///
    /// # Errors
    /// See [`check_privilege`](Self::check_privilege).
    pub fn check_physical(operation: &Operation, thread: Thread<'_>) -> Result {
        if !operation.format.is_physical() {
            return Ok(());
        }
        Self::check_privilege(thread)
    }

    /// The privilege that it takes to hand over physical addresses.
    ///
    /// # Errors
    /// `EPERM`: `kern.cam.qpass.allow_paddr` is 0, or the thread lacks
    /// PRIV_KMEM_WRITE, or the securelevel is above 0.
    pub fn check_privilege(thread: Thread<'_>) -> Result {
        if !tunable::allow_paddr() {
            return Err(EPERM);
        }
        thread.priv_check(sys::PRIV_KMEM_WRITE)?;
        thread.securelevel_gt(0)
    }

    /// What a request will take besides its item of the zone: its list, and
    /// chunks or pages, and that for both runs of an XPT_SMP_IO. Where a list that
    /// is not read yet may be one of pages, as if it were.
    fn plan(unit: &Unit, ccb: &mut Ccb, operation: &Operation, command: &[u8; 16]) -> Plan {
        match operation.transfers {
            [Some(one), None] => Self::plan_one(unit, ccb, operation.format, one, command),
            // The two of an XPT_SMP_IO are copied.
            transfers => Plan {
                bytes: transfers
                    .iter()
                    .flatten()
                    .map(|t| data_bytes(t.len, None))
                    .sum(),
                ..Plan::NOTHING
            },
        }
    }

    fn plan_one(
        unit: &Unit,
        ccb: &mut Ccb,
        format: Format,
        transfer: Transfer,
        command: &[u8; 16],
    ) -> Plan {
        let len = transfer.len;
        let may_hold = unit.unmapped
            && len >= tunable::zerocopy_min()
            && transfer.takes_pages(ccb.hdr().func_code, command);
        let mut pages = None;
        let bytes = match format {
            Format::Physical => 0,
            Format::PhysicalList(count) => list_bytes(count),
            Format::List(count) if may_hold => {
                let pages = len.div_ceil(sys::PAGE_SIZE) as usize + 1;
                list_bytes(count) + data_bytes(len, Some(pages))
            }
            Format::List(count) => list_bytes(count) + data_bytes(len, None),
            Format::Address => {
                if may_hold {
                    let at = ccb.data(transfer.field);
                    pages = sg::pages_of_one(at.address() as u64, len);
                }
                data_bytes(len, pages)
            }
        };
        Plan {
            may_hold,
            pages,
            bytes,
        }
    }

    fn set_up_data(&mut self, ccb: &mut Ccb, plan: &Plan, thread: Thread<'_>) -> Taken {
        let transfers = self.operation.transfers;
        let addresses = transfers.map(|t| t.map(|t| ccb.data(t.field)));
        ccb.build(self.operation.flags, &self.operation.transfers);
        for (i, (transfer, at)) in transfers.into_iter().zip(addresses).enumerate() {
            if let (Some(transfer), Some(at)) = (transfer, at) {
                self.buffers[i] = Some(self.buffer(ccb, plan, transfer, at, thread)?);
            }
        }
        Ok(())
    }

    /// Has the CCB point at what the device shall move.
    fn buffer(
        &mut self,
        ccb: &mut Ccb,
        plan: &Plan,
        transfer: Transfer,
        at: UserPtr,
        thread: Thread<'_>,
    ) -> Taken<Buffer> {
        let field = transfer.field;
        match self.operation.format {
            Format::Address => {
                let one = Segments::one(at, transfer.len);
                self.reach(ccb, plan, transfer, one, thread)
            }
            Format::List(count) => {
                let list = buffer::copyin_list(at, count, transfer.len)?;
                self.reach(ccb, plan, transfer, Segments::List(list), thread)
            }
            Format::Physical => {
                ccb.set_physical(field, at);
                Ok(Buffer::Physical)
            }
            Format::PhysicalList(count) => {
                let list = buffer::copyin_list(at, count, transfer.len)?;
                ccb.set_list(field, &list, sys::CAM_DATA_SG_PADDR);
                Ok(Buffer::PhysicalList(list))
            }
        }
    }

    /// Has a transfer's data where the device finds it: in the process's own
    /// pages where that is worth while and works, else in a copy.
    fn reach(
        &mut self,
        ccb: &mut Ccb,
        plan: &Plan,
        transfer: Transfer,
        segments: Segments,
        thread: Thread<'_>,
    ) -> Taken<Buffer> {
        if let Some(pages) = self.hold(plan, transfer, &segments, thread)? {
            ccb.set_pages(transfer.field, &pages);
            self.open.queue.room.stats.in_place(transfer.len);
            return Ok(Buffer::Pages(pages));
        }
        if plan.may_hold {
            // It was charged for pages, and has one run.
            let bytes = data_bytes(transfer.len, None);
            self.charge.exchange(segments.list_bytes() + bytes)?;
        }
        Ok(self.bounce(ccb, transfer, segments)?)
    }

    /// Holds the pages of a transfer, if it may have its data in them and the SIM
    /// takes pages.
    ///
    /// # Errors
    /// `EAGAIN`: over a limit.
    fn hold(
        &mut self,
        plan: &Plan,
        transfer: Transfer,
        segments: &Segments,
        thread: Thread<'_>,
    ) -> Taken<Option<HeldPages>> {
        if !plan.may_hold {
            return Ok(None);
        }
        let pages = match segments {
            Segments::One(_) => plan.pages,
            Segments::List(list) => sg::pages_of(list, transfer.len),
        };
        let Some(pages) = pages else {
            return Ok(None);
        };
        if let Segments::List(_) = segments {
            let bytes = data_bytes(transfer.len, Some(pages));
            self.charge.exchange(segments.list_bytes() + bytes)?;
        }
        let access = match transfer.direction {
            Direction::Out => Access::Read,
            _ => Access::Write,
        };
        let held = HeldPages::hold(thread, segments.as_slice(), transfer.len, pages, access);
        // A copy says what is wrong, now or when it is reaped, as it does for a
        // short transfer; and it may be memory that can be copied.
        Ok(held.ok())
    }

    /// Takes kernel memory for a transfer, and has the CCB point at it.
    fn bounce(&mut self, ccb: &mut Ccb, transfer: Transfer, segments: Segments) -> Result<Buffer> {
        let bounce = Bounce::new(&self.open, transfer, segments)?;
        bounce.attach(ccb);
        Ok(Buffer::Bounce(bounce))
    }

    /// Brings a CDB that is elsewhere into the CCB.
    fn copyin_cdb(ccb: &mut Ccb) -> Result {
        let len = usize::from(ccb.csio().cdb_len);
        if len > sys::IOCDBLEN as usize {
            return Err(EINVAL);
        }
        if ccb.hdr().flags & sys::CAM_CDB_POINTER == 0 {
            return Ok(());
        }
        let from = ccb.cdb_pointer();
        let cdb = ccb.cdb_bytes_mut();
        *cdb = [0; sys::IOCDBLEN as usize];
        from.copyin(&mut cdb[..len])?;
        ccb.hdr_mut().flags &= !sys::CAM_CDB_POINTER;
        Ok(())
    }

    /// The device is through with it, and with the process's own pages.
    pub fn end_use(&mut self) {
        self.format_use = None;
        // Of two runs of data none is in pages.
        if let Some(Buffer::Pages(pages)) = &mut self.buffers[0] {
            pages.let_go();
        }
    }

    /// Bytes of its first run of data, 0 where it has none.
    pub fn data_len(&self) -> u32 {
        self.operation.transfers[0].map_or(0, |transfer| transfer.len)
    }

    /// How it is carried out.
    pub fn route(&self) -> Route {
        self.operation.route
    }

    /// The open that queued it.
    pub fn open(&self) -> &Shared<Open> {
        &self.open
    }

    /// What it moved, for devstat(9).
    pub fn moved(&self, ccb: &Ccb) -> Moved {
        match self.operation.transfers {
            [None, _] => Moved::NoData,
            // An SMP request and its response count as one read, as pass(4)
            // counts them.
            [Some(request), Some(response)] => Moved::Read(request.len + response.len),
            [Some(transfer), None] => {
                let bytes = ccb.moved(transfer);
                match transfer.direction {
                    Direction::Out => Moved::Written(bytes),
                    _ => Moved::Read(bytes),
                }
            }
        }
    }
}

/// How much a request will take, and how its data goes.
struct Plan {
    /// Bytes to charge.
    bytes: u64,
    /// Its transfer may be given to the SIM as pages.
    may_hold: bool,
    /// As so many, where that is known.
    pages: Option<usize>,
}

impl Plan {
    /// Of a request without data.
    const NOTHING: Plan = Plan {
        bytes: 0,
        may_hold: false,
        pages: None,
    };
}

/// What the copy of a list of so many segments takes.
fn list_bytes(count: u16) -> u64 {
    u64::from(count) * size_of::<Segment>() as u64
}

/// What the data of a transfer takes: as so many pages, or as a copy.
fn data_bytes(len: u32, pages: Option<usize>) -> u64 {
    match pages {
        Some(pages) => pages as u64 * u64::from(sys::PAGE_SIZE) + HeldPages::overhead(pages),
        None => buffer::footprint(len),
    }
}

/// What a request can do with the CCB beside it.
pub trait Item {
    /// The priority that it is sent with.
    fn priority(&self) -> u32;

    /// Hands the data to the process that reaps, and the CCB to its address
    /// `to`, where there is one. What fails can be tried again: the request is
    /// as it was. Sleeps.
    ///
    /// # Errors
    /// `EFAULT`: the user's buffer or CCB is not writable.
    fn reap(&mut self, to: Option<UserPtr>) -> Result;

    /// Whether its open knows of it.
    fn is_known(&self) -> bool;
}

impl Item for ZoneBox<Request> {
    fn priority(&self) -> u32 {
        ioctl::priority(self.ccb().hdr().func_code, self.asked_priority())
    }

    fn reap(&mut self, to: Option<UserPtr>) -> Result {
        let (request, ccb) = self.parts();
        for buffer in request.buffers.iter().flatten() {
            if let Buffer::Bounce(bounce) = buffer {
                bounce.copyout(ccb.moved(bounce.transfer()))?;
            }
        }
        let Some(to) = to else {
            return Ok(());
        };
        // A second try restores what is restored already.
        self.restore();
        to.copyout(self.ccb().bytes())
    }

    fn is_known(&self) -> bool {
        self.known().links.is_linked()
    }
}
