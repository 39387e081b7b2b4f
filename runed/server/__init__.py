"""Hypercorn on a listening UNIX socket, with an HTTP/2 that holds up under gRPC load."""
