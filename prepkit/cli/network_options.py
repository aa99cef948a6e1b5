"""Options that say which network a checkpoint holds, where in the file it is, and what becomes of its BatchNorm."""

from __future__ import annotations

import functools
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from prepkit.cli.completion import architectures, names

if TYPE_CHECKING:
    from prepkit.families.registry import Architecture

DTYPES = ("float32", "float64", "float16", "bfloat16")


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


class Argument(click.ParamType[tuple[str, Any]]):
    """`width=16` -> ("width", 16): an argument of a builder."""

    name = "NAME=VALUE"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, Any]:
        """Parse an argument, or fail with an example."""
        if isinstance(value, tuple):
            return value
        name, equals, text = str(value).partition("=")
        if not equals or not name.isidentifier():
            self.fail(f"{value!r} is no argument such as width=16.", param, ctx)
        try:
            return name, json.loads(text)
        except ValueError:
            return name, text


@dataclass(frozen=True)
class NetworkOptions:
    """What the user gave for the options of `network_options`."""

    architecture: str | None
    input_shape: tuple[int, ...] | None
    arguments: dict[str, Any]
    key: str | None
    prefix: str | None
    bn: str

    def keywords(self) -> dict[str, Any]:
        """Return them as keyword arguments of `pack_checkpoint`, `fold_checkpoint` and `create_zoo`; imports torch."""
        return {
            "architecture": find_architecture(self.architecture, self.input_shape, self.arguments),
            "key": self.key,
            "prefix": self.prefix,
            "keep_unfoldable": "affine" if self.bn == "affine" else None,
        }


INPUT_HELP = (
    "Shape of one input of a module:callable, without the batch axis. [default: that of its example_input_array]"
)
ARGUMENT_HELP = "Argument of a module:callable, such as width=16, read as JSON or else as text. Repeatable."
key_option = click.option("--key", help="Name of the state dict, if a file holds several (dotted: ema.model).")
keep_bn_option = click.option(
    "--keep-bn", is_flag=True, help="Keep BatchNorm with its running statistics instead of folding it."
)
NETWORK_OPTIONS = (
    click.option(
        "--arch",
        "architecture",
        metavar="NAME|module:callable",
        shell_complete=names(architectures),
        help="The network: a registered name (see `prepkit arch list`) or a Python callable that builds it. "
        "[default: a registered one is recognised]",
    ),
    click.option(
        "--input",
        "input_shape",
        type=InputShape(),
        metavar="CxHxW",
        help=INPUT_HELP,
    ),
    click.option(
        "--arch-arg",
        "builder_arguments",
        type=Argument(),
        multiple=True,
        metavar="NAME=VALUE",
        help=ARGUMENT_HELP,
    ),
    key_option,
    click.option("--prefix", help="Take only names that begin with this, such as model., without it."),
    click.option(
        "--bn",
        type=click.Choice(("fold", "affine")),
        default="fold",
        show_default=True,
        help="A BatchNorm that has no layer to go into is refused (fold) or becomes a scale and a shift of each "
        "channel (affine).",
    ),
)


def network_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options about the network, and hand them to the command as one `network`."""

    @functools.wraps(command)
    def with_network(
        *arguments: Any,
        architecture: str | None,
        input_shape: tuple[int, ...] | None,
        builder_arguments: tuple[tuple[str, Any], ...],
        key: str | None,
        prefix: str | None,
        bn: str,
        **others: Any,
    ) -> Any:
        network = NetworkOptions(architecture, input_shape, dict(builder_arguments), key, prefix, bn)
        return command(*arguments, network=network, **others)

    for option in reversed(NETWORK_OPTIONS):
        option(with_network)
    return with_network


def find_architecture(
    name: str | None, input_shape: tuple[int, ...] | None, arguments: dict[str, Any]
) -> Architecture | None:
    """Return the Architecture that `--arch`, `--input` and `--arch-arg` name, or None if none was given."""
    given = "--input" if input_shape is not None else "--arch-arg" if arguments else None
    if name is None:
        if given:
            raise click.UsageError(f"{given} goes with --arch module:callable.")
        return None
    return named_architecture(name, input_shape, arguments)


def named_architecture(name: str, input_shape: tuple[int, ...] | None, arguments: dict[str, Any]) -> Architecture:
    """Return the architecture of a registered name, or of `module:callable` with its `--input` and `--arch-arg`."""
    given = "--input" if input_shape is not None else "--arch-arg" if arguments else None
    from prepkit.families import registry

    if ":" not in name:
        if given:
            raise click.UsageError(f"{given} goes with a module:callable; '{name}' has its own.")
        return registry.architecture(name)
    sys.path.insert(0, str(Path.cwd()))  # as `python -m` does, since the callable may lie in the user's folder
    return registry.architecture_from_callable(name, input_shape, arguments=arguments)
