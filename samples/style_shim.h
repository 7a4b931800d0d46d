/* SPDX-License-Identifier: GPL-2.0 */
/* The same for style.rs, and for what it uses. */
#include <linux/iosys-map.h>
#include <linux/moduleparam.h>
#include <linux/mutex.h>
#include <linux/pagemap.h>
#include <linux/shmem_fs.h>

#include "dmabuf_shim.h"
#include "import_shim.h"
#include "shmem_shim.h"

/* SIZE_LIMIT_MB is a name of the driver's own, as several can be built into one kernel. */
extern int SIZE_LIMIT_MB;
int SIZE_LIMIT_MB = INT_MAX;
module_param_named(size_limit_mb, SIZE_LIMIT_MB, int, 0644);
MODULE_PARM_DESC(size_limit_mb, "Max size of an object, in megabytes. Default is INT_MAX.");

SHIM(int, pagekit_style_lock_killable, (struct mutex *mutex), mutex_lock_killable(mutex))
SHIM(struct file *, pagekit_style_shmem, (loff_t size),
     shmem_file_setup("pagekit", size, mk_vma_flags(VMA_NORESERVE_BIT)))
SHIM(void, pagekit_style_kill_nobody, (struct address_space *mapping),
     mapping_set_gfp_mask(mapping,
			  mapping_gfp_mask(mapping) | __GFP_RETRY_MAYFAIL | __GFP_NOWARN))
SHIM(void, pagekit_style_copy_from, (void *to, const struct iosys_map *map, size_t offset,
				     size_t len),
     iosys_map_memcpy_from(to, map, offset, len))
SHIM(void, pagekit_style_copy_to, (struct iosys_map *map, size_t offset, const void *from,
				   size_t len),
     iosys_map_memcpy_to(map, offset, from, len))
