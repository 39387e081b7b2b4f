"""The scheduler, which shares one backend among many callers."""
