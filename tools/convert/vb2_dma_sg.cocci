// SPDX-License-Identifier: GPL-2.0
// Converts drivers/media/common/videobuf2/videobuf2-dma-sg.c to pagekit.h: its mmap operation.
// Allocating stays, for the queue's owner says from which memory (gfp_flags).

@@
@@
 #include <linux/vmalloc.h>
+#include <pagekit.h>

@@
symbol err, buf, vma;
@@
 vb2_dma_sg_mmap(...)
 {
 	...
-	err = vm_map_pages(vma, buf->pages, buf->num_pages);
+	err = pagekit_map_pages(vma, buf->pages, buf->num_pages, 0, 0);
 	...
-	vm_flags_set(vma, VM_DONTEXPAND | VM_DONTDUMP);
 	...
 }
