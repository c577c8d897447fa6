"""Log filters that remove secrets from log records, and escape text that could forge log lines.

Python applies the filters of a logger before all handlers, and `logging.config` does not remove the filters. So they
work with every server and every value of `LOGGING`.
"""

import logging
import re
import sys
from collections.abc import Iterator
from contextlib import suppress
from functools import wraps
from traceback import TracebackException
from typing import Any, Final

#: The logger to which all modules of this package log. `install` adds the filters to it.
logger = logging.getLogger("reliable_cable")

#: The maximum length, in characters, of a logged value. It is limited, because values may come from clients.
TEXT_LIMIT: Final = 200
#: The maximum length, in characters, of the logged message of an exception.
ERROR_LIMIT: Final = 1000

#: The loggers of servers whose records may contain the query string or the headers of a request.
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
#: A string with a named secret contains one of these words. A search for the words is faster than the regular
#: expression.
_MARKS = (*_PARAMETERS, "signed_stream", "authorization", "cookie", "x-socket-id")
#: Matches a secret together with its name. A group contains the text before the secret.
_NAMED_SECRETS = re.compile(
    rf"""({_NAMES}(?:=|\\*["']\s*:\s*\\*["']))[^&\s"'\\\#;]+"""  # in a query string or a JSON object
    rf"|({_HEADERS}:[ ])[^\r\n]+"
    rf"""|({_HEADERS}['"],\s*b?['"])[^'"]+"""  # in an ASGI scope
    r"|(signed_stream(?:_name)?=)[^&\s]+"  # in a query string
    r"|(--)[0-9a-f]{64}"  # the signature of a stream name in a JSON object in a query string
    r"|(anycable-token\.)[\w.!\#$%&*+^`|~/=-]+",  # in a subprotocol; a quote ends the token
    re.IGNORECASE,
)
#: Matches signatures of stream names, and JSON Web Tokens.
_UNNAMED_SECRETS = re.compile(r"[0-9a-f]{32,}|eyJ[\w-]+\.[\w-]+\.[\w-]+", re.IGNORECASE)


def hide_secrets(text: str) -> str:
    """Replace secrets that follow a name, such as a session id in `?sid=…`, by `***`."""
    lowered = text.lower()
    if not any(mark in lowered for mark in _MARKS):
        return text
    return _NAMED_SECRETS.sub(lambda match: f"{match[match.lastindex or 0]}***", text)


class LogText:
    """Wraps a value in a log record, so that its text is short, is on one line, and has no secrets.

    Args:
        value: the value to log.
        limit: the maximum length of the text, in characters.
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
        # The search for secrets takes time. So it covers at most twice the number of characters that are logged.
        start = text[: 2 * self._limit]
        hidden = _UNNAMED_SECRETS.sub("***", hide_secrets(start))
        shown = hidden[: self._limit]
        omitted = len(text) - len(start) + len(hidden) - len(shown)
        return shown, f"... ({omitted} more characters)" if omitted else ""


class TextFilter(logging.Filter):
    """Wraps the arguments and exceptions in this package's log records (see `LogText`)."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Change a record in place. Return True, so that the record is logged."""
        if isinstance(record.args, tuple):
            record.args = tuple(_safe(value) for value in record.args)
        _clean_traceback(record)
        return True


class SecretsFilter(logging.Filter):
    """Replaces secrets in the log records of servers."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Replace the secrets in a record, in place. Return True, so that the record is logged."""
        if record.name == "uvicorn.access" and isinstance(record.args, tuple):
            # The arguments are kept separate from the message, because uvicorn's formatter reads them.
            record.args = tuple(hide_secrets(value) if isinstance(value, str) else value for value in record.args)
            return True
        with suppress(TypeError, ValueError):  # arguments that do not fit the message are reported by the handlers
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
    # The command `daphne` writes its access log without a logger. It imports `daphne.access` before the project.
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
    """Set a record's `exc_text`, which formatters use, to a traceback with short messages and without secrets."""
    if not record.exc_info or record.exc_info[1] is None or record.exc_text:
        return
    formatted = TracebackException.from_exception(record.exc_info[1])
    for each in _chain(formatted):
        text = str(LogText("".join(each.format_exception_only()).strip(), ERROR_LIMIT))
        each.format_exception_only = lambda text=text, **_: iter([f"{text}\n"])  # type: ignore[method-assign,assignment]
    record.exc_text = "".join(formatted.format()).rstrip("\n")


def _chain(error: TracebackException) -> Iterator[TracebackException]:
    """Yield an exception, its causes and contexts, and the exceptions in exception groups."""
    pending = [error]
    while pending:
        each = pending.pop()
        yield each
        pending += [other for other in (each.__cause__, each.__context__, *(each.exceptions or ())) if other]
