"""An authenticator of a project decides who may connect. A result that is neither a user nor None raises an error."""

from __future__ import annotations

from typing import Any
from urllib.parse import unquote

import pytest
from django.contrib.auth import get_user_model
from django.core.exceptions import ImproperlyConfigured

from reliable_cable import cable_token
from reliable_cable.auth import CableAuthMiddlewareStack, InvalidToken, TokenAuthMiddleware, TokenExpired
from tests.unit.token_clients import EXPIRED, REFUSED, TokenConsumer, first_frame, make_client
from tests.unit.tokens import after, sign
from tests.unit.wire import connection_of

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("token_settings")]

User = get_user_model()


#: The users whom `authenticate` finds, by their tokens.
known: dict[str, Any] = {}


def authenticate(token: str, scope: Any) -> Any:
    """An authenticator of a project."""
    assert scope["type"] == "websocket"
    if token == "expired":
        raise TokenExpired
    if token == "banned":
        raise InvalidToken("is banned")
    return known.get(token)


async def coroutine(token: str, scope: Any) -> Any:
    """Cannot be an authenticator, because it is async."""


class Guest:
    """A user object that is not a database row."""

    def __str__(self) -> str:
        return "guest"


class Promise:
    """An awaitable, which an authenticator must not return."""

    def __await__(self) -> Any:
        """Resolve to None, like a coroutine that finds no user."""
        yield None


class TestAuthenticators:
    @pytest.fixture(autouse=True)
    def _authenticator(self, token_settings: None, settings: Any) -> Any:
        settings.RELIABLE_CABLE = {**settings.RELIABLE_CABLE, "AUTHENTICATORS": [f"{__name__}.authenticate"]}
        known.clear()

    async def test_opaque_tokens(self, user: Any) -> None:
        known["opaque"] = user
        async with make_client("opaque") as client:
            assert TokenConsumer.seen == (user, {}, None)
            assert connection_of(client).login is not None

    async def test_tokens_that_no_authenticator_knows(self, user: Any) -> None:
        async with make_client(cable_token(user)):
            assert TokenConsumer.seen[0] == user
        assert await first_frame(make_client("unknown")) == REFUSED

    async def test_refused_tokens(self, user: Any) -> None:
        assert await first_frame(make_client("banned")) == REFUSED
        assert await first_frame(make_client("expired")) == EXPIRED
        user.is_active = False
        known["inactive"] = user
        assert await first_frame(make_client("inactive")) == REFUSED

    async def test_the_connection_ends_with_a_token_that_is_a_jwt(self, user: Any) -> None:
        known[token := sign("k" * 32, exp=after(3))] = user
        async with make_client(token) as client:
            assert TokenConsumer.seen[1]["exp"]
            assert await client.receive() == EXPIRED

    async def test_a_user_without_a_row_is_not_looked_up(self) -> None:
        known["guest"] = Guest()
        async with make_client("guest") as client:
            assert connection_of(client).login is None

    @pytest.mark.parametrize("result", [False, True, "", 7, Promise(), [], User(username="unsaved"), object()])
    async def test_a_result_that_is_no_user_lets_nobody_in(self, result: Any) -> None:
        """The identity would be the string of the result, which may have a memory address that is used again later."""
        known["token"] = result
        with pytest.raises(TypeError, match="it must return a user or None"):
            await make_client("token").communicator.connect()
        assert TokenConsumer.seen is None

    async def test_characters_that_no_token_has_do_not_reach_authenticators(self, user: Any) -> None:
        """PostgreSQL refuses a query with a NUL. Everybody could cause such an error."""
        for token in ("a%00b", "%C3%A9", "a%0Ab", "a%7F"):
            known[unquote(token)] = user
            assert await first_frame(make_client(token)) == REFUSED

    @pytest.mark.parametrize("path", ["nowhere.authenticate", f"{__name__}.coroutine", f"{__name__}.known"])
    def test_a_wrong_path_is_an_error_at_the_start(self, settings: Any, path: str) -> None:
        settings.RELIABLE_CABLE = {"ENGINE": "memory", "AUTHENTICATORS": [path], "PING_INTERVAL": 60}
        for stack in (CableAuthMiddlewareStack, TokenAuthMiddleware):
            with pytest.raises(ImproperlyConfigured, match="AUTHENTICATORS"):
                stack(TokenConsumer.as_asgi())
