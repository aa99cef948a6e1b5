"""`prepkit show` and `prepkit inspect`: what a PRep or a checkpoint holds."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from prepkit.cli.arch import slot_table
from prepkit.cli.common import force_option
from prepkit.cli.examples import examples
from prepkit.cli.models import check_models
from prepkit.cli.network_options import key_option
from prepkit.cli.output import Output, json_option
from prepkit.cli.targets import check_target, stem
from prepkit.errors import OutputError, counted

if TYPE_CHECKING:
    from prepkit.prep.layout import Layout


@click.command(
    epilog=examples("prepkit show model.prep.safetensors", "prepkit show model.prep.safetensors -o picture.png --force")
)
@click.argument("prep", type=click.Path(path_type=Path), metavar="PREP")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="The picture. [default: <stem>.png]")
@force_option
@json_option
def show(prep: Path, output: Path | None, force: bool, out: Output) -> None:
    """Draw a PRep as a picture.

    The colours are robust against outliers, lines show where layers begin, and padding is grey.
    """
    target = output or Path(f"{stem(prep)}.png")
    if target.suffix.lower() != ".png":
        raise OutputError(f"'{target}': the picture is a PNG; name it {target.stem}.png.")
    check_target(target, [prep], force)

    from prepkit.figures import draw_prep
    from prepkit.prep.file import load_prep

    loaded = load_prep(prep)
    name = loaded.origin.architecture or "unknown architecture"
    title = f"{prep.name}: {name}, {counted(loaded.layout.total, 'value')} in {loaded.shape}"
    draw_prep(loaded, target, title=title, overwrite=force)
    out.result({"output": str(target)}, f"{prep} -> {target}")


@click.command(epilog=examples("prepkit inspect model.prep.safetensors", "prepkit inspect run.ckpt --key ema --json"))
@click.argument("path", type=click.Path(path_type=Path))
@key_option
@json_option
def inspect(path: Path, key: str | None, out: Output) -> None:
    """Describe a PRep file or a checkpoint.

    The tensors are listed in the order in which they are packed.
    """
    from prepkit.prep.file import is_prep_file

    if is_prep_file(path):
        facts, layout = _facts_of_prep(path)
    else:
        check_models([path])
        facts, layout = facts_of_checkpoint(path, key)
    lines = [str(path), *(f"  {name.replace('_', ' '):<15} {_text(value)}" for name, value in facts.items())]
    lines += ["", slot_table(layout), *(f"{alias} is tied to {name}" for alias, name in layout.ties)]
    out.result({"path": str(path), **facts, "layout": layout.to_dict()}, "\n".join(lines))


def facts_of_checkpoint(path: Path, key: str | None = None) -> tuple[dict[str, Any], Layout]:
    """Return facts about a checkpoint, and the layout in which its tensors would be packed without folding.

    raises CheckpointError, LayoutMismatch
    """
    from prepkit.checkpoint.load import load_checkpoint
    from prepkit.families.registry import default_class_id
    from prepkit.packing import batch_norms, naming, prepare
    from prepkit.prep.slot import classified

    place = f"'{path}'"
    checkpoint = load_checkpoint(path, key)
    with naming(place):
        classified(checkpoint, lambda name, tensor: False)  # a network cannot load sparse tensors
    _, layout, _, architecture = prepare(checkpoint, None, True, place)
    return {
        "format": checkpoint.format,
        "key": checkpoint.key,
        "prefix": checkpoint.prefix or None,
        "architecture": architecture.name if architecture else None,
        "class_id": default_class_id(architecture.name) if architecture else None,
        "num_parameters": layout.num_parameters,
        "batch_norms": len(batch_norms(checkpoint)),
    }, layout


def _facts_of_prep(path: Path) -> tuple[dict[str, Any], Layout]:
    from prepkit.prep.file import read_prep_header

    header = read_prep_header(path)
    return {
        "format": "PRep file",
        "architecture": header.origin.architecture,
        "class_id": header.origin.class_id,
        "num_parameters": header.layout.num_parameters,
        "height": header.shape.height,
        "width": header.shape.width,
        "dtype": header.dtype,
        "fill": round(header.layout.total / header.shape.cells, 4),
        "folded": list(header.origin.folded),
        "buffers": list(header.buffer_names),
        "source_sha256": header.origin.source_sha256,
        "options": dict(header.origin.options),
    }, header.layout


def _text(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "-"
    if isinstance(value, dict):
        return ", ".join(f"{name}={entry}" for name, entry in value.items()) or "-"
    return f"{value:,}" if type(value) is int else str(value)
