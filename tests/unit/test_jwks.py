"""`KeySet` loads the public keys of other services from a file, or from a URL of a real HTTP server."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import jwt
import pytest
from asgiref.sync import SyncToAsync
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from reliable_cable.auth import InvalidToken, TokenExpired, jwks
from reliable_cable.auth.jwks import MAX_AGE, MIN_INTERVAL, KeySet, KeysUnavailable
from reliable_cable.auth.verification import get_verifier
from reliable_cable.concurrency.outages import is_outage
from tests.support.thread_server import serving
from tests.unit.tokens import after, handshake, sign

RSA_KEY = rsa.generate_private_key(65537, 2048)
OTHER_KEY = rsa.generate_private_key(65537, 2048)
EC_KEY = ec.generate_private_key(ec.SECP256R1())
ED_KEY = ed25519.Ed25519PrivateKey.generate()


def entry(key: Any, **more: Any) -> dict[str, Any]:
    """Return the public key of a private key, as an entry of a key set."""
    algorithms: Any = jwt.algorithms
    kinds = {
        rsa.RSAPrivateKey: algorithms.RSAAlgorithm,
        ec.EllipticCurvePrivateKey: algorithms.ECAlgorithm,
        ed25519.Ed25519PrivateKey: algorithms.OKPAlgorithm,
    }
    (kind,) = [algorithm for type_, algorithm in kinds.items() if isinstance(key, type_)]
    return {**json.loads(kind.to_jwk(key.public_key())), **more}


def key_set(*entries: Any) -> bytes:
    return json.dumps({"keys": entries}).encode()


class Clock:
    """A clock that tests set."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


