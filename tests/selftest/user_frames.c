// SPDX-License-Identifier: GPL-2.0
/*
 * A camera that writes its frames into memory of the process (V4L2_MEMORY_USERPTR) or into
 * dma-bufs, in the form of the kernel's selftests. vivid's pictures are always the same, but for
 * what it writes into their upper part:
 *
 *	user_frames -- /dev/video0
 */
#define _GNU_SOURCE
#include <linux/videodev2.h>

#include "buffers.h"
#include "kselftest_harness.h"

#define BUFFERS	4
#define POISON	0x5a

FIXTURE(user_frames)
{
	size_t page, size, room;	/* of a frame, and of what it may lie in */
	int fd;
	char *expected;
};

static const enum v4l2_buf_type type = V4L2_BUF_TYPE_VIDEO_CAPTURE;

static int request(int fd, enum v4l2_memory memory, int count)
{
	struct v4l2_requestbuffers arg = { .count = count, .type = type, .memory = memory };

	return ioctl(fd, VIDIOC_REQBUFS, &arg) ? -errno : 0;
}

/* @at is for V4L2_MEMORY_USERPTR, @dmabuf for V4L2_MEMORY_DMABUF. */
static int queue(int fd, int index, enum v4l2_memory memory, char *at, int dmabuf, size_t size)
{
	struct v4l2_buffer arg = { .index = index, .type = type, .memory = memory, .length = size };

	if (memory == V4L2_MEMORY_DMABUF)
		arg.m.fd = dmabuf;
	else
		arg.m.userptr = (unsigned long)at;
	return ioctl(fd, VIDIOC_QBUF, &arg) ? -errno : 0;
}

/* Streams until all that were queued are filled. */
static int stream(int fd, enum v4l2_memory memory)
{
	int err = ioctl(fd, VIDIOC_STREAMON, &type);

	for (int i = 0; i < BUFFERS && !err; i++) {
		struct v4l2_buffer arg = { .type = type, .memory = memory };

		err = ioctl(fd, VIDIOC_DQBUF, &arg) || arg.flags & V4L2_BUF_FLAG_ERROR;
	}
	return ioctl(fd, VIDIOC_STREAMOFF, &type) || err;
}

FIXTURE_SETUP(user_frames)
{
	struct v4l2_format format = { .type = type };
	struct v4l2_buffer buffer = { .type = type, .memory = V4L2_MEMORY_MMAP };
	char *map;

	self->page = sysconf(_SC_PAGESIZE);
	self->fd = open(node, O_RDWR | O_CLOEXEC);
	ASSERT_GE(self->fd, 0)
		TH_LOG("%s: %s", node, strerror(errno));
	ASSERT_EQ(0, ioctl(self->fd, VIDIOC_G_FMT, &format));
	self->size = format.fmt.pix.sizeimage;
	self->room = (self->size + 2 * self->page - 1) / self->page * self->page;

	/* What the driver writes into memory of its own. */
	ASSERT_EQ(0, request(self->fd, V4L2_MEMORY_MMAP, BUFFERS));
	for (int i = 0; i < BUFFERS; i++)
		ASSERT_EQ(0, queue(self->fd, i, V4L2_MEMORY_MMAP, NULL, -1, 0));
	ASSERT_EQ(0, stream(self->fd, V4L2_MEMORY_MMAP));
	ASSERT_EQ(0, ioctl(self->fd, VIDIOC_QUERYBUF, &buffer));
	map = mmap(NULL, buffer.length, PROT_READ, MAP_SHARED, self->fd, buffer.m.offset);
	ASSERT_NE(MAP_FAILED, map);
	self->expected = malloc(self->size);
	memcpy(self->expected, map, self->size);
	munmap(map, buffer.length);
	ASSERT_EQ(0, request(self->fd, V4L2_MEMORY_MMAP, 0));
}

FIXTURE_TEARDOWN(user_frames)
{
	free(self->expected);
	close(self->fd);
}

/* How many of the pins that were ever taken are still there. */
static long pins(void)
{
	FILE *file = fopen("/proc/sys/vm/stat_refresh", "w");
	long n = 0, value;
	char name[64];

	fputs("1", file);
	fclose(file);
	file = fopen("/proc/vmstat", "r");
	while (fscanf(file, "%63s %ld", name, &value) == 2) {
		if (!strcmp(name, "nr_foll_pin_acquired"))
			n += value;
		else if (!strcmp(name, "nr_foll_pin_released"))
			n -= value;
	}
	fclose(file);
	return n;
}

/* How many bytes are wrong of what had room for a frame, which begins there at an offset. */
static long wrong(FIXTURE_DATA(user_frames) *self, char *at, size_t offset)
{
	char *frame = at + offset;
	long n = 0;

	for (size_t i = self->size / 2; i < self->size; i++)
		n += frame[i] != self->expected[i];
	for (size_t i = 0; i < self->room; i++)
		if (i < offset || i >= offset + self->size)
			n += at[i] != POISON;
	return n;
}

