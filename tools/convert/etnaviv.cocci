// SPDX-License-Identifier: GPL-2.0
// Converts drivers/gpu/drm/etnaviv/etnaviv_gem.c to pagekit.h, and what etnaviv_gem.h has for it.

@@
@@
 #include <linux/vmalloc.h>
+#include <pagekit.h>

@@
@@
 #include "etnaviv_cmdbuf.h"
+#include <pagekit.h>

// --- Faults: the page that the offset of the VMA says, and all that a page table reaches ---

@@
typedef vm_fault_t;
symbol obj, vma, pages, pfn, pgoff;
identifier vmf;
@@
 static vm_fault_t etnaviv_gem_fault(struct vm_fault *vmf)
 {
 	...
-	unsigned long pfn;
-	pgoff_t pgoff;
+	unsigned long base = vma->vm_file == obj->filp ? 0 : drm_vma_node_start(&obj->vma_node);
 	...
-	pgoff = linear_page_delta(...);
-	pfn = page_to_pfn(...);
-	VERB(...);
-	return vmf_insert_pfn(...);
+	return pagekit_fault_pfns(vmf, pages, obj->size >> PAGE_SHIFT, base);
 }

// --- Mmap: cached objects, too, from the page on that is asked for ---

@@
identifier etnaviv_obj, vma;
@@
 static int etnaviv_gem_mmap_obj(struct etnaviv_gem_object *etnaviv_obj, struct vm_area_struct *vma)
 {
+	unsigned long base = drm_vma_node_start(&etnaviv_obj->base.vma_node);
 	pgprot_t vm_page_prot;
+	int ret;

-	vm_flags_set(...);
+	ret = pagekit_setup_pfns(vma, etnaviv_obj->base.size >> PAGE_SHIFT, base, 0);
+	if (ret)
+		return ret;
 	... when any
 }

@@
identifier vma;
@@
-	vma->vm_pgoff = 0;
+	vma->vm_pgoff -= base;

// --- User memory ---

@@
@@
 struct etnaviv_gem_userptr {
 	...
+	struct pagekit_pins pins;
 };

@@
@@
+static int etnaviv_gem_userptr_pin(struct etnaviv_gem_object *etnaviv_obj)
+{
+	struct etnaviv_gem_userptr *userptr = &etnaviv_obj->userptr;
+	unsigned long count = etnaviv_obj->base.size >> PAGE_SHIFT;
+	int ret;
+
+	might_lock_read(&current->mm->mmap_lock);
+
+	if (userptr->mm != current->mm)
+		return -EPERM;
+
+	userptr->pins.pages = kvmalloc_objs(struct page *, count);
+	if (!userptr->pins.pages)
+		return -ENOMEM;
+
+	ret = pagekit_pin_user(&userptr->pins, userptr->ptr, count, userptr->ro ? 0 : PAGEKIT_WRITE);
+	if (ret)
+		kvfree(userptr->pins.pages);
+	else
+		etnaviv_obj->pages = userptr->pins.pages;
+
+	return ret;
+}
+
 static int etnaviv_gem_userptr_get_pages(...) { ... }

@@
@@
-static int etnaviv_gem_userptr_get_pages(...) { ... }

@@
@@
 struct etnaviv_gem_ops etnaviv_gem_userptr_ops = {
-	.get_pages = etnaviv_gem_userptr_get_pages,
+	.get_pages = etnaviv_gem_userptr_pin,
 };

@@
identifier etnaviv_obj;
@@
-	unsigned int npages = etnaviv_obj->base.size >> PAGE_SHIFT;
-	unpin_user_pages(etnaviv_obj->pages, npages);
+	pagekit_unpin(&etnaviv_obj->userptr.pins, 0);
