// SPDX-License-Identifier: GPL-2.0
/*
 * What Rust can't do: string and writable module parameters, and static
 * inlines, one to one and without logic.
 */
#include <linux/hugetlb.h>
#include <linux/moduleparam.h>
#include <linux/shmem_fs.h>

#include "dmabuf_shim.h"
#include "name_shim.h"

extern char *pagekit_udmabuf_name;
char *pagekit_udmabuf_name = "pagekit-udmabuf";
module_param_named(name, pagekit_udmabuf_name, charp, 0444);
MODULE_PARM_DESC(name, "Name in /dev. Default is pagekit-udmabuf.");
SHIM(bool, pagekit_udmabuf_name_is_taken, (void), name_is_taken("misc", pagekit_udmabuf_name))

extern int pagekit_udmabuf_list_limit;
int pagekit_udmabuf_list_limit = 1024;
module_param_named(list_limit, pagekit_udmabuf_list_limit, int, 0644);
MODULE_PARM_DESC(list_limit, "udmabuf_create_list->count limit. Default is 1024.");

extern int pagekit_udmabuf_size_limit_mb;
int pagekit_udmabuf_size_limit_mb = INT_MAX;
module_param_named(size_limit_mb, pagekit_udmabuf_size_limit_mb, int, 0644);
MODULE_PARM_DESC(size_limit_mb, "Max size of a dmabuf, in megabytes. Default is INT_MAX.");

/* As memfd_file_seals_ptr() in mm/memfd.c, which is static. The inode must be locked. */
const unsigned int *pagekit_udmabuf_seals(struct file *file);
const unsigned int *pagekit_udmabuf_seals(struct file *file)
{
	lockdep_assert_held(&file_inode(file)->i_rwsem);
	if (shmem_file(file))
		return &SHMEM_I(file_inode(file))->seals;
#ifdef CONFIG_HUGETLBFS
	if (is_file_hugepages(file))
		return &HUGETLBFS_I(file_inode(file))->seals;
#endif
	return NULL;
}
