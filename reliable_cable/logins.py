"""The logins by which connections were authenticated, and a check of whether these logins are still valid."""

import hashlib
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from typing import Any, Final, TypeVar

from django.conf import settings
from django.contrib.auth import BACKEND_SESSION_KEY, HASH_SESSION_KEY, SESSION_KEY, get_user_model, load_backend
from django.core.cache import caches
from django.utils import timezone
from django.utils.crypto import constant_time_compare

from .identity import Identity, is_row

T = TypeVar("T")

#: The key of a condition that selects logins by the primary key of the user.
USER: Final = "user"
#: The key of a condition that selects logins by the digest of the Django session's key.
SESSION: Final = "session"


class _UserLogin:
    """Base class of logins, which all have the id of a user."""

    __slots__ = ()

    user_id: str

    def is_of(self, user: Any) -> bool:
        """Return whether `user` is the user of this login."""
        return is_row(user) and user_id(user) == self.user_id


@dataclass(slots=True, eq=False)
class Login(_UserLogin):
    """A login in a Django session, with the values at the time when a connection was authenticated.

    Args:
        session_key: the key of the Django session.
        user_id: the primary key of the user, as the Django session stores it.
        backend: the dotted path of the authentication backend.
        auth_hash: the session hash of the user, which changes with the password.
    """

    session_key: str
    user_id: str
    backend: str
    auth_hash: str
    #: The time of the next check of the login, by the clock of the event loop. Only `hub.login_checks` uses this.
    due: float = 0.0

    @property
    def identity(self) -> Identity:
        """The user's id and the digest of the session key. A `LoginChange` contains one of the two."""
        return {USER: self.user_id, SESSION: session_digest(self.session_key)}


@dataclass(slots=True, eq=False)
class TokenLogin(_UserLogin):
    """A login by a token.

    Args:
        user_id: the primary key of the user, as Django sessions store it.
    """

    user_id: str
    #: The time of the next check of the login, by the clock of the event loop. Only `hub.login_checks` uses this.
    due: float = 0.0

    @property
    def identity(self) -> Identity:
        """The user's id. A `LoginChange` contains this id."""
        return {USER: self.user_id}


#: A login by a Django session or by a token.
AnyLogin = Login | TokenLogin


def user_id(user: Any) -> str:
    """Return the primary key of a user, as Django sessions store it."""
    return str(user._meta.pk.value_to_string(user))


def find_login(scope: Mapping[str, Any]) -> Login | None:
    """Return the login that an authentication middleware has added to the scope; None if it has added none."""
    session = scope.get("session")
    # The middleware has loaded the data into `_session_cache`. Other ways to read the data might query the database,
    # which must not happen on the event loop.
    data = getattr(session, "_session_cache", None)
    if not isinstance(data, Mapping) or SESSION_KEY not in data:
        return None
    key = getattr(session, "session_key", None)
    if not key:
        return None
    return Login(key, str(data[SESSION_KEY]), data.get(BACKEND_SESSION_KEY, ""), data.get(HASH_SESSION_KEY, ""))


def session_digest(session_key: str) -> str:
    """Return a digest of a session key, for messages to other processes. The key itself is a secret."""
    return hashlib.blake2b(session_key.encode(), digest_size=16).hexdigest()


def has_valid_hash(user: Any, auth_hash: str) -> bool:
    """Return whether a user's session hash is valid for `SECRET_KEY` or one of `SECRET_KEY_FALLBACKS`.

    As in Django, every hash is valid if the user model has no `get_session_auth_hash`.
    """
    if not hasattr(user, "get_session_auth_hash"):
        return True
    if not auth_hash:
        return False
    if constant_time_compare(auth_hash, user.get_session_auth_hash()):
        return True
    # If a fallback matches, Django gives the session a new key and hash. This is impossible here, because a WebSocket
    # cannot set a cookie.
    fallbacks = getattr(user, "get_session_auth_fallback_hash", tuple)
    return any(constant_time_compare(auth_hash, fallback) for fallback in fallbacks())


def check_logins(logins: Sequence[AnyLogin]) -> list[bool | Exception]:
    """Return, for each login, whether it is valid, or the error if it could not be checked.

    Sessions and users are looked up in batches if the session engine and the authentication backend allow this, and one
    by one if not.

    Raises:
        Exception: the look-up of a batch failed, and no login was checked.
    """
    by_session = [login for login in logins if isinstance(login, Login)]
    by_token = {login.user_id for login in logins if isinstance(login, TokenLogin)}
    sessions = _find_sessions({login.session_key for login in by_session}) if by_session else {}
    users = _find_users({(login.backend, login.user_id) for login in by_session})
    active = _find_active_users(by_token) if by_token else set()
    return [
        login.user_id in active
        if isinstance(login, TokenLogin)
        else _judge(login, sessions.get(login.session_key), users.get((login.backend, login.user_id)))
        for login in logins
    ]


