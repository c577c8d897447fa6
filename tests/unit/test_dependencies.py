"""The versions of dependencies that pyproject.toml allows have none of the faults in .ci/known_faults.toml."""

from __future__ import annotations

import datetime
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
KNOWN = tomllib.loads((ROOT / ".ci" / "known_faults.toml").read_text())
EXTRAS = ("uvicorn", "celery", "jwt", "nats", "grpc")

REQUIREMENTS = {
    requirement.name: requirement
    for text in [
        *PROJECT["dependencies"],
        *(text for extra in EXTRAS for text in PROJECT["optional-dependencies"][extra]),
    ]
    for requirement in [Requirement(text)]
}


def lowest(requirement: Requirement) -> Version:
    """Return the lowest version that a requirement allows."""
    (version,) = [each.version for each in requirement.specifier if each.operator == ">="]
    return Version(version)


@pytest.mark.parametrize("fault", KNOWN["fault"], ids=lambda fault: f"{fault['package']} {fault['fixed']}")
def test_no_version_with_a_known_fault_is_allowed(fault: dict[str, str]) -> None:
    assert lowest(REQUIREMENTS[fault["package"]]) >= Version(fault["fixed"]), fault["effect"]


def test_every_dependency_was_reviewed() -> None:
    assert set(KNOWN["reviewed"]) == set(REQUIREMENTS)


def test_every_fault_was_published_before_its_package_was_reviewed() -> None:
    for fault in KNOWN["fault"]:
        assert isinstance(fault["published"], datetime.date)
        assert fault["published"] <= KNOWN["reviewed"][fault["package"]], fault["id"]
