"""`Params`, the parameters of a subscription."""

from typing import Any, NoReturn

from reliable_cable.exceptions import MissingParam


class Params(dict[str, Any]):
    """The parameters of a subscription, which the client chooses. A missing key raises `MissingParam`."""

    __slots__ = ()

    def __missing__(self, name: str) -> NoReturn:
        raise MissingParam(name)
