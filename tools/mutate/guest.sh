# SPDX-License-Identifier: GPL-2.0
# In the guest: run KUnit suites with the modules in each of the folders MUTANTS. Ends
# where a mutant has done more than fail: the host boots again for those that are left.
status=0
. ./lib.sh
KMEMLEAK=/sys/kernel/debug/kmemleak

# Huge pages of which the first are in movable memory, as cases want them.
fresh() {
	echo 0 >/proc/sys/vm/nr_hugepages
	echo 8 >/proc/sys/vm/nr_hugepages
	[ ! -e $KMEMLEAK ] || echo clear >$KMEMLEAK
}

# suites <folder>: prints what failed
suites() {
	suites_helpers=
	for module in "$1"/*.ko; do
		case $module in *_kunit.ko) continue ;; esac
		insmod "$module" || return
		suites_helpers="$suites_helpers $(basename "$module" .ko)"
	done
	suites_failed=0
	for module in "$1"/*_kunit.ko; do
		insmod "$module" || return
		cat /sys/kernel/debug/kunit/pagekit_*/results >results
		module=$(basename "$module" .ko)
		echo "# ran $module $(grep -c '^    ok' results)"
		grep '^    not ok' results && suites_failed=1
		rmmod "$module" || return
		[ $suites_failed = 0 ] || break
	done
	# shellcheck disable=SC2086 # a list
	rmmod $suites_helpers && [ $suites_failed = 0 ] || return
	[ ! -e $KMEMLEAK ] || no_leaks || { echo "not ok 0 kmemleak" && return 1; }
}

# Did the kernel warn, find a page in a bad state, oops or lock up?
unwell() { [ $(($(cat /proc/sys/kernel/tainted) & (32 | 128 | 512 | 16384))) != 0 ]; }

# limited <command...>: a hang ends this script, and with it the machine
limited() {
	(sleep "$limit" && kill -USR1 $$) &
	dog=$!
	"$@" &
	wait $!
	limited_status=$?
	kill $dog
	return $limited_status
}

# What has failed has left things behind: do whole modules pass still?
healthy() {
	kills=0
	echo "== again"
	fresh
	limited suites "$KO/$1.whole" && ! unwell && echo "== healthy"
}

trap 'echo "# hang"; exit 0' USR1
[ "$LIMIT" ] || set -- whole
kunit_memory || broken "no memory for KUnit"
kills=0
# Seconds. If there is no limit yet, the first are whole, and see all suites. Others get twice their time.
limit=${LIMIT:-900}
for mutant in "$@" $MUTANTS; do
	echo "== $mutant"
	echo "== $mutant" >/dev/kmsg
	fresh
	started=$(cut -d. -f1 /proc/uptime)
	limited suites "$KO/$mutant"
	suites_status=$?
	[ "$limit" != 900 ] || limit=$((2 * ($(cut -d. -f1 /proc/uptime) - started) + 20))
	! unwell || { echo "not ok 0 kernel-report" && break; }
	[ $suites_status = 0 ] && echo "== done" && echo "# limit $limit" && continue
	echo "not ok 0 fails"
	kills=$((kills + 1))
	[ $kills -lt 5 ] || healthy "$mutant" || break
done
[ $kills = 0 ] || unwell || healthy "$mutant"
exit $status