def _judge(login: Login, session: str | Exception | None, user: Any) -> bool | Exception:
    if session is None or user is None:
        return False
    for error in (session, user):
        if isinstance(error, Exception):
            return error
    if session != login.user_id:
        return False
    return _attempt(partial(has_valid_hash, user, login.auth_hash))


# -- sessions ---------------------------------------------------------------------------------------------------------


def _find_sessions(keys: Collection[str]) -> Mapping[str, str | Exception]:
    """Return the user's id in each unexpired Django session, by the key of the session.

    If a session could not be read, the value is the error. Missing sessions and sessions without a user are left out.
    """
    from django.contrib.sessions.backends import cache, cached_db, db

    store: Any = import_module(settings.SESSION_ENGINE).SessionStore
    if store.load is cache.SessionStore.load:
        return _find_in_cache(store, keys)
    if _reads_from_database(store):
        if store.load is db.SessionStore.load:
            return _find_in_database(store, keys)
        if store.load is cached_db.SessionStore.load:
            try:
                cached = _find_in_cache(store, keys)
            except Exception:  # the session engine itself also queries the database if the cache fails
                cached = {}
            return cached | _find_in_database(store, set(keys) - set(cached))
    found = {key: _attempt(partial(_load, store, key)) for key in keys}
    return {key: user for key, user in found.items() if user is not None}


def _load(store: Any, key: str) -> str | None:
    return _user_in(store(key))


def _user_in(data: Any) -> str | None:
    """Return the user's id in the data of a Django session; None if the session has no user."""
    id_ = data.get(SESSION_KEY)
    return None if id_ is None else str(id_)


def _reads_from_database(store: Any) -> bool:
    from django.contrib.sessions.backends import db

    name = "_get_session_from_db"
    return getattr(store, name, None) is getattr(db.SessionStore, name)


def _find_in_database(store: Any, keys: Collection[str]) -> dict[str, str | Exception]:
    if not keys:
        return {}
    alive = store.get_model_class().objects.filter(session_key__in=keys, expire_date__gt=timezone.now())
    decode = store().decode
    return _with_users((key, decode(data)) for key, data in alive.values_list("session_key", "session_data"))


def _find_in_cache(store: Any, keys: Collection[str]) -> dict[str, str | Exception]:
    prefix = store.cache_key_prefix
    data = caches[settings.SESSION_CACHE_ALIAS].get_many([prefix + key for key in keys])
    return _with_users((key, data.get(prefix + key, {})) for key in keys)


def _with_users(sessions: Iterable[tuple[str, Any]]) -> dict[str, str | Exception]:
    return {key: user for key, data in sessions if (user := _user_in(data)) is not None}


# -- users ------------------------------------------------------------------------------------------------------------


def _find_users(wanted: Iterable[tuple[str, str]]) -> Mapping[tuple[str, str], Any]:
    """Return the user for each pair of an authentication backend's path and a user's id.

    A user that does not exist or may not log in is left out, or the value is None. If a user could not be looked up,
    the value is the error.
    """
    ids: dict[str, list[str]] = {}
    for path, id_ in wanted:
        ids.setdefault(path, []).append(id_)
    return {
        (path, id_): user
        for path in ids
        if path in settings.AUTHENTICATION_BACKENDS
        for id_, user in _find_users_of(load_backend(path), ids[path]).items()
    }


def _find_users_of(backend: Any, ids: Sequence[str]) -> Mapping[str, Any]:
    from django.contrib.auth.backends import ModelBackend

    model = get_user_model()
    to_python = model._meta.pk.to_python
    if type(backend).get_user is not ModelBackend.get_user:
        return {id_: _attempt(partial(backend.get_user, to_python(id_))) for id_ in ids}
    users = model._default_manager.filter(pk__in=[to_python(id_) for id_ in ids])
    # `user_can_authenticate` may fail for one user. The other users must be checked nevertheless.
    return {user_id(user): _attempt(partial(_if_allowed, backend, user)) for user in users}


def is_active(user: Any) -> bool:
    """Return whether a user may log in. As in Django, users without the attribute `is_active` are active."""
    return bool(getattr(user, "is_active", True))


def _find_active_users(ids: Collection[str]) -> set[str]:
    model = get_user_model()
    users = model._default_manager.filter(pk__in=[model._meta.pk.to_python(id_) for id_ in ids])
    return {user_id(user) for user in users if is_active(user)}


def _if_allowed(backend: Any, user: Any) -> Any:
    return user if backend.user_can_authenticate(user) else None


def _attempt(call: Callable[[], T]) -> T | Exception:
    try:
        return call()
    except Exception as error:
        return error
