// SPDX-License-Identifier: GPL-2.0
/*
 * What becomes of the memory of a buffer, in the form of the kernel's selftests: it is zeroed, it
 * keeps what is written to it, and comes back when the buffer is closed. Any node can be tried
 * that mmap_offset.c knows:
 *
 *	buffer_life -- /dev/dri/card0
 */
#define _GNU_SOURCE
#include <limits.h>
#include <time.h>

#include "buffers.h"
#include "kselftest_harness.h"

/* So large that a buffer which is left over is seen, and so small that CMA areas have it. */
#define SIZE	(16UL << 20)
#define ROUNDS	16
/* So many buffers of one page that a page which each of them leaves over is seen. */
#define SMALL	1024
/* For is_kept and each_comes_back. */
#define GROUP	"/sys/fs/cgroup/life"

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

static int join_group(void)
{
	char pid[16];

	mkdir(GROUP, 0755);
	snprintf(pid, sizeof(pid), "%d", getpid());
	return say(GROUP "/cgroup.procs", pid);
}

static void leave_group(void)
{
	char pid[16];

	snprintf(pid, sizeof(pid), "%d", getpid());
	say("/sys/fs/cgroup/cgroup.procs", pid);
	rmdir(GROUP);
}

/* What is charged to the group, in bytes. */
static long charged(void)
{
	FILE *file = fopen(GROUP "/memory.current", "r");
	long n = -1;

	if (file) {
		fscanf(file, "%ld", &n);
		fclose(file);
	}
	return n;
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

static char *make_and_map(FIXTURE_DATA(buffer_life) *self, size_t size)
{
	if (make_buffer(self->dev, size, is_drm(self->dev), &self->buffer))
		return MAP_FAILED;
	return mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, self->buffer.fd,
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
		char *map = make_and_map(self, SIZE);

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

/* Here one page is all that a buffer has to lose. What is left over stays charged to the group. */
TEST_F(buffer_life, each_comes_back)
{
	long limit = SMALL * self->page / 2, before, lost;

	if (!is_drm(self->dev))
		SKIP(return, "%s may charge nobody for its pages", node);
	ASSERT_EQ(0, join_group());
	before = charged();
	ASSERT_GE(before, 0);
	for (int i = 0; i < SMALL; i++) {
		char *map = make_and_map(self, self->page);

		ASSERT_NE(map, MAP_FAILED);
		*map = 1;
		munmap(map, self->page);
		close(self->buffer.fd);
	}
	/* All were there at once. */
	EXPECT_GT(charged() - before, limit);
	self->buffer.fd = -1;
	close(self->dev);
	self->dev = -1;
	/* A device may want to hear of each. */
	for (int i = 0; (lost = charged() - before) >= limit && i < 100; i++)
		usleep(100000);
	EXPECT_LT(lost, limit)
		TH_LOG("%ld bytes more are charged", lost);
	leave_group();
}

TEST_F(buffer_life, zeroed)
{
	for (int i = 0; i < 2; i++) {
		char *map = make_and_map(self, SIZE);
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
	char *map;

	if (!is_drm(self->dev))
		SKIP(return, "%s holds its pages for as long as there is a buffer", node);
	ASSERT_EQ(0, join_group());
	map = make_and_map(self, SIZE);
	ASSERT_NE(map, MAP_FAILED);
	for (size_t at = 0; at < SIZE; at += self->page)
		*(uint64_t *)(map + at) = ~at;
	munmap(map, SIZE);
	/* It reclaims what there is, and says that there was no more. */
	say(GROUP "/memory.reclaim", "64M swappiness=200");
	map = mmap(NULL, SIZE, PROT_READ, MAP_SHARED, self->buffer.fd, self->buffer.base);
	ASSERT_NE(map, MAP_FAILED);
	for (size_t at = 0; at < SIZE; at += self->page)
		wrong += *(uint64_t *)(map + at) != ~at;
	EXPECT_EQ(0, wrong);
	munmap(map, SIZE);
	leave_group();
}

/* Nothing to fail: it says what a buffer takes besides its pages. */
TEST_F(buffer_life, held)
{
	int looks = 20;
	long before;
	char *map;

	/* What others have left behind goes first. On a debug kernel there may always be some. */
	do {
		before = kernel_memory();
		usleep(300000);
	} while (kernel_memory() != before && --looks);
	map = make_and_map(self, SIZE);
	ASSERT_NE(map, MAP_FAILED);
	ksft_print_msg("held %.2f bytes a page\n",
		       (kernel_memory() - before) / (double)(SIZE / self->page));
	munmap(map, SIZE);
}

static long now(void)
{
	struct timespec time;

	clock_gettime(CLOCK_MONOTONIC, &time);
	return time.tv_sec * 1000000000 + time.tv_nsec;
}

/* Nor here: the least that each step takes, in nanoseconds, or what the clock counts instead. */
TEST_F(buffer_life, costs)
{
	static const char *const steps[] = { "make", "touch", "release" };
	long least[] = { LONG_MAX, LONG_MAX, LONG_MAX };

	for (int i = 0; i < ROUNDS; i++) {
		long times[4];
		char *map;

		times[0] = now();
		map = make_and_map(self, SIZE);
		times[1] = now();
		ASSERT_NE(map, MAP_FAILED);
		for (size_t at = 0; at < SIZE; at += self->page)
			map[at] = 1;
		times[2] = now();
		unmake(self, map);
		times[3] = now();
		for (int step = 0; step < 3; step++)
			if (times[step + 1] - times[step] < least[step])
				least[step] = times[step + 1] - times[step];
	}
	for (int step = 0; step < 3; step++)
		ksft_print_msg("cost %s %.1f\n", steps[step], least[step] / (double)(SIZE / self->page));
}

int main(int argc, char **argv)
{
	return test_harness_run(take_node(argc, argv), argv);
}
