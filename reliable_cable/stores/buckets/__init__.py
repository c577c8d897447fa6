"""Named token buckets, by which all processes together limit a rate, such as that of connects from an address."""
