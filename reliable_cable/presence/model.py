"""An import path of `ModelPresenceStore` beside those of the other presence stores, for the setting `ENGINE`."""

from reliable_cable.stores.presence.model import ModelPresenceStore as ModelPresenceStore
