"""CPU per delivery and memory per connection, of this project and of others, in one run: `… fanout --help`."""
