// SPDX-License-Identifier: GPL-2.0
// Converts drivers/dma-buf/heaps/system_heap.c to pagekit.h: a buffer has an array of its pages.

@@
@@
 #include <linux/vmalloc.h>
+#include <pagekit.h>

@@
@@
 struct system_heap_buffer {
	...
-	struct sg_table sg_table;
+	struct page **pages;
	...
 };

// --- Allocating and freeing ---

@@
expression E;
@@
(
-#define LOW_ORDER_GFP E
|
-#define HIGH_ORDER_GFP E
|
-#define NUM_ORDERS E
)

@@
symbol order_flags, orders;
@@
(
-static gfp_t order_flags[] = {...};
|
-static const unsigned int orders[] = {...};
)

@@
@@
-static struct page *alloc_largest_available(...) { ... }

@@
symbol buffer, cc_shared, ret, dmabuf;
@@
+static struct dma_buf *system_heap_allocate(struct dma_heap *heap, unsigned long len, u32 fd_flags,
+					    u64 heap_flags)
+{
+	struct system_heap_buffer *buffer;
+	DEFINE_DMA_BUF_EXPORT_INFO(exp_info);
+	struct system_heap_priv *priv = dma_heap_get_drvdata(heap);
+	unsigned long count = len >> PAGE_SHIFT;
+	unsigned long i;
+	struct dma_buf *dmabuf;
+	int ret;
+
+	buffer = kzalloc_obj(*buffer);
+	if (!buffer)
+		return ERR_PTR(-ENOMEM);
+
+	INIT_LIST_HEAD(&buffer->attachments);
+	mutex_init(&buffer->lock);
+	buffer->heap = heap;
+	buffer->len = len;
+	buffer->cc_shared = priv->cc_shared;
+
+	buffer->pages = pagekit_alloc_pages(count, PAGEKIT_LARGE | (mem_accounting ? PAGEKIT_ACCOUNT : 0));
+	if (IS_ERR(buffer->pages)) {
+		ret = PTR_ERR(buffer->pages);
+		kfree(buffer);
+		return ERR_PTR(ret);
+	}
+
+	for (i = 0; cc_shared_buffer(buffer) && i < count; i += compound_nr(buffer->pages[i])) {
+		ret = system_heap_set_page_decrypted(buffer->pages[i]);
+		if (ret)
+			goto free_buffer;
+	}
+
+	exp_info.exp_name = dma_heap_get_name(heap);
+	exp_info.ops = &system_heap_buf_ops;
+	exp_info.size = buffer->len;
+	exp_info.flags = fd_flags;
+	exp_info.priv = buffer;
+	dmabuf = dma_buf_export(&exp_info);
+	if (!IS_ERR(dmabuf))
+		return dmabuf;
+	ret = PTR_ERR(dmabuf);
+
+free_buffer:
+	system_heap_free(buffer);
+	return ERR_PTR(ret);
+}
-static struct dma_buf *system_heap_allocate(...) { ... }

@@
@@
+static void system_heap_free(struct system_heap_buffer *buffer)
+{
+	unsigned long count = buffer->len >> PAGE_SHIFT;
+	unsigned long i;
+
+	/* What can't be encrypted again is leaked: it must not be used for something else. */
+	for (i = 0; cc_shared_buffer(buffer) && i < count; i += compound_nr(buffer->pages[i]))
+		if (system_heap_set_page_encrypted(buffer->pages[i]))
+			get_page(buffer->pages[i]);
+	pagekit_put_pages(buffer->pages, count, 0);
+	kfree(buffer);
+}
+
+static void system_heap_dma_buf_release(struct dma_buf *dmabuf)
+{
+	system_heap_free(dmabuf->priv);
+}
-static void system_heap_dma_buf_release(...) { ... }

// --- Mapping: for devices, for user space and for the kernel ---

@@
@@
-static int dup_sg_table(...) { ... }

@@
symbol ret, a;
@@
-	ret = dup_sg_table(&buffer->sg_table, &a->table);
+	ret = sg_alloc_table_from_pages(&a->table, buffer->pages, buffer->len >> PAGE_SHIFT, 0,
+					buffer->len, GFP_KERNEL);

@@
@@
+static int system_heap_mmap(struct dma_buf *dmabuf, struct vm_area_struct *vma)
+{
+	struct system_heap_buffer *buffer = dmabuf->priv;
+
+	if (cc_shared_buffer(buffer))
+		vma->vm_page_prot = pgprot_decrypted(vma->vm_page_prot);
+	return pagekit_map_pfns(vma, buffer->pages, buffer->len >> PAGE_SHIFT, 0, 0);
+}
-static int system_heap_mmap(...) { ... }

@@
iterator name for_each_sgtable_page;
symbol buffer, pages, tmp, table, piter, npages;
expression size, flags, prot;
@@
 system_heap_do_vmap(...)
 {
	<...
(
-	struct sg_table *table = &buffer->sg_table;
|
-	struct page **pages = vmalloc(size);
|
-	struct page **tmp = pages;
|
-	struct sg_page_iter piter;
|
-	if (!pages)
-		return ERR_PTR(-ENOMEM);
|
-	for_each_sgtable_page(table, &piter, 0) { ... }
|
-	vaddr = vmap(pages, npages, flags, prot);
-	vfree(pages);
+	vaddr = vmap(buffer->pages, npages, flags, prot);
)
	...>
 }
