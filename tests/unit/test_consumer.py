"""A subclass of `CableConsumer` may use only some names for its identifiers and attributes."""

from __future__ import annotations

from typing import Any

import pytest

from reliable_cable import CableConsumer
from reliable_cable.identity import identifier_names

from .wire import Client


@pytest.fixture(autouse=True)
def _settings(settings: Any) -> None:
    settings.RELIABLE_CABLE = {"ENGINE": "memory", "PING_INTERVAL": 60}


def define(*bases: type, **attributes: Any) -> None:
    """Define a consumer class."""
    type("AppConsumer", (*bases, CableConsumer), attributes)


# If the string `("user")` were accepted, all clients would have the same identity and could restore any session.
@pytest.mark.parametrize("names", ["user", "user,tenant", None, {"user"}, ("user", 1), ("the user",), ("@channel",)])
def test_identified_by_must_be_a_tuple_of_names(names: Any) -> None:
    before = set(identifier_names)
    with pytest.raises(TypeError, match=r"AppConsumer\.identified_by is .*; it must be a tuple of names"):
        define(identified_by=names)
    assert identifier_names == before


@pytest.mark.parametrize("name", ["namespace", "session", "scope", "connect", "disconnect", "identified_by"])
def test_an_attribute_of_the_consumer_cannot_be_an_identifier(name: str) -> None:
    with pytest.raises(TypeError, match=rf"AppConsumer uses '{name}', which is an attribute of CableConsumer"):
        define(identified_by=("user", name))


def test_an_attribute_of_the_class_can_be_an_identifier() -> None:
    try:
        define(identified_by=("user", "tenant"), tenant=None)
    finally:
        identifier_names.discard("tenant")


@pytest.mark.parametrize("name", ["namespace", "session"])
class TestAttributesOfTheConsumer:
    def test_a_subclass_cannot_replace_one(self, name: str) -> None:
        for bases, attributes in [((), {name: "mine"}), ((type("Mixin", (), {name: "mine"}),), {})]:
            with pytest.raises(TypeError, match=rf"AppConsumer uses '{name}', which is an attribute of CableConsumer"):
                define(*bases, **attributes)

    async def test_connect_cannot_set_one(self, name: str) -> None:
        # A namespace that `connect` sets would silently separate the connection from all broadcasts.
        class AppConsumer(CableConsumer):
            async def connect(self) -> None:
                setattr(self, name, "mine")

        with pytest.raises(AttributeError, match=name):
            async with Client(consumer=AppConsumer):
                pass
