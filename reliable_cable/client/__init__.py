"""The JavaScript client: the pinned npm packages, and the code that bundles them into the static files."""
