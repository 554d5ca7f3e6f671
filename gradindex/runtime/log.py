"""The package's log: what is decided, and what is slower or less exact than was hoped."""

import logging

log = logging.getLogger("gradindex")
