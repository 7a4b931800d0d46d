# SPDX-License-Identifier: GPL-2.0
# In the guest: run the tests named by PARTS and print what they print. A line
# "== suite" starts a suite; "==" alone: what follows names its cases in full. Only
# the host judges: it knows which cases there must be. What fails here for another
# reason than a failed case (a tool that crashes) is this script's exit status.
status=0
enough=
covers=0
HUGE_2M=/sys/kernel/mm/hugepages/hugepages-2048kB
# A heap has one name for as long as the machine runs. This one is known to programs.
case $PARTS in *bounce*) heap=linux,cma ;; *) heap=pagekit ;; esac
. ./lib.sh

# check <case> <command...>
check() {
	check_case=$1
	shift
	if "$@"; then echo "ok - $check_case"; else echo "not ok - $check_case"; fi
}

# tool <command...>: 0 and 1 say whether cases failed, others that it broke. Nothing is run after the first that
# failed if that is enough.
tool() {
	[ -z "$enough" ] || [ -z "$failed" ] || return 0
	"$@"
	tool_status=$?
	[ $tool_status = 0 ] || failed=1
	[ $tool_status -le 1 ] || broken "${1##*/}: exit status $tool_status"
}

load() {
	for module; do
		parameters=
		[ "$module" != pagekit_heap ] || parameters=name=$heap
		# shellcheck disable=SC2086 # none, or one
		insmod "$MODDIR/$module.ko" $parameters || return
		echo "# coresize $module $(cat "/sys/module/$module/coresize")"
	done
}

# User-space cases pin the same pages at the same time, and holes of hugetlb files: the
# kernel can refuse both where memory is movable. So take all of that away, and have
# what is freed of it later left alone.
user_memory() {
	swapoff /dev/zram0
	echo 0 >/proc/sys/vm/nr_hugepages
	pages=$(awk '/zone +Movable/ { movable = 1 }
		movable && /nr_free_pages/ { print $2; exit }' /proc/zoneinfo)
	mkdir /dev/shm/movable && mount -t tmpfs -o size=100%,noswap none /dev/shm/movable || return
	fallocate -l $((pages * PAGE_SIZE)) /dev/shm/movable/all
	echo 1000 >/proc/sys/vm/watermark_scale_factor
}

# selftest_udmabuf <device>: the kernel tree's selftest opens /dev/udmabuf, where
# mainline's driver sits. The last two of its cases take 1100 huge pages.
selftest_udmabuf() {
	mount --bind "$1" /dev/udmabuf || return
	echo 1100 >$HUGE_2M/nr_hugepages
	[ "$(cat $HUGE_2M/nr_hugepages)" -ge 1100 ] || echo "# not enough huge pages"
	tool "$BIN/udmabuf-selftest" </dev/null
	echo 0 >$HUGE_2M/nr_hugepages
	umount /dev/udmabuf
}

# selftest_mmap <name> <device> [<option...>]: ours, in the kernel's form: what can be mapped at an
# offset, or what the options of its harness say
selftest_mmap() {
	echo "== selftest-mmap-$1"
	mmap_node=$2
	shift 2
	[ $# -gt 0 ] || set -- -v dmabuf
	# Files have huge pages, if they are as large.
	echo within_size >"$THP_HUGE/shmem_enabled"
	tool "$BIN/mmap_offset-selftest" "$@" -- "$mmap_node" </dev/null
	echo inherit >"$THP_HUGE/shmem_enabled"
}

# selftest_guest <name> <device>: ours, too: what a guest gets of what its VMM has mapped
selftest_guest() {
	echo "== selftest-guest-$1"
	tool "$BIN/guest_fault-selftest" -- "$2" </dev/null
}

# What a card is called is not up to us: it is the one of our device. There is none with Linux 7.2.
gem() { ls -d /sys/devices/faux/pagekit-gem/drm/card* 2>/dev/null | sed 's|.*/|/dev/dri/|'; }

# vgem shows wrong pages wherever a mapping does not begin with the buffer.
vgem_fails() {
	[ "$("$BIN/mmap_offset-selftest" -v dmabuf -- /dev/dri/card0 </dev/null | grep -c '^not ok')" = 5 ]
}

# selftest_heap <name>: the one of DMA heaps tests all that there are: it is shown only this.
selftest_heap() {
	mount -t tmpfs none /dev/dma_heap || return
	# shellcheck disable=SC2046 # major and minor number
	mknod "/dev/dma_heap/$1" c $(tr : ' ' <"/sys/class/dma_heap/$1/dev") || return
	tool "$BIN/heaps-selftest" </dev/null
	umount /dev/dma_heap
}

# begin <part>: says when it begins
begin() { echo "# began $1 $(cut -d' ' -f1 /proc/uptime)"; }

# chosen <suite>: has what of it is in ONLY in $chosen: nothing for all of it. Fails if it is not wanted.
chosen() {
	chosen=
	for word in $ONLY; do
		case $word in "$1".*) chosen="$chosen $word" ;; esac
	done
	[ -z "$ONLY" ] || [ "$chosen" ]
}

# kunit <module> <suite>.[<case>]: load the module, which runs them
kunit() {
	case $2 in *.) set -- "$1" "$2*" ;; esac
	printf %s "$2" >/sys/module/kunit/parameters/filter_glob
	insmod "$MODDIR/$1.ko" || broken "$1 does not load"
	for results in /sys/kernel/debug/kunit/pagekit_*/results; do
		[ -e "$results" ] || continue
		suite=${results%/results}
		echo "== ${suite##*/}"
		grep -v 'speed: normal$' "$results"
	done
	rmmod "$1" || broken "$1 does not unload"
}

