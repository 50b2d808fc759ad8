"""Cases about authenticators: who cannot be known gets a challenge, and whatever is sent, nobody gets in by it."""

import base64
import re
from contextlib import AbstractAsyncContextManager
from functools import partial

import msgspec
import trio

from moorage import (
    Access,
    Authenticator,
    AuthenticatorFactory,
    Caller,
    Credentials,
    Origin,
    RecallingAuthenticator,
    RepositoryName,
    ScopedAuthenticator,
    TooManyRequests,
    Unauthorized,
    Unavailable,
)
from moorage_conformance.driver.expect import Unmet, true

from .case import Group, Trial
from .lifetime import can_be_cancelled, in_time, nothing_stays

AuthenticatorTrial = Trial[AuthenticatorFactory[msgspec.Struct]]

case = Group[AuthenticatorTrial]("authenticators", "Authenticators")

_AT_ONCE = 32
_TOKEN = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"  # noqa: S105 - the grammar's word
_QUOTED = r'"(?:[\t !#-\[\]-~]|\\[\t -~])*"'
_PARAMETER = rf"{_TOKEN}[ \t]*=[ \t]*(?:{_TOKEN}|{_QUOTED})"
_CHALLENGE = re.compile(
    rf"{_TOKEN}(?: +(?:[A-Za-z0-9._~+/-]+=*|{_PARAMETER}(?:[ \t]*,[ \t]*{_PARAMETER})*))?", re.ASCII
)
"""RFC 9110, "Challenge and Response", without what is allowed only for old times' sake."""


def opened(trial: AuthenticatorTrial) -> AbstractAsyncContextManager[Authenticator]:
    """Open the authenticator."""
    return trial.factory.open(trial.options)


def _origin(credentials: Credentials | None) -> Origin:
    return Origin(request_id="1", address="192.0.2.1", host="registry.example", method="GET", credentials=credentials)


def _basic(text: str | bytes) -> str:
    return base64.b64encode(text if isinstance(text, bytes) else text.encode()).decode()


def _wrong() -> dict[str, Credentials]:
    """Return credentials that nobody has, by what is wrong with them."""
    odd = "\u00e9\u0000 that nobody has \U0001f511"
    values = {
        "an empty value": "",
        "a blank value": "   ",
        "a value of a million characters": "A" * 1_000_000,
        "a value that is not ASCII": odd,
        "a value that is no base64": "%%%not base64%%%",
        "base64 without its padding": "YTpi"[:-1],
        "base64 of nothing": _basic("") + "====",
        "base64 of what is not UTF-8": _basic(b"\xff\xfe:\xff"),
        "base64 of a name alone": _basic("nobody"),
        "base64 of a colon": _basic(":"),
        "base64 of a name without a password": _basic("nobody:"),
        "base64 of a password without a name": _basic(":nothing"),
        "a name and a password that nobody has": _basic(f"nobody:{odd}"),
        "a huge name and password": _basic(f"{'n' * 200_000}:{'p' * 200_000}"),
        "a name with a control character": _basic("no\u0000body\r\n:x"),
        "a token with three parts": "e30.e30.e30",
        "a token with too many parts": "." * 5000,
        "a value in quotes": '"quoted", second="x"',
        "a deeply nested token": f"{_basic('[' * 20_000).rstrip('=')}.e30.x",
    }
    return {
        f"{title} as {scheme or 'no scheme'}": Credentials(scheme, value)
        for title, value in values.items()
        for scheme in ("basic", "bearer", "digest", "negotiate", "later-scheme", "")
    }


async def _answer(
    what: str, authenticator: Authenticator, credentials: Credentials | None, patience: float
) -> Caller | Unauthorized | TooManyRequests | Unavailable | None:
    """Return what an authenticator says to credentials, after a look at its challenges.

    Raises:
        Unmet: it fails, or says something that it must not.
    """

    async def ask() -> object:
        return await authenticator(_origin(credentials))

    try:
        said = await in_time(what, ask, patience)
    except Unauthorized as error:
        true(error.challenges or authenticator.challenge, f"{what} is refused without a challenge")
        for each in error.challenges:
            _check_challenge(f"{what} is refused with the challenge", each)
        return error
    except (TooManyRequests, Unavailable) as error:
        return error
    except Unmet:
        raise
    except Exception as error:
        raise Unmet(f"{what} makes it raise {type(error).__name__}: {error}") from error
    if said is None or isinstance(said, Caller):
        return said
    raise Unmet(f"{what} is answered with {type(said).__name__}; allowed is a Caller or None")


def _check_challenge(what: str, challenge: object) -> None:
    good = isinstance(challenge, str) and _CHALLENGE.fullmatch(challenge) is not None
    true(good, f'{what} {challenge!r}, which is no value of WWW-Authenticate such as Basic realm="registry"')


