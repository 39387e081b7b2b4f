"""Performs the steps of flows over the daemon's socket, blocking and with asyncio."""
