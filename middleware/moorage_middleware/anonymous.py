"""The authenticator `anonymous`: who shows nothing is nobody in particular, and rules say what nobody may."""

from moorage import ANONYMOUS, Caller, Origin


class LetInWithoutName:
    """Takes who shows nothing for nobody in particular."""

    challenge = ""

    async def __call__(self, origin: Origin, /) -> Caller | None:
        """Return a caller without a name, or None if anything is shown: that others have to judge."""
        return ANONYMOUS if origin.credentials is None else None
