#!/bin/sh
# At later boots, as soon as the volume $1 is open: is it what first boot made? A comment in crypttab says what that was,
# as secex_firstboot.storage.devicemapper.crypt_mode made it: the mapping's UUID, which libcryptsetup makes of the
# header's and the name, the cipher, and of the options in the mapping's table (Linux:
# Documentation/admin-guide/device-mapper/dm-crypt.rst) those that change what is read.
# Without that line, with two, or with another, it is closed, and this fails, and so does the unit that opened the
# volume. Tests put a directory, $2, before all paths.

mode() {
    uuid=$(dmsetup info --columns --noheadings -o uuid "$1") && [ -n "$uuid" ] || return 1
    set -f
    # shellcheck disable=SC2046  # fields: start, size, target, cipher, key, IV offset, device, offset; count, options
    set -- $(dmsetup table "$1")
    [ "$3" = crypt ] && [ $# -ge 8 ] || return 1
    found="$uuid $4"
    shift 8
    for option; do
        case $option in
            integrity:* | sector_size:*) found="$found $option" ;;
        esac
    done
    echo "$found"
}

made=$(sed -n "s/^# secex-firstboot $1: //p" "$2/etc/crypttab") && [ -n "$made" ] &&
    found=$(mode "$1") && [ "$found" = "$made" ] && exit 0
dmsetup remove "$1"
echo "secex-firstboot: the volume $1 is not as first boot made it: the disk or the boot image was changed: go back to a copy of them [SX-BOOT-01]" >&2
exit 1
