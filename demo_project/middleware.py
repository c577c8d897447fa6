"""A middleware that adds a content security policy, which allows only scripts, styles and connections of this site."""

from __future__ import annotations

import secrets

from django.http import HttpRequest, HttpResponseBase
from django.utils.deprecation import MiddlewareMixin


class ContentSecurityPolicyMiddleware(MiddlewareMixin):
    """Adds `csp_nonce` to each request, and the policy to each response.

    The demo has its own middleware, because it supports Django 5.2, and Django has one only since version 6.0.
    """

    def process_request(self, request: HttpRequest) -> None:
        """Create a random nonce, which templates add to their script tags."""
        request.csp_nonce = secrets.token_urlsafe(16)  # type: ignore[attr-defined]

    def process_response(self, request: HttpRequest, response: HttpResponseBase) -> HttpResponseBase:
        """Add the policy to the response, unless it already has one."""
        # In current browsers, 'self' in connect-src includes WebSockets. For older browsers, their URLs are added.
        host = request.headers.get("Host", "")
        policy = {
            "default-src": "'self'",
            "script-src": f"'self' 'nonce-{request.csp_nonce}'",  # type: ignore[attr-defined]
            "style-src": f"'self' 'nonce-{request.csp_nonce}'",  # type: ignore[attr-defined]
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
