"""The demo: a chat with presence, an assistant that streams its answers, and a page for people from Action Cable."""
