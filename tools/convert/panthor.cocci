// SPDX-License-Identifier: GPL-2.0
// Converts drivers/gpu/drm/panthor/panthor_gem.c to pagekit.h: its mmap and fault operations.
// Its locks, and trying again without them, stay.

@@
@@
 #include <linux/vmalloc.h>
+#include <pagekit.h>

@@
typedef vm_fault_t;
@@
-static vm_fault_t insert_page(...) { ... }

@@
typedef pgoff_t;
identifier vmf, order, offset;
@@
+static vm_fault_t insert_pages(struct vm_fault *vmf, unsigned int order,
+			       struct panthor_gem_object *bo)
+{
+	unsigned long count = bo->base.size >> PAGE_SHIFT;
+	unsigned long base = drm_vma_node_start(&bo->base.vma_node);
+
+	if (order)
+		return pagekit_huge_fault_pfns(vmf, order, bo->backing.pages, count, base);
+	return pagekit_fault_pfns(vmf, bo->backing.pages, count, base);
+}
+
 static vm_fault_t nonblocking_page_setup(struct vm_fault *vmf, unsigned int order
-	, pgoff_t offset
 	)
 {
 	...
 }

@@
identifier vmf, order, bo, mmap_lock_held;
@@
 static vm_fault_t blocking_page_setup(struct vm_fault *vmf, unsigned int order,
 				      struct panthor_gem_object *bo,
-				      pgoff_t page_offset,
 				      bool mmap_lock_held)
 { ... }

@@
symbol bo, page_offset;
identifier page;
@@
-	struct page *page = bo->backing.pages[page_offset];

@@
expression vmf, order, page;
@@
-insert_page(vmf, order, page)
+insert_pages(vmf, order, bo)

@@
identifier vmf, order, num_pages;
@@
 static vm_fault_t panthor_gem_any_fault(struct vm_fault *vmf, unsigned int order)
 {
 	...
-	loff_t num_pages = bo->base.size >> PAGE_SHIFT;
-	pgoff_t page_offset;
 	vm_fault_t ret;
-	if (order && order != PMD_ORDER)
-		return VM_FAULT_FALLBACK;
-	page_offset = vmf->pgoff - vma->vm_pgoff;
-	if (page_offset >= num_pages)
-		return VM_FAULT_SIGBUS;
 	...
 }

@@
expression vmf, order, bo, held;
@@
(
 nonblocking_page_setup(vmf, order
-	, page_offset
 	)
|
 blocking_page_setup(vmf, order, bo,
-	page_offset,
 	held)
)

@@
symbol ret, obj;
identifier vma;
@@
 panthor_gem_mmap(struct drm_gem_object *obj, struct vm_area_struct *vma)
 {
 	...
-	if (vma_is_cow_mapping(vma))
-		return -EINVAL;
+	ret = pagekit_setup_pfns(vma, obj->size >> PAGE_SHIFT, drm_vma_node_start(&obj->vma_node), 0);
+	if (ret)
+		return ret;
 	...
-	vm_flags_set(vma, VM_PFNMAP | VM_DONTEXPAND | VM_DONTDUMP);
 	...
 }
