/*-
 * SPDX-License-Identifier: BSD-2-Clause
 *
 * Reads the first megabytes of a disk through qpass(4), 32 commands at a time,
 * 16 to a system call, into memory that the device itself writes. The disk is
 * one with SCSI commands, of less than 2^32 blocks.
 *
 *	cc -o example -I/usr/local/include example.c
 *	./example /dev/qpass0 64
 */
#include <sys/param.h>
#include <sys/ioctl.h>

#include <stdio.h>			/* the CAM headers want FILE */

#include <cam/cam.h>
#include <cam/cam_ccb.h>
#include <cam/scsi/scsi_all.h>
#include <cam/scsi/scsi_message.h>
#include <cam/scsi/scsi_pass.h>

#include <err.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <qpass_ioctl.h>

#define	DEPTH		32u
#define	BATCH		16u
#define	LENGTH		(128u * 1024)

static uint32_t block;			/* bytes of one, as the disk says */
static uint64_t blocks;			/* of the disk */

static union ccb *ccbs;			/* one for each command under way */
static uint8_t *data;			/* LENGTH bytes for each of them */

/* READ(10) of LENGTH bytes, the n-th such piece of the disk. */
static void
fill_read(unsigned int slot, unsigned int n)
{
	struct ccb_scsiio *csio = &ccbs[slot].csio;
	uint32_t count = LENGTH / block, lba = n * count;
	uint8_t *cdb = csio->cdb_io.cdb_bytes;

	memset(&ccbs[slot], 0, sizeof(ccbs[slot]));
	csio->ccb_h.func_code = XPT_SCSI_IO;
	csio->ccb_h.flags = CAM_DIR_IN | CAM_DEV_QFRZDIS;
	csio->ccb_h.retry_count = 1;
	csio->ccb_h.timeout = 10000;	/* ms */
	csio->data_ptr = data + (size_t)slot * LENGTH;
	csio->dxfer_len = LENGTH;
	csio->sense_len = SSD_FULL_SIZE;
	csio->tag_action = MSG_SIMPLE_Q_TAG;
	csio->cdb_len = 10;
	cdb[0] = READ_10;
	cdb[2] = (uint8_t)(lba >> 24);
	cdb[3] = (uint8_t)(lba >> 16);
	cdb[4] = (uint8_t)(lba >> 8);
	cdb[5] = (uint8_t)lba;
	cdb[7] = (uint8_t)(count >> 8);
	cdb[8] = (uint8_t)count;
}

static uint32_t
be32(const uint8_t *p)
{
	return ((uint32_t)p[0] << 24 | (uint32_t)p[1] << 16 |
	    (uint32_t)p[2] << 8 | p[3]);
}

/* READ CAPACITY(10): how many blocks, and of how many bytes. */
static void
read_capacity(int fd, const char *name)
{
	union ccb ccb;
	struct ccb_scsiio *csio = &ccb.csio;
	uint8_t answer[8];

	memset(&ccb, 0, sizeof(ccb));
	memset(answer, 0, sizeof(answer));
	csio->ccb_h.func_code = XPT_SCSI_IO;
	/* A unit attention is no answer: CAM asks again. */
	csio->ccb_h.flags = CAM_DIR_IN | CAM_DEV_QFRZDIS |
	    CAM_PASS_ERR_RECOVER;
	csio->ccb_h.retry_count = 3;
	csio->ccb_h.timeout = 10000;
	csio->data_ptr = answer;
	csio->dxfer_len = sizeof(answer);
	csio->sense_len = SSD_FULL_SIZE;
	csio->tag_action = MSG_SIMPLE_Q_TAG;
	csio->cdb_len = 10;
	csio->cdb_io.cdb_bytes[0] = READ_CAPACITY;
	if (ioctl(fd, CAMIOCOMMAND, &ccb) == -1)
		err(1, "%s: READ CAPACITY", name);
	if ((ccb.ccb_h.status & CAM_STATUS_MASK) != CAM_REQ_CMP ||
	    csio->resid != 0)
		errx(1, "%s: READ CAPACITY: CAM status 0x%" PRIx32, name,
		    ccb.ccb_h.status);
	blocks = (uint64_t)be32(answer) + 1;
	block = be32(answer + 4);
	if (block == 0 || LENGTH % block != 0)
		errx(1, "%s: blocks of %" PRIu32 " bytes", name, block);
}

