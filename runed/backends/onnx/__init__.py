"""ONNX Runtime as a backend."""

from __future__ import annotations

import os

# Otherwise its import writes a number of this machine and a store of events for Microsoft below ~/.cache. This package comes
# before it, and a child has the variable, too. `worker.py` is no module of this package, and sets it itself.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"
