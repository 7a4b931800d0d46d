// SPDX-License-Identifier: GPL-2.0
// What a copy of drivers/dma-buf/udmabuf.c needs to be a module beside the original. This has
// nothing to do with pagekit.

@@
symbol udmabuf_misc;
@@
 struct miscdevice udmabuf_misc = {
-	.name = "udmabuf",
+	.name = "udmabuf-converted",
 };

// Not for modules: memfd_fcntl().
@@
symbol seals;
expression file;
@@
-	seals = memfd_fcntl(file, F_GET_SEALS, 0);
-	if (seals == -EINVAL)
-		return -EBADFD;
+	seals = shmem_file(file) ? SHMEM_I(file_inode(file))->seals :
+				   HUGETLBFS_I(file_inode(file))->seals;

@@
declarer name MODULE_AUTHOR, MODULE_IMPORT_NS, MODULE_LICENSE;
@@
 MODULE_AUTHOR(...);
+MODULE_LICENSE("GPL");
+MODULE_IMPORT_NS("DMA_BUF");
