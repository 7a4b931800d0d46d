# SPDX-License-Identifier: GPL-2.0
# shellcheck shell=bash
#
# Part of setup.sh: the kernel's source (and rust-src) from a Debian archive,
# the kernel's configuration and build, and the check of a user's KDIR.

source_dir=

# --- A private apt ------------------------------------------------------------
# Its own source list, package lists and cache: the machine's apt set-up is
# neither used nor touched, but for the address of its mirror, its proxy and the
# archive's keyring. Each package is verified by its suite's signature.

keyring=/usr/share/keyrings/debian-archive-keyring.gpg

apt_arch='' # packages of another architecture than the machine's

apt_dir() { echo "$cache/apt/$1${apt_arch:+-$apt_arch}"; }

private_apt() {
	local suite=$1 tool=$2 dir
	dir=$(apt_dir "$1")
	shift 2
	"$tool" -o Dir::Etc::SourceList="$dir/sources.list" -o Dir::Etc::SourceParts=/dev/null \
		-o Dir::Etc::Preferences=/dev/null -o Dir::Etc::PreferencesParts=/dev/null \
		-o Dir::State::Lists="$dir/lists" -o Dir::State::status="$dir/status" \
		-o Dir::Cache="$dir/cache" -o APT::Default-Release= \
		-o APT::Sandbox::User=root -o Acquire::Languages=none \
		${apt_arch:+-o APT::Architecture="$apt_arch" -o APT::Architectures="$apt_arch"} "$@"
}

# The archives of the machine's own apt, whatever format its lists have, those
# that look like Debian's main one first.
mirrors() {
	apt-get --print-uris update 2>/dev/null |
		sed -n "s#^'\(.*[^/]\)/*/dists/[^/']*/InRelease'.*#\1#p" | awk '
			/security/ || seen[$0]++ { next }
			/\/debian$/ { print; next }
			{ others = others $0 "\n" }
			END { printf "%s", others }'
}

# fetch_list <name> [<suite...>]: the list of packages of the suite of that name, or of
# several as one, from the first mirror that has it with a good signature
fetch_list() {
	local name=$1 dir mirror
	dir=$(apt_dir "$1")
	shift
	have apt-get dpkg-deb && [[ -f $keyring ]] || return 1
	mkdir -p "$dir"/{lists,cache/archives}/partial
	: >"$dir/status"
	for mirror in $(mirrors); do
		printf "deb [signed-by=$keyring] $mirror %s main\n" "${@:-$name}" >"$dir/sources.list"
		private_apt "$name" apt-get -q -o APT::Update::Error-Mode=any update && return
	done
	return 1
}

# newest <suite> <package> <version pattern>: the newest that matches
newest() {
	private_apt "$1" apt-cache madison "$2" | awk -F ' *[|] *' '{ print $2 }' |
		grep -E -- "$3" | sort -V | tail -n 1
}

