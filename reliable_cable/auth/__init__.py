"""Authenticates WebSockets by the Django session of a browser, or by a token. See Authentication: Tokens."""

from reliable_cable.exceptions import InvalidToken as InvalidToken
from reliable_cable.exceptions import TokenExpired as TokenExpired

from .middleware import CableAuthMiddlewareStack as CableAuthMiddlewareStack
from .middleware import TokenAuthMiddleware as TokenAuthMiddleware
from .sessions import get_user as get_user
from .tokens import cable_token as cable_token
