"""The parameters of a subscription."""

from typing import Any, NoReturn

from reliable_cable.exceptions import MissingParam


class Params(dict[str, Any]):
    """A dict that raises `MissingParam` for a missing key, because the client decides which keys there are."""

    __slots__ = ()

    def __missing__(self, name: str) -> NoReturn:
        raise MissingParam(name)
