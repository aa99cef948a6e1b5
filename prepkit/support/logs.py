"""Loggers of the library, which are silent until the program that uses it gives them a handler or a level.

What everybody must know is an error, a note or a warning. What only those want to know who look for a reason is logged:
INFO says what is done, and DEBUG how.
"""

from __future__ import annotations

import logging

from prepkit.support.text import is_unicode


def logger(module: str) -> logging.Logger:
    """Return the logger of a module, such as `prepkit.hub.pull`, below that of its package.

    Its messages can be written to any file: bytes of a path that are no text stand there as `\\udcff`.
    """
    package = logging.getLogger(module.partition(".")[0])
    if not package.handlers:
        package.addHandler(logging.NullHandler())
    found = logging.getLogger(module)
    if _escape not in found.filters:
        found.addFilter(_escape)
    return found


def _escape(record: logging.LogRecord) -> bool:
    message = record.getMessage()
    if not is_unicode(message):
        record.msg, record.args = message.encode("utf-8", "backslashreplace").decode(), ()
    return True
