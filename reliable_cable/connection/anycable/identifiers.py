"""Writes the identifiers of a connection into a text that anycable-go keeps, and reads them in later calls.

The text has the form of the claim `ext` in tokens (`cable_token`). So a connection has the same text whether Django or
anycable-go has verified its token. anycable-go closes the connections whose text equals that of a `disconnect`.
"""

import json
from collections.abc import Mapping
from functools import partial
from typing import Any, Final
from uuid import UUID

from django.apps import apps
from django.core.exceptions import ObjectDoesNotExist

from reliable_cable.auth.sessions import anonymous
from reliable_cable.auth.users import find_user
from reliable_cable.concurrency.threads import run_handler
from reliable_cable.exceptions import ChannelError, InvalidToken, ProtocolError
from reliable_cable.identity import identifiers_text, identify, identity_of, in_namespace, is_row, namespace_in

#: The key, in the connection's state, of a JSON object that tells how to restore the identifiers that are UUIDs or
#: model instances, apart from `user`. The text that anycable-go keeps contains them only as strings.
VALUES: Final = "$values"


def dump_identifiers(consumer: Any) -> tuple[str, dict[str, str]]:
    """Return the text with the identifiers of a consumer, and the part of the connection's state that completes it.

    Raises:
        ChannelError: a value is neither None, a model instance, a string, a whole number, a boolean nor a UUID.
    """
    kinds: dict[str, list[str]] = {}
    for name in consumer.identified_by:
        value = getattr(consumer, name, None)
        if name == "user" or value is None or isinstance(value, str | int):
            continue
        if is_row(value):
            kinds[name] = ["row", value._meta.concrete_model._meta.label_lower, str(value.pk)]
        elif isinstance(value, UUID):
            kinds[name] = ["uuid", str(value)]
        else:
            raise ChannelError(
                f"{type(consumer).__name__}.{name} is a {type(value).__name__}, which later calls of anycable-go "
                "cannot restore. An identifier must be a model instance, a string, a whole number, a boolean or a UUID."
            )
    identity = in_namespace(identity_of(consumer, consumer.identified_by), consumer.namespace)
    return identifiers_text(identity), {VALUES: json.dumps(kinds)} if kinds else {}


async def load_identifiers(consumer: Any, text: str, state: Mapping[str, str]) -> str:
    """Set the attributes of a consumer that `identified_by` names.

    The user that the middlewares have set is kept if the text names the same user. All other model instances are read
    from the database.

    Args:
        consumer: the consumer. Its middlewares have run, and its `connect` has not.
        text: the text that anycable-go has kept since the connection was made.
        state: the connection's state.

    Returns:
        The namespace in the text; `""` if there is none. A text that anycable-go has read from a token has none.

    Raises:
        ProtocolError: the text, or the value under `VALUES` in the state, is not a JSON object.
        ObjectDoesNotExist: a row does not exist any more, or the user is not active any more.
    """
    values = _load_object(text or "{}", "the identifiers of the connection")
    kinds = _load_object(state.get(VALUES, "{}"), "the state of the connection")
    for name in consumer.identified_by:
        value = values.get(name)
        if name == "user":
            await _set_user(consumer, value)
        elif name in kinds:
            kind, *rest = kinds[name]
            setattr(consumer, name, UUID(rest[0]) if kind == "uuid" else await run_handler(partial(_find_row, *rest)))
        else:
            setattr(consumer, name, value)
    return namespace_in(values)


async def _set_user(consumer: Any, reference: Any) -> None:
    if not reference:
        consumer.user = consumer.user if consumer.user is None or not identify(consumer.user) else anonymous()
    elif identify(consumer.user) != reference:
        try:
            consumer.user = await find_user(reference)
        except InvalidToken as error:
            raise ObjectDoesNotExist(f"the user {reference!r} does not exist or is not active") from error


def _find_row(label: str, key: str) -> Any:
    model = apps.get_model(label)
    return model._default_manager.get(pk=model._meta.pk.to_python(key))


def _load_object(text: str, subject: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise ProtocolError(f"{subject} are not a JSON object")
    return value
