"""Rooms, their messages, and conversations with the assistant."""

from __future__ import annotations

from typing import Any, ClassVar, Self

from django.conf import settings
from django.contrib.auth.models import AnonymousUser, User
from django.db import models
from django.db.models import Q
from django.urls import reverse


class RoomQuerySet(models.QuerySet["Room"]):
    def open_to(self, user: User | AnonymousUser) -> Self:
        """Return the rooms that a user may enter."""
        if not user.is_authenticated:
            return self.none()
        return self.filter(Q(is_private=False) | Q(members=user)).distinct()


class Room(models.Model):
    """A chat room, open to all users or private to its members."""

    slug = models.SlugField(unique=True)
    name = models.CharField(max_length=80)
    topic = models.CharField(max_length=200, blank=True)
    is_private = models.BooleanField(default=False)
    members = models.ManyToManyField(settings.AUTH_USER_MODEL, blank=True, related_name="rooms")

    objects = RoomQuerySet.as_manager()

    class Meta:
        ordering: ClassVar = ["pk"]

    def __str__(self) -> str:
        return self.name

    def get_absolute_url(self) -> str:
        """Return the URL of the room's page."""
        return reverse("room", args=[self.slug])


class Message(models.Model):
    """A message in a room. Messages of the robot have no author."""

    MAX_LENGTH = 2000

    room = models.ForeignKey(Room, on_delete=models.CASCADE, related_name="messages")
    author = models.ForeignKey(settings.AUTH_USER_MODEL, on_delete=models.CASCADE, null=True, blank=True)
    text = models.TextField(max_length=MAX_LENGTH)
    #: An id that the author's page chooses. A page may send a message again after it lost the connection. With the same
    #: id, the message is saved only once.
    client_id = models.CharField(max_length=64)
    created = models.DateTimeField(auto_now_add=True)

    class Meta:
        ordering: ClassVar = ["pk"]
        constraints: ClassVar = [
            models.UniqueConstraint(fields=["room", "author", "client_id"], name="chat_message_said_once"),
        ]

    def __str__(self) -> str:
        return self.text[:50]

    @property
    def author_name(self) -> str:
        """The name of the author that pages show: the username, or "robot"."""
        return self.author.username if self.author else "robot"

    def as_dict(self) -> dict[str, Any]:
        """Return the event that is broadcast to pages."""
        return {
            "type": "message",
            "id": self.pk,
            "author": self.author_name,
            "text": self.text,
            "client_id": self.client_id,
            "created": self.created,
        }


class Conversation(models.Model):
    """A conversation of a user with the assistant. It is the subject of runs, which are the answers."""

    MAX_PROMPT = 1000
    MAX_TITLE = 60

    user = models.ForeignKey(settings.AUTH_USER_MODEL, on_delete=models.CASCADE, related_name="conversations")
    #: The beginning of the first prompt.
    title = models.CharField(max_length=MAX_TITLE, blank=True)
    created = models.DateTimeField(auto_now_add=True)

    class Meta:
        ordering: ClassVar = ["-pk"]

    def __str__(self) -> str:
        return self.title or "New conversation"

    def get_absolute_url(self) -> str:
        """Return the URL of the conversation's page."""
        return reverse("conversation", args=[self.pk])
