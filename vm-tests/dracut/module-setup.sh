#!/bin/bash
# Tests only. QEMU emulates no ultravisor, so nothing sets /sys/firmware/uv/prot_virt_guest: this does.
# It also lists the files of the provisioned root before the system starts to change them.

# called by dracut
check() {
    return 255
}

# called by dracut
depends() {
    echo systemd secex-firstboot
}

# called by dracut
# shellcheck disable=SC2154  # moddir, initdir, systemdsystemunitdir come from dracut
install() {
    inst_multiple mkdir mount ln sh
    inst_simple "$moddir/manifest.py" /usr/lib/secex-test/manifest.py
    inst_script "$moddir/prot-virt-guest.sh" /usr/lib/secex-test/prot-virt-guest
    local unit
    for unit in prot-virt-guest dry-run manifest; do
        inst_simple "$moddir/secex-test-$unit.service" "$systemdsystemunitdir/secex-test-$unit.service"
    done
    mkdir -p "$initdir$systemdsystemunitdir/sysinit.target.wants" \
        "$initdir$systemdsystemunitdir/ignition-complete.target.requires"
    ln -sfn ../secex-test-prot-virt-guest.service "$initdir$systemdsystemunitdir/sysinit.target.wants/"
    for unit in dry-run manifest; do
        ln -sfn "../secex-test-$unit.service" "$initdir$systemdsystemunitdir/ignition-complete.target.requires/"
    done
}
