"""A release has one version, wherever it stands."""

from __future__ import annotations

from runed.version import __version__
from tools.release import versions


def test_each_part_has_the_version_of_the_daemon() -> None:
    assert sorted(versions()) == [
        ("clients/go/go.mod", __version__),
        ("clients/go/version.go", __version__),
        ("clients/ts/package-lock.json", __version__),
        ("clients/ts/package.json", __version__),
        ("clients/ts/src/version.ts", __version__),
    ]
