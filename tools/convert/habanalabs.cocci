// SPDX-License-Identifier: GPL-2.0
// Converts drivers/accel/habanalabs/common/memory.c to pagekit.h, and what habanalabs.h has for it.

@@
@@
 #include <linux/dma-buf.h>
+#include <pagekit.h>

@@
@@
 struct hl_userptr {
 	...
-	struct page **pages;
-	unsigned int npages;
+	struct pagekit_pins pins;
 	...
 };

@@
identifier userptr, start, npages, rc, unpinned, pinned;
@@
-	rc = pin_user_pages_fast(start, npages, FOLL_WRITE | FOLL_LONGTERM, userptr->pages);
-	if (rc != npages) {
+	rc = pagekit_pin_user(&userptr->pins, start, npages, PAGEKIT_WRITE);
+	if (rc) {
 		dev_err(...);
-		if (rc < 0)
-			goto unpinned;
-		npages = rc;
-		rc = ...;
-		goto pinned;
+		goto unpinned;
 	}
-	userptr->npages = npages;

@@
identifier userptr, npages;
@@
-	unpin_user_pages(userptr->pages, npages);
+	pagekit_unpin(&userptr->pins, 0);

@@
symbol true;
identifier userptr;
@@
-	unpin_user_pages_dirty_lock(userptr->pages, userptr->npages, true);
+	pagekit_unpin(&userptr->pins, PAGEKIT_DIRTY);

@@
struct hl_userptr *userptr;
@@
-	userptr->pages
+	userptr->pins.pages
