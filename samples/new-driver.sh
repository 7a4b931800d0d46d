#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
#
# make new-driver: a copy of the template, or of the sample of a GEM driver, with a name of its own,
# and the plumbing that it takes.
#
#   new-driver.sh <name> <folder> [template | gem]
#
# In the environment: what its Makefile is to take for KDIR, ARCH, LLVM and INSTALL_MOD_PATH, and
# WORDS, what make was given to choose the kernel.

set -euo pipefail

prefix=${INSTALL_MOD_PATH:+$(realpath -m "$INSTALL_MOD_PATH")}
samples=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
name=$1 folder=${2%/} kind=${3:-template}
die() { echo "new-driver: error: $*" >&2; exit 1; }

[[ $name ]] || die "which name? make new-driver NAME=my_driver"
# A module of the kernel has at most 55 characters, and a crate those of an identifier.
[[ $name =~ ^[a-z][a-z0-9_]{0,54}$ ]] ||
	die "NAME=$name: a name has a to z, 0 to 9 and _, begins with a letter and has at most 55 of them"
case $name in
alloc | bindings | bitflags | core | ffi | kernel | macros | pin_init | uapi | zerocopy | zerocopy_derive)
	die "NAME=$name: there is a crate with that name already" ;;
pagekit_*) die "NAME=$name: pagekit_ is for its own modules" ;;
esac
case $kind in
template) plumbing=() ;;
gem) plumbing=("$samples"/{drm,fence,shmem}.rs "$samples"/{drm,fence,import,shmem}_shim.h) ;;
*) die "KIND=$kind: there are template and gem" ;;
esac
[[ ! -e $folder && ! -L $folder ]] || die "$folder exists already, and stays as it is"
[[ $folder != *[[:space:]]* ]] || die "DIR=$folder: kbuild takes no path with a space"
mkdir -p "$(dirname "$folder")"

new=$(mktemp -d "$folder.XXXXXX") || die "can't write there: DIR=$folder"
trap 'rm -rf "$new"' EXIT
cp "$samples"/template/* "$samples"/{compat,dmabuf}.rs "$samples"/dmabuf_shim.h "$samples"/../src/shim.h \
	"${plumbing[@]}" "$new"
[[ $kind = template ]] || cp "$samples/template-$kind"/* "$new"
cp "$samples/$kind.rs" "$new/driver.rs"
cp "$samples/${kind}_shim.c" "$new/driver_shim.c"
sed -i -e "s/pagekit_\(template\|$kind\)/$name/g" -e "s/pagekit-\(template\|$kind\)/${name//_/-}/g" \
	-e 's/The pagekit authors/Its author/' -e 's/"pagekit sample: /"/' \
	-e 's|"../src/shim.h"|"shim.h"|' \
	-e "s|^KDIR ?=.*|KDIR ?= $KDIR|" -e "s|^ARCH ?=.*|ARCH ?=${ARCH:+ $ARCH}|" -e "s|^LLVM ?=.*|LLVM ?=${LLVM:+ $LLVM}|" \
	-e "s|^INSTALL_MOD_PATH ?=.*|INSTALL_MOD_PATH ?=${prefix:+ $prefix}|" "$new"/*
chmod 755 "$new"
mv -T "$new" "$folder"
trap - EXIT
words=${WORDS:+ $WORDS}
echo "new-driver: ok: $folder
To load it in a virtual machine: make try-driver DIR=$folder$words
To build it: make modules modules_install$words${prefix:+ INSTALL_MOD_PATH=$prefix}, unless done, and make -C $folder"
