"""Being the one daemon of a home: the lock, the socket, the record, and starting it."""
