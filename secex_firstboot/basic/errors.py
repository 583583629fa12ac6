"""The errors a user can meet: one line that says what is wrong, and what to do about it."""


class FirstbootError(Exception):
    """Something a user can meet. ``message`` says what is wrong, ``cure`` the next thing to do.

    The text is one line; it must never quote a secret or the content of the config.
    """

    passing = False
    """Whether the same again, a moment later, may go well."""

    def __init__(self, message: str, cure: str = "") -> None:
        self.message = " ".join(message.split())
        self.cure = " ".join(cure.split())
        super().__init__(f"{self.message}: {self.cure}" if self.cure else self.message)


class Refusal(FirstbootError):
    """The ground is wrong. Raised only before the first destructive write."""


class DeviceMissing(Refusal):
    """A device is not there (yet)."""

    passing = True
