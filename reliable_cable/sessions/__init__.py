"""The former paths of the session stores, which are now in `reliable_cable.stores.sessions`."""
