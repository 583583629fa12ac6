#!/bin/sh
# Install what the tests need on Debian 12 or newer, as root; quick when everything is there.
# shellcheck disable=SC1091,SC2016  # os-release is not ours to check; apt expands its own $(...)
#
# QEMU comes from backports on Debian 12: its own, 7.2, gets vector instructions of s390x wrong that Linux
# uses for TCP checksums. So does debhelper: that of Debian 12 does not find units below /usr.
set -eu

packages="qemu-system-s390x qemu-utils qemu-user-static mmdebstrap arch-test debian-archive-keyring
    cryptsetup-bin libcryptsetup12 ostree e2fsprogs xfsprogs fdisk cpio zstd gpg gpg-agent openssh-client
    libvirt-clients libvirt-daemon-driver-qemu libxml2-utils
    nbdkit nbdkit-plugin-python shellcheck python3-venv systemd
    dpkg-dev debhelper dh-python lintian rpm rpmlint"

missing=""
for package in $packages; do
    dpkg-query -W -f '${db:Status-Status}' "$package" 2> /dev/null | grep -qx installed || missing="$missing $package"
done
# Also one that is too old.
dpkg-checkbuilddeps -I "$(dirname "$0")/../packaging/deb/control" 2> /dev/null || missing="$missing debhelper"
[ -z "$missing" ] && exit 0

echo "== installing:$missing" >&2
[ "$(id -u)" = 0 ] || {
    echo "setup.sh: run this as root, it installs packages" >&2
    exit 1
}
export DEBIAN_FRONTEND=noninteractive
apt-get update -q > /dev/null
. /etc/os-release
target=""
if [ "${VERSION_CODENAME:-}" = bookworm ]; then
    mirror=$(apt-get indextargets --format '$(REPO_URI) $(CODENAME)' 'Created-By: Packages' \
        | awk '$2 == "bookworm" { print $1; exit }')
    echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $mirror bookworm-backports main" \
        > /etc/apt/sources.list.d/secex-firstboot-backports.list
    apt-get update -q > /dev/null
    target="--target-release=bookworm-backports"
    # shellcheck disable=SC2086  # words are meant
    apt-get install -q -y --no-install-recommends $target qemu-system-s390x qemu-utils debhelper > /dev/null
fi
# shellcheck disable=SC2086  # words are meant
apt-get install -q -y --no-install-recommends $missing > /dev/null
