"""The errors a user can meet: one line that says what is wrong, and what to do about it."""


class FirstbootError(Exception):
    """Something a user can meet. ``message`` says what is wrong, ``cure`` the next thing to do.

    The text is one line; it must never quote a secret or the content of the config. ``id`` is where both are
    in secex-messages(7), made of docs/troubleshooting.md: it stays the same whatever becomes of the words.
    """

    passing = False
    """Whether the same again, a moment later, may go well."""

    def __init__(self, id: str, message: str, cure: str = "") -> None:
        self.id = id
        self.message = " ".join(message.split())
        self.cure = " ".join(cure.split())
        super().__init__(f"{self.message}: {self.cure} [{id}]" if self.cure else f"{self.message} [{id}]")


class Refusal(FirstbootError):
    """The ground is wrong: the same again is refused again, and what was asked for has written nothing yet.

    Whether a first boot had written something before is another question, see agent.places.COMMITTED.
    """


class DeviceMissing(Refusal):
    """A device is not there (yet)."""

    passing = True
