"""What is in a root file system: what first boot writes there, what identifies a machine."""
