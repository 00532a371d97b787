/*-
 * SPDX-License-Identifier: BSD-2-Clause
 *
 * qpass(4): what /dev/qpassN takes beyond pass(4)'s CAMIOCOMMAND, CAMIOQUEUE and
 * CAMIOGET, which are in <cam/scsi/scsi_pass.h> and <cam/cam_ccb.h>.
 *
 * Every structure has the same layout for 32-bit and 64-bit programs.  Reserved
 * fields, and the bits of flags that have no name, are zero on the way in, or the
 * call fails with EINVAL; they are zero on the way out.  Addresses are uint64_t.
 *
 * Every call fails with ENXIO when the device has gone, and with ENOTTY once devfs(5)
 * has let its node go too, which the next look into /dev does.
 */
#ifndef _QPASS_IOCTL_H_
#define	_QPASS_IOCTL_H_

#include <sys/types.h>
#include <sys/ioccom.h>

/* The version of this interface, in qpass_info.version. */
#define	QPASS_VERSION	1

/* Bits of qpass_info.features: which calls the driver answers. */
#define	QPASS_FEATURE_CANCEL	0x00000001u	/* QPIOC_CANCEL */
#define	QPASS_FEATURE_LIMIT	0x00000002u	/* QPIOC_LIMIT */
#define	QPASS_FEATURE_ENTER	0x00000004u	/* QPIOC_ENTER */
#define	QPASS_FEATURE_LIST	0x00000008u	/* QPIOC_LIST */
#define	QPASS_FEATURE_ZEROCOPY	0x00000010u	/* long transfers are not copied */
#define	QPASS_FEATURE_CANCEL_DEVICE 0x00000020u	/* QPASS_CANCEL_DEVICE */
#define	QPASS_FEATURE_UNMAPPED	0x00000100u	/* the SIM takes unmapped I/O */

/*
 * QPIOC_INFO: the driver, the device, this open and the device's counters, all
 * of one moment: submitted is completed plus outstanding.
 */
struct qpass_info {
	uint32_t	version;	/* QPASS_VERSION of the driver */
	uint32_t	features;	/* QPASS_FEATURE_* */
	uint32_t	maxio;		/* longest transfer, in bytes */
	uint32_t	requests;	/* of this open, not reaped yet */
	uint64_t	bytes;		/* of kernel memory and held pages */
	/* The device's counters, see sysctl kern.cam.qpass.N. */
	uint64_t	submitted;	/* commands taken */
	uint64_t	completed;	/* commands that have an outcome */
	uint64_t	outstanding;	/* commands that have none yet */
	uint64_t	errors;		/* ended other than with CAM_REQ_CMP */
	uint64_t	cancelled;	/* taken back before they were sent */
	uint64_t	copied_bytes;	/* between processes and bounce buffers */
	uint64_t	bounce_bytes;	/* of bounce buffers in use */
	uint64_t	zerocopy_bytes;	/* moved from and to processes' pages */
	uint64_t	reserved[7];
};

/*
 * QPIOC_LIMIT: this open's own ceilings.  On the way in, 0 leaves one as it is;
 * on the way out, both are those that apply.
 *
 * EINVAL: above the system's (sysctl kern.cam.qpass.max_requests, max_bytes).
 */
struct qpass_limit {
	uint32_t	requests;	/* queued and not reaped */
	uint32_t	reserved0;
	uint64_t	bytes;		/* of kernel memory and held pages */
	uint64_t	reserved[2];
};

/* Bits of qpass_cancel.flags. */
#define	QPASS_CANCEL_DEVICE	0x00000001u	/* of other opens too */

