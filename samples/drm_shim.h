/* SPDX-License-Identifier: GPL-2.0 */
/* The static inlines that drm.rs needs, one to one and without logic. */
#include <linux/mm.h>
#include <linux/pagemap.h>

#include <drm/drm_gem.h>
#include <drm/drm_vma_manager.h>

#include "dmabuf_shim.h"
#include "import_shim.h"
#include "shmem_shim.h"

SHIM(int, pagekit_drm_huge_mnt, (struct drm_device *dev, const char *value),
     drm_gem_huge_mnt_create(dev, value))
SHIM(void, pagekit_drm_lock_lookup, (struct drm_vma_offset_manager *manager),
     drm_vma_offset_lock_lookup(manager))
SHIM(void, pagekit_drm_unlock_lookup, (struct drm_vma_offset_manager *manager),
     drm_vma_offset_unlock_lookup(manager))
SHIM(bool, pagekit_drm_get_unless_zero, (struct drm_gem_object *obj),
     kref_get_unless_zero(&obj->refcount))
/* DRM calls this by a pointer, for which kCFI wants the name of the enum. */
SHIM(enum drm_gem_object_status, pagekit_drm_status, (struct drm_gem_object *obj),
     DRM_GEM_OBJECT_RESIDENT)
SHIM(void, pagekit_drm_unlock_fault, (struct vm_fault *vmf), release_fault_lock(vmf))
/* As drm_gem_shmem has it: pages that devices use are not where they would have to move. */
SHIM(void, pagekit_drm_keep_in_place, (struct address_space *mapping),
     mapping_set_gfp_mask(mapping, GFP_HIGHUSER | __GFP_RETRY_MAYFAIL | __GFP_NOWARN))
