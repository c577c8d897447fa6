"""Bundles the JavaScript client, which consists of pinned npm packages, into the static files."""
