"""Keeps secrets, and text that could forge log lines, out of log records.

Two filters do this. Python applies the filters of a logger before any handler, and configuring logging does not remove
them, so they work with every server and with every setting `LOGGING`.
"""

import logging
import re
import sys
from collections.abc import Iterator
from contextlib import suppress
from functools import wraps
from traceback import TracebackException
from typing import Any, Final

#: The logger of this package.
logger = logging.getLogger("reliable_cable")

#: The maximum number of characters to log of a text that may come from a client.
TEXT_LIMIT: Final = 200
#: The maximum number of characters to log of the message of an exception.
ERROR_LIMIT: Final = 1000

#: The loggers of servers whose records may have the query string or the headers of a request.
SERVER_LOGGERS: Final = (
    "uvicorn.access",
    "uvicorn.asgi",
    "uvicorn.error",
    "daphne.http_protocol",
    "daphne.server",
    "daphne.ws_protocol",
    "django.channels.server",  # runserver with daphne
    "django.server",
    "twisted",
)

_PARAMETERS = ("sid", "jid", "token", "ticket", "signature", "password", "secret")
_NAMES = f"(?:{'|'.join(_PARAMETERS)})"
_HEADERS = "(?:authorization|cookie|x-anycable-restore-sid|x-jid|x-socket-id)"
#: A text without any of these words has no named secret. Looking for them is faster than the regular expression.
_MARKS = (*_PARAMETERS, "signed_stream", "authorization", "cookie", "x-socket-id")
#: Matches secrets with their names. A group contains the text before the secret.
_NAMED_SECRETS = re.compile(
    rf"""({_NAMES}(?:=|\\*["']\s*:\s*\\*["']))[^&\s"'\\\#;]+"""  # in a query string or a JSON object
    rf"|({_HEADERS}:[ ])[^\r\n]+"
    rf"""|({_HEADERS}['"],\s*b?['"])[^'"]+"""  # in an ASGI scope
    r"|(signed_stream(?:_name)?=)[^&\s]+"  # in a query string
    r"|(--)[0-9a-f]{64}"  # the signature of a stream name in a JSON object in a query string
    r"|(anycable-token\.)[\w.!\#$%&*+^`|~/=-]+",  # the characters of a subprotocol, without the quotes of a list
    re.IGNORECASE,
)
#: Matches signatures of stream names, and JSON Web Tokens.
_UNNAMED_SECRETS = re.compile(r"[0-9a-f]{32,}|eyJ[\w-]+\.[\w-]+\.[\w-]+", re.IGNORECASE)


def hide_secrets(text: str) -> str:
    """Replace session ids and tokens that have a name, as in `?sid=…`, by `***`."""
    lowered = text.lower()
    if not any(mark in lowered for mark in _MARKS):
        return text
    return _NAMED_SECRETS.sub(lambda match: f"{match[match.lastindex or 0]}***", text)


class LogText:
    """A value in a log record, without secrets, shortened, and on one line.

    Args:
        value: the value.
        limit: the maximum number of characters of the value to log.
    """

    __slots__ = ("_limit", "_value")

    def __init__(self, value: object, limit: int = TEXT_LIMIT) -> None:
        self._value = value
        self._limit = limit

    def __str__(self) -> str:
        text, omitted = self._shorten(str(self._value))
        return (text if text.isprintable() else repr(text)[1:-1]) + omitted

    def __repr__(self) -> str:
        if isinstance(self._value, str):
            text, omitted = self._shorten(self._value)
            return repr(text) + omitted
        return str(LogText(repr(self._value), self._limit))

    def _shorten(self, text: str) -> tuple[str, str]:
        # The search for secrets takes time, so it covers little more text than is logged.
        start = text[: 2 * self._limit]
        hidden = _UNNAMED_SECRETS.sub("***", hide_secrets(start))
        shown = hidden[: self._limit]
        omitted = len(text) - len(start) + len(hidden) - len(shown)
        return shown, f"... ({omitted} more characters)" if omitted else ""


class TextFilter(logging.Filter):
    """Shortens the arguments of this package's log records and the messages of logged exceptions (see `LogText`)."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Change a record. Return True, so that it is logged."""
        if isinstance(record.args, tuple):
            record.args = tuple(_safe(value) for value in record.args)
        _clean_traceback(record)
        return True


class SecretsFilter(logging.Filter):
    """Hides secrets in the log records of servers."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Change a record. Return True, so that it is logged."""
        if record.name == "uvicorn.access" and isinstance(record.args, tuple):
            # uvicorn's formatter reads the arguments, so they are not merged into the message.
            record.args = tuple(hide_secrets(value) if isinstance(value, str) else value for value in record.args)
            return True
        with suppress(TypeError, ValueError):  # the handlers report arguments that do not fit the message
            text = record.getMessage()
            hidden = hide_secrets(text)
            if hidden != text:
                record.msg, record.args = hidden, ()
        _clean_traceback(record)
        return True


_text_filter = TextFilter()
_secrets_filter = SecretsFilter()


def install() -> None:
    """Add the filters to the loggers of this package and of the servers."""
    logger.addFilter(_text_filter)
    for name in SERVER_LOGGERS:
        logging.getLogger(name).addFilter(_secrets_filter)
    # The command `daphne` writes its access log without a logger. It imports this module before the project.
    daphne = sys.modules.get("daphne.access")
    if daphne is not None:
        _hide_in_access_log(daphne.AccessLogGenerator)


def _hide_in_access_log(generator: Any) -> None:
    write_entry = generator.write_entry
    if hasattr(write_entry, "__wrapped__"):
        return

    @wraps(write_entry)
    def write_without_secrets(self: Any, host: Any, date: Any, request: str, *args: Any, **kwargs: Any) -> None:
        write_entry(self, host, date, hide_secrets(request), *args, **kwargs)

    generator.write_entry = write_without_secrets


def _safe(value: object) -> object:
    if value is None or isinstance(value, int | float):
        return value
    return LogText(value, ERROR_LIMIT if isinstance(value, BaseException) else TEXT_LIMIT)


def _clean_traceback(record: logging.LogRecord) -> None:
    """Hide secrets in the traceback of a record, and shorten the messages of its exceptions.

    Formatters use `exc_text` if it is set.
    """
    if not record.exc_info or record.exc_info[1] is None or record.exc_text:
        return
    formatted = TracebackException.from_exception(record.exc_info[1])
    for each in _chain(formatted):
        text = str(LogText("".join(each.format_exception_only()).strip(), ERROR_LIMIT))
        each.format_exception_only = lambda text=text, **_: iter([f"{text}\n"])  # type: ignore[method-assign,assignment]
    record.exc_text = "".join(formatted.format()).rstrip("\n")


def _chain(error: TracebackException) -> Iterator[TracebackException]:
    """Yield an exception, its causes and contexts, and the exceptions of groups."""
    pending = [error]
    while pending:
        each = pending.pop()
        yield each
        pending += [other for other in (each.__cause__, each.__context__, *(each.exceptions or ())) if other]