# cases <part> <group> <device>
cases() {
	case $1 in inputs) chosen "inputs.$2" ;; *) chosen "$2" ;; esac || return 0
	case $1 in
	user | failures | cma | dma | numa | qemu) which_cases= ;;
	smoke | failures-smoke | qemu-smoke) which_cases=--smoke ;;
	bounce) which_cases="device heap.charge heap.charge_limit heap.write_combined gem.write_combined_swaps" ;;
	inputs) which_cases="--inputs $OUT/inputs" ;;
	esac
	echo "=="
	tool "$BIN/pagekit-test" --group "$2" --device "$3" $which_cases $chosen
}

# nodes <part> <prefix of groups>: the nodes for the kinds of mappings, each with the cases for its kind.
nodes() {
	# Else the kernel maps no huge pages by reference.
	thp=/sys/kernel/mm/transparent_hugepage/enabled
	echo always >$thp
	for node in /dev/pagekit-node-*; do
		[ -e "$node" ] || continue
		cases "$1" "$2${node#/dev/pagekit-}" "$node"
	done
	echo madvise >$thp
}

matrix() {
	# Mainline's driver syncs in other directions than it maps, which would be reported.
	without=
	[ ! -e /sys/kernel/debug/dma-api ] || without=mainline-udmabuf
	# With bounce buffers, wrong data would show: DRM's core doesn't sync at all.
	case $(cat /proc/cmdline) in
	*swiotlb=force*) without="mainline-udmabuf mainline-system-heap vgem" ;;
	esac
	# shellcheck disable=SC2086 # names
	tool "$BIN/pagekit-matrix" "$OUT/matrix.json" $without
}

numa() { cases numa numa /dev/dma_heap/pagekit; }

races() {
	chosen races
	tool "$BIN/pagekit-test" --group races --seconds "$RACE_SECONDS" $chosen
}

# Files have large folios, if they are as large, and mappings huge pages.
fuzz() {
	echo never >$THP/shmem_enabled
	echo within_size >"$THP_16/shmem_enabled"
	echo within_size >"$THP_HUGE/shmem_enabled"
	echo always >$THP/enabled
	tool "$BIN/pagekit-fuzz" --json "$OUT/fuzz.json" $FUZZ
}

bounced() { [ "$(cat /sys/kernel/debug/swiotlb/io_tlb_used_hiwater)" -gt 0 ]; }

# covered <command...>: for make coverage, keeps where modules were and what of them has run
covered() {
	[ -n "$COVERAGE" ] || { "$@"; return; }
	covers=$((covers + 1))
	grep . /sys/module/pagekit_*/sections/.*text* >"$OUT/coverage.$covers"
	"$@"
	covered_status=$?
	cat /sys/kernel/debug/pagekit_cov >>"$OUT/coverage.$covers"
	return $covered_status
}

rmmod() { covered command rmmod "$@"; }

not() { ! "$@"; }

[ -z "$COVERAGE" ] || insmod "$MODDIR/tools/coverage/pagekit_cov.ko" || broken "nothing records what runs"
begin modules
echo "=="
check modules.load load $MODULES

