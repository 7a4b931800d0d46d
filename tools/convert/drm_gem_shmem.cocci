// SPDX-License-Identifier: GPL-2.0
// Converts drivers/gpu/drm/drm_gem_shmem_helper.c to pagekit.h: its mmap and fault operations.

@@
@@
 #include <drm/drm_prime.h>
+#include <pagekit.h>

// --- Faults: the page that the offset of the VMA says, and all that a page table reaches ---

@@
@@
-static void drm_gem_shmem_record_mkwrite(...) { ... }

@@
typedef vm_fault_t;
@@
-static vm_fault_t try_insert_pfn(...) { ... }

@@
identifier vmf, order;
@@
 static vm_fault_t drm_gem_shmem_any_fault(struct vm_fault *vmf, unsigned int order)
 {
+	struct drm_gem_object *obj = vmf->vma->vm_private_data;
+	struct drm_gem_shmem_object *shmem = to_drm_gem_shmem_obj(obj);
+	unsigned long count = obj->size >> PAGE_SHIFT, base = drm_vma_node_start(&obj->vma_node);
+	vm_fault_t ret;
+
+	dma_resv_lock(obj->resv, NULL);
+	if (drm_WARN_ON_ONCE(obj->dev, !shmem->pages) || shmem->madv < 0)
+		ret = VM_FAULT_SIGBUS;
+	else if (order)
+		ret = pagekit_huge_fault_pfns(vmf, order, shmem->pages, count, base);
+	else
+		ret = pagekit_fault_pfns(vmf, shmem->pages, count, base);
+	dma_resv_unlock(obj->resv);
+
+	return ret;
-	...
 }

@@
@@
-static vm_fault_t drm_gem_shmem_pfn_mkwrite(...) { ... }

@@
symbol drm_gem_shmem_vm_ops, drm_gem_shmem_pfn_mkwrite;
@@
 struct vm_operations_struct drm_gem_shmem_vm_ops = {
-	.pfn_mkwrite = drm_gem_shmem_pfn_mkwrite,
 };

// --- Mmap: entries are writable where the VMA is, so that pages are marked when they are put ---

@@
symbol ret, obj;
identifier shmem, vma;
@@
 drm_gem_shmem_mmap(struct drm_gem_shmem_object *shmem, struct vm_area_struct *vma)
 {
 	...
-	if (vma_is_cow_mapping(vma))
-		return -EINVAL;
+	ret = pagekit_setup_pfns(vma, obj->size >> PAGE_SHIFT, drm_vma_node_start(&obj->vma_node), 0);
+	if (ret)
+		return ret;
 	...
-	vm_flags_set(vma, VM_PFNMAP | VM_DONTEXPAND | VM_DONTDUMP);
+	if (vma->vm_flags & VM_MAYWRITE)
+		shmem->pages_mark_dirty_on_put = true;
 	...
 }
