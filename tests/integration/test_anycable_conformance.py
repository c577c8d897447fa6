"""Tests of the conformance suite, through the real anycable-go in front of Django.

Each test of the chosen modules runs twice: anycable-go makes its calls by HTTP and by gRPC. A test that cannot pass is
in `EXCLUDED`, with the reason. A module that does not run is in `LEFT_OUT`. Those in `ONLY_HTTP` run only with HTTP.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, ExitStack
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from tests import conformance
from tests.conformance.conftest import clients
from tests.support.anycable_front import AnyCable, start_anycable
from tests.support.client import Client, Frame, identify, unique
from tests.support.server import ServerPool

__all__ = ["clients"]

#: The conformance tests that run here.
MODULES = [
    import_module(f"{conformance.__name__}.test_{name}")
    for name in ("broken_input", "calls", "handlers", "handshake", "pubsub", "rails", "subscriptions", "whisper")
]

_HISTORY = "anycable-go keeps the history and the sessions. Django's store does not know their positions."
_PINGS = "anycable-go sends the pings, answers none, and checks the pongs by its own options."
_LIMITS = "anycable-go reads the frames, and counts the subscriptions. No setting of Django limits them."
_SUBPROTOCOLS = "anycable-go takes the first subprotocol that it knows, and also accepts clients that offer none."
_PUBSUB = "anycable-go serves signed and public streams itself, by its own options."
_PRESENCE = "anycable-go 1.5 has no presence."
_REPEATS = "anycable-go does not answer a repeated `subscribe`."
_STREAM_IDS = "anycable-go gives all identifiers the name of the stream as their stream id."
_MANY_SERVERS = "Clients are connected to several servers of this package, which share sessions and connections."

#: The tests that do not run here, with the reasons.
EXCLUDED = {
    "test_a_broken_frame_changes_nothing_for_other_subscriptions": "anycable-go closes the connection.",
    "test_a_frame_over_the_limit_is_refused_and_the_connection_stays_open": _LIMITS,
    "test_the_limit_counts_bytes_and_not_characters": _LIMITS,
    "test_a_subscription_beyond_the_limit_is_rejected": _LIMITS,
    "test_too_many_bad_frames_end_the_connection": _LIMITS,
    "test_a_session_that_ended_because_of_bad_frames_is_not_restored": _LIMITS,
    "test_a_flood_of_commands_is_bounded": _LIMITS,
    "test_more_than_a_thousand_subscribes_at_once_are_confirmed": _LIMITS,
    "test_a_language_does_not_reach_a_command_that_was_queued_behind": _PINGS,
    "test_each_call_has_the_tenant_and_the_language_of_its_own_connection": (
        "`connect` sets attributes that `identified_by` does not name, so later calls do not have them (W013)."
    ),
    "test_the_best_subprotocol_in_common_is_chosen": _SUBPROTOCOLS,
    "test_a_client_without_a_subprotocol_in_common_is_refused": _SUBPROTOCOLS,
    "test_a_page_of_another_origin_is_refused": "anycable-go accepts the handshake, and then closes the connection.",
    "test_an_extended_client_is_welcomed_with_a_new_secret_session_id": "Session ids of anycable-go have 126 bits.",
    "test_pings_carry_the_time_and_the_first_ping_is_jittered": _PINGS,
    "test_a_client_can_ask_for_another_ping_interval": _PINGS,
    "test_a_clients_ping_is_answered": _PINGS,
    "test_only_a_client_that_stops_sending_pongs_is_disconnected": _PINGS,
    "test_a_client_that_keeps_sending_pongs_stays_connected": _PINGS,
    "test_a_signed_stream_has_positions_and_history": _HISTORY,
    "test_a_signed_subscription_is_restored": _HISTORY,
    "test_invalid_signatures_are_rejected_and_public_streams_are_off_by_default": _PUBSUB,
    "test_a_public_stream_is_streamed_if_the_setting_allows_it": _PUBSUB,
    "test_the_signed_name_is_used_if_both_names_are_given": _PUBSUB,
    "test_whispers_are_on_for_public_streams_and_opt_in_for_signed_ones": _PUBSUB,
    "test_clients_may_join_presence_on_signed_and_public_streams": _PRESENCE,
    "test_streams_start_and_stop_in_actions": "anycable-go keeps the order of messages only in each stream.",
    "test_a_stream_started_later_is_restored_too": _HISTORY,
    "test_an_excluded_client_does_not_get_the_broadcast_from_the_history_either": _HISTORY,
    "test_transmissions_come_before_the_confirmation_and_history_after_it": _HISTORY,
    "test_the_join_event_of_the_member_itself_follows_the_history": _PRESENCE,
    "test_every_second_repeat_of_a_subscribe_is_confirmed": _REPEATS,
    "test_subscribed_runs_once_if_subscribe_is_repeated_meanwhile": _REPEATS,
    "test_two_identifiers_on_one_stream_each_get_every_message": _STREAM_IDS,
    "test_stream_ids_stay_the_same_on_a_later_connection": _STREAM_IDS,
    "test_the_base_protocol_gets_no_positions": "anycable-go sends positions to all clients. Base clients ignore them.",
    "test_a_base_client_cannot_whisper": "anycable-go accepts whispers of all clients.",
    "test_a_falsy_whisper_is_dropped_in_every_spelling": "anycable-go forwards falsy whispers. Clients drop them.",
    "test_whispers_and_transient_broadcasts_during_a_replay_are_held_back_not_dropped": _HISTORY,
}

#: The modules of conformance tests that do not run here, with the reasons.
LEFT_OUT = {
    "test_clocks": _MANY_SERVERS,
    "test_disconnect": f"{_MANY_SERVERS} test_anycable.py tests disconnects and logouts.",
    "test_history": _HISTORY,
    "test_logins": "Servers of this package check the logins of open connections. Behind anycable-go, they have none.",
    "test_logs": "anycable-go reads the frames of the attack, and writes a log of its own.",
    "test_pages": _HISTORY,
    "test_presence": _PRESENCE,
    "test_presence_processes": _PRESENCE,
    "test_processes": "It compares the offsets of Django's store. test_broadcast_adapters.py tests other processes.",
    "test_redis_cluster": "Behind anycable-go, Django stores no streams and sessions in Redis.",
    "test_redis_faults": "Behind anycable-go, Django stores no streams and sessions in Redis.",
    "test_restore": "anycable-go restores sessions without a call, so that nothing is checked again.",
    "test_revoke": "Behind anycable-go, revoke() raises NotSupported.",
    "test_shutdown": "The server that stops has no connections to close. test_anycable.py tests the stop of cable_rpc.",
    "test_slow_clients": "anycable-go has the unsent frames of clients, and limits them itself.",
    "test_storm": _HISTORY,
    "test_takeover": _MANY_SERVERS,
}

#: The tests that run only with calls by HTTP. Their handlers wait at gates in the server's process, and with gRPC, the
#: handlers run in another process.
ONLY_HTTP = {
    "test_the_answer_to_a_call_of_a_lost_connection_is_not_sent_to_the_next_one",
    "test_a_slow_subscribe_delays_no_other_connection",
    "test_commands_of_one_connection_are_handled_in_their_order",
    "test_handlers_of_many_connections_run_in_parallel",
    "test_an_unsubscribe_ends_a_subscribe_that_is_pending",
}

for _module in MODULES:
    for _name, _test in list(vars(_module).items()):
        if _name.startswith("test_") and _name not in EXCLUDED:
            globals()[_name] = _test

Connect = Callable[..., Awaitable[Client]]

pytestmark = pytest.mark.anycable


class AnyCableClient(Client):
    """A client of anycable-go."""

    async def barrier(self) -> list[Frame]:
        """Wait until all earlier commands have been handled. Return the unread messages that have arrived by then.

        anycable-go ignores the command of `Client.barrier`. So this method subscribes to a channel without streams.
        """
        identifier = identify("EchoChannel", barrier=unique("barrier"))
        await self.send("subscribe", identifier)
        return (await self.until({"type": "confirm_subscription", "identifier": identifier}))[:-1]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run each test that uses `rpc` with both protocols, or with HTTP only."""
    if "rpc" in metafunc.fixturenames:
        protocols = ["http"] if metafunc.function.__name__ in ONLY_HTTP else ["http", "grpc"]
        metafunc.parametrize("rpc", protocols, indirect=True, scope="module")


