"""A build hook of Hatch. It adds the bundle of the JavaScript client to wheels and source archives."""

import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


def _load_build() -> ModuleType:
    """Load build.py by its path. An import of the package would need Django, which is not installed during a build."""
    path = Path(__file__).with_name("build.py")
    spec = importlib.util.spec_from_file_location("reliable_cable_client_build", path)
    if spec is None or spec.loader is None:
        raise ImportError(f"cannot load {path}")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class ClientBuildHook(BuildHookInterface[Any]):
    """The hook that creates the bundle before the package is built."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Create the bundle if it is missing or older than its sources.

        An editable install skips this step, so that it needs no Node. Run `manage.py cable_client` afterwards to create
        the bundle. In other builds, if the bundle cannot be created, an existing one is packed, with a warning. If
        there is none, the build fails.
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
            self.app.display_warning(
                f"The existing bundle of the JavaScript client is packed, although it may be outdated. {error}"
            )
