"""What an ASGI server needs added: the buffer behind `send`, and draining before shutdown."""
