"""The TypeScript types of the bundle fit a page that uses them (tests/types/page.ts)."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from reliable_cable.client.build import build, install
from tests.node import require_node

FOLDER = Path(__file__).parents[1] / "types"
OPTIONS = "--noEmit --strict --target es2022 --module esnext --moduleResolution bundler"


@pytest.mark.node
def test_the_types_of_the_bundle() -> None:
    node = require_node()
    build()
    compiler = install(FOLDER) / "typescript" / "bin" / "tsc"
    done = subprocess.run(
        [node, str(compiler), *OPTIONS.split(), "page.ts"],
        cwd=FOLDER,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
