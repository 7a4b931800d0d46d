/* SPDX-License-Identifier: GPL-2.0 */
/*
 * In front of each module's shim for make coverage: the callback that KCOV has compilers put into
 * each basic block. The kernel's own records the one task that asks for it. This one records who
 * ever runs the module: kernel threads of KUnit, workers, all threads of a process.
 */
#include <linux/module.h>

/* The text of a module, and a byte for each of its own that tells whether it was called from. */
struct pagekit_cov {
	char name[MODULE_NAME_LEN];
	unsigned long base[2], size[2]; /* .text and others that stay, .init.text */
	u8 *hit[2];
};

/* See pagekit_cov.c. */
struct pagekit_cov *pagekit_cov_open(struct module *module);

#ifndef PAGEKIT_COV_MODULE
static struct pagekit_cov *pagekit_cov;

static void __attribute__((constructor)) pagekit_cov_start(void)
{
	pagekit_cov = pagekit_cov_open(THIS_MODULE);
}

void __sanitizer_cov_trace_pc(void);
void notrace __no_sanitize_coverage __no_sanitize_address __sanitizer_cov_trace_pc(void)
{
	struct pagekit_cov *cov = pagekit_cov;
	int i;

	for (i = 0; cov && i < 2; i++)
		if (_RET_IP_ - cov->base[i] < cov->size[i])
			cov->hit[i][_RET_IP_ - cov->base[i]] = 1;
}
#endif
