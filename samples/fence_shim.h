/* SPDX-License-Identifier: GPL-2.0 */
/* The same for fence.rs. */
#include <linux/dma-fence.h>
#include <linux/jiffies.h>
#include <linux/timer.h>

#include "../src/shim.h"

SHIM(void, pagekit_fence_set_up_timer,
     (struct timer_list *timer, void (*function)(struct timer_list *)),
     ({ timer_setup(timer, function, TIMER_IRQSAFE); }))
SHIM(void, pagekit_fence_start_timer, (struct timer_list *timer, unsigned int seconds),
     (void)mod_timer(timer, jiffies + seconds * HZ))
SHIM(void, pagekit_fence_put, (struct dma_fence *fence), dma_fence_put(fence))
