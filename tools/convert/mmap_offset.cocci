// SPDX-License-Identifier: GPL-2.0
// Has mappings of mainline's drivers show the page at their offset in the buffer, not at the
// distance from the start of the VMA, and not the first page whatever the offset. It does nothing
// else, and needs no pagekit.
//
// The offsets of a GEM object's mappings begin at drm_vma_node_start(). drm_gem_prime_mmap() adds
// that to those of dma-bufs. Others begin at 0.

// --- etnaviv and omapdrm: cached objects are mapped as a file of their own, from 0 on ---

@@
typedef vm_fault_t;
identifier fn = { etnaviv_gem_fault, omap_gem_fault_1d, omap_gem_fault_2d };
identifier vma, vmf;
symbol obj;
@@
 fn(..., struct vm_fault *vmf)
 {
 	<...
-	linear_page_delta(vma, vmf->address)
+	vmf->pgoff - (vma->vm_file == obj->filp ? 0 : drm_vma_node_start(&obj->vma_node))
 	...>
 }

// --- Faults -----------------------------------------------------------------

@@
identifier fn, gem, vma, vmf;
@@
 fn(struct vm_fault *vmf, ...)
 {
 	...
(
 	struct drm_gem_object *gem = ...;
|
 	gem = vma->vm_private_data;
)
 	<...
(
-	linear_page_delta(vma, vmf->address)
+	vmf->pgoff - drm_vma_node_start(&gem->vma_node)
|
-	vmf->pgoff - vma->vm_pgoff
+	vmf->pgoff - drm_vma_node_start(&gem->vma_node)
|
-	(vmf->address - vmf->vma->vm_start) >> PAGE_SHIFT
+	vmf->pgoff - drm_vma_node_start(&gem->vma_node)
)
 	...>
 }

@@
identifier bo, vma, vmf;
@@
 panthor_gem_any_fault(struct vm_fault *vmf, ...)
 {
 	...
 	struct panthor_gem_object *bo = ...;
 	<...
-	vmf->pgoff - vma->vm_pgoff
+	vmf->pgoff - drm_vma_node_start(&bo->base.vma_node)
 	...>
 }

@@
identifier vma, vmf;
@@
 amdxdna_cbuf_vm_fault(struct vm_fault *vmf)
 {
 	<...
-	(vmf->address - vma->vm_start) >> PAGE_SHIFT
+	vmf->pgoff
 	...>
 }

// Stolen memory: each page of it, not the first everywhere.
@@
symbol pfn, pobj, dev_priv, page_offset;
@@
 psb_gem_fault(...)
 {
 	<...
-	pfn = (dev_priv->stolen_base + pobj->offset) >> PAGE_SHIFT;
+	pfn = ((dev_priv->stolen_base + pobj->offset) >> PAGE_SHIFT) + page_offset;
 	...>
 }

// --- Mmap: what counts from 0 counts from where the object begins ---

@@
identifier fn, obj, vma;
@@
 fn(struct drm_gem_object *obj, struct vm_area_struct *vma)
 {
 	<...
-	vma->vm_pgoff = 0;
+	vma->vm_pgoff -= drm_vma_node_start(&obj->vma_node);
 	...>
 }

@@
identifier fn = { etnaviv_gem_mmap_obj, exynos_drm_gem_mmap_buffer };
identifier bo, vma;
type object;
@@
 fn(object *bo, struct vm_area_struct *vma)
 {
 	<...
-	vma->vm_pgoff = 0;
+	vma->vm_pgoff -= drm_vma_node_start(&bo->base.vma_node);
 	...>
 }

// These have dma_buf_ops of their own.
@@
identifier fn = { tegra_gem_prime_mmap, omap_gem_dmabuf_mmap };
identifier obj, vma;
symbol err;
@@
 fn(..., struct vm_area_struct *vma)
 {
 	...
(
+	vma->vm_pgoff += drm_vma_node_start(&obj->vma_node);
 	err = drm_gem_mmap_obj(obj, ...);
|
+	vma->vm_pgoff += drm_vma_node_start(&obj->vma_node);
 	return drm_gem_mmap_obj(obj, ...);
)
 	...
 }

@@
identifier gobj, buf, vma, abo, num_pages;
@@
 amdxdna_gem_dmabuf_mmap(struct dma_buf *buf, struct vm_area_struct *vma)
 {
 	struct drm_gem_object *gobj = buf->priv;
 	...
 	unsigned long num_pages = vma_pages(vma);
+	unsigned long first = vma->vm_pgoff;
 	int ret;

+	vma->vm_pgoff += drm_vma_node_start(&gobj->vma_node);
 	vma->vm_ops = &drm_gem_shmem_vm_ops;
 	<...
 	vm_insert_pages(vma, vma->vm_start,
-	abo->base.pages
+	abo->base.pages + first
 	, &num_pages)
 	...>
 }

@@
symbol length, remap_start, remap_end, ret, offset;
identifier obj, vma, bo, sg;
@@
 qaic_gem_object_mmap(struct drm_gem_object *obj, struct vm_area_struct *vma)
 {
 	struct qaic_bo *bo = to_qaic_bo(obj);
+	unsigned long skip = (vma->vm_pgoff - drm_vma_node_start(&obj->vma_node)) << PAGE_SHIFT;
 	... when any
 }

@@
identifier sg, vma;
@@
 qaic_gem_object_mmap(...)
 {
 	<...
 	if (sg_page(sg)) {
+		if (skip >= sg->length) {
+			skip -= sg->length;
+			continue;
+		}
 		...
 	}
 	...>
 }

@@
identifier sg;
@@
 qaic_gem_object_mmap(...)
 {
 	<...
(
 	check_add_overflow(remap_start,
-	sg->length
+	sg->length - skip
 	, &remap_end)
|
 	length =
-	sg->length
+	sg->length - skip
|
-	page_to_pfn(sg_page(sg))
+	page_to_pfn(sg_page(sg)) + (skip >> PAGE_SHIFT)
)
 	...>
 }

@@
@@
 qaic_gem_object_mmap(...)
 {
 	<...
 	offset += length;
+	skip = 0;
 	...>
 }
