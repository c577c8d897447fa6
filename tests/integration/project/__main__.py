"""Another process of the project. It reads calls as lines of JSON, and writes their results as lines of JSON."""

from __future__ import annotations

import json
import sys

import django

django.setup()

from tests.integration.project.calls import perform  # noqa: E402 - needs the apps

for line in sys.stdin:
    sys.stdout.write(json.dumps(perform(json.loads(line))) + "\n")
    sys.stdout.flush()
