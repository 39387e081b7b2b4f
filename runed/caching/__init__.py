"""The cache of vectors, in memory and on disk."""
