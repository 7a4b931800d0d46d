// SPDX-License-Identifier: GPL-2.0
/* What Rust can't do: string and writable module parameters, and static inlines. */
#include <linux/moduleparam.h>

#include "drm_shim.h"
#include "fence_shim.h"

extern char *pagekit_gem_name;
char *pagekit_gem_name = "pagekit-gem";
module_param_named(name, pagekit_gem_name, charp, 0444);
MODULE_PARM_DESC(name, "Name of the DRM driver. Default is pagekit-gem.");

extern char *pagekit_gem_huge;
char *pagekit_gem_huge = "within_size";
module_param_named(huge, pagekit_gem_huge, charp, 0444);
MODULE_PARM_DESC(huge, "Huge pages of objects, as tmpfs has them. Default is within_size.");

extern bool pagekit_gem_write_combine;
bool pagekit_gem_write_combine;
module_param_named(write_combine, pagekit_gem_write_combine, bool, 0644);
MODULE_PARM_DESC(write_combine,
		 "Don't have the CPU cache new objects: for devices that don't snoop. Default is N.");
