"""The examples that end the help of every command."""

from __future__ import annotations


def examples(*lines: str) -> str:
    """Return an epilog of command lines, which stay as they are; after ` # ` a line may say what it does."""
    return "\n".join(["\b", "Example:" if len(lines) == 1 else "Examples:", *(f"  {line}" for line in lines)])
