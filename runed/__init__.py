"""runed: one embedding model per machine, shared by all its processes."""

from runed.version import __version__

__all__ = ["__version__"]
