/*
 * Every FreeBSD kernel header that qpass or the user-mode kernel needs.
 * bindgen reads this file; layout.c and kmod/shim.c compile against it.
 */
#include <sys/param.h>
#include <sys/systm.h>
#include <sys/kernel.h>
#include <sys/kenv.h>
#include <sys/bio.h>
#include <sys/buf.h>
#include <sys/bus.h>
#include <sys/callout.h>
#include <sys/conf.h>
#include <sys/devicestat.h>
#include <sys/errno.h>
#include <sys/event.h>
#include <sys/fcntl.h>
#include <sys/filedesc.h>
#include <sys/ioccom.h>
#include <sys/linker.h>
#include <sys/lock.h>
#include <sys/malloc.h>
#include <sys/module.h>
#include <sys/mutex.h>
#include <sys/pcpu.h>
#include <sys/poll.h>
#include <sys/priv.h>
#include <sys/proc.h>
#include <sys/selinfo.h>
#include <sys/signalvar.h>
#include <sys/sysctl.h>
#include <sys/sysent.h>
#include <sys/syscall.h>
#include <sys/mman.h>
#include <sys/reboot.h>
#include <sys/resource.h>
#include <sys/taskqueue.h>
#include <sys/time.h>
#include <sys/ucred.h>

#include <vm/vm.h>
#include <vm/pmap.h>
#include <vm/uma.h>
#include <vm/vm_extern.h>
#include <vm/vm_map.h>
#include <vm/vm_page.h>

#include <machine/bus.h>

#include <cam/cam.h>
#include <cam/cam_ccb.h>
#include <cam/cam_compat.h>
#include <cam/cam_periph.h>
#include <cam/cam_queue.h>
#include <cam/cam_sim.h>
#include <cam/cam_xpt.h>
#include <cam/cam_xpt_periph.h>
#include <cam/cam_xpt_sim.h>
#include <cam/cam_xpt_internal.h>
#include <cam/scsi/scsi_all.h>
#include <cam/scsi/scsi_message.h>
#include <cam/scsi/scsi_pass.h>

#include "../kmod/qpass_ioctl.h"

/*
 * Values whose macros bindgen cannot evaluate (ioctl numbers, casts).
 */
enum qpass_constants {
	QPC_GID_OPERATOR = GID_OPERATOR,
	QPC_D_VERSION = D_VERSION,
	QPC_VM_PROT_READ = VM_PROT_READ,
	QPC_VM_PROT_WRITE = VM_PROT_WRITE,
	QPC_CAM_PRIORITY_NONE = CAM_PRIORITY_NONE,
	QPC_CAM_PRIORITY_OOB = CAM_PRIORITY_OOB,
	QPC_CAM_PRIORITY_NORMAL = CAM_PRIORITY_NORMAL,
};

/* 15 calls it by the name that C has for it. */
#ifdef SYS_exit
static const unsigned int QPC_SYS_EXIT = SYS_exit;
#else
static const unsigned int QPC_SYS_EXIT = SYS__exit;
#endif
static const unsigned long long QPC_SBT_1S = SBT_1S;
static const unsigned long long QPC_SBT_1MS = SBT_1MS;
static const unsigned long QPC_VM_PAGE_SIZE = sizeof(struct vm_page);
static const unsigned long QPC_VM_PAGE_OBJECT = __offsetof(struct vm_page, object);
static const unsigned long QPC_VM_PAGE_DIRTY = __offsetof(struct vm_page, dirty);
static const unsigned int QPC_CAM_XPT_PATH_ID = CAM_XPT_PATH_ID;
static const unsigned int QPC_CAM_TARGET_WILDCARD = CAM_TARGET_WILDCARD;
static const unsigned long QPC_CAM_LUN_WILDCARD = CAM_LUN_WILDCARD;
static const unsigned long QPC_CAMIOCOMMAND = CAMIOCOMMAND;
static const unsigned long QPC_CAMIOQUEUE = CAMIOQUEUE;
static const unsigned long QPC_CAMIOGET = CAMIOGET;
static const unsigned long QPC_CAMGETPASSTHRU = CAMGETPASSTHRU;
static const unsigned long QPC_CAMIOCOMMAND_0x17 = CAMIOCOMMAND_0x17;
static const unsigned long QPC_CAMIOCOMMAND_0x18 = CAMIOCOMMAND_0x18;
static const unsigned long QPC_CAMIOCOMMAND_0x19 = CAMIOCOMMAND_0x19;
static const unsigned long QPC_CAMIOQUEUE_0x19 = CAMIOQUEUE_0x19;
static const unsigned long QPC_CAMIOGET_0x19 = CAMIOGET_0x19;
static const unsigned long QPC_CAM_0X17_DATA_LEN = CAM_0X17_DATA_LEN;
static const unsigned long QPC_CAM_0X18_DATA_LEN = CAM_0X18_DATA_LEN;
static const unsigned long QPC_QPIOC_INFO = QPIOC_INFO;
static const unsigned long QPC_QPIOC_LIMIT = QPIOC_LIMIT;
static const unsigned long QPC_QPIOC_CANCEL = QPIOC_CANCEL;
static const unsigned long QPC_QPIOC_ENTER = QPIOC_ENTER;
static const unsigned long QPC_QPIOC_LIST = QPIOC_LIST;
