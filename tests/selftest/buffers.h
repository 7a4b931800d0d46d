/* SPDX-License-Identifier: GPL-2.0 */
/* Making buffers, of a DMA heap, of udmabuf and of a DRM node: for the selftests beside. */
#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <drm/drm.h>
#include <linux/dma-heap.h>
#include <linux/udmabuf.h>

/* Of a dumb buffer, which has no size but rows. */
#define ROWS	64

static const char *node = "/dev/dma_heap/system";

/* The node stands behind "--". Returns how many arguments are left for the harness. */
static inline int take_node(int argc, char **argv)
{
	for (int i = 1; i < argc - 1; i++) {
		if (!strcmp(argv[i], "--")) {
			node = argv[i + 1];
			argc = i;
		}
	}
	return argc;
}

/* What can be mapped: a file, and where in it the buffer begins. */
struct buffer {
	int fd;
	off_t base;
};

static inline bool is_drm(int dev)
{
	struct drm_version version = {};

	return !ioctl(dev, DRM_IOCTL_VERSION, &version);
}

/* These return 0 or an error: ENOTTY from udmabuf, if it is asked as a heap. */

static inline int from_heap(int dev, size_t size, struct buffer *buffer)
{
	struct dma_heap_allocation_data data = {
		.len = size,
		.fd_flags = O_RDWR | O_CLOEXEC,
	};

	if (ioctl(dev, DMA_HEAP_IOCTL_ALLOC, &data))
		return errno;
	buffer->fd = data.fd;
	return 0;
}

static inline int from_udmabuf(int dev, size_t size, struct buffer *buffer)
{
	struct udmabuf_create create = {
		.memfd = memfd_create("mmap_offset", MFD_ALLOW_SEALING),
		.flags = UDMABUF_FLAGS_CLOEXEC,
		.size = size,
	};
	int err = 0;

	if (ftruncate(create.memfd, size) || fcntl(create.memfd, F_ADD_SEALS, F_SEAL_SHRINK))
		return errno;
	buffer->fd = ioctl(dev, UDMABUF_CREATE, &create);
	if (buffer->fd < 0)
		err = errno;
	close(create.memfd);
	return err;
}

static inline int from_drm(int dev, size_t size, bool prime, struct buffer *buffer)
{
	struct drm_mode_create_dumb create = {
		.width = size / 4 / ROWS,
		.height = ROWS,
		.bpp = 32,
	};
	struct drm_mode_map_dumb map = {};
	struct drm_prime_handle handle = { .flags = DRM_CLOEXEC | DRM_RDWR };

	if (ioctl(dev, DRM_IOCTL_MODE_CREATE_DUMB, &create))
		return errno;
	if (prime) {
		handle.handle = create.handle;
		if (ioctl(dev, DRM_IOCTL_PRIME_HANDLE_TO_FD, &handle))
			return errno;
		buffer->fd = handle.fd;
		return 0;
	}
	map.handle = create.handle;
	if (ioctl(dev, DRM_IOCTL_MODE_MAP_DUMB, &map))
		return errno;
	buffer->base = map.offset;
	buffer->fd = dup(dev);
	return 0;
}

/* A buffer of whatever the node makes. That of DRM is in the node, or a dma-buf of its own. */
static inline int make_buffer(int dev, size_t size, bool in_node, struct buffer *buffer)
{
	int err;

	if (is_drm(dev))
		return from_drm(dev, size, !in_node, buffer);
	err = from_heap(dev, size, buffer);
	return err == ENOTTY ? from_udmabuf(dev, size, buffer) : err;
}
