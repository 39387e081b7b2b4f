"""What a distributor's build may write into the package."""

from __future__ import annotations

from typing import Final

MANIFEST_URL: Final[str] = ""
"""The manifest of this build, used unless `RUNED_MANIFEST` names another; empty means the pinned one in the package."""
