"""Servers for tests: each is started or required only if a test has its marker (`postgres`, `redis`, `nginx`)."""

from __future__ import annotations

import gc
import os
from collections.abc import Generator, Iterator
from typing import Any
from zlib import crc32

import hypothesis
import pytest
from django.contrib.contenttypes.management import create_contenttypes
from django.core.management import call_command
from django.db import connections
from django.db.models.signals import post_migrate
from pytest_django import DjangoDbBlocker
from xdist.scheduler import WorkStealingScheduling

from reliable_cable.concurrency.django_thread import close_shared_connections
from reliable_cable.concurrency.threads import end_threads
from tests.support.anycable import BUILD_PATIENCE, has_anycable, must_be_built
from tests.support.examples import FEW, examples
from tests.support.fixtures import key_prefix, redis_pool, redis_server, redis_url
from tests.support.nats import find_nats
from tests.support.nginx import find_nginx
from tests.support.pgbouncer import find_pgbouncer
from tests.support.postgres import find_postgres, running_postgres
from tests.support.redis import CLUSTER, find_binaries

# With the support for forks, grpcio runs code of its own in each program that is started after a fork, such as nginx.
os.environ["GRPC_ENABLE_FORK_SUPPORT"] = "0"

__all__ = ["key_prefix", "redis_pool", "redis_server", "redis_url"]

#: Whether to fail tests whose server program is missing, instead of skipping them. `.ci/run` sets this.
REQUIRE = os.environ.get("CABLE_REQUIRE") == "1"

