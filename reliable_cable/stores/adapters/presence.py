"""The presence store of projects whose clients are connected to anycable-go. It reads the members from there."""

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from http import HTTPStatus
from http.client import HTTPException
from typing import Any, Final, NoReturn, TypeVar
from urllib.error import HTTPError, URLError
from urllib.parse import quote, urlsplit
from urllib.request import HTTPRedirectHandler, ProxyHandler, Request, build_opener

from reliable_cable.concurrency.threads import run_publish
from reliable_cable.exceptions import NotSupported, StoreError, described
from reliable_cable.stores.presence.base import (
    Member,
    PresenceEvent,
    PresenceInfo,
    PresenceListener,
    PresenceMissed,
    PresenceStore,
    Refreshed,
)

from .base import shared_key

T = TypeVar("T")

#: How long, in seconds, the API may take to respond.
TIMEOUT: Final = 5.0


class _NoRedirects(HTTPRedirectHandler):
    """Refuses redirects, so that the key in a request is not sent to another server."""

    def redirect_request(self, *args: Any, **kwargs: Any) -> None:
        """Return None, so that the redirect is an error."""


#: The object that makes the requests. They go to a server of the project, so proxies in environment variables are
#: ignored.
_opener = build_opener(ProxyHandler({}), _NoRedirects())


class AdapterPresenceStore(PresenceStore):
    """Requests the members of streams from the API of anycable-go. Most other calls raise `NotSupported`.

    anycable-go has the API since version 1.6. Its URL is the setting `API_URL`. Without this setting, the members
    cannot be read.
    """

    def join_all(self, members: Sequence[Member]) -> list[PresenceEvent]:
        """Raise `NotSupported`."""
        self._refuse()

    def leave(self, stream: str, session: str) -> list[PresenceEvent]:
        """Raise `NotSupported`."""
        self._refuse()

    def refresh(self, held: Mapping[str, Collection[str]]) -> Refreshed:
        """Raise `NotSupported`."""
        self._refuse()

    def expire(self) -> list[PresenceEvent]:
        """Remove nothing, because there are no members here."""
        return []

    def info(self, stream: str, *, records: bool = True, overdue: bool = True) -> PresenceInfo:
        """Request the members of a stream from the API.

        Raises:
            NotSupported: the setting `API_URL` is not set, or the server has no such API or no broker.
            StoreError: the API could not be read.
        """
        if self.settings.api_url is None:
            self._refuse()
        answer = self._get(self.settings.api_url, f"/presence/{quote(stream, safe='')}/users")
        try:
            members = {str(record["id"]): record.get("info") for record in answer.get("records") or ()}
            return PresenceInfo(int(answer["total"]), members if records else None)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise StoreError(f"The members of the stream {stream!r} could not be read: {answer!r:.200}") from error

    def left_within(self, stream: str, seconds: float) -> list[str]:
        """Raise `NotSupported`."""
        self._refuse()

    def listen(self, deliver: Callable[[PresenceEvent | PresenceMissed], None]) -> PresenceListener:
        """Raise `NotSupported`."""
        self._refuse()

    def _get(self, url: str, path: str) -> Any:
        """Request a path of the API at a URL, and return the JSON value of the response."""
        address = urlsplit(url)
        place = address.netloc.rpartition("@")[2]  # errors must not show a password
        target = f"{address.scheme}://{place}{address.path.rstrip('/')}{path}"
        key = shared_key(self.settings, "api-cable", self.settings.api_key)
        request = Request(target, headers={"Authorization": f"Bearer {key}"})  # noqa: S310 - the setting is checked
        try:
            with _opener.open(request, timeout=TIMEOUT) as response:
                return json.load(response)
        except HTTPError as error:
            error.close()
            if error.code == HTTPStatus.NOT_FOUND:
                raise NotSupported(
                    f"The members of streams cannot be read, because there is no such API at {place}. anycable-go has "
                    "it since version 1.6, but not for streams with '/' in their names. Check "
                    "RELIABLE_CABLE['API_URL']."
                ) from None
            if error.code == HTTPStatus.NOT_IMPLEMENTED:
                raise NotSupported(
                    f"The members of streams cannot be read, because anycable-go at {place} has no broker, which keeps "
                    "them. Start anycable-go with --broker, such as --broker=memory."
                ) from None
            hint = (
                " Set RELIABLE_CABLE['SECRET'] to its secret, or RELIABLE_CABLE['API_KEY'] to its --api_secret."
                if error.code == HTTPStatus.UNAUTHORIZED
                else ""
            )
            raise StoreError(f"The API at {place} responded with the status {error.code}.{hint}") from None
        except (OSError, HTTPException, ValueError) as error:
            cause = error.reason if isinstance(error, URLError) and isinstance(error.reason, OSError) else error
            raise StoreError(f"The API at {place} could not be read: {described(cause)}.") from error

    def _refuse(self) -> NoReturn:
        raise NotSupported(
            "The members of streams cannot be changed, and not be read without the setting RELIABLE_CABLE['API_URL'], "
            f"because RELIABLE_CABLE['BROADCAST_ADAPTER'] is {self.settings.broadcast_adapter!r}, so clients are "
            "connected to anycable-go. Version 1.5 of it has no presence. For 1.6, set API_URL. Or remove "
            "BROADCAST_ADAPTER, and connect clients to servers of this package."
        )

    async def _run(self, call: Callable[[], T]) -> T:
        return await run_publish(call)
