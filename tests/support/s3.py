"""Options of the driver `s3`, and of distribution's, for a stand-in of S3."""

import secrets

from services import S3Service

SECRET = "secret-canary"


def bucket(service: S3Service) -> str:
    """Make an empty bucket in `service`; return its name."""
    return service.create_bucket(f"registry-{secrets.token_hex(6)}")


def options(service: S3Service, bucket: str, **more: object) -> dict[str, object]:
    """Return options that both registries take, for `bucket` in `service`."""
    return {
        "bucket": bucket,
        "region": service.region,
        "regionendpoint": service.url,
        "accesskey": service.access_key,
        "secretkey": SECRET,
        "forcepathstyle": True,
        "secure": False,
    } | more
