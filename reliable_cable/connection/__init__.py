"""The server side of one WebSocket connection."""
