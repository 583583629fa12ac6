#!/bin/sh
# Show the agent what the kernel shows in a real Secure Execution guest.
set -e
mkdir -p /run/secex-test/firmware
# Private, or what is mounted on the one next is on the other as well. At shutdown systemd 257 then orders the
# mount unit by its tmpfs, meets sysfs below, forgets the order, and with it that swap.target waits: for ever.
mount --bind --make-private /sys/firmware /run/secex-test/firmware
mount -t tmpfs -o mode=755 tmpfs /sys/firmware
for entry in /run/secex-test/firmware/*; do
    ln -s "$entry" /sys/firmware/
done
mkdir -p /sys/firmware/uv
echo 1 > /sys/firmware/uv/prot_virt_guest
# QEMU 7.2 reboots from a virtio disk only with a "clear" re-IPL.
for clear in /run/secex-test/firmware/reipl/*/clear; do
    [ ! -e "$clear" ] || echo 1 > "$clear"
done
