"""Starts s390x guests under QEMU's emulation, with a software ultravisor for Secure Execution images."""
