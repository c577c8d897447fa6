"""The hub, which has everything that the connections of an event loop share, such as streams and presence."""
