/* SPDX-License-Identifier: GPL-2.0 */
/* The same for import.rs. */
#include <linux/dma-buf.h>
#include <linux/dma-mapping.h>
#include <linux/dma-resv.h>

#include "../src/shim.h"

SHIM(int, pagekit_import_lock_interruptible, (struct dma_resv *resv),
     dma_resv_lock_interruptible(resv, NULL))
SHIM(bool, pagekit_import_trylock, (struct dma_resv *resv), dma_resv_trylock(resv))
SHIM(int, pagekit_import_dma_mask, (struct device *dev),
     dma_coerce_mask_and_coherent(dev, DMA_BIT_MASK(64)))
