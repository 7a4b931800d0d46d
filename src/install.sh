#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
#
# make modules_install: of what make modules has built in <folder>, the helpers, with
# what other drivers are built against, and the samples that are named.
#
#   install.sh <folder> [sample...]
#
# Nothing is built and nothing set up, so that root needs no compiler. In the environment:
# INSTALL_MOD_PATH, if it is not /.

set -euo pipefail

top=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
built=$1
shift
die() { echo "modules_install: error: $*" >&2; exit 1; }
[[ -f $built/kernel.env ]] || die "nothing is built in $built: first run make modules, with the same KDIR=, ARCH=, CONFIG="
KDIR='' ARCH='' LLVM=''
# shellcheck source=/dev/null
. "$built/kernel.env"
prefix=${INSTALL_MOD_PATH:+$(realpath -m "$INSTALL_MOD_PATH")}
modules=$prefix/lib/modules/$(cat "$KDIR/include/config/kernel.release")
devel=$modules/pagekit-devel

# Those that were chosen when the modules were built
mapfile -t helpers < <(grep -xE 'pagekit_(pages|pin|vma)\.o' "$built/modules.order")
((${#helpers[@]})) || die "no helper is built"
helpers=("${helpers[@]%.o}")
samples=("${@/#/pagekit_}")
for sample in "${samples[@]}"; do
	grep -qxF "$sample.o" "$built/modules.order" || die "SAMPLES: there is no $sample, or it is not built"
done
mkdir -p "$devel" 2>/dev/null || die "can't write to $modules; be root, or give INSTALL_MOD_PATH="

# depmod wants lists of the kernel's own modules, also where only we install.
[[ ! $prefix ]] || touch "$modules"/modules.{order,builtin,builtin.modinfo}

# kbuild installs what the modules.order of a folder lists: signed and compressed as the
# kernel wants it, with depmod.
stage=$built/install
rm -rf "$stage"
mkdir "$stage"
for name in "${helpers[@]}" "${samples[@]}"; do
	ln -s "../$name.ko" "$stage"
	echo "$name.o" >>"$stage/modules.order"
done
make --no-print-directory -C "$KDIR" M="$top" MO="$stage" ${ARCH:+ARCH="$ARCH"} ${LLVM:+LLVM="$LLVM"} \
	INSTALL_MOD_PATH="$prefix" modules_install

# What rustc, modpost and C compilers read
rm -rf "$devel"
mkdir "$devel"
for name in bitflags pagekit_view "${helpers[@]}"; do
	install -m 644 "$built/src/lib$name.rmeta" "$devel"
done
printf '%s\n' "${helpers[@]}" | awk -F '\t' 'NR == FNR { helper[$1]; next } $3 in helper' - \
	"$built/Module.symvers" >"$devel/Module.symvers"
[[ ! -d $top/include ]] || cp -r "$top/include" "$devel"
echo "modules_install: ok: ${helpers[*]}${samples:+ ${samples[*]}} in $modules"
echo "modules_install: to build drivers against: $devel"
