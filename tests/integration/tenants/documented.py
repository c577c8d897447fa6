"""The module `project/tenants.py` of docs/tenants.md."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

page = (Path(__file__).parents[3] / "docs" / "tenants.md").read_text()
(code,) = re.findall(r"^```python\n(# project/tenants\.py\n.*?)^```", page, re.MULTILINE | re.DOTALL)

namespace: Any
TenantConsumer: Any
TenantMiddleware: Any
exec(compile(code, "docs/tenants.md", "exec"))  # noqa: S102 - the code of the page is what is tested
