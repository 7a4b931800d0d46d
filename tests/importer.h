/* SPDX-License-Identifier: GPL-2.0 */
/* The test importer's user interface: /dev/pagekit-importer. */
#ifndef PAGEKIT_IMPORTER_H
#define PAGEKIT_IMPORTER_H

#include <linux/ioctl.h>
#include <linux/types.h>

#define IMPORTER_WRITE	1	/* from user memory into the buffer, else the other way */
#define IMPORTER_VMAP	2	/* through a kernel mapping, else as a device */

struct importer_access {
	__s32 fd;
	__u32 flags;
	__u64 offset;
	__u64 len;
	__u64 user;
};

/* Copies len bytes between user memory and the dma-buf fd. */
#define IMPORTER_ACCESS	_IOW('P', 1, struct importer_access)
/*
 * Maps the dma-buf fd twice through one attachment, begins and ends CPU access
 * meanwhile, and unmaps in both orders. Returns the segments of the mapping.
 */
#define IMPORTER_TWICE	_IOW('P', 2, __s32)

#endif
