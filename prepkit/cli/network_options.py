"""`--arch` and `--input`: the network that a checkpoint holds."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from prepkit.cli.completion import architectures, names

if TYPE_CHECKING:
    from prepkit.families.registry import Architecture

DTYPES = ("float32", "float64", "float16", "bfloat16")
F = TypeVar("F", bound=Callable[..., Any])


class InputShape(click.ParamType[tuple[int, ...]]):
    """`3x32x32` -> (3, 32, 32): the shape of one input, without the batch axis."""

    name = "CxHxW"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, ...]:
        """Parse a shape, or fail with an example."""
        if isinstance(value, tuple):
            return value
        parts = str(value).lower().split("x")
        if not all(part.isascii() and part.isdigit() and int(part) > 0 for part in parts):
            self.fail(f"{value!r} is not a shape such as 3x32x32.", param, ctx)
        return tuple(int(part) for part in parts)


def architecture_options(command: F) -> F:
    """Add `--arch` and `--input`."""
    command = click.option(
        "--input",
        "input_shape",
        type=InputShape(),
        metavar="CxHxW",
        help="Shape of one input of a module:callable, without the batch axis.",
    )(command)
    return click.option(
        "--arch",
        "architecture",
        metavar="NAME|module:callable",
        shell_complete=names(architectures),
        help="The network: a registered name (see `prepkit arch list`) or a Python callable that builds it. "
        "[default: a registered one is recognised]",
    )(command)


key_option = click.option("--key", help="Name of the state dict, if a file holds several (dotted: ema.model).")
bn_option = click.option(
    "--bn",
    type=click.Choice(("fold", "affine")),
    default="fold",
    show_default=True,
    help="A BatchNorm that has no layer to go into is refused (fold) or becomes a scale and a shift of each channel "
    "(affine).",
)


def find_architecture(name: str | None, input_shape: tuple[int, ...] | None) -> Architecture | None:
    """Return the Architecture that `--arch` and `--input` name, or None if neither was given."""
    if name is None:
        if input_shape is not None:
            raise click.UsageError("--input goes with --arch module:callable.")
        return None
    from prepkit.families import registry

    if ":" not in name:
        if input_shape is not None:
            raise click.UsageError(f"--input goes with --arch module:callable; '{name}' has its own.")
        return registry.architecture(name)
    if input_shape is None:
        raise click.UsageError(f"--arch {name} also needs --input, the shape of one input such as 3x32x32.")
    sys.path.insert(0, str(Path.cwd()))  # as `python -m` does, since the callable may lie in the user's folder
    return registry.architecture_from_callable(name, input_shape)
