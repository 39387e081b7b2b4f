"""The version of runed, read by the build, the CLI and the daemon."""

__version__ = "0.1.0"
