"""Redis Cluster and Sentinels with TLS, and users whose rights an ACL limits."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from reliable_cable.conf import CableSettings
from reliable_cable.exceptions import BroadcastError, StoreError
from reliable_cable.stores.streams.base import Published, StreamEvent
from reliable_cable.stores.streams.redis import RedisStreamStore
from tests.stores.conftest import until
from tests.stores.writers import append
from tests.support.certificates import make_certificate
from tests.support.redis import RedisServer, find_tls_binary, tls_options
from tests.support.redis_cluster import SHARDED, RedisCluster
from tests.support.redis_sentinel import SERVICE, Sentinel

pytestmark = pytest.mark.redis

#: The user in REDIS_URL, and the rights that docs/engines.md recommends.
USER = "cable:secret@"
RIGHTS = ["on", ">secret", "+@all", "-@admin", "-@dangerous", "+info"]


@pytest.fixture
def certificate(tmp_path: Path) -> tuple[Path, Path]:
    """The paths of a certificate and its key."""
    binary = find_tls_binary()
    if binary is None or binary.version < SHARDED:
        pytest.skip("no server program on this machine has TLS")
    return make_certificate(tmp_path)


def add_user(server: RedisServer, key_prefix: str) -> None:
    """Let the user of the tests use only the keys and channels of one project."""
    server.cli("ACL", "SETUSER", "cable", *RIGHTS, f"~{key_prefix}:*", f"&{key_prefix}:*")


@contextmanager
def make_store(url: str, key_prefix: str, **options: Any) -> Iterator[RedisStreamStore]:
    store = RedisStreamStore(CableSettings(redis_url=url, key_prefix=key_prefix, redis_options=options))
    try:
        yield store
    finally:
        store.close()


async def check(url: str, key_prefix: str, certificate: Path) -> None:
    """Check that a store works with the certificate and the password, and that both are checked."""
    with make_store(url, key_prefix, ssl_ca_certs=str(certificate)) as store:
        heard: list[StreamEvent] = []
        listener = store.listen(heard.append)
        await listener.subscribe_many(["a", "b", "c"])
        positions = [await append(store, stream, "1") for stream in "abc"]
        await until(lambda: {event.position for event in heard if isinstance(event, Published)} == set(positions))
        assert await asyncio.to_thread(store.position, "a") == positions[0]
        assert await asyncio.to_thread(store.problems) == []
        await listener.close()
        await store.aclose()
    with make_store(url.replace("secret@", "wrong@"), key_prefix, ssl_ca_certs=str(certificate)) as store:
        with pytest.raises(BroadcastError, match="refused the user or the password in REDIS_URL"):
            await append(store, "a", "2")
        await store.aclose()
    with make_store(url, key_prefix) as store:
        with pytest.raises(BroadcastError, match=r"(?i)certificate"):
            await append(store, "a", "2")
        await store.aclose()


async def test_a_cluster(tmp_path: Path, key_prefix: str, certificate: tuple[Path, Path]) -> None:
    binary = find_tls_binary()
    with RedisCluster(tmp_path / "cluster", primaries=2, binary=binary, certificate=certificate) as cluster:
        for node in cluster.nodes:
            add_user(node, key_prefix)
        await check(cluster.url.replace("://", f"://{USER}"), key_prefix, certificate[0])


async def test_sentinels_with_a_password_of_their_own(
    tmp_path: Path, key_prefix: str, certificate: tuple[Path, Path]
) -> None:
    binary = find_tls_binary()
    assert binary is not None
    options, own = tls_options(*certificate), tls_options(*certificate)
    own |= {"tls-replication": "yes", "requirepass": "watching"}
    with RedisServer(tmp_path / "server", binary, options) as server:
        add_user(server, key_prefix)
        port = int(options["tls-port"])
        with Sentinel(tmp_path / "sentinel", binary, port, quorum=1, down_after=60, options=own):
            place = f"127.0.0.1:{own['tls-port']}"
            url = f"rediss+sentinel://{USER}{place}/{SERVICE}?sentinel_password=watching"
            await until(lambda: is_ready(url, key_prefix, certificate[0]))
            await check(url, key_prefix, certificate[0])


def is_ready(url: str, key_prefix: str, certificate: Path) -> bool:
    """Return whether the Sentinels name a primary."""
    with make_store(url, key_prefix, ssl_ca_certs=str(certificate)) as store:
        try:
            store.time()
        except StoreError:
            return False
        return True
