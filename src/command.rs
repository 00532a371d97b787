//! CAMIOCOMMAND: one CCB, sent and waited for, as by pass(4).

use crate::{
    buffer::{self, Bounce, MAX_CHUNK, Segments},
    ioctl::{self, Format, Operation, Route},
    queue::Open,
    request::Request,
    sg::ALIGNMENT,
    stats::Outcome,
    unit::Unit,
};
use kpi::{
    ccb::{self, Ccb, Mapped, OwnCcb},
    cdev::Thread,
    errno::{E2BIG, EACCES, EFAULT, EINVAL, ENXIO, Result},
    fields::{Field, Transfer},
    mmc::{self, MmcData},
    periph::Held,
    shared::Shared,
    user::UserPtr,
};
use sys_bindings as sys;

impl Unit {
    /// CAMIOCOMMAND. Sleeps until the command is done.
    ///
    /// # Errors
    /// `EACCES`: the data is not the process's memory; `EFAULT`: nor is the
    /// CDB, or not any more; `EINVAL`, `ENODEV`: see [`Operation::parse`];
    /// `E2BIG`: the transfer is longer than the device takes; `EBUSY`: see
    /// [`check_nvme`](Self::check_nvme), [`check_reset`](Self::check_reset) and
    /// [`check_shared`](Self::check_shared); `ENXIO`: the device is gone; `EPERM`: see [`Request::check_physical`].
    pub fn command(&self, open: &Shared<Open>, ccb: &mut Ccb, thread: Thread<'_>) -> Result {
        let mut operation = Operation::parse(&ccb.fields())?;
        self.longest().check_synchronous(&operation)?;
        Request::check_physical(&operation, thread)?;
        // Held until the device is through.
        let _format_use = if ccb.has(Field::Nvme) {
            self.check_nvme(open.periph(), ccb, &operation, thread)?
        } else {
            None
        };
        if operation.route == Route::Mmc {
            return self.command_mmc(open, ccb, &operation);
        }
        let saved = ccb.saved();
        let mut cdb = [0; LONGEST_CDB];
        if ccb.has(Field::Scsi) {
            self.copyin_cdb(ccb, &mut cdb)?;
        }
        self.refuse(ccb, &mut operation);
        self.check_reset(ccb)?;
        let addresses = operation.transfers.map(|t| t.map(|t| ccb.data(t.field)));
        // Another opcode has no place for it, and would bring the address back.
        let has_long_cdb = ccb.has(Field::Scsi) && ccb.hdr().flags & sys::CAM_CDB_POINTER != 0;
        ccb.build(operation.flags, &operation.transfers);
        if has_long_cdb {
            ccb.set_cdb_pointer(&mut cdb);
        }
        let done = self.run_with_data(open, ccb, &operation, addresses);
        ccb.restore(&saved);
        done
    }

    fn run_with_data(
        &self,
        open: &Shared<Open>,
        ccb: &mut Ccb,
        operation: &Operation,
        addresses: [Option<UserPtr>; 2],
    ) -> Result {
        let ([Some(transfer), _] | [_, Some(transfer)]) = operation.transfers else {
            return self.run(open, ccb, operation.route);
        };
        let at = addresses
            .into_iter()
            .flatten()
            .next()
            .unwrap_or(UserPtr::new(0));
        match operation.format {
            Format::Address | Format::List(_) => {
                let mapped = addresses
                    .iter()
                    .flatten()
                    .all(|at| at.address().is_multiple_of(ALIGNMENT as usize));
                if !mapped {
                    return self.run_copied(open, ccb, operation, addresses);
                }
                for (transfer, at) in operation.transfers.iter().zip(addresses) {
                    if let (Some(transfer), Some(at)) = (transfer, at) {
                        ccb.set_user_data(transfer.field, at);
                    }
                }
                let mapped = Mapped::map(ccb, self.maxio)?;
                let ran = self.run(open, ccb, operation.route);
                ran.and(mapped.unmap(ccb))
            }
            Format::Physical => {
                ccb.set_physical(transfer.field, at);
                self.run(open, ccb, operation.route)
            }
            Format::PhysicalList(count) => {
                let list = buffer::copyin_list(at, count, transfer.len)?;
                ccb.set_list(transfer.field, &list, sys::CAM_DATA_SG_PADDR);
                self.run(open, ccb, operation.route)
            }
        }
    }

    /// With data at an address for which busdma(9) may have to bounce. CAM maps
    /// what is long where it is, and a SIM then gets what it must not: see
    /// [`ALIGNMENT`]. A copy is aligned.
    ///
    /// # Errors
    /// `EACCES`: what is written is not the process's memory, as CAM says it;
    /// `EFAULT`: what is read is not.
    fn run_copied(
        &self,
        open: &Shared<Open>,
        ccb: &mut Ccb,
        operation: &Operation,
        addresses: [Option<UserPtr>; 2],
    ) -> Result {
        let mut copies = [None, None];
        for (i, copy) in copies.iter_mut().enumerate() {
            let (Some(transfer), Some(at)) = (operation.transfers[i], addresses[i]) else {
                continue;
            };
            let bounce = Bounce::new(open, transfer, Segments::one(at, transfer.len));
            let bounce = bounce.map_err(|errno| if errno == EFAULT { EACCES } else { errno })?;
            bounce.attach(ccb);
            *copy = Some(bounce);
        }
        self.run(open, ccb, operation.route)?;
        for copy in copies.iter().flatten() {
            // As CAM does: all of it, of which what the device left out is zero.
            copy.copyout(copy.transfer().len)?;
        }
        Ok(())
    }

