/* SPDX-License-Identifier: GPL-2.0 */
/*
 * The user interface of the samples i915_style, nouveau_style and radeon_style:
 * /dev/pagekit-i915, /dev/pagekit-nouveau and /dev/pagekit-radeon.
 *
 * An open file of such a device becomes an object of it, once, by CREATE or by
 * IMPORT, and has it until it is closed. A dma-buf that the same device has
 * exported is imported as the object that it is.
 *
 * All structures are the same for 32-bit programs. Unknown flags and reserved
 * fields that are not 0 are EINVAL, unknown commands, and those that a driver
 * doesn't have and that are right otherwise, ENOTTY. Without an object, commands
 * for one are ENOENT, and with one, CREATE and IMPORT are EEXIST. A signal that
 * comes while a command waits for a device that hangs, for fences, or for who has
 * an object reserved, makes it EINTR; not what waits in an exporter's operations.
 * Only a fatal signal ends the wait for radeon's own reservation, and for i915's
 * device while that gets the pages of an object. All sizes and offsets are in bytes.
 * What INFO tells is in /proc/PID/fdinfo/FD, too, and of all objects in
 * /sys/kernel/debug/pagekit-i915/objects and so on. These don't wait: where INFO
 * would, they have the size alone.
 */
#ifndef PAGEKIT_STYLE_H
#define PAGEKIT_STYLE_H

#include <linux/ioctl.h>
#include <linux/types.h>

/*
 * i915: mapping the dma-buf maps the object's own shmem file. Who punches holes in
 * the mapping (MADV_REMOVE) gets new pages there, while devices have the old ones.
 */
#define PAGEKIT_CREATE_SHMEM_MMAP	(1 << 0)
/*
 * radeon: of user memory at address, which can't be exported: EPERM. It counts as
 * locked memory (RLIMIT_MEMLOCK: ENOMEM) of the user, also after the process has ended.
 */
#define PAGEKIT_CREATE_USERPTR		(1 << 1)

struct pagekit_create {
	__aligned_u64 size;	/* whole pages */
	__aligned_u64 address;	/* of the user memory, page aligned; else 0 */
	__u32 flags;
	__u32 reserved;
};

/*
 * Makes the file a new object: EINVAL if it is larger than the driver's parameter
 * size_limit_mb allows, ENOMEM if it is larger than memory.
 */
#define PAGEKIT_CREATE	_IOW('K', 0x00, struct pagekit_create)

/* Makes the file an object of the dma-buf with this file descriptor. */
#define PAGEKIT_IMPORT	_IOW('K', 0x01, __s32)

#define PAGEKIT_EXPORT_CLOEXEC	(1 << 0)

/* Takes flags. Returns a file descriptor of the object's dma-buf. */
#define PAGEKIT_EXPORT	_IOW('K', 0x02, __u32)

/* What the device does. */
#define PAGEKIT_MAP_READ	(1 << 0)
#define PAGEKIT_MAP_WRITE	(1 << 1)

/*
 * Takes flags. Maps an imported object for the device: EBUSY if it is mapped.
 * Objects of the device itself are not mapped: EINVAL.
 */
#define PAGEKIT_MAP	_IOW('K', 0x03, __u32)
/* Undoes this: EINVAL if it is not mapped. */
#define PAGEKIT_UNMAP	_IO('K', 0x04)

#define PAGEKIT_ACCESS_WRITE	(1 << 0)	/* from user memory, else to it */
#define PAGEKIT_ACCESS_NOWAIT	(1 << 1)	/* radeon: EBUSY if the object is reserved */

struct pagekit_access {
	__aligned_u64 offset;
	__aligned_u64 length;
	__aligned_u64 address;
	__u32 flags;
	__u32 reserved;
};

/*
 * Copies data between the object and user memory. There is no hardware: the
 * driver copies, between the begin and the end of CPU access to the dma-buf.
 */
#define PAGEKIT_ACCESS	_IOW('K', 0x05, struct pagekit_access)

#define PAGEKIT_INFO_IMPORTED	(1 << 0)	/* attached to a foreign dma-buf */
#define PAGEKIT_INFO_WEDGED	(1 << 1)	/* i915: the device is */

/* In pages, except for the size. Of an import, what this device does with it. */
struct pagekit_info {
	__aligned_u64 size;
	__aligned_u64 pinned;		/* by this object, now */
	__aligned_u64 held;		/* by references, now */
	__aligned_u64 resident;		/* in memory; the others are in swap or were never used */
	__u32 attachments;		/* devices attached to the dma-buf */
	__u32 mappings;			/* for these devices */
	__u32 sharers;			/* files with this object; radeon: and attachments */
	__u32 flags;
};

#define PAGEKIT_INFO	_IOR('K', 0x06, struct pagekit_info)

/*
 * i915: the device hangs. Who needs it waits for a RESET, at most as many
 * milliseconds as are given here, and gets EIO then. Importers wait with the buffer
 * reserved, and others for them: so more than this is EINVAL.
 */
#define PAGEKIT_WEDGE_MAX	100000
#define PAGEKIT_WEDGE	_IOW('K', 0x07, __u32)
#define PAGEKIT_RESET	_IO('K', 0x08)

/*
 * Importers of this object that can map it again later are told to unmap it. Waits
 * until they have, and their fences have signalled, two seconds at most: EBUSY.
 * So it is if one of them can't map it again.
 */
#define PAGEKIT_SHRINK_REVOKE	(1 << 0)

/*
 * i915: takes flags. Gives the pages of all objects that are not pinned back to
 * the system, as memory pressure does, and returns how many.
 */
#define PAGEKIT_SHRINK	_IOW('K', 0x09, __u32)

#endif
