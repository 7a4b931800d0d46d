// SPDX-License-Identifier: GPL-2.0
// Converts drivers/media/common/videobuf2/frame_vector.c to pagekit.h, and include/media/frame_vector.h: a
// vector of pages of a process. The array is beside the vector now, and says itself what is pinned.

@@
@@
+#include <pagekit.h>
+
+struct frame_vector {
+	struct pagekit_pins pins;
+	bool is_pfns;	/* Does the array contain pages or pfns? */
+};
-struct frame_vector { ... };

// --- Pinning and unpinning ---

@@
@@
+int get_vaddr_frames(unsigned long start, unsigned int nr_frames, bool write,
+		     struct frame_vector *vec)
+{
+	int ret = pagekit_pin_user(&vec->pins, untagged_addr(start), nr_frames,
+				   write ? PAGEKIT_WRITE : 0);
+
+	vec->is_pfns = false;
+	return ret ? ret : nr_frames;
+}
-int get_vaddr_frames(...) { ... }

@@
@@
+void put_vaddr_frames(struct frame_vector *vec)
+{
+	/* What has become PFNs becomes the pages again that it was made of. */
+	frame_vector_pages(vec);
+	pagekit_unpin(&vec->pins, 0);
+}
-void put_vaddr_frames(...) { ... }

// --- Making and freeing ---

@@
@@
+struct frame_vector *frame_vector_create(unsigned int nr_frames)
+{
+	struct frame_vector *vec = kzalloc_obj(*vec);
+
+	if (!vec)
+		return NULL;
+	vec->pins.pages = kvmalloc_array(nr_frames, sizeof(*vec->pins.pages), GFP_KERNEL);
+	if (!vec->pins.pages) {
+		kfree(vec);
+		return NULL;
+	}
+	return vec;
+}
-struct frame_vector *frame_vector_create(...) { ... }

@@
identifier vec;
@@
 frame_vector_destroy(struct frame_vector *vec)
 {
 	...
-	kvfree(vec);
+	kvfree(vec->pins.pages);
+	kfree(vec);
 }

// --- Both: where the array is now ---

@@
struct frame_vector *vec;
symbol ptrs;
@@
(
-	vec->nr_frames
+	vec->pins.count
|
-	(struct page **)(vec->ptrs)
+	vec->pins.pages
|
-	(unsigned long *)(vec->ptrs)
+	(unsigned long *)vec->pins.pages
)
