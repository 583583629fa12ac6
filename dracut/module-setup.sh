#!/bin/bash
# dracut module: the secex-firstboot agent, with the part of Python it imports.
# shellcheck disable=SC2154  # moddir, initdir, systemdsystemunitdir come from dracut

# called by dracut
check() {
    require_binaries secex-firstboot python3 gpg gpg-agent gpgconf zipl sfdisk partx blkid dmsetup || return 1
    # Only on request: --add secex-firstboot
    return 255
}

# called by dracut
depends() {
    echo systemd ignition network crypt systemd-cryptsetup dm
}

# called by dracut
installkernel() {
    hostonly="" instmods dm_crypt dm_integrity dm_verity authenc hmac xts aes sha256 \
        loop ext4 xfs virtio_blk virtio_net "=arch/s390/crypto"
}

# Everything the agent loads: Python files and mapped libraries, found by importing it.
install_python() {
    local files
    files=$(python3 -I "$moddir/trace-imports.py") || {
        dfatal "secex-firstboot: tracing the agent's imports failed"
        return 1
    }
    local list
    mapfile -t list <<< "$files"
    inst_multiple "${list[@]}"
    # Byte code that never looks at time stamps, so that a reproducible initramfs starts quickly.
    python3 -I -m compileall -q --invalidation-mode unchecked-hash -s "$initdir" \
        "$initdir"/usr/lib*/python3* || return 1
}

# called by dracut
install() {
    install_python || return 1
    inst_multiple python3 secex-firstboot ldconfig \
        gpg gpg-agent gpgconf gpg-connect-agent \
        zipl sfdisk partx blkid dmsetup mount umount udevadm \
        e2fsck resize2fs xfs_growfs
    inst_multiple -o pvimg genprotimg xfs_repair \
        /usr/lib/s390-tools/stage3.bin /lib/s390-tools/stage3.bin \
        /usr/share/s390-tools/pvimg/stage3a.bin /usr/share/s390-tools/pvimg/stage3b_reloc.bin \
        /usr/share/s390-tools/genprotimg/stage3a.bin /usr/share/s390-tools/genprotimg/stage3b_reloc.bin

    # Ignition's generator starts ignition-complete.target at first boot only, and so our units.
    local requires="$systemdsystemunitdir/ignition-complete.target.requires" unit
    mkdir -p "$initdir$requires"
    for unit in secex-firstboot-config.service secex-firstboot.service sysroot-boot.mount \
        secex-firstboot-seal.service; do
        inst_simple "$moddir/$unit" "$systemdsystemunitdir/$unit"
        ln -sfn "../$unit" "$initdir$requires/$unit"
    done
    inst_simple "$moddir/dev-mapper-boot.conf" \
        "$systemdsystemunitdir/dev-mapper-boot.device.d/50-secex-firstboot.conf"
    inst_simple "$moddir/ignition-fetch.conf" \
        "$systemdsystemunitdir/ignition-fetch.service.d/50-secex-firstboot.conf"
}
