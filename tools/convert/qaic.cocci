// SPDX-License-Identifier: GPL-2.0
// Converts drivers/accel/qaic/qaic_control.c to pagekit.h: user memory, for the short time of a
// transfer.

@@
@@
 #include <linux/wait.h>
+#include <pagekit.h>

@@
@@
 struct dma_xfer {
 	...
-	struct page **page_list;
+	struct pagekit_pins pins;
 	...
 };

@@
@@
 struct dma_xfer {
 	...
-	unsigned long nr_pages;
 };

@@
identifier i, xfer;
@@
-	for (i = 0; i < xfer->nr_pages; ++i)
-		put_page(xfer->page_list[i]);
-	kfree(xfer->page_list);
+	pagekit_unpin(&xfer->pins, 0);
+	kvfree(xfer->pins.pages);

@@
identifier fn = { free_dma_xfers, cleanup_xfer, find_and_map_user_pages }, i = { i };
@@
 fn(...)
 {
 	...
-	int i;
 	... when any
 }

@@
@@
-	struct page **page_list;
+	struct pagekit_pins pins = {};

@@
identifier ret, nr_pages, page_list, addr, free_page_list;
@@
-	ret = get_user_pages_fast(addr, nr_pages, 0, page_list);
-	if (ret < 0)
+	ret = pagekit_pin_user(&pins, addr & PAGE_MASK, nr_pages, 0);
+	if (ret)
 		goto free_page_list;
-	if (ret != nr_pages) { ... }

@@
symbol nr_pages, page_list, xfer;
@@
-	xfer->page_list = page_list;
-	xfer->nr_pages = nr_pages;
+	xfer->pins = pins;

@@
identifier nr_pages, page_list, i;
@@
-	for (i = 0; i < nr_pages; ++i)
-		put_page(page_list[i]);
+	pagekit_unpin(&pins, 0);

@@
identifier page_list = { page_list };
@@
(
-	kfree(page_list);
+	kvfree(pins.pages);
|
-	page_list
+	pins.pages
)
