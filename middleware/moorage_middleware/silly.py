"""The authenticator `silly`, for tests of clients: whoever shows anything at all gets in. As distribution has it."""

from collections.abc import Sequence

from moorage import Access, Caller, Origin, needed_scopes

from ._authenticators import Silly
from ._shown import challenge


class LetIn:
    """Takes everybody who shows something for the user `silly`."""

    def __init__(self, options: Silly) -> None:
        """Ask for tokens as `options` say."""
        self._options = options

    @property
    def challenge(self) -> str:
        """What is asked for where no right is needed."""
        return self.challenge_for(Origin(), (), "")

    def challenge_for(self, origin: Origin, needed: Sequence[Access], problem: str) -> str:
        """Return what is asked for; each right has a scope of its own."""
        del origin, problem
        scope = " ".join(needed_scopes([access]) for access in needed)
        parameters = (("realm", self._options.realm), ("service", self._options.service), ("scope", scope))
        return challenge("Bearer", parameters)

    async def __call__(self, origin: Origin, /) -> Caller | None:
        """Return the user `silly` for whatever is shown."""
        shown = origin.credentials
        return None if shown is None or not (shown.scheme or shown.value) else Caller(name="silly")
