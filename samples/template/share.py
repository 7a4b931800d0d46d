#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""Make a dma-buf with the driver, and share it with another process."""

import contextlib
import errno
import fcntl
import mmap
import os
import socket
import struct
import sys

from create import create

# <linux/dma-buf.h>
DMA_BUF_IOCTL_SYNC, READ, WRITE, END = 0x40086200, 1, 2, 4

PAGES = 16
SIZE = PAGES * mmap.PAGESIZE
THERE = 5 * mmap.PAGESIZE + 100
QUESTION, ANSWER = b"who is there?", b"another process"


@contextlib.contextmanager
def mapped(buffer):
    """The buffer in memory, while the CPU has it."""
    with mmap.mmap(buffer, SIZE) as memory:
        fcntl.ioctl(buffer, DMA_BUF_IOCTL_SYNC, struct.pack("Q", READ | WRITE))
        try:
            yield memory
        finally:
            fcntl.ioctl(buffer, DMA_BUF_IOCTL_SYNC, struct.pack("Q", READ | WRITE | END))


def second(end):
    """The other process has nothing but the end of a socket."""
    _, (buffer,), _, _ = socket.recv_fds(end, 1, 1)
    with mapped(buffer) as memory:
        if memory[THERE:THERE + len(QUESTION)] != QUESTION:
            sys.exit("share: the other process reads something else")
        memory[:len(ANSWER)] = ANSWER


def refuse():
    """A buffer larger than memory is refused, before anybody is killed for it."""
    try:
        create(os.sysconf("SC_PHYS_PAGES") + 1)
    except OSError as error:
        # DRM itself has none of 4 GiB.
        if error.errno in (errno.ENOMEM, errno.EINVAL):
            return
        raise
    sys.exit("share: a buffer larger than memory was made")


def main():
    refuse()
    buffer = create(PAGES)
    with mapped(buffer) as memory:
        if memory[:] != bytes(SIZE):
            sys.exit("share: a new buffer is not zeroed")
        memory[THERE:THERE + len(QUESTION)] = QUESTION
    ours, theirs = socket.socketpair()
    if not (child := os.fork()):
        os.close(buffer)
        second(theirs)
        os._exit(0)
    socket.send_fds(ours, [b"!"], [buffer])
    if os.waitpid(child, 0)[1]:
        sys.exit("share: the other process failed")
    with mapped(buffer) as memory:
        if memory[:len(ANSWER)] != ANSWER:
            sys.exit("share: its answer is not in the buffer")
    print(f"share: ok: {PAGES} pages, written by two processes")


if __name__ == "__main__":
    main()
