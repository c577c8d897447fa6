"""The admin pages of the demo."""

from __future__ import annotations

from typing import TYPE_CHECKING

from django.contrib import admin

from .models import Conversation, Message, Room

if TYPE_CHECKING:
    RoomBase = admin.ModelAdmin[Room]
    MessageBase = admin.ModelAdmin[Message]
    ConversationBase = admin.ModelAdmin[Conversation]
else:
    RoomBase = MessageBase = ConversationBase = admin.ModelAdmin


@admin.register(Room)
class RoomAdmin(RoomBase):
    list_display = ("name", "topic", "is_private")
    filter_horizontal = ("members",)


@admin.register(Message)
class MessageAdmin(MessageBase):
    list_display = ("created", "room", "author_name", "text")
    list_filter = ("room",)
    list_select_related = ("room", "author")


@admin.register(Conversation)
class ConversationAdmin(ConversationBase):
    list_display = ("created", "user", "title")
