# SPDX-License-Identifier: GPL-2.0
# shellcheck shell=bash disable=SC2016,SC2034,SC2153
#
# Part of setup.sh: the machine's packages, and the tools that go to the cache.

bindgen=$cache/tools/bindgen-$BINDGEN_CLI
virtme_ng=$cache/tools/virtme-ng-$VIRTME_NG
guest=
llvm='' libclang='' clang_version='' rust_src='' rustc_release='' bitflags=''

# --- Finding what is there (changes nothing) ----------------------------------

version_ge() { printf '%s\n%s\n' "$2" "$1" | sort -V -C; }
first_version() { grep -oE '[0-9]+(\.[0-9]+)+' | head -n 1; }

# The preferred series, other ones from new to old, then what has no suffix.
find_llvm() {
	local suffix tool resources dir
	for suffix in "-$LLVM_SERIES" -22 -21 -20 -19 -18 -17 ''; do
		for tool in clang ld.lld llvm-ar llvm-nm llvm-objcopy llvm-readelf llvm-strip; do
			have "$tool$suffix" || continue 2
		done
		clang_version=$("clang$suffix" --version | head -n 1)
		version_ge "$(first_version <<<"$clang_version")" "$MIN_LLVM" || continue
		# bindgen must load the libclang of this very series.
		resources=$("clang$suffix" -print-resource-dir)
		for dir in "$resources"/../.. "$resources"/../../../lib64; do
			compgen -G "$dir/libclang[.-]*so*" >/dev/null || continue
			libclang=$(realpath "$dir")
			llvm=${suffix:-1}
			return
		done
	done
	return 1
}

find_rustc() {
	rustc_release=$(rustc --version 2>/dev/null | cut -d ' ' -f 2)
	[[ $rustc_release ]] && have cargo &&
		version_ge "$rustc_release" "$MIN_RUSTC"
}

# The compiler's own sources, or those that make_rust_src unpacked.
find_rust_src() {
	local dir
	find_rustc || return 1
	dir=$(rustc --print sysroot)/lib/rustlib/src/rust/library
	[[ -d $dir ]] || dir=$cache/src/rust-src-$rustc_release/library
	[[ -d $dir ]] && rust_src=$dir
}

# All that configuring and building a kernel takes.
find_tools() {
	find_llvm && find_rust_src && [[ -x $bindgen/bin/bindgen ]] && find_source || return 1
	case :$PATH: in *":$bindgen/bin:"*) ;; *) PATH=$bindgen/bin:$PATH ;; esac
	export LIBCLANG_PATH=$libclang RUST_LIB_SRC=$rust_src
}

# A venv can't be moved, nor outlive its Python.
venv_stamp() { echo "$1 $(readlink -f "$1/bin/python")"; }
venv_ready() { [[ -x $1/bin/$2 && $(cat "$1/stamp" 2>/dev/null) = "$(venv_stamp "$1")" ]]; }

virtme_ng_ready() { venv_ready "$virtme_ng" vng; }

# All that a guest of another kind of machine has: no program of this one runs there.
guest_ready() {
	local hash
	hash=$(sha256sum <<<"$GUEST_SUITE: $GUEST_PACKAGES")
	guest=$cache/tools/guest-$arch-${hash:0:12}
	[[ -d $guest ]]
}

bitflags_note() {
	local sum
	sum=$(sha256sum <"$top/src/Cargo.lock")
	echo "$cache/tools/bitflags-${sum:0:16}"
}

# cargo unpacks it, checked against the lock file; its place is noted.
find_bitflags() {
	[[ -f $top/src/Cargo.lock ]] || die "src/Cargo.lock is missing"
	bitflags=$(cat "$(bitflags_note)" 2>/dev/null) && [[ -f $bitflags ]]
}

# What the builds and the virtual machine take beside the compilers. Only quick
# checks: this runs each time.
modules_ready() { have make cc modinfo && find_bitflags; }
vm_ready() {
	have "${QEMU%% *}" python3 || return
	if cross; then have "${CROSS}gcc" && find_rust_src && guest_ready; else virtme_ng_ready; fi
}
size_ready() { have size cloc; }
convert_ready() { have spatch; }
check_ready() { have shellcheck rustfmt clippy-driver; }

# --- Requirements -------------------------------------------------------------

packages=() hopeless=() unmet=0

# requirement <name> <least version, or -> <how to fix, or package:names> <command...>
# The command fails or prints the version found.
requirement() {
	local name=$1 least=$2 fix=$3 found state=MISSING
	shift 3
	found=$("$@" 2>/dev/null) || found=
	[[ $least = - ]] || found=$(first_version <<<"$found") || found=
	if [[ $found ]] && { [[ $least = - ]] || version_ge "$found" "$least"; }; then
		state=ok fix=
	else
		unmet=1
		case $fix in
		package:*)
			fix=${fix#package:}
			# shellcheck disable=SC2206 # names of packages, to be split
			packages+=($fix)
			fix="apt-get install $fix"
			;;
		*) hopeless+=("$name ${found:-is missing}: $fix") ;;
		esac
	fi
	[[ ! ${report:-} ]] || printf '%-8s %-12s %-26s %-16s %s\n' "$state" "$name" \
		"${found:--}" "$([[ $least = - ]] || echo ">= $least")" "$fix"
}

