"""The hub: the streams, presence, session records and heartbeat that the connections of an event loop share."""
