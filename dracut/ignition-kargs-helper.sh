#!/bin/sh
# Called by Ignition's kargs stage, which would change a boot entry and restart. Here the config's
# kernelArguments go into the command line of the new sdboot: secex-firstboot(8), KERNEL ARGUMENTS.
exit 0
