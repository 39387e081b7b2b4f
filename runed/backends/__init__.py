"""Adapters to engines, which compute vectors."""
