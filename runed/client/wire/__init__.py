"""Bytes to messages and back: HTTP/1.1 for calls, HTTP/2 for streams."""
