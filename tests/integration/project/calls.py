"""The calls that tests can make inside a server process, or in another process with the same database."""

from __future__ import annotations

import contextlib
import dataclasses
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, make_server

from asgiref.sync import async_to_sync
from channels.layers import get_channel_layer
from django.contrib.auth import get_user_model
from django.contrib.auth.models import Group
from django.contrib.sessions.backends.db import SessionStore
from django.core.wsgi import get_wsgi_application
from django.db import transaction
from django.template import Context

import reliable_cable
from reliable_cable import StreamPosition
from reliable_cable.channel import find_channel
from reliable_cable.consumer import get_hub
from reliable_cable.signals import presence_joined, presence_left
from reliable_cable.stores.engine import get_engine
from reliable_cable.templatetags.reliable_cable import cable_meta_tags
from tests.integration.project import runs, written_runs
from tests.integration.project.gates import gates


def flood(stream: str, count: int, size: int) -> None:
    """Broadcast `count` messages of about `size` bytes, numbered from 1."""
    for number in range(1, count + 1):
        reliable_cable.broadcast(stream, {"n": number, "fill": "x" * size})


def count_up(stream: str, first: int, last: int, writer: str = "") -> None:
    """Broadcast the numbers from `first` to `last`, each with a separate call."""
    for number in range(first, last + 1):
        reliable_cable.broadcast(stream, {"n": number, "writer": writer})


def burst(stream: str, count: int, size: int, how: str) -> None:
    """Broadcast numbered messages as fast as possible: in one `transaction`, as one `batch`, or in a `loop`."""
    items = [(stream, {"n": number, "fill": "x" * size}) for number in range(1, count + 1)]
    if how == "batch":
        reliable_cable.broadcast_batch(items)
        return
    with transaction.atomic() if how == "transaction" else contextlib.nullcontext():
        for name, data in items:
            reliable_cable.broadcast(name, data)


def load_page(stream: str) -> dict[str, str]:
    """Return the values that a page passes to its client: a position, and a signed stream name that contains it."""
    at = reliable_cable.position(stream)
    return {"after": str(at), "signed": reliable_cable.signed_stream_name(stream, at=at)}


class _Undo(Exception):
    """Raised to roll back a transaction."""


def broadcast_in_transaction(stream: str, data: Any, *, commit: bool, **options: Any) -> StreamPosition | None:
    """Broadcast inside a transaction that is then committed or rolled back."""
    position = None
    try:
        with transaction.atomic():
            position = reliable_cable.broadcast(stream, data, **options)
            if not commit:
                raise _Undo
    except _Undo:
        pass
    return position


def commit_broadcasts(stream: str, payloads: Sequence[Any], *, commit: bool, hold: float = 0.0) -> dict[str, Any]:
    """Broadcast several messages inside `atomic()`, between two `on_commit` hooks.

    Args:
        stream: the name of the stream.
        payloads: the payloads of the messages.
        commit: whether the transaction is committed.
        hold: how long, in seconds, to keep the transaction open after the broadcasts.

    Returns:
        `committed` and `hooks`: whether the first and the last hook ran; `error`: the error of `atomic()`, or None.
    """
    ran: list[str] = []
    error = None
    try:
        with transaction.atomic():
            transaction.on_commit(partial(ran.append, "first"))
            for payload in payloads:
                reliable_cable.broadcast(stream, payload)
            transaction.on_commit(partial(ran.append, "last"))
            time.sleep(hold)
            if not commit:
                raise _Undo
    except _Undo:
        pass
    except Exception as raised:
        error = f"{type(raised).__name__}: {raised}"
    return {"committed": "first" in ran, "hooks": "last" in ran, "error": error}


def broadcast_without_await(stream: str) -> None:
    """Call `abroadcast` without `await`, as an application might do by mistake."""
    reliable_cable.abroadcast(stream, 1)  # type: ignore[unused-coroutine]


def broadcast_batch(stream: str, payloads: Sequence[Any]) -> list[dict[str, Any]]:
    """Broadcast several messages in one batch, and return their positions."""
    positions = reliable_cable.broadcast_batch([(stream, payload) for payload in payloads])
    return [dataclasses.asdict(position) for position in positions if position is not None]


def enqueue(task: str, *args: Any, **kwargs: Any) -> None:
    """Send a task (tasks.py) to a Celery worker."""
    from tests.integration.project.celery import app  # imported late, because most processes need no Celery

    app.send_task(f"tests.integration.project.tasks.{task}", args, kwargs)


def enqueue_django(task: str, *args: Any, **kwargs: Any) -> str:
    """Enqueue a task of Django (django_tasks.py), and return its status."""
    from tests.integration.project import django_tasks  # imported late, because it needs Django 6.0

    return str(getattr(django_tasks, task).enqueue(*args, **kwargs).status)


def group_send(group: str, message: Mapping[str, Any]) -> None:
    """Send a message to a group of the default channel layer."""
    async_to_sync(get_channel_layer().group_send)(group, message)


def serve_wsgi() -> int:
    """Start a WSGI server of the project in a thread of this process, and return its port."""

    class Quiet(WSGIRequestHandler):
        def log_message(self, *args: Any) -> None:
            pass

    server = make_server("127.0.0.1", 0, get_wsgi_application(), handler_class=Quiet)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return int(server.server_port)


def open_gate(name: str) -> int:
    """Open a gate, and return how many handlers have reached it."""
    return gates[name].open()


def wait_at_gate(name: str, count: int) -> int:
    """Wait until `count` handlers have reached a gate, and return how many have."""
    return gates[name].wait_for(count)


_signals: list[tuple[str, str, str]] = []


