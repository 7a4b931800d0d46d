// SPDX-License-Identifier: GPL-2.0
// What a copy of drivers/dma-buf/heaps/system_heap.c needs to be a module beside the original. This has
// nothing to do with pagekit. A heap stays for as long as the machine runs, so each has a name of its own.

@@
expression exp_info;
@@
-	exp_info.name = "system";
+	exp_info.name = KBUILD_MODNAME;