@case
async def its_challenge_can_be_sent(trial: AuthenticatorTrial) -> None:
    """`challenge` is a value of WWW-Authenticate: a scheme with parameters, in visible ASCII; or it is empty.

    So is what `challenge_for` says of a registry, a repository and a problem, where there is that method.
    """
    needed = (Access(None, "catalog"), Access(RepositoryName("a/b"), "pull"), Access(RepositoryName("a/b"), "push"))
    async with opened(trial) as authenticator:
        if authenticator.challenge:
            _check_challenge("its challenge is", authenticator.challenge)
        if isinstance(authenticator, ScopedAuthenticator):
            for host in ("registry.example", 'a"b\r\nx: y\u00e9'):
                origin = Origin(host=host, base_url=f"https://{host}")
                for problem in ("", "invalid_token", "insufficient_scope"):
                    for asked in ((), needed[:1], needed[1:], needed):
                        challenge = authenticator.challenge_for(origin, asked, problem)
                        _check_challenge(f"its challenge for {asked!r} at {host!r} is", challenge)


@case
async def who_shows_nothing_is_nobody(trial: AuthenticatorTrial) -> str | None:
    """Without credentials it answers None, or refuses with a challenge; at most it gives a caller without a name."""
    async with opened(trial) as authenticator:
        said = await _answer("a request without credentials", authenticator, None, trial.patience)
        if isinstance(said, Caller):
            true(not said.name and not said.groups, f"who shows nothing is taken for {said.name!r}")
            return "who shows nothing gets in, without a name"
    return None


@case
async def wrong_credentials_are_refused(trial: AuthenticatorTrial) -> None:
    """Whatever wrong is sent (empty, huge, in no encoding, of any scheme), it answers None or refuses; soon, and never fails."""
    async with opened(trial) as authenticator:
        for title, credentials in _wrong().items():
            said = await _answer(title, authenticator, credentials, trial.patience)
            true(not isinstance(said, Caller), f"{title} is taken for {said!r}")


@case
async def it_recalls_nobody_whom_nobody_is(trial: AuthenticatorTrial) -> None:
    """Asked again for a name that nobody has (empty, huge, in any script), it answers None, where it has `recall`."""
    async with opened(trial) as authenticator:
        if isinstance(authenticator, RecallingAuthenticator):
            for name in ("", " ", "*", "nobody\u0000\r\n:x", "\U0001f511 that nobody has", "n" * 200_000):
                ask = partial(authenticator.recall, name)
                said = await in_time(f"the name {name[:40]!r}", ask, trial.patience)
                true(said is None, f"the name {name[:40]!r} is recalled as {said!r}")


@case
async def it_can_be_asked_many_times_at_once(trial: AuthenticatorTrial) -> None:
    """Asked many times at once, it says to each what it says to it alone."""
    wrong = list(_wrong().items())[:_AT_ONCE]
    async with opened(trial) as authenticator:
        alone = {title: await _answer(title, authenticator, each, trial.patience) for title, each in wrong}
        together: dict[str, object] = {}

        async def ask(title: str, credentials: Credentials) -> None:
            together[title] = await _answer(title, authenticator, credentials, trial.patience)

        async with trio.open_nursery() as nursery:
            for title, credentials in wrong:
                nursery.start_soon(ask, title, credentials)
    for title, said in alone.items():
        limited = isinstance(together[title], TooManyRequests)
        true(limited or type(together[title]) is type(said), f"{title}, among others, is answered in another way")


@case
async def it_can_be_cancelled_at_every_await(trial: AuthenticatorTrial) -> None:
    """Cancelled at whichever await, it lets nobody in, leaves nothing behind, and answers as before when asked again."""
    wrong = _wrong()
    some = ("a name and a password that nobody has as basic", "a token with three parts as bearer")
    async with opened(trial) as authenticator:
        for title in some:

            async def attempt(title: str = title, authenticator: Authenticator = authenticator) -> object:
                return await _answer(title, authenticator, wrong[title], trial.patience)

            await can_be_cancelled(title, attempt, lambda said: not isinstance(said, Caller), trial.patience)


@case
async def opening_can_be_cancelled_at_every_await(trial: AuthenticatorTrial) -> None:
    """Cancelled at whichever await while it is opened or closed, it leaves nothing behind, and can be opened again."""

    async def attempt() -> bool:
        async with opened(trial):
            return True

    await can_be_cancelled("opening", attempt, bool, trial.patience)


@case
async def nothing_grows(trial: AuthenticatorTrial) -> None:
    """Opened, asked and closed many times, it leaves no task, thread or descriptor behind."""
    wrong = list(_wrong().items())[:6]

    async def use(authenticator: Authenticator) -> None:
        for title, credentials in wrong:
            await _answer(title, authenticator, credentials, trial.patience)

    await nothing_stays(lambda: opened(trial), use)
