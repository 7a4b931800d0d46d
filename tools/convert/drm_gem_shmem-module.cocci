// SPDX-License-Identifier: GPL-2.0
// What copies of drm_gem_shmem_helper.c and of vgem need to be a module beside the originals. This has
// nothing to do with pagekit.

// The kernel exports these already.
@@
declarer name EXPORT_SYMBOL, EXPORT_SYMBOL_GPL, EXPORT_SYMBOL_IF_KUNIT;
@@
(
-EXPORT_SYMBOL(...);
|
-EXPORT_SYMBOL_GPL(...);
|
-EXPORT_SYMBOL_IF_KUNIT(...);
)

@@
expression parent, ops;
@@
 faux_device_create(
-	"vgem",
+	"vgem-converted",
 	parent, ops)
