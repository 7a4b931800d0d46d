// SPDX-License-Identifier: GPL-2.0
// Converts drivers/dma-buf/heaps/cma_heap.c to pagekit.h: its mmap and fault operations. The pages are
// one block of a CMA area, which the driver allocates.

@@
@@
 #include <linux/vmalloc.h>
+#include <pagekit.h>

@@
identifier vmf;
symbol buffer;
@@
 cma_heap_vm_fault(struct vm_fault *vmf)
 {
	...
-	if (vmf->pgoff >= buffer->pagecount)
-		return VM_FAULT_SIGBUS;
-
-	return vmf_insert_pfn(...);
+	return pagekit_fault_pfns(vmf, buffer->pages, buffer->pagecount, 0);
 }

@@
typedef vm_fault_t;
@@
 static vm_fault_t cma_heap_vm_fault(...) { ... }
+
+static vm_fault_t cma_heap_huge_fault(struct vm_fault *vmf, unsigned int order)
+{
+	struct cma_heap_buffer *buffer = vmf->vma->vm_private_data;
+
+	return pagekit_huge_fault_pfns(vmf, order, buffer->pages, buffer->pagecount, 0);
+}

@@
symbol dma_heap_vm_ops, cma_heap_vm_fault;
@@
 struct vm_operations_struct dma_heap_vm_ops = {
 	.fault = cma_heap_vm_fault,
+	.huge_fault = cma_heap_huge_fault,
 };

@@
identifier vma;
@@
 cma_heap_mmap(..., struct vm_area_struct *vma)
 {
	...
-	if ((vma->vm_flags & (VM_SHARED | VM_MAYSHARE)) == 0)
-		return -EINVAL;
-
-	vm_flags_set(...);
	...
-	return 0;
+	return pagekit_setup_pfns(vma, buffer->pagecount, 0, 0);
 }
