# SPDX-License-Identifier: GPL-2.0
# In the guest: load each of DRIVERS and the helpers that it needs from where they are installed,
# in ROOT, share a buffer of its device by what is for it in USERS, and unload all of it. With /sbin
# in front it is kmod's modprobe, not one that the shell has built in.
status=0

check() {
	case=template.$driver-$1
	shift
	if "$@"; then echo "ok - $case"; else echo "not ok - $case"; status=1; fi
}

# Shows what the kernel has said since, but that modules taint it. None of it is a warning, or worse.
silent() {
	said=$(dmesg -r | sed "1,/] == begin $driver\$/d" | grep -v 'taints kernel')
	[ -z "$said" ] || echo "$said" | sed 's/^/# /'
	! echo "$said" | grep -q '^<[0-4]>'
}

loaded() {
	[ $# != 0 ] || return
	for module; do grep -q "^$module " /proc/modules || return; done
}

gone() {
	for module; do ! grep -q "^$module " /proc/modules || return; done
}

for driver in $DRIVERS; do
	# Lines can't be counted: the oldest are lost when there are many.
	echo "== begin $driver" >/dev/kmsg
	check load /sbin/modprobe -d "$ROOT" "$driver"
	needs=$(/sbin/modinfo -b "$ROOT" -F depends "$driver" | tr , ' ')
	# shellcheck disable=SC2086 # a list
	check links loaded $needs
	check share "$PYTHON" "$USERS/$driver/share.py"
	check unload /sbin/modprobe -d "$ROOT" -r "$driver"
	# shellcheck disable=SC2086 # a list
	check unlinks gone $needs
	check silent silent
done
exit $status
