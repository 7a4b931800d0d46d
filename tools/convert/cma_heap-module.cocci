// SPDX-License-Identifier: GPL-2.0
// What a copy of drivers/dma-buf/heaps/cma_heap.c needs to be a module beside the original. This has
// nothing to do with pagekit. A heap stays for as long as the machine runs, so each has a name of its own.

@@
symbol default_cma;
@@
 __add_cma_heap(default_cma,
-	DEFAULT_CMA_NAME
+	KBUILD_MODNAME
 )

// The other areas, which the kernel has heaps of under the same names.
@@
expression i;
@@
-dma_contiguous_get_area_by_idx(i)
+NULL
