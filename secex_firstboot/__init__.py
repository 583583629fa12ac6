"""First-boot provisioning agent for IBM Secure Execution guests."""

__version__ = "0.1.0"