class KeyServer(ThreadingHTTPServer):
    """An HTTP server with a key set."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), KeyHandler)
        self.content = b""
        self.status = 200
        self.headers: dict[str, str] = {}
        #: The number of requests. Each request also sets `asked`.
        self.requests = 0
        self.asked = threading.Event()
        #: Requests are answered while this is set.
        self.answers = threading.Event()
        self.answers.set()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/keys"


class KeyHandler(BaseHTTPRequestHandler):
    """Answers with the key set."""

    server: KeyServer

    def do_GET(self) -> None:
        self.server.requests += 1
        self.server.asked.set()
        self.server.answers.wait(30)
        self.send_response(self.server.status)
        for name, value in self.server.headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(self.server.content)))
        self.end_headers()
        self.wfile.write(self.server.content)

    def log_message(self, *args: Any) -> None:
        """Log nothing."""


@pytest.fixture
def server() -> Iterator[KeyServer]:
    with serving(KeyServer()) as server:
        yield server
        server.answers.set()


@pytest.fixture
def clock() -> Clock:
    return Clock()


class TestAServer:
    async def test_rotation(self, server: KeyServer, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
        """If a key id is unknown, the key set is loaded again, at most once in `MIN_INTERVAL`."""
        monkeypatch.setattr(jwks, "PATIENCE", 60.0)
        server.content = key_set(entry(RSA_KEY, kid="1"))
        keys = KeySet(server.url, clock)
        assert await keys.find("1", "RS256") == RSA_KEY.public_key()
        assert await keys.find("1", "RS256")
        assert server.requests == 1
        server.content = key_set(entry(RSA_KEY, kid="1"), entry(OTHER_KEY, kid="2"))
        for _ in range(100):
            # The new key is not known yet. A client that was refused for good would not come back with this key.
            with pytest.raises(KeysUnavailable, match="may have been added"):
                await keys.find("2", "RS256")
        assert server.requests == 1
        clock.now += MIN_INTERVAL + 1
        assert await keys.find("2", "RS256") == OTHER_KEY.public_key()
        assert server.requests == 2
        server.content = key_set(entry(OTHER_KEY, kid="2"))
        clock.now += MAX_AGE + 1
        assert await keys.find("1", "RS256") is None
        assert server.requests == 3

    async def test_a_key_that_a_later_read_has_not_found_does_not_exist(self, server: KeyServer, clock: Clock) -> None:
        server.content = key_set(entry(RSA_KEY, kid="1"))
        keys = KeySet(server.url, clock)
        assert await keys.find("unknown", "RS256") is None, "the first read has decided"
        for key_id in ("2", "3"):
            with pytest.raises(KeysUnavailable):
                await keys.find(key_id, "RS256")
        clock.now += MIN_INTERVAL + 1
        assert await keys.find("2", "RS256") is None
        assert await keys.find("3", "RS256") is None, "the read for another key has decided"
        assert server.requests == 2
        with pytest.raises(KeysUnavailable):
            await keys.find("3", "RS256")

    async def test_unknown_key_ids_are_bounded(
        self, server: KeyServer, clock: Clock, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(jwks, "MAX_UNKNOWN", 10)
        server.content = key_set(entry(RSA_KEY, kid="1"))
        keys = KeySet(server.url, clock)
        await keys.find("1", "RS256")
        for number in range(100):
            with pytest.raises(KeysUnavailable):
                await keys.find(f"x{number}", "RS256")
        assert len(keys._unknown) <= 10

    async def test_clients_that_come_together_wait_for_one_request(self, server: KeyServer, clock: Clock) -> None:
        server.content = key_set(entry(RSA_KEY, kid="1"))
        server.answers.clear()
        keys = KeySet(server.url, clock)
        waiting = [asyncio.ensure_future(keys.find("1", "RS256")) for _ in range(50)]
        # While the clients wait, the event loop and Django's one shared thread can run other code.
        assert await asyncio.to_thread(server.asked.wait, 10)
        assert await SyncToAsync(lambda: 7, thread_sensitive=True)() == 7
        server.answers.set()
        assert await asyncio.gather(*waiting) == [RSA_KEY.public_key()] * 50
        assert server.requests == 1

    @pytest.mark.parametrize("problem", ["status", "junk", "no keys", "too long", "redirect"])
    async def test_problems(self, server: KeyServer, clock: Clock, problem: str, caplog: Any) -> None:
        keys = KeySet(server.url, clock)
        good = server.content = key_set(entry(RSA_KEY, kid="1"))
        match problem:
            case "status":
                server.status = 500
            case "junk":
                server.content = b"junk"
            case "no keys":
                server.content = b"[]"
            case "too long":
                server.content = key_set(entry(RSA_KEY, kid="1"), "x" * jwks.MAX_SIZE)
            case "redirect":
                server.status, server.headers = 302, {"Location": server.url}
        for _ in range(3):
            with pytest.raises(KeysUnavailable) as caught:
                await keys.find("1", "RS256")
            assert is_outage(caught.value)
        assert server.requests == 1
        assert sum("could not be read" in line for line in caplog.messages) == 1
        server.content, server.status = good, 200
        clock.now += MIN_INTERVAL + 1
        assert await keys.find("1", "RS256")

    async def test_known_keys_are_used_while_the_server_fails(self, server: KeyServer, clock: Clock) -> None:
        server.content = key_set(entry(RSA_KEY, kid="1"))
        keys = KeySet(server.url, clock)
        assert await keys.find("1", "RS256")
        server.status = 503
        clock.now += MAX_AGE + 1
        assert await keys.find("1", "RS256") == RSA_KEY.public_key()
        with pytest.raises(KeysUnavailable):
            await keys.find("2", "RS256")

    async def test_a_server_that_does_not_answer(
        self, server: KeyServer, clock: Clock, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(jwks, "TIMEOUT", 0.2)
        server.answers.clear()
        with pytest.raises(KeysUnavailable):
            await KeySet(server.url, clock).find("1", "RS256")

    async def test_no_server(self, server: KeyServer, clock: Clock) -> None:
        keys = KeySet("http://127.0.0.1:1/keys", clock)
        with pytest.raises(KeysUnavailable):
            await keys.find("1", "RS256")

    @pytest.mark.parametrize("url", ["http://ann:SECRET@localhost/keys", "http://127.0.0.1:1/keys?key=SECRET text"])
    async def test_the_log_does_not_have_the_secrets_of_a_url(self, url: str, clock: Clock, caplog: Any) -> None:
        with pytest.raises(KeysUnavailable):
            await KeySet(url, clock).find("1", "RS256")
        assert "could not be read" in caplog.text
        assert "SECRET" not in caplog.text

    async def test_clients_with_known_keys_hardly_wait_for_a_server_that_hangs(
        self, server: KeyServer, clock: Clock, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Servers limit the time of a handshake (daphne to 5 s), and looking up a host name may take long."""
        server.content = key_set(entry(RSA_KEY, kid="1"))
        keys = KeySet(server.url, clock)
        assert await keys.find("1", "RS256")
        monkeypatch.setattr(jwks, "TIMEOUT", 60.0)
        monkeypatch.setattr(jwks, "PATIENCE", 0.1)
        server.answers.clear()
        clock.now += MAX_AGE + 1
        assert await asyncio.wait_for(keys.find("1", "RS256"), 30) == RSA_KEY.public_key()
        # The pending attempt counts as failed, so no client waits for it. The server may have the key "2", so a client
        # with this key is not refused for good.
        monkeypatch.setattr(jwks, "PATIENCE", 60.0)
        assert await asyncio.wait_for(keys.find("1", "RS256"), 30) == RSA_KEY.public_key()
        with pytest.raises(KeysUnavailable):
            await asyncio.wait_for(keys.find("2", "RS256"), 30)


