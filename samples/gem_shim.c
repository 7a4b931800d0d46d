// SPDX-License-Identifier: GPL-2.0
/* What Rust can't do: string module parameters, and the static inlines that drm.rs needs. */
#include <linux/moduleparam.h>

#include "drm_shim.h"

extern char *pagekit_gem_name;
char *pagekit_gem_name = "pagekit-gem";
module_param_named(name, pagekit_gem_name, charp, 0444);
MODULE_PARM_DESC(name, "Name of the DRM driver. Default is pagekit-gem.");

extern char *pagekit_gem_huge;
char *pagekit_gem_huge = "within_size";
module_param_named(huge, pagekit_gem_huge, charp, 0444);
MODULE_PARM_DESC(huge, "Huge pages of objects, as tmpfs has them. Default is within_size.");
