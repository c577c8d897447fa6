"""Deletes the data that tests have stored in Redis."""

from typing import Final

from reliable_cable.conf import CableSettings

from .client import Call
from .clients import client_for
from .scanning import scan_keys

#: The number of keys that a SCAN examines in one call.
KEYS_PER_CALL: Final = 1000


def delete_keys(settings: CableSettings) -> None:
    """Delete all keys that begin with `settings.key_prefix` and a colon, and close the connections of sync code.

    Args:
        settings: the settings. `key_prefix` must not contain the special characters of Redis's patterns, such as `*`.

    Raises:
        StoreError: Redis could not be reached.
    """
    client = client_for(settings)
    for keys in scan_keys(client, f"{settings.key_prefix}:*", KEYS_PER_CALL):
        if keys:
            client.run(*(Call("UNLINK", [key]) for key in keys), idempotent=True)
    client.close()
