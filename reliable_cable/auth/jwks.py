"""The public keys that verify tokens of other services: a JSON Web Key Set in a file or at a URL (`JWT_JWKS`)."""

import asyncio
import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from http.client import InvalidURL
from typing import Any, Final
from urllib.request import HTTPRedirectHandler, Request, build_opener

from reliable_cable.client_log import handshake_log
from reliable_cable.concurrency.threads import run_fetch
from reliable_cable.exceptions import StoreError

from .tokens import import_jwt

#: How long, in seconds, keys are used before they are read again, so that removed keys are no longer accepted.
MAX_AGE: Final = 600.0
#: The shortest time, in seconds, between two reads. Clients can send unknown key ids as often as they like.
MIN_INTERVAL: Final = 10.0
#: How long, in seconds, a read may take.
TIMEOUT: Final = 5.0
#: How long, in seconds, a client whose key is known waits for keys that are read again because of their age.
PATIENCE: Final = 1.0
#: The maximum number of bytes of a key set.
MAX_SIZE: Final = 256 * 1024

#: The types of keys by the first letters of the algorithms that use them. The type "oct", a secret, is not among them:
#: otherwise a public key set could contain a secret.
_KEY_TYPES: Final = {"RS": "RSA", "PS": "RSA", "ES": "EC", "Ed": "OKP"}


#: The most unknown key ids that are remembered until the next read.
MAX_UNKNOWN: Final = 1000


class KeysUnavailable(StoreError):
    """A key set cannot be read, or not again so soon, so it is not known whether a token is valid."""


@dataclass(frozen=True, slots=True)
class PublicKey:
    """A key of a key set.

    Attributes:
        id: the key id, or None.
        type: "RSA", "EC" or "OKP".
        algorithm: the only algorithm with which it may be used; None: any one for its type.
        key: the key as an object of the package `cryptography`.
    """

    id: str | None
    type: str
    algorithm: str | None
    key: Any

    def fits(self, algorithm: str) -> bool:
        """Return whether the key may be used with an algorithm."""
        return self.type == _KEY_TYPES.get(algorithm[:2]) and self.algorithm in (None, algorithm)


class KeySet:
    """A key set, which is read in a thread of its own when it is needed.

    Args:
        source: the path of a file, or an http or https URL.
        clock: returns the time in seconds, by any monotonic clock.
    """

    def __init__(self, source: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._source = source
        self._clock = clock
        self._keys: Sequence[PublicKey] = ()
        self._read_at = -math.inf
        #: When the latest read ended, with or without success.
        self._attempted_at = -math.inf
        self._failed = False
        #: The numbers of the latest read that has begun, and of the latest that has succeeded.
        self._begun = self._succeeded = 0
        #: By the hash of a key id and an algorithm: the number of the latest read that had begun when it was first
        #: found to be unknown. Only a later read can tell that there is no such key.
        self._unknown: dict[int, int] = {}

    async def find(self, key_id: str | None, algorithm: str) -> Any:
        """Return the key for a token, or None if there is none. For an unknown key id, the set is read again.

        It is not read twice in `MIN_INTERVAL`. A key may have been added since, so the client has to try again.

        Args:
            key_id: the id of the key. None: the token names none, so the key must be the only one for the algorithm.
            algorithm: the algorithm of the token.

        Raises:
            KeysUnavailable: no such key is known, and the set cannot be read, or not yet again.
        """
        now = self._clock()
        found = self._find(key_id, algorithm)
        unknown, read = hash((key_id, algorithm)), self._begun
        if found is None:
            if len(self._unknown) >= MAX_UNKNOWN:
                self._unknown.clear()
            read = self._unknown.setdefault(unknown, read)
        if (found is None or now - self._read_at > MAX_AGE) and now - self._attempted_at > MIN_INTERVAL:
            try:
                async with asyncio.timeout(TIMEOUT + 1 if found is None else PATIENCE):
                    await run_fetch(self._refresh)
            except TimeoutError:
                # The thread may be looking up the address, which can take long. Others do not wait for it.
                self._failed, self._attempted_at = True, self._clock()
            found = self._find(key_id, algorithm)
        if found is None and self._failed:
            raise KeysUnavailable("the keys of JWT_JWKS cannot be read")
        if found is None and self._succeeded <= read:
            raise KeysUnavailable("its key may have been added to JWT_JWKS since the keys were read")
        self._unknown.pop(unknown, None)
        return found

    def _find(self, key_id: str | None, algorithm: str) -> Any:
        fitting = [each for each in self._keys if each.fits(algorithm) and key_id in (None, each.id)]
        return fitting[0].key if len(fitting) == 1 else None

    def _refresh(self) -> None:
        """Read the set, unless another call has just done so. This runs in a thread, one call after another."""
        if self._clock() - self._attempted_at <= MIN_INTERVAL:
            return
        self._begun += 1
        try:
            self._keys = tuple(_parse(_read(self._source)))
            self._read_at, self._failed, self._succeeded = self._clock(), False, self._begun
        except Exception as error:
            self._failed = True
            # The URL is not logged, because it may have a password. The text of an `InvalidURL` has a part of it.
            handshake_log.warning(
                "The keys of JWT_JWKS could not be read: %s",
                "the URL is not valid, or has a password" if isinstance(error, InvalidURL) else error,
            )
        self._attempted_at = self._clock()


def is_url(source: str) -> bool:
    """Return whether a key set is at a URL. Otherwise it is in a file."""
    return source.startswith(("https://", "http://"))


class _NoRedirects(HTTPRedirectHandler):
    """Follows no redirects, which could lead from https to http."""

    def redirect_request(self, *args: Any, **kwargs: Any) -> None:
        """Refuse a redirect."""


def _read(source: str) -> bytes:
    if not is_url(source):
        with open(source, "rb") as file:
            return _limited(file.read)
    until = time.monotonic() + TIMEOUT
    request = Request(source, headers={"Accept": "application/json"})  # noqa: S310 - `is_url` has checked the scheme
    with build_opener(_NoRedirects).open(request, timeout=TIMEOUT) as response:
        return _limited(response.read1, until)


def _limited(read: Callable[[int], bytes], until: float = math.inf) -> bytes:
    content = b""
    while part := read(MAX_SIZE + 1 - len(content)):
        content += part
        if len(content) > MAX_SIZE:
            raise ValueError(f"it is longer than {MAX_SIZE} bytes")
        if time.monotonic() > until:
            raise TimeoutError(f"it took longer than {TIMEOUT:g} s")
    return content


def _parse(content: bytes) -> Iterator[PublicKey]:
    """Yield the keys that can verify tokens.

    Raises:
        ValueError: the content is not a key set.
    """
    keys = json.loads(content)
    keys = keys.get("keys") if isinstance(keys, dict) else None
    if not isinstance(keys, list):
        raise ValueError("it is not a JSON object with a list of keys")
    jwt = import_jwt()
    for each in keys:
        if not isinstance(each, dict) or each.get("kty") not in _KEY_TYPES.values() or each.get("use") == "enc":
            continue
        try:
            key = jwt.PyJWK(each).key
        except Exception as error:
            # A key of a kind that PyJWT does not know must not make the others unusable.
            handshake_log.warning("A key of JWT_JWKS is left out: %s", error)
            continue
        yield PublicKey(each.get("kid"), each["kty"], each.get("alg"), key)
