"""What is said to a request of HTTP/1.1 that is not answered by the application."""


class Refused(Exception):
    """A request that is not answered by the application; `status` says what it gets."""

    def __init__(self, status: int, reason: str) -> None:
        """Refuse with `status`, for `reason`."""
        super().__init__(reason)
        self.status = status
