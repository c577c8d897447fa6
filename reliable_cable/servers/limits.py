"""Limits for the data that servers read from clients.

uvicorn itself does not limit the headers of a request. daphne limits their size to 16 KiB, but restarts its timeout
whenever a byte is received.
"""

from typing import Final

#: The maximum size of the request line and the headers of a request, in bytes. The data that arrive with the first read
#: of the request do not count.
MAX_HEADERS_SIZE: Final = 64 * 1024
#: How long, in seconds, a client may take to send the headers of a request.
HEADERS_TIMEOUT: Final = 10.0
#: The maximum number of bytes that are read from a WebSocket at once. By default, servers read so much at once that the
#: data can contain thousands of frames. The event loop would do nothing else until all of them are parsed.
READ_SIZE: Final = 8 * 1024
