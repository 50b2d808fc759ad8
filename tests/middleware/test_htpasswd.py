"""The authenticator `htpasswd`: who gets in, who does not, and what guessing costs whom."""

import contextlib
import hashlib
import logging
import os
import threading
from collections.abc import Callable
from pathlib import Path

import bcrypt
import pytest
import trio
from hypothesis import given, strategies as st
from trio.testing import MockClock, wait_all_tasks_blocked

from asking import basic, bearer, opened_authenticator
from moorage import (
    Authenticator,
    Caller,
    ConfigurationError,
    Credentials,
    Origin,
    RecallingAuthenticator,
    TooManyRequests,
    Unauthorized,
    Voucher,
)
from moorage_middleware.htpasswd import parse

CANARY = "canary-5c1e"


def hashed(password: str, cost: int = 4) -> str:
    return bcrypt.hashpw(password.encode(), bcrypt.gensalt(cost)).decode()


def line(name: str, password: str) -> str:
    return f"{name}:{hashed(password)}\n"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    file = tmp_path / "htpasswd"
    file.write_text(f"# people\n\n{line('ann', 'good')}{line('bob', 'better')}", encoding="utf-8")
    return file


def options(path: Path, **more: object) -> dict[str, object]:
    return {"realm": "the house", "path": str(path), **more}


def vouched(path: Path, name: str, *groups: str) -> Caller:
    """Return the caller of that name as the file at `path` has them."""
    mark = hashlib.sha256(parse(path.read_bytes()).hashes[name]).hexdigest()[:32]
    return Caller(name=name, groups=frozenset(groups), voucher=Voucher("htpasswd", mark))


async def refused(authenticator: Authenticator, origin: Origin) -> None:
    with pytest.raises(Unauthorized, match="do not belong together"):
        await authenticator(origin)


class Counted:
    """Counts the hashes that are compared, and may keep them waiting."""

    def __init__(self) -> None:
        self.calls = 0
        self.costs: list[bytes] = []
        self.go_on = threading.Event()
        self.go_on.set()
        self._compare: Callable[[bytes, bytes], bool] = bcrypt.checkpw

    def __call__(self, password: bytes, hashed: bytes) -> bool:
        self.calls += 1
        self.costs.append(hashed[4:6])
        assert self.go_on.wait(60)
        return self._compare(password, hashed)


@pytest.fixture
def compared(monkeypatch: pytest.MonkeyPatch) -> Counted:
    counted = Counted()
    monkeypatch.setattr("moorage_middleware.htpasswd.bcrypt.checkpw", counted)
    return counted


async def test_who_shows_the_password_is_the_caller_with_the_groups_of_the_options(path: Path) -> None:
    groups = {"ops": ["ann", "eve"], "all": ["ann", "bob"]}
    async with opened_authenticator("htpasswd", options(path, groups=groups)) as known:
        assert await known(basic("ann", "good")) == vouched(path, "ann", "ops", "all")
        assert await known(basic("bob", "better")) == vouched(path, "bob", "all")
        assert known.challenge == 'Basic realm="the house"'


async def test_all_else_is_refused_and_other_kinds_are_left_to_others(path: Path) -> None:
    async with opened_authenticator("htpasswd", options(path)) as known:
        for name, password in (("ann", "better"), ("ann", ""), ("eve", "good"), ("", "good"), ("ann", hashed("good"))):
            await refused(known, basic(name, password))
        assert await known(bearer("good")) is None
        assert await known(Origin()) is None
        with pytest.raises(Unauthorized, match="base64"):
            await known(Origin(credentials=Credentials("basic", "good")))


async def test_of_a_long_password_the_first_72_bytes_count(tmp_path: Path) -> None:
    file = tmp_path / "htpasswd"
    file.write_text(line("ann", "é" * 36), encoding="utf-8")
    async with opened_authenticator("htpasswd", options(file)) as known:
        assert await known(basic("ann", "é" * 36)) == await known(basic("ann", "é" * 50)) == vouched(file, "ann")
        await refused(known, basic("ann", "é" * 35))


