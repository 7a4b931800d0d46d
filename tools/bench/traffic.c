// SPDX-License-Identifier: GPL-2.0
/*
 * A plugin of QEMU that looks at what a guest of one CPU does to memory between two marks:
 * loads, stores, how many cache lines they touch, and how often these are not in the caches of
 * a model. Marks are stores to a page that the guest and we agree on: its address is that of
 * the guest. At each end a line goes to a file.
 *
 *   -plugin file=traffic.so,out=FILE,marks=ADDRESS,l1=BYTES/WAYS,l2=BYTES/WAYS
 *
 * Lines are those of physical memory: where a page is mapped doesn't matter. The caches are for
 * data, physically indexed, forget what was used least recently, fetch nothing ahead, and are
 * empty at the begin. What the CPU does of itself is not seen: it walks page tables.
 */
#include <inttypes.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

/* --- What QEMU has for plugins, of qemu-plugin.h, which distributions don't package --------- */

typedef uint64_t plugin_id;
typedef uint32_t plugin_access;
struct qemu_plugin_tb;
struct qemu_plugin_insn;
struct qemu_plugin_hwaddr;

enum { CB_NO_REGS = 0, MEM_RW = 3 };

void qemu_plugin_register_vcpu_tb_trans_cb(plugin_id id,
					   void (*cb)(plugin_id id, struct qemu_plugin_tb *tb));
size_t qemu_plugin_tb_n_insns(const struct qemu_plugin_tb *tb);
struct qemu_plugin_insn *qemu_plugin_tb_get_insn(const struct qemu_plugin_tb *tb, size_t n);
void qemu_plugin_register_vcpu_mem_cb(struct qemu_plugin_insn *insn,
				      void (*cb)(unsigned int cpu, plugin_access access,
						 uint64_t addr, void *data),
				      int flags, int which, void *data);
unsigned int qemu_plugin_mem_size_shift(plugin_access access);
bool qemu_plugin_mem_is_store(plugin_access access);
struct qemu_plugin_hwaddr *qemu_plugin_get_hwaddr(plugin_access access, uint64_t addr);
bool qemu_plugin_hwaddr_is_io(const struct qemu_plugin_hwaddr *addr);
uint64_t qemu_plugin_hwaddr_phys_addr(const struct qemu_plugin_hwaddr *addr);

#define EXPORT __attribute__((visibility("default")))
/* What is used here is the same in all versions, but QEMU takes only some. */
EXPORT int qemu_plugin_version = API;
EXPORT int qemu_plugin_install(plugin_id id, const void *info, int argc, char **argv);

/* --- Marks --------------------------------------------------------------------------------- */

#define PAGE	4096
#define LINE	64
/* Offsets in the page; what ends may be any of the numbers from END on. */
#define BEGIN	64
#define END	128

static FILE *out;
static uint64_t marks;
static bool counting;

/* --- The model ------------------------------------------------------------------------------- */

/* A bit for each line of as much memory as a guest may have. */
#define MEMORY	(1ULL << 40)
#define SEEN	(MEMORY / LINE / 8)
static uint8_t *seen;

/* In each set the lines that were used last come first. A line's number is never 0. */
struct cache {
	unsigned long sets, ways;
	uint64_t *lines;
};

static struct cache l1, l2;
static struct {
	uint64_t loads, stores, lines, l1, l2;
} counts;

static bool make_cache(struct cache *cache, const char *size)
{
	unsigned long bytes;

	if (sscanf(size, "%lu/%lu", &bytes, &cache->ways) != 2)
		return false;
	cache->sets = bytes / LINE / cache->ways;
	cache->lines = calloc(cache->sets * cache->ways, sizeof(*cache->lines));
	/* A power of two. */
	return cache->lines && cache->sets && !(cache->sets & (cache->sets - 1));
}

static void empty(struct cache *cache)
{
	memset(cache->lines, 0, cache->sets * cache->ways * sizeof(*cache->lines));
}

