/*-
 * SPDX-License-Identifier: BSD-2-Clause
 *
 * What only a C compiler can say: linker sets, malloc types and sysctls are
 * macros of the kernel's headers.  No logic lives here.
 */
#include <sys/param.h>
#include <sys/systm.h>
#include <sys/kernel.h>
#include <sys/lock.h>
#include <sys/malloc.h>
#include <sys/module.h>
#include <sys/mutex.h>
#include <sys/sysctl.h>

#include <vm/vm.h>
#include <vm/pmap.h>
#include <vm/vm_page.h>

#include <cam/cam.h>
#include <cam/cam_ccb.h>
#include <cam/cam_periph.h>
#include <cam/cam_queue.h>
#include <cam/cam_sim.h>
#include <cam/cam_xpt_periph.h>
#include <cam/cam_xpt_internal.h>

/* What src/kpi has to say of the driver: wait channels, lines on the console. */
const char kpi_name[] = "qpass";

MALLOC_DEFINE(M_KPI, "qpass", "CAM queued pass-through driver");

u_int qpass_max_requests = 1024;
u_int qpass_device_max_requests = 4096;
/* 0 becomes what the machine's memory allows: see src/tunable.rs. */
u_long qpass_max_bytes = 0;
u_long qpass_device_max_bytes = 0;
u_long qpass_total_max_bytes = 0;
int qpass_allow_paddr = 0;
int qpass_replace = 0;
u_int qpass_zerocopy_min = 4 * 1024;

void	qpass_limits_changed(void);

/* A limit that is set may make room: whoever waits for some hears of it. */
static int
qpass_sysctl_requests(SYSCTL_HANDLER_ARGS)
{
	int error;

	error = sysctl_handle_int(oidp, arg1, arg2, req);
	if (error == 0 && req->newptr != NULL)
		qpass_limits_changed();
	return (error);
}

static int
qpass_sysctl_bytes(SYSCTL_HANDLER_ARGS)
{
	int error;

	error = sysctl_handle_long(oidp, arg1, arg2, req);
	if (error == 0 && req->newptr != NULL)
		qpass_limits_changed();
	return (error);
}

SYSCTL_DECL(_kern_cam);
static SYSCTL_NODE(_kern_cam, OID_AUTO, qpass, CTLFLAG_RD | CTLFLAG_MPSAFE, 0,
    "CAM queued pass-through driver");
#define	QPASS_LIMIT_REQUESTS(name, descr)				\
	SYSCTL_PROC(_kern_cam_qpass, OID_AUTO, name,			\
	    CTLTYPE_UINT | CTLFLAG_RWTUN | CTLFLAG_MPSAFE,		\
	    &qpass_##name, 0, qpass_sysctl_requests, "IU", descr)
#define	QPASS_LIMIT_BYTES(name, descr)					\
	SYSCTL_PROC(_kern_cam_qpass, OID_AUTO, name,			\
	    CTLTYPE_ULONG | CTLFLAG_RWTUN | CTLFLAG_MPSAFE,		\
	    &qpass_##name, 0, qpass_sysctl_bytes, "LU", descr)

QPASS_LIMIT_REQUESTS(max_requests,
    "Requests that one open may have outstanding");
QPASS_LIMIT_BYTES(max_bytes,
    "Bytes of data that one open may have outstanding");
QPASS_LIMIT_REQUESTS(device_max_requests,
    "Requests that all opens of a device may have outstanding");
QPASS_LIMIT_BYTES(device_max_bytes,
    "Bytes of data that all opens of a device may have outstanding");
QPASS_LIMIT_BYTES(total_max_bytes,
    "Bytes of memory that the requests of all devices may take");
SYSCTL_INT(_kern_cam_qpass, OID_AUTO, allow_paddr, CTLFLAG_RWTUN | CTLFLAG_SECURE,
    &qpass_allow_paddr, 0, "Take physical addresses from privileged processes");

SYSCTL_UINT(_kern_cam_qpass, OID_AUTO, zerocopy_min, CTLFLAG_RWTUN,
    &qpass_zerocopy_min, 0,
    "Bytes from which on a transfer uses the process's own pages");

/* Where a unit's own node goes. */
struct sysctl_oid_list *kpi_sysctl_parent =
    SYSCTL_STATIC_CHILDREN(_kern_cam_qpass);

static SYSCTL_NODE(_hw, OID_AUTO, qpass, CTLFLAG_RD | CTLFLAG_MPSAFE, 0,
    "CAM queued pass-through driver");
SYSCTL_INT(_hw_qpass, OID_AUTO, replace, CTLFLAG_RDTUN, &qpass_replace, 0,
    "Register as pass, where the kernel has no pass(4)");

/*
 * The first page from i on of n that is still of an object and is not dirty all
 * over; n where there is none.  The answer is of the moment.
 */
int	kpi_clean_page(vm_page_t *pages, int i, int n);

int
kpi_clean_page(vm_page_t *pages, int i, int n)
{

	while (i < n && (pages[i]->dirty == VM_PAGE_BITS_ALL ||
	    pages[i]->object == NULL))
		i++;
	return (i);
}

/*
 * Takes a CCB off the queue in which CAM has it for its device, and says whether
 * it was there.  XPT_ABORT takes it off as well, and then counts it among the
 * commands that the SIM has given back, which gives the device and the SIM one
 * opening more each (cam_xpt.c, xpt_done_process()).
 */
int	kpi_ccb_dequeue(union ccb *ccb);

int
kpi_ccb_dequeue(union ccb *ccb)
{
	struct cam_ed *device = ccb->ccb_h.path->device;
	struct cam_devq *devq = device->sim->devq;
	int waits;

	mtx_lock(&devq->send_mtx);
	waits = ccb->ccb_h.pinfo.index > 0;
	if (waits)
		cam_ccbq_remove_ccb(&device->ccbq, ccb);
	mtx_unlock(&devq->send_mtx);
	return (waits);
}

int	qpass_modevent(module_t mod, int type, void *data);

static moduledata_t qpass_mod = {
	"qpass",
	qpass_modevent,
	NULL
};

DECLARE_MODULE(qpass, qpass_mod, SI_SUB_DRIVERS, SI_ORDER_ANY);
MODULE_VERSION(qpass, 1);
MODULE_DEPEND(qpass, cam, 1, 1, 1);
