/*-
 * SPDX-License-Identifier: BSD-2-Clause
 *
 * What a 32-bit process may do with a node (COMPAT_FREEBSD32): the calls whose
 * structures have one layout answer, those that take CCBs are ENOTTY.  The guest set
 * contexts runs it with a node's path; no libc.  The exit status is the number of the
 * step that went wrong, 0 if none.
 */
#include <sys/types.h>
#include <sys/ioccom.h>

#include "../../kmod/qpass_ioctl.h"

enum {
	SYS_EXIT = 1, SYS_OPEN = 5, SYS_CLOSE = 6, SYS_IOCTL = 54, SYS_POLL = 209,
	ENOTTY = 25, O_RDWR = 2, POLLIN = 1, POLLOUT = 4,
};

struct pollfd {
	int	fd;
	short	events;
	short	revents;
};

/* CAMIOQUEUE and CAMIOGET of <cam/scsi/scsi_pass.h>, whose headers are the kernel's. */
#define	QUEUE	_IO(0x1a, 4)
#define	GET	_IO(0x1a, 5)

/* A system call: 0 or above, or an errno below 0.  Its arguments lie behind a word. */
static long
call(long number, long first, long second, long third)
{
	long args[4] = { 0, first, second, third };
	long answer;
	unsigned char failed;

	__asm__ volatile("movl %%esp, %%esi\n\t"
	    "movl %3, %%esp\n\t"
	    "int $0x80\n\t"
	    "movl %%esi, %%esp\n\t"
	    "setc %1"
	    : "=a" (answer), "=q" (failed)
	    : "0" (number), "r" (args)
	    : "esi", "ecx", "edx", "memory", "cc");
	return (failed ? -answer : answer);
}

/* Zeroes. */
static struct qpass_info info;
static struct qpass_limit limit;
static struct qpass_list list;
static struct qpass_cancel cancel;
static struct qpass_enter enter;
static struct qpass_outstanding entry;
static struct pollfd watched;
static char ccb[2048];

static int
steps(const char *path)
{
	long fd;

	fd = call(SYS_OPEN, (long)path, O_RDWR, 0);
	if (fd < 0)
		return (1);
	if (call(SYS_IOCTL, fd, (long)QPIOC_INFO, (long)&info) != 0 ||
	    info.version != QPASS_VERSION || info.maxio == 0)
		return (2);
	limit.requests = 2;
	if (call(SYS_IOCTL, fd, (long)QPIOC_LIMIT, (long)&limit) != 0 ||
	    limit.requests != 2 || limit.bytes == 0)
		return (3);
	list.entries = (uintptr_t)&entry;
	list.room = 1;
	if (call(SYS_IOCTL, fd, (long)QPIOC_LIST, (long)&list) != 0)
		return (4);
	if (call(SYS_IOCTL, fd, (long)QPIOC_CANCEL, (long)&cancel) != 0 ||
	    cancel.dequeued != 0 || cancel.aborted != 0)
		return (5);
	if (call(SYS_IOCTL, fd, (long)QPIOC_ENTER, (long)&enter) != -ENOTTY)
		return (6);
	if (call(SYS_IOCTL, fd, (long)QUEUE, (long)ccb) != -ENOTTY)
		return (7);
	if (call(SYS_IOCTL, fd, (long)GET, (long)ccb) != -ENOTTY)
		return (8);
	watched.fd = (int)fd;
	watched.events = POLLIN | POLLOUT;
	if (call(SYS_POLL, (long)&watched, 1, 0) != 1 || watched.revents != POLLOUT)
		return (9);
	if (call(SYS_CLOSE, fd, 0, 0) != 0)
		return (10);
	return (0);
}

void	entered(long *words);

/* The stack as the kernel leaves it: the number of arguments, and each one's address. */
void
entered(long *words)
{
	int status;

	status = words[0] > 1 ? steps((const char *)words[2]) : 100;
	for (;;)
		call(SYS_EXIT, status, 0, 0);
}

__asm__(".globl _start\n"
    "_start:\n\t"
    "movl %esp, %eax\n\t"
    "andl $-16, %esp\n\t"
    "subl $12, %esp\n\t"
    "pushl %eax\n\t"
    "call entered\n");
