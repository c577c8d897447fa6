"""The browser's side: the pinned npm client, and what bundles it into this package's static files."""
