#!/bin/bash
# Tests only. QEMU emulates no ultravisor, so nothing sets /sys/firmware/uv/prot_virt_guest: this does.
# It also lists the files of the provisioned root before the system starts to change them, lets the agent fail
# where a test wants it, and says what secrets a shell would find.

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
    inst_multiple dd mkdir mount ln sh
    inst_simple "$moddir/manifest.py" /usr/lib/secex-test/manifest.py
    inst_simple "$moddir/leftovers.py" /usr/lib/secex-test/leftovers.py
    inst_script "$moddir/failing.py" /usr/lib/secex-test/failing.py
    inst_simple "$moddir/leftovers.conf" "$systemdsystemunitdir/emergency.service.d/60-secex-test.conf"
    inst_script "$moddir/prot-virt-guest.sh" /usr/lib/secex-test/prot-virt-guest
    local unit
    for unit in prot-virt-guest failing dry-run manifest print-manifest; do
        inst_simple "$moddir/secex-test-$unit.service" "$systemdsystemunitdir/secex-test-$unit.service"
    done
    mkdir -p "$initdir$systemdsystemunitdir/sysinit.target.wants" \
        "$initdir$systemdsystemunitdir/ignition-complete.target.requires"
    for unit in prot-virt-guest failing; do
        ln -sfn "../secex-test-$unit.service" "$initdir$systemdsystemunitdir/sysinit.target.wants/"
    done
    mkdir -p "$initdir$systemdsystemunitdir/initrd.target.wants"
    ln -sfn ../secex-test-print-manifest.service "$initdir$systemdsystemunitdir/initrd.target.wants/"
    for unit in dry-run manifest print-manifest; do
        ln -sfn "../secex-test-$unit.service" "$initdir$systemdsystemunitdir/ignition-complete.target.requires/"
    done
}
