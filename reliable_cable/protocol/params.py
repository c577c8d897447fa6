"""The parameters of a subscription."""

from typing import Any, NoReturn

from reliable_cable.exceptions import MissingParam


class Params(dict[str, Any]):
    """A dict that raises `MissingParam` in place of `KeyError`: whether it has a key depends on the client."""

    __slots__ = ()

    def __missing__(self, name: str) -> NoReturn:
        raise MissingParam(name)
