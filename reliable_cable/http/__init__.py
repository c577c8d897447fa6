"""The HTTP endpoints for producers that are not Django: broadcasts, disconnects and presence, as in AnyCable."""
