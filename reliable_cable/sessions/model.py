"""The former path of `ModelSessionStore`, for settings that have this path in `ENGINE`."""

from reliable_cable.stores.sessions.model import ModelSessionStore as ModelSessionStore
