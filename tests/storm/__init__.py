"""The storm: servers and clients under faults, and a verdict on the messages that each client received.

`python -m tests.storm --seconds 60 --seed 1` runs it for a minute; see `--help`.
"""
