"""The keys that tokens are signed with: files of a folder, made, taken up and removed by the clock.

Rules this file keeps:

- A key is one file, `<kid>.jwk`: a private JWK (RFC 7517), whose `nbf` says from when on it signs. A file is complete as
  soon as it has its name, and never changes.
- All processes look at the same folder, now and then and when a token names a key they have not seen. A key is made some
  time before it signs, so by then everybody knows it.
- A key verifies until the last token that it could have signed has expired. Then its file is removed.
- Who makes and removes holds a lock on the folder. Where locks do not reach, two keys may be made for one: that is no
  harm, for everybody knows both, and of several the one that sorts last signs.
"""

import fcntl
import itertools
import logging
import os
import secrets
import time
from collections.abc import AsyncGenerator, Callable, Generator, Mapping
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Literal, cast

import msgspec
import trio
from joserfc import jws
from joserfc.errors import JoseError
from joserfc.jwa import JWSAlgModel
from joserfc.jwk import ECKey, OKPKey

from moorage import ConfigurationError, encode_json, open_helpers

Algorithm = Literal["EdDSA", "ES256"]

_log = logging.getLogger("moorage.issuer")

_SUFFIX = ".jwk"
_FILE_LIMIT = 4096
_LONGEST_LEAD = 3600.0
_LONGEST_POLL = 15.0
_SOONEST_LOOK = 1.0
_FIRST_KEY_SECONDS = 30.0
_CLOCKS_DIFFER = 60.0
"""How far apart the clocks of replicas may be, in seconds."""


class SigningKey(msgspec.Struct, frozen=True):
    """A key: its name, what it signs by, the Unix time from which on it signs, and itself."""

    kid: str
    algorithm: Algorithm
    signs_from: float
    key: OKPKey | ECKey

    def public(self) -> Mapping[str, object]:
        """Return the JWK that others verify with."""
        return {**self.key.as_dict(private=False), "kid": self.kid, "alg": self.algorithm, "use": "sig"}


class _Algorithms(jws.JWSRegistry):
    """The one algorithm that is allowed.

    The library warns of EdDSA's name, for which RFC 9864 has a new one. Those who verify our tokens know the old one only.
    """

    def __init__(self, algorithm: Algorithm) -> None:
        super().__init__(algorithms=[algorithm])
        self._algorithm = algorithm

    def get_alg(self, name: str) -> JWSAlgModel:
        if name != self._algorithm:
            raise JoseError(description=f"signed by {name[:20]!r}")
        return self.algorithms[name]


def sign(key: SigningKey, claims: object) -> str:
    """Return the compact JWS of `claims`."""
    header = {"alg": key.algorithm, "kid": key.kid, "typ": "JWT"}
    return jws.serialize_compact(header, encode_json(claims), key.key, registry=_Algorithms(key.algorithm))


def verify(key: SigningKey, token: str) -> bytes:
    """Return the payload of a compact JWS.

    Raises:
        ValueError: it is not signed by `key`.
    """
    try:
        return jws.deserialize_compact(token, key.key, registry=_Algorithms(key.algorithm)).payload
    except (JoseError, ValueError) as error:
        raise ValueError("the signature is wrong") from error


