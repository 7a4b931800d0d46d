// SPDX-License-Identifier: GPL-2.0
/*
 * What a guest gets of a buffer that its VMM has mapped, in the form of the kernel's selftests. KVM
 * takes an entry that is there as it is, and has one fault handled where none is. A guest's write
 * fails if the entry is write-protected then, while a CPU would fault once more. Nodes are tried
 * that mmap_offset.c knows, with what pagekit-importer does in KVM's place:
 *
 *	guest_fault -- /dev/dri/card0
 */
#define _GNU_SOURCE
#include "buffers.h"
#include "kselftest_harness.h"

#include "../drivers/test_importer.h"

#define PAGES	16

FIXTURE(guest_fault)
{
	size_t page;
	int dev, kvm;
	struct buffer buffer;
};

FIXTURE_SETUP(guest_fault)
{
	self->page = sysconf(_SC_PAGESIZE);
	self->buffer.fd = -1;
	self->dev = open(node, O_RDWR | O_CLOEXEC);
	ASSERT_GE(self->dev, 0)
		TH_LOG("%s: %s", node, strerror(errno));
	self->kvm = open("/dev/pagekit-importer", O_RDWR | O_CLOEXEC);
	ASSERT_GE(self->kvm, 0);
	ASSERT_EQ(0, make_buffer(self->dev, PAGES * self->page, is_drm(self->dev), &self->buffer));
}

FIXTURE_TEARDOWN(guest_fault)
{
	close(self->buffer.fd);
	close(self->kvm);
	close(self->dev);
}

static char *map(FIXTURE_DATA(guest_fault) *self, int prot)
{
	return mmap(NULL, PAGES * self->page, prot, MAP_SHARED, self->buffer.fd, self->buffer.base);
}

/*
 * Returns whether the entry is writable, or an error below 0. As KVM does, it tries again where the
 * mmap lock was dropped meanwhile, which a driver may do once for a fault.
 */
static int guest(FIXTURE_DATA(guest_fault) *self, char *at, bool write)
{
	struct importer_guest arg = { .addr = (uintptr_t)at, .write = write };
	int ret;

	for (int i = 0; i < 2; i++) {
		ret = ioctl(self->kvm, IMPORTER_GUEST, &arg);
		if (ret >= 0 || errno != EAGAIN)
			break;
	}
	return ret < 0 ? -errno : ret;
}

TEST_F(guest_fault, writes_first)
{
	char *at = map(self, PROT_READ | PROT_WRITE);

	ASSERT_NE(MAP_FAILED, at);
	for (int i = 0; i < PAGES; i++)
		EXPECT_EQ(1, guest(self, at + i * self->page, true));
}

TEST_F(guest_fault, reads_first)
{
	char *at = map(self, PROT_READ | PROT_WRITE);

	ASSERT_NE(MAP_FAILED, at);
	for (int i = 0; i < PAGES; i++) {
		EXPECT_LE(0, guest(self, at + i * self->page, false));
		EXPECT_EQ(1, guest(self, at + i * self->page, true));
	}
}

/* The VMM has read, not the guest. */
TEST_F(guest_fault, after_the_vmm)
{
	char *at = map(self, PROT_READ | PROT_WRITE);

	ASSERT_NE(MAP_FAILED, at);
	for (int i = 0; i < PAGES; i++) {
		EXPECT_EQ(0, *(volatile char *)(at + i * self->page));
		EXPECT_EQ(1, guest(self, at + i * self->page, true));
	}
}

/* What the VMM may not write, its guest may not. */
TEST_F(guest_fault, read_only)
{
	char *at = map(self, PROT_READ);

	ASSERT_NE(MAP_FAILED, at);
	EXPECT_EQ(-EFAULT, guest(self, at, true));
	EXPECT_EQ(0, guest(self, at, false));
}

int main(int argc, char **argv)
{
	return test_harness_run(take_node(argc, argv), argv);
}
