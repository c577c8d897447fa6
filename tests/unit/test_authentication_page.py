"""The code blocks of docs/authentication.md can be executed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import jwt
import pytest
from django.contrib.auth import get_user_model
from django.template import engines
from django.test import RequestFactory

import reliable_cable
from reliable_cable.auth import InvalidToken, TokenExpired
from reliable_cable.auth.verification import TokenVerifier
from reliable_cable.conf import get_settings
from reliable_cable.identity import identifier_names
from tests.unit.test_docs import BLOCKS


def python_block(page: str, beginning: str) -> str:
    """Return the text of the only Python block of a page that begins with `beginning`."""
    (block,) = [
        each for each in BLOCKS if (each.page, each.language) == (page, "python") and each.text.startswith(beginning)
    ]
    return block.text


def names_in(code: str, **names: Any) -> dict[str, Any]:
    """Run a block, and return the names that it defines."""
    exec(compile(code, "docs", "exec"), names)  # noqa: S102 - the code of the page is what is tested
    return names


@pytest.fixture(autouse=True)
def _own_identifier_names() -> Iterator[None]:
    """Forget the identifiers of the page's consumers, because other tests expect that no consumer has them."""
    before = set(identifier_names)
    yield
    identifier_names.clear()
    identifier_names.update(before)


@pytest.mark.django_db(transaction=True)
class TestAuthentication:
    def test_the_settings_are_valid(self, monkeypatch: pytest.MonkeyPatch, settings: Any) -> None:
        monkeypatch.setenv("CABLE_JWT_SECRET", "x" * 32)
        blocks = [b for b in BLOCKS if b.page == "authentication.md" and "RELIABLE_CABLE = {" in b.text]
        assert len(blocks) == 3
        for block in blocks:
            settings.RELIABLE_CABLE = names_in(block.text)["RELIABLE_CABLE"]
            assert get_settings().reads_tokens
            assert TokenVerifier(get_settings())

    def test_the_asgi_application(self, settings: Any) -> None:
        settings.RELIABLE_CABLE = {"SECRET": "x" * 32}
        assert names_in(python_block("authentication.md", "# asgi.py"))["websocket"]

    def test_the_view_and_the_identifiers(self, settings: Any) -> None:
        settings.RELIABLE_CABLE = {"JWT_SECRET": "x" * 32}
        user = get_user_model().objects.create_user("ann", password="secret")
        request = RequestFactory().get("/token")
        request.user = user
        view = names_in(python_block("authentication.md", "# views.py"))["token"]
        claims = jwt.decode(json.loads(view(request).content)["token"], "x" * 32, algorithms=["HS256"])
        assert json.loads(claims["ext"]) == {"user": f"auth.user:{user.pk}"}
        names = names_in(python_block("authentication.md", "from reliable_cable import CableConsumer, cable_token"))
        token = names["token_for"](user, SimpleNamespace(serial_number="A7"))
        claims = jwt.decode(token, "x" * 32, algorithms=["HS256"])
        assert json.loads(claims["ext"]) == {"user": f"auth.user:{user.pk}", "device": "A7"}

    @pytest.mark.parametrize("claims", [None, {}, {"scope": "mail"}, {"scope": "mail chat"}])
    def test_connect(self, claims: Any) -> None:
        code = python_block("authentication.md", "class ScopedConsumer")
        consumer = names_in(code, CableConsumer=reliable_cable.CableConsumer)["ScopedConsumer"]()
        consumer.token = claims
        consumer.connect()
        assert (consumer._rejection is None) is (claims == {"scope": "mail chat"})

    @pytest.mark.parametrize("key", [None, {"expired": True}, {"revoked": True}, {}])
    def test_the_authenticator(self, key: Any) -> None:
        """An object of the test takes the place of the project's model `ApiKey`."""
        state = {"expired": False, "revoked": False, **(key or {})}
        row = None
        if key is not None:
            row = SimpleNamespace(has_expired=lambda: state["expired"], revoked=state["revoked"], user="ann")
        found = SimpleNamespace(first=lambda: row)
        objects = SimpleNamespace(select_related=lambda name: SimpleNamespace(filter=lambda key: found))
        code = python_block("authentication.md", "from reliable_cable.auth import InvalidToken, TokenExpired")
        code = code.replace("from .models import ApiKey", "")
        authenticator = names_in(code, ApiKey=SimpleNamespace(objects=objects))["api_key"]
        if state["expired"] or state["revoked"]:
            with pytest.raises(TokenExpired if state["expired"] else InvalidToken):
                authenticator("token", {})
        else:
            assert authenticator("token", {}) == (None if key is None else "ann")

    def test_the_template(self, settings: Any) -> None:
        settings.RELIABLE_CABLE = {"ENGINE": "memory", "JWT_SECRET": "x" * 32}
        (block,) = [b for b in BLOCKS if b.page == "authentication.md" and b.language == "html"]
        user = get_user_model().objects.create_user("ann", password="secret")
        page = engines["django"].from_string(block.text).render({"user": user})
        assert '<meta name="cable-token" content="eyJ' in page
