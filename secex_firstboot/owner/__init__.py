"""On a workstation or a host: what an owner asks before and after a first boot."""
