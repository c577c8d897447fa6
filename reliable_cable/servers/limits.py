"""Limits of the headers of requests, for the servers that `manage.py cable_serve` runs.

daphne limits the size of the headers itself, to 16 KiB. uvicorn has no limits, and daphne has none of the time.
"""

from __future__ import annotations

from typing import Final

#: The most bytes of the request line and the headers of one request, besides the data of two reads.
MAX_HEADERS_SIZE: Final = 64 * 1024
#: How long, in seconds, a client may take to send the headers of a request.
HEADERS_TIMEOUT: Final = 10.0
