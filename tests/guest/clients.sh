# SPDX-License-Identifier: GPL-2.0
# In the guest: run programs of the user space in ROOT on mainline's devices and on ours, each in a
# mount namespace of its own. Below a line "== client side" is what the client says, which drivers
# have exported its buffers, and when it began and ended.
PIPE=$TMPDIR/client/frames

# inside <side> <heap, or none> <command...>: programs know no other names than mainline's
inside() {
	for dir in dev proc sys; do mount --rbind /$dir "$ROOT/$dir" || return; done
	mount --bind "$TMPDIR/client" "$ROOT/tmp" && mount --bind "$FILES" "$ROOT/mnt" &&
		mount --bind "$FILES/camera" "$ROOT/usr/share/libcamera/pipeline/virtual" &&
		mount -t tmpfs none "$ROOT/dev/dma_heap" || return
	[ "$1" = mainline ] || mount --bind /dev/pagekit-udmabuf "$ROOT/dev/udmabuf" || return
	# shellcheck disable=SC2046 # major and minor number
	[ "$2" = none ] ||
		mknod "$ROOT/dev/dma_heap/system" c $(tr : ' ' <"/sys/class/dma_heap/$2/dev") || return
	shift 2
	exec chroot "$ROOT" "$@"
}

if [ "$1" = inside ]; then
	shift
	inside "$@"
	exit 125
fi

# frames <process> <file>: takes what it writes to the pipe. It still has all its buffers while it
# waits for somebody to read its first frame, which is too large for the pipe.
frames() {
	timeout 100 head -c 4096 <&3 >"$2"
	sed -n 's/^exp_name:\t/# exporter /p' /proc/"$1"/fdinfo/*
	timeout 100 head -c $((FRAMES_SIZE - 4096)) <&3 >>"$2"
}

buffers() { tail -n 1 /sys/kernel/debug/dma_buf/bufinfo; }
now() { cut -d' ' -f1 /proc/uptime; }

# client <name> <side> <heap, or none> <command...>
client() {
	name=$1
	shift
	echo "== $name $1"
	before=$(buffers)
	echo "# begun $(now)"
	unshare -m sh script.sh inside "$@" 3>&- &
	case $name in camera-*) frames $! "$FILES/$name-$1" ;; esac
	if wait $!; then echo "ok - ends"; else echo "not ok - ends"; fi
	echo "# ended $(now)"
	if [ "$(buffers)" = "$before" ]; then echo "ok - frees"; else echo "not ok - frees"; fi
}

for module in $MODULES $HEAP; do insmod "$MODDIR/$module.ko" || exit; done
mkdir -p "$TMPDIR/client" && mkfifo "$PIPE" && exec 3<>"$PIPE" || exit
export MESA_SHADER_CACHE_DISABLE=true LIBCAMERA_PIPELINES_MATCH_LIST=virtual
for side in mainline pagekit; do
	heap=system
	[ $side = mainline ] || heap=pagekit
	client egl $side $heap /mnt/egl
	client vulkan $side $heap /mnt/vulkan
	client camera-heap $side $heap cam -c 1 -C"$FRAMES" -F/tmp/frames
	client camera-udmabuf $side none cam -c 1 -C"$FRAMES" -F/tmp/frames
done
