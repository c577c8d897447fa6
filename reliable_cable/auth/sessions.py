"""Finds the Django session of a WebSocket, and the user who is logged in to that session."""

from collections.abc import Mapping
from importlib import import_module
from typing import Any

from django.conf import settings
from django.contrib.auth import BACKEND_SESSION_KEY, HASH_SESSION_KEY, SESSION_KEY, get_user_model, load_backend
from django.contrib.sessions.backends.base import SessionBase
from django.http import parse_cookie

from reliable_cable.concurrency.threads import BatchedCalls
from reliable_cable.logins import has_valid_hash


async def get_user(session: SessionBase) -> Any:
    """Return the user who is logged in to a Django session, or an `AnonymousUser`."""
    user = await _users(session) if session.session_key else None
    return anonymous() if user is None else user


def anonymous() -> Any:
    """Return a new `AnonymousUser`."""
    # This import is not at the top of the module, because models cannot be imported before the apps are ready.
    from django.contrib.auth.models import AnonymousUser

    return AnonymousUser()


def open_session(key: str | None) -> Any:
    """Return the Django session with this key, without loading its data. If the key is None, return a new session."""
    return import_module(settings.SESSION_ENGINE).SessionStore(key)


def read_cookies(scope: Mapping[str, Any]) -> dict[str, str]:
    """Return the cookies of a handshake."""
    for name, value in scope["headers"]:
        if name == b"cookie":
            return dict(parse_cookie(value.decode("latin1")))
    return {}


def session_key(cookies: Mapping[str, str]) -> str | None:
    """Return the key of the Django session in a handshake's cookies; None if there is no key, or if it has a NUL."""
    key = cookies.get(settings.SESSION_COOKIE_NAME)
    # A quoted cookie can contain a NUL as "\000". No session key has a NUL, and PostgreSQL refuses a query with a NUL.
    return None if key is None or "\0" in key else key


def _find_user(session: SessionBase) -> Any:
    try:
        user_id = get_user_model()._meta.pk.to_python(session[SESSION_KEY])
        path = session[BACKEND_SESSION_KEY]
    except KeyError:
        return None
    if path not in settings.AUTHENTICATION_BACKENDS:
        return None
    user: Any = load_backend(path).get_user(user_id)
    if user is not None and not has_valid_hash(user, session.get(HASH_SESSION_KEY, "")):
        session.flush()
        return None
    return user


_users = BatchedCalls(_find_user)
