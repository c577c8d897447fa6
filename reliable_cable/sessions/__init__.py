"""Former paths of the session stores. They stand in `reliable_cable.stores.sessions`."""
