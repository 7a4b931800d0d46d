# SPDX-License-Identifier: GPL-2.0
# In the guest: what test.sh tries on drivers of the kernel tree, as they were and converted. They are in the
# folders that CONVERTED_* name.

# try_all <driver...>: what of these is in TRY, which has drivers and kinds with a colon between them
try_all() {
	for tried in $TRY; do
		case " $* " in *" ${tried%:*} "*) try "${tried%:*}" "${tried#*:}" ;; esac
	done
}

# try <driver> <kind>: load what is of that kind, before, converted or with a bug in it, and test it. Its
# modules may not be there for this kernel: then there is nothing to test. Of a bug one failed case is enough.
try() {
	echo "== begin $1 $2" >/dev/kmsg
	enough=
	case $2 in bug*) enough=1 ;; esac
	# shellcheck disable=SC2034 # tool reads it
	failed=
	"try_$1" "$2"
	enough=
	echo "# tried $1 $2"
}

# come <module> <what is listed>: what is there after loading and was not before
come() {
	# shellcheck disable=SC2012,SC2086 # names of devices
	come_before=$(ls -d $2 2>/dev/null)
	insmod "$1" || return
	for new in $2; do
		case $come_before in *"$new"*) ;; *) echo "$new" ;; esac
	done
}

# life <name> <node> [<option...>]: ours, in the kernel's form: what becomes of a buffer's memory. Only
# where it can be lost while there is a buffer is there something to keep, and only there it is charged.
# What it costs is for costs.sh.
life() {
	echo "== selftest-life-$1"
	life_node=$2
	shift 2
	tool "$BIN/buffer_life-selftest" "$@" -T costs -- "$life_node" </dev/null
}

try_udmabuf() {
	insmod "$CONVERTED_UDMABUF/udmabuf_$1.ko" || { broken "no udmabuf: $1"; return; }
	selftest_mmap "udmabuf-$1" /dev/udmabuf-converted
	selftest_guest "udmabuf-$1" /dev/udmabuf-converted
	life "udmabuf-$1" /dev/udmabuf-converted -T is_kept -T each_comes_back
	echo "== selftest-udmabuf-$1"
	selftest_udmabuf /dev/udmabuf-converted || broken "no device for the selftest of udmabuf: $1"
	rmmod "udmabuf_$1"
}

# drm <name> <kind> <module>: of DRM. What a card is called is not up to us: it is the one that has come.
drm() {
	card=$(come "$3" "/dev/dri/card*") || broken "no $1: $2"
	selftest_mmap "$1-$2" "$card"
	# DRM's core maps no part of a buffer through the node.
	selftest_mmap "$1-node-$2" "$card" -V dmabuf -T at_offset -T writes
	selftest_guest "$1-$2" "$card"
	life "$1-$2" "$card"
	rmmod "$(basename "$3" .ko)"
}

# The device of virtio-gpu is QEMU's.
try_drm_gem_shmem() {
	drm vgem "$1" "$CONVERTED_DRM_GEM_SHMEM/vgem_$1.ko"
	[ -e "$CONVERTED_DRM_GEM_SHMEM/drm_gem_shmem_test_$1.ko" ] || return
	# shellcheck disable=SC2086 # files
	kernel_modules $CONVERTED_DRM_GEM_SHMEM_NEEDS
	drm virtio_gpu "$1" "$CONVERTED_DRM_GEM_SHMEM/virtio_gpu_$1.ko"
	echo "== drm_gem_shmem-$1"
	insmod "$CONVERTED_DRM_GEM_SHMEM/drm_gem_shmem_test_$1.ko" || broken "no KUnit suite of drm_gem_shmem: $1"
	kunit_results drm_gem_shmem
	rmmod "drm_gem_shmem_test_$1"
}

# kunit_results <suite>: of its cases. The suite has one, too, which is no case.
kunit_results() { grep -v -e 'speed: normal$' -e "ok 1 $1\$" "/sys/kernel/debug/kunit/$1/results"; }

