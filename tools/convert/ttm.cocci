// SPDX-License-Identifier: GPL-2.0
// Converts drivers/gpu/drm/ttm/ttm_bo_vm.c to pagekit.h, as far as it goes: faults of buffers that
// are in pages and mapped as the VMA says. The others, in device memory or with another prot than
// the last fault, stay.

@@
@@
 #include <linux/export.h>
+#include <pagekit.h>

@@
symbol prot, vma, page_offset, vmf;
identifier err, bo, ctx;
@@
 	err = ttm_bo_populate(bo, &ctx);
 	if (err) { ... }
+	if (pgprot_val(prot) == pgprot_val(vma->vm_page_prot) && ttm->pages[page_offset])
+		return pagekit_fault_pfns(vmf, ttm->pages, ttm->num_pages,
+					  drm_vma_node_start(&bo->base.vma_node));
