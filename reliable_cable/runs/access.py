"""Checks whether a user may read or stop a run."""

import uuid
from typing import Any

from django.utils.module_loading import import_string

from reliable_cable.conf import get_settings
from reliable_cable.namespaces import current_namespace

from .models import Run


class RunPermissions:
    """Decides who may read and stop a run. By default, only the owner of the run may.

    To change this, set `RUN_PERMISSIONS` to the dotted path of a subclass.
    """

    def may_read(self, user: Any, run: Run) -> bool:
        """Return whether a user may read a run. By default, only its owner may."""
        return run.owner_id is not None and getattr(user, "is_authenticated", False) and run.owner_id == user.pk

    def may_stop(self, user: Any, run: Run) -> bool:
        """Return whether a user who may read a run may also stop it."""
        return self.may_read(user, run)


def permissions() -> RunPermissions:
    """Return an instance of the class that the setting `RUN_PERMISSIONS` names."""
    found: RunPermissions = import_string(get_settings().run_permissions)()
    return found


def readable_run(run: object, user: Any) -> Run:
    """Return the run with the given id, if the user may read it.

    Args:
        run: the id, as the client sent it. Any value is allowed. If it is not a UUID, there is no such run.
        user: the user who wants to read the run.

    Raises:
        Run.DoesNotExist: there is no such run in this namespace, or the user may not read it.
    """
    found = _find(run)
    if found is None or found.namespace != current_namespace() or not permissions().may_read(user, found):
        raise Run.DoesNotExist("There is no such run.")
    return found


def stoppable_run(run: object, user: Any) -> Run:
    """Return the run with the given id, if the user may read and stop it. Otherwise, raise `Run.DoesNotExist`."""
    found = readable_run(run, user)
    if not permissions().may_stop(user, found):
        raise Run.DoesNotExist("There is no such run.")
    return found


def _find(run: object) -> Run | None:
    return Run.objects.with_id(run).first() if isinstance(run, str | uuid.UUID) else None
