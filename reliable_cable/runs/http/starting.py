"""Finds the runs of a chat, and starts new ones with the class that the setting `RUN_CHATS` names."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from http import HTTPStatus
from typing import Any, Final

from django.contrib.contenttypes.models import ContentType
from django.core.exceptions import ObjectDoesNotExist, PermissionDenied, ValidationError
from django.db import connections, models, router, transaction
from django.http import Http404

from reliable_cable.http.core import Refusal
from reliable_cable.namespaces import current_namespace
from reliable_cable.runs.access import permissions
from reliable_cable.runs.chats import RunChats, chats
from reliable_cable.runs.models import Run, RunQuerySet

from .requests import ChatRequest, is_storable

_NO_CHAT: Final = "There is no such chat."


def start_run(user: Any, asked: ChatRequest) -> str:
    """Start a run for the message in a request. Return the id of the run.

    Raises:
        Refusal: the user has no such chat, the message cannot be answered, or the chat has an active run.
    """
    project = chats()
    using = router.db_for_write(Run)
    run: Run | None = None
    try:
        with transaction.atomic(using=using):
            if connections[using].vendor == "sqlite":
                # SQLite has no row locks. An update takes the write lock, even if it changes no row.
                Run.objects.filter(pk=uuid.UUID(int=0)).update(attempt=1)
            subject = _subject(project, user, asked.chat)
            _refuse_if_active(subject)
            run = _start_about(project, user, subject, asked)
    except Exception:
        # The error may have come from an `on_commit` hook, which should have started the task.
        if run is not None and (stored := Run.objects.filter(pk=run.pk).first()) is not None:
            stored.stop()
        raise
    return str(run.pk)


def _start_about(project: RunChats, user: Any, subject: models.Model, asked: ChatRequest) -> Run:
    try:
        run = project.start(user, subject, asked.message)
    except ValidationError as error:
        raise Refusal(HTTPStatus.BAD_REQUEST, " ".join(error.messages)) from None
    except (ObjectDoesNotExist, PermissionDenied, Http404):
        raise Refusal(HTTPStatus.NOT_FOUND, _NO_CHAT) from None
    type_ = ContentType.objects.get_for_model(subject)
    if not isinstance(run, Run) or (run.subject_type_id, str(run.subject_id)) != (type_.pk, str(subject.pk)):
        raise TypeError(
            f"{type(project).__qualname__}.start() must return a run about its subject: "
            "Run.objects.start(owner=user, subject=subject, …)."
        )
    if run.namespace != current_namespace() or not permissions().may_read(user, run):
        raise TypeError(
            f"{type(project).__qualname__}.start() must return a run that the user may read: with owner=user, or "
            "as RUN_PERMISSIONS allows."
        )
    return run


def _subject(project: RunChats, user: Any, chat: str) -> models.Model:
    """Return the object that a chat is about.

    Raises:
        Refusal: the user has no such chat.
    """
    try:
        if not is_storable(chat) or (project.login_required and not user.is_authenticated):
            raise ObjectDoesNotExist
        return project.subject(user, chat)
    except (ObjectDoesNotExist, PermissionDenied, Http404, ValidationError, ValueError):
        raise Refusal(HTTPStatus.NOT_FOUND, _NO_CHAT) from None


def _refuse_if_active(subject: models.Model) -> None:
    """Lock the subject, so that no other request starts a run at the same time.

    Raises:
        Refusal: the subject has an active run that nobody has stopped.
    """
    list(type(subject)._base_manager.select_for_update().filter(pk=subject.pk).values_list("pk"))
    # A run that is being stopped does not count. The task of such a run may notice the stop late.
    for run in Run.objects.about(subject).active().filter(stop_requested=False, namespace=current_namespace()):
        if not run.end_if_abandoned():
            raise Refusal(
                HTTPStatus.CONFLICT,
                "The chat already has an answer in progress. Wait until it ends, or stop it.",
                run=str(run.pk),
            )


def readable_runs(user: Any, chat: str) -> Iterator[Run]:
    """Yield the runs of a chat that a user may read, the newest first.

    Raises:
        Refusal: the user has no such chat.
    """
    yield from _readable(user, Run.objects.about(_subject(chats(), user, chat)))


def active_runs(user: Any, chat: str) -> Iterator[Run]:
    """Yield the active runs of a chat that a user may read, the newest first.

    Raises:
        Refusal: the user has no such chat.
    """
    yield from _readable(user, Run.objects.about(_subject(chats(), user, chat)).active())


def _readable(user: Any, runs: RunQuerySet) -> Iterator[Run]:
    allowed = permissions()
    # The content of a run may be large. It is loaded when it is used.
    runs = runs.filter(namespace=current_namespace()).defer("input", "text", "parts")
    for run in runs.order_by("-created_at"):
        if allowed.may_read(user, run):
            yield run
