"""The rule that layers which must not be distributed need not be here.

Such layers (of Windows base images, mostly) are fetched from the URLs in their descriptors. Clients do not push them,
and the OCI distribution spec has a registry accept manifests without them. A plugin on one hook and nothing else.
"""

from moorage import Descriptor, hookimpl

_MEDIA_TYPES = frozenset({
    "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
    "application/vnd.docker.image.rootfs.foreign.diff.tar",
    "application/vnd.oci.image.layer.nondistributable.v1.tar",
    "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip",
    "application/vnd.oci.image.layer.nondistributable.v1.tar+zstd",
})


@hookimpl
def requires_reference(descriptor: Descriptor) -> bool | None:
    """Say that a non-distributable layer need not be here; have no opinion on anything else."""
    return False if descriptor.media_type in _MEDIA_TYPES else None