class KeyRing:
    """The keys of a folder. Made by `open_keyring`."""

    def __init__(
        self, folder: Path, algorithm: Algorithm, *, rotate: float, kept: float, clock: Callable[[], float] = time.time
    ) -> None:
        """Have a new key in `folder` each `rotate` seconds, and the former ones for `kept` seconds more."""
        self._folder = folder
        self._algorithm: Algorithm = algorithm
        self._rotate = rotate
        self._kept = kept + _CLOCKS_DIFFER
        self._lead = min(rotate / 10, _LONGEST_LEAD)
        self._clock = clock
        self._keys: dict[str, SigningKey] = {}
        self._looked = float("-inf")
        self._looking = trio.Lock()

    @property
    def keys(self) -> Mapping[str, SigningKey]:
        """All keys that tokens may be signed by, by name; another mapping as soon as they are others."""
        return self._keys

    @property
    def poll(self) -> float:
        """How many seconds may pass between two looks, so that a key is known before it signs."""
        return min(self._lead / 4, _LONGEST_POLL)

    def signer(self) -> SigningKey:
        """Return the key that signs now."""
        now = self._clock()
        own = sorted(self._own(self._keys), key=_order)
        # Where the clock of who made the first key is ahead of ours, none signs yet.
        return next((key for key in reversed(own) if key.signs_from <= now), own[0])

    async def find(self, kid: str) -> SigningKey | None:
        """Return the key of a name, which another process may just have made; None if there is none."""
        if kid not in self._keys and self._clock() - self._looked >= _SOONEST_LOOK:
            await self.look_again()
        return self._keys.get(kid)

    async def look(self) -> None:
        """See what the folder holds, and make and remove what the clock says, if nobody else does.

        Raises:
            OSError: the folder cannot be read or written; what was known stays.
        """
        async with self._looking:
            self._looked = self._clock()
            found = await trio.to_thread.run_sync(self._maintained)
            if found.keys() != self._keys.keys():
                self._keys = found

    async def look_again(self) -> None:
        """See what the folder holds now; if it cannot be read, go on with what is known."""
        try:
            await self.look()
        except OSError as error:
            _log.error("the keys of tokens cannot be looked after: %s", error)

    @property
    def can_sign(self) -> bool:
        """Whether there is a key to sign with."""
        return bool(self._own(self._keys))

    # ---- in a thread

    def _maintained(self) -> dict[str, SigningKey]:
        found = self._read()
        if self._is_due(found) or self._outlived(found):
            with self._locked() as held:
                if held:
                    found = self._read()
                    if self._is_due(found):
                        self._make(found)
                    for key in self._outlived(found):
                        (self._folder / (key.kid + _SUFFIX)).unlink(missing_ok=True)
                    found = self._read()
        if not self._own(found) and self._own(self._keys):
            raise FileNotFoundError(f"{self._folder} holds no key any more, and another process is about to make one")
        return found

    def _read(self) -> dict[str, SigningKey]:
        found: dict[str, SigningKey] = {}
        for path in sorted(self._folder.iterdir()):
            kid = path.name.removesuffix(_SUFFIX)
            if kid == path.name or path.name.startswith("."):
                continue
            key = self._keys.get(kid)
            if key is None:
                try:
                    key = _loaded(path)
                except FileNotFoundError:
                    continue  # removed just now
                except (ValueError, KeyError, TypeError, JoseError, msgspec.MsgspecError) as error:
                    _log.warning("%s is no key: %s", path, error)
                    continue
            found[kid] = key
        return found

    def _own(self, keys: Mapping[str, SigningKey]) -> list[SigningKey]:
        return [key for key in keys.values() if key.algorithm == self._algorithm]

    def _is_due(self, keys: Mapping[str, SigningKey]) -> bool:
        last = max((key.signs_from for key in self._own(keys)), default=float("-inf"))
        return last + self._rotate - self._lead <= self._clock()

    def _outlived(self, keys: Mapping[str, SigningKey]) -> list[SigningKey]:
        ordered = sorted(keys.values(), key=_order)
        now = self._clock()
        return [key for key, after in itertools.pairwise(ordered) if after.signs_from + self._kept < now]

    def _make(self, keys: Mapping[str, SigningKey]) -> None:
        own = self._own(keys)
        now = self._clock()
        # The first one is needed at once.
        signs_from = max(now + self._lead, max(key.signs_from for key in own) + self._rotate) if own else now
        key = OKPKey.generate_key("Ed25519") if self._algorithm == "EdDSA" else ECKey.generate_key("P-256")
        kid = key.thumbprint()
        written = {**key.as_dict(private=True), "kid": kid, "alg": self._algorithm, "use": "sig", "nbf": signs_from}
        temporary = self._folder / f".{secrets.token_hex(8)}"
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(encode_json(written))
                file.flush()
                os.fsync(descriptor)
            temporary.rename(self._folder / (kid + _SUFFIX))
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        _log.info("made the key %s, which signs tokens in %.0f s", kid, signs_from - now)

    @contextmanager
    def _locked(self) -> Generator[bool]:
        """Hold the folder, without waiting for others that do; give whether that worked."""
        descriptor = os.open(self._folder / ".lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield False
                return
            yield True
        finally:
            os.close(descriptor)


def _order(key: SigningKey) -> tuple[float, str]:
    return key.signs_from, key.kid


def _loaded(path: Path) -> SigningKey:
    """Return the key that a file holds.

    Raises:
        ValueError, KeyError, TypeError, JoseError, msgspec.MsgspecError: it holds none, or others can read it.
    """
    with path.open("rb") as file:
        if os.fstat(file.fileno()).st_mode & 0o007:
            raise ValueError("everybody on this machine has a right to the file")
        data = file.read(_FILE_LIMIT)
    written = msgspec.json.decode(data, type=_Written)
    raw = cast("dict[str, str | list[str]]", msgspec.json.decode(data))  # a JWK, or the import refuses it
    key = OKPKey.import_key(raw) if written.alg == "EdDSA" else ECKey.import_key(raw)
    if key.thumbprint() != written.kid or path.name != written.kid + _SUFFIX or not key.is_private:
        raise ValueError("it is not named by what it holds")
    return SigningKey(written.kid, written.alg, written.nbf, key)


def _prepare(folder: Path) -> None:
    """Make the folder, if it is not there.

    Raises:
        ConfigurationError: everybody on the machine can use it.
        OSError: it cannot be made.
    """
    with suppress(FileExistsError):
        folder.mkdir(mode=0o700, parents=True)
    if folder.stat().st_mode & 0o007:
        raise ConfigurationError(f"auth.issuer.keys: everybody on this machine has a right to {folder}; chmod 0700")


class _Written(msgspec.Struct):
    """What is read of a file besides the key itself."""

    kid: str
    alg: Algorithm
    nbf: float


@asynccontextmanager
async def open_keyring(folder: Path, algorithm: Algorithm, *, rotate: float, kept: float) -> AsyncGenerator[KeyRing]:
    """Open the keys of `folder`, which is made if need be, and follow it.

    Raises:
        ConfigurationError: the folder cannot be used, or everybody on the machine can.
    """
    ring = KeyRing(folder, algorithm, rotate=rotate, kept=kept)
    try:
        await trio.to_thread.run_sync(_prepare, folder)
        with trio.fail_after(_FIRST_KEY_SECONDS):
            await ring.look()
            while not ring.can_sign:
                # Another process makes the first one.
                await trio.sleep(0.05)
                await ring.look()
    except OSError as error:
        raise ConfigurationError(f"auth.issuer.keys: {folder}: {error.strerror or error}") from error
    except trio.TooSlowError:
        raise ConfigurationError(f"auth.issuer.keys: {folder} is locked, and holds no key") from None

    async def follow() -> None:
        while True:
            await trio.sleep(ring.poll)
            await ring.look_again()

    async with open_helpers() as nursery:
        nursery.start_soon(follow)
        yield ring
