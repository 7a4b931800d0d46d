/* SPDX-License-Identifier: GPL-2.0 */
/*
 * Static inlines for dmabuf.rs, one to one and without logic. Each driver that
 * includes that file has a copy.
 */
#include <linux/dma-mapping.h>
#include <linux/dma-resv.h>
#include <linux/mm.h>
#include <linux/vmalloc.h>

#include "../src/shim.h"

SHIM(void, pagekit_dmabuf_for_cpu, (struct device *dev, struct sg_table *sgt,
				    enum dma_data_direction dir),
     dma_sync_sgtable_for_cpu(dev, sgt, dir))
SHIM(void, pagekit_dmabuf_for_device, (struct device *dev, struct sg_table *sgt,
				       enum dma_data_direction dir),
     dma_sync_sgtable_for_device(dev, sgt, dir))
/* On x86 memory is cached, and so must all mappings of it be. */
SHIM(void *, pagekit_dmabuf_vmap, (struct page **pages, unsigned int count, bool write_combine),
     vmap(pages, count, VM_MAP, write_combine && !IS_ENABLED(CONFIG_X86) ?
				pgprot_writecombine(PAGE_KERNEL) : PAGE_KERNEL))
SHIM(unsigned long, pagekit_dmabuf_ram_pages, (void), totalram_pages())
#ifdef CONFIG_LOCKDEP
SHIM(void, pagekit_dmabuf_assert_held, (struct dma_resv *resv), ({ dma_resv_assert_held(resv); }))
#endif
