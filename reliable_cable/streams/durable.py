"""The former path of `DurableStreamStore`, for settings that have this path in `ENGINE`."""

from reliable_cable.stores.streams.durable import DurableStreamStore as DurableStreamStore
