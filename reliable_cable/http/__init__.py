"""HTTP for producers that are not Django: broadcasting, and who is present (PROTOCOL.md, Streams, tokens and keys)."""