/*
 * QPIOC_CANCEL: takes requests of this open back, or, with QPASS_CANCEL_DEVICE,
 * for who has the privilege PRIV_DRIVER, of any open of the device, named as
 * QPIOC_LIST names them.  Each is reaped once all the same, by the open that it
 * is of, with CAM_REQ_ABORTED or with the outcome that it had before, and none is
 * sent again.
 *
 * It waits for SIMs for five seconds at most, in all.  What a SIM cannot abort, has
 * not answered by then, or was not asked for, is counted as unable.
 *
 * ENOENT: what was named is not outstanding.  EINTR: a signal came; some may be
 * aborted that are not counted.  EPERM: QPASS_CANCEL_DEVICE without the
 * privilege.  EINVAL: a CCB with that flag, an open or a number without it, or a
 * number without its open.
 */
struct qpass_cancel {
	uint64_t	ccb;		/* in: its CCB's address; 0 for all */
	uint32_t	flags;		/* in: QPASS_CANCEL_* */
	/* How many requests ... */
	uint32_t	dequeued;	/* were not sent yet, and are done now */
	uint32_t	aborted;	/* were sent; CAM says it aborts them */
	uint32_t	unable;		/* were sent, and are not aborted, or not yet */
	uint32_t	done;		/* were done already */
	uint32_t	reserved0;
	/* With QPASS_CANCEL_DEVICE, else 0. */
	uint64_t	open;		/* in: qpass_outstanding.open; 0 for all */
	uint64_t	number;		/* in: qpass_outstanding.number; 0 for all */
};

/* One CCB to submit. */
struct qpass_submission {
	uint64_t	ccb;		/* address of a union ccb */
	uint64_t	tag;		/* the program's own; comes back with it */
	uint64_t	reserved;
};

/* One completion. */
struct qpass_completion {
	uint64_t	tag;		/* of its submission; 0 from CAMIOQUEUE */
	uint64_t	ccb;		/* its CCB's address */
	uint32_t	status;		/* ccb_h.status, with its flags */
	uint32_t	resid;		/* bytes not moved, where the CCB has it */
	uint8_t		scsi_status;	/* XPT_SCSI_IO: the status byte */
	uint8_t		sense_len;	/* XPT_SCSI_IO: bytes of sense data */
	uint16_t	flags;		/* QPASS_COMPLETION_* */
	uint32_t	reserved;
};

/* Bits of qpass_completion.flags. */
#define	QPASS_COMPLETION_CCB	0x0001u	/* the CCB is written back */

/* Bits of qpass_enter.flags. */
#define	QPASS_ENTER_SHORT	0x00000001u	/* leave good CCBs unwritten */
#define	QPASS_ENTER_ABSTIME	0x00000002u	/* timeout is a point in time */
#define	QPASS_ENTER_WAIT_ROOM	0x00000004u	/* wait for room, not EAGAIN */

#define	QPASS_ENTER_MAX		4096u		/* entries of either array */
#define	QPASS_ENTER_FOREVER	0xffffffffffffffffULL	/* no timeout */

/*
 * QPIOC_ENTER: submits CCBs as CAMIOQUEUE does, then reaps completions as
 * CAMIOGET does, any of the open's, the oldest first.
 *
 * Submitting stops at the first CCB that is not taken; submit_error is its errno
 * as CAMIOQUEUE would give it, and the call does not wait.  With
 * QPASS_ENTER_WAIT_ROOM it does not stop at a limit, but reaps into the
 * completions meanwhile, or waits until another thread or open makes room, as long
 * as it would wait for completions.
 *
 * Then it waits until min_complete completions have been reaped by this call, and
 * reaps what else is done.  If it stops before, complete_error tells why:
 * ETIMEDOUT, EINTR (a signal), ENXIO (the device has gone), or EFAULT (a data
 * buffer, a CCB or a completion cannot be written; that request is not lost, and
 * comes again behind the others).  A completion is written before the data and the
 * CCB that it tells of; those behind the last that counts mean nothing.
 *
 * A CCB is written back to the address that it came from.  With QPASS_ENTER_SHORT
 * only those with a status other than CAM_REQ_CMP are: they have the sense data.
 *
 * The call itself fails, with nothing done, for: EINVAL (flags, reserved fields,
 * too many entries, min_complete above to_complete, or an overlong time), ENOTTY
 * (a 32-bit program).
 */
