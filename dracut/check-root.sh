#!/bin/sh
# At later boots, as soon as the root file system is mounted and before anything of it is used: is it what first boot
# made? What this compares with is in sdboot, and so not the host's to change. Tests put a directory, $1, before all
# paths.

main() {
    mounted_from_the_volume
    has_no_links
    left_by_first_boot
    may_start
    keeps_logins_off
}

refuse() {
    echo "secex-firstboot: $2: the disk or the boot image was changed: go back to a copy of them [$1]" >&2
    exit 1
}

# By number, as the kernel has it mounted: what a path below /dev leads to, other programs of the initramfs decide, too.
# What has this number is known by its UUID, which libcryptsetup made of the header's and the name when it opened it.
mounted_from_the_volume() {
    made=$(sed -n 's/^# secex-firstboot root: \([^ ]*\) .*/\1/p' "$top/etc/crypttab") # of two lines none is
    number=
    while read -r _ _ device _ where _; do
        [ "$where" != /sysroot ] || number=$device # the last one is what is seen
    done < "$top/proc/self/mountinfo"
    uuid=$(cat "$top/sys/dev/block/$number/dm/uuid")
    [ -n "$made" ] && [ "$uuid" = "$made" ] && return
    refuse SX-BOOT-02 'what is mounted as root is not the volume that first boot made'
}

# They would lead to the files of sdboot.
has_no_links() {
    for path in etc etc/luks etc/luks/boot etc/luks/root etc/luks/generations; do
        [ ! -L "$top/sysroot/$path" ] || refuse SX-BOOT-04 "the root file system has a link for /$path"
    done
}

# The keys are older than what they are for: they open a root that Ignition has not written to, or not all of it, with
# the owner's secrets beside it. First boot writes them there once all the rest is in place, and sdboot comes after.
# They are behind the headers, secex_firstboot.storage.cryptsetup.HEADER_SIZE, which may change.
left_by_first_boot() {
    for name in boot root; do
        cmp -s -i 557056 "$top/etc/luks/$name" "$top/sysroot/etc/luks/$name" ||
            refuse SX-BOOT-03 'the root file system is from before first boot had ended'
    done
}

# The command line is encrypted, and so is root, which knows what numbers may start: the newest boot image, and the one
# to fall back to. An older one is for an older system, with the holes that an update has closed.
may_start() {
    generation=
    set -f
    # shellcheck disable=SC2013  # words
    for word in $(cat "$top/proc/cmdline"); do
        case $word in
            secex.generation=*) generation=${word#*=} ;;
        esac
    done
    # shellcheck disable=SC2046  # a number a line
    set -- $(cat "$top/sysroot/etc/luks/generations" 2> /dev/null)
    for each; do
        [ "$each" != "$generation" ] || return 0
    done
    refuse SX-BOOT-06 "this boot image has the number ${generation:-none}, and the root file system is for ${*:-none}"
}

# sdboot has the files for it, but not one that libostree has made with IBM's tool alone.
keeps_logins_off() {
    [ ! -e "$top/etc/secex-no-login" ] || return 0
    cp -r "$top/sysroot/etc/luks/boot-image/no-login" "$top/etc/secex-no-login" ||
        refuse SX-BOOT-07 'the root file system does not say what keeps logins off the consoles'
}

top=$1
main
