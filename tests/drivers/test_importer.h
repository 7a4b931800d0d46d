/* SPDX-License-Identifier: GPL-2.0 */
/*
 * The test importer's user interface: /dev/pagekit-importer. An open file has one
 * dma-buf attached at a time, which mmap of the file maps: ENOTCONN without one.
 */
#ifndef PAGEKIT_TEST_IMPORTER_H
#define PAGEKIT_TEST_IMPORTER_H

#include <linux/ioctl.h>
#include <linux/types.h>

#define IMPORTER_DYNAMIC	1	/* the exporter may move the buffer while it is mapped */

struct importer_attach {
	__s32 fd;
	__u32 flags;
};

#define IMPORTER_WRITE	1	/* from user memory into the buffer, else the other way */
#define IMPORTER_VMAP	2	/* through a kernel mapping, else as a device */

struct importer_access {
	__u32 flags;
	__u32 reserved;		/* 0 */
	__u64 offset;
	__u64 len;
	__u64 user;
};

/* Attaches to a dma-buf. EBUSY if the file has one already. */
#define IMPORTER_ATTACH	_IOW('P', 1, struct importer_attach)
/* Unmaps, if need be, and detaches. All others but attach need an attachment: ENOTCONN. */
#define IMPORTER_DETACH	_IO('P', 2)
/* Maps for a DMA direction, an enum dma_data_direction. EBUSY if it is mapped. */
#define IMPORTER_MAP	_IOW('P', 3, __u32)
/* Unmaps. ENXIO if it isn't mapped. */
#define IMPORTER_UNMAP	_IO('P', 4)
/*
 * Copies len bytes between user memory and the buffer. A device needs a mapping, ENXIO, whose
 * direction allows it, EACCES; what the exporter has moved is mapped again first.
 */
#define IMPORTER_ACCESS	_IOW('P', 5, struct importer_access)
/* Returns how often the exporter has said that it moves the buffer: it tells dynamic importers. */
#define IMPORTER_MOVES	_IO('P', 6)
/*
 * Maps twice through the attachment, begins and ends CPU access meanwhile, and
 * unmaps in both orders. Returns the segments of the mapping.
 */
#define IMPORTER_TWICE	_IO('P', 7)
/* Tells all importers of the buffer that it moves, as its exporter would. */
#define IMPORTER_MOVE	_IO('P', 8)

#define IMPORTER_LATER_MAX	2000

struct importer_later {
	__u64 offset;	/* of a page */
	__u32 value;	/* a byte */
	__u32 ms;	/* no more than IMPORTER_LATER_MAX */
};

/*
 * Has the device fill a page some milliseconds later, for which the buffer gets a fence. Whoever
 * unmaps meanwhile doesn't stop it, nor does a move: then it is unmapped when it is done. Needs a
 * mapping, ENXIO, whose direction allows it, EACCES. EBUSY while there is such a fence.
 */
#define IMPORTER_LATER	_IOW('P', 9, struct importer_later)

#define IMPORTER_IS_WC		1	/* for write-combining */
#define IMPORTER_IS_HUGE	2

/*
 * Returns how the page tables of the caller have an address. EINVAL if nothing is there, or pages
 * that are not shown as PFNs. Needs no attachment, and its argument is the address itself.
 */
#define IMPORTER_ENTRY	_IO('P', 10)

struct importer_guest {
	__u64 addr;	/* in a mapping of PFNs */
	__u32 write;	/* 0 or 1 */
	__u32 reserved;	/* 0 */
};

/*
 * Resolves a fault of a guest as KVM does for memory that it can't pin. Returns whether the entry
 * is writable then: KVM fails a write if it isn't. EFAULT if it can't be mapped so. Needs no
 * attachment.
 */
#define IMPORTER_GUEST	_IOW('P', 11, struct importer_guest)

#endif
