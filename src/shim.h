/* SPDX-License-Identifier: GPL-2.0 */
#ifndef PAGEKIT_SHIM_H
#define PAGEKIT_SHIM_H

#include <linux/export.h>

/* A function for Rust to call that is one C expression. */
#define SHIM(type, name, args, expr)	\
	type name args;			\
	type name args			\
	{				\
		return expr;		\
	}

/* A Rust function that drivers link to. Only its address matters here. */
#define EXPORT_RUST_GPL(sym)		\
	extern int sym;			\
	EXPORT_SYMBOL_GPL(sym)

#endif
