"""`python -m reliable_cable.setup` runs `cable_setup` in a project that does not have the app yet.

Django finds the command `cable_setup` only if `reliable_cable` is in `INSTALLED_APPS`. So this program runs the
command through `manage.py shell`. It uses the project's manage.py, which may set paths and environment variables that
the settings need.
"""

import subprocess
import sys
from argparse import ArgumentParser
from pathlib import Path

RUN = "from django.core.management import load_command_class as load; load('reliable_cable', 'cable_setup')"


def main() -> int | str:
    """Run the command. Return its exit code, or an error message for `sys.exit` if there is no manage.py."""
    if not Path("manage.py").is_file():
        return "There is no manage.py here. Change to the folder of your project's manage.py."
    parser = ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--settings")
    known, arguments = parser.parse_known_args()
    settings = ["--settings", known.settings] if known.settings else []
    code = f"{RUN}.run_from_argv({['manage.py', 'cable_setup', *arguments]!r})"
    command = [sys.executable, "manage.py", "shell", *settings, "--verbosity", "0", "--command", code]
    try:
        return subprocess.run(command, check=False).returncode  # noqa: S603 - the user's own arguments
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