    /// XPT_MMC_IO. Its struct mmc_data and its data are copied.
    fn command_mmc(&self, open: &Shared<Open>, ccb: &mut Ccb, operation: &Operation) -> Result {
        let mut data = mmc::data_of(ccb).map(MmcData::copyin).transpose()?;
        let bounce = match &mut data {
            Some(data) => self.bounce_mmc(open, ccb, data)?,
            None => None,
        };
        let saved = ccb.saved();
        ccb.build(operation.flags, &operation.transfers);
        let pointers = mmc::take_pointers(ccb, data.as_mut());
        let ran = self.run(open, ccb, Route::Mmc);
        ccb.restore(&saved);
        mmc::give_pointers(ccb, &pointers);
        ran?;
        if let Some(bounce) = bounce {
            bounce.copyout(bounce.transfer().len)?;
        }
        data.map_or(Ok(()), |mut data| data.copyout())
    }

    /// Takes kernel memory for the data of an XPT_MMC_IO.
    ///
    /// # Errors
    /// `E2BIG`: longer than the device takes; `EFAULT`; `EINVAL`: its blocks
    /// are more than its bytes.
    fn bounce_mmc(
        &self,
        open: &Shared<Open>,
        ccb: &Ccb,
        data: &mut MmcData,
    ) -> Result<Option<Bounce>> {
        let (len, blocks) = data.len();
        if blocks.is_some_and(|blocks| blocks > len) {
            return Err(EINVAL);
        }
        let longest = self.maxio.min(MAX_CHUNK);
        let len = u32::try_from(len).ok().filter(|len| *len <= longest);
        let transfer = Transfer {
            field: Field::Mmc,
            direction: ccb.direction().ok_or(EINVAL)?,
            len: len.ok_or(E2BIG)?,
        };
        data.set_data(core::ptr::null_mut());
        if transfer.len == 0 {
            return Ok(None);
        }
        let at = Segments::one(data.user_data(), transfer.len);
        let bounce = Bounce::new(open, transfer, at)?;
        data.set_data(bounce.as_ptr());
        Ok(Some(bounce))
    }

    fn run(&self, open: &Shared<Open>, ccb: &mut Ccb, route: Route) -> Result {
        let hdr = ccb.hdr();
        let priority = ioctl::priority(hdr.func_code, hdr.pinfo.priority);
        let needs_none = matches!(route, Route::Device | Route::Mmc | Route::Refused);
        let mut own = (!needs_none).then(OwnCcb::alloc);
        let mut held = open.periph().lock();
        let mut taken = self.check_shared(ccb, &mut held);
        if self.state.get(&mut held).gone {
            taken = Err(ENXIO);
        }
        if taken.is_err() {
            drop::<Held>(held);
            return taken;
        }
        let stats = &self.room.stats;
        stats.submit(1);
        if route == Route::Refused {
            drop::<Held>(held);
            ccb.refuse();
            stats.complete(Outcome::of(false));
            return Ok(());
        }
        if let (Route::Abort, Some(own)) = (route, &mut own) {
            // The device's address, as every CCB comes back with it.
            let own = own.ccb_mut();
            own.take_request(ccb);
            own.setup(priority, &mut held);
            drop::<Held>(held);
            own.set_status(self.abort(open, ccb.abort_target()));
            ccb.take_result(own);
            return Ok(());
        }
        match &mut own {
            None => {
                let mut start = held.getccb();
                start.ccb_mut().setup(priority, &mut held);
                start.merge(ccb);
                ccb::run(start.ccb_mut(), &self.devstat, &mut held);
                ccb.take_result(start.ccb());
                held.release_ccb(start);
            }
            Some(own) => {
                let own = own.ccb_mut();
                own.take_request(ccb);
                own.setup(priority, &mut held);
                match route {
                    Route::UserCcb => ccb::run(own, &self.devstat, &mut held),
                    _ => held.action(own),
                }
                ccb.take_result(own);
            }
        }
        stats.complete(Outcome::of(ccb.is_good()));
        Ok(())
    }

    /// The synchronous call takes a CDB by pointer that is as long as the SIM has room
    /// for.
    ///
    /// # Errors
    /// `EFAULT`; `EINVAL`: too long.
    fn copyin_cdb(&self, ccb: &mut Ccb, cdb: &mut [u8; LONGEST_CDB]) -> Result {
        let len = ccb.csio().cdb_len;
        let is_elsewhere = ccb.hdr().flags & sys::CAM_CDB_POINTER != 0;
        let longest = if is_elsewhere {
            self.longest_cdb
        } else {
            sys::IOCDBLEN as u8
        };
        if len > longest {
            return Err(EINVAL);
        }
        if is_elsewhere {
            ccb.cdb_pointer().copyin(&mut cdb[..usize::from(len)])?;
            ccb.set_cdb_pointer(cdb);
        }
        Ok(())
    }
}

/// Bytes of the longest CDB of all.
const LONGEST_CDB: usize = 32;
