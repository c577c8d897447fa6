"""Loads the public keys that verify tokens from other services: the JSON Web Key Set that `JWT_JWKS` names."""

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

#: How long, in seconds, keys are used before they are loaded again. A removed key is accepted until a later load
#: succeeds.
MAX_AGE: Final = 600.0
#: The minimum time, in seconds, between two attempts to load the keys. It limits how many attempts clients can cause by
#: sending unknown key ids.
MIN_INTERVAL: Final = 10.0
#: How long, in seconds, it may take to load the keys.
TIMEOUT: Final = 5.0
#: How long, in seconds, a client waits while keys are loaded again because of their age. After that, its token is
#: verified with the old key.
PATIENCE: Final = 1.0
#: The maximum size of a key set, in bytes.
MAX_SIZE: Final = 256 * 1024

#: The key type for an algorithm, by the first two letters of the algorithm. The type "oct" is left out, because such a
#: key is a secret, and a key set is public.
_KEY_TYPES: Final = {"RS": "RSA", "PS": "RSA", "ES": "EC", "Ed": "OKP"}


#: The maximum number of unknown key ids that a `KeySet` remembers.
MAX_UNKNOWN: Final = 1000


class KeysUnavailable(StoreError):
    """A token cannot be verified, because its key is not in the loaded set, and the set cannot be loaded again now."""


@dataclass(frozen=True, slots=True)
class PublicKey:
    """A public key from a key set.

    Attributes:
        id: the key id. None means that the key has no id.
        type: "RSA", "EC" or "OKP".
        algorithm: the only algorithm with which the key may be used. None means every algorithm for keys of this type.
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
    """A set of public keys, which a thread loads when a token's key is not in the set, and when the keys are old.

    Args:
        source: the path of a file, or an http or https URL.
        clock: a function that returns the time in seconds, by any monotonic clock.
    """

    def __init__(self, source: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._source = source
        self._clock = clock
        self._keys: Sequence[PublicKey] = ()
        self._read_at = -math.inf
        #: The time at which the latest attempt to load the keys ended, by the clock.
        self._attempted_at = -math.inf
        self._failed = False
        #: The attempts to load the keys are numbered. These are the numbers of the latest attempt that began and of the
        #: latest attempt that succeeded.
        self._begun = self._succeeded = 0
        #: The requested keys that were not found, by the hash of key id and algorithm. The value is the number of the
        #: latest attempt that had begun when the key was first requested. Only a later attempt can show that the set
        #: does not have the key.
        self._unknown: dict[int, int] = {}

    async def find(self, key_id: str | None, algorithm: str) -> Any:
        """Return the key that verifies a token, or None if the set does not have it.

        If the key is not found, the set is loaded again, but not within `MIN_INTERVAL` seconds after the last attempt.
        The key may have been added since the set was last loaded. So None is returned only if the set has been loaded
        since the key was first requested, and does not have the key. Otherwise, `KeysUnavailable` is raised.

        Args:
            key_id: the id of the key. None means that the token names no key. The set must then have exactly one key
                for the algorithm.
            algorithm: the algorithm with which the token was signed.

        Raises:
            KeysUnavailable: the key is not found, and the set cannot be loaded, or was loaded too recently.
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
                # The thread may be resolving the host name, which can take long. Other clients must not wait for the
                # same host, so the attempt counts as failed now.
                self._failed, self._attempted_at = True, self._clock()
            found = self._find(key_id, algorithm)
        if found is None and self._failed:
            raise KeysUnavailable("the keys of JWT_JWKS cannot be read")
        if found is None and self._succeeded <= read:
            raise KeysUnavailable("the key of the token may have been added to JWT_JWKS since the keys were read")
        self._unknown.pop(unknown, None)
        return found

    def _find(self, key_id: str | None, algorithm: str) -> Any:
        fitting = [each for each in self._keys if each.fits(algorithm) and key_id in (None, each.id)]
        return fitting[0].key if len(fitting) == 1 else None

    def _refresh(self) -> None:
        """Load the set, unless the last attempt was at most `MIN_INTERVAL` ago. Calls run one by one, in a thread."""
        if self._clock() - self._attempted_at <= MIN_INTERVAL:
            return
        self._begun += 1
        try:
            self._keys = tuple(_parse(_read(self._source)))
            self._read_at, self._failed, self._succeeded = self._clock(), False, self._begun
        except Exception as error:
            self._failed = True
            # The URL is not logged, because it may contain a password. The text of an `InvalidURL` contains a part of
            # the URL.
            handshake_log.warning(
                "The keys of JWT_JWKS could not be read: %s",
                "the URL is not valid, or has a password" if isinstance(error, InvalidURL) else error,
            )
        self._attempted_at = self._clock()


def is_url(source: str) -> bool:
    """Return whether the source of a key set is a URL. If not, the source is the path of a file."""
    return source.startswith(("https://", "http://"))


class _NoRedirects(HTTPRedirectHandler):
    """A handler that refuses all redirects, because an https URL could redirect to an http URL."""

    def redirect_request(self, *args: Any, **kwargs: Any) -> None:
        """Return None, which refuses the redirect."""


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
            raise ValueError(f"the key set is longer than {MAX_SIZE} bytes")
        if time.monotonic() > until:
            raise TimeoutError(f"the response took longer than {TIMEOUT:g} s")
    return content


def _parse(content: bytes) -> Iterator[PublicKey]:
    """Yield the keys of a key set that can verify tokens.

    Raises:
        ValueError: the content is not a key set.
    """
    keys = json.loads(content)
    keys = keys.get("keys") if isinstance(keys, dict) else None
    if not isinstance(keys, list):
        raise ValueError("the key set is not a JSON object with a list of keys")
    jwt = import_jwt()
    for each in keys:
        if not isinstance(each, dict) or each.get("kty") not in _KEY_TYPES.values() or each.get("use") == "enc":
            continue
        try:
            key = jwt.PyJWK(each).key
        except Exception as error:
            # A key that PyJWT cannot read must not make the other keys unusable.
            handshake_log.warning("A key in JWT_JWKS is ignored: %s", error)
            continue
        yield PublicKey(each.get("kid"), each["kty"], each.get("alg"), key)
