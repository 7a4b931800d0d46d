# SPDX-License-Identifier: GPL-2.0
# In the guest: what buffers cost of the drivers and kinds in TRY. The clock counts instructions.
status=0
. ./lib.sh
. ./converted.sh

for module in $MODULES; do
	insmod "$MODDIR/$module.ko" || exit 1
done

# Of all that is tried there, only this.
selftest_udmabuf() { :; }
selftest_heap() { :; }
selftest_mmap() { :; }
selftest_guest() { :; }
kunit_results() { :; }
life() {
	echo "== costs-$1"
	"$BIN/buffer_life-selftest" -t costs -- "$2" </dev/null || broken "no costs: $1"
}

try_all udmabuf drm_gem_shmem system_heap cma_heap
# shellcheck disable=SC2154 # lib.sh sets it
exit $status
