"""Bundles the JavaScript client and the pinned npm packages that it uses, and adds the bundle to the static files."""
