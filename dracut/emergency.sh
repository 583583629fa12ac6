#!/bin/sh
# The way to a shell in the initramfs, and there is no other: remove every secret, close every volume, look
# again, and say what failed. Exits 0 if a shell may open now, which the boot entry has to ask for with
# secex.emergency=shell. Otherwise, and whenever something is left, the guest is powered off.
#
# Nothing here may rely on what came before: it runs after any failure, at first and at later boots, as the
# first command of emergency.service and from dracut's hooks, there without systemd.

newline='
'
UNITS='secex-firstboot* ignition-*.service systemd-cryptsetup@*.service'

main() {
    # In a running system the same paths are the owner's.
    [ -e /etc/initrd-release ] || exit 1
    command_line=" $(cat /proc/cmdline) "
    failed=$(failed_units)
    failed=${failed% }
    reason=$(last_error)
    advice=$(advice)
    explain_ignition
    stop_units
    unmount
    remove_secrets
    forget_log
    close_volumes
    left=$(secrets; mappings; echo "$log")
    explain
    case $command_line in
        *' secex.emergency=shell '*) [ -n "$left" ] || exit 0 ;;
    esac
    power_off
}

failed_units() {
    timeout 20 systemctl list-units --failed --plain --no-legend | while read -r unit _; do
        printf '%s ' "$unit"
    done
}

# The agent's error, which is one line, and on the console already; or why a volume does not open; or what the
# kernel says of a program that took the last memory, and was ended before it could say so itself.
last_error() {
    timeout 20 journalctl --sync
    found=$(logged --identifier=secex-firstboot --priority=info | sed -n 's/^secex-firstboot: //p' | sed '$!d')
    [ -n "$found" ] || found=$(logged --identifier=systemd-cryptsetup --priority=err | sed '$!d')
    [ -n "$found" ] || found=$(logged --unit='systemd-cryptsetup@*' --priority=err | sed '$!d')
    [ -n "$found" ] || found=$(out_of_memory)
    echo "$found"
}

# Ignition's log speaks of the config, so the agent tells what may be said of it, in two lines: why, and what to do.
explain_ignition() {
    case $failed in
        *ignition-*.service*) ;;
        *) return ;;
    esac
    told=$(timeout --kill-after=5 90 secex-firstboot --explain)
    case $told in
        *[!\ ]"$newline"[!\ ]*)
            reason=${told%%"$newline"*}
            advice=${told#*"$newline"}
            ;;
        *) reason=${reason:-Ignition failed, and why cannot be told without quoting the config} ;;
    esac
}

out_of_memory() {
    cure='the guest has too little memory, the kernel ended \1: give it more [SX-BOOT-05]'
    logged --dmesg | sed -n "s/^Out of memory: Killed process [0-9]* (\([^)]*\)).*/$cure/p" | sed '$!d'
}

logged() {
    timeout 20 journalctl --quiet --boot --output=cat "$@"
}

advice() {
    case $command_line in
        *' ignition.firstboot'[\ =]*)
            if [ -e /etc/secex-firstboot/committed ]; then
                echo 'The disk is half encrypted. Start the guest again, and the first boot goes on.'
            else
                echo 'The image is unchanged. Put the cause right, and start the guest again.'
            fi
            ;;
        *) echo 'Put the cause right, and start the guest again.' ;;
    esac
}

# Nobody may write a secret again, or keep a volume open.
stop_units() {
    # shellcheck disable=SC2086  # patterns for systemctl
    {
        set -f
        timeout 20 systemctl kill --signal=KILL $UNITS
        timeout 60 systemctl stop $UNITS
        set +f
    }
}

# What lies on a mapping, and where the agent mounts; the last mount first.
unmount() {
    mounted=
    while read -r device where _; do
        case $device:$where in
            /dev/mapper/* | /dev/dm-* | *:/sysroot* | *:/run/secex-firstboot/*) mounted="$where $mounted" ;;
        esac
    done < /proc/mounts
    for where in $mounted; do
        timeout 20 umount "$where"
    done
}

# Every name at which the agent, Ignition or the image's builder keep a secret, if it is there.
secrets() {
    for path in /usr/lib/coreos /usr/lib/ignition/user.ign* /run/ignition* /run/secex-firstboot \
        /etc/secex-firstboot* /etc/luks /tmp/* /var/tmp/*; do
        if [ -e "$path" ] || [ -L "$path" ]; then
            echo "$path"
        fi
    done
}

# What is mounted below stays, above all partition se.
remove_secrets() {
    # systemd (256 and later) makes /usr read-only in the initramfs.
    mount -o remount,bind,rw /usr
    secrets | while read -r path; do
        rm -rf --one-file-system -- "$path"
    done
}

# Ignition writes the whole config to its log when it fails. The running journald has the files open.
forget_log() {
    log=/run/log/journal
    rm -rf /run/log/journal/*/*
    timeout 30 systemctl restart systemd-journald.service && log=
}

# Each round takes the uppermost; the kernel forgets their keys. There may be no udev to wait for.
close_volumes() {
    for _ in 1 2 3 4 5 6 7 8; do
        mappings | while read -r name; do
            timeout 20 dmsetup remove --noudevsync "$name"
        done
    done
}

mappings() {
    for path in /sys/class/block/dm-*/dm/name; do
        if [ -e "$path" ]; then
            cat "$path"
        fi
    done
}

explain() {
    cat << END


==============================================================================
secex-firstboot: this guest cannot start.

what failed:  ${failed:-no unit; the kernel command line may ask for a shell}
why:          ${reason:-see the messages above}
what to do:   $advice

$(outcome)
==============================================================================
END
}

outcome() {
    if [ -n "$left" ]; then
        echo "Not everything secret could be removed, so no shell opens. Left:"
        echo "$left"
        return
    fi
    echo 'Keys, config, plan and journal are removed from memory, volumes are closed.'
    case $command_line in
        *' secex.emergency=shell '*) echo 'secex.emergency=shell: a shell opens; when it ends, power goes off.' ;;
        *) echo 'Powering off.' ;;
    esac
}

power_off() {
    sleep 2 # the console is slow, and what it has not shown by then is lost
    systemctl poweroff --force --force
    echo o > /proc/sysrq-trigger
    exit 1
}

main < /dev/null 2> /dev/null