async def test_hashes_of_other_kinds_never_match_and_are_told_once_by_name(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    others = {
        "sha": "{SHA}W6ph5Mm5Pz8GgiULbPgzG37mj9g=",
        "md5": f"$apr1${CANARY}$x",
        "plain": CANARY,
        "slow": "$2b$31$" + hashed("good")[7:],
        "empty": "",
        "salt": hashed("good")[:28] + "9" + hashed("good")[29:],
    }
    file = tmp_path / "htpasswd"
    text = "".join(f"{name}:{value}\n" for name, value in others.items())
    file.write_text(text + line("ann", "good"), encoding="utf-8")
    async with opened_authenticator("htpasswd", options(file)) as known:
        for name, value in others.items():
            await refused(known, basic(name, value))
        assert await known(basic("ann", "good")) == vouched(file, "ann")
    warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert len(warnings) == 1
    assert "'sha', 'md5', 'plain', 'slow', 'empty' and 1 more" in warnings[0]
    assert CANARY not in caplog.text


def test_a_name_has_the_last_of_its_lines() -> None:
    first, second = hashed("a"), hashed("b")
    users = parse(f"ann:{first}\r\n#ann:x\nann:{second}\nbob:none\n".encode())
    assert users.hashes == {"ann": second.encode()}
    assert users.others == ("bob",)


@given(st.binary())
def test_whatever_a_file_holds_it_is_understood_or_refused(data: bytes) -> None:
    try:
        users = parse(data)
    except ValueError:
        return
    assert not set(users.hashes) & set(users.others)


async def test_a_changed_file_counts_within_a_second(path: Path, autojump_clock: MockClock) -> None:
    del autojump_clock
    async with opened_authenticator("htpasswd", options(path)) as known:
        assert await known(basic("ann", "good")) == vouched(path, "ann")
        path.write_text(line("ann", "new") + line("eve", "x"), encoding="utf-8")
        await trio.sleep(1)
        assert await known(basic("ann", "new")) == await known(basic("ann", "new")) == vouched(path, "ann")
        assert await known(basic("eve", "x")) == vouched(path, "eve")
        await refused(known, basic("ann", "good"))
        await refused(known, basic("bob", "better"))


async def test_a_caller_is_recalled_until_the_entry_is_another_one(path: Path, autojump_clock: MockClock) -> None:
    del autojump_clock
    async with opened_authenticator("htpasswd", options(path, groups={"ops": ["ann"]})) as known:
        assert isinstance(known, RecallingAuthenticator)
        ann, bob = await known(basic("ann", "good")), await known(basic("bob", "better"))
        assert await known.recall("ann") == ann == vouched(path, "ann", "ops")
        assert await known.recall("bob") == bob
        assert await known.recall("eve") is None
        # The same password again has another salt, and is another entry all the same.
        path.write_text(line("ann", "good"), encoding="utf-8")
        await trio.sleep(1)
        again = await known.recall("ann")
        assert again == await known(basic("ann", "good")) == vouched(path, "ann", "ops")
        assert again != ann
        assert await known.recall("bob") is None


@pytest.mark.parametrize("broken", [b"\xff", b"ann", None])
async def test_while_a_new_file_cannot_be_used_the_old_one_counts_and_that_is_told_once(
    path: Path, broken: bytes | None, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    del autojump_clock
    ann = vouched(path, "ann")
    async with opened_authenticator("htpasswd", options(path)) as known:
        path.unlink()
        if broken is not None:
            path.write_bytes(broken)
        for _ in range(3):
            await trio.sleep(2)
            assert await known(basic("ann", "good")) == ann
        errors = [record for record in caplog.records if record.levelno == logging.ERROR]
        assert len(errors) == 1
        assert str(path) in errors[0].getMessage()
        path.write_text(line("eve", "x"), encoding="utf-8")
        await trio.sleep(1)
        assert await known(basic("eve", "x")) == vouched(path, "eve")
        await refused(known, basic("ann", "good"))


async def test_a_file_that_is_missing_is_made_with_one_user(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = tmp_path / "deep" / "htpasswd"
    async with opened_authenticator("htpasswd", options(file)) as known:
        (told,) = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
        password = told.rpartition(" ")[2]
        assert await known(basic("docker", password)) == vouched(file, "docker")
    assert file.stat().st_mode & 0o777 == 0o600
    assert os.listdir(file.parent) == ["htpasswd"]
    before = file.read_bytes()
    async with opened_authenticator("htpasswd", options(file)):
        assert file.read_bytes() == before


@pytest.mark.parametrize("kind", ["folder", "pipe", "dangling", "below a file", "broken"])
async def test_a_file_that_cannot_be_used_is_told_in_one_sentence(tmp_path: Path, kind: str) -> None:
    file = tmp_path / "htpasswd"
    match kind:
        case "folder":
            file.mkdir()
        case "pipe":
            os.mkfifo(file)
        case "dangling":
            file.symlink_to("nowhere")
        case "broken":
            file.write_text(CANARY)
        case _:
            file.write_text("")
            file = file / "below"
    with pytest.raises(ConfigurationError, match=r"^auth\.htpasswd\.path: ") as error:
        async with opened_authenticator("htpasswd", options(file)):
            pass
    assert CANARY not in str(error.value)


async def test_a_password_is_compared_once_a_minute(path: Path, compared: Counted, autojump_clock: MockClock) -> None:
    del autojump_clock
    async with opened_authenticator("htpasswd", options(path)) as known:
        for _ in range(100):
            await known(basic("ann", "good"))
        assert compared.calls == 1
        await trio.sleep(61)
        await known(basic("ann", "good"))
        assert compared.calls == 2


async def test_equal_passwords_at_the_same_time_are_compared_once(path: Path, compared: Counted) -> None:
    async with opened_authenticator("htpasswd", options(path)) as known:
        compared.go_on.clear()
        async with trio.open_nursery() as nursery:
            for _ in range(100):
                nursery.start_soon(known, basic("ann", "good"))
            await wait_all_tasks_blocked()
            compared.go_on.set()
        assert compared.calls == 1


async def test_who_waits_for_the_check_of_another_who_goes_away_gets_an_answer(path: Path, compared: Counted) -> None:
    answers: list[Caller | None] = []
    async with opened_authenticator("htpasswd", options(path)) as known:
        compared.go_on.clear()

        async def ask(origin: Origin) -> None:
            with contextlib.suppress(Unauthorized):
                answers.append(await known(origin))

        async with trio.open_nursery() as nursery:
            for at in range(len(os.sched_getaffinity(0))):
                nursery.start_soon(ask, basic("bob", f"guess{at}"))
            await wait_all_tasks_blocked()
            async with trio.open_nursery() as impatient:
                impatient.start_soon(ask, basic("ann", "good"))
                await wait_all_tasks_blocked()
                nursery.start_soon(ask, basic("ann", "good"))
                await wait_all_tasks_blocked()
                impatient.cancel_scope.cancel()
            compared.go_on.set()
    assert answers == [vouched(path, "ann")]


async def test_an_unknown_name_costs_as_much_as_the_dearest_known_one(tmp_path: Path, compared: Counted) -> None:
    file = tmp_path / "htpasswd"
    file.write_text(f"ann:{hashed('good')}\nbob:{hashed('better', 6)}\nold:md5\n", encoding="utf-8")
    async with opened_authenticator("htpasswd", options(file)) as known:
        for name in ("eve", "old", ""):
            await refused(known, basic(name, "x"))
    assert compared.costs == [b"06"] * 3


async def test_who_keeps_guessing_has_to_wait_longer_and_longer(
    path: Path, compared: Counted, autojump_clock: MockClock
) -> None:
    del autojump_clock
    waits: list[float] = []
    async with opened_authenticator("htpasswd", options(path)) as known:
        for at in range(10):
            await refused(known, basic("ann", str(at)))
        for at in range(12):
            with pytest.raises(TooManyRequests) as limited:
                await known(basic("ann", "good"))
            waits.append(round(limited.value.retry_after))
            await trio.sleep(limited.value.retry_after)
            await refused(known, basic("ann", f"x{at}"))
        assert waits == [1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300, 300]
        # Not compared while it was made to wait; others are not made to.
        assert compared.calls == 22
        assert await known(basic("bob", "better")) == vouched(path, "bob")
        assert await known(basic("ann", "good", address="192.0.2.2")) == vouched(path, "ann")
        await trio.sleep(300)
        assert await known(basic("ann", "good")) == vouched(path, "ann")
        # The right one lets the name begin anew from there.
        for at in range(10):
            await refused(known, basic("ann", str(at)))


async def test_guesses_at_the_same_time_are_counted_too(path: Path, compared: Counted) -> None:
    said: list[type[Exception]] = []
    async with opened_authenticator("htpasswd", options(path)) as known:
        compared.go_on.clear()

        async def guess(password: str) -> None:
            try:
                await known(basic("ann", password))
            except (Unauthorized, TooManyRequests) as error:
                said.append(type(error))

        async with trio.open_nursery() as nursery:
            for at in range(50):
                nursery.start_soon(guess, str(at))
            await wait_all_tasks_blocked()
            compared.go_on.set()
    assert compared.calls == 10
    assert said.count(TooManyRequests) == 40


async def test_during_a_flood_of_guesses_good_users_get_in(path: Path, compared: Counted) -> None:
    async with opened_authenticator("htpasswd", options(path)) as known:
        await known(basic("ann", "good"))
        compared.go_on.clear()
        limited: list[Exception] = []

        async def guess(name: str) -> None:
            try:
                await known(basic(name, "guess", address="198.51.100.7"))
            except TooManyRequests as error:
                limited.append(error)
            except Unauthorized:
                pass

        async with trio.open_nursery() as nursery:
            for at in range(1000):
                nursery.start_soon(guess, f"user{at}")
            await wait_all_tasks_blocked()
            # The queue has room for others.
            assert len(limited) == 1000 - 16
            assert await known(basic("ann", "good")) == vouched(path, "ann")
            callers: list[Caller | None] = []

            async def log_in() -> None:
                callers.append(await known(basic("bob", "better")))

            nursery.start_soon(log_in)
            await wait_all_tasks_blocked()
            compared.go_on.set()
        assert callers == [vouched(path, "bob")]


async def test_what_is_remembered_is_bounded(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("moorage_middleware.htpasswd._FAILURES_MOST", 100)
    async with opened_authenticator("htpasswd", options(path)) as known:
        for at in range(300):
            await refused(known, basic(f"{at}" * 1000, "x"))
        assert len(known._failures) == 100  # type: ignore[attr-defined] # pyright: ignore[reportAttributeAccessIssue, reportUnknownArgumentType, reportUnknownMemberType] - looks inside
        assert not known._checks  # type: ignore[attr-defined] # pyright: ignore[reportAttributeAccessIssue, reportUnknownMemberType] - same
        assert not known._queues  # type: ignore[attr-defined] # pyright: ignore[reportAttributeAccessIssue, reportUnknownMemberType] - same


async def test_no_password_is_told(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    async with opened_authenticator("htpasswd", options(path)) as known:
        for name in ("ann", CANARY):
            with pytest.raises(Unauthorized) as error:
                await known(basic(name, CANARY))
            assert CANARY not in repr(error.value) + str(error.value.entries())
        with pytest.raises(Unauthorized):
            await known(Origin(credentials=Credentials("basic", CANARY)))
    assert "a wrong password for the user 'ann' from 192.0.2.1" in caplog.text
    assert CANARY not in caplog.text
