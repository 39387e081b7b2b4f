"""Adapters for frameworks and libraries, one in each module; see docs/clients.md."""
