# SPDX-License-Identifier: GPL-2.0
# In the guest: what test.sh and the script of make mutate have in common. It lies beside
# the script that reads it.
THP=/sys/kernel/mm/transparent_hugepage

broken() {
	echo "# broken: $*"
	# shellcheck disable=SC2034 # the script exits with it
	status=1
}

scan() { echo scan >/sys/kernel/debug/kmemleak; }

no_leaks() {
	# kmemleak reports what is 5 s old and looked the same in two scans.
	sleep 6 && scan && sleep 1 && scan || return
	[ -z "$(tee "$OUT/kmemleak.log" </sys/kernel/debug/kmemleak)" ] && return
	sed 's/^/# /' "$OUT/kmemleak.log"
	return 1
}

# What KUnit cases find: large folios where they ask with MADV_HUGEPAGE, eight huge
# pages, swap, and a disk that nobody uses.
kunit_memory() {
	echo advise >$THP/shmem_enabled
	echo advise >$THP/hugepages-64kB/shmem_enabled
	echo 8 >/proc/sys/vm/nr_hugepages
	echo 64M >/sys/block/zram0/disksize
	mkswap -q /dev/zram0 || return
	swapon /dev/zram0 || return
	disk=$(cat /sys/class/zram-control/hot_add)
	echo 1M >/sys/block/zram"$disk"/disksize
}
