"""What griffe calls for the reference of Python: docstrings as Markdown.

The docstrings are plain text: paragraphs, items such as `width:  text` and `raises X  text` whose lines are indented,
and examples after `>>>`.
"""

from __future__ import annotations

import re
from typing import Any

import griffe

ITEM = re.compile(r"^(?P<names>[\w*]+(?:, [\w*]+)*): +(?P<text>\S.*)$|^(?P<verb>raises|returns) (?P<rest>.*)$")


class PlainDocstrings(griffe.Extension):
    """Turns each docstring into Markdown when it is read."""

    def on_instance(self, *, obj: griffe.Object, **_: Any) -> None:
        """Change the docstring of an object."""
        if obj.docstring is not None:
            obj.docstring.value = markdown(obj.docstring.value)


def markdown(text: str) -> str:
    """Return a docstring as Markdown: items as a list, examples as code."""
    paragraphs = [_paragraph(part.split("\n")) for part in re.split(r"\n[ ]*\n", text)]
    return "\n\n".join(paragraphs)


def _paragraph(lines: list[str]) -> str:
    if lines[0].lstrip().startswith(">>>") or all(line.startswith("    ") for line in lines):
        code = [line.removeprefix("    ") if not lines[0].lstrip().startswith(">>>") else line for line in lines]
        return "```python\n" + "\n".join(code) + "\n```"
    if not ITEM.match(lines[0]):
        # A heading of items may stand on the lines before them.
        first = next((place for place, line in enumerate(lines) if ITEM.match(line)), len(lines))
        if first == len(lines) or not any(line.startswith(" ") for line in lines):
            return "\n".join(lines)
        return "\n".join(lines[:first]) + "\n\n" + _paragraph(lines[first:])
    items: list[str] = []
    for line in lines:
        found = ITEM.match(line)
        if found:
            named = found["names"] is not None
            items.append(
                f"- **{found['names']}**: {found['text']}" if named else f"- *{found['verb']}* {found['rest']}"
            )
        else:
            items[-1] += " " + line.strip()
    return "\n".join(items)
