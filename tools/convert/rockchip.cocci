// SPDX-License-Identifier: GPL-2.0
// Converts drivers/gpu/drm/rockchip/rockchip_drm_gem.c to pagekit.h: its mmap operation. Its pages
// are a file's, and so they are mapped as PFNs.

@@
@@
 #include <linux/vmalloc.h>
+#include <pagekit.h>

@@
@@
-static int rockchip_drm_gem_object_mmap_iommu(...) { ... }

@@
identifier obj, vma;
@@
 rockchip_drm_gem_object_mmap(struct drm_gem_object *obj, struct vm_area_struct *vma)
 {
 	...
-	vma->vm_pgoff = 0;
+	vma->vm_pgoff -= drm_vma_node_start(&obj->vma_node);
 	...
 }

@@
symbol rk_obj;
identifier obj, vma;
@@
-rockchip_drm_gem_object_mmap_iommu(obj, vma)
+pagekit_map_pfns(vma, rk_obj->pages, rk_obj->num_pages, 0, 0)
