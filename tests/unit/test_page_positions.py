"""Template tags print the position of a page, which can be parsed and compared with other positions."""

from __future__ import annotations

import json
from typing import Any

import pytest
from django.template import TemplateSyntaxError, engines
from django.test import RequestFactory
from django.utils.functional import SimpleLazyObject
from hypothesis import given
from hypothesis import strategies as st

from reliable_cable import Channel, ChannelError, PagePosition, StreamPosition, abroadcast, aposition
from reliable_cable.protocol.positions import UNKNOWN_POSITION, beginning_of
from reliable_cable.signing import verify_signed_stream

pytestmark = pytest.mark.usefixtures("memory_engine")


def render(source: str, **context: Any) -> str:
    request = RequestFactory().get("/")
    return str(engines["django"].from_string("{% load reliable_cable %}" + source).render(context, request))


class TestTags:
    async def test_they_print_the_position_that_the_view_has_read(self) -> None:
        at = await aposition("room")
        assert render("{% cable_position at %}", at=at) == str(at) == render("{{ at }}", at=at)
        assert verify_signed_stream(render("{% signed_stream_name 'room' at=at %}", at=at)) == ("room", at)
        assert verify_signed_stream(render("{% signed_stream_name 'room' at=none %}", none=None)) == ("room", None)

    @pytest.mark.parametrize("tag", ["{% cable_position at %}", "{% signed_stream_name 'room' at=at %}"])
    @pytest.mark.parametrize("at", ["room", "", 7, StreamPosition("a", 1)])
    def test_they_read_no_position_themselves(self, tag: str, at: Any) -> None:
        with pytest.raises(TemplateSyntaxError, match=r"call position\(stream\) before you read the data of"):
            render(tag, at=at)

    def test_a_variable_that_the_view_has_not_passed_is_an_error(self) -> None:
        with pytest.raises(TemplateSyntaxError, match="not str ''"):
            render("{% cable_position at %}")

    async def test_a_lazy_object_is_an_error(self) -> None:
        at = await aposition("room")
        with pytest.raises(TemplateSyntaxError, match="SimpleLazyObject"):
            render("{% cable_position at %}", at=SimpleLazyObject(lambda: at))


class TestText:
    texts = st.text(st.characters(min_codepoint=33, max_codepoint=126), max_size=40)
    names = st.text(min_size=1, max_size=30)

    @given(texts.filter(lambda epoch: epoch and not epoch.startswith("~")), st.integers(0, 10**15 - 1), names, names)
    def test_a_position_is_read_back_for_its_own_stream_only(
        self, epoch: str, offset: int, name: str, other: str
    ) -> None:
        at = PagePosition(epoch, offset, name)
        found = PagePosition.parse(str(at), name)
        assert found == at
        assert (PagePosition.parse(str(at), other) is None) == (name != other)
        assert (found, hash(found)) == (StreamPosition(epoch, offset), hash(StreamPosition(epoch, offset)))

    @given(st.text(), names)
    def test_the_lineage_is_kept_of_a_stream_that_does_not_exist(self, lineage: str, name: str) -> None:
        text = str(PagePosition("", 0, name, beginning_of(lineage).epoch))
        found = PagePosition.parse(text, name)
        assert found is not None
        assert (found.epoch, found.offset, found.named) == ("", 0, beginning_of(lineage))
        assert len(text) < 40  # the lineage may be long, and is not shown to clients

    json_values = st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
        max_leaves=5,
    )
    near = st.from_regex(r"\A-?0?[0-9]{0,20}\.[0-9a-f]{15,17}\.~?[ -\x80]{0,110}\Z")

    @given(json_values | near)
    def test_other_values_of_a_client_are_no_position(self, value: Any) -> None:
        channel = Channel(None, {"after": json.loads(json.dumps(value))})
        channel.stream_from("room", after=channel.params.get("after"))
        (start,) = channel.reply.streams
        assert start.after == (None if value is None else UNKNOWN_POSITION)  # type: ignore[union-attr]

    async def test_a_handler_that_passes_another_position_is_told(self) -> None:
        channel = Channel(None)
        for wrong in (await aposition("other"), StreamPosition("a", 1)):
            with pytest.raises(ChannelError, match="is not a position that position"):
                channel.stream_from("room", after=wrong)  # type: ignore[arg-type]


async def test_a_position_with_its_stream_equals_that_of_the_broadcast() -> None:
    sent = await abroadcast("room", 1)
    at = await aposition("room")
    assert at == sent
    assert sent == at
    assert {sent: 1}[at] == 1
    assert at.as_dict() == {"epoch": at.epoch, "offset": 1}
    assert at != (at.epoch, 1)
