/* SPDX-License-Identifier: GPL-2.0 */
/* The same for shmem.rs. */
#include <linux/pagemap.h>
#include <linux/sched.h>
#include <linux/writeback.h>

#include "../src/shim.h"

SHIM(void, pagekit_shmem_set_unevictable, (struct address_space *mapping),
     mapping_set_unevictable(mapping))
SHIM(void, pagekit_shmem_clear_unevictable, (struct address_space *mapping),
     mapping_clear_unevictable(mapping))
SHIM(void, pagekit_shmem_put_batch, (struct folio_batch *batch),
     (folio_batch_release(batch), (void)cond_resched()))
