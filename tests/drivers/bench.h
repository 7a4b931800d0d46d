/* SPDX-License-Identifier: GPL-2.0 */
/*
 * What the two modules of the benchmark do alike: /dev/pagekit-bench with the
 * helpers, /dev/pagekit-bench-peer as the C code in mainline does.
 *
 * An open file is one object. BENCH_MAKE gets its pages, mmap() maps them, and
 * closing the file releases them.
 */
#ifndef PAGEKIT_BENCH_H
#define PAGEKIT_BENCH_H

#include <linux/ioctl.h>
#include <linux/types.h>

struct bench_make {
	__u32 how;	/* one of the below */
	__s32 fd;	/* a shmem file, where pages come from one */
	__u64 start;	/* page offset there, or user address */
	__u64 count;	/* pages */
};

#define BENCH_MAKE	_IOW('B', 1, struct bench_make)

/* /dev/pagekit-bench */
#define OURS_PAGES		0	/* hold the pages of the file */
#define OURS_MAP_PFNS		1	/* the same, and map PFNs eagerly */
#define OURS_FAULT_PFNS		2	/* the same, on fault */
#define OURS_MAP_PAGES		3	/* new pages, mapped by reference eagerly */
#define OURS_MAP_PAGES_LARGE	4	/* the same, of large folios */
#define OURS_PIN_USER		5	/* pin user memory */
#define OURS_PIN_MEMFD		6	/* pin the pages of the file */
#define OURS_FAULT_PAGES	7	/* new pages, mapped by reference on fault */
#define OURS_FAULT_PAGES_LARGE	8	/* the same, of large folios */

/* /dev/pagekit-bench-peer: what each stands for is said in peer.c */
#define PEER_DRM_GEM		0
#define PEER_PUT_PAGE		1
#define PEER_RELEASE_PAGES	2
#define PEER_REMAP_SG		3
#define PEER_FAULT_EACH		4
#define PEER_INSERT_PAGES	5
#define PEER_INSERT_PAGES_LARGE	6
#define PEER_PIN_USER		7
#define PEER_PIN_MEMFD		8
#define PEER_FAULT_GET		13
#define PEER_FAULT_GET_LARGE	14
/* No peers, but the least that is to be had with the kernel's exported functions. */
#define FLOOR_PAGES		9
#define FLOOR_MAP_PFNS		10
#define FLOOR_FAULT		11
#define FLOOR_PIN_MEMFD		12

#endif
