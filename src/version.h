/* SPDX-License-Identifier: GPL-2.0 */
/*
 * For modules built outside of the kernel: in its tree their version is the
 * kernel's. The Makefile has kbuild include this in what all modules have in common.
 */
#include <linux/module.h>
#include <linux/stringify.h>

MODULE_VERSION(__stringify(PAGEKIT_VERSION));