def presence_signals(stream: str) -> list[tuple[str, str]]:
    """Return the types and ids of the presence signals for a stream in this process.

    The first call begins to record the signals.
    """
    presence_joined.connect(_keep, dispatch_uid="kept")
    presence_left.connect(_keep, dispatch_uid="kept")
    return [(type_, id_) for name, type_, id_ in _signals if name == stream]


def _keep(*, signal: Any, stream: str, id: str, **kwargs: Any) -> None:  # noqa: A002 - the signal's argument
    _signals.append((stream, "join" if signal is presence_joined else "leave", id))


def who_is_there(stream: str) -> dict[str, Any]:
    """Return the members of a stream, read from sync code."""
    return dict(reliable_cable.presence_for(stream).info().records or {})


def allow(stream: str) -> None:
    """Create the row that lets clients of `RightsChannel` read a stream."""
    Group.objects.create(name=stream)


def forbid(stream: str) -> None:
    """Delete the row that lets clients of `RightsChannel` read a stream."""
    Group.objects.filter(name=stream).delete()


def page_time() -> int:
    """Render the meta tags of a page, and return the time that they contain."""
    return int(cable_meta_tags(Context()).rpartition('content="')[2].partition('"')[0])


def session_time() -> float:
    """Return the time by the clock of the session store, as this process has measured it."""
    return get_engine().session_clock.now()


def disconnect_user(username: str, *, reconnect: bool = False, commit: bool = True) -> None:
    """Close the connections of a user, inside a transaction that is committed or rolled back."""
    try:
        with transaction.atomic():
            user = get_user_model().objects.get(username=username)
            reliable_cable.disconnect(user=user, reconnect=reconnect)
            if not commit:
                raise _Undo
    except _Undo:
        pass


def change_user(username: str, change: str) -> None:
    """Change a user so that Django sends signals (`deactivate`, `set password`, `delete`) or none (`update …`)."""
    users = get_user_model().objects.filter(username=username)
    user = users.get()
    if change == "deactivate":
        user.is_active = False
        user.save()
    elif change == "set password":
        user.set_password("new")
        user.save()
    elif change == "delete":
        user.delete()
    elif change == "update is_active":
        users.update(is_active=False)
    elif change == "update password":
        users.update(password="new")
    else:
        raise ValueError(change)


def delete_session(key: str) -> None:
    """Delete a login session."""
    SessionStore(key).delete()


def make_token(username: str, ttl: float = 3600) -> str:
    """Return a token for a user, creating the user if necessary."""
    user, _ = get_user_model().objects.get_or_create(username=username)
    return reliable_cable.cable_token(user, ttl)


def user_id(username: str) -> int:
    """Return the primary key of a user."""
    return int(get_user_model().objects.get(username=username).pk)


def revoke(*, username: str = "", channel: str = "", **options: Any) -> None:
    """Revoke the subscriptions of one user or of everybody, to a channel or to the stream in the options."""
    if username:
        options["user"] = get_user_model().objects.get(username=username)
    reliable_cable.revoke(channel=find_channel(channel), **options)


@async_to_sync
async def connections() -> int:
    """Return the number of connections of this server."""
    return len(get_hub().connections)


CALLS: Mapping[str, Callable[..., Any]] = {
    "ag_ui_messages_of": runs.ag_ui_messages_of,
    "abandon_run": written_runs.abandon_run,
    "add_to_run": written_runs.add_to_run,
    "allow": allow,
    "begin_run": written_runs.begin_run,
    "broadcast": reliable_cable.broadcast,
    "broadcast_batch": broadcast_batch,
    "broadcast_in_transaction": broadcast_in_transaction,
    "broadcast_without_await": broadcast_without_await,
    "burst": burst,
    "change_user": change_user,
    "connections": connections,
    "commit_broadcasts": commit_broadcasts,
    "count_up": count_up,
    "delete_run": written_runs.delete_run,
    "delete_session": delete_session,
    "disconnect_user": disconnect_user,
    "enqueue": enqueue,
    "enqueue_django": enqueue_django,
    "end_run": written_runs.end_run,
    "expire_runs": runs.expire_runs,
    "flood": flood,
    "forbid": forbid,
    "forget": reliable_cable.forget,
    "group_send": group_send,
    "is_run_stopped": written_runs.is_run_stopped,
    "load_page": load_page,
    "make_run": written_runs.make_run,
    "make_token": make_token,
    "open_gate": open_gate,
    "page_time": page_time,
    "position": reliable_cable.position,
    "presence_signals": presence_signals,
    "close_run": runs.close_run,
    "messages_of": runs.messages_of,
    "make_chat": runs.make_chat,
    "open_run": runs.open_run,
    "read_run": runs.read_run,
    "requeue_run": written_runs.requeue_run,
    "retry_run": runs.retry_run,
    "revoke": revoke,
    "start_chat_run": runs.start_chat_run,
    "start_run": runs.start_run,
    "stop_run": runs.stop_run,
    "write_to_run": runs.write_to_run,
    "run_rows": runs.run_rows,
    "serve_wsgi": serve_wsgi,
    "session_time": session_time,
    "user_id": user_id,
    "wait_at_gate": wait_at_gate,
    "who_is_there": who_is_there,
}


def perform(request: Mapping[str, Any]) -> dict[str, Any]:
    """Make the call that a request names. Return its result (a position as a dict), or its error as a string."""
    try:
        result = CALLS[request["call"]](*request.get("args", ()), **request.get("kwargs", {}))
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}"}
    return {"result": dataclasses.asdict(result) if isinstance(result, StreamPosition) else result}
