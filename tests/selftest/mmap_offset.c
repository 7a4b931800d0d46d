// SPDX-License-Identifier: GPL-2.0
/*
 * Which pages a mapping of a buffer shows, in the form of the kernel's selftests.
 *
 * A page fault handler that takes the distance from the start of the VMA for the
 * page of the buffer shows the wrong page wherever the VMA does not begin with the
 * buffer: in a mapping at an offset, and in what is left of a mapping that was split
 * or has lost its head. Any way to map a buffer can be tried:
 *
 *	mmap_offset -- /dev/dma_heap/system
 *	mmap_offset -- /dev/udmabuf
 *	mmap_offset -- /dev/dri/card0
 *
 * A DRM node is tried by itself, at the offset that it gives, and by a dma-buf of it.
 */
#define _GNU_SOURCE
#include "buffers.h"
#include "kselftest_harness.h"

#define PAGES	64
#define AT	10
/* Two huge pages are no more than this, but where pages have 64 KiB. */
#define LIMIT	(64UL << 20)

FIXTURE(mmap_offset)
{
	size_t page;
	int dev;
	struct buffer buffer;
};

FIXTURE_VARIANT(mmap_offset)
{
	bool drm_node;
};

/* The buffer as a file of its own. */
FIXTURE_VARIANT_ADD(mmap_offset, dmabuf)
{
	.drm_node = false,
};

/* The buffer at its offset in the node of a DRM driver. */
FIXTURE_VARIANT_ADD(mmap_offset, drm_node)
{
	.drm_node = true,
};

static uint64_t *map_pages(FIXTURE_DATA(mmap_offset) *self, int first, int count)
{
	return mmap(NULL, count * self->page, PROT_READ | PROT_WRITE, MAP_SHARED, self->buffer.fd,
		    self->buffer.base + (off_t)first * self->page);
}

static uint64_t *page_of(FIXTURE_DATA(mmap_offset) *self, uint64_t *map, int page)
{
	return (void *)map + page * self->page;
}

/* How many of @count pages of a mapping that begins with page @first show another one. */
static int wrong(FIXTURE_DATA(mmap_offset) *self, uint64_t *map, int first, int count)
{
	int n = 0;

	for (int i = 0; i < count; i++) {
		uint64_t shown = *page_of(self, map, i);

		if (shown != first + i && !n++)
			ksft_print_msg("page %d shows page %lld\n", first + i, (long long)shown);
	}
	return n;
}

FIXTURE_SETUP(mmap_offset)
{
	size_t size = PAGES * sysconf(_SC_PAGESIZE);
	uint64_t *map;
	int err;

	self->page = size / PAGES;
	self->buffer.fd = -1;
	self->dev = open(node, O_RDWR | O_CLOEXEC);
	ASSERT_GE(self->dev, 0)
		TH_LOG("%s: %s", node, strerror(errno));
	if (variant->drm_node && !is_drm(self->dev))
		SKIP(return, "%s is no DRM node", node);
	err = make_buffer(self->dev, size, variant->drm_node, &self->buffer);
	ASSERT_EQ(err, 0)
		TH_LOG("%s makes no buffer: %s", node, strerror(err));

	/* Each page gets its number, by a mapping of its own that begins where the buffer does. */
	map = map_pages(self, 0, PAGES);
	ASSERT_NE(map, MAP_FAILED);
	for (int i = 0; i < PAGES; i++)
		*page_of(self, map, i) = i;
	ASSERT_EQ(munmap(map, size), 0);
}

FIXTURE_TEARDOWN(mmap_offset)
{
	close(self->buffer.fd);
	close(self->dev);
}

/* The control: without it the others say nothing. */
TEST_F(mmap_offset, whole)
{
	uint64_t *map = map_pages(self, 0, PAGES);

	ASSERT_NE(map, MAP_FAILED);
	EXPECT_EQ(0, wrong(self, map, 0, PAGES));
	munmap(map, PAGES * self->page);
}

