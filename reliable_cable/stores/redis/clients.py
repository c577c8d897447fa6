"""Chooses the Redis client by the settings, and creates it once in each process."""

import os
import threading
import weakref

from reliable_cable.conf import CableSettings

from .client import BaseClient, RedisClient
from .cluster import ClusterClient

_clients: weakref.WeakValueDictionary[tuple[int, int], BaseClient] = weakref.WeakValueDictionary()
_lock = threading.Lock()


def client_for(settings: CableSettings) -> BaseClient:
    """Return the client that the stores of one engine share. A forked child process gets a new client."""
    with _lock:
        # The id of the settings is a safe key, because each client keeps its settings alive. So no other settings can
        # get the same id.
        key = (os.getpid(), id(settings))
        client = _clients.get(key)
        if client is None:
            client = _clients[key] = _new_client(settings)
        return client


def _new_client(settings: CableSettings) -> BaseClient:
    if not settings.uses_cluster:
        return RedisClient(settings)
    return ClusterClient(settings)
