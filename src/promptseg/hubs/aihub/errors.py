"""What can go wrong with a service, sorted by what may be done next. Each message is one line without a token."""


class RefusedError(ValueError):
    """The service, or the client before asking it, says no: asking the same again changes nothing.

    `status` is the HTTP status where there was one.
    """

    def __init__(self, message: str, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status


class BusyError(OSError):
    """The service took nothing in because of too many requests (429): ask again later."""


class UnreachableError(OSError):
    """No answer that can be used. What was asked for may have happened all the same: look before asking again."""


class JobFailedError(ValueError):
    """The service ended a job without a result; the message has its reason, its address and where its log lies."""