@pytest.fixture(scope="module")
def rpc(request: pytest.FixtureRequest) -> str:
    """The protocol of the calls of anycable-go to Django."""
    return str(request.param)


@pytest.fixture(scope="module")
def server(servers: ServerPool, rpc: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[AnyCable]:
    """anycable-go in front of a server of the project."""
    with ExitStack() as stack:
        yield start_anycable(stack, servers, tmp_path_factory.mktemp("anycable"), rpc)


def test_each_exclusion_names_a_test() -> None:
    assert (EXCLUDED.keys() | ONLY_HTTP) - {name for module in MODULES for name in vars(module)} == set()
    assert EXCLUDED.keys() & ONLY_HTTP == set()


def test_each_module_runs_or_is_left_out_for_a_reason() -> None:
    found = sorted(path.stem for path in Path(conformance.__file__).parent.glob("test_*.py"))
    run = [module.__name__.rpartition(".")[2] for module in MODULES]
    assert sorted([*run, *LEFT_OUT]) == found


@pytest.fixture
def connect(server: AnyCable, clients: AsyncExitStack) -> Connect:
    """Return a function that connects a client to anycable-go. It takes the options of `Client`."""

    async def connect(**options: Any) -> Client:
        return await clients.enter_async_context(AnyCableClient(server.url, **options))

    return connect
