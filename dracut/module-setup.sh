#!/bin/bash
# dracut module: the secex-firstboot agent, with the part of Python it imports.
# shellcheck disable=SC2154  # moddir, initdir, systemdsystemunitdir come from dracut

# called by dracut
check() {
    require_binaries secex-firstboot python3 gpg gpg-agent setpriv unshare openssl \
        zipl sfdisk partx losetup blkid dmsetup cryptsetup || return 1
    # Only on request: --add secex-firstboot
    return 255
}

# called by dracut
depends() {
    echo systemd systemd-sysctl ignition network crypt systemd-cryptsetup dm
}

# called by dracut
installkernel() {
    hostonly="" instmods dm_crypt dm_integrity dm_verity authenc hmac xts aes sha256 \
        loop overlay ext4 xfs virtio_blk virtio_net "=arch/s390/crypto"
    leave_out virtio_rng virtio_crypto
}

# What is the host's: its random numbers count as entropy, and its cipher would see keys. Other dracut modules
# bring both. dracut-install asks $omit_drivers, alternatives of a regular expression, for all that come later.
leave_out() {
    local name
    for name; do
        omit_drivers+="${omit_drivers:+|}^$name\$"
        find "$initdir" -path '*/modules/*' -name "${name//_/[-_]}.ko*" -delete
        if grep -qs "/${name//_/[-_]}\.ko" "$srcmods/modules.builtin"; then
            dwarning "secex-firstboot: this kernel has $name built in:" \
                "add initcall_blacklist=${name}_driver_init to the options of the boot entry"
        fi
    done
}

# Everything the agent loads: Python's byte code and mapped libraries, found by importing it.
install_python() {
    local files
    files=$(python3 -I "$moddir/trace-imports.py") || {
        dfatal "secex-firstboot: tracing the agent's imports failed"
        return 1
    }
    local list file sources=()
    mapfile -t list <<< "$files"
    inst_multiple "${list[@]}"
    # In place of the source, which is half of it all. It never looks at time stamps: a reproducible initramfs starts
    # quickly. An error still names file and line.
    for file in "${list[@]}"; do
        [[ $file != *.py ]] || sources+=("$initdir$file")
    done
    python3 -I -m compileall -q -b --invalidation-mode unchecked-hash -s "$initdir" -p / "${sources[@]}" || return 1
    rm "${sources[@]}"
}

drop_in() {
    inst_simple "$moddir/$1" "$systemdsystemunitdir/$2.d/50-secex-firstboot-$1"
}

install_check_volume() {
    inst_script "$moddir/check-volume.sh" /usr/lib/secex-firstboot/check-volume
    local name
    for name in boot root; do
        drop_in pinned-volume.conf "systemd-cryptsetup@$name.service"
    done
    drop_in known-volume.conf systemd-cryptsetup@.service
    local unit=secex-firstboot-root.service requires="$systemdsystemunitdir/initrd-root-fs.target.requires"
    inst_multiple cat cmp cp dmsetup ln mkdir sed
    inst_script "$moddir/check-root.sh" /usr/lib/secex-firstboot/check-root
    inst_script "$moddir/keep-deployment.sh" /usr/lib/secex-firstboot/keep-deployment
    inst_simple "$moddir/$unit" "$systemdsystemunitdir/$unit"
    mkdir -p "$initdir$requires"
    ln -sfn "../$unit" "$initdir$requires/$unit"
}

install_no_login() {
    inst_multiple cp mkdir
    inst_simple "$moddir/no-local-login.ign" /usr/lib/secex-firstboot/no-local-login.ign
    inst_simple "$moddir/secex-firstboot-no-login.service" \
        "$systemdsystemunitdir/secex-firstboot-no-login.service"
    drop_in no-login.conf initrd-switch-root.service
}

# systemd-networkd, NetworkManager, connman; of other programs nothing starts without what is for the network on the
# command line.
install_no_network() {
    local unit
    for unit in systemd-networkd.service systemd-networkd.socket systemd-network-generator.service \
        systemd-networkd-wait-online.service systemd-resolved.service NetworkManager.service nm-initrd.service \
        NetworkManager-wait-online.service nm-wait-online-initrd.service cm-initrd.service \
        cm-wait-online-initrd.service; do
        drop_in no-network.conf "$unit"
    done
}

# In every boot, not only the first: the keys are in the initramfs then, too.
install_emergency() {
    inst_multiple cat dmsetup journalctl mkdir mount rm sed sh sleep sulogin systemctl timeout umount
    inst_script "$moddir/emergency.sh" /usr/lib/secex-firstboot/emergency
    inst_hook emergency 00 "$moddir/emergency-hook.sh"
    inst_hook shutdown-emergency 00 "$moddir/emergency-hook.sh"
    drop_in emergency.conf emergency.service
    local unit
    for unit in dracut-emergency rescue debug-shell; do
        drop_in to-emergency.conf "$unit.service"
    done
}

# called by dracut
install() {
    # Of a module that fails, dracut only says so: the initramfs would be made all the same, without an agent.
    install_python || exit 1
    inst_multiple python3 secex-firstboot ldconfig \
        gpg gpg-agent setpriv unshare \
        zipl sfdisk partx losetup blkid dmsetup mount umount udevadm env openssl systemd-tmpfiles
    local program
    for program in $(type -ap pvimg genprotimg); do # not ours, which are the running system's
        [[ $(readlink -f "$program") == /usr/lib/secex-firstboot/* ]] || inst_multiple "$program"
    done
    inst_multiple -o /usr/lib/secex-firstboot/certs/*.cr[lt] \
        /usr/lib/s390-tools/stage3.bin /lib/s390-tools/stage3.bin \
        /usr/share/s390-tools/pvimg/stage3a.bin /usr/share/s390-tools/pvimg/stage3b_reloc.bin \
        /usr/share/s390-tools/genprotimg/stage3a.bin /usr/share/s390-tools/genprotimg/stage3b_reloc.bin

    # Ignition's dracut module leaves it to others, and needs it for storage.luks.
    inst_multiple cryptsetup

    # Ignition's generator starts ignition-complete.target at first boot only, and so our units.
    local requires="$systemdsystemunitdir/ignition-complete.target.requires" unit
    mkdir -p "$initdir$requires"
    for unit in secex-firstboot-config.service secex-firstboot.service secex-firstboot-mount.service \
        secex-firstboot-seal.service; do
        inst_simple "$moddir/$unit" "$systemdsystemunitdir/$unit"
        ln -sfn "../$unit" "$initdir$requires/$unit"
    done
    drop_in ignition-fetch.conf ignition-fetch.service
    for unit in fetch-offline fetch; do
        drop_in ignition-config.conf "ignition-$unit.service"
    done
    drop_in ignition-log.conf ignition-.service
    inst_simple "$moddir/no-forwarding.conf" /usr/lib/systemd/journald.conf.d/zz-secex-firstboot.conf
    for unit in disks mount files; do
        drop_in ignition-files-once.conf "ignition-$unit.service"
    done
    for unit in mount files; do
        drop_in ignition-after-mount.conf "ignition-$unit.service"
    done
    # In place of the one that says that kernelArguments are not supported: they are, the agent does it.
    rm -f "$initdir"/usr/{bin,sbin}/ignition-kargs-helper
    inst_script "$moddir/ignition-kargs-helper.sh" /usr/sbin/ignition-kargs-helper
    inst_simple "$moddir/secex-firstboot.sysctl" /usr/lib/sysctl.d/90-secex-firstboot.conf
    install_check_volume
    install_no_login
    install_no_network
    install_emergency
}
