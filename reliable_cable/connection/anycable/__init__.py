"""Answers the remote procedure calls of anycable-go, which serves the WebSockets of clients in place of Django."""
