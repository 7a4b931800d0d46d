// SPDX-License-Identifier: GPL-2.0
/* The static inlines that style.rs and what it uses need, and those of this driver. */
#include <linux/fs.h>
#include <linux/mutex.h>
#include <linux/sched/mm.h>

#define SIZE_LIMIT_MB pagekit_i915_size_limit_mb
#include "style_shim.h"

SHIM(unsigned int, pagekit_i915_pin_save, (void), memalloc_pin_save())
SHIM(void, pagekit_i915_pin_restore, (unsigned int flags), memalloc_pin_restore(flags))
SHIM(int, pagekit_i915_lock_interruptible, (struct mutex *mutex), mutex_lock_interruptible(mutex))
SHIM(int, pagekit_i915_mmap, (struct file *file, struct vm_area_struct *vma), vfs_mmap(file, vma))
