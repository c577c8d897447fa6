"""Another process of the project: makes the calls that come as JSON lines, and answers in JSON lines."""

from __future__ import annotations

import json
import sys

import django

django.setup()

from tests.integration.project.calls import perform  # noqa: E402 - needs the apps

for line in sys.stdin:
    sys.stdout.write(json.dumps(perform(json.loads(line))) + "\n")
    sys.stdout.flush()
