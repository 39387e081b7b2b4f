"""The contract of proto/runed/v1 on top of the host."""
