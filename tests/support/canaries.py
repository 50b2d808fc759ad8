"""Secrets that nobody else has, and whether one of them is seen where none may be."""

import base64
import secrets
from urllib.parse import quote


class Canaries:
    """Secrets by name, and the forms in which one may show: as they are, quoted for URLs, in base64 or in hexadecimal."""

    def __init__(self) -> None:
        """Begin with none."""
        self._names: dict[str, str] = {}
        self._forms: dict[bytes, str] = {}

    def new(self, name: str) -> str:
        """Return a new secret, called `name`."""
        return self.hide(name, f"canary{secrets.token_hex(16)}")

    def hide(self, name: str, secret: str) -> str:
        """Take `secret` for one, and return it."""
        data = secret.encode()
        for form in (data, quote(secret, safe="").encode(), data.hex().encode()):
            self._forms[form] = name
        # Where a text is part of a longer one, its base64 is one of three, but for the letters at its ends.
        for before in range(3):
            encoded = base64.b64encode(b"\0" * before + data)
            inner = encoded[4 if before else 0 : len(encoded) // 4 * 4 - 4]
            self._forms[inner] = name
            self._forms[base64.urlsafe_b64encode(base64.b64decode(inner))] = name
        self._names[name] = secret
        return secret

    def seen_in(self, content: bytes | str) -> set[str]:
        """Return the names of the secrets that `content` shows."""
        data = content.encode() if isinstance(content, str) else content
        return {name for form, name in self._forms.items() if form in data}
