"""Lets `python -m runed` be the command `runed`."""

import sys

from runed.cli.main import main

sys.exit(main())
