"""Limits of the headers of requests, for the servers that `manage.py cable_serve` runs.

uvicorn itself has no such limits. daphne limits the size to 16 KiB, but each received byte restarts its timeout.
"""

from typing import Final

#: The most bytes of the request line and the headers of one request. The first data that arrive are not counted.
MAX_HEADERS_SIZE: Final = 64 * 1024
#: How long, in seconds, a client may take to send the headers of a request.
HEADERS_TIMEOUT: Final = 10.0
