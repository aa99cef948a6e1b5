"""Loggers of the library, which are silent until the program that uses it gives them a handler or a level.

What everybody must know is an error, a note or a warning. What only those want to know who look for a reason is logged:
INFO says what is done, and DEBUG how.
"""

from __future__ import annotations

import logging


def logger(module: str) -> logging.Logger:
    """Return the logger of a module, such as `prepkit.hub.pull`, below that of its package."""
    package = logging.getLogger(module.partition(".")[0])
    if not package.handlers:
        package.addHandler(logging.NullHandler())
    return logging.getLogger(module)
