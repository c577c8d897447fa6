"""Deletes the data that tests have stored in Redis."""

from typing import Final

from reliable_cable.conf import CableSettings

from .client import Call, client_for

#: The number of keys that a SCAN examines in one call.
KEYS_PER_CALL: Final = 1000


def delete_keys(settings: CableSettings) -> None:
    """Delete all keys that begin with `settings.key_prefix`, and close the connections of sync code.

    Args:
        settings: the settings. `key_prefix` must not contain the special characters of Redis's patterns, such as `*`.

    Raises:
        StoreError: Redis could not be reached.
    """
    client = client_for(settings)
    cursor = None
    while cursor != 0:
        scan = Call("SCAN", [], [cursor or 0, "MATCH", f"{settings.key_prefix}:*", "COUNT", KEYS_PER_CALL])
        ((cursor, keys),) = client.run(scan, idempotent=True)
        cursor = int(cursor)
        for key in keys:
            client.run(Call("UNLINK", [key.decode()]), idempotent=True)
    client.close()
