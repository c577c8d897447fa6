"""The demo: a chat with presence, an assistant that streams its answers, and examples for users of Action Cable."""
