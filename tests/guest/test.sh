# SPDX-License-Identifier: GPL-2.0
# In the guest: run the tests named by PARTS and print what they print. A line
# "== suite" starts a suite; "==" alone: what follows names its cases in full. Only
# the host judges: it knows which cases there must be. What fails here for another
# reason than a failed case (a tool that crashes) is this script's exit status.
status=0

broken() {
	echo "# broken: $*"
	status=1
}

# check <case> <command...>
check() {
	check_case=$1
	shift
	if "$@"; then echo "ok - $check_case"; else echo "not ok - $check_case"; fi
}

# tool <command...>: 0 and 1 say whether cases failed, others that it broke
tool() {
	"$@"
	tool_status=$?
	[ $tool_status -le 1 ] || broken "${1##*/}: exit status $tool_status"
}

load() { for module; do insmod "$MODDIR/$module.ko" || return; done; }

scan() { echo scan >/sys/kernel/debug/kmemleak; }

no_leaks() {
	# kmemleak reports what is 5 s old and looked the same in two scans.
	sleep 6 && scan && sleep 1 && scan || return
	[ -z "$(tee "$OUT/kmemleak.log" </sys/kernel/debug/kmemleak)" ] && return
	sed 's/^/# /' "$OUT/kmemleak.log"
	return 1
}

# The kernel tree's selftest opens /dev/udmabuf, where mainline's driver sits. The
# last two of its cases take 1100 huge pages.
selftest() {
	name=pagekit-selftest
	rmmod pagekit_udmabuf && insmod "$MODDIR/pagekit_udmabuf.ko" name=$name || return
	mount --bind /dev/$name /dev/udmabuf || return
	echo 1100 >/proc/sys/vm/nr_hugepages
	[ "$(cat /proc/sys/vm/nr_hugepages)" -ge 1100 ] || echo "# not enough huge pages"
	tool "$BIN/udmabuf-selftest" </dev/null
	echo 0 >/proc/sys/vm/nr_hugepages
	umount /dev/udmabuf
}

echo "=="
check modules.load load $MODULES

for part in $PARTS; do
	case $part in
	kunit)
		# Some cases ask for large folios with MADV_HUGEPAGE.
		echo advise >/sys/kernel/mm/transparent_hugepage/shmem_enabled
		for module in $KUNIT; do
			insmod "$MODDIR/$module.ko" || broken "$module does not load"
			for results in /sys/kernel/debug/kunit/pagekit_*/results; do
				[ -e "$results" ] || continue
				suite=${results%/results}
				echo "== ${suite##*/}"
				grep -v 'speed: normal$' "$results"
			done
			rmmod "$module" || broken "$module does not unload"
		done
		;;
	user)
		echo "=="
		tool "$BIN/pagekit-test" --device /dev/pagekit-udmabuf
		;;
	smoke)
		echo "=="
		tool "$BIN/pagekit-test" --device /dev/pagekit-udmabuf --smoke
		;;
	selftest)
		echo "== selftest-udmabuf"
		selftest || broken "no device for the selftest"
		;;
	esac
done

echo "=="
check modules.unload rmmod $UNLOAD
case $PARTS in *leaks*) check modules.no-leaks no_leaks ;; esac
exit $status
