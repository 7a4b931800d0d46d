// SPDX-License-Identifier: GPL-2.0
/*
 * A 32-bit program that uses a device of samples/pagekit_style.h, without libc:
 *
 *   compat DEVICE BUF
 *
 * BUF is the file descriptor of a foreign dma-buf. The exit status is the number
 * of the check that failed, or 0. PAGE is the kernel's: the compiler is told.
 */
#include <asm/unistd.h>
#include <linux/errno.h>

#include "../../samples/pagekit_style.h"

_Static_assert(sizeof(void *) == 4, "a 32-bit program");

#define O_RDWR	2
#define AT_FDCWD	-100

#ifdef __arm__
static long call(long nr, long a, long b, long c)
{
	register long r7 __asm__("r7") = nr;
	register long r0 __asm__("r0") = a;
	register long r1 __asm__("r1") = b;
	register long r2 __asm__("r2") = c;

	__asm__ volatile ("svc #0" : "+r" (r0) : "r" (r7), "r" (r1), "r" (r2) : "memory");
	return r0;
}
#elif defined(__riscv)
static long call(long nr, long a, long b, long c)
{
	register long a7 __asm__("a7") = nr;
	register long a0 __asm__("a0") = a;
	register long a1 __asm__("a1") = b;
	register long a2 __asm__("a2") = c;

	__asm__ volatile ("ecall" : "+r" (a0) : "r" (a7), "r" (a1), "r" (a2) : "memory");
	return a0;
}
#else
static long call(long nr, long a, long b, long c)
{
	long ret;

	__asm__ volatile ("int $0x80" : "=a" (ret) : "a" (nr), "b" (a), "c" (b), "d" (c) : "memory");
	return ret;
}
#endif

static long do_ioctl(long fd, unsigned long cmd, const void *arg)
{
	return call(__NR_ioctl, fd, cmd, (long)arg);
}

static long do_access(long fd, __u64 offset, void *data, __u64 length, __u32 flags)
{
	struct pagekit_access access = {
		.offset = offset,
		.length = length,
		.address = (unsigned long)data,
		.flags = flags,
	};

	return do_ioctl(fd, PAGEKIT_ACCESS, &access);
}

#define CHECK(condition)				\
	do {						\
		step++;					\
		if (!(condition))			\
			call(__NR_exit, step, 0, 0);	\
	} while (0)

void start(long *stack);
void start(long *stack)
{
	char **argv = (char **)(stack + 1);
	struct pagekit_create create = { .size = 8 * PAGE };
	const __u32 cloexec = PAGEKIT_EXPORT_CLOEXEC, both = PAGEKIT_MAP_READ | PAGEKIT_MAP_WRITE;
	char out[] = "from a 32-bit program", in[sizeof(out)] = "";
	struct pagekit_info info;
	int step = 0, buf = 0;
	unsigned int i;
	long dev, other;
	char *digit;

	CHECK(stack[0] == 3);
	for (digit = argv[2]; *digit; digit++)
		buf = buf * 10 + *digit - '0';
	dev = call(__NR_openat, AT_FDCWD, (long)argv[1], O_RDWR);
	other = call(__NR_openat, AT_FDCWD, (long)argv[1], O_RDWR);
	CHECK(dev >= 0 && other >= 0);

	CHECK(do_ioctl(dev, PAGEKIT_CREATE, &create) == 0);
	CHECK(do_access(dev, 3 * PAGE - 5, out, sizeof(out), PAGEKIT_ACCESS_WRITE) == 0);
	CHECK(do_access(dev, 3 * PAGE - 5, in, sizeof(in), 0) == 0);
	for (i = 0; i < sizeof(in); i++)
		CHECK(in[i] == out[i]);
	CHECK(do_access(dev, 1ULL << 32, in, 1, 0) == -EINVAL);

	/* Its own buffer is the same object. */
	long fd = do_ioctl(dev, PAGEKIT_EXPORT, &cloexec);

	CHECK(fd >= 0);
	CHECK(do_ioctl(other, PAGEKIT_IMPORT, &(__s32){ fd }) == 0);
	CHECK(do_ioctl(other, PAGEKIT_INFO, &info) == 0);
	CHECK(info.size == 8 * PAGE);
	CHECK(info.sharers == 2 && !(info.flags & PAGEKIT_INFO_IMPORTED));
	CHECK(call(__NR_close, other, 0, 0) == 0);

	/* A foreign one is not. */
	other = call(__NR_openat, AT_FDCWD, (long)argv[1], O_RDWR);
	CHECK(do_ioctl(other, PAGEKIT_IMPORT, &(__s32){ buf }) == 0);
	CHECK(do_ioctl(other, PAGEKIT_MAP, &both) == 0);
	CHECK(do_ioctl(other, PAGEKIT_INFO, &info) == 0);
	CHECK(info.mappings == 1 && info.flags & PAGEKIT_INFO_IMPORTED);
	CHECK(do_access(other, 0, out, sizeof(out), PAGEKIT_ACCESS_WRITE) == 0);
	CHECK(do_ioctl(other, PAGEKIT_UNMAP, 0) == 0);
	CHECK(do_ioctl(other, PAGEKIT_UNMAP, 0) == -EINVAL);
	CHECK(do_ioctl(other, _IO('K', 0x7f), 0) == -ENOTTY);
	call(__NR_exit, 0, 0, 0);
}

#ifdef __arm__
__asm__(".globl _start\n"
	"_start:\n"
	"	mov r0, sp\n"
	"	bic sp, sp, #7\n"
	"	bl start\n");
#elif defined(__riscv)
__asm__(".globl _start\n"
	"_start:\n"
	"	mv a0, sp\n"
	"	andi sp, sp, -16\n"
	"	call start\n");
#else
__asm__(".globl _start\n"
	"_start:\n"
	"	xor %ebp, %ebp\n"
	"	mov %esp, %eax\n"
	"	and $-16, %esp\n"
	"	sub $12, %esp\n"
	"	push %eax\n"
	"	call start\n");
#endif
