// SPDX-License-Identifier: GPL-2.0
// Converts drivers/gpu/drm/tegra/gem.c to pagekit.h: its mmap and fault operations. Its pages
// are a file's, and so they are mapped as PFNs.

@@
@@
 #include <linux/module.h>
+#include <pagekit.h>

@@
typedef vm_fault_t;
symbol vma, gem, bo, page, offset;
identifier vmf;
@@
 static vm_fault_t tegra_bo_fault(struct vm_fault *vmf)
 {
 	struct vm_area_struct *vma = vmf->vma;
 	struct drm_gem_object *gem = vma->vm_private_data;
 	struct tegra_bo *bo = to_tegra_bo(gem);
-	struct page *page;
-	pgoff_t offset;
-	if (!bo->pages)
-		return VM_FAULT_SIGBUS;
-	offset = linear_page_delta(...);
-	page = bo->pages[offset];
-	return vmf_insert_page(...);
+
+	return pagekit_fault_pfns(vmf, bo->pages, bo->num_pages, drm_vma_node_start(&gem->vma_node));
 }

@@
symbol prot;
@@
 __tegra_gem_mmap(struct drm_gem_object *gem, struct vm_area_struct *vma)
 {
 	<...
 		pgprot_t prot = vma_get_page_prot(vma);
+		int err = pagekit_setup_pfns(vma, bo->num_pages, drm_vma_node_start(&gem->vma_node), 0);

-		vm_flags_mod(vma, VM_MIXEDMAP, VM_PFNMAP);
+		if (err) {
+			drm_gem_vm_close(vma);
+			return err;
+		}
 	...>
 }

// One base for both kinds of mapping: as drm_gem_prime_mmap() has it.
@@
symbol err;
@@
 tegra_gem_prime_mmap(...)
 {
 	...
+	vma->vm_pgoff += drm_vma_node_start(&gem->vma_node);
 	err = drm_gem_mmap_obj(...);
 	...
 }
