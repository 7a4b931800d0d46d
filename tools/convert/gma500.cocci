// SPDX-License-Identifier: GPL-2.0
// Converts drivers/gpu/drm/gma500/gem.c to pagekit.h: faults. Stolen memory has no pages, and
// stays; its offset is mended.

@@
@@
 #include <linux/pagemap.h>
+#include <pagekit.h>

@@
typedef vm_fault_t;
symbol vma, obj, pobj, dev_priv, pfn, page_offset, ret;
identifier vmf;
@@
 static vm_fault_t psb_gem_fault(struct vm_fault *vmf)
 {
 	...
-	pgoff_t page_offset;
+	unsigned long base;
 	...
-	page_offset = linear_page_delta(...);
-	if (pobj->stolen)
-		pfn = (dev_priv->stolen_base + pobj->offset) >> PAGE_SHIFT;
-	else
-		pfn = page_to_pfn(pobj->pages[page_offset]);
-	ret = vmf_insert_pfn(vma, vmf->address, pfn);
+	base = drm_vma_node_start(&obj->vma_node);
+	pfn = (dev_priv->stolen_base + pobj->offset) >> PAGE_SHIFT;
+	if (pobj->stolen)
+		ret = vmf_insert_pfn(vma, vmf->address, pfn + vmf->pgoff - base);
+	else
+		ret = pagekit_fault_pfns(vmf, pobj->pages, obj->size >> PAGE_SHIFT, base);
 	...
 }
