"""The model `Run` has complete migrations, finds the runs about an object, and has an admin that stops runs."""

from __future__ import annotations

import pytest
from django.contrib.admin.sites import site
from django.contrib.auth.models import Group, User
from django.core.management import call_command
from django.test import Client

from reliable_cable.runs.models import Run, Status

pytestmark = pytest.mark.django_db(transaction=True)


def test_the_migrations_are_complete() -> None:
    call_command("makemigrations", "reliable_cable_runs", check=True, dry_run=True, verbosity=0)


async def test_the_runs_about_an_object() -> None:
    group, other = await Group.objects.acreate(name="a"), await Group.objects.acreate(name="b")
    run = await Run.objects.astart(subject=group)
    await Run.objects.astart(subject=other)
    assert [found.pk async for found in Run.objects.about(group).active()] == [run.pk]
    await run.astop()
    assert [found.pk async for found in Run.objects.about(group).active()] == []
    assert (await Run.objects.aretry(run.pk)).attempt == 2


def test_the_admin_lists_and_stops_runs(client: Client) -> None:
    client.force_login(User.objects.create_superuser("root"))
    run = Run.objects.start(input={"prompt": "a secret question"})
    url = "/admin/reliable_cable_runs/run/"
    page = client.get(url)
    assert str(run.pk) in page.text
    assert "secret" not in client.get(f"{url}{run.pk}/change/").text
    assert client.get(f"{url}add/").status_code == 403
    client.post(url, {"action": "stop_runs", "_selected_action": [str(run.pk)]})
    run.refresh_from_db()
    assert run.status == Status.STOPPED
    assert site.is_registered(Run)
