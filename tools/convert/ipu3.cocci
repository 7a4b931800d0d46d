// SPDX-License-Identifier: GPL-2.0
// Converts drivers/staging/media/ipu3/ipu3-dmamap.c to pagekit.h: what it allocates and frees.

@@
@@
 #include <linux/vmalloc.h>
+#include <pagekit.h>

@@
@@
-static void imgu_dmamap_free_buffer(...) { ... }

@@
@@
-static struct page **imgu_dmamap_alloc_buffer(...) { ... }

@@
symbol pages, out_free_iova, count, size;
expression map;
@@
(
-	pages = imgu_dmamap_alloc_buffer(size, GFP_KERNEL);
-	if (!pages)
+	pages = pagekit_alloc_pages(count, PAGEKIT_LARGE);
+	if (IS_ERR(pages))
 		goto out_free_iova;
|
-	imgu_dmamap_free_buffer(pages, size);
+	pagekit_put_pages(pages, count, 0);
|
-	imgu_dmamap_free_buffer(map->pages, map->size);
+	pagekit_put_pages(map->pages, map->size >> PAGE_SHIFT, 0);
)
