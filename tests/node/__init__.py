"""The unmodified npm clients in Node, at the versions that package.json pins."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from reliable_cable.client.build import install

FOLDER = Path(__file__).resolve().parent


def require_node() -> str:
    """Return the path of Node. If Node or npm is missing, skip the test, or fail it if `CABLE_REQUIRE` is set."""
    node = shutil.which("node")
    if node is None or shutil.which("npm") is None:
        if os.environ.get("CABLE_REQUIRE"):
            pytest.fail("Node and npm are missing")
        pytest.skip("needs Node and npm")
    return node


def node_modules() -> Path:
    """Return the folder of the npm packages, which are installed once for each content of package-lock.json.

    Processes that call this at the same time wait for the first process. A script finds the packages if it is in the
    folder of this module, or if `NODE_PATH` names the returned folder (CommonJS only).
    """
    require_node()
    return install(FOLDER)
