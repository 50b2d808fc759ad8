"""What another process does with a store, for the cases about several of them: `python -m …`.

Standard input begins with a line of JSON: the subject, the action, its arguments; some are too long for a command line.
An action says on standard output, line by line, how far it is, and is killed, or told to go on by a line.
"""

import sys
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing

import msgspec
import trio

from moorage import Absent, ConditionFailed, Driver

from .expect import Pieces, content
from .store import Subject

_PIECE = 1 << 16


def _say(line: str) -> None:
    print(line, flush=True)  # noqa: T201 - the pipe is what it speaks through


async def _wait() -> None:
    """Wait until the other side says so, or is gone."""
    await trio.to_thread.run_sync(sys.stdin.readline)


async def create(driver: Driver, key: str, text: str) -> None:
    """Create `key` if nobody has; say whether that worked."""
    _say("ready")
    await _wait()
    try:
        await driver.write(key, text.encode(), condition=Absent())
    except ConditionFailed:
        _say("lost")
    else:
        _say("won")


async def append(driver: Driver, key: str, *texts: str) -> None:
    """Write an upload, suspend it after each text, say its token; then go on writing until killed."""
    async with driver.open_upload(key) as upload:
        for text in texts:
            await upload.write(text.encode())
            token = await upload.suspend()
            _say(f"{token.hex()} {upload.offset}")
        while True:
            await upload.write(b"x" * _PIECE)
            _say("more")


async def resume(driver: Driver, token: str, offset: str, text: str, destination: str) -> None:
    """Go on with an upload and commit it."""
    async with driver.resume_upload(bytes.fromhex(token), int(offset)) as upload:
        await upload.write(text.encode())
        await upload.commit(destination)
    _say("done")


async def replace(driver: Driver, key: str) -> None:
    """Replace `key` again and again, in pieces, by texts of one letter, until killed; say so in the middle of each."""

    async def pieces(letter: bytes) -> AsyncGenerator[bytes]:
        for number in range(8):
            await trio.lowlevel.checkpoint()
            if number == 4:
                _say("more")
            yield letter * _PIECE

    number = 0
    while True:
        async with aclosing(pieces(bytes([97 + number % 26]))) as source:
            await driver.write(key, source)
        number += 1


async def hold(driver: Driver, name: str) -> None:
    """Hold `name` until told to end; say whether it was given."""
    async with driver.hold(name) as held:
        _say("held" if held else "busy")
        await _wait()
    _say("left")


async def use(driver: Driver) -> None:
    """Do a little of everything."""
    await driver.write("a/b", b"1")
    await driver.write("a/c", Pieces(b"2", b"3"))
    await driver.copy("a/b", "d")
    async with driver.open_upload("u/data", "e") as upload:
        await upload.write(b"4")
        token = await upload.suspend()
    async with driver.resume_upload(token, 1) as upload:
        await upload.commit("e")
    _say((await content(driver, "e")).decode())
    await driver.delete_below("a/")
    await driver.delete("d", "e")


ACTIONS: dict[str, Callable[..., Awaitable[None]]] = {
    "append": append,
    "create": create,
    "hold": hold,
    "replace": replace,
    "resume": resume,
    "use": use,
}


async def _main() -> None:
    told, action, *arguments = msgspec.json.decode(sys.stdin.readline(), type=list[str])
    subject = msgspec.json.decode(told, type=Subject)
    async with subject.factory().open(subject.decoded("")) as driver:
        await ACTIONS[action](driver, *arguments)


if __name__ == "__main__":
    trio.run(_main)
