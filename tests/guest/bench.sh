# SPDX-License-Identifier: GPL-2.0
# In the guest: load MODULES and HEAP from MODDIR, and CONVERTED if there is one, and
# measure what ARGS say.
for module in $MODULES $HEAP; do
	insmod "$MODDIR/$module.ko" || exit 1
done
[ -z "$CONVERTED" ] || insmod "$CONVERTED" || exit 1
uname -r >kernel
"$BIN/pagekit-bench" $ARGS
