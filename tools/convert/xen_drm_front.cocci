// SPDX-License-Identifier: GPL-2.0
// Converts drivers/gpu/drm/xen/xen_drm_front_gem.c to pagekit.h: its mmap operation. Its pages
// are a file's, or another domain's, and so they are mapped as PFNs.

@@
@@
 #include <linux/vmalloc.h>
+#include <pagekit.h>

@@
symbol ret, xen_obj;
identifier gem_obj, vma;
@@
 xen_drm_front_gem_object_mmap(struct drm_gem_object *gem_obj, struct vm_area_struct *vma)
 {
 	...
-	vm_flags_mod(vma, VM_MIXEDMAP | VM_DONTEXPAND, VM_PFNMAP);
-	vma->vm_pgoff = 0;
 	...
-	ret = vm_map_pages(vma, xen_obj->pages, xen_obj->num_pages);
+	ret = pagekit_map_pfns(vma, xen_obj->pages, xen_obj->num_pages,
+			       drm_vma_node_start(&gem_obj->vma_node), 0);
 	...
 }
