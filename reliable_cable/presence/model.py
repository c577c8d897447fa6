"""A second import path of `ModelPresenceStore`. The other presence stores have such a path in this package, too."""

from reliable_cable.stores.presence.model import ModelPresenceStore as ModelPresenceStore
