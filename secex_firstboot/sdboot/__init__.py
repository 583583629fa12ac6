"""The Secure Execution boot image: its format, its initramfs, making it bootable."""
