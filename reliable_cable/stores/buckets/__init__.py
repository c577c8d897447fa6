"""Token buckets that limit how often something happens, such as connects from one address."""
