"""The presence stores, which store the members of streams."""
