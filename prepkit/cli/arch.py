"""`prepkit arch`: the registered architectures, without importing torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from prepkit.cli.completion import architectures, names
from prepkit.cli.examples import examples
from prepkit.cli.network_options import ARGUMENT_HELP, INPUT_HELP, Argument, InputShape, named_architecture
from prepkit.cli.output import Output, json_option
from prepkit.support.text import shape_text, table

if TYPE_CHECKING:
    from prepkit.families.registry import Architecture
    from prepkit.prep.layout import Layout


@click.group(
    epilog=examples(
        "prepkit arch list",
        "prepkit arch show resnet8@cifar10 --width 512",
        "prepkit arch symmetries lenet_like@digits",
    )
)
def arch() -> None:
    """List and describe the registered architectures."""


@arch.command("list", epilog=examples("prepkit arch list", "prepkit arch list --json"))
@json_option
def list_(out: Output) -> None:
    """List all architectures.

    The parameters are those of a packed network, whose BatchNorms are folded.
    """
    from prepkit.families import registry

    known = [registry.architecture(name) for name in registry.architectures()]
    rows = [
        (a.name, _class_id(a.name, "-"), a.num_parameters, a.num_trainable, shape_text(a.input_shape)) for a in known
    ]
    text = table(rows, ("name", "ClassId", "parameters", "with BatchNorm", "input"))
    out.result({"architectures": [_facts(architecture) for architecture in known]}, text)


@arch.command(
    epilog=examples("prepkit arch show resnet8@cifar10", "prepkit arch show resnet8@cifar10 --width 1024 --json")
)
@click.argument("name", shell_complete=names(architectures))
@click.option("--width", default=512, show_default=True, help="Width of the PRep, which decides its height.")
@json_option
def show(name: str, width: int, out: Output) -> None:
    """Describe an architecture: its layers and its PRep's height.

    The layers are listed in the order in which they are packed.
    """
    from prepkit.families import registry

    architecture = registry.architecture(name)
    layout = architecture.layout
    shape = layout.shape(width)
    document = {**_facts(architecture), "height": shape.height, "width": shape.width, "layout": layout.to_dict()}
    class_id = _class_id(name, "none")
    text = (
        f"{name}: family {architecture.family}, ClassId {class_id}, input {shape_text(architecture.input_shape)}\n"
        f"{architecture.num_parameters:,} packed parameters ({architecture.num_trainable:,} with BatchNorm), "
        f"PRep {shape} ({architecture.num_parameters / shape.cells:.1%} filled)\n\n"
        f"{slot_table(layout)}"
    )
    out.result(document, text)


@arch.command(
    "symmetries",
    epilog=examples(
        "prepkit arch symmetries lenet_like@digits",
        "prepkit arch symmetries my_package.nets:small_net --input 3x32x32 --arch-arg width=16",
    ),
)
@click.argument("name", metavar="NAME|module:callable", shell_complete=names(architectures))
@click.option("--input", "input_shape", type=InputShape(), metavar="CxHxW", help=INPUT_HELP)
@click.option("--arch-arg", "arguments", type=Argument(), multiple=True, metavar="NAME=VALUE", help=ARGUMENT_HELP)
@click.option("--keep-bn", is_flag=True, help="Take the network with its BatchNorms. [default: fold them, as PReps do]")
@json_option
def symmetries(
    name: str,
    input_shape: tuple[int, ...] | None,
    arguments: tuple[tuple[str, Any], ...],
    keep_bn: bool,
    out: Output,
) -> None:
    """Show which hidden units may change places, with proof.

    One run tells which they are, and further runs in float64, with units in a random order, prove it. P_0, P_1 and so
    on are groups of units; along an axis, `P_1 x 9` means nine values for each unit, and `P_0 + P_1` one group after
    another. The values of some units can also be multiplied by any positive number (scale) or by -1 (sign), or half a
    period can be added to the bias of a sine (phase). Whatever stays as it is, is listed with the reason.
    """
    from prepkit.cli.symmetry_text import symmetry_text
    from prepkit.symmetry.derive import symmetries as derive

    architecture = named_architecture(name, input_shape, dict(arguments))
    found = derive(architecture, keep_batch_norm=keep_bn)
    out.result({"name": architecture.name, **found.to_dict()}, symmetry_text(architecture.name, found))


def slot_table(layout: Layout) -> str:
    """Return the slots of a layout as text."""
    rows = [(slot.start, slot.name, shape_text(slot.shape), slot.size, slot.dtype, slot.kind) for slot in layout]
    return table(rows, ("start", "name", "shape", "values", "dtype", "kind"))


def _facts(architecture: Architecture) -> dict[str, Any]:
    return {
        "name": architecture.name,
        "family": architecture.family,
        "class_id": _class_id(architecture.name),
        "input_shape": list(architecture.input_shape),
        "num_parameters": architecture.num_parameters,
        "num_trainable": architecture.num_trainable,
    }


def _class_id(name: str, missing: str | None = None) -> int | str | None:
    from prepkit.families.registry import default_class_id

    class_id = default_class_id(name)
    return missing if class_id is None else class_id
