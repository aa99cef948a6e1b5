"""Options that take pairs, NAME=VALUE,NAME=VALUE."""

from __future__ import annotations

from typing import Any

import click


class Pairs(click.ParamType[dict[str, str]]):
    """`accuracy=float,code=text` -> {"accuracy": "float", "code": "text"}.

    example:      pairs, for an error
    or_name_only: whether `run` stands for `run=run`
    """

    def __init__(self, name: str, example: str, *, or_name_only: bool = False) -> None:
        self.name, self.example, self.or_name_only = name, example, or_name_only

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> dict[str, str]:
        """Parse pairs, or fail with an example; what they name is checked where it is used."""
        if isinstance(value, dict):
            return value
        parts = str(value).split(",")
        if self.or_name_only:
            parts = [part if "=" in part else f"{part}={part}" for part in parts]
        pairs = [part.rpartition("=") for part in parts]
        if not all(name and kind for name, _, kind in pairs):
            self.fail(f"{value!r} does not name {self.example}.", param, ctx)
        return {name.strip(): kind.strip() for name, _, kind in pairs}
