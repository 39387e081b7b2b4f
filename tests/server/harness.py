"""Servers, an app and raw HTTP/2 clients for the tests of the server: ours, and stock Hypercorn beside it."""