# download <suite> <package=version>: prints the path of the .deb
download() {
	local new
	new=$(new_partial)
	(cd "$new" && private_apt "$1" apt-get -q download "$2" >&2)
	echo "$new"/*.deb
}

# unpack <list> <directory> <package...>: these and what they depend on, base-files among it.
# Prints their names and versions.
unpack() {
	local name=$1 root=$2 debs deb
	shift 2
	debs=$(new_partial)
	mkdir "$debs/partial"
	private_apt "$name" apt-get -q -y --no-install-recommends --download-only \
		-o Dir::Cache::archives="$debs" install "$@" >&2
	# It has the links that directories of the others are behind.
	for deb in "$debs"/base-files_*.deb "$debs"/*.deb; do
		dpkg-deb -x "$deb" "$root"
	done
	for deb in "$debs"/*.deb; do
		dpkg-deb -W --showformat='${Package} ${Version}\n' "$deb"
	done
}

# --- Sources ------------------------------------------------------------------

check_kver() {
	[[ $KVER =~ ^[0-9]+\.[0-9]+$ ]] ||
		die "KVER=$KVER: give a series such as $KVER_DEFAULT; the newest patch level is taken"
}

# No kernel is refused for its version, but not every one has been tried.
warn_series() {
	local series=$KVER
	[[ ! $KDIR ]] || series=$(first_version 2>/dev/null <"$KDIR/include/config/kernel.release") || return 0
	[[ " $KVER_SUPPORTED " = *" $(cut -d . -f 1,2 <<<"$series") "* ]] ||
		say "warning: nobody has tried Linux $series; the tests pass on ${KVER_SUPPORTED// / and }"
}

# The newest source of the series in the cache
find_source() {
	source_dir=$(compgen -G "$cache/src/linux-$KVER.*" | sort -V | tail -n 1) || :
	[[ $source_dir ]]
}

make_sources() {
	make_kernel_source
	find_rust_src || make_rust_src
}

make_kernel_source() {
	local package=linux-source-$KVER version deb dest
	if find_source && [[ ! ${PAGEKIT_UPDATE:-} ]]; then return; fi
	fetch_list "$KERNEL_SUITE" ||
		die "can't read Debian's $KERNEL_SUITE: no network, or apt here has no Debian mirror." \
			"Pass KDIR=<a kernel tree built with Rust> instead."
	version=$(newest "$KERNEL_SUITE" "$package" .) ||
		die "Debian's $KERNEL_SUITE has no $package. Supported: KVER=${KVER_SUPPORTED// / or KVER=}." \
			"For another kernel pass KDIR=<a tree built with Rust>."
	# 7.3.4-1~bpo13+1: no characters that make could stumble over
	dest=$cache/src/linux-$(tr '~+:' ... <<<"$version")
	[[ ! -d $dest ]] || return 0
	echo "downloading $package $version"
	deb=$(download "$KERNEL_SUITE" "$package=$version")
	echo "unpacking it"
	mkdir "$deb.d"
	dpkg-deb --fsys-tarfile "$deb" | tar -xO "./usr/src/$package.tar.xz" |
		xz -dc -T0 | tar -x -C "$deb.d" --strip-components=1
	mv "$deb.d" "$dest"
	rm -f "$deb"
}

# The rust-src of exactly the compiler's version, which Debian packages for any
# architecture. The first suite that has it will do.
make_rust_src() {
	local suite version deb
	for suite in $RUST_SUITES; do
		fetch_list "$suite" || continue
		version=$(newest "$suite" rust-src "^${rustc_release//./\\.}[+~-]") || continue
		deb=$(download "$suite" "rust-src=$version")
		dpkg-deb -x "$deb" "$deb.d"
		[[ -d $deb.d/usr/src/rustc-$rustc_release/library ]] || continue
		mv "$deb.d/usr/src/rustc-$rustc_release" "$cache/src/rust-src-$rustc_release"
		rm -rf "$deb" "$deb.d"
		return
	done
	die "no rust-src for rustc $rustc_release in Debian's $RUST_SUITES." \
		"Get it where rustc came from, for example: rustup component add rust-src"
}

# --- Which kernel -------------------------------------------------------------

# What the name of a kernel, or the user's tree, says
kernel='' arch='' pages='' config=''

# know_arch <its name, or its machine's>
know_arch() {
	local file
	for file in "$here"/arch/*.env; do
		# shellcheck source=tools/setup/arch/arm64.env
		. "$file"
		arch=$(basename "$file" .env)
		case $1 in "$arch" | "$MACHINE") return ;; esac
	done
	arch=
	return 1
}

# know_kernel <name>: words with - between them, an architecture, a page size and a
# configuration. What is usual is left out: arm64-16k is such a base kernel, and
# debug one of this machine.
know_kernel() {
	local word words machine
	machine=$(uname -m)
	IFS=- read -ra words <<<"$1"
	kernel=$1 config=base pages=
	know_arch "${words[0]:-}" && words=("${words[@]:1}") || know_arch "$machine" ||
		die "$machine: tools/setup/arch has no such machine"
	for word in "${words[@]}"; do
		case " $PAGE_SIZES " in
		*" $word "*) pages=$word ;;
		*) config=$word ;;
		esac
	done
	[[ $1 && $1 != *- && -f $here/config/$config.config ]] ||
		die "there is no kernel $1: CONFIG= and KERNEL= are base, debug or prod," \
			"ARCH= one of $(basename -a -s .env "$here"/arch/*.env | paste -s -d ' ')," \
			"and PAGES= on $arch one of $PAGE_SIZES"
	pages=${pages:-${PAGE_SIZES%% *}}
}

# Is it run on another kind of machine?
cross() { [[ $MACHINE != "$(uname -m)" ]]; }

# --- Configuring and building -------------------------------------------------

# Every other configuration is base plus its own lines; a series of the kernel, an
# architecture and a page size may need some more. Of two lines about a symbol the
# later one is meant.
fragments() {
	local name files=()
	for name in base "base-$KVER" "$arch" "$arch-$pages" "${config/#base}"; do
		[[ ! -f $here/config/$name.config ]] || files+=("$here/config/$name.config")
	done
	cat "${files[@]}" | tac | awk '
		/^(# )?CONFIG_/ { symbol = $0; gsub(/^# |[= ].*$/, "", symbol) }
		/^CONFIG_/ || /^# CONFIG_.* is not set$/ { if (seen[symbol]++) next }
		{ print }' | tac
}

# All that a build depends on
recipe() {
	echo "recipe $RECIPE, $kernel, ${source_dir##*/}, bindgen $BINDGEN_CLI, LLVM=$llvm, $clang_version"
	rustc -vV
	fragments
}

