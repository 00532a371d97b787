/*-
 * SPDX-License-Identifier: BSD-2-Clause
 *
 * qpass(4): what /dev/qpassN takes beyond pass(4)'s CAMIOCOMMAND, CAMIOQUEUE and
 * CAMIOGET, which are in <cam/scsi/scsi_pass.h> and <cam/cam_ccb.h>.
 *
 * Every structure has the same layout for 32-bit and 64-bit programs.  Reserved
 * fields are zero on the way in, or the call fails with EINVAL; they are zero on
 * the way out.
 *
 * Every call fails with ENXIO when the device has gone.
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
	uint64_t	bytes;		/* of kernel memory for their data */
	/* The device's counters, see sysctl kern.cam.qpass.N. */
	uint64_t	submitted;	/* commands taken */
	uint64_t	completed;	/* commands that have an outcome */
	uint64_t	outstanding;	/* commands that have none yet */
	uint64_t	errors;		/* ended other than with CAM_REQ_CMP */
	uint64_t	cancelled;	/* taken back before they were sent */
	uint64_t	copied_bytes;	/* between processes and bounce buffers */
	uint64_t	bounce_bytes;	/* of bounce buffers in use */
	uint64_t	reserved[8];
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
	uint64_t	bytes;		/* of kernel memory for their data */
	uint64_t	reserved[2];
};

/*
 * QPIOC_CANCEL: takes requests of this open back.  Each is reaped once all the
 * same, with CAM_REQ_ABORTED or with the outcome that it had before.
 *
 * ENOENT: no request of this open came with that CCB.
 */
struct qpass_cancel {
	uint64_t	ccb;		/* in: its CCB's address; 0 for all */
	uint32_t	flags;		/* in: 0 */
	/* How many requests ... */
	uint32_t	dequeued;	/* were not sent yet, and are done now */
	uint32_t	aborted;	/* were sent; CAM aborts them */
	uint32_t	unable;		/* were sent; CAM cannot abort them */
	uint32_t	done;		/* were done already */
	uint32_t	reserved0;
	uint64_t	reserved[2];
};

#define	QPIOC_INFO	_IOR('Q', 1, struct qpass_info)
#define	QPIOC_LIMIT	_IOWR('Q', 2, struct qpass_limit)
#define	QPIOC_CANCEL	_IOWR('Q', 3, struct qpass_cancel)

#endif /* _QPASS_IOCTL_H_ */
