"""Options of the driver `azure` for a stand-in of Azure's blob storage."""

import secrets

from services import AzureService


def options(service: AzureService, **more: object) -> dict[str, object]:
    """Make an empty container in `service`; return options for it."""
    container = service.create_container(f"registry-{secrets.token_hex(6)}")
    return {
        "container": container,
        "accountname": service.account,
        "accountkey": service.key,
        "credentials": {"type": "shared_key"},
        "serviceurl": service.url,
    } | more
