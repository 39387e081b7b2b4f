"""The calls as flows of steps, without input or output."""
