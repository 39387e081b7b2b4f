"""The program `runed`, also as `python -m runed`."""

import signal
import sys

if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    # Ctrl-C during the imports below, which take a tenth of a second, ends the process without a trace; see `guarded`.
    signal.signal(signal.SIGINT, signal.SIG_DFL)

from runed.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
