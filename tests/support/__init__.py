"""What tests over the wire need: servers, another process, and clients of our own."""