struct qpass_enter {
	uint64_t	submissions;	/* in: array of qpass_submission */
	uint64_t	completions;	/* in: array of qpass_completion */
	uint32_t	to_submit;	/* in: entries in submissions */
	uint32_t	to_complete;	/* in: room in completions, in entries */
	uint32_t	min_complete;	/* in: how many to wait for */
	uint32_t	flags;		/* in: QPASS_ENTER_* */
	uint64_t	timeout;	/* in: ns from now, or of CLOCK_MONOTONIC;
					   from 1 s on up to 1/64 late */
	uint32_t	submitted;	/* out: how many were taken */
	uint32_t	completed;	/* out: how many were reaped */
	int32_t		submit_error;	/* out: errno, 0 for none */
	int32_t		complete_error;	/* out: errno, 0 for none */
	uint64_t	reserved[2];
};

/* Values of qpass_outstanding.state. */
#define	QPASS_STATE_QUEUED	1	/* waits for CAM to have a CCB */
#define	QPASS_STATE_SENT	2	/* CAM or the device has it */
#define	QPASS_STATE_DONE	3	/* completed and not reaped */

/* Bits of qpass_outstanding.direction: which way its data goes. */
#define	QPASS_DIRECTION_IN	0x01u	/* from the device */
#define	QPASS_DIRECTION_OUT	0x02u	/* to the device */

/* One request that was taken and not reaped yet. */
struct qpass_outstanding {
	uint64_t	ccb;		/* its CCB's address in its process */
	uint64_t	tag;		/* of its submission */
	uint64_t	age;		/* since it was submitted, in ns */
	uint64_t	open;		/* number of its open, of the device */
	uint64_t	number;		/* its own, of its open */
	uint32_t	func_code;	/* ccb_h.func_code */
	uint32_t	length;		/* of its data, in bytes */
	int32_t		pid;		/* of the process that submitted it */
	uint8_t		state;		/* QPASS_STATE_* */
	uint8_t		direction;	/* QPASS_DIRECTION_* */
	uint8_t		cdb_len;	/* XPT_SCSI_IO: the CDB's, in bytes */
	uint8_t		reserved;
	/* The CDB's first bytes; those of an ATA or an NVMe command. */
	uint8_t		cdb[16];
};

/* Bits of qpass_list.flags. */
#define	QPASS_LIST_DEVICE	0x00000001u	/* in: of all opens of the device */
#define	QPASS_LIST_MORE		0x80000000u	/* out: there are more */

#define	QPASS_LIST_MAX		256u		/* entries that one call gives */

/*
 * QPIOC_LIST: the requests outstanding, of one moment, by age: of this open, or,
 * for who has the privilege PRIV_DRIVER, of the device.  With QPASS_LIST_MORE
 * set, the same call with the cursor that came out goes on behind the last entry;
 * the flag is ignored on the way in.
 *
 * EPERM: QPASS_LIST_DEVICE without the privilege.  EFAULT: entries.
 */
struct qpass_list {
	uint64_t	entries;	/* in: array of qpass_outstanding */
	uint32_t	room;		/* in: entries in it */
	uint32_t	count;		/* out: entries written */
	uint32_t	flags;		/* in, out: QPASS_LIST_* */
	uint32_t	reserved0;
	uint64_t	cursor[2];	/* in: 0 to begin; out: where to go on */
	uint64_t	reserved[2];
};

#define	QPIOC_INFO	_IOR('Q', 1, struct qpass_info)
#define	QPIOC_LIMIT	_IOWR('Q', 2, struct qpass_limit)
#define	QPIOC_CANCEL	_IOWR('Q', 3, struct qpass_cancel)
#define	QPIOC_ENTER	_IOWR('Q', 4, struct qpass_enter)
#define	QPIOC_LIST	_IOWR('Q', 5, struct qpass_list)

#endif /* _QPASS_IOCTL_H_ */
