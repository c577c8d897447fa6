"""The channels. `reliable_cable` imports the module `cable` of each app, as Django's admin imports `admin`."""

from __future__ import annotations

from typing import Any

from django.contrib.auth.models import User
from django.db import transaction

from reliable_cable import Channel, action, broadcast_template
from reliable_cable.runs.models import Run, Status
from reliable_cable.turbo import broadcast_append_to

from . import assistant
from .models import Conversation, Message, Room

#: The statuses of answers that can be tried again.
RETRIED = (Status.STOPPED, Status.FAILED)


class ChatChannel(Channel):
    """A chat room with messages, presence and typing indicators.

    Params:
        room_id: the primary key of the room.
        after: the position that the stream had before the messages on the page were read. The page gets later ones.
    """

    def subscribed(self) -> None:
        """Stream the room's messages, allow whispers for typing indicators, and join the room's presence."""
        room = self.room()
        if room is None:
            return self.reject()
        self.stream_for(room, presence=True, whisper=True, after=self.params.get("after"))
        self.presence.join(self.user.pk, info={"name": self.user.username})

    @action
    def speak(self, data: dict[str, Any]) -> None:
        """Send a message to the room.

        Data:
            text: the message.
            client_id: an id that the page chooses. If the page sends a message again with the same id, the message is
                saved and broadcast only once.
        """
        room = self.room()
        text, client_id = str(data.get("text", "")).strip(), str(data.get("client_id", ""))
        if room is None or not text or not 0 < len(client_id) <= 64:
            self.transmit({"type": "refused", "client_id": client_id, "reason": "It could not be sent."})
        elif len(text) > Message.MAX_LENGTH:
            reason = f"A message may have {Message.MAX_LENGTH} characters."
            self.transmit({"type": "refused", "client_id": client_id, "reason": reason})
        else:
            post_message(room, self.user, text, client_id)

    def room(self) -> Room | None:
        """Return the room, or None if the user may not enter it."""
        room_id = self.params.get("room_id")
        if not isinstance(room_id, int):
            return None
        return Room.objects.open_to(self.user).filter(pk=room_id).first()


def post_message(room: Room, author: User | None, text: str, client_id: str) -> Message:
    """Save a message and broadcast it, in one transaction.

    Args:
        room: the room of the message.
        author: the user who wrote the message; None for the robot.
        text: the text of the message.
        client_id: an id that is unique for the author. If a message with this id exists, it is returned unchanged.
    """
    # The message is broadcast after the commit. If the page sends the message again, the key prevents a second
    # broadcast.
    with transaction.atomic():
        message, _ = Message.objects.get_or_create(
            room=room, author=author, client_id=client_id, defaults={"text": text}
        )
        key = f"message:{message.pk}"
        ChatChannel.broadcast_to(room, message.as_dict(), idempotency_key=key)
        if not room.is_private:
            # Private rooms have no pages with Turbo and htmx. These pages subscribe by signed stream names, which would
            # stay valid for former members.
            template, context = "chat/_message.html", {"message": message}
            turbo, htmx = html_stream(room, "turbo"), html_stream(room, "htmx")
            broadcast_append_to(turbo, target="messages", template=template, context=context, idempotency_key=key)
            broadcast_template(htmx, template, context, idempotency_key=key)
            count = {"count": room.messages.count}
            broadcast_template(htmx, "chat/_count.html", count, event="count", idempotency_key=f"count:{key}")
    return message


def html_stream(room: Room, kind: str) -> str:
    """Return the name of the stream with the messages of a room as HTML.

    Args:
        room: the room.
        kind: the pages that subscribe to the stream, `"turbo"` or `"htmx"`.
    """
    return f"chat.room:{room.pk}:{kind}"


class AssistantChannel(Channel):
    """A conversation with the assistant. Each run that starts is announced to all pages of the conversation.

    Params:
        conversation: the primary key of the conversation.
        after: the position that the stream had before the runs on the page were read. The page is told of later ones.
    """

    def subscribed(self) -> None:
        """Stream the announcements of runs, if the conversation belongs to the user."""
        conversation = self.conversation()
        if conversation is None:
            return self.reject()
        self.stream_from(assistant.stream_of(conversation), after=self.params.get("after"))

    @action
    def ask(self, data: dict[str, Any]) -> str:
        """Start an answer to the `prompt` in the data. Return the reason for a refusal, or ""."""
        prompt = str(data.get("prompt", "")).strip()
        if not 0 < len(prompt) <= Conversation.MAX_PROMPT:
            return f"Ask in 1 to {Conversation.MAX_PROMPT} characters."
        return self._start(prompt)

    @action
    def retry(self, data: dict[str, Any]) -> str:
        """Start another attempt of the run with the id `run` in the data. Return the reason for a refusal, or ""."""
        conversation = self.conversation()
        runs = Run.objects.none() if conversation is None else Run.objects.about(conversation)
        run = next((run for run in runs.filter(status__in=RETRIED) if str(run.pk) == data.get("run")), None)
        return "It cannot be tried again." if run is None else self._start(run.input["prompt"], again=str(run.pk))

    def _start(self, prompt: str, again: str | None = None) -> str:
        conversation = self.conversation()
        if conversation is not None and assistant.ask(conversation, prompt, again):
            return ""
        return "One answer at a time: stop the other one first."

    def conversation(self) -> Conversation | None:
        """Return the user's conversation with the id in the params; None if there is none."""
        pk = self.params.get("conversation")
        return Conversation.objects.filter(user=self.user, pk=pk).first() if isinstance(pk, int) else None


class NewsChannel(Channel):
    """The news on a topic.

    Params:
        topic: the name of the topic, which consists of letters.
    """

    def subscribed(self) -> None:
        """Stream the news on the topic, if its name is valid."""
        topic = str(self.params.get("topic", ""))
        if not topic.isalpha():
            return self.reject()
        self.stream_from(f"news:{topic}")
