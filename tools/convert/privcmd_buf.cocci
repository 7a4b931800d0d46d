// SPDX-License-Identifier: GPL-2.0
// Converts drivers/xen/privcmd-buf.c to pagekit.h: what it allocates, maps and puts.

@@
@@
 #include <linux/slab.h>
+#include <pagekit.h>

@@
@@
 struct privcmd_buf_vma_private {
 	...
-	unsigned int n_pages;
-	struct page *pages[];
+	unsigned long n_pages;
+	struct page **pages;
 };

@@
identifier vma_priv, i;
@@
 privcmd_buf_vmapriv_free(struct privcmd_buf_vma_private *vma_priv)
 {
-	unsigned int i;
 	...
-	for (i = 0; i < vma_priv->n_pages; i++)
-		__free_page(vma_priv->pages[i]);
+	pagekit_put_pages(vma_priv->pages, vma_priv->n_pages, 0);
 	...
 }

@@
symbol vma_priv, count, ret, i, vma;
@@
 privcmd_buf_mmap(...)
 {
 	...
-	unsigned int i;
 	...
-	vma_priv = kzalloc_flex(*vma_priv, pages, count);
+	vma_priv = kzalloc_obj(*vma_priv);
 	if (!vma_priv)
 		return -ENOMEM;

-	for (i = 0; i < count; i++) { ... }
+	vma_priv->pages = pagekit_alloc_pages(count, 0);
+	if (IS_ERR(vma_priv->pages)) {
+		ret = PTR_ERR(vma_priv->pages);
+		kfree(vma_priv);
+		return ret;
+	}
+	vma_priv->n_pages = count;
 	...
-	vm_flags_set(vma, VM_IO | VM_DONTEXPAND);
+	vm_flags_set(vma, VM_IO);
 	...
-	if (vma_priv->n_pages != count)
-		ret = -ENOMEM;
-	else
-		ret = vm_map_pages_zero(vma, vma_priv->pages, vma_priv->n_pages);
+	ret = pagekit_map_pages(vma, vma_priv->pages, count, vma->vm_pgoff, 0);
 	...
 }
