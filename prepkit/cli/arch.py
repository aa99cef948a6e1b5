"""`prepkit arch`: the registered architectures, without importing torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from prepkit.cli.completion import architectures, names
from prepkit.cli.output import Output, json_option
from prepkit.support.text import shape_text, table

if TYPE_CHECKING:
    from prepkit.families.registry import Architecture
    from prepkit.prep.layout import Layout


@click.group()
def arch() -> None:
    """List and describe the registered architectures."""


@arch.command("list")
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


@arch.command()
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
