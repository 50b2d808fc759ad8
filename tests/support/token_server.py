"""A token server as distribution's protocol has it: `GET` with a name and a password gives a token for what is asked for."""

import base64
import binascii
import json
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from urllib.parse import parse_qs, urlsplit

from loopback import LoopbackHandler, LoopbackServer, serving
from signing import ISSUER, SERVICE, claims, key_set, new_key, public_jwk, signed


class TokenServer:
    """Gives everybody with a right password all that is asked for, but nothing in repositories that begin with `closed/`.

    Attributes:
        url: where tokens are had.
        keys: the keys, as a JWK Set.
        scopes: what was asked for, in its order.
    """

    def __init__(self, users: Mapping[str, str]) -> None:
        """Know `users` with their passwords."""
        self.url = ""
        self.scopes: list[str] = []
        self._users = users
        self._key = new_key("ES256")
        self.keys = key_set(public_jwk(self._key, "one"))

    def answer(self, path: str, authorization: str) -> tuple[int, dict[str, object]]:
        """Return status and body for a request."""
        scheme, _, value = authorization.partition(" ")
        try:
            name, _, password = base64.b64decode(value).decode().partition(":")
        except (binascii.Error, ValueError):
            return 400, {}
        if scheme.lower() != "basic" or self._users.get(name) != password:
            return 401, {"details": "incorrect username or password"}
        query = parse_qs(urlsplit(path).query)
        if query.get("service") != [SERVICE]:
            return 400, {}
        asked = [scope for each in query.get("scope", []) for scope in each.split(" ")]
        self.scopes += asked
        access: list[dict[str, object]] = []
        for scope in asked:
            kind, repository, actions = scope.split(":")
            if not repository.startswith("closed/"):
                access.append({"type": kind, "name": repository, "actions": actions.split(",")})
        token = signed(self._key, claims(iss=ISSUER, sub=name, access=access), kid="one")
        return 200, {"token": token, "expires_in": 300}


@contextmanager
def token_server(users: Mapping[str, str]) -> Generator[TokenServer]:
    """Run a token server on loopback, in a thread."""
    tokens = TokenServer(users)

    class Handler(LoopbackHandler):
        def reply(self) -> None:
            status, answer = tokens.answer(self.path, self.headers.get("Authorization", ""))
            body = json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    server = LoopbackServer(Handler)
    tokens.url = f"{server.url}/token"
    with serving(server):
        yield tokens
