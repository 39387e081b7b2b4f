"""What a call takes, step by step and without input or output."""
