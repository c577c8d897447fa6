"""What all connections of one event loop share."""
