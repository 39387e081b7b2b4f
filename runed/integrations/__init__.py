"""Adapters for frameworks and libraries, each in a module of its own that imports its package; see docs/clients.md."""
