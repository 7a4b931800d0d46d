// SPDX-License-Identifier: GPL-2.0
// Converts drivers/gpu/drm/drm_gem.c to pagekit.h: the pages of an object.

// What reclaim has set aside it shall find again.
@@
identifier fbatch;
@@
+static void drm_gem_clear_unevictable(struct address_space *mapping)
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
-static void drm_gem_check_release_batch(struct folio_batch *fbatch) { ... }

@@
@@
+struct page **drm_gem_get_pages(struct drm_gem_object *obj)
+{
+	struct page **pages;
+
+	if (WARN_ON(!obj->filp))
+		return ERR_PTR(-EINVAL);
+
+	WARN_ON((obj->size & (PAGE_SIZE - 1)) != 0);
+
+	mapping_set_unevictable(obj->filp->f_mapping);
+	pages = pagekit_get_pages(obj->filp, 0, obj->size >> PAGE_SHIFT, 0);
+	if (IS_ERR(pages))
+		drm_gem_clear_unevictable(obj->filp->f_mapping);
+	return pages;
+}
-struct page **drm_gem_get_pages(...) { ... }

@@
@@
+void drm_gem_put_pages(struct drm_gem_object *obj, struct page **pages,
+		       bool dirty, bool accessed)
+{
+	WARN_ON((obj->size & (PAGE_SIZE - 1)) != 0);
+
+	drm_gem_clear_unevictable(obj->filp->f_mapping);
+	pagekit_put_pages(pages, obj->size >> PAGE_SHIFT,
+			  (dirty ? PAGEKIT_DIRTY : 0) | (accessed ? PAGEKIT_ACCESSED : 0));
+}
-void drm_gem_put_pages(...) { ... }

@@
@@
 #include <drm/drm_vma_manager.h>
+#include <pagekit.h>
