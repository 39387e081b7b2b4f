"""Embedding files of any size, with a journal to go on from."""
