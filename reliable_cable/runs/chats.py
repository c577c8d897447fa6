"""`RunChats`, with which a project connects the chats of `useChat` and the threads of AG-UI with its own models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from django.contrib.auth.base_user import AbstractBaseUser
from django.contrib.auth.models import AnonymousUser
from django.core.exceptions import ImproperlyConfigured
from django.db import models

from reliable_cable.conf import NAME, get_settings

from .loading import load_class
from .models import Run


@dataclass(frozen=True, slots=True)
class ChatMessage:
    """The message that a client has sent to start a run. Its content comes from the client, and is not checked.

    The content is not in `repr(message)`, so that it does not get into logs.

    Args:
        id: the id of the message, which the client has chosen, or `""`.
        role: the role of the author, usually `"user"`. With AG-UI, it is `"tool"` if the message is the result of a
            tool that the page has run.
        text: the text parts of the message, joined by line breaks.
        parts: all parts of the message, such as text and files, as the AI SDK or AG-UI defines them.
        trigger: `"submit-message"`, or `"regenerate-message"` if the client wants another answer to the message.
        message_id: the id of the message that the client has replaced, or of the answer that it wants again; `""` for
            a new message.
        body: the other keys of the request, such as the option `body` of the transport, or `tools` and `forwardedProps`
            of AG-UI.
    """

    id: str
    role: str
    text: str = field(repr=False)
    parts: Sequence[Mapping[str, Any]] = field(default=(), repr=False)
    trigger: str = "submit-message"
    message_id: str = ""
    body: Mapping[str, Any] = field(default_factory=dict, repr=False)


class RunChats:
    """Finds the object that a chat is about, and starts runs for the messages of the chat.

    Subclass it, and set `RUN_CHATS` to the dotted path of the subclass. The methods run in a thread, and may query the
    database.
    """

    #: Whether users must be logged in. If so, the methods are not called for anonymous users, who have no chats.
    login_required: ClassVar[bool] = True

    def subject(self, user: AbstractBaseUser | AnonymousUser, chat: str) -> models.Model:
        """Return the object that a chat is about, such as a conversation. It must be saved.

        Args:
            user: the user who reads the chat, writes to it, or stops an answer in it.
            chat: the id of the chat or the thread, as the client sent it.

        Raises:
            ObjectDoesNotExist, PermissionDenied, Http404, ValueError, ValidationError: the user has no such chat. The
                client is told that there is no such chat. ValueError and ValidationError are raised by Django for
                strings that cannot be primary keys.
        """
        raise NotImplementedError(f"{type(self).__qualname__} must define subject().")

    def start(self, user: AbstractBaseUser | AnonymousUser, subject: models.Model, message: ChatMessage) -> Run:
        """Store a message, and start a run that answers the message and has the subject `subject`.

        This is called in a transaction. So start the task that writes the run with `transaction.on_commit`.

        Args:
            user: the user who sent the message.
            subject: the object that `subject` has returned.
            message: the message to store and to answer.

        Raises:
            ValidationError: the message cannot be answered. The client is sent the text of the error.
            ObjectDoesNotExist, PermissionDenied, Http404: the client is told that there is no such chat.
        """
        raise NotImplementedError(f"{type(self).__qualname__} must define start().")


def chats() -> RunChats:
    """Return an instance of the class that the setting `RUN_CHATS` names.

    Raises:
        ImproperlyConfigured: the setting is None, or names no subclass of `RunChats`.
    """
    path = get_settings().run_chats
    if path is None:
        raise ImproperlyConfigured(
            f"{NAME}['RUN_CHATS'] is not set. Set it to the dotted path of a subclass of RunChats, so that clients can "
            "start runs over HTTP."
        )
    return load_class("RUN_CHATS", path, RunChats)()
