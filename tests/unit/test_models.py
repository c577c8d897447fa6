"""The rows of the models have readable names, for example in the admin."""

from __future__ import annotations

import pytest
from django.db.models import Model

from reliable_cable import models


@pytest.mark.parametrize(
    ("row", "name"),
    [
        (models.Stream(name="news"), "news"),
        (models.Lineage(name="primary"), "primary"),
        (models.StreamEntry(stream_id=1, offset=2), "1@2"),
        (models.OutboxEntry(name="news", pk=3), "news#3"),
        (models.TransientEntry(name="news", pk=4), "news~4"),
        (models.Session(sid="abc"), "abc"),
        (models.SessionPart(sid="abc", number=5), "abc#5"),
        (models.PresenceStream(name="news"), "news"),
        (models.PresenceSession(member='"ann"', stream_id=6), '"ann"@6'),
        (models.PresenceEntry(stream_id=6, number=7), "6@7"),
        (models.PresenceSweep(at=1.5), "1.500"),
        (models.Revocation(condition="user:1"), "user:1"),
    ],
)
def test_names(row: Model, name: str) -> None:
    assert str(row) == name
