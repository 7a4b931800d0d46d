# SPDX-License-Identifier: GPL-2.0
# In the guest: load MODULES from MODDIR, share FILE through the sample driver. The
# verdict, a line "demo: ...", goes to a file instead: the host prints it last, when
# it knows that the kernel had nothing to say either.

fail() {
	echo "demo: $1" >verdict
	exit 1
}

for module in $MODULES; do
	limit=
	[ "$module" != pagekit_udmabuf ] || limit=size_limit_mb=$LIMIT_MB
	insmod "$MODDIR/$module.ko" $limit || fail "$module does not load"
done
{
	"$BIN/pagekit-demo" --device /dev/pagekit-udmabuf "$FILE"
	echo $? >demo-status
} | while IFS= read -r line; do
	case $line in "demo: "*) echo "$line" >verdict ;; *) echo "$line" ;; esac
done
[ "$(cat demo-status)" = 0 ] || exit 1
rmmod $UNLOAD || fail "the modules do not unload"
