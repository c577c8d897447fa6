"""Durable Streams: streams that clients create, write and read over HTTP, by the protocol of the same name."""
