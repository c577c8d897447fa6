"""The storm: servers and clients under faults, one a second, and a verdict on what every client got.

`python -m tests.storm --seconds 60 --seed 1` runs it for as long as one likes; see `--help`.
"""