int
main(int argc, char *argv[])
{
	struct qpass_submission submissions[DEPTH];
	struct qpass_completion completions[DEPTH];
	struct qpass_enter call;
	struct qpass_info info;
	unsigned int failed, i, next, pieces, reaped, ready, slot, under_way;
	unsigned int slots[DEPTH];
	unsigned long megabytes;
	char *end;
	int fd;

	if (argc != 3) {
		fprintf(stderr, "usage: example /dev/qpassN MEGABYTES\n");
		return (2);
	}
	errno = 0;
	megabytes = strtoul(argv[2], &end, 10);
	if (errno != 0 || end == argv[2] || *end != '\0' || argv[2][0] == '-' ||
	    megabytes == 0 || megabytes > UINT32_MAX / 16)
		errx(2, "%s: not a number of megabytes", argv[2]);
	pieces = (unsigned int)megabytes * ((1024 * 1024) / LENGTH);
	if ((fd = open(argv[1], O_RDWR)) == -1)
		err(1, "%s", argv[1]);
	if (ioctl(fd, QPIOC_INFO, &info) == -1)
		err(1, "%s: QPIOC_INFO", argv[1]);
	if ((info.features & QPASS_FEATURE_ENTER) == 0 || info.maxio < LENGTH)
		errx(1, "%s: version %" PRIu32 ", maxio %" PRIu32 ": not enough",
		    argv[1], info.version, info.maxio);

	read_capacity(fd, argv[1]);
	if ((uint64_t)pieces * (LENGTH / block) > blocks)
		errx(1, "%s: has %" PRIu64 " blocks of %" PRIu32 " bytes, less than"
		    " that", argv[1], blocks, block);

	ccbs = calloc(DEPTH, sizeof(*ccbs));
	/* Page-aligned, so that not a byte is copied. */
	data = aligned_alloc(PAGE_SIZE, (size_t)DEPTH * LENGTH);
	if (ccbs == NULL || data == NULL)
		err(1, "memory");

	failed = next = reaped = under_way = 0;
	for (ready = 0; ready < DEPTH; ready++)
		slots[ready] = ready;
	while (reaped < pieces) {
		/* Every free slot gets the next piece. */
		memset(&call, 0, sizeof(call));
		for (i = 0; ready != 0 && next < pieces; i++, next++) {
			slot = slots[--ready];
			fill_read(slot, next);
			submissions[i].ccb = (uintptr_t)&ccbs[slot];
			submissions[i].tag = slot;
			submissions[i].reserved = 0;
		}
		call.submissions = (uintptr_t)submissions;
		call.to_submit = i;
		under_way += i;
		call.completions = (uintptr_t)completions;
		call.to_complete = DEPTH;
		call.min_complete = MIN(BATCH, under_way);
		call.flags = QPASS_ENTER_SHORT;
		call.timeout = QPASS_ENTER_FOREVER;
		if (ioctl(fd, QPIOC_ENTER, &call) == -1)
			err(1, "%s: QPIOC_ENTER", argv[1]);
		if (call.submit_error != 0)
			errc(1, call.submit_error, "%s: after %" PRIu32
			    " of %u commands", argv[1], call.submitted, i);
		for (i = 0; i < call.completed; i++) {
			slot = (unsigned int)completions[i].tag;
			if ((completions[i].status & CAM_STATUS_MASK) !=
			    CAM_REQ_CMP) {
				/* Written back, with its sense data. */
				fprintf(stderr, "CAM status 0x%" PRIx32
				    ", SCSI status 0x%x, %u bytes of sense\n",
				    completions[i].status,
				    completions[i].scsi_status,
				    completions[i].sense_len);
				failed++;
			}
			slots[ready++] = slot;
		}
		reaped += call.completed;
		under_way -= call.completed;
		if (call.complete_error != 0)
			errc(1, call.complete_error, "%s: waiting", argv[1]);
	}

	if (ioctl(fd, QPIOC_INFO, &info) == -1)
		err(1, "%s: QPIOC_INFO", argv[1]);
	printf("%u reads, %u failed; of the device's bytes %" PRIu64
	    " were copied, %" PRIu64 " were not\n", reaped, failed,
	    info.copied_bytes, info.zerocopy_bytes);
	close(fd);
	return (failed != 0);
}
