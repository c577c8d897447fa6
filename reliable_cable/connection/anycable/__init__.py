"""Answers the remote procedure calls of anycable-go, so that it serves the sockets in front of Django."""
