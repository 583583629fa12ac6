#!/bin/sh
# For dracut, which sources this before it opens a shell without systemd, or gives up. Process 1 that is dracut's
# /shutdown, when the system is gone and the keys of its volumes are not: on it goes, or the kernel ends it.
if [ $$ = 1 ]; then
    "${ACTION:-poweroff}" -f -n
    exit 1
fi
/usr/lib/secex-firstboot/emergency || exec sleep infinity
