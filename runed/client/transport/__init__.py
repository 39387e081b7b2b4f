"""The steps of a call over a socket, blocking and on asyncio."""
