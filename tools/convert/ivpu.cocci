// SPDX-License-Identifier: GPL-2.0
// Converts drivers/accel/ivpu/ivpu_gem_userptr.c to pagekit.h. The array of pages is kept, instead
// of being found again in the scatter-gather table.

@@
@@
 #include <linux/capability.h>
+#include <pagekit.h>

@@
@@
+struct ivpu_userptr {
+	struct sg_table sgt; /* first: what the dma-buf has */
+	struct pagekit_pins pins;
+};
+
 static struct sg_table *ivpu_gem_userptr_dmabuf_map(...) { ... }

@@
iterator name for_each_sgtable_page;
identifier sgt, page_iter, page;
@@
 ivpu_gem_userptr_dmabuf_release(...)
 {
 	...
-	struct sg_page_iter page_iter;
-	struct page *page;
+	struct ivpu_userptr *userptr = container_of(sgt, struct ivpu_userptr, sgt);

-	for_each_sgtable_page(sgt, &page_iter, 0) { ... }
+	pagekit_unpin(&userptr->pins, 0);
+	kvfree(userptr->pins.pages);
 	sg_free_table(sgt);
-	kfree(sgt);
+	kfree(userptr);
 }

@@
identifier pages, gup_flags;
@@
-	struct page **pages;
+	struct ivpu_userptr *userptr;
 	...
-	unsigned int gup_flags = FOLL_LONGTERM;
 	...

@@
identifier unused = { i, pinned };
@@
 ivpu_create_userptr_dmabuf(...)
 {
 	...
-	int unused;
 	...
 }

@@
identifier label = { free_sgt };
@@
-	goto label;
+	goto unpin_pages;

@@
identifier pages, dma_buf;
@@
-	kvfree(pages);
 	return dma_buf;

@@
identifier sgt;
@@
-free_sgt:
-	kfree(sgt);

@@
identifier pages, i, pinned;
@@
-	for (i = 0; i < pinned; i++)
-		unpin_user_page(pages[i]);
+	pagekit_unpin(&userptr->pins, 0);

@@
symbol free_pages_array;
identifier pages;
@@
 free_pages_array:
-	kvfree(pages);
+	kvfree(userptr->pins.pages);
+free_userptr:
+	kfree(userptr);

@@
identifier sgt, pages;
@@
 sg_alloc_table_from_pages(sgt,
-	pages,
+	userptr->pins.pages,
 	...)

@@
symbol user_ptr, flags;
identifier pages, nr_pages, gup_flags, ret, pinned;
@@
-	if (!(flags & DRM_IVPU_BO_READ_ONLY))
-		gup_flags |= FOLL_WRITE;
-	pages = kvmalloc_objs(*pages, nr_pages);
-	if (!pages)
+	userptr = kzalloc_obj(*userptr);
+	if (!userptr)
 		return ERR_PTR(-ENOMEM);
-	pinned = pin_user_pages_fast(...);
-	if (pinned < 0) {
-		ret = pinned;
+	sgt = &userptr->sgt;
+	userptr->pins.pages = kvmalloc_objs(struct page *, nr_pages);
+	if (!userptr->pins.pages) {
+		ret = -ENOMEM;
+		goto free_userptr;
+	}
+
+	ret = pagekit_pin_user(&userptr->pins, (unsigned long)user_ptr, nr_pages,
+			       flags & DRM_IVPU_BO_READ_ONLY ? 0 : PAGEKIT_WRITE);
+	if (ret) {
 		ivpu_dbg(...);
 		goto free_pages_array;
 	}
-	if (pinned != nr_pages) { ... }
-	sgt = kmalloc_obj(*sgt);
-	if (!sgt) { ... }
