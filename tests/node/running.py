"""Runs the scripts of this folder in Node."""

from __future__ import annotations

import asyncio
import os
from asyncio.subprocess import PIPE
from collections.abc import Mapping

from . import FOLDER, node_modules, require_node


async def run_script(
    script: str, *args: str, patience: float, variables: Mapping[str, str] | None = None
) -> tuple[int, str, str]:
    """Run a script until it ends. Return its exit status, its output and its errors.

    Args:
        script: the name of the script.
        args: its arguments.
        patience: how long, in seconds, it may take. After this time, it is killed.
        variables: environment variables, in addition to those of this process.

    Raises:
        TimeoutError: the script took longer.
    """
    node = require_node()
    await asyncio.to_thread(node_modules)
    process = await asyncio.create_subprocess_exec(
        node, str(FOLDER / script), *args, stdout=PIPE, stderr=PIPE, env={**os.environ, **(variables or {})}
    )
    try:
        async with asyncio.timeout(patience):
            output, errors = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode is not None
    return process.returncode, output.decode(), errors.decode()
