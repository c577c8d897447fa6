"""What about a Redis breaks the promises: for the warning at start-up and for `manage.py cable_doctor`."""

from __future__ import annotations

from .client import Call, RedisClient
from .lineage import parse_info

#: The oldest that has `XTRIM … MINID` and exclusive ranges.
OLDEST = (6, 2)


def find_problems(client: RedisClient) -> list[str]:
    """Return what is wrong with the Redis that a client leads to, each as a sentence with its remedy.

    Raises:
        StoreError: it could not be asked.
    """
    # INFO alone: hosted ones often refuse CONFIG.
    info = parse_info(client.run(Call("INFO", [], ["everything"]), again=True)[0])
    problems = []
    version = info.get("redis_version", "0")
    if tuple(int(part) for part in version.split(".")[:2]) < OLDEST:
        problems.append(f"Redis {version} is too old: use Redis {'.'.join(map(str, OLDEST))} or later, or Valkey.")
    policy = info.get("maxmemory_policy", "noeviction")
    if info.get("maxmemory", "0") != "0" and policy != "noeviction":
        problems.append(
            f"Redis may delete any stream, session or member when its memory is full (maxmemory-policy {policy}): set "
            "maxmemory-policy to noeviction, so that a broadcast is refused instead."
        )
    if "master_replid" not in info:
        problems.append(
            "Redis does not report its master_replid (INFO replication), so a failback to a server that was not "
            "restarted goes unnoticed: run `manage.py cable_doctor --new-epochs` after each failback."
        )
    if info.get("cluster_enabled") == "1":
        problems.append("Redis is a cluster, which is not supported: let REDIS_URL lead to a single Redis or Valkey.")
    return problems
