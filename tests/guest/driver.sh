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

# Of what the kernel has said since, it says itself that modules taint it, and DRM that there is a device.
silent() {
	said=$(dmesg | sed "1,/] == begin $driver\$/d" | grep -v -e 'taints kernel' -e '\[drm\] Initialized')
	[ -z "$said" ] || ! echo "$said" | sed 's/^/# /'
}

loaded() {
	[ $# != 0 ] || return
	for module; do grep -q "^$module " /proc/modules || return; done
}

gone() {
	for module; do ! grep -q "^$module " /proc/modules || return; done
}

# A buffer larger than memory is refused, before anybody is killed for it.
TOO_LARGE='
import errno, fcntl, os, sys
device = os.open(sys.argv[1], os.O_RDWR)
try:
    fcntl.ioctl(device, ord("K") << 8, os.sysconf("SC_PHYS_PAGES") + 1)
except OSError as error:
    sys.exit(error.errno != errno.ENOMEM)
sys.exit("it was made")
'

for driver in $DRIVERS; do
	# Lines can't be counted: the oldest are lost when there are many.
	echo "== begin $driver" >/dev/kmsg
	device=/dev/$(echo "$driver" | tr _ -)
	check load /sbin/modprobe -d "$ROOT" "$driver"
	needs=$(/sbin/modinfo -b "$ROOT" -F depends "$driver" | tr , ' ')
	# shellcheck disable=SC2086 # a list
	check links loaded $needs
	check share "$PYTHON" "$USERS/$driver/share.py"
	# A DRM device is asked for no numbers of pages.
	[ ! -e "$device" ] || check refuses "$PYTHON" -c "$TOO_LARGE" "$device"
	check unload /sbin/modprobe -d "$ROOT" -r "$driver"
	# shellcheck disable=SC2086 # a list
	check unlinks gone $needs
	check silent silent
done
exit $status
