"""sha256_of_ids: a sum that names which instances a split holds, so that a run can record what it was trained on.

The ids are sorted by their UTF-8 bytes, each is followed by a line feed, and the sha256 of that text is the sum. So it
does not depend on the order of instances, nor on their values, and others compute it without prepkit:

    LC_ALL=C sort ids.txt | sha256sum        # ids.txt has one id a line
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable


def sha256_of_ids(ids: Iterable[str]) -> str:
    """Return the sum of ids, in hexadecimal digits."""
    text = "".join(f"{id}\n" for id in sorted(ids))  # Python sorts by code points, which is the order of UTF-8 bytes
    return hashlib.sha256(text.encode()).hexdigest()