present() { "$@" >/dev/null && echo found; }
header() { echo "#include <$1>" | present cc -E -x c -; }
path_of() { command -v "$1"; }
llvm_version() { find_llvm && echo "$clang_version"; }
rustc_version() { have cargo && { find_rustc || :; } && echo "$rustc_release"; }

# What Debian has, unless another Rust is there, or Debian's is known to be too old
rust_fix() {
	local known
	known=$(apt-cache policy rustc 2>/dev/null | sed -n 's/^  Candidate: //p')
	if have rustc || { [[ $known ]] && ! version_ge "$(first_version <<<"$known")" "$MIN_RUSTC"; }; then
		echo "install Rust $MIN_RUSTC or newer, rustc and cargo, with rustup for example"
	else
		echo "package:rustc cargo rust-src"
	fi
}

# rust_part <component> <package>: how to get it
rust_part() { if have rustup; then echo "rustup component add $1"; else echo "package:$2"; fi; }

# Packages of the machine, for building modules and for the virtual machine
rust_requirements() {
	requirement rustc "$MIN_RUSTC" "$(rust_fix)" rustc_version
	# cargo and pip take them; one that was named is there.
	requirement certificates - package:ca-certificates \
		eval '[[ ${SSL_CERT_FILE:-$(ls -A /etc/ssl/certs)} ]] && echo found'
}
python_requirements() {
	requirement python3 - "package:python3 python3-venv" \
		eval "python3 -c 'import venv, ensurepip' && python3 --version"
}
modules_requirements() {
	requirement machine - "" echo "$MACHINE"
	requirement make "$MIN_MAKE" package:make make --version
	requirement cc - "package:gcc libc6-dev" header stdio.h
	requirement kmod - package:kmod path_of modinfo
	python_requirements
	rust_requirements
}
vm_requirements() {
	requirement qemu - "package:$QEMU_PACKAGE" eval '${QEMU%% *} --version | first_version'
	! cross || requirement cross-cc - "package:$CROSS_PACKAGES" path_of "${CROSS}gcc"
	# The compiler of other machines' programs is of the same series.
	find_llvm || :
	requirement compat-cc - "package:$COMPAT_PACKAGES" \
		eval "echo '#include <asm/unistd.h>' | present $COMPAT_CC -E -x c -"
}
size_requirements() {
	requirement size - package:binutils path_of size
	requirement cloc - package:cloc path_of cloc
}
check_requirements() {
	requirement shellcheck - package:shellcheck path_of shellcheck
	requirement rustfmt - "$(rust_part rustfmt rustfmt)" rustfmt --version
	requirement clippy - "$(rust_part clippy rust-clippy)" clippy-driver --version
}
convert_requirements() {
	requirement spatch - package:coccinelle path_of spatch
	requirement v4l2-compliance - package:v4l-utils path_of v4l2-compliance
}

# Packages for building a kernel
kernel_requirements() {
	[[ ! $KDIR ]] || return 0
	requirement llvm "$MIN_LLVM" \
		"package:clang-$LLVM_SERIES lld-$LLVM_SERIES llvm-$LLVM_SERIES libclang1-$LLVM_SERIES" \
		llvm_version
	requirement flex - package:flex eval 'flex --version | first_version'
	requirement bison - package:bison eval 'bison --version | first_version'
	requirement bc - package:bc eval 'bc --version | first_version'
	requirement perl - package:perl path_of perl
	requirement xz - package:xz-utils path_of xz
	requirement libelf - package:libelf-dev header gelf.h
	requirement libssl - package:libssl-dev header openssl/ssl.h
}
# What the prod kernel takes beside: versions of symbols come from debugging information.
prod_requirements() { requirement libdw - package:libdw-dev header elfutils/libdw.h; }

