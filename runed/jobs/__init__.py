"""Embed files of any size. A journal lets an interrupted job go on where it ended. `runner.run_job` is the entry."""
