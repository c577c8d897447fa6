"""The base class of adapters, which send broadcasts and commands to anycable-go, and the format of these messages."""

import hmac
import json
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence

from reliable_cable.conf import CableSettings
from reliable_cable.exceptions import BroadcastUncertain, PayloadTooLarge


class Adapter(ABC):
    """Sends messages to anycable-go. `publish` may be called from any thread, and `apublish` on any event loop.

    Args:
        settings: the settings of this package.

    Raises:
        ImproperlyConfigured: the adapter cannot be used with the settings, or needs a package that is missing.
    """

    def __init__(self, settings: CableSettings) -> None:
        self.settings = settings

    @property
    @abstractmethod
    def place(self) -> str:
        """Where messages are sent, as a string for error messages. The string contains no password."""

    @abstractmethod
    def publish(self, messages: Sequence[str]) -> None:
        """Send messages, in the given order.

        Args:
            messages: one or more JSON objects, as `encode_broadcast` or `encode_disconnect` returns them. A disconnect
                must be the only message.

        Raises:
            PayloadTooLarge: a message is larger than the server allows. Nothing was sent.
            BroadcastError: nothing was sent.
            BroadcastUncertain: the messages may or may not have been sent.
        """

    @abstractmethod
    async def apublish(self, messages: Sequence[str]) -> None:
        """Async version of `publish`."""

    def close(self) -> None:
        """Close the connections of this process, except those of event loops. The adapter may be used again."""

    async def aclose(self) -> None:
        """Close the connections of the running event loop. The adapter may be used again."""


def shared_key(settings: CableSettings, purpose: str, given: str) -> str:
    """Return the key for a request to anycable-go.

    Args:
        settings: the settings of this package.
        purpose: the purpose for which anycable-go derives the key from its secret, such as "broadcast-cable".
        given: the key in the settings; `""` if there is none.
    """
    return given or hmac.new(settings.secret.encode(), purpose.encode(), "sha256").hexdigest()


def encode_broadcast(stream: str, data: str, *, exclude: str = "", transient: bool = False) -> str:
    """Encode a broadcast for anycable-go.

    Args:
        stream: the name of the stream.
        data: the payload as JSON text.
        exclude: the session id of the connection that does not receive the message; `""` if none is excluded.
        transient: whether anycable-go leaves the message out of the history of the stream.
    """
    message: dict[str, object] = {"stream": stream, "data": data}
    meta: dict[str, object] = {}
    if exclude:
        meta["exclude_socket"] = exclude
    if transient:
        meta["transient"] = True
    return _encode({**message, "meta": meta} if meta else message)


def encode_disconnect(identifiers: str, *, reconnect: bool) -> str:
    """Encode a command that closes connections.

    Args:
        identifiers: the identifiers of the connections, exactly as anycable-go got them from the RPC server or a token.
        reconnect: whether the clients are told to reconnect.
    """
    return _encode({"command": "disconnect", "payload": {"identifier": identifiers, "reconnect": reconnect}})


def join(messages: Sequence[str], limit: int | None = None) -> Iterator[str]:
    """Join successive messages into as few texts as possible. A text is a message, or a JSON array of messages.

    Args:
        messages: the messages, as for `Adapter.publish`.
        limit: the maximum size of a text, in bytes; None if there is no limit.

    Raises:
        PayloadTooLarge: a message is larger than `limit`. In that case, no text is returned.
    """
    sizes = [len(message.encode()) for message in messages]
    if limit is not None and max(sizes, default=0) > limit:
        raise PayloadTooLarge(
            f"A broadcast has {max(sizes)} bytes in the format of anycable-go; the server allows {limit}."
        )
    part: list[str] = []
    # The size of a JSON array: the messages, the bracket or comma before each of them, and the last bracket.
    used = 1
    for message, size in zip(messages, sizes, strict=True):
        if part and limit is not None and used + size + 1 > limit:
            yield _joined(part)
            part, used = [], 1
        part.append(message)
        used += size + 1
    if part:
        yield _joined(part)


def uncertain(why: object) -> BroadcastUncertain:
    """Return the error for messages that may or may not have been sent."""
    return BroadcastUncertain(
        f"The broadcast may or may not have been sent: {why} If it is repeated, clients may receive it twice."
    )


def _joined(part: Sequence[str]) -> str:
    return part[0] if len(part) == 1 else f"[{','.join(part)}]"


def _encode(value: Mapping[str, object]) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