/* Frames into this memory. Returns how many bytes are wrong. */
static long try_memory(struct __test_metadata *_metadata, FIXTURE_DATA(user_frames) *self,
		       char *memory, size_t offset)
{
	long held = pins(), n = 0;

	ASSERT_NE(MAP_FAILED, memory);
	memset(memory, POISON, BUFFERS * self->room);
	ASSERT_EQ(0, request(self->fd, V4L2_MEMORY_USERPTR, BUFFERS));
	for (int i = 0; i < BUFFERS; i++)
		ASSERT_EQ(0, queue(self->fd, i, V4L2_MEMORY_USERPTR,
				   memory + i * self->room + offset, -1, self->size));
	EXPECT_EQ(0, stream(self->fd, V4L2_MEMORY_USERPTR));
	EXPECT_LT(held, pins());
	EXPECT_EQ(0, request(self->fd, V4L2_MEMORY_USERPTR, 0));
	EXPECT_EQ(held, pins());
	for (int i = 0; i < BUFFERS; i++)
		n += wrong(self, memory + i * self->room, offset);
	munmap(memory, BUFFERS * self->room);
	return n;
}

TEST_F(user_frames, anonymous)
{
	EXPECT_EQ(0, try_memory(_metadata, self,
				mmap(NULL, BUFFERS * self->room, PROT_READ | PROT_WRITE,
				     MAP_PRIVATE | MAP_ANONYMOUS, -1, 0), 0));
}

TEST_F(user_frames, at_an_offset)
{
	EXPECT_EQ(0, try_memory(_metadata, self,
				mmap(NULL, BUFFERS * self->room, PROT_READ | PROT_WRITE,
				     MAP_PRIVATE | MAP_ANONYMOUS, -1, 0), 128));
}

TEST_F(user_frames, of_a_file)
{
	int fd = memfd_create("user_frames", 0);

	ASSERT_EQ(0, ftruncate(fd, BUFFERS * self->room));
	EXPECT_EQ(0, try_memory(_metadata, self,
				mmap(NULL, BUFFERS * self->room, PROT_READ | PROT_WRITE,
				     MAP_SHARED, fd, 0), 0));
	close(fd);
}

/* Memory that the process may not write, or that ends too soon. */
TEST_F(user_frames, refused)
{
	char *memory = mmap(NULL, self->room, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	long held = pins();

	ASSERT_NE(MAP_FAILED, memory);
	ASSERT_EQ(0, request(self->fd, V4L2_MEMORY_USERPTR, 1));
	EXPECT_EQ(-EFAULT, queue(self->fd, 0, V4L2_MEMORY_USERPTR, memory, -1, self->size));
	ASSERT_EQ(0, mprotect(memory, self->room, PROT_READ | PROT_WRITE));
	munmap(memory + self->page, self->page);
	EXPECT_EQ(-EFAULT, queue(self->fd, 0, V4L2_MEMORY_USERPTR, memory, -1, self->size));
	EXPECT_EQ(held, pins());
	EXPECT_EQ(0, request(self->fd, V4L2_MEMORY_USERPTR, 0));
}

/* Into buffers that our devices have exported. */
TEST_F(user_frames, imported)
{
	static const char *const names[] = { "/dev/pagekit-cdmabuf", "/dev/pagekit-udmabuf" };
	int tried = 0;

	for (size_t n = 0; n < sizeof(names) / sizeof(*names); n++) {
		struct buffer buffers[BUFFERS];
		int dev = open(names[n], O_RDWR | O_CLOEXEC);

		if (dev < 0)
			continue;
		tried++;
		ASSERT_EQ(0, request(self->fd, V4L2_MEMORY_DMABUF, BUFFERS));
		for (int i = 0; i < BUFFERS; i++) {
			char *map;

			ASSERT_EQ(0, from_udmabuf(dev, self->room, &buffers[i]));
			map = mmap(NULL, self->room, PROT_READ | PROT_WRITE, MAP_SHARED, buffers[i].fd, 0);
			ASSERT_NE(MAP_FAILED, map);
			memset(map, POISON, self->room);
			munmap(map, self->room);
			ASSERT_EQ(0, queue(self->fd, i, V4L2_MEMORY_DMABUF, NULL, buffers[i].fd, 0));
		}
		EXPECT_EQ(0, stream(self->fd, V4L2_MEMORY_DMABUF));
		EXPECT_EQ(0, request(self->fd, V4L2_MEMORY_DMABUF, 0));
		for (int i = 0; i < BUFFERS; i++) {
			char *map = mmap(NULL, self->room, PROT_READ, MAP_SHARED, buffers[i].fd, 0);

			ASSERT_NE(MAP_FAILED, map);
			EXPECT_EQ(0, wrong(self, map, 0));
			munmap(map, self->room);
			close(buffers[i].fd);
		}
		close(dev);
	}
	EXPECT_GT(tried, 0);
}

int main(int argc, char **argv)
{
	return test_harness_run(take_node(argc, argv), argv);
}
