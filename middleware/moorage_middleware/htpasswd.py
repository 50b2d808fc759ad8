"""The authenticator `htpasswd`: names and bcrypt hashes in a file, as distribution has it.

What this module keeps:

- A password costs a bcrypt once a minute, not with each request: what was right is remembered, by a keyed digest, for as
  long as the file has the same hash. Equal passwords that come at the same time are checked once.
- Hashing happens in threads, as many as there are processors, and the queue for them is bounded, in all and for each
  address, so that who guesses takes turns with the others.
- Who keeps guessing has to wait, longer and longer; that holds for a name from an address, so nobody can lock out others.
- Unknown names take as long as known ones.
- Callers are recalled by their entries: who is removed, or has another password, is not who logged in.

bcrypt knows the first 72 bytes of a password. The rest is ignored here, as by Go's comparison in distribution.
"""

import hashlib
import logging
import os
import re
import secrets
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import bcrypt
import msgspec
import trio

from moorage import Caller, ConfigurationError, Origin, TooManyRequests, Unauthorized, Voucher

from ._authenticators import Htpasswd
from ._remembered import Remembered
from ._shown import challenge, name_and_password
from ._watched import Watched, reason_of

_log = logging.getLogger("moorage.auth.htpasswd")

_BCRYPT = re.compile(r"\$2[aby]\$(0[4-9]|1[0-9])\$[./A-Za-z0-9]{21}[.Oeu][./A-Za-z0-9]{31}", re.ASCII)
"""Up to a cost of 19, which takes half a minute: a hash that takes hours would block a processor for everybody."""
_BCRYPT_BYTES = 72
_DIGITS = "./ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"
_USUAL_COST = 10

_RIGHT_SECONDS = 60.0
_RIGHT_MOST = 10_000
_QUEUE = 128
_QUEUE_OF_ONE = 16
_FREE_FAILURES = 10
_LONGEST_WAIT = 300.0
_FAILURES_MOST = 10_000
_NAMED = 5


class Users(msgspec.Struct, frozen=True):
    """What a file says: hashes by name, names whose entries match nothing, and the cost of the dearest hash."""

    hashes: Mapping[str, bytes]
    others: tuple[str, ...]
    cost: int


def parse(data: bytes) -> Users:
    """Return the users of a file: a line `name:hash` for each, of which the last counts; `#` begins a comment line.

    Raises:
        ValueError: a line is something else.
    """
    try:
        text = data.decode()
    except UnicodeDecodeError:
        raise ValueError("it is not UTF-8 text") from None
    entries: dict[str, str] = {}
    for number, line in enumerate(text.split("\n"), start=1):
        line = line.strip()
        if line and not line.startswith("#"):
            name, colon, hashed = line.partition(":")
            if not colon:
                raise ValueError(f"line {number} has no colon between a name and a hash")
            entries[name] = hashed
    costs = {name: int(found[1]) for name, hashed in entries.items() if (found := _BCRYPT.fullmatch(hashed))}
    return Users(
        {name: entries[name].encode() for name in costs},
        tuple(name for name in entries if name not in costs),
        max(costs.values(), default=_USUAL_COST),
    )


class _Failures(msgspec.Struct):
    count: int = 0
    last: float = 0.0


class _Check(msgspec.Struct):
    """A password that is being checked; `right` is None if that was given up."""

    ended: trio.Event
    right: bool | None = None


