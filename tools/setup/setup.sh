#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
#
# Gets a machine ready: packages, a matching Rust toolchain, a kernel built with
# Rust. Whatever is ready already is left alone. All of it goes to a cache
# that every clone shares (PAGEKIT_CACHE); the packages go to the system.
# It runs before anything else, so it takes only what a minimal Debian has, and make.
#
#   setup.sh python              the first step of what is written in Python: get that, if it is
#                                missing, with all other packages
#   setup.sh kernel KERNEL       set up all; the last line printed is the build dir
#   setup.sh modules KERNEL      the same without the virtual machine
#   setup.sh convert KERNEL      all, and what converts a driver of the kernel's to C
#   setup.sh size KERNEL         the same, and what counts lines for make size
#   setup.sh check KERNEL        all, and what make check needs
#   setup.sh clients             all for the base kernel, and Debian's programs for make clients; the
#                                last line printed is where they are
#   setup.sh bitflags            get the crate; the last line printed is its lib.rs
#   setup.sh sphinx|ruff         a tool for documents, or for Python; prints where it is
#   setup.sh matplotlib          the same: a Python that can draw the documents' charts
#   setup.sh env KERNEL          NAME=value lines for a machine that is set up
#   setup.sh doctor KERNEL       what is there and what is missing
#
# KERNEL is a name such as base, debug or arm64-16k: know_kernel in kernel.sh reads it.
# In the environment: KDIR= a kernel tree of yours, built with Rust; KVER= the
# series of the kernel to fetch; PAGEKIT_UPDATE=1 looks for a newer patch level;
# PAGEKIT_BEGUN=1 after the first step, which has warned already.
#
# Nothing half done is ever trusted: what can be renamed is made under a
# temporary name first, what can't gets a stamp last. Paths hold no spaces, so
# that they can go through make.

set -euo pipefail
shopt -s inherit_errexit

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
top=$(dirname "$(dirname "$here")")

say() { printf '%s\n' "setup: $*" >&2; }
die() { say "error: $*"; exit 1; }
have() { type "$@" >/dev/null 2>&1; } # all of these commands

# What make and the caller's shell have set for themselves is not for the
# kernel's make: an exported ARCH= or M= would change what is built.
unset MAKEFLAGS MFLAGS MAKEOVERRIDES MAKELEVEL GNUMAKEFLAGS
unset ARCH SUBARCH CROSS_COMPILE M MO O LLVM LLVM_IAS CC LD HOSTCC HOSTLD V W C
unset KBUILD_OUTPUT KBUILD_EXTMOD KBUILD_EXTRA_SYMBOLS KCFLAGS KAFLAGS KRUSTFLAGS
unset KCONFIG_CONFIG KCONFIG_ALLCONFIG LOCALVERSION INSTALL_MOD_PATH
export LC_ALL=C

