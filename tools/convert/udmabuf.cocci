// SPDX-License-Identifier: GPL-2.0
// Converts drivers/dma-buf/udmabuf.c to pagekit.h.

@@
@@
 #include <linux/iosys-map.h>
+#include <pagekit.h>

// --- Pinning: of pages, into the array that there is already ---

@@
@@
 struct udmabuf {
-	pgoff_t pagecount;
-	struct page **pages;
+	struct pagekit_pins pins;
 	...
-	pgoff_t nr_pinned;
-	struct folio **pinned_folios;
 	...
 };

@@
@@
-static void unpin_all_folios(...) { ... }

@@
@@
-static long udmabuf_pin_folios(...) { ... }

@@
expression ubuf;
@@
-	unpin_all_folios(ubuf);
+	pagekit_unpin(&ubuf->pins, PAGEKIT_DIRTY);

@@
expression ubuf, count;
@@
-	ubuf->pinned_folios = kvmalloc_objs(*ubuf->pinned_folios, count);
-	if (!ubuf->pinned_folios)
-		return -ENOMEM;

@@
symbol ret;
expression ubuf, memfd, start, size, folios;
@@
-	ret = udmabuf_pin_folios(ubuf, memfd, start, size, folios);
+	ret = pagekit_pin_memfd(&ubuf->pins, memfd, start >> PAGE_SHIFT, size >> PAGE_SHIFT);

@ lists @
identifier folios, max;
@@
(
-	folios = kvmalloc_objs(*folios, max);
|
-	folios = kvmalloc_array(max, sizeof(*folios), GFP_KERNEL);
)
-	if (!folios) { ... }

@@
identifier lists.max;
expression new;
@@
-	max = new;

@@
identifier lists.folios;
@@
-	kvfree(folios);

@@
identifier lists.max;
@@
-	unsigned long max = 0;

@@
identifier lists.folios;
@@
-	struct folio **folios = NULL;

// --- Mapping: what the page table reaches, or a huge page ---

@@
typedef vm_fault_t;
identifier vmf;
@@
+static vm_fault_t udmabuf_fault(struct vm_fault *vmf)
+{
+	struct udmabuf *ubuf = vmf->vma->vm_private_data;
+
+	return pagekit_fault_pfns(vmf, ubuf->pins.pages, ubuf->pins.count, 0);
+}
+
+static vm_fault_t udmabuf_huge_fault(struct vm_fault *vmf, unsigned int order)
+{
+	struct udmabuf *ubuf = vmf->vma->vm_private_data;
+
+	return pagekit_huge_fault_pfns(vmf, order, ubuf->pins.pages, ubuf->pins.count, 0);
+}
+
 static vm_fault_t udmabuf_vm_fault(struct vm_fault *vmf) { ... }

@@
@@
-static vm_fault_t udmabuf_vm_fault(...) { ... }

@@
symbol udmabuf_vm_fault, udmabuf_vm_ops;
@@
 struct vm_operations_struct udmabuf_vm_ops = {
-	.fault = udmabuf_vm_fault,
+	.fault = udmabuf_fault,
+	.huge_fault = udmabuf_huge_fault,
 };

@@
identifier vma, ubuf;
@@
 mmap_udmabuf(..., struct vm_area_struct *vma)
 {
 	...
 	vma->vm_private_data = ubuf;
-	vm_flags_set(...);
-	return 0;
+	return pagekit_setup_pfns(vma, ubuf->pins.count, 0, 0);
 }

// --- Both: where the array is now ---

@@
struct udmabuf *ubuf;
@@
(
-	ubuf->pages
+	ubuf->pins.pages
|
-	ubuf->pagecount
+	ubuf->pins.count
)
