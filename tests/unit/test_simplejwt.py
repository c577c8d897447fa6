"""The authenticator accepts tokens of djangorestframework-simplejwt, which is installed for these tests."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from rest_framework_simplejwt.models import TokenUser
from rest_framework_simplejwt.tokens import AccessToken, RefreshToken

from reliable_cable import cable_token
from reliable_cable.auth import InvalidToken, TokenExpired
from reliable_cable.auth.verification import TokenAuthentication, get_verifier
from reliable_cable.exceptions import InvalidIdentifier
from tests.unit.token_clients import TokenConsumer, make_client
from tests.unit.tokens import SECRET, handshake
from tests.unit.wire import connection_of

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture(autouse=True)
def _settings(settings: Any) -> None:
    # The package signs with the value that SECRET_KEY had when the package was imported.
    settings.RELIABLE_CABLE = {
        "ENGINE": "memory",
        "PING_INTERVAL": 60,
        "JWT_SECRET": SECRET,
        "AUTHENTICATORS": ["reliable_cable.auth.authenticators.simplejwt"],
    }


def stateless(token: str, scope: Any) -> TokenUser:
    """An authenticator of a project whose users are not in its database."""
    return TokenUser(AccessToken(token))  # type: ignore[arg-type]


async def verify(token: Any) -> TokenAuthentication:
    return await get_verifier().authenticate(str(token), handshake(str(token)))


@pytest.mark.filterwarnings("ignore::jwt.InsecureKeyLengthWarning")
class TestSimpleJwt:
    async def test_an_access_token(self, user: Any) -> None:
        token = AccessToken.for_user(user)
        found = await verify(token)
        assert found.user == user
        assert found.claims["token_type"] == "access"
        assert found.expires_at == token["exp"] + 5
        assert found.login is not None

    async def test_an_expired_token(self, user: Any) -> None:
        token = AccessToken.for_user(user)
        token.set_exp(lifetime=timedelta(seconds=-30))
        with pytest.raises(TokenExpired):
            await verify(token)

    async def test_tokens_of_another_type(self, user: Any) -> None:
        with pytest.raises(InvalidToken, match="is not a token of the type access"):
            await verify(RefreshToken.for_user(user))

    async def test_users_who_may_not_log_in(self, user: Any) -> None:
        token = AccessToken.for_user(user)
        user.is_active = False
        await user.asave()
        with pytest.raises(InvalidToken, match="its user may not log in"):
            await verify(token)
        await user.adelete()
        with pytest.raises(InvalidToken, match="its user may not log in"):
            await verify(token)

    async def test_tokens_of_this_package_are_accepted_beside(self, user: Any) -> None:
        assert (await verify(cable_token(user))).user == user
        with pytest.raises(InvalidToken, match="is not a JSON Web Token"):
            await verify("junk")

    async def test_a_user_who_is_not_in_the_database(self, settings: Any, user: Any) -> None:
        """An unknown attribute of a `TokenUser` is None instead of an error."""
        settings.RELIABLE_CABLE = {**settings.RELIABLE_CABLE, "AUTHENTICATORS": [f"{__name__}.stateless"]}
        async with make_client(str(AccessToken.for_user(user))) as client:
            assert isinstance(TokenConsumer.seen[0], TokenUser)
            connection = connection_of(client)
            assert connection.identity["user"] == f"TokenUser:TokenUser {user.pk}"
            assert connection.login is None
        with pytest.raises(InvalidIdentifier, match="it must be a user object"):
            cable_token(TokenConsumer.seen[0])
