"""Everything that the connections of one event loop share: streams, presence, session records and the control bus."""
