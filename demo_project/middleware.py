"""A content security policy: scripts, styles and connections of this site only, inline scripts by nonce."""

from __future__ import annotations

import secrets

from django.http import HttpRequest, HttpResponseBase
from django.utils.deprecation import MiddlewareMixin


class ContentSecurityPolicyMiddleware(MiddlewareMixin):
    """Puts `csp_nonce` on the request and the policy on the response.

    Django 6 has a middleware of its own for this; the demo runs on Django 5.2 too.
    """

    def process_request(self, request: HttpRequest) -> None:
        """Make the nonce that templates put on their script tags."""
        request.csp_nonce = secrets.token_urlsafe(16)  # type: ignore[attr-defined]

    def process_response(self, request: HttpRequest, response: HttpResponseBase) -> HttpResponseBase:
        """Send the policy with every page."""
        # 'self' in connect-src means WebSockets too in current browsers; older ones want them named.
        host = request.headers.get("Host", "")
        policy = {
            "default-src": "'self'",
            "script-src": f"'self' 'nonce-{request.csp_nonce}'",  # type: ignore[attr-defined]
            "style-src": "'self'",
            "connect-src": f"'self' ws://{host} wss://{host}",
            "object-src": "'none'",
            "base-uri": "'none'",
            "form-action": "'self'",
            "frame-ancestors": "'none'",
        }
        response.headers.setdefault(
            "Content-Security-Policy", "; ".join(f"{name} {value}" for name, value in policy.items())
        )
        return response