# CI repeats the same examples of property tests, so that the result of a commit does not depend on chance. Elsewhere,
# each run tries other examples.
# A busy machine may be slow to generate an example, and to run it.
hypothesis.settings.register_profile(
    "cable",
    derandomize=REQUIRE,
    max_examples=examples(100),
    deadline=None,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("cable")


@pytest.hookimpl(optionalhook=True)  # by pytest-xdist
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> WorkStealingScheduling | None:
    """Let a process that has finished its tests take some from another one, because tests of one folder can be long."""
    return WorkStealingScheduling(config, log) if config.option.dist == "load" else None


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Disable the garbage collector while tests are collected, because they stay in memory until the end.

    Otherwise, it takes a quarter of the CPU time until the first test.
    """
    gc.disable()
    try:
        return (yield)
    finally:
        gc.enable()


#: The combinations of server and engine that are tested by default. On other combinations, slow tests run only if `-m`
#: says so.
COMBINATIONS = {("daphne", "database"), ("uvicorn", "redis")}
#: The modules of `tests/conformance` whose tests also run on a Redis Cluster.
CLUSTER_MODULES = {"test_processes.py", "test_history.py", "test_revoke.py"}


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark the tests on combinations that are not in `COMBINATIONS`, and deselect slow tests there.

    Slow tests run there if the `-m` expression contains `slow`. Runs that repeat tests (`CABLE_FEW`) deselect more.
    Tests that may have to build anycable-go get more time.
    """
    if must_be_built():
        for item in items:
            if item.get_closest_marker("anycable"):
                item.add_marker(pytest.mark.timeout(BUILD_PATIENCE))
    others = [item for item in items if not _is_chosen(item)]
    for item in others:
        item.add_marker("other_combination")
    slow = {item for item in others if item.get_closest_marker("slow")}
    left_out = {item for item in others if FEW and _is_repeated(item)}
    left_out |= {item for item in others if _is_on_cluster(item)} - {item for item in others if _needs_cluster(item)}
    if "slow" not in config.option.markexpr:
        left_out |= slow
    if left_out:
        config.hook.pytest_deselected(items=list(left_out))
        items[:] = [item for item in items if item not in left_out]


def _is_chosen(item: pytest.Item) -> bool:
    callspec = getattr(item, "callspec", None)  # only parametrized tests have it
    params = {} if callspec is None else callspec.params
    return not {"kind", "engine"} <= params.keys() or (params["kind"], params["engine"]) in COMBINATIONS


def _is_on_cluster(item: pytest.Item) -> bool:
    return isinstance(item, pytest.Function) and item.callspec.params["engine"] == CLUSTER


def _needs_cluster(item: pytest.Item) -> bool:
    """Return whether a test runs on a Redis Cluster: only on uvicorn, and only in `CLUSTER_MODULES`, to save time."""
    assert isinstance(item, pytest.Function)
    return item.path.name in CLUSTER_MODULES and item.callspec.params["kind"] == "uvicorn"


def _is_repeated(item: pytest.Item) -> bool:
    """Return whether runs with `CABLE_FEW` leave out a test on a combination that is not in `COMBINATIONS`."""
    if _is_on_cluster(item):
        return False
    # There are two such combinations. Each test runs on only one of them.
    kind = ("daphne", "uvicorn")[crc32(item.nodeid.partition("[")[0].encode()) % 2]
    return isinstance(item, pytest.Function) and item.callspec.params["kind"] == kind


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip or fail tests that need a server whose program is missing."""
    if item.get_closest_marker("postgres") and find_postgres() is None:
        (pytest.fail if REQUIRE else pytest.skip)("no PostgreSQL server (initdb, pg_ctl) on this machine")
    if item.get_closest_marker("redis") and not find_binaries():
        (pytest.fail if REQUIRE else pytest.skip)("no Redis or Valkey server on this machine")
    if item.get_closest_marker("anycable") and not has_anycable():
        (pytest.fail if REQUIRE else pytest.skip)("no anycable-go on this machine, and no Go to build it")
    if item.get_closest_marker("nats") and find_nats() is None:
        (pytest.fail if REQUIRE else pytest.skip)("no NATS server on this machine")
    if item.get_closest_marker("pgbouncer") and find_pgbouncer() is None:
        (pytest.fail if REQUIRE else pytest.skip)("no PgBouncer on this machine")
    if item.get_closest_marker("nginx") and find_nginx() is None:
        (pytest.fail if REQUIRE else pytest.skip)("no nginx on this machine")


@pytest.fixture(autouse=True)
def ended_threads() -> Iterator[None]:
    """End the threads of handlers and stores after each test, because their connections would keep databases in use.

    The thread of Django's ORM calls does not end, but loses its connections. Otherwise, handlers in this thread would
    check them in a later test, which may have no access to a database.
    """
    yield
    end_threads(30)
    close_shared_connections(30)


@pytest.fixture(autouse=True)
def _whole_handshake_log() -> None:
    """Begin a new interval of the handshake log, so that the limit for its lines applies to each test on its own."""
    from reliable_cable.client_log import handshake_log

    handshake_log.report(ended=True)


@pytest.fixture(autouse=True)
def _no_cached_content_types() -> None:
    """Forget the content types of earlier tests, whose rows are gone."""
    from django.contrib.contenttypes.models import ContentType

    ContentType.objects.clear_cache()


@pytest.fixture(scope="session")
def django_db_modify_db_settings(
    request: pytest.FixtureRequest, django_db_modify_db_settings_parallel_suffix: None
) -> Iterator[None]:
    """Start PostgreSQL before Django creates its test databases, if a collected test needs it."""
    binaries = find_postgres()
    if binaries and any(item.get_closest_marker("postgres") for item in request.session.items):
        with running_postgres(binaries) as host:
            connections["postgres"].settings_dict["HOST"] = host
            yield
        return
    # Without PostgreSQL, tests that request all databases get only SQLite.
    connections["postgres"].close()
    del connections["postgres"]
    connections.settings.pop("postgres")
    yield


@pytest.fixture(scope="session")
def django_db_setup(django_db_setup: None, django_db_blocker: DjangoDbBlocker) -> None:
    """Keep the tables of permissions and of content types empty between tests.

    Django fills them again after each test that commits, because it has emptied all tables. This takes most of the CPU
    time of such a test. No test reads permissions, and content types are created when they are needed.
    """
    post_migrate.disconnect(create_contenttypes)
    post_migrate.disconnect(dispatch_uid="django.contrib.auth.management.create_permissions")
    with django_db_blocker.unblock():
        for alias in connections:
            call_command("flush", database=alias, interactive=False, inhibit_post_migrate=True, verbosity=0)
