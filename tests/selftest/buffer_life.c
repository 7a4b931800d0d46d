// SPDX-License-Identifier: GPL-2.0
/*
 * What becomes of the memory of a buffer, in the form of the kernel's selftests: it is zeroed, it
 * keeps what is written to it, and comes back when the buffer is closed. Any node can be tried
 * that mmap_offset.c knows:
 *
 *	buffer_life -- /dev/dri/card0
 */
#define _GNU_SOURCE
#include "buffers.h"
#include "kselftest_harness.h"

/* So large that a buffer which is left over is seen, and so small that CMA areas have it. */
#define SIZE	(16UL << 20)
#define ROUNDS	16

/* A line of /proc/meminfo, in bytes. */
static long meminfo(const char *name)
{
	FILE *file = fopen("/proc/meminfo", "r");
	char line[128];
	long kib = -1;

	while (file && fgets(line, sizeof(line), file))
		if (!strncmp(line, name, strlen(name)) && line[strlen(name)] == ':')
			kib = atol(line + strlen(name) + 1);
	if (file)
		fclose(file);
	return kib << 10;
}

static int say(const char *path, const char *text)
{
	int fd = open(path, O_WRONLY | O_CLOEXEC);
	ssize_t n = fd < 0 ? -1 : write(fd, text, strlen(text));

	close(fd);
	return n < 0 ? -1 : 0;
}

/* What the kernel has for itself: objects, arrays, page tables. */
static long kernel_memory(void)
{
	say("/proc/sys/vm/stat_refresh", "1");
	return meminfo("VmallocUsed") + meminfo("SUnreclaim") + meminfo("PageTables");
}

FIXTURE(buffer_life)
{
	size_t page;
	int dev;
	struct buffer buffer;
};

FIXTURE_SETUP(buffer_life)
{
	self->page = sysconf(_SC_PAGESIZE);
	self->buffer.fd = -1;
	self->dev = open(node, O_RDWR | O_CLOEXEC);
	ASSERT_GE(self->dev, 0)
		TH_LOG("%s: %s", node, strerror(errno));
}

FIXTURE_TEARDOWN(buffer_life)
{
	close(self->buffer.fd);
	close(self->dev);
}

static char *make_and_map(FIXTURE_DATA(buffer_life) *self)
{
	if (make_buffer(self->dev, SIZE, is_drm(self->dev), &self->buffer))
		return MAP_FAILED;
	return mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, self->buffer.fd,
		    self->buffer.base);
}

static void unmake(FIXTURE_DATA(buffer_life) *self, char *map)
{
	munmap(map, SIZE);
	close(self->buffer.fd);
	close(self->dev);
	self->buffer.fd = -1;
	self->dev = open(node, O_RDWR | O_CLOEXEC);
}

TEST_F(buffer_life, comes_back)
{
	long before = 0, lost;

	for (int i = 0; i <= ROUNDS; i++) {
		char *map = make_and_map(self);

		ASSERT_NE(map, MAP_FAILED);
		memset(map, i + 1, SIZE);
		unmake(self, map);
		/* The first fills caches. */
		if (!i)
			before = meminfo("MemFree") + meminfo("Cached");
	}
	lost = before - meminfo("MemFree") - meminfo("Cached");
	EXPECT_LT(lost, (long)(ROUNDS * SIZE / 2))
		TH_LOG("%ld bytes less are free", lost);
}

TEST_F(buffer_life, zeroed)
{
	for (int i = 0; i < 2; i++) {
		char *map = make_and_map(self);
		size_t at = 0;

		ASSERT_NE(map, MAP_FAILED);
		while (at < SIZE && !map[at])
			at++;
		EXPECT_EQ(SIZE, at);
		memset(map, 0x5a, SIZE);
		unmake(self, map);
	}
}

/* Only memory that can be swapped out while nobody maps it can be lost: that of a DRM object. */
TEST_F(buffer_life, is_kept)
{
	unsigned long wrong = 0;
	char pid[16], *map;

	if (!is_drm(self->dev))
		SKIP(return, "%s holds its pages for as long as there is a buffer", node);
	mkdir("/sys/fs/cgroup/life", 0755);
	snprintf(pid, sizeof(pid), "%d", getpid());
	ASSERT_EQ(0, say("/sys/fs/cgroup/life/cgroup.procs", pid));
	map = make_and_map(self);
	ASSERT_NE(map, MAP_FAILED);
	for (size_t at = 0; at < SIZE; at += self->page)
		*(uint64_t *)(map + at) = ~at;
	munmap(map, SIZE);
	/* It reclaims what there is, and says that there was no more. */
	say("/sys/fs/cgroup/life/memory.reclaim", "64M swappiness=200");
	map = mmap(NULL, SIZE, PROT_READ, MAP_SHARED, self->buffer.fd, self->buffer.base);
	ASSERT_NE(map, MAP_FAILED);
	for (size_t at = 0; at < SIZE; at += self->page)
		wrong += *(uint64_t *)(map + at) != ~at;
	EXPECT_EQ(0, wrong);
	munmap(map, SIZE);
	say("/sys/fs/cgroup/cgroup.procs", pid);
	rmdir("/sys/fs/cgroup/life");
}

/* Nothing to fail: it says what a buffer takes besides its pages. */
TEST_F(buffer_life, held)
{
	long before;
	char *map;

	/* What others have left behind goes first. */
	do {
		before = kernel_memory();
		usleep(300000);
	} while (kernel_memory() != before);
	map = make_and_map(self);
	ASSERT_NE(map, MAP_FAILED);
	ksft_print_msg("held %.2f bytes a page\n",
		       (kernel_memory() - before) / (double)(SIZE / self->page));
	munmap(map, SIZE);
}

int main(int argc, char **argv)
{
	return test_harness_run(take_node(argc, argv), argv);
}