# shellcheck source=tools/setup/versions.env
. "$here/versions.env"
KVER=${KVER:-$KVER_DEFAULT}
KDIR=${KDIR:-}
cache=${PAGEKIT_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/pagekit}
case $cache in /*) ;; *) cache=$PWD/$cache ;; esac
for path in "$cache" "$top" "$KDIR"; do
	case $path in *[[:space:]]*) die "a path with a space in it does not work with kbuild: '$path'" ;; esac
done
# Debian keeps depmod and the like out of a plain user's PATH.
PATH=$PATH:/usr/sbin:/sbin

# shellcheck source=tools/setup/tools.sh
. "$here/tools.sh"
# shellcheck source=tools/setup/kernel.sh
. "$here/kernel.sh"
# shellcheck source=tools/setup/clients.sh
. "$here/clients.sh"

# --- Steps: jobs in the background --------------------------------------------

declare -A step_pid=() step_start=()

# step <name> <command...>: starts it, unless it runs already. Its output goes
# to a log in the cache.
step() {
	local name=$1
	shift
	[[ ! ${step_pid[$name]:-} ]] || return 0
	# A process group of its own, so that all of it can be stopped.
	set -m
	"$@" >"$cache/log/$name.log" 2>&1 </dev/null &
	set +m
	step_pid[$name]=$!
	step_start[$name]=$SECONDS
}

# Steps stop with this script, whatever stops it.
# shellcheck disable=SC2317 # a trap calls it
stop_steps() {
	local pid
	for pid in "${step_pid[@]}"; do kill -- "-$pid" 2>/dev/null || :; done
}
trap stop_steps EXIT
trap 'exit 129' HUP
trap 'exit 130' INT
trap 'exit 143' TERM

elapsed() { printf '%d:%02d' $((($1) / 60)) $((($1) % 60)); }

# progress <step>: how far a kernel's build has come, as each object is a line of its log
progress() {
	[[ $1 = kernel-* ]] || return 0
	local total=OBJECTS_$config
	printf ' %d of about %d objects' "$(grep -cE '^  [A-Z]' "$cache/log/$1.log")" "${!total}"
}

# wait_steps: until all are done; now and then a line says which are not. Ends
# the script when one fails.
wait_steps() {
	local name rc text shown=$SECONDS
	while ((${#step_pid[@]})); do
		text=
		for name in "${!step_pid[@]}"; do
			if kill -0 "${step_pid[$name]}" 2>/dev/null; then
				text+="${text:+, }$name$(progress "$name") $(elapsed $((SECONDS - step_start[$name])))"
				continue
			fi
			rc=0
			wait "${step_pid[$name]}" || rc=$?
			unset "step_pid[$name]"
			if ((rc)); then
				tail -n 20 "$cache/log/$name.log" >&2
				die "$name failed; the lines above are the end of $cache/log/$name.log"
			fi
			say "$name: done in $(elapsed $((SECONDS - step_start[$name])))"
		done
		if [[ $text ]] && ((SECONDS - shown >= 30)); then
			shown=$SECONDS
			say "at work: $text"
		fi
		sleep 0.5
	done
	rm -rf "$cache/partial"
}

# --- What is asked for --------------------------------------------------------

# Two set-ups on one cache would undo each other's work. The lock is inherited
# by what they start, so it also waits for leftovers of a killed one.
lock_cache() {
	mkdir -p "$cache"/{log,src,tools} || die "can't write to $cache; set PAGEKIT_CACHE"
	exec 9>"$cache/lock"
	if ! flock -n 9; then
		say "waiting for another set-up that uses $cache"
		flock 9
	fi
	rm -rf "$cache/partial"
}

# set_up <what else must be ready: modules, vm ...>
set_up() {
	[[ ${PAGEKIT_BEGUN:-} ]] || warn_series
	if [[ $KDIR ]]; then
		check_kdir
		[[ $* != *vm* ]] || warn_vm
		ready "$@" && return
	else
		check_kver
		[[ ! ${PAGEKIT_UPDATE:-} ]] && find_tools && kernel_ready && ready "$@" && return
	fi
	lock_cache
	# The downloads keep the network busy and bindgen the processors, while
	# packages get installed; the rest goes on beside the kernel's build.
	! { have cc xz && find_rustc; } || start_tools
	# shellcheck disable=SC2046 # nothing, or one word
	install_packages "$@" kernel $([[ $config != prod ]] || echo prod)
	start_tools
	wait_steps
	find_bitflags || step bitflags make_bitflags
	[[ $* != *vm* ]] || start_vm
	[[ $* != *clients* ]] || clients_ready || step clients make_clients
	if [[ ! $KDIR ]]; then
		find_tools || die "the set-up did not complete; see $cache/log"
		kernel_ready || step "kernel-$kernel" build_kernel
	fi
	wait_steps
	ready "$@" || die "the set-up did not complete; see $cache/log"
	[[ $KDIR ]] || kernel_ready || die "the kernel build left no complete kernel"
}

# What is written in Python calls the rest of the set-up itself.
set_up_python() {
	warn_series
	have python3 && return
	know_kernel base
	lock_cache
	install_packages modules vm kernel
}

# The crate alone: for that cargo is enough.
set_up_bitflags() {
	if ! find_bitflags; then
		lock_cache
		install_packages rust python
		step bitflags make_bitflags
		wait_steps
		find_bitflags || die "cargo has not fetched bitflags; see $cache/log"
	fi
	echo "$bitflags"
}

# Starts what is still missing of the tools that a kernel build takes.
start_tools() {
	if [[ $KDIR ]]; then
		# Of a kernel that is built only what runs in its guest takes it.
		! cross || find_rust_src || step sources make_rust_src
		return
	fi
	[[ -x $bindgen/bin/bindgen ]] || step bindgen make_bindgen
	if [[ ${PAGEKIT_UPDATE:-} ]] || ! find_source || ! find_rust_src; then
		step sources make_sources
		PAGEKIT_UPDATE=''
	fi
}

# venv_tool <package==version> <program>: prints where it is
venv_tool() {
	local venv=$cache/tools/${1/==/-}
	if ! venv_ready "$venv" "$2"; then
		lock_cache
		install_packages python
		step "$2" make_venv "$venv" "$1"
		wait_steps
	fi
	echo "$venv/bin/$2"
}

# ready <part...>
ready() {
	local part
	for part; do "${part}_ready" || return; done
}

print_env() {
	if [[ $KDIR ]]; then
		check_kdir
	else
		check_kver
		{ find_tools && kernel_ready; } ||
			die "not set up yet: run 'make setup'"
	fi
	find_bitflags || die "bitflags is not fetched yet: run 'make setup'"
	# Not exported: make would take an exported KDIR for the user's.
	printf '%s=%q\n' KDIR "$KDIR" BITFLAGS "$bitflags" VNG "$virtme_ng/bin/vng" \
		PAGEKIT_CACHE "$cache" PATH "$PATH" ARCH "$arch" IMAGE "$IMAGE" \
		PAGE_SHIFT "$(kdir_conf PAGE_SHIFT)" COMPAT_CC "$(eval echo "$COMPAT_CC")"
	if cross; then
		find_rust_src || :
		guest_ready || :
		printf '%s=%q\n' CROSS "$CROSS" RUST_TARGET "$RUST_TARGET" \
			QEMU "$QEMU" CONSOLE "$CONSOLE" GUEST "$guest"
	fi
	printf 'LEFT_OUT=%q\n' "$(lacking | sed 's/^/CONFIG_/; s/:.*/=n/' | xargs)"
	# A KDIR that gcc built has no LLVM=, and no KDIR has the other two.
	[[ ! $llvm ]] || printf 'LLVM=%q\n' "$llvm"
	[[ ! $rust_src ]] || printf 'RUST_LIB_SRC=%q\n' "$rust_src"
	[[ ! $libclang ]] || printf 'LIBCLANG_PATH=%q\n' "$libclang"
}

usage() { sed -n 's/^#   \(setup.sh .*\)/usage: tools\/setup\/\1/p' "${BASH_SOURCE[0]}" >&2; exit 2; }

main() {
	case ${1:-} in
	kernel | modules | convert | size | check | env | doctor)
		(($# == 2)) || usage
		know_kernel "$2"
		case $1 in
		kernel) set_up modules vm ;;
		modules) set_up modules ;;
		convert) set_up modules vm convert ;;
		size) set_up modules vm convert size ;;
		check) set_up modules vm check ;;
		env) print_env; exit ;;
		doctor) doctor; exit ;;
		esac
		echo "$KDIR"
		;;
	clients)
		know_kernel base
		set_up modules vm clients
		echo "$clients"
		;;
	python) set_up_python ;;
	bitflags) set_up_bitflags ;;
	sphinx) venv_tool "sphinx==$SPHINX" sphinx-build ;;
	ruff) venv_tool "ruff==$RUFF" ruff ;;
	matplotlib) venv_tool "matplotlib==$MATPLOTLIB" python ;;
	*) usage ;;
	esac
}

# One line, so that an edit of this file does not reach a set-up that runs.
main "$@"; exit
