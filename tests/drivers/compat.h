/* SPDX-License-Identifier: GPL-2.0 */
/*
 * What the tests' C code needs of Linux 7.3 and 7.2 has under other names, or not at
 * all: kernel threads see the files of user space there. For drivers: samples/compat.rs.
 */
#include <linux/fs_struct.h>

#ifndef scoped_with_init_fs
#define scoped_with_init_fs()
#define shmem_write_folio(folio)		shmem_writeout(folio, NULL, NULL)
#define linear_page_delta(vma, address)		(((address) - (vma)->vm_start) >> PAGE_SHIFT)
#endif