class Passwords:
    """Knows callers by names and passwords."""

    def __init__(self, options: Htpasswd) -> None:
        """Read the file, or make one if there is none.

        Raises:
            ConfigurationError: that cannot be done.
        """
        _provide(Path(options.path))
        self._file = Watched(options.path, _parse_and_tell, setting="auth.htpasswd.path")
        self._realm = options.realm
        members = options.groups
        self._groups = {
            name: frozenset(group for group, names in members.items() if name in names)
            for name in {name for names in members.values() for name in names}
        }
        self._secret = secrets.token_bytes(32)
        self._right: Remembered[bytes, float] = Remembered(most=_RIGHT_MOST)
        self._failures: Remembered[bytes, _Failures] = Remembered(most=_FAILURES_MOST)
        self._checks: dict[bytes, _Check] = {}
        self._queues: Counter[str] = Counter()
        self._threads = trio.CapacityLimiter(len(os.sched_getaffinity(0)))

    @property
    def challenge(self) -> str:
        """What clients are asked for: a name and a password."""
        return challenge("Basic", [("realm", self._realm)])

    async def __call__(self, origin: Origin, /) -> Caller | None:
        """Return whose password `origin` shows, or None if it shows none.

        Raises:
            Unauthorized: name and password do not belong together.
            TooManyRequests: too many wrong ones came for this name from there, or too many are waiting to be checked.
        """
        shown = name_and_password(origin.credentials)
        if shown is None:
            return None
        name, password = shown
        users = self._file.current()
        hashed = users.hashes.get(name)
        check = self._digest(name, password, "" if hashed is None else hashed.decode())
        now = trio.current_time()
        known_until = self._right.get(check)
        if hashed is not None and known_until is not None and known_until > now:
            return self._caller(name, hashed)
        right = await self._checked(check, password, hashed, users.cost, self._digest(name, origin.address), origin)
        if hashed is None or not right:
            whose = f"the user {name!r}" if hashed is not None else "a user that the file does not have"
            _log.info("a wrong password for %s from %s", whose, origin.address or "inside")
            raise Unauthorized("name and password do not belong together", problem="invalid_token")
        return self._caller(name, hashed)

    async def recall(self, name: str, /) -> Caller | None:
        """Return the caller of that name as the file has them now, None if it has not."""
        hashed = self._file.current().hashes.get(name)
        return None if hashed is None else self._caller(name, hashed)

    def _caller(self, name: str, hashed: bytes) -> Caller:
        # The salt in it makes a digest of it useless to whoever does not have the file; so many bits are never the same.
        mark = hashlib.sha256(hashed).hexdigest()[:32]
        return Caller(name=name, groups=self._groups.get(name, frozenset()), voucher=Voucher("htpasswd", mark))

    def _digest(self, *texts: str) -> bytes:
        """Return what stands for `texts` in memory, and is of no use to who reads it there."""
        digest = hashlib.blake2b(key=self._secret, digest_size=32)
        for text in texts:
            data = text.encode()
            digest.update(len(data).to_bytes(8, "big") + data)
        return digest.digest()

    async def _checked(
        self, check: bytes, password: str, hashed: bytes | None, cost: int, who: bytes, origin: Origin
    ) -> bool:
        """Return whether a password is right; the same one is checked once, however many ask.

        Raises:
            TooManyRequests: it is not checked now.
        """
        while (running := self._checks.get(check)) is not None:
            await running.ended.wait()
            if running.right is not None:
                return running.right
            # Whoever had it checked went away before its turn came.
        running = self._checks[check] = _Check(trio.Event())
        try:
            self._count_attempt(who)
            right = await self._compared(password, hashed or _dummy(cost), origin.address)
            running.right = right and hashed is not None
            if running.right:
                self._failures.forget(who)
                self._right.put(check, trio.current_time() + _RIGHT_SECONDS)
            return running.right
        finally:
            del self._checks[check]
            running.ended.set()

    def _count_attempt(self, who: bytes) -> None:
        """Count an attempt as one that has failed, until it has not: many may be under way at once.

        Raises:
            TooManyRequests: there were too many of them.
        """
        now = trio.current_time()
        failures = self._failures.get(who) or _Failures()
        if failures.count >= _FREE_FAILURES:
            pause = min(2.0 ** min(failures.count - _FREE_FAILURES, 16), _LONGEST_WAIT)
            if now < failures.last + pause:
                raise TooManyRequests("too many wrong passwords", retry_after=failures.last + pause - now)
        failures.count += 1
        failures.last = now
        self._failures.put(who, failures)

    async def _compared(self, password: str, hashed: bytes, address: str) -> bool:
        """Return whether `hashed` is the hash of `password`, when it is its turn.

        Raises:
            TooManyRequests: too many are waiting already.
        """
        if self._queues.total() >= _QUEUE or self._queues[address] >= _QUEUE_OF_ONE:
            raise TooManyRequests("too many passwords are waiting to be checked", retry_after=1)
        self._queues[address] += 1
        try:
            # Once begun it is finished, whether or not somebody still wants to know: then it is known for the next one.
            return await trio.to_thread.run_sync(
                bcrypt.checkpw, password.encode()[:_BCRYPT_BYTES], hashed, limiter=self._threads
            )
        finally:
            self._queues[address] -= 1
            if not self._queues[address]:
                del self._queues[address]


def _parse_and_tell(data: bytes) -> Users:
    users = parse(data)
    if users.others:
        names = ", ".join(repr(name) for name in users.others[:_NAMED])
        more = f" and {len(users.others) - _NAMED} more" if len(users.others) > _NAMED else ""
        _log.warning("%s%s can never log in: what stands there is no bcrypt hash with a cost of 4 to 19", names, more)
    return users


def _dummy(cost: int) -> bytes:
    """Return a hash of nothing in particular, which takes as long to compare as any of that cost."""
    digits = "".join(secrets.choice(_DIGITS) for _ in range(31))
    return bcrypt.gensalt(cost) + digits.encode()


def _provide(path: Path) -> None:
    """Make a file with one user and a random password, which the log tells, if there is none; as distribution does.

    Raises:
        ConfigurationError: it cannot be made.
    """
    if os.path.lexists(path):
        return
    password = secrets.token_urlsafe(32)
    hashed = bcrypt.hashpw(password.encode(), bcrypt.gensalt(_USUAL_COST))
    # Whole before it has its name: another worker may be about to read it.
    unfinished = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        try:
            with os.fdopen(os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
                file.write(b"docker:" + hashed + b"\n")
            os.link(unfinished, path)
        finally:
            unfinished.unlink(missing_ok=True)
    except FileExistsError:
        return
    except (OSError, ValueError) as error:
        problem = f"auth.htpasswd.path: {str(path)!r} is not there and cannot be made: {reason_of(error)}"
        raise ConfigurationError(problem) from error
    _log.warning("%s was not there and has been made, with the user docker and the password %s", path, password)
