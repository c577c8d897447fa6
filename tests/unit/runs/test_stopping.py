"""The query that finds the runs that were stopped."""

from __future__ import annotations

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext

from reliable_cable.runs.models import Run, Status
from reliable_cable.runs.stopping import StopRequests

pytestmark = pytest.mark.django_db


def test_the_runs_that_were_stopped_are_found() -> None:
    runs = [Run.objects.start() for _ in range(3)]
    ids = [run.pk for run in runs]
    Run.objects.update(status=Status.RUNNING)
    requests = StopRequests()
    assert requests.find(ids) == []
    runs[1].stop()
    assert requests.find(ids) == [ids[1]]
    assert requests.find(ids[:1]) == []
    runs[0].stop()
    assert set(requests.find(ids)) == {ids[0], ids[1]}
    Run.objects.filter(pk=ids[1]).update(status=Status.COMPLETED)
    assert requests.find(ids) == [ids[0]]


def test_no_query_is_made_without_runs() -> None:
    with CaptureQueriesContext(
        connection,
    ) as queries:
        assert StopRequests().find([]) == []
    assert len(queries) == 0
