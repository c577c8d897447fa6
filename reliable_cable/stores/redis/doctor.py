"""Finds problems of a Redis server, for the warnings at startup and for `manage.py cable_doctor`."""

from .client import Call, RedisClient
from .lineage import parse_info

#: The oldest version of Redis with `XTRIM … MINID` and exclusive ranges.
MIN_VERSION = (6, 2)


def find_problems(client: RedisClient) -> list[str]:
    """Return the problems of the Redis server that break guarantees of the stores, as sentences with a remedy.

    Raises:
        StoreError: Redis could not be reached.
    """
    # The configuration is read with INFO, because hosted servers often refuse CONFIG.
    info = parse_info(client.run(Call("INFO", [], ["everything"]), idempotent=True)[0])
    problems = []
    version = info.get("redis_version", "0")
    if tuple(int(part) for part in version.split(".")[:2]) < MIN_VERSION:
        problems.append(f"Redis {version} is too old: use Redis {'.'.join(map(str, MIN_VERSION))} or later, or Valkey.")
    policy = info.get("maxmemory_policy", "noeviction")
    if info.get("maxmemory", "0") != "0" and policy != "noeviction":
        problems.append(
            f"Redis may delete streams, sessions and members when its memory is full (maxmemory-policy {policy}): set "
            "maxmemory-policy to noeviction, so that Redis refuses new messages instead."
        )
    if "master_replid" not in info:
        problems.append(
            "Redis does not report its master_replid (INFO replication), so a failback to a server that was not "
            "restarted cannot be detected: run `manage.py cable_doctor --new-epochs` after each failback."
        )
    if info.get("cluster_enabled") == "1":
        problems.append("Redis is a cluster, which is not supported: set REDIS_URL to a single Redis or Valkey server.")
    return problems
