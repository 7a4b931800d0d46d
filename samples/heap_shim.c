// SPDX-License-Identifier: GPL-2.0
/*
 * What Rust can't do: the heap's registration, whose types `bindings` does not
 * have, string and writable module parameters, and static inlines, one to one and
 * without logic.
 */
#include <linux/dma-heap.h>
#include <linux/err.h>
#include <linux/moduleparam.h>

#include "dmabuf_shim.h"
#include "import_shim.h"
#include "name_shim.h"

extern char *pagekit_heap_name;
char *pagekit_heap_name = "pagekit";
module_param_named(name, pagekit_heap_name, charp, 0444);
MODULE_PARM_DESC(name, "Name in /dev/dma_heap. Default is pagekit.");
SHIM(bool, pagekit_heap_name_is_taken, (void), name_is_taken("dma_heap", pagekit_heap_name))

extern int pagekit_heap_size_limit_mb;
int pagekit_heap_size_limit_mb = INT_MAX;
module_param_named(size_limit_mb, pagekit_heap_size_limit_mb, int, 0644);
MODULE_PARM_DESC(size_limit_mb, "Max size of a buffer, in megabytes. Default is INT_MAX.");

extern bool pagekit_heap_write_combine;
bool pagekit_heap_write_combine;
module_param_named(write_combine, pagekit_heap_write_combine, bool, 0644);
MODULE_PARM_DESC(write_combine,
		 "Don't have the CPU cache new buffers: for devices that don't snoop. Default is N.");

struct dma_buf *pagekit_heap_allocate(struct dma_heap *heap, unsigned long len,
				      u32 fd_flags, u64 heap_flags);

static const struct dma_heap_ops ops = {
	.allocate = pagekit_heap_allocate,
};

SHIM(int, pagekit_heap_add, (void *device),
     PTR_ERR_OR_ZERO(dma_heap_add(&(struct dma_heap_export_info) {
	.name = pagekit_heap_name,
	.ops = &ops,
	.priv = device,
     })))
