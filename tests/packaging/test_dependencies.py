"""The declared requirements of the package are enough for its code."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[2]
GENERATED_FOR = re.compile(r"^# Protobuf Python Version: (.+)$", re.MULTILINE)


def test_generated_code_runs_with_the_oldest_protobuf_that_is_asked_for() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    [protobuf] = [asked for asked in map(Requirement, project["dependencies"]) if asked.name == "protobuf"]
    [oldest] = [Version(bound.version) for bound in protobuf.specifier if bound.operator == ">="]
    stubs = list((ROOT / "gen" / "python").rglob("*_pb2.py"))
    generated = [Version(version) for stub in stubs for version in GENERATED_FOR.findall(stub.read_text())]
    assert len(generated) == len(stubs) > 0
    assert max(generated) <= oldest  # protobuf refuses to load code that is newer than itself
