"""Let a fork of `fake_service.py forks SOCKET` take the place of this process. That is faster than to import what it needs.

hand_over.py SOCKET OPTIONS serve --log-file FILE --ready-fd N
"""

from __future__ import annotations

import json
import os
import socket
import sys

path, *arguments, flag, ready_fd = sys.argv[1:]
assert flag == "--ready-fd"
with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection:
    connection.connect(path)
    message = json.dumps({"arguments": arguments, "environment": dict(os.environ)}).encode()
    socket.send_fds(connection, [message], [0, 1, 2, int(ready_fd)])
    connection.recv(1)  # until the fork has the descriptors
