"""The values that a distributor's build may write into the package."""

from __future__ import annotations

from typing import Final

MANIFEST_URL: Final[str] = ""
"""URL of the manifest, used unless `RUNED_MANIFEST` names another; "" means the pinned one in the package."""