# make doctor: the requirements and what the set-up itself provides. Changes
# nothing.
doctor() {
	local report=1 get="run 'make setup', which gets it"
	printf '%-8s %-12s %-26s %-16s %s\n' state what found needed fix
	modules_requirements
	vm_requirements
	kernel_requirements
	if [[ $KDIR ]]; then
		requirement kernel - "see the end" eval '(check_kdir) && echo "$KDIR"'
	else
		requirement rust-src - "$get, or: rustup component add rust-src" \
			eval 'find_rust_src && echo "$rustc_release"'
		requirement bindgen - "$get" eval '[[ -x $bindgen/bin/bindgen ]] && echo "$BINDGEN_CLI"'
		requirement source - "$get" eval 'find_source && echo "$(basename "$source_dir")"'
		requirement kernel - "$get" eval 'find_tools && kernel_ready && basename "$KDIR"'
	fi
	if cross; then
		requirement guest - "$get" eval 'guest_ready && basename "$guest"'
	else
		requirement virtme-ng - "$get" eval 'virtme_ng_ready && echo "$VIRTME_NG"'
	fi
	requirement bitflags - "$get" eval 'find_bitflags && basename "$(dirname "$(dirname "$bitflags")")"'
	# Only some targets take these, and get them.
	local needed=$unmet needs=${#packages[@]}
	echo "only for make size, check, bench and test-full:"
	size_requirements
	check_requirements
	convert_requirements
	prod_requirements
	((!needs)) || echo "As root on Debian, make setup installs all packages that are missing."
	[[ ! $KDIR ]] || doctor_kdir || :
	return "$needed"
}

# What the user's tree lacks, or why nothing can be built against it. In a shell of its own, which that ends.
doctor_kdir() (
	check_kdir
	left_out=$(lacking)
	[[ ! $left_out ]] || printf '%s\n' "" "$KDIR can't have these modules, which make modules leaves out:" "$left_out"
	options=$(not_for_vm)
	[[ ! $options ]] || printf '%s\n' "" "To boot in the virtual machine it needs these options built in:" "$options"
)

# install_packages <part...>: installs what is missing for them, as root on
# Debian; else says how to.
install_packages() {
	local install
	find_missing "$@"
	((${#packages[@]})) || return 0
	have apt-get ||
		die "missing here; install your distribution's packages for (Debian's names): ${packages[*]}"
	install="apt-get install --no-install-recommends ${packages[*]}"
	((EUID == 0)) || die "packages are missing; as root, run:
    apt-get update && $install"
	say "installing ${packages[*]}"
	step packages apt_install "${packages[@]}"
	wait_steps
	# Nobody should have to find that out later.
	sed -n '/^The following packages will be REMOVED/,/^The following NEW/p' "$cache/log/packages.log" |
		sed -n 's/^  /setup: removed, because it conflicts: /p' >&2
	find_missing "$@"
	((!${#packages[@]})) || die "still missing after '$install': ${packages[*]}"
}

find_missing() {
	local part
	packages=() hopeless=()
	for part; do "${part}_requirements"; done
	((!${#hopeless[@]})) || die "$(printf '%s\n' "${hopeless[@]}")"
}

apt_install() {
	local install=(apt-get install -y --no-install-recommends -o DPkg::Lock::Timeout=120)
	export DEBIAN_FRONTEND=noninteractive
	# One unreachable foreign archive must not end it; the install decides.
	apt-get update || :
	# Only now it is known for sure which Rust Debian has here.
	[[ " $* " != *" rustc "* || $(rust_fix) = package:* ]] || die "apt has no Rust that is new enough: $(rust_fix)"
	"${install[@]}" --no-remove "$@" && return
	# An image may hold packages of other suites that conflict with these.
	echo "apt-get finds no way but to remove packages that conflict; see above"
	"${install[@]}" "$@"
}

# --- Making what goes to the cache (each in a step) ---------------------------

# A new empty directory on the cache's own file system. What an earlier set-up
# left there is dropped once the lock is held.
new_partial() { mkdir -p "$cache/partial" && mktemp -d "$cache/partial/XXXXXX"; }

make_bindgen() {
	local new
	new=$(new_partial)
	# Three runs per kernel are slower by 25 s in all, its build faster by 60 s.
	CARGO_PROFILE_RELEASE_OPT_LEVEL=0 CARGO_TARGET_DIR=$new/target \
		cargo install --locked --root "$new/root" "bindgen-cli@$BINDGEN_CLI"
	rm -rf "$bindgen"
	mv "$new/root" "$bindgen"
	rm -rf "$new"
}

# make_venv <directory> <package==version>
make_venv() {
	rm -rf "$1"
	python3 -m venv "$1"
	"$1/bin/pip" install --disable-pip-version-check "$2"
	venv_stamp "$1" >"$1/stamp"
}

# What the virtual machine takes beside packages
start_vm() {
	if ! cross; then
		virtme_ng_ready || step virtme-ng make_venv "$virtme_ng" "virtme-ng==$VIRTME_NG"
	else
		guest_ready || step guest make_guest
	fi
}

make_guest() {
	local apt_arch=$DEBIAN_ARCH new
	fetch_list "$GUEST_SUITE" || die "can't read Debian's $GUEST_SUITE for $apt_arch"
	new=$(new_partial)
	# shellcheck disable=SC2086 # names, to be split
	unpack "$GUEST_SUITE" "$new/root" $GUEST_PACKAGES
	mv "$new/root" "$guest"
}

make_bitflags() {
	local note new
	cargo fetch --locked --manifest-path "$top/src/Cargo.toml"
	new=$(new_partial)
	cargo metadata --locked --offline --format-version 1 --manifest-path "$top/src/Cargo.toml" |
		python3 -c '
import json, sys
for package in json.load(sys.stdin)["packages"]:
    if package["name"] == "bitflags":
        print(next(t["src_path"] for t in package["targets"] if "lib" in t["kind"]))
' >"$new/bitflags"
	[[ -s $new/bitflags ]] || die "src/Cargo.lock has no bitflags"
	note=$(bitflags_note)
	mv "$new/bitflags" "$note"
}
