// SPDX-License-Identifier: GPL-2.0
/*
 * What modules have run, for make coverage: /sys/kernel/debug/pagekit_cov has a line with the
 * module's name for each address that its callback (pagekit_cov.h) was called from. It is of
 * modules as they were loaded last.
 */
#define PAGEKIT_COV_MODULE
#include <linux/debugfs.h>
#include <linux/seq_file.h>
#include <linux/vmalloc.h>

#include "pagekit_cov.h"

static DEFINE_MUTEX(lock);
static struct pagekit_cov covs[32];

/* Before anything else in the module runs. NULL if there is no room. */
struct pagekit_cov *pagekit_cov_open(struct module *module)
{
	static const enum mod_mem_type types[] = { MOD_TEXT, MOD_INIT_TEXT };
	struct pagekit_cov *cov;
	int i;

	guard(mutex)(&lock);
	for (cov = covs; cov->name[0] && strcmp(cov->name, module->name); cov++)
		if (cov == &covs[ARRAY_SIZE(covs) - 1])
			return NULL;
	for (i = 0; i < 2; i++) {
		vfree(cov->hit[i]);
		cov->base[i] = (unsigned long)module->mem[types[i]].base;
		cov->size[i] = module->mem[types[i]].size;
		cov->hit[i] = vzalloc(cov->size[i]);
		if (!cov->hit[i])
			cov->size[i] = 0;
	}
	strscpy(cov->name, module->name);
	return cov;
}
EXPORT_SYMBOL_GPL(pagekit_cov_open);

static int pagekit_cov_hits_show(struct seq_file *file, void *unused)
{
	struct pagekit_cov *cov;
	unsigned long at;
	int i;

	guard(mutex)(&lock);
	for (cov = covs; cov < covs + ARRAY_SIZE(covs); cov++)
		for (i = 0; i < 2; i++)
			for (at = 0; at < cov->size[i]; at++)
				if (cov->hit[i][at])
					seq_printf(file, "%s %lx\n", cov->name, cov->base[i] + at);
	return 0;
}
DEFINE_SHOW_ATTRIBUTE(pagekit_cov_hits);

static struct dentry *entry;

static int __init pagekit_cov_init(void)
{
	entry = debugfs_create_file("pagekit_cov", 0400, NULL, NULL, &pagekit_cov_hits_fops);
	return 0;
}

static void __exit pagekit_cov_exit(void)
{
	struct pagekit_cov *cov;

	debugfs_remove(entry);
	for (cov = covs; cov < covs + ARRAY_SIZE(covs); cov++) {
		vfree(cov->hit[0]);
		vfree(cov->hit[1]);
	}
}

module_init(pagekit_cov_init);
module_exit(pagekit_cov_exit);
MODULE_AUTHOR("The pagekit authors");
MODULE_DESCRIPTION("What pagekit's modules have run");
MODULE_LICENSE("GPL");
