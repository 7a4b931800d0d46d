// SPDX-License-Identifier: GPL-2.0
/*
 * Known traffic for the plugin of the benchmark to count: a program without a kernel, so that
 * nothing else touches memory. QEMU loads it as it loads kernels that know multiboot.
 * tools/bench/traffic.py knows what each part of it must come to.
 */

#define MARKS	((volatile char *)0x200000)
#define MEMORY	((char *)0x400000)
#define BEGIN	64
#define END	128
#define LINE	64

/* Magic, flags, and what makes the sum of all three 0. */
__asm__(".pushsection .text, \"ax\"\n"
	".balign 4\n"
	".long 0x1badb002, 0, -0x1badb002\n"
	".globl _start\n"
	"_start: mov $0x300000, %esp\n"
	"call main\n"
	/* Has QEMU end with exit status 1. */
	"mov $0xf4, %dx\n"
	"xor %al, %al\n"
	"out %al, %dx\n"
	"0: hlt\n"
	"jmp 0b\n"
	".popsection");

/* Registers alone: no loop here touches anything else. */
#define EACH(times, count, step, what)						\
	do {									\
		MARKS[BEGIN] = 0;						\
		for (int time = 0; time < (times); time++)			\
			for (char *at = MEMORY, *end = at + (count) * (step);	\
			     at != end; at += (step))				\
				__asm__ volatile(what : : "r"(at) : "eax", "memory");	\
		MARKS[END] = 0;							\
	} while (0)

#define LOAD	"movl (%0), %%eax"
#define STORE	"movl %%eax, (%0)"

int main(void);
int main(void)
{
	EACH(1, 1000, LINE, LOAD);
	EACH(1, 1000, LINE, STORE);
	EACH(1, 8000, 8, LOAD);
	EACH(1, 100, 2 * LINE, "movl 62(%0), %%eax");
	EACH(1, 100, LINE, "lock incl (%0)");
	/* A part of each cache, and more than it holds. */
	EACH(2, 256, LINE, LOAD);
	EACH(2, 1024, LINE, LOAD);
	EACH(2, 32768, LINE, LOAD);
	/* One set of the first cache, and 32 of the second. */
	EACH(2, 8, 4096, LOAD);
	EACH(2, 16, 4096, LOAD);
	EACH(2, 512, 4096, LOAD);
	return 0;
}
