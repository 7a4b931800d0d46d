// SPDX-License-Identifier: GPL-2.0
/* The static inlines that style.rs and what it uses need. */
#define SIZE_LIMIT_MB pagekit_nouveau_size_limit_mb
#include "style_shim.h"
