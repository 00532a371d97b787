/*
 * The C compiler's word on sizes and offsets.  build.rs compiles this file to
 * assembly and picks up the lines that start with "->"; src/layout.rs asserts
 * that bindgen's Rust types agree.
 */
#include "wrapper.h"

#define	EMIT(name, value) \
	__asm__ volatile("\n.ascii \"->" name " %c0\"" : : "i" (value))
#define	SIZE(rust, ctype)	EMIT("size " #rust, sizeof(ctype))
#define	OFFSET(rust, ctype, field) \
	EMIT("offset " #rust " " #field, __offsetof(ctype, field))

_Static_assert(__offsetof(struct vmspace, vm_map) == 0,
    "a vmspace starts with its vm_map");

void qpass_layout(void);

void
qpass_layout(void)
{
	SIZE(ccb, union ccb);
	SIZE(ccb_hdr, struct ccb_hdr);
	OFFSET(ccb_hdr, struct ccb_hdr, retry_count);
	OFFSET(ccb_hdr, struct ccb_hdr, cbfcnp);
	OFFSET(ccb_hdr, struct ccb_hdr, func_code);
	OFFSET(ccb_hdr, struct ccb_hdr, status);
	OFFSET(ccb_hdr, struct ccb_hdr, path);
	OFFSET(ccb_hdr, struct ccb_hdr, flags);
	OFFSET(ccb_hdr, struct ccb_hdr, periph_priv);
	OFFSET(ccb_hdr, struct ccb_hdr, sim_priv);
	OFFSET(ccb_hdr, struct ccb_hdr, timeout);
	SIZE(ccb_scsiio, struct ccb_scsiio);
	OFFSET(ccb_scsiio, struct ccb_scsiio, data_ptr);
	OFFSET(ccb_scsiio, struct ccb_scsiio, dxfer_len);
	OFFSET(ccb_scsiio, struct ccb_scsiio, sense_data);
	OFFSET(ccb_scsiio, struct ccb_scsiio, sglist_cnt);
	OFFSET(ccb_scsiio, struct ccb_scsiio, scsi_status);
	OFFSET(ccb_scsiio, struct ccb_scsiio, resid);
	OFFSET(ccb_scsiio, struct ccb_scsiio, cdb_io);
	SIZE(ccb_ataio, struct ccb_ataio);
	OFFSET(ccb_ataio, struct ccb_ataio, data_ptr);
	OFFSET(ccb_ataio, struct ccb_ataio, resid);
	SIZE(ccb_nvmeio, struct ccb_nvmeio);
	OFFSET(ccb_nvmeio, struct ccb_nvmeio, data_ptr);
	SIZE(ccb_smpio, struct ccb_smpio);
	OFFSET(ccb_smpio, struct ccb_smpio, smp_request);
	OFFSET(ccb_smpio, struct ccb_smpio, smp_response);
	SIZE(ccb_pathinq, struct ccb_pathinq);
	OFFSET(ccb_pathinq, struct ccb_pathinq, hba_misc);
	OFFSET(ccb_pathinq, struct ccb_pathinq, maxio);
	SIZE(ccb_getdev, struct ccb_getdev);
	OFFSET(ccb_getdev, struct ccb_getdev, inq_data);
	SIZE(ccb_dev_match, struct ccb_dev_match);
	OFFSET(ccb_dev_match, struct ccb_dev_match, patterns);
	OFFSET(ccb_dev_match, struct ccb_dev_match, matches);
	SIZE(ccb_dev_advinfo, struct ccb_dev_advinfo);
	OFFSET(ccb_dev_advinfo, struct ccb_dev_advinfo, buf);
	SIZE(cam_periph, struct cam_periph);
	OFFSET(cam_periph, struct cam_periph, path);
	OFFSET(cam_periph, struct cam_periph, softc);
	OFFSET(cam_periph, struct cam_periph, unit_number);
	OFFSET(cam_periph, struct cam_periph, flags);
	SIZE(periph_driver, struct periph_driver);
	OFFSET(periph_driver, struct periph_driver, units);
	OFFSET(periph_driver, struct periph_driver, deinit);
	SIZE(cdevsw, struct cdevsw);
	OFFSET(cdevsw, struct cdevsw, d_ioctl);
	OFFSET(cdevsw, struct cdevsw, d_kqfilter);
	SIZE(cdev, struct cdev);
	OFFSET(cdev, struct cdev, si_drv1);
	SIZE(make_dev_args, struct make_dev_args);
	SIZE(selinfo, struct selinfo);
	SIZE(knlist, struct knlist);
	OFFSET(knlist, struct knlist, kl_lockarg);
	SIZE(filterops, struct filterops);
	SIZE(knote, struct knote);
	OFFSET(knote, struct knote, kn_fop);
	OFFSET(knote, struct knote, kn_hook);
	OFFSET(knote, struct knote, kn_kevent);
	SIZE(kevent, struct kevent);
	SIZE(bio, struct bio);
	OFFSET(bio, struct bio, bio_ma);
	OFFSET(bio, struct bio, bio_ma_offset);
	OFFSET(bio, struct bio, bio_ma_n);
	OFFSET(bio, struct bio, bio_flags);
	OFFSET(bio, struct bio, bio_bcount);
	OFFSET(proc_, struct proc, p_vmspace);
	SIZE(bus_dma_segment_t, bus_dma_segment_t);
	SIZE(task, struct task);
	SIZE(mtx, struct mtx);
	OFFSET(mtx, struct mtx, mtx_lock);
	SIZE(moduledata, struct moduledata);
	SIZE(malloc_type, struct malloc_type);
	OFFSET(thread, struct thread, td_proc);
	OFFSET(thread, struct thread, td_ucred);
	OFFSET(proc_, struct proc, p_sysent);
	OFFSET(sysentvec, struct sysentvec, sv_flags);
	SIZE(qpass_info, struct qpass_info);
	OFFSET(qpass_info, struct qpass_info, submitted);
	OFFSET(qpass_info, struct qpass_info, reserved);
	SIZE(qpass_limit, struct qpass_limit);
	OFFSET(qpass_limit, struct qpass_limit, bytes);
	SIZE(qpass_cancel, struct qpass_cancel);
	OFFSET(qpass_cancel, struct qpass_cancel, dequeued);
	OFFSET(qpass_cancel, struct qpass_cancel, open);
	OFFSET(qpass_cancel, struct qpass_cancel, number);
	SIZE(qpass_submission, struct qpass_submission);
	OFFSET(qpass_submission, struct qpass_submission, tag);
	SIZE(qpass_completion, struct qpass_completion);
	OFFSET(qpass_completion, struct qpass_completion, status);
	OFFSET(qpass_completion, struct qpass_completion, flags);
	SIZE(qpass_enter, struct qpass_enter);
	OFFSET(qpass_enter, struct qpass_enter, timeout);
	OFFSET(qpass_enter, struct qpass_enter, submit_error);
	OFFSET(qpass_enter, struct qpass_enter, reserved);
	SIZE(qpass_outstanding, struct qpass_outstanding);
	OFFSET(qpass_outstanding, struct qpass_outstanding, func_code);
	OFFSET(qpass_outstanding, struct qpass_outstanding, cdb);
	SIZE(qpass_list, struct qpass_list);
	OFFSET(qpass_list, struct qpass_list, cursor);
	OFFSET(proc_, struct proc, p_pid);
	SIZE(uma_zone_t, uma_zone_t);
	SIZE(uma_align, int);
}
