"""Embeds files of any size. A journal lets an interrupted job resume. `runner.run_job` is the entry."""
