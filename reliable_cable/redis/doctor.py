"""What about a Redis breaks the promises: for the warning at start-up and for `manage.py cable_doctor`."""

from __future__ import annotations

from .client import Call, RedisClient

#: The oldest that has `XTRIM … MINID` and exclusive ranges.
OLDEST = (6, 2)


def find_problems(client: RedisClient) -> list[str]:
    """Return what is wrong with the Redis that a client leads to, each as a sentence with its remedy.

    Raises:
        StoreError: it could not be asked.
    """
    # INFO alone: hosted ones often refuse CONFIG.
    info = _parse(client.run(Call("INFO", [], ["everything"]), again=True)[0])
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
    if info.get("role") in ("slave", "replica"):
        problems.append("Redis is a replica, which takes no broadcasts: let REDIS_URL lead to the primary.")
    if info.get("cluster_enabled") == "1":
        problems.append("Redis is a cluster, which is not supported: let REDIS_URL lead to a single Redis or Valkey.")
    return problems


def _parse(answer: bytes) -> dict[str, str]:
    lines = (line.partition(":") for line in answer.decode(errors="replace").splitlines() if not line.startswith("#"))
    return {name: value for name, _, value in lines}
