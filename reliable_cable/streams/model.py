"""The former path of `ModelStreamStore`, for settings that have this path in `ENGINE`."""

from reliable_cable.stores.streams.model import ModelStreamStore as ModelStreamStore