TEST_F(mmap_offset, at_offset)
{
	uint64_t *map = map_pages(self, AT, PAGES - AT);

	if (map == MAP_FAILED && variant->drm_node)
		SKIP(return, "%s maps no part of a buffer", node);
	ASSERT_NE(map, MAP_FAILED);
	EXPECT_EQ(0, wrong(self, map, AT, PAGES - AT));
	munmap(map, (PAGES - AT) * self->page);
}

/* A page in the middle is unmapped before any is touched: two VMAs. */
TEST_F(mmap_offset, after_split)
{
	uint64_t *map = map_pages(self, 0, PAGES);
	uint64_t *rest = page_of(self, map, AT + 1);

	ASSERT_NE(map, MAP_FAILED);
	ASSERT_EQ(0, munmap(page_of(self, map, AT), self->page));
	EXPECT_EQ(0, wrong(self, map, 0, AT));
	EXPECT_EQ(0, wrong(self, rest, AT + 1, PAGES - AT - 1));
	munmap(map, PAGES * self->page);
}

TEST_F(mmap_offset, without_head)
{
	uint64_t *map = map_pages(self, 0, PAGES);
	uint64_t *rest = page_of(self, map, AT);

	ASSERT_NE(map, MAP_FAILED);
	ASSERT_EQ(0, munmap(map, AT * self->page));
	EXPECT_EQ(0, wrong(self, rest, AT, PAGES - AT));
	munmap(rest, (PAGES - AT) * self->page);
}

/* What is written at an offset goes to that page of the buffer, and to no other. */
TEST_F(mmap_offset, writes)
{
	uint64_t *whole = map_pages(self, 0, PAGES), *map = map_pages(self, AT, 1);

	ASSERT_NE(whole, MAP_FAILED);
	if (map == MAP_FAILED && variant->drm_node)
		SKIP(return, "%s maps no part of a buffer", node);
	ASSERT_NE(map, MAP_FAILED);
	*map = ~0ULL;
	EXPECT_EQ(~0ULL, *page_of(self, whole, AT));
	*page_of(self, whole, AT) = AT;
	EXPECT_EQ(0, wrong(self, whole, 0, PAGES));
	munmap(map, self->page);
	munmap(whole, PAGES * self->page);
}

/*
 * Huge pages are mapped where the block of a buffer lies at an address that is a multiple of its
 * size. Pages get their numbers where none does.
 */
TEST_F(mmap_offset, huge)
{
	size_t huge = self->page * (self->page / sizeof(uint64_t)), size = 2 * huge;
	int count = size / self->page, flags = MAP_SHARED | MAP_FIXED;
	void *place = mmap(NULL, size + 2 * huge, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	void *at = (void *)(((uintptr_t)place + huge - 1) / huge * huge), *small = at + self->page;

	ASSERT_NE(place, MAP_FAILED);
	if (size > LIMIT)
		SKIP(return, "this kernel's huge pages are too large to try");
	close(self->buffer.fd);
	ASSERT_EQ(0, make_buffer(self->dev, size, variant->drm_node, &self->buffer));
	ASSERT_EQ(small, mmap(small, size, PROT_READ | PROT_WRITE, flags, self->buffer.fd,
			      self->buffer.base));
	for (int i = 0; i < count; i++)
		*page_of(self, small, i) = i;
	munmap(small, size);

	ASSERT_EQ(at, mmap(at, size, PROT_READ, flags, self->buffer.fd, self->buffer.base));
	EXPECT_EQ(0, wrong(self, at, 0, count));
	munmap(at, size);

	ASSERT_EQ(at, mmap(at, size, PROT_READ, flags, self->buffer.fd, self->buffer.base));
	munmap(at, huge);
	EXPECT_EQ(0, wrong(self, at + huge, count / 2, count / 2));
	munmap(at + huge, huge);
}

int main(int argc, char **argv)
{
	return test_harness_run(take_node(argc, argv), argv);
}
