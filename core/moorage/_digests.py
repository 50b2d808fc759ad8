"""Digests, and hashing whose state can be carried to another process.

A digest is text, `algorithm:encoded` (OCI image spec, "Digests"). The model takes any algorithm of the grammar, so
that a manifest may point at what this registry cannot compute; `Hasher` knows those that it can.

hashlib cannot give its state away, so SHA-256 and SHA-512 run on OpenSSL's low-level functions, reached through the
library that Python's own `_hashlib` stands on: as fast, without the GIL, and with a plain struct as state. That state
is carried in a fixed layout of our own choosing, the one of Go's `encoding.BinaryMarshaler` for these hashes, so it
survives a change of library. Where those functions are missing, hashlib does the work and `state` is None: whoever
wants to go on in another process must then read again.
"""

import ctypes
import hashlib
import re
import struct
from collections.abc import Callable
from functools import cache
from typing import Protocol, Self

from ._errors import DigestInvalid

CANONICAL = "sha256"
"""The algorithm that is hashed while receiving, unless a client announces another one."""

_ENCODED_LENGTH = {"sha256": 64, "sha384": 96, "sha512": 128}
_GRAMMAR = re.compile(r"([a-z0-9]+(?:[+._-][a-z0-9]+)*):([a-zA-Z0-9=_-]+)", re.ASCII)
_HEX = re.compile(r"[a-f0-9]+", re.ASCII)
_LIMIT = 255


class Digest(str):
    """`algorithm:encoded`, checked: lower-case hex of the right length where the algorithm is a known one."""

    __slots__ = ()

    def __new__(cls, text: str) -> Self:
        """Check `text` against the grammar.

        Raises:
            DigestInvalid: it breaks the grammar, or the encoded part is not what a known algorithm makes.
        """
        match = _GRAMMAR.fullmatch(text) if len(text) <= _LIMIT else None
        if match is None:
            raise DigestInvalid(f"{text[:100]!a} is not a digest: algorithm, colon, encoded hash")
        algorithm, encoded = match.groups()
        length = _ENCODED_LENGTH.get(algorithm)
        if length is not None and (len(encoded) != length or _HEX.fullmatch(encoded) is None):
            raise DigestInvalid(f"a {algorithm} digest has {length} lower-case hexadecimal digits", detail=text)
        return super().__new__(cls, text)

    @property
    def algorithm(self) -> str:
        """The part before the colon, such as `sha256`."""
        return self[: self.index(":")]

    @property
    def encoded(self) -> str:
        """The part after the colon."""
        return self[self.index(":") + 1 :]

    @classmethod
    def of(cls, data: bytes, algorithm: str = CANONICAL) -> Self:
        """Return the digest of `data`.

        Raises:
            DigestInvalid: this registry cannot compute `algorithm`.
        """
        check_algorithm(algorithm)
        return cls(f"{algorithm}:{hashlib.new(algorithm, data, usedforsecurity=False).hexdigest()}")


def check_algorithm(algorithm: str) -> None:
    """Return if this registry can compute `algorithm`.

    Raises:
        DigestInvalid: it cannot.
    """
    if algorithm not in _ENCODED_LENGTH:
        known = ", ".join(_ENCODED_LENGTH)
        raise DigestInvalid(f"digest algorithm {algorithm[:40]!a} is not supported; supported are {known}")


class Hasher(Protocol):
    """A hash under way."""

    algorithm: str

    def update(self, data: bytes, /) -> None:
        """Take in `data`. May run in a thread; gives up the GIL for large data."""
        ...

    def digest(self) -> Digest:
        """Return the digest of all that was taken in; more may follow."""
        ...

    def state(self) -> bytes | None:
        """Return what `resume_hasher` needs to go on, or None where that cannot be had."""
        ...


def open_hasher(algorithm: str = CANONICAL) -> Hasher:
    """Return a fresh hasher.

    Raises:
        DigestInvalid: this registry cannot compute `algorithm`.
    """
    check_algorithm(algorithm)
    implementation = _openssl(algorithm)
    return _OpenSSLHasher(implementation) if implementation else _PlainHasher(algorithm)


def resume_hasher(algorithm: str, state: bytes) -> Hasher | None:
    """Return a hasher that goes on from `state`, or None if this process cannot do so or `state` is not one."""
    implementation = _openssl(algorithm) if algorithm in _ENCODED_LENGTH else None
    if implementation is None or not implementation.accepts(state):
        return None
    return _OpenSSLHasher(implementation, state)


class _PlainHasher:
    """hashlib; for where OpenSSL's low-level functions cannot be reached, and for algorithms without them."""

    def __init__(self, algorithm: str) -> None:
        self.algorithm = algorithm
        self._hash = hashlib.new(algorithm, usedforsecurity=False)

    def update(self, data: bytes, /) -> None:
        self._hash.update(data)

    def digest(self) -> Digest:
        return Digest(f"{self.algorithm}:{self._hash.hexdigest()}")

    def state(self) -> bytes | None:
        return None