# Find the build of this very recipe. A build dir holds its own path and its
# source's, so a cache that was moved is not taken either.
kernel_ready() {
	local text hash
	text=$(recipe)
	hash=$(sha256sum <<<"$text")
	build=$cache/build-$kernel-${hash:0:12}
	stamp="built in $build from $source_dir with $rust_src"$'\n'$text
	[[ $(cat "$build/.pagekit" 2>/dev/null) = "$stamp" ]] && KDIR=$build
}

kernel_make() { make -C "$source_dir" O="$build" ARCH="$arch" LLVM="$llvm" "$@"; }

# allnoconfig drops, without a word, what it can't select.
check_config() {
	local line lost=
	while read -r line; do
		case $line in
		CONFIG_*) grep -qxF -- "$line" "$build/.config" || lost+=" $line" ;;
		"# CONFIG_"*" is not set")
			line=${line#\# }
			! grep -q "^${line%% *}=" "$build/.config" || lost+=" ${line%% *}=n"
			;;
		esac
	done <"$build/pagekit.config"
	[[ $lost ]] || return 0
	[[ $lost != *CONFIG_RUST=y* ]] || kernel_make rustavailable || :
	die "the kernel's configuration lost these lines of tools/setup/config:$lost"
}

build_kernel() {
	local dir
	# What has no stamp was interrupted; the lock says that nobody is at it.
	for dir in "$cache"/build-*; do
		[[ -f $dir/.pagekit ]] || rm -rf "$dir"
	done
	rm -rf "$build"
	mkdir "$build"
	fragments >"$build/pagekit.config"
	kernel_make -s KCONFIG_ALLCONFIG="$build/pagekit.config" allnoconfig
	check_config
	kernel_make -j"$(nproc)" "${IMAGE##*/}" modules
	echo "$stamp" >"$build/.pagekit.new"
	mv "$build/.pagekit.new" "$build/.pagekit"
}

# --- A tree of the user's -----------------------------------------------------

# kdir_conf <symbol>: its value in KDIR, without quotes
kdir_conf() { sed -n "s/^CONFIG_$1=\"\?\([^\"]*\)\"\?$/\1/p" "$KDIR/include/config/auto.conf"; }