# Its mock selftests run when it is loaded. They say which one they begin, and loading fails with one.
# Our suite runs behind them.
try_i915() {
	[ -e "$CONVERTED_I915/i915_$1.ko" ] || return
	# shellcheck disable=SC2086 # files
	kernel_modules $CONVERTED_I915_NEEDS
	echo "== i915-$1"
	dmesg -c >>"$OUT/dmesg.before"
	# They take long. A bug is for ours to notice.
	i915_mock=-1
	[ -z "$enough" ] || i915_mock=0
	insmod "$CONVERTED_I915/i915_$1.ko" "mock_selftests=$i915_mock"
	i915_failed=$?
	dmesg | sed -n 's/.*i915: Running \([a-z0-9_]*\)\/\(.*\)/\1:\2/p' >"$OUT/i915"
	dmesg >>"$OUT/dmesg.before"
	if [ $i915_failed = 0 ]; then
		sed 's/^/ok - /' "$OUT/i915"
		echo "== i915_shmem-$1"
		kunit_results i915_shmem
		rmmod "i915_$1"
	else
		sed 's/^/ok - /;$s/^/not /' "$OUT/i915"
	fi
}

# The test of those who write drivers for cameras. It may be older than the kernel, and fail for that: of its
# cases, those that stream into memory of the process.
v4l2_compliance() {
	v4l2-compliance -d /dev/video0 -s4 </dev/null | tr '\r' '\n' | tr ' ' _ |
		sed -n 's/.*test_USERPTR_(\(.*\)):_OK$/ok - \1/p; s/.*test_USERPTR_(\(.*\)):_FAIL$/not ok - \1/p' | sort -u
}

# vivid's camera, on modules of that kind. It has one node.
try_frame_vector() {
	# shellcheck disable=SC2086 # files
	kernel_modules $CONVERTED_FRAME_VECTOR_NEEDS
	frames_loaded=
	for ko in "$CONVERTED_FRAME_VECTOR/frames_$1.ko" $CONVERTED_FRAME_VECTOR_USERS; do
		frames_options=
		[ "${ko##*/}" != vivid.ko ] || frames_options=node_types=1
		# shellcheck disable=SC2086 # none, or one
		insmod "$ko" $frames_options || broken "${ko##*/} does not load: $1"
		frames_loaded="$(basename "$ko" .ko) $frames_loaded"
	done
	echo "== selftest-frames-$1"
	tool "$BIN/user_frames-selftest" -- /dev/video0 </dev/null
	echo "== v4l2-compliance-$1"
	tool v4l2_compliance
	# shellcheck disable=SC2086 # names
	rmmod $frames_loaded
}

# heap <suite> <module>: the heap is called what the module is
heap() {
	insmod "$2" || { broken "no heap: $1"; return; }
	heap_name=$(basename "$2" .ko)
	echo "== selftest-heaps-$1"
	selftest_heap "$heap_name" || broken "no heap for the selftest: $1"
	selftest_mmap "$1" "/dev/dma_heap/$heap_name"
	life "$1" "/dev/dma_heap/$heap_name" -T is_kept -T each_comes_back
}
try_system_heap() { heap "system_heap-$1" "$CONVERTED_SYSTEM_HEAP/system_heap_$1.ko"; }
try_cma_heap() { heap "cma_heap-$1" "$CONVERTED_CMA_HEAP/cma_heap_$1.ko"; }

# kernel_modules <file...>: load what is not yet
kernel_modules() {
	for ko; do
		loaded_name=$(basename "$ko" .ko | tr - _)
		loaded "$loaded_name" || insmod "$ko" || broken "$loaded_name does not load"
	done
}

# Where pages can go that were written to, and a group that can be told to let go of them.
converted_memory() {
	mkdir -p /sys/fs/cgroup
	mountpoint -q /sys/fs/cgroup || mount -t cgroup2 none /sys/fs/cgroup
	echo +memory >/sys/fs/cgroup/cgroup.subtree_control
	grep -q zram0 /proc/swaps && return
	echo 512M >/sys/block/zram0/disksize && mkswap /dev/zram0 >/dev/null && swapon /dev/zram0
}
