# SPDX-License-Identifier: GPL-2.0
# In the guest: load DRIVER and the helpers that it needs from where they are installed,
# in ROOT, share a buffer of its device as SHARE does, and unload all of it.
status=0

check() {
	case=template.$1
	shift
	if "$@"; then echo "ok - $case"; else echo "not ok - $case"; status=1; fi
}

# Of what the kernel has said since, it says itself that modules taint it.
silent() {
	said=$(dmesg | tail -n +$((before + 1)) | grep -v 'taints kernel')
	[ -z "$said" ] || ! echo "$said" | sed 's/^/# /'
}

loaded() { grep -q "^$1 " /proc/modules; }
not() { ! "$@"; }

before=$(dmesg | wc -l)
check load modprobe -d "$ROOT" "$DRIVER"
check links loaded pagekit_vma
check share "$PYTHON" "$SHARE" "/dev/$(echo "$DRIVER" | tr _ -)"
check unload modprobe -d "$ROOT" -r "$DRIVER"
check unlinks not loaded pagekit_vma
check silent silent
exit $status
