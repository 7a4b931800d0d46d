// SPDX-License-Identifier: GPL-2.0
// Converts drivers/gpu/drm/msm/msm_gem.c to pagekit.h: its mmap and fault operations.

@@
@@
 #include <linux/pagemap.h>
+#include <pagekit.h>

@@
typedef vm_fault_t;
symbol vma, obj, pages, pfn, pgoff, ret;
identifier vmf;
@@
 static vm_fault_t msm_gem_fault(struct vm_fault *vmf)
 {
 	...
-	unsigned long pfn;
-	pgoff_t pgoff;
 	...
-	pgoff = linear_page_delta(...);
-	pfn = page_to_pfn(...);
-	VERB(...);
-	ret = vmf_insert_pfn(...);
+	ret = pagekit_fault_pfns(vmf, pages, obj->size >> PAGE_SHIFT,
+				 drm_vma_node_start(&obj->vma_node));
 	...
 }

@@
symbol msm_obj;
@@
 static int msm_gem_object_mmap(struct drm_gem_object *obj, struct vm_area_struct *vma)
 {
 	struct msm_gem_object *msm_obj = to_msm_bo(obj);

-	vm_flags_set(vma, VM_PFNMAP | VM_DONTEXPAND | VM_DONTDUMP);
 	vma->vm_page_prot = msm_gem_pgprot(...);
-	return 0;
+	return pagekit_setup_pfns(vma, obj->size >> PAGE_SHIFT, drm_vma_node_start(&obj->vma_node), 0);
 }
