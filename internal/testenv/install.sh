#!/usr/bin/env bash
# Installs the Debian packages that the tests' real parts come from, those that
# are missing. Where it may not, it says what is missing and the tests that need
# it skip; with CI=true that is a failure.
set -euo pipefail
PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin

missing=()
need() { # need BINARY-OR-FILE PACKAGE...
	local what=$1
	shift
	command -v "$what" >/dev/null || compgen -G "$what" >/dev/null || missing+=("$@")
}
need slapd slapd
need ldapadd ldap-utils
need chromium chromium
need samba samba samba-ad-dc
need samba-tool samba-common-bin python3-samba
need winbindd winbind
need ldbadd ldb-tools
need /usr/share/samba/setup/provision.ldif samba-ad-provision
need '/usr/lib/*/samba/ldb/samba_dsdb.so' samba-dsdb-modules
need '/usr/lib/*/samba/vfs/dfs_samba4.so' samba-vfs-modules
need ns-slapd 389-ds-base # with dscreate
need systemd-analyze systemd # checks our unit; it need not run
need gcc gcc libc6-dev # go test -race links with it
[ ${#missing[@]} -gt 0 ] || exit 0

give_up() {
	echo "deps: $1" >&2
	echo "deps: missing Debian packages: ${missing[*]}" >&2
	echo "deps: to get them: sudo apt-get install --no-install-recommends ${missing[*]}" >&2
	[ "${CI:-}" != true ] || exit 1
	echo "deps: going on without; the tests that need them are skipped" >&2
	exit 0
}
[ "$(id -u)" = 0 ] || give_up "not root, so nothing can be installed"
command -v apt-get >/dev/null || give_up "no apt-get here"

# The tests start their own servers; the packages' services must not run.
policy=/usr/sbin/policy-rc.d
if [ ! -e $policy ]; then
	trap 'rm -f $policy' EXIT
	printf '#!/bin/sh\nexit 101\n' >$policy
	chmod +x $policy
fi
export DEBIAN_FRONTEND=noninteractive
echo "deps: installing ${missing[*]}"
apt-get update -qq || echo "deps: apt-get update failed; trying with the lists that are here" >&2
apt-get install -qq -y --no-install-recommends "${missing[@]}" >/dev/null || give_up "apt-get install failed"
