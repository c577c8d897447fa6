"""`DurableStreams`, with which a project allows its users to create, read and write durable streams."""

from __future__ import annotations

from typing import Any, ClassVar

from django.contrib.auth.base_user import AbstractBaseUser
from django.contrib.auth.models import AnonymousUser

from reliable_cable.conf import get_settings
from reliable_cable.runs.durable_models import DurableStream
from reliable_cable.runs.loading import load_class


class DurableStreams:
    """Decides who may create, read and write durable streams. This class lets nobody create any.

    Subclass it, and set `RUN_DURABLE_STREAMS` to the dotted path of the subclass. The methods run in a thread, and may
    query the database.
    """

    #: Whether users must be logged in. If so, the methods are not called for anonymous users.
    login_required: ClassVar[bool] = True
    #: The maximum number of streams of one owner. All streams without an owner count together.
    max_streams: ClassVar[int] = 1000
    #: How long, in seconds, a request with `live=long-poll` waits for new data.
    long_poll_time: ClassVar[float] = 20.0
    #: How long, in seconds, a response with `live=sse` lasts. The client then continues with another request.
    sse_time: ClassVar[float] = 60.0

    def may_create(self, user: AbstractBaseUser | AnonymousUser, name: str) -> bool:
        """Return whether a user may create a stream.

        Args:
            user: the user.
            name: the name of the stream, which is the end of the path in the URL.
        """
        return False

    def may_read(self, user: AbstractBaseUser | AnonymousUser, stream: DurableStream) -> bool:
        """Return whether a user may read a stream. By default, only its owner may."""
        return stream.owner_id is not None and user.is_authenticated and stream.owner_id == user.pk

    def may_write(self, user: AbstractBaseUser | AnonymousUser, stream: DurableStream) -> bool:
        """Return whether a user who may read a stream may also append to it, close it and delete it."""
        return self.may_read(user, stream)


def durable_streams() -> DurableStreams | None:
    """Return an instance of the class that `RUN_DURABLE_STREAMS` names; None if the setting is None.

    Raises:
        ImproperlyConfigured: the setting names no subclass of `DurableStreams`.
    """
    path = get_settings().run_durable_streams
    return None if path is None else load_class("RUN_DURABLE_STREAMS", path, DurableStreams)()


def is_admitted(rules: DurableStreams | None, user: Any) -> bool:
    """Return whether the project lets a user use durable streams at all."""
    return rules is not None and (not rules.login_required or bool(getattr(user, "is_authenticated", False)))