# lacking: the symbols of Kconfig that KDIR can't have, each with what it depends on
lacking() {
	local word rest symbol=menu condition
	local -A have=()
	while IFS== read -r word rest; do have[${word#CONFIG_}]=$rest; done <"$KDIR/include/config/auto.conf"
	while read -r word rest; do
		case $word in
		config) symbol=$rest have[$rest]=m ;;
		depends)
			rest=${rest#on } condition=
			word=$rest
			while [[ $word =~ ^([^A-Z0-9_]*)([A-Z0-9_]+)(=y)?(.*)$ ]]; do
				case ${have[${BASH_REMATCH[2]}]:-n}${BASH_REMATCH[3]} in
				y* | m) word=1 ;;
				*) word=0 ;;
				esac
				condition+=${BASH_REMATCH[1]}$word word=${BASH_REMATCH[4]}
			done
			((${condition}${word})) || {
				[[ ! ${have[$symbol]:-} ]] || echo "$symbol: depends on $rest"
				unset "have[$symbol]"
			}
			;;
		esac
	done <"$top/Kconfig"
}

# not_for_vm: the options that the virtual machine takes and KDIR has not built in
not_for_vm() {
	fragments | awk -v RS= '/^# What boots/' |
		awk 'NR == FNR { have[$0]; next } /^CONFIG_/ && !($0 in have)' "$KDIR/include/config/auto.conf" -
}

warn_vm() {
	local options
	options=$(not_for_vm | xargs)
	[[ ! $options ]] || say "warning: without $options this kernel may not boot in the virtual machine"
}

# Says why a driver in Rust can't be built against KDIR, or sets what building
# takes: KDIR without links, its architecture, and llvm.
check_kdir() {
	local built_with cc file
	[[ -d $KDIR ]] || die "KDIR=$KDIR: no such directory"
	KDIR=$(realpath "$KDIR")
	case $KDIR in *[[:space:]]*) die "KDIR=$KDIR: kbuild takes no path with a space" ;; esac
	[[ -f $KDIR/include/config/auto.conf ]] ||
		die "KDIR=$KDIR is no configured kernel tree: it has no include/config/auto.conf." \
			"If it was built with O=, give that folder"
	for file in "$here"/arch/*.env; do
		know_arch "$(basename "$file" .env)"
		[[ $(kdir_conf "$SYMBOL") != y ]] || break
	done
	[[ $(kdir_conf "$SYMBOL") = y ]] || die "KDIR=$KDIR is of no architecture in tools/setup/arch"
	[[ $(kdir_conf MODULES) = y ]] || die "KDIR=$KDIR has CONFIG_MODULES off"
	[[ $(kdir_conf MODVERSIONS) != y || $(kdir_conf GENDWARFKSYMS) = y ]] ||
		die "KDIR=$KDIR has CONFIG_MODVERSIONS without CONFIG_GENDWARFKSYMS:" \
			"symbols of Rust code can't be exported there"
	[[ $(kdir_conf RUST) = y ]] || die "KDIR=$KDIR is configured without CONFIG_RUST"
	[[ -f $KDIR/rust/libkernel.rmeta ]] ||
		die "KDIR=$KDIR has no rust/libkernel.rmeta: the tree must be built, with its Rust part" \
			"(the header packages of distributions lack it)"
	[[ -f $KDIR/Module.symvers ]] ||
		die "KDIR=$KDIR has no Module.symvers: build the tree's modules first"
	built_with=$(kdir_conf RUSTC_VERSION_TEXT)
	find_rustc || :
	[[ $(rustc --version 2>/dev/null) = "$built_with" ]] ||
		die "KDIR=$KDIR was built with '$built_with', but rustc here is '$(rustc --version 2>&1)'"
	[[ $(kdir_conf CC_IS_CLANG) = y ]] || return 0
	cc=$(kdir_conf CLANG_VERSION)
	llvm=-$((cc / 10000))
	have "clang$llvm" || llvm=1
	[[ $("clang${llvm#1}" --version 2>/dev/null | head -n 1) = "$(kdir_conf CC_VERSION_TEXT)" ]] ||
		die "KDIR=$KDIR was built with '$(kdir_conf CC_VERSION_TEXT)', which is not installed"
}
