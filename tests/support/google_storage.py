"""Options of the driver `gcs` for a stand-in of Google Cloud Storage."""

import secrets
from typing import Protocol


class Service(Protocol):
    """The strict fake, or the emulator."""

    @property
    def url(self) -> str: ...
    def create_bucket(self, name: str) -> str: ...


def options(service: Service, **more: object) -> dict[str, object]:
    """Make an empty bucket in `service`; return options for it."""
    bucket = service.create_bucket(f"registry-{secrets.token_hex(6)}")
    return {"bucket": bucket, "endpoint": service.url, "anonymous": True} | more
