// SPDX-License-Identifier: GPL-2.0
// Converts drivers/gpu/drm/i915/gem/i915_gem_shmem.c to pagekit.h: the pages of shmem objects. The
// table stays, for all of i915 reads it; the array is beside it.

@@
@@
 #include <drm/drm_print.h>
+#include <pagekit.h>

// --- Getting and putting: the array, and the table of it ---

@@
@@
+/* What obj->mm.pages of such an object is the first part of. */
+struct shmem_pages {
+	struct sg_table st;
+	struct page **pages;
+};
+
+/* What reclaim has set aside it shall find again. */
+static void shmem_clear_unevictable(struct address_space *mapping)
+{
+	struct folio_batch fbatch;
+	pgoff_t next = 0;
+
+	mapping_clear_unevictable(mapping);
+	folio_batch_init(&fbatch);
+	while (filemap_get_folios(mapping, &next, -1, &fbatch)) {
+		check_move_unevictable_folios(&fbatch);
+		folio_batch_release(&fbatch);
+		cond_resched();
+	}
+}
-static void check_release_folio_batch(...) { ... }

@@
@@
+void shmem_put_table(struct sg_table *st, struct file *filp, struct page **pages, size_t size,
+		     bool dirty, bool backup);
+void shmem_put_table(struct sg_table *st, struct file *filp, struct page **pages, size_t size,
+		     bool dirty, bool backup)
+{
+	shmem_clear_unevictable(filp->f_mapping);
+	pagekit_put_pages(pages, size >> PAGE_SHIFT,
+			  (dirty ? PAGEKIT_DIRTY : 0) | (backup ? PAGEKIT_ACCESSED : 0));
+	sg_free_table(st);
+}
-void shmem_sg_free_table(...) { ... }

@@
@@
+struct page **shmem_get_table(struct drm_i915_private *i915, struct sg_table *st, size_t size,
+			      struct intel_memory_region *mr, struct file *filp,
+			      unsigned int max_segment);
+struct page **shmem_get_table(struct drm_i915_private *i915, struct sg_table *st, size_t size,
+			      struct intel_memory_region *mr, struct file *filp,
+			      unsigned int max_segment)
+{
+	unsigned int page_count; /* restricted by sg_alloc_table */
+	struct page **pages;
+	int ret;
+
+	if (overflows_type(size / PAGE_SIZE, page_count))
+		return ERR_PTR(-E2BIG);
+
+	page_count = size / PAGE_SIZE;
+	if (size > resource_size(&mr->region))
+		return ERR_PTR(-ENOMEM);
+
+	mapping_set_unevictable(filp->f_mapping);
+	pages = pagekit_get_pages(filp, 0, page_count, PAGEKIT_NO_RECLAIM);
+	if (IS_ERR(pages)) {
+		i915_gem_shrink(NULL, i915, 2 * page_count, NULL,
+				I915_SHRINK_BOUND | I915_SHRINK_UNBOUND);
+		pages = pagekit_get_pages(filp, 0, page_count, PAGEKIT_RETRY_MAYFAIL);
+	}
+	if (IS_ERR(pages)) {
+		shmem_clear_unevictable(filp->f_mapping);
+		return pages == ERR_PTR(-ENOSPC) ? ERR_PTR(-ENOMEM) : pages;
+	}
+
+	ret = sg_alloc_table_from_pages_segment(st, pages, page_count, 0, size, max_segment,
+						GFP_KERNEL | __GFP_NOWARN);
+	if (ret) {
+		shmem_clear_unevictable(filp->f_mapping);
+		pagekit_put_pages(pages, page_count, 0);
+		return ERR_PTR(ret);
+	}
+	return pages;
+}
-int shmem_sg_alloc_table(...) { ... }

// --- Who calls that ---

@@
symbol held, pages, st;
identifier obj, ret;
expression i915, mem, mapping, max;
@@
 static int shmem_get_pages(struct drm_i915_gem_object *obj)
 {
	...
-	struct sg_table *st;
+	struct shmem_pages *held;
+	struct sg_table *st;
	int ret;
	...
-	st = kmalloc_obj(*st, GFP_KERNEL | __GFP_NOWARN);
-	if (!st)
-		return -ENOMEM;
+	held = kmalloc_obj(*held, GFP_KERNEL | __GFP_NOWARN);
+	if (!held)
+		return -ENOMEM;
+	st = &held->st;
	...
-	ret = shmem_sg_alloc_table(i915, st, obj->base.size, mem, mapping, max);
+	held->pages = shmem_get_table(i915, st, obj->base.size, mem, obj->base.filp, max);
+	ret = PTR_ERR_OR_ZERO(held->pages);
	...
 }

@@
symbol st, mapping, held, obj, false;
@@
 shmem_get_pages(...)
 {
	<...
(
-	struct address_space *mapping = obj->base.filp->f_mapping;
|
-	shmem_sg_free_table(st, mapping, false, false);
+	shmem_put_table(st, obj->base.filp, held->pages, obj->base.size, false, false);
|
-	kfree(st);
+	kfree(held);
)
	...>
 }

@@
identifier obj, pages;
expression dirty, backup;
@@
 void i915_gem_object_put_pages_shmem(struct drm_i915_gem_object *obj, struct sg_table *pages)
 {
+	struct shmem_pages *held = container_of(pages, struct shmem_pages, st);
+
	...
-	shmem_sg_free_table(pages, file_inode(obj->base.filp)->i_mapping, dirty, backup);
-	kfree(pages);
+	shmem_put_table(pages, obj->base.filp, held->pages, obj->base.size, dirty, backup);
+	kfree(held);
	...
 }
