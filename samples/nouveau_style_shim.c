// SPDX-License-Identifier: GPL-2.0
/* The static inlines that style.rs and what it uses need. */
#include "style_shim.h"
