"""Hatch's build hook: puts the bundle of the JavaScript client into wheels and source archives."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


def _load_build() -> ModuleType:
    """Load build.py by its path: importing the package would need Django, which a build does not have."""
    path = Path(__file__).with_name("build.py")
    spec = importlib.util.spec_from_file_location("reliable_cable_client_build", path)
    if spec is None or spec.loader is None:
        raise ImportError(f"cannot load {path}")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class ClientBuildHook(BuildHookInterface[Any]):
    """Makes the bundle before it is packed."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Make the bundle if it is missing or older than its sources.

        Not for an editable install, which needs no Node: there `manage.py cable_client` makes it. Where Node is
        missing, a bundle that is there is used as it is.
        """
        if version == "editable":
            return
        client = _load_build()
        try:
            if client.build():
                self.app.display_info("Bundled the JavaScript client")
        except client.ClientBuildError as error:
            if not client.is_built():
                self.app.abort(str(error))
            self.app.display_warning(f"The bundle of the JavaScript client is packed as it is. {error}")
