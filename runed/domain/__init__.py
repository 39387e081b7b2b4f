"""What all floors talk of: requests, answers, models, states and vectors, as plain data."""
