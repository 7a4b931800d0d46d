# SPDX-License-Identifier: GPL-2.0
# In the guest: what test.sh and the script of make mutate have in common. It lies beside
# the script that reads it.
THP=/sys/kernel/mm/transparent_hugepage
# What folios of 16 pages have there, and those of a page table's entries of 8 bytes.
THP_16=$THP/hugepages-$((PAGE_SIZE / 64))kB
# shellcheck disable=SC2034 # test.sh uses it
THP_HUGE=$THP/hugepages-$((PAGE_SIZE * (PAGE_SIZE / 8) / 1024))kB

broken() {
	echo "# broken: $*"
	# shellcheck disable=SC2034 # the script exits with it
	status=1
}

loaded() { grep -q "^$1 " /proc/modules; }

scan() { echo scan >/sys/kernel/debug/kmemleak; }

no_leaks() {
	# kmemleak reports what is 5 s old and looked the same in two scans.
	sleep 6 && scan && sleep 1 && scan || return
	# KUnit never gives back the mm of a test that maps something. On x86 page tables point to it.
	awk '/^unreferenced/ { if (ours) printf "%s", text; text = ""; ours = 1 }
		/ kunit_attach_mm\+/ { ours = 0 }
		{ text = text $0 "\n" }
		END { if (ours) printf "%s", text }' /sys/kernel/debug/kmemleak >"$OUT/kmemleak.log" || return
	[ -s "$OUT/kmemleak.log" ] || return 0
	sed 's/^/# /' "$OUT/kmemleak.log"
	return 1
}

# What KUnit cases find: large folios where they ask with MADV_HUGEPAGE, eight huge
# pages, swap, and a disk that nobody uses.
kunit_memory() {
	echo advise >$THP/shmem_enabled
	echo advise >"$THP_16/shmem_enabled"
	echo 8 >/proc/sys/vm/nr_hugepages
	echo 64M >/sys/block/zram0/disksize
	mkswap /dev/zram0 >/dev/null || return
	swapon /dev/zram0 || return
	disk=$(cat /sys/class/zram-control/hot_add)
	echo 1M >/sys/block/zram"$disk"/disksize
}
