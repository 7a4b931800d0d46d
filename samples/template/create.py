# SPDX-License-Identifier: GPL-2.0
"""Make a dma-buf with the driver."""

import fcntl
import os

DEVICE = "/dev/pagekit-template"
CREATE = ord("K") << 8  # as in driver.rs


def create(pages) -> int:
    """A file descriptor of a new buffer."""
    return fcntl.ioctl(os.open(DEVICE, os.O_RDWR), CREATE, pages)
