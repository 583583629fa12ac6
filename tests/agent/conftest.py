"""What the tests of the agent share."""

from support.machine import machine

__all__ = ["machine"]
