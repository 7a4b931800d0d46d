// SPDX-License-Identifier: GPL-2.0
// Converts drivers/gpu/drm/exynos/exynos_drm_g2d.c to pagekit.h: user memory.

@@
@@
 #include <linux/workqueue.h>
+#include <pagekit.h>

@@
@@
 struct g2d_cmdlist_userptr {
 	...
-	struct page **pages;
-	unsigned int npages;
+	struct pagekit_pins pins;
 	...
 };

@@
identifier g2d_userptr, start, npages, ret, unpinned, pinned;
@@
-	ret = pin_user_pages_fast(start, npages, FOLL_WRITE | FOLL_LONGTERM, g2d_userptr->pages);
-	if (ret != npages) {
+	ret = pagekit_pin_user(&g2d_userptr->pins, start, npages, PAGEKIT_WRITE);
+	if (ret) {
 		DRM_DEV_ERROR(...);
-		if (ret < 0)
-			goto unpinned;
-		npages = ret;
-		ret = ...;
-		goto pinned;
+		goto unpinned;
 	}
-	g2d_userptr->npages = npages;

@@
identifier g2d_userptr, npages;
@@
-	unpin_user_pages(g2d_userptr->pages, npages);
+	pagekit_unpin(&g2d_userptr->pins, 0);

@@
symbol true;
identifier g2d_userptr;
@@
-	unpin_user_pages_dirty_lock(g2d_userptr->pages, g2d_userptr->npages, true);
+	pagekit_unpin(&g2d_userptr->pins, PAGEKIT_DIRTY);

@@
struct g2d_cmdlist_userptr *g2d_userptr;
@@
-	g2d_userptr->pages
+	g2d_userptr->pins.pages
