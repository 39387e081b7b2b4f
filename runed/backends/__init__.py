"""Adapters to engines: what computes vectors."""
