"""Plain data that all floors share: requests, answers, models, states and vectors."""
