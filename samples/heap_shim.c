// SPDX-License-Identifier: GPL-2.0
/*
 * What Rust can't do: the heap's registration, whose types `bindings` does not
 * have, a writable module parameter, and static inlines, one to one and without
 * logic.
 */
#include <linux/dma-heap.h>
#include <linux/err.h>
#include <linux/mm.h>
#include <linux/moduleparam.h>

#include "dmabuf_shim.h"

extern int pagekit_heap_size_limit_mb;
int pagekit_heap_size_limit_mb = INT_MAX;
module_param_named(size_limit_mb, pagekit_heap_size_limit_mb, int, 0644);
MODULE_PARM_DESC(size_limit_mb, "Max size of a buffer, in megabytes. Default is INT_MAX.");

struct dma_buf *pagekit_heap_allocate(struct dma_heap *heap, unsigned long len,
				      u32 fd_flags, u64 heap_flags);

static const struct dma_heap_ops ops = {
	.allocate = pagekit_heap_allocate,
};

static const struct dma_heap_export_info info = {
	.name = "pagekit",
	.ops = &ops,
};

SHIM(int, pagekit_heap_add, (void), PTR_ERR_OR_ZERO(dma_heap_add(&info)))
SHIM(unsigned long, pagekit_heap_ram_pages, (void), totalram_pages())
