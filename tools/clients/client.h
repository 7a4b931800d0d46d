/* SPDX-License-Identifier: GPL-2.0 */
/* What the clients have in common: results, buffers of the devices, and their mappings. */
#include <fcntl.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>
#include <linux/dma-buf.h>
#include <linux/dma-heap.h>
#include <linux/udmabuf.h>

/* Where a mapping begins that is not of the whole buffer. */
#define OFFSET 65536

static bool failed;

static void check(const char *what, const char *name, bool ok)
{
	printf("%sok - %s.%s\n", ok ? "" : "not ", what, name);
	fflush(stdout);
	failed |= !ok;
}

/* Without that, there is nothing to go on with. */
static void need(const char *what, bool ok)
{
	if (ok)
		return;
	printf("not ok - %s\n", what);
	exit(1);
}

static int udmabuf(size_t size)
{
	struct udmabuf_create create = { .flags = UDMABUF_FLAGS_CLOEXEC, .size = size };
	int fd, device = open("/dev/udmabuf", O_RDWR | O_CLOEXEC);
	int memfd = memfd_create("client", MFD_ALLOW_SEALING | MFD_CLOEXEC);

	need("a memfd", memfd >= 0 && !ftruncate(memfd, size) &&
	     !fcntl(memfd, F_ADD_SEALS, F_SEAL_SHRINK));
	create.memfd = memfd;
	fd = ioctl(device, UDMABUF_CREATE, &create);
	need("UDMABUF_CREATE", fd >= 0);
	close(memfd);
	close(device);
	return fd;
}

static int heap(size_t size)
{
	struct dma_heap_allocation_data data = { .len = size, .fd_flags = O_RDWR | O_CLOEXEC };
	int device = open("/dev/dma_heap/system", O_RDWR | O_CLOEXEC);

	need("DMA_HEAP_IOCTL_ALLOC", !ioctl(device, DMA_HEAP_IOCTL_ALLOC, &data));
	close(device);
	return data.fd;
}

/* Whose buffer it is. */
static void say_exporter(int fd)
{
	char path[64], line[256];
	FILE *info;

	snprintf(path, sizeof(path), "/proc/self/fdinfo/%d", fd);
	info = fopen(path, "r");
	while (info && fgets(line, sizeof(line), info)) {
		if (sscanf(line, "exp_name: %63s", path) == 1)
			printf("# exporter %s\n", path);
	}
	if (info)
		fclose(info);
}

static void *map(int fd, size_t offset, size_t size)
{
	void *at = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, offset);

	need("mmap", at != MAP_FAILED);
	return at;
}

static void sync_cpu(int fd, uint64_t flags)
{
	struct dma_buf_sync sync = { .flags = flags | DMA_BUF_SYNC_RW };

	need("DMA_BUF_IOCTL_SYNC", !ioctl(fd, DMA_BUF_IOCTL_SYNC, &sync));
}