for part in $PARTS; do
	begin $part
	case $part in
	kunit)
		kunit_memory || broken "no memory for KUnit"
		for module in $KUNIT; do
			chosen "${module%_kunit}" || continue
			for word in ${chosen:-"${module%_kunit}."}; do
				kunit "$module" "$word"
			done
		done
		user_memory || broken "no memory for user space"
		;;
	user | smoke | bounce | inputs)
		for kind in udmabuf cdmabuf i915 nouveau radeon; do
			# make size loads what is in Rust only.
			[ ! -e /dev/pagekit-$kind ] || cases $part $kind /dev/pagekit-$kind
		done
		[ -z "$(gem)" ] || cases $part gem "$(gem)"
		[ $part = bounce ] || nodes $part ""
		[ $part = inputs ] || continue
		cases $part importer /dev/pagekit-importer
		cases $part parameters /dev/pagekit-udmabuf
		;;
	peer)
		# What mainline's drivers are known to fail must fail.
		echo "=="
		tool "$BIN/pagekit-test" --peer --device /dev/udmabuf stale unwritten partly_written dirty read_only_fd
		tool "$BIN/pagekit-test" --peer --device /dev/dma_heap/system --group heap read_only
		check vgem.mmap_offset vgem_fails
		;;
	bounced-peer)
		echo "=="
		tool "$BIN/pagekit-test" --peer --device /dev/udmabuf device
		tool "$BIN/pagekit-test" --peer --device /dev/dma_heap/system --group heap device
		;;
	cma) cases cma cma /dev/pagekit-udmabuf ;;
	dma)
		[ -e /sys/kernel/tracing/instances ] || mount -t tracefs none /sys/kernel/tracing ||
			broken "this kernel traces nothing"
		for kind in udmabuf cdmabuf i915 nouveau radeon; do
			cases dma dma.$kind /dev/pagekit-$kind
		done
		[ -z "$(gem)" ] || cases dma dma.gem "$(gem)"
		;;
	qemu*)
		# If mainline's device fails too, it is QEMU that has changed.
		cases $part qemu /dev/pagekit-udmabuf
		cases $part qemu-mainline /dev/udmabuf
		;;
	failures*)
		for kind in udmabuf i915 nouveau radeon bench; do
			cases $part failures.$kind /dev/pagekit-$kind
		done
		[ -z "$(gem)" ] || cases $part failures.gem "$(gem)"
		nodes $part failures.
		;;
	selftest)
		echo "== selftest-udmabuf"
		rmmod pagekit_udmabuf && insmod "$MODDIR/pagekit_udmabuf.ko" name=pagekit-selftest &&
			selftest_udmabuf /dev/pagekit-selftest || broken "no device for the selftest"
		selftest_mmap udmabuf /dev/pagekit-selftest
		selftest_mmap cdmabuf /dev/pagekit-cdmabuf
		if [ "$(gem)" ]; then
			selftest_mmap gem "$(gem)"
			selftest_mmap gem-node "$(gem)" -V dmabuf
			selftest_guest gem "$(gem)"
		fi
		selftest_guest udmabuf /dev/pagekit-selftest
		selftest_guest cdmabuf /dev/pagekit-cdmabuf
		for node in /dev/pagekit-node-*pfns; do
			echo "== selftest-pfnmap-${node#/dev/pagekit-node-}"
			tool "$BIN/pfnmap-selftest" -- "$node" </dev/null
		done
		;;
	converted)
		# shellcheck source=tests/guest/converted.sh
		. ./converted.sh
		converted_memory || broken "no memory for converted drivers"
		try_all udmabuf drm_gem_shmem i915 frame_vector
		;;
	esac
done

begin modules
echo "=="
check modules.unload rmmod $UNLOAD

# Now a driver of the template's kind has what it needs loaded, from where that is installed.
case $PARTS in *template*)
	begin template
	echo "=="
	tool sh "$DRIVER_SH"
	;;
esac

# A heap can't be removed: it comes last, and alone with what it depends on.
begin modules
check modules.heap_loads load $HEAP
check modules.heap_loads_no_pin not loaded pagekit_pin
load pagekit_importer || broken "pagekit_importer does not load again"
for part in $PARTS; do
	begin $part
	case $part in
	user | smoke | bounce | inputs)
		cases $part heap "/dev/dma_heap/$heap"
		;;
	dma) cases dma dma.heap /dev/dma_heap/pagekit ;;
	failures*)
		cases $part failures.heap /dev/dma_heap/pagekit
		# What it warned of once it shall warn of again.
		echo 1 >/sys/kernel/debug/clear_warn_once
		;;
	selftest)
		echo "== selftest-heaps"
		selftest_heap pagekit || broken "no heap for the selftest"
		selftest_mmap heap /dev/dma_heap/pagekit
		;;
	converted)
		# They can't be removed either.
		try_all system_heap cma_heap
		;;
	numa | matrix | races | fuzz)
		again=
		for module in $MODULES; do
			loaded "$module" && continue
			load "$module" || broken "$module does not load again"
			again="$module $again"
		done
		echo "=="
		$part
		check modules.unload_after_$part rmmod $again
		;;
	esac
done
covered :
begin modules
echo "=="
check modules.heap_stays not rmmod pagekit_heap
case $PARTS in *bounce*) check device.bounced bounced ;; esac
case $PARTS in *leaks*) begin leaks && check modules.no-leaks no_leaks ;; esac
begin end
exit $status