class TestAFile:
    async def test_rotation(self, tmp_path: Path, clock: Clock) -> None:
        file = tmp_path / "keys.json"
        keys = KeySet(str(file), clock)
        with pytest.raises(KeysUnavailable):
            await keys.find("1", "RS256")
        file.write_bytes(key_set(entry(RSA_KEY, kid="1")))
        clock.now += MIN_INTERVAL + 1
        assert await keys.find("1", "RS256")
        file.write_bytes(key_set(entry(OTHER_KEY, kid="2")))
        clock.now += MIN_INTERVAL + 1
        assert await keys.find("2", "RS256") == OTHER_KEY.public_key()
        clock.now += MIN_INTERVAL + 1
        assert await keys.find("1", "RS256") is None

    async def test_which_key_fits(self, tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
        file = tmp_path / "keys.json"
        junk = [None, 1, {}, {"kty": "RSA"}, {"kty": "oct", "k": "c2VjcmV0", "kid": "o"}, {"kty": ["RSA"]}]
        file.write_bytes(
            key_set(
                *junk,
                entry(RSA_KEY, kid="r"),
                entry(OTHER_KEY, kid="ps", alg="PS256"),
                entry(OTHER_KEY, kid="enc", use="enc"),
                entry(EC_KEY, kid="e"),
                entry(ED_KEY),
            )
        )
        keys = KeySet(str(file), clock)
        assert await keys.find("r", "RS256") == await keys.find("r", "PS512") == RSA_KEY.public_key()
        assert await keys.find("ps", "PS256") == OTHER_KEY.public_key()
        assert await keys.find("e", "ES256") == await keys.find(None, "ES256") == EC_KEY.public_key()
        assert await keys.find(None, "EdDSA") == ED_KEY.public_key()
        # With this interval, each look-up reads the file again.
        monkeypatch.setattr(jwks, "MIN_INTERVAL", -1.0)
        for kid, algorithm in [
            ("ps", "RS256"),
            ("r", "ES256"),
            ("e", "RS256"),
            ("o", "HS256"),
            ("r", "HS256"),
            ("enc", "RS256"),
            (None, "PS256"),
        ]:
            assert await keys.find(kid, algorithm) is None


@pytest.mark.parametrize(
    ("algorithm", "key"), [("RS256", RSA_KEY), ("PS384", RSA_KEY), ("ES256", EC_KEY), ("EdDSA", ED_KEY)]
)
async def test_tokens_of_each_kind(settings: Any, server: KeyServer, algorithm: str, key: Any) -> None:
    server.content = key_set(entry(key, kid="1"))
    settings.RELIABLE_CABLE = {"ENGINE": "memory", "JWT_JWKS": server.url, "JWT_ALGORITHMS": [algorithm]}
    verifier = get_verifier()
    token = sign(key, algorithm, {"kid": "1"}, ext={"room": 1}, exp=after(60))
    assert (await verifier.authenticate(token, handshake(token))).identifiers == {"room": 1}
    token = sign("x" * 32, "HS256", {"kid": "1"}, ext={})
    with pytest.raises(InvalidToken, match="algorithm"):
        await verifier.authenticate(token, handshake(token))


async def test_an_expired_token_whose_key_is_gone_has_expired(settings: Any, server: KeyServer) -> None:
    """A client that has slept while the keys were changed gets a new token."""
    server.content = key_set(entry(RSA_KEY, kid="new"))
    options = {"ENGINE": "memory", "JWT_JWKS": server.url, "JWT_ALGORITHMS": ["RS256"], "JWT_LEEWAY": 5}
    settings.RELIABLE_CABLE = options

    async def refusal(kid: str, **claims: Any) -> type[Exception]:
        token = sign(OTHER_KEY, "RS256", {"kid": kid}, **claims)
        with pytest.raises((InvalidToken, KeysUnavailable)) as caught:
            await get_verifier().authenticate(token, handshake(token))
        return caught.type

    assert await refusal("old", exp=after(-60)) is TokenExpired
    settings.RELIABLE_CABLE = dict(options)
    assert await refusal("old", exp=after(60)) is InvalidToken
    assert await refusal("old", exp=after(60)) is KeysUnavailable, "the keys were read a moment ago"
    assert await refusal("old", exp=after(-60)) is TokenExpired
    assert await refusal("old", exp="junk") is KeysUnavailable
    # If the key is known, the signature is checked before the expiry.
    assert issubclass(await refusal("new", exp=after(-60)), InvalidToken)
    assert await refusal("new", exp=after(-60)) is not TokenExpired
    server.status = 500
    settings.RELIABLE_CABLE = dict(options)
    assert await refusal("old", exp=after(-60)) is TokenExpired
