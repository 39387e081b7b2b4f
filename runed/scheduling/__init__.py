"""Sharing one backend: splitting, ordering and the idle clock."""
