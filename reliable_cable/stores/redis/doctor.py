"""Finds problems of a Redis server or cluster, for the warnings at startup and for `manage.py cable_doctor`."""

from collections import Counter

from .calls import RedisRefused
from .client import BaseClient, Call
from .keys import SLOTS
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
    problems = []
    for server in client.servers():
        found = _find_server_problems(server, cluster=True)
        state = parse_info(server.run(Call("CLUSTER INFO"), idempotent=True)[0])
        if state.get("cluster_state") != "ok" or state.get("cluster_slots_ok") != str(SLOTS):
            found.append(
                f"The cluster is incomplete: its state is {state.get('cluster_state')}, and "
                f"{state.get('cluster_slots_ok')} of {SLOTS} slots can be used. `redis-cli --cluster check` says more."
            )
        problems += [f"{server.place}: {problem}" for problem in found]
    return problems


def describe_cluster(client: BaseClient) -> list[str]:
    """Return sentences about a cluster: its primaries, and a warning if no stream can be used while one is down.

    Raises:
        StoreError: Redis could not be reached.
    """
    server = client.servers()[0]
    slots: Counter[str] = Counter()
    replicas: dict[str, int] = {}
    (ranges,) = server.run(Call("CLUSTER SLOTS"), idempotent=True)
    for first, last, primary, *others in ranges:
        name = f"{primary[0].decode() if primary[0] else 'unknown host'}:{primary[1]}"
        slots[name] += last - first + 1
        replicas[name] = len(others)
    notes = [f"The primary {name} has {count} slots, and {replicas[name]} replicas." for name, count in slots.items()]
    try:
        ((_, required),) = server.run(Call("CONFIG GET", [], ["cluster-require-full-coverage"]), idempotent=True)
    except (RedisRefused, ValueError):  # hosted servers often refuse CONFIG
        return notes
    if required == b"yes":
        notes.append(
            "While a primary is down and no replica has taken its place, no stream can be used "
            "(cluster-require-full-coverage yes). With no, the streams of other primaries can be used."
        )
    return notes


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
