"""The faces of the daemon: the contract of proto/runed/v1, and the OpenAI API."""
