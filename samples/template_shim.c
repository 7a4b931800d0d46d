// SPDX-License-Identifier: GPL-2.0
/* The static inlines that dmabuf.rs needs. */
#include "dmabuf_shim.h"
