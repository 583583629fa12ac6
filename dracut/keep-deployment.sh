#!/bin/sh
# At later boots of a system made by ostree, before ostree-prepare-root: the link that the kernel command line has for
# the deployment. With each deployment that libostree makes, it gives all of them links with another number, and removes
# those before. So a boot image that is fallen back to would find its own no more. Tests put a directory, $1, before all
# paths.
set -e
read -r link target < "$1/etc/luks/deployment"
sysroot=$1/sysroot
[ ! -L "$sysroot$link" ] || exit 0
boot=${link#/ostree/}
boot=$sysroot/ostree/${boot%%/*}
if [ ! -e "$boot" ]; then # a link itself, to what has one more number
    mkdir -p "$boot.0"
    ln -sfn "${boot##*/}.0" "$boot"
fi
mkdir -p "$sysroot${link%/*}"
ln -s "$target" "$sysroot$link"
