// SPDX-License-Identifier: GPL-2.0
/*
 * The static inlines that style.rs and what it uses need, and what bindgen gets
 * wrong: where the mm is in task_struct.
 */
#include <linux/sched.h>

#include "style_shim.h"

SHIM(struct mm_struct *, pagekit_radeon_mm, (void), current->mm)
