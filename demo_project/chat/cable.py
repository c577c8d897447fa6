"""The channels; `reliable_cable` finds this module as Django's admin finds `admin`."""

from __future__ import annotations

from typing import Any

from django.contrib.auth.models import User
from django.db import transaction

from reliable_cable import Channel, action

from . import assistant
from .models import Answer, Message, Room


class ChatChannel(Channel):
    """A room: its messages, who is there, who is typing. Params: `room_id`."""

    def subscribed(self) -> None:
        """Let those in who may enter the room; whispers (typing) go to the others in it."""
        room = self.room()
        if room is None:
            return self.reject()
        self.stream_for(room, presence=True, whisper=True)
        self.presence.join(self.user.pk, info={"name": self.user.username})

    def resubscribed(self) -> None:
        """Check again: the user may have been removed from the room while the connection was down."""
        if self.room() is None:
            self.reject()

    @action
    def speak(self, data: dict[str, Any]) -> None:
        """Say something. Data: `text`, and a `client_id` with which saying it again is harmless."""
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
        """Return the room, if the user may enter it."""
        room_id = self.params.get("room_id")
        if not isinstance(room_id, int):
            return None
        return Room.objects.open_to(self.user).filter(pk=room_id).first()


def post_message(room: Room, author: User | None, text: str, client_id: str) -> Message:
    """Save a message and broadcast it: both, or neither.

    Args:
        room: where it is said.
        author: who says it; None: the robot.
        text: what is said.
        client_id: the author's own id for it. The same one again: the message that is already there.
    """
    # The broadcast waits for the commit. The key makes it happen once, however often this is called for one message.
    with transaction.atomic():
        message, _ = Message.objects.get_or_create(
            room=room, author=author, client_id=client_id, defaults={"text": text}
        )
        ChatChannel.broadcast_to(room, message.as_dict(), idempotency_key=f"message:{message.pk}")
    return message


class AssistantChannel(Channel):
    """A user's conversation with the assistant: the answers' events, whichever page asked."""

    def subscribed(self) -> None:
        """Stream the user's own answers."""
        self.stream_from(assistant.stream_of(self.user))

    @action
    async def ask(self, data: dict[str, Any]) -> None:
        """Ask the assistant. Data: `prompt`."""
        prompt = str(data.get("prompt", "")).strip()
        if not 0 < len(prompt) <= Answer.MAX_PROMPT:
            return self.transmit({"type": "refused", "reason": f"Ask in 1 to {Answer.MAX_PROMPT} characters."})
        if not await assistant.ask(self.user, prompt):
            self.transmit({"type": "refused", "reason": "One answer at a time: stop the other one first."})

    @action
    async def stop(self, data: dict[str, Any]) -> None:
        """Stop an answer. Data: `answer_id`."""
        await assistant.stop(self.user, data.get("answer_id"))

    @action
    async def check(self, data: dict[str, Any]) -> None:
        """See to an answer that has been silent for long. Data: `answer_id`."""
        await assistant.fail_if_dead(self.user, data.get("answer_id"))


class NewsChannel(Channel):
    """News by topic. Params: `topic`."""

    def subscribed(self) -> None:
        """Stream a topic's news."""
        topic = str(self.params.get("topic", ""))
        if not topic.isalpha():
            return self.reject()
        self.stream_from(f"news:{topic}")
