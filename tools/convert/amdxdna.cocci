// SPDX-License-Identifier: GPL-2.0
// Converts drivers/accel/amdxdna/amdxdna_ubuf.c to pagekit.h. Counting what is pinned stays.

@@
@@
 #include <linux/vmalloc.h>
+#include <pagekit.h>

@@
@@
 struct amdxdna_ubuf_priv {
-	struct page **pages;
-	u64 nr_pages;
+	struct pagekit_pins pins;
 	...
 };

@@
symbol ubuf;
@@
 amdxdna_ubuf_release(...)
 {
 	...
-	unpin_user_pages(ubuf->pages, ubuf->nr_pages);
-	kvfree(ubuf->pages);
-	atomic64_sub(ubuf->nr_pages, &ubuf->mm->pinned_vm);
+	atomic64_sub(ubuf->pins.count, &ubuf->mm->pinned_vm);
+	pagekit_unpin(&ubuf->pins, 0);
+	kvfree(ubuf->pins.pages);
 	...
 }

@@
identifier start;
@@
 amdxdna_get_ubuf(...)
 {
 	...
-	u32 start = 0;
 	... when any
 }

@@
identifier npages;
@@
 amdxdna_get_ubuf(...)
 {
 	...
-	u32 npages;
+	u64 nr_pages;
 	... when any
 }

@@
identifier i, num_entries, npages, ret, start, ubuf, va_ent;
@@
 	for (i = 0; i < num_entries; i++) {
-		npages = va_ent[i].len >> PAGE_SHIFT;
-		ret = pin_user_pages_fast(..., &ubuf->pages[start]);
-		if (ret >= 0) { ... } else {
+		ret = pagekit_pin_user(&ubuf->pins, va_ent[i].vaddr, va_ent[i].len >> PAGE_SHIFT,
+				       PAGEKIT_WRITE);
+		if (ret) {
 			...
 		}
 	}

@@
identifier ubuf, start;
@@
-	if (start)
-		unpin_user_pages(ubuf->pages, start);
+	pagekit_unpin(&ubuf->pins, 0);

@@
identifier ubuf;
@@
 amdxdna_get_ubuf(...)
 {
 	<...
-	ubuf->nr_pages
+	nr_pages
 	...>
 }

@@
struct amdxdna_ubuf_priv *ubuf;
@@
(
-	ubuf->pages
+	ubuf->pins.pages
|
-	ubuf->nr_pages
+	ubuf->pins.count
)
