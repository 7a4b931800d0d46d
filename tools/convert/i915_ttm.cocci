// SPDX-License-Identifier: GPL-2.0
// Converts drivers/gpu/drm/i915/gem/i915_gem_ttm.c to what i915.cocci has made of the shmem objects:
// TTM's tables of shmem pages have the array beside them, too.

@@
@@
 struct i915_ttm_tt {
	...
	struct file *filp;
+	struct page **held;
 };

@@
@@
+struct page **shmem_get_table(struct drm_i915_private *i915, struct sg_table *st, size_t size,
+			      struct intel_memory_region *mr, struct file *filp,
+			      unsigned int max_segment);
+void shmem_put_table(struct sg_table *st, struct file *filp, struct page **pages, size_t size,
+		     bool dirty, bool backup);
+
 static int i915_ttm_tt_shmem_populate(...) { ... }

@@
iterator name for_each_sgt_page;
symbol err, i, page, sgt_iter;
symbol i915_tt, size, filp, ttm;
identifier st;
expression i915, mr, max;
@@
 static int i915_ttm_tt_shmem_populate(..., struct ttm_tt *ttm, ...)
 {
	<...
(
-	struct sgt_iter sgt_iter;
|
-	struct page *page;
|
-	unsigned long i;
|
-	err = shmem_sg_alloc_table(i915, st, size, mr, filp->f_mapping, max);
-	if (err)
-		return err;
+	i915_tt->held = shmem_get_table(i915, st, size, mr, filp, max);
+	if (IS_ERR(i915_tt->held))
+		return PTR_ERR(i915_tt->held);
|
-	i = 0;
-	for_each_sgt_page(page, sgt_iter, st)
-		ttm->pages[i++] = page;
+	memcpy(ttm->pages, i915_tt->held, ttm->num_pages * sizeof(*ttm->pages));
|
-	shmem_sg_free_table(st, filp->f_mapping, false, false);
+	shmem_put_table(st, filp, i915_tt->held, size, false, false);
)
	...>
 }

@@
identifier ttm, i915_tt, backup, st;
@@
 static void i915_ttm_tt_shmem_unpopulate(struct ttm_tt *ttm)
 {
	...
-	shmem_sg_free_table(st, file_inode(i915_tt->filp)->i_mapping, backup, backup);
+	shmem_put_table(st, i915_tt->filp, i915_tt->held, (size_t)ttm->num_pages << PAGE_SHIFT,
+			backup, backup);
 }
