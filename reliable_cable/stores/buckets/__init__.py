"""Named token buckets, which limit rates, such as the rate of new connections from an IP address."""
