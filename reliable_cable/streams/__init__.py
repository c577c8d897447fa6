"""Former paths of the stream stores. They stand in `reliable_cable.stores.streams`."""
