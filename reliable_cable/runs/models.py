"""The database model of runs."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from datetime import timedelta
from typing import Any, ClassVar, Self

from asgiref.sync import sync_to_async
from django.conf import settings
from django.contrib.auth.base_user import AbstractBaseUser
from django.contrib.contenttypes.fields import GenericForeignKey
from django.contrib.contenttypes.models import ContentType
from django.core.exceptions import ValidationError
from django.db import models
from django.db.models.functions import Now

from reliable_cable.broadcasting import broadcast
from reliable_cable.namespaces import current_namespace, use_namespace

from . import events
from .durable_models import DurableStream as DurableStream
from .parts import Content, clean_dict
from .unsaved import complete_content

#: The error message that the user reads if the process of the writer has died.
WRITER_DIED = "The answer was interrupted. Please try again."


class Status(models.TextChoices):
    """The status of the current attempt of a run."""

    QUEUED = "queued"
    RUNNING = "running"
    COMPLETED = "completed"
    STOPPED = "stopped"
    FAILED = "failed"


#: The statuses of an attempt that has not ended.
ACTIVE = (Status.QUEUED, Status.RUNNING)


class RunQuerySet(models.QuerySet["Run"]):
    """A queryset with filters for runs."""

    def about(self, subject: models.Model) -> Self:
        """Return the runs with this subject."""
        type_ = ContentType.objects.get_for_model(subject)
        return self.filter(subject_type=type_, subject_id=str(subject.pk))

    def active(self) -> Self:
        """Return the runs that have not ended."""
        return self.filter(status__in=ACTIVE)

    def abandoned(self) -> Self:
        """Return the runs that are marked as running, but whose writer did not renew its lease in time."""
        return self.filter(status=Status.RUNNING, lease_until__lt=Now())


class RunManager(models.Manager["Run"]):
    """A manager that starts runs, queues them again, and ends the runs whose writer has died."""

    def get_queryset(self) -> RunQuerySet:
        """Return a `RunQuerySet` with the runs of all owners and namespaces."""
        return RunQuerySet(self.model, using=self._db)

    def about(self, subject: models.Model) -> RunQuerySet:
        """Return the runs with this subject."""
        return self.get_queryset().about(subject)

    def active(self) -> RunQuerySet:
        """Return the runs that have not ended."""
        return self.get_queryset().active()

    def start(
        self,
        *,
        owner: AbstractBaseUser | None = None,
        subject: models.Model | None = None,
        input: Mapping[str, Any] | None = None,  # noqa: A002 - the name of the field
    ) -> Run:
        """Create a queued run. A task then writes its answer in a block of `writing`.

        Call this in the transaction that stores the user's input, such as a question. Start the task with
        `transaction.on_commit`.

        Args:
            owner: the user who may read and stop the run.
            subject: the saved object to which the run belongs, such as a conversation.
            input: the input of the task, such as the prompt, as JSON values. Characters that a database cannot store
                (NUL and lone surrogates) are replaced by U+FFFD.

        Raises:
            TypeError, ValueError: the input does not consist of JSON values.
        """
        run = self.model(
            owner_id=None if owner is None else owner.pk,
            input={} if input is None else clean_dict(input),
            namespace=current_namespace(),
        )
        if subject is not None:
            run.subject = subject
        run.save(using=self.db, force_insert=True)
        return run

    async def astart(
        self,
        *,
        owner: AbstractBaseUser | None = None,
        subject: models.Model | None = None,
        input: Mapping[str, Any] | None = None,  # noqa: A002 - as above
    ) -> Run:
        """Async version of `start`."""
        return await sync_to_async(self.start)(owner=owner, subject=subject, input=input)

    def retry(self, run: uuid.UUID | str) -> Run:
        """Queue a run again after its end. The new attempt uses the same stream. Start the task after this call.

        Args:
            run: the id of the run.

        Raises:
            Run.DoesNotExist: there is no such run, or it has not ended.
        """
        ended = self.with_id(run).exclude(status__in=ACTIVE)
        if not ended.update(
            status=Status.QUEUED,
            attempt=models.F("attempt") + 1,
            text="",
            parts=[],
            usage={},
            error="",
            stop_requested=False,
            writer="",
            position="",
            lease_until=None,
            started_at=None,
            ended_at=None,
        ):
            raise self.model.DoesNotExist(f"There is no run {run} that has ended.")
        return self.get(pk=run)

    async def aretry(self, run: uuid.UUID | str) -> Run:
        """Async version of `retry`."""
        return await sync_to_async(self.retry)(run)

    def with_id(self, run: uuid.UUID | str) -> RunQuerySet:
        """Return the run with an id. The queryset is empty if there is none, or if the id is not a UUID."""
        try:
            return self.get_queryset().filter(pk=run)
        except ValidationError:
            return self.get_queryset().none()

    def expire(self) -> list[Run]:
        """End the runs whose writer has died, as `end_if_abandoned` does, and return them.

        A server does the same for the runs that its clients read. Call this from a scheduled task, so that abandoned
        runs without readers end, too.
        """
        return [run for run in self.get_queryset().abandoned() if run.end_if_abandoned()]


class Run(models.Model):
    """An answer that a background task writes. It does not depend on a connection.

    The events of a run are broadcast to its stream. The row contains the whole answer as it was last saved.
    """

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    #: The user who may read and stop the run.
    owner = models.ForeignKey(settings.AUTH_USER_MODEL, on_delete=models.CASCADE, null=True, blank=True)
    subject_type = models.ForeignKey(ContentType, on_delete=models.CASCADE, null=True, blank=True)
    subject_id = models.CharField(max_length=255, blank=True, default="")
    #: The object to which the run belongs.
    subject = GenericForeignKey("subject_type", "subject_id")
    #: The namespace in which the run was started, or "".
    namespace = models.CharField(max_length=100, blank=True, default="", editable=False)
    #: The input of the task, such as the prompt.
    input = models.JSONField(default=dict, blank=True)
    status = models.CharField(max_length=9, choices=Status, default=Status.QUEUED)
    #: The number of the attempt, from 1. Readers drop the answer of former attempts.
    attempt = models.PositiveIntegerField(default=1)
    #: The text of the answer so far.
    text = models.TextField(blank=True, default="")
    #: The parts of the answer so far, except for its text: for example, tool calls (see parts.py).
    parts = models.JSONField(default=list, blank=True)
    #: The usage that the language model has reported, such as numbers of tokens, by name.
    usage = models.JSONField(default=dict, blank=True)
    #: The error message that the user reads if the run has failed.
    error = models.TextField(blank=True, default="")
    stop_requested = models.BooleanField(default=False)
    #: The random id of the writer of the attempt. A writer changes only rows that contain its id.
    writer = models.CharField(max_length=32, blank=True, default="", editable=False)
    #: A position in the stream, as `str(PagePosition)`. The row contains the content of the events up to this position.
    #: It is "" before a task begins the attempt.
    position = models.CharField(max_length=255, blank=True, default="", editable=False)
    #: The end of the lease. The writer renews the lease while it is alive, and counts as dead after this time.
    lease_until = models.DateTimeField(null=True, blank=True, editable=False)
    created_at = models.DateTimeField(auto_now_add=True)
    started_at = models.DateTimeField(null=True, blank=True)
    ended_at = models.DateTimeField(null=True, blank=True)

    objects: ClassVar[RunManager] = RunManager()

    class Meta:
        indexes: ClassVar = [
            models.Index(fields=["subject_type", "subject_id", "status"], name="reliable_cable_run_subject"),
            models.Index(fields=["status", "lease_until"], name="reliable_cable_run_lease"),
        ]

    def __str__(self) -> str:
        return f"{self.pk} ({self.status})"

    @property
    def stream(self) -> str:
        """The name of the stream to which the events of the run are broadcast."""
        return events.stream_of(self.pk)

    @property
    def ended(self) -> bool:
        """Whether the run is completed, stopped or failed. Such a run can be queued again with `Run.objects.retry`."""
        return self.status not in ACTIVE

    # -- end ----------------------------------------------------------------------------------------------------------

    def stop(self) -> bool:
        """Stop the run, even if a task in another process is writing it. The text that has been written so far is kept.

        A queued run is stopped at once. A task that is writing the run is notified within a quarter of a second.

        Returns:
            False if the run had ended before this call.
        """
        queued = Run.objects.filter(pk=self.pk, status=Status.QUEUED)
        if queued.update(status=Status.STOPPED, stop_requested=True, ended_at=Now()):
            self.refresh_from_db()
            self.announce_end()
            return True
        return bool(Run.objects.filter(pk=self.pk, status=Status.RUNNING).update(stop_requested=True))

    async def astop(self) -> bool:
        """Async version of `stop`."""
        return await sync_to_async(self.stop)()

    def end_if_abandoned(self) -> bool:
        """End the run if its writer has died, and tell its readers. The text that they have received is saved.

        The run is stopped if its stop was requested. Otherwise, it fails.

        Returns:
            Whether this call ended the run.

        Raises:
            StoreError: the stream of the run could not be read.
        """
        abandoned = Run.objects.get_queryset().abandoned().filter(pk=self.pk, writer=self.writer)
        run = abandoned.first()
        if run is None:
            return False
        content = run._broadcast_content()
        status, error = (Status.STOPPED, "") if run.stop_requested else (Status.FAILED, WRITER_DIED)
        if not abandoned.filter(stop_requested=run.stop_requested).update(
            status=status,
            error=error,
            text=content.text,
            parts=content.parts,
            ended_at=Now(),
            lease_until=None,
            writer="",  # if the writer was only paused, the run is not its own any more
        ):
            return False
        self.refresh_from_db()
        self.announce_end()
        # If the writer was not dead but paused, it may have broadcast more of the answer before the end was broadcast.
        later = run._broadcast_content()
        if (later.length, len(later.parts)) > (content.length, len(content.parts)):
            ended = Run.objects.filter(pk=self.pk, attempt=run.attempt, status=status, writer="")
            ended.update(text=later.text, parts=later.parts)
            self.refresh_from_db()
        return True

    def _broadcast_content(self) -> Content:
        """Return the saved content of this row, together with the content that was broadcast after the save."""
        with use_namespace(self.namespace):
            return complete_content(self.stream, self.attempt, self.position, self.text, self.parts)

    def announce_end(self) -> None:
        """Broadcast the event with which the attempt ended, unless the stream still keeps an earlier copy of it."""
        with use_namespace(self.namespace):
            broadcast(self.stream, self.end_event(), idempotency_key=f"{self.attempt}:end")

    def end_event(self) -> dict[str, Any]:
        """Return the event with which the attempt ended."""
        if self.status == Status.FAILED:
            return {"event": events.ERROR, "attempt": self.attempt, "message": self.error}
        name = events.STOPPED if self.status == Status.STOPPED else events.COMPLETE
        return {"event": name, "attempt": self.attempt, "usage": self.usage}

    def snapshot(self) -> dict[str, Any]:
        """Return the event that contains the whole answer, as it was last saved."""
        return {
            "event": events.SNAPSHOT,
            "attempt": self.attempt,
            "status": self.status,
            "content": self.text,
            "parts": self.parts,
            "usage": self.usage,
            "error": self.error,
        }


def lease(seconds: float) -> models.expressions.Combinable:
    """Return an expression for the time at which a lease ends, by the clock of the database.

    Args:
        seconds: how long the lease lasts.
    """
    return models.ExpressionWrapper(Now() + timedelta(seconds=seconds), output_field=models.DateTimeField())