/* Is the line there? It is, afterwards. */
static bool use(struct cache *cache, uint64_t line)
{
	uint64_t *set = cache->lines + (line & (cache->sets - 1)) * cache->ways;
	unsigned long i = 0;
	bool hit;

	while (i < cache->ways - 1 && set[i] != line + 1)
		i++;
	hit = set[i] == line + 1;
	memmove(set + 1, set, i * sizeof(*set));
	*set = line + 1;
	return hit;
}

static void touch(uint64_t line)
{
	uint8_t *byte = seen + line / 8, bit = 1 << line % 8;

	counts.lines += !(*byte & bit);
	*byte |= bit;
	if (use(&l1, line))
		return;
	counts.l1++;
	counts.l2 += !use(&l2, line);
}

static void mark(unsigned int at)
{
	if (at == BEGIN) {
		memset(&counts, 0, sizeof(counts));
		madvise(seen, SEEN, MADV_DONTNEED);
		empty(&l1);
		empty(&l2);
		counting = true;
	} else if (at >= END) {
		counting = false;
		fprintf(out, "%u %" PRIu64 " %" PRIu64 " %" PRIu64 " %" PRIu64 " %" PRIu64 "\n",
			at - END, counts.loads, counts.stores, counts.lines, counts.l1, counts.l2);
	}
}

static void accessed(unsigned int cpu, plugin_access access, uint64_t addr, void *data)
{
	struct qemu_plugin_hwaddr *hwaddr;
	uint64_t first, last;

	(void)cpu;
	(void)data;
	if (addr - marks < PAGE) {
		if (qemu_plugin_mem_is_store(access))
			mark(addr - marks);
		return;
	}
	if (!counting)
		return;
	hwaddr = qemu_plugin_get_hwaddr(access, addr);
	if (!hwaddr || qemu_plugin_hwaddr_is_io(hwaddr))
		return;
	if (qemu_plugin_mem_is_store(access))
		counts.stores++;
	else
		counts.loads++;
	first = qemu_plugin_hwaddr_phys_addr(hwaddr);
	last = first + (1 << qemu_plugin_mem_size_shift(access)) - 1;
	/* What doesn't end in its page ends in one of which we don't know where it is. */
	if (first / PAGE != last / PAGE)
		last = first;
	touch(first / LINE % (MEMORY / LINE));
	if (first / LINE != last / LINE)
		touch(last / LINE % (MEMORY / LINE));
}

static void translated(plugin_id id, struct qemu_plugin_tb *tb)
{
	size_t i, n = qemu_plugin_tb_n_insns(tb);

	(void)id;
	for (i = 0; i < n; i++)
		qemu_plugin_register_vcpu_mem_cb(qemu_plugin_tb_get_insn(tb, i), accessed,
						 CB_NO_REGS, MEM_RW, NULL);
}

/* The value of an option, or "". */
static const char *option(int argc, char **argv, const char *name)
{
	size_t len = strlen(name);

	while (argc--)
		if (!strncmp(argv[argc], name, len) && argv[argc][len] == '=')
			return argv[argc] + len + 1;
	return "";
}

int qemu_plugin_install(plugin_id id, const void *info, int argc, char **argv)
{
	(void)info;
	marks = strtoull(option(argc, argv, "marks"), NULL, 0);
	out = fopen(option(argc, argv, "out"), "w");
	seen = mmap(NULL, SEEN, PROT_READ | PROT_WRITE,
		    MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (!marks || !out || seen == MAP_FAILED || !make_cache(&l1, option(argc, argv, "l1")) ||
	    !make_cache(&l2, option(argc, argv, "l2"))) {
		fprintf(stderr, "traffic: bad options, or no memory\n");
		return 1;
	}
	setlinebuf(out);
	qemu_plugin_register_vcpu_tb_trans_cb(id, translated);
	return 0;
}
