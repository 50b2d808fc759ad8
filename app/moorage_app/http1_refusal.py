"""What is said to a request that is not answered by the application, in HTTP/1.1 and, as far as it is the same, HTTP/2."""

from moorage import encode_json


def refusal_body(reason: str) -> bytes:
    """Return the body of an answer that refuses a request for `reason`, as the registry has its errors (JSON)."""
    return encode_json({"errors": [{"code": "UNSUPPORTED", "message": f"not served: {reason}"}]})


class Refused(Exception):
    """A request that is not answered by the application; `status` says what it gets."""

    def __init__(self, status: int, reason: str) -> None:
        """Refuse with `status`, for `reason`."""
        super().__init__(reason)
        self.status = status
