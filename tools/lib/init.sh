#!/bin/sh
# SPDX-License-Identifier: GPL-2.0
# The first program of a guest of another architecture, which has this, busybox, and what /usr has.
# It runs RUN, a script of the host's folder SHARE, where the guest has that folder, too.
/bin/busybox --install -s /bin
mount -t proc none /proc
mount -t sysfs none /sys
mount -t debugfs none /sys/kernel/debug
mount -t cgroup2 none /sys/fs/cgroup
mount -t devtmpfs none /dev
mkdir /dev/shm
mount -t tmpfs none /dev/shm
mount -t tmpfs none /run
mkdir -p /run/tmp "$SHARE"
mount -t 9p -o ro,trans=virtio,version=9p2000.L,cache=loose usr /usr
mount -t 9p -o trans=virtio,version=9p2000.L,msize=512000 share "$SHARE"
# What killed programs have in their registers is not from the kernel, but may look so.
echo 0 2>/dev/null >/proc/sys/debug/exception-trace
export PATH=/usr/sbin:/usr/bin:/bin
sh "$RUN"
poweroff -f
