"""The former paths of the stream stores, which are now in `reliable_cable.stores.streams`."""
