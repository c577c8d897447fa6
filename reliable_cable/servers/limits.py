"""Limits of what servers read from a client.

uvicorn itself has no limits for the headers of a request. daphne limits their size to 16 KiB, but each received byte
restarts its timeout.
"""

from typing import Final

#: The maximum number of bytes of the request line and the headers of one request. The first data that arrive are not
#: counted.
MAX_HEADERS_SIZE: Final = 64 * 1024
#: How long, in seconds, a client may take to send the headers of a request.
HEADERS_TIMEOUT: Final = 10.0
#: The maximum number of bytes that are read from a WebSocket at once. By default, servers read so much at once that it
#: can contain thousands of frames, which are parsed without a break.
READ_SIZE: Final = 8 * 1024
