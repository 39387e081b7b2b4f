"""The page that shows what the daemon does, in a browser. It is served on the loopback port."""

ROOT = "/"
"""The path of the page itself. Programs of other APIs use it, too, so that only browsers get the page."""

STATE = "/page/state"
"""The path of what the page shows, as JSON. It is served on the socket, too."""

SIMILARITY = "/page/similarity"
"""The path that compares two texts."""

LINK = "/page/link"
"""The path that makes a link to the page. It is served on the socket alone."""
