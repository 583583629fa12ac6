#!/bin/sh
# For dracut, which sources this before it opens a shell without systemd, as at shutdown, or gives up.
/usr/lib/secex-firstboot/emergency || exec sleep infinity
