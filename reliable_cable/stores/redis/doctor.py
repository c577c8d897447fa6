"""Finds problems of a Redis server, for the warnings at startup and for `manage.py cable_doctor`."""

from .client import BaseClient, Call
from .lineage import parse_info

#: The oldest version of Redis with `XTRIM … MINID` and exclusive ranges.
MIN_VERSION = (6, 2)


def find_problems(client: BaseClient) -> list[str]:
    """Return the problems of the Redis servers that break guarantees of the stores, as sentences with a remedy.

    Raises:
        StoreError: Redis could not be reached.
    """
    if not client.names.cluster:
        return _find_server_problems(client, cluster=False)
    return [
        f"{server.place}: {problem}"
        for server in client.servers()
        for problem in _find_server_problems(server, cluster=True)
    ]


def _find_server_problems(client: BaseClient, *, cluster: bool) -> list[str]:
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
    if info.get("cluster_enabled") == "1" and not cluster:
        problems.append("Redis is a node of a cluster: set REDIS_CLUSTER to True, or use a single server.")
    return problems
