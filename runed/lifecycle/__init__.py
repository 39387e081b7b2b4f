"""The one daemon of a home: its socket, its record, and its start."""
