"""The former import path of `RedisPresenceStore`. The setting `ENGINE` of a project may still contain it."""

from reliable_cable.stores.presence.redis import RedisPresenceListener as RedisPresenceListener
from reliable_cable.stores.presence.redis import RedisPresenceStore as RedisPresenceStore
