"""Ends all subscriptions to a room when users may have lost access to it. Those who still have access resubscribe."""

from __future__ import annotations

from typing import Any

from django.db.models.signals import m2m_changed, post_save
from django.dispatch import receiver

from reliable_cable import revoke

from .cable import ChatChannel
from .models import Room


@receiver(m2m_changed, sender=Room.members.through)
def handle_removed_members(instance: Any, action: str, **kwargs: Any) -> None:
    """End the subscriptions to a room from which members were removed."""
    if isinstance(instance, Room) and action in ("post_remove", "post_clear"):
        _end_subscriptions(instance)


@receiver(post_save, sender=Room)
def handle_saved_room(instance: Room, created: bool, **kwargs: Any) -> None:
    """End the subscriptions to a private room when it is saved, because it may have been public before."""
    if instance.is_private and not created:
        _end_subscriptions(instance)


def _end_subscriptions(room: Room) -> None:
    revoke(stream=ChatChannel.broadcasting_for(room), reason="The members of this room have changed.")
