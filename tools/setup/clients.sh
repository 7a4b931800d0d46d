# SPDX-License-Identifier: GPL-2.0
# shellcheck shell=bash
#
# Part of setup.sh: Debian's programs for make clients, in a directory of their own. Packages are
# unpacked, not installed: none of their scripts runs, and nothing of the machine changes.

clients=

# shellcheck disable=SC2153 # versions.env has them
clients_ready() {
	local hash
	hash=$(sha256sum <<<"recipe $CLIENTS_RECIPE, $CLIENTS_SUITES: $CLIENTS_PACKAGES")
	clients=$cache/clients-${hash:0:12}
	[[ -d $clients ]]
}

# The machine's own apt and its mirror are all that it takes.
clients_requirements() { requirement apt - "only Debian's apt can get them" path_of apt-get; }

make_clients() {
	local new
	# shellcheck disable=SC2086 # names, to be split
	fetch_list clients $CLIENTS_SUITES ||
		die "can't read Debian's $CLIENTS_SUITES: no network, or apt here has no Debian mirror"
	new=$(new_partial)
	mkdir "$new/all"
	# shellcheck disable=SC2086
	unpack clients "$new/all/root" $CLIENTS_PACKAGES >"$new/all/versions"
	# The guest mounts something there.
	mkdir -p "$new/all/root"/{mnt,tmp,usr/share/libcamera/pipeline/virtual}
	mv "$new/all" "$clients"
	rm -rf "$new"
}