class _SHA256Context(ctypes.Structure):
    """`SHA256_CTX` of OpenSSL's sha.h."""

    _fields_ = (
        ("h", ctypes.c_uint32 * 8),
        ("bits_low", ctypes.c_uint32),
        ("bits_high", ctypes.c_uint32),
        ("block", ctypes.c_uint8 * 64),
        ("filled", ctypes.c_uint),
        ("length", ctypes.c_uint),
    )


class _SHA512Context(ctypes.Structure):
    """`SHA512_CTX` of OpenSSL's sha.h."""

    _fields_ = (
        ("h", ctypes.c_uint64 * 8),
        ("bits_low", ctypes.c_uint64),
        ("bits_high", ctypes.c_uint64),
        ("block", ctypes.c_uint8 * 128),
        ("filled", ctypes.c_uint),
        ("length", ctypes.c_uint),
    )


_Context = _SHA256Context | _SHA512Context


class _Functions:
    """One algorithm's three functions, and how its context is written down.

    Written down: four bytes of magic, eight words of chaining value, one block of pending input, and the number of
    bytes taken in, all big-endian (Go's `crypto/sha256` and `crypto/sha512`).
    """

    def __init__(self, library: ctypes.CDLL, algorithm: str, context: type[_Context], magic: bytes, word: str) -> None:
        name = algorithm.upper()
        self.algorithm = algorithm
        self.context = context
        self.size = _ENCODED_LENGTH[algorithm] // 2
        self.block = 64 if context is _SHA256Context else 128
        self.init: Callable[[object], int] = getattr(library, f"{name}_Init")
        self.update: Callable[[object, bytes, ctypes.c_size_t], int] = getattr(library, f"{name}_Update")
        self.final: Callable[[object, object], int] = getattr(library, f"{name}_Final")
        self._magic = magic
        self._layout = struct.Struct(f">4s8{word}{self.block}sQ")
        self._word_bits = 32 if word == "I" else 64

    def accepts(self, state: bytes) -> bool:
        return len(state) == self._layout.size and state.startswith(self._magic)

    def dump(self, context: _Context) -> bytes:
        count = (context.bits_high << self._word_bits | context.bits_low) // 8
        pending = bytes(context.block[: count % self.block]).ljust(self.block, b"\0")
        return self._layout.pack(self._magic, *context.h, pending, count)

    def load(self, state: bytes) -> _Context:
        _, *h, pending, count = self._layout.unpack(state)
        context = self.context()
        self.init(ctypes.byref(context))
        context.h[:] = h
        context.bits_low = (count * 8) & ((1 << self._word_bits) - 1)
        context.bits_high = (count * 8) >> self._word_bits
        context.block[:] = pending
        context.filled = count % self.block
        return context


class _OpenSSLHasher:
    """A hash on OpenSSL's low-level functions, whose state can leave the process."""

    def __init__(self, functions: _Functions, state: bytes | None = None) -> None:
        self.algorithm = functions.algorithm
        self._functions = functions
        if state is None:
            self._context = functions.context()
            functions.init(ctypes.byref(self._context))
        else:
            self._context = functions.load(state)

    def update(self, data: bytes, /) -> None:
        self._functions.update(ctypes.byref(self._context), data, ctypes.c_size_t(len(data)))

    def digest(self) -> Digest:
        # Final pads the context in place, so it works on a copy.
        copy = self._functions.context.from_buffer_copy(self._context)
        out = (ctypes.c_uint8 * self._functions.size)()
        self._functions.final(out, ctypes.byref(copy))
        return Digest(f"{self.algorithm}:{bytes(out).hex()}")

    def state(self) -> bytes | None:
        return self._functions.dump(self._context)


@cache
def _openssl(algorithm: str) -> _Functions | None:
    """Return OpenSSL's functions for `algorithm` if they are here and do what hashlib does; asked once."""
    layouts: dict[str, tuple[type[_Context], bytes, str]] = {
        "sha256": (_SHA256Context, b"sha\x03", "I"),
        "sha512": (_SHA512Context, b"sha\x07", "Q"),
    }
    if algorithm not in layouts:
        return None
    try:
        import _hashlib  # noqa: PLC2701 - its file is what is wanted

        # Symbols are looked up in the libraries that the module itself stands on: the very OpenSSL that Python uses.
        functions = _Functions(ctypes.CDLL(_hashlib.__file__), algorithm, *layouts[algorithm])
        sample = bytes(range(251))
        first = _OpenSSLHasher(functions)
        first.update(sample)
        carried = first.state()
        if carried is None:
            return None
        second = _OpenSSLHasher(functions, carried)
        second.update(sample)
    except (ImportError, OSError, AttributeError):
        return None
    return functions if second.digest() == Digest.of(sample + sample, algorithm) else None
