"""`prepkit pack`, `unpack`, `fuse`, `show` and `inspect`."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from prepkit.cli.common import (
    architecture_options,
    find_architecture,
    force_option,
    json_option,
    print_json,
)
from prepkit.cli.models import Model, at_hand
from prepkit.errors import OutputError
from prepkit.progress import ProgressBar

if TYPE_CHECKING:
    from prepkit.address import HubAddress
    from prepkit.fusion.fold import Fusion
    from prepkit.packing import Packed
    from prepkit.prep.layout import Layout

PREP_SUFFIX = ".prep.safetensors"
INDEX_SUFFIX = ".safetensors.index.json"
DTYPES = ("float32", "float64", "float16", "bfloat16")
key_option = click.option("--key", help="Which state dict of the file, where several fit (dotted: ema.model).")


@click.command()
@click.argument("models", nargs=-1, required=True, type=Model(), metavar="MODEL...")
@click.option("--width", default=512, show_default=True, help="Columns of the PRep, a multiple of 8.")
@click.option("--height", type=int, help="Rows, a multiple of 4. [default: the least that holds all parameters]")
@architecture_options
@key_option
@click.option("--keep-bn", is_flag=True, help="Pack BatchNorm with its running statistics instead of folding it.")
@click.option("--dtype", type=click.Choice(DTYPES), help="Cast to this dtype. [default: keep each tensor's own]")
@click.option("--allow-nonfinite", is_flag=True, help="Pack NaN and infinity too.")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="The PRep file, or a folder for several.")
@force_option
@json_option
def pack(
    models: tuple[Path | HubAddress, ...],
    width: int,
    height: int | None,
    architecture: str | None,
    input_shape: tuple[int, ...] | None,
    key: str | None,
    keep_bn: bool,
    dtype: str | None,
    allow_nonfinite: bool,
    output: Path | None,
    force: bool,
    as_json: bool,
) -> None:
    """Pack checkpoints into PReps: recognise the network, fold its BatchNorm, write it as one matrix, check it.

    MODEL is a .pt, .pth or .safetensors file (sharded ones by their index), or one of the Hub: hf://user/model, with
    @revision and /path/of/a/file where they are needed. Writes <stem>.prep.safetensors in the
    current folder unless -o says otherwise.
    """
    from prepkit.prep.shape import PRepShape

    PRepShape.least(1, width)
    targets = _targets(models, output)
    for target in targets:
        _check_target(target, models, force)
    network = find_architecture(architecture, input_shape)

    from prepkit.packing import pack_checkpoint
    from prepkit.prep.file import save_prep

    records = []
    with ProgressBar("packing", "model", quiet=as_json or len(models) == 1) as bar:
        bar.begin(len(models))
        for model, target in zip(models, targets, strict=True):
            with at_hand(model, as_json) as found:
                packed = pack_checkpoint(
                    found.file,
                    width=width,
                    height=height,
                    architecture=network,
                    key=key,
                    keep_batch_norm=keep_bn,
                    dtype=dtype,
                    allow_nonfinite=allow_nonfinite,
                )
            save_prep(packed.prep, target, overwrite=force)
            records.append(_record(packed, found.source, target))
            if not as_json:
                click.echo(_summary(packed, found.source, target))
            bar.advance(1)
    if as_json:
        print_json({"packed": records})


@click.command()
@click.argument("prep", type=click.Path(path_type=Path), metavar="PREP")
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    help="MODEL.pt or .safetensors. [default: <stem>.unpacked.pt]",
)
@force_option
@json_option
def unpack(prep: Path, output: Path | None, force: bool, as_json: bool) -> None:
    """Write a PRep's tensors as a plain state dict that torch.load or safetensors reads without prepkit."""
    from prepkit.checkpoint.export import save_state_dict, writer_for

    target = output or Path(f"{_stem(prep)}.unpacked.pt")
    writer_for(target)
    _check_target(target, [prep], force)

    from prepkit.prep.file import load_prep

    tensors = load_prep(prep).tensors()
    save_state_dict(tensors, target, overwrite=force)
    if as_json:
        print_json({"output": str(target), "tensors": len(tensors)})
    else:
        click.echo(f"{prep} -> {target}: {len(tensors)} tensors")


@click.command()
@click.argument("model", type=click.Path(path_type=Path))
@architecture_options
@key_option
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="MODEL.pt or MODEL.safetensors.")
@force_option
@json_option
def fuse(
    model: Path,
    architecture: str | None,
    input_shape: tuple[int, ...] | None,
    key: str | None,
    output: Path,
    force: bool,
    as_json: bool,
) -> None:
    """Fold BatchNorm into the layers before it and write the equivalent network's state dict."""
    from prepkit.checkpoint.export import save_state_dict, writer_for

    writer_for(output)
    _check_target(output, [model], force)
    network = find_architecture(architecture, input_shape)

    from prepkit.packing import fold_checkpoint

    tensors, fusion = fold_checkpoint(model, network, key=key)
    save_state_dict(tensors, output, overwrite=force)
    if as_json:
        print_json({"output": str(output), **_fusion_record(fusion)})
    else:
        click.echo(f"{model} -> {output}\n  folded        {_fusion_text(fusion)}")


@click.command()
@click.argument("prep", type=click.Path(path_type=Path), metavar="PREP")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="The picture. [default: <stem>.png]")
@force_option
@json_option
def show(prep: Path, output: Path | None, force: bool, as_json: bool) -> None:
    """Draw a PRep as a picture: robust colours, layer boundaries, padding in grey."""
    target = output or Path(f"{_stem(prep)}.png")
    if target.suffix.lower() != ".png":
        raise OutputError(f"'{target}': the picture is a PNG; name it {target.stem}.png.")
    _check_target(target, [prep], force)

    from prepkit.figures import draw_prep
    from prepkit.prep.file import load_prep

    loaded = load_prep(prep)
    name = loaded.origin.architecture or "unknown architecture"
    title = f"{prep.name}: {name}, {loaded.layout.total:,} values in {loaded.shape}"
    draw_prep(loaded, target, title=title, overwrite=force)
    if as_json:
        print_json({"output": str(target)})
    else:
        click.echo(f"{prep} -> {target}")


@click.command()
@click.argument("path", type=click.Path(path_type=Path))
@key_option
@json_option
def inspect(path: Path, key: str | None, as_json: bool) -> None:
    """Describe a PRep file or a checkpoint: what it is, and its tensors in packing order."""
    from prepkit.cli.arch import slot_table
    from prepkit.prep.file import is_prep_file

    if is_prep_file(path):
        facts, layout = _inspect_prep(path)
    else:
        from prepkit.packing import describe_checkpoint

        facts, layout = describe_checkpoint(path, key)
    if as_json:
        print_json({"path": str(path), **facts, "layout": layout.to_dict()})
        return
    click.echo(str(path))
    for name, value in facts.items():
        click.echo(f"  {name.replace('_', ' '):<15} {_text(value)}")
    click.echo(f"\n{slot_table(layout)}")
    for alias, name in layout.ties:
        click.echo(f"{alias} is tied to {name}")


def _inspect_prep(path: Path) -> tuple[dict[str, Any], Layout]:
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
    }, header.layout


def _targets(models: tuple[Path | HubAddress, ...], output: Path | None) -> list[Path]:
    """One target a model, all different."""
    is_folder = output is not None and os.path.isdir(output)  # Path.is_dir raises for a name that is too long
    if output is not None and len(models) == 1 and not is_folder:
        return [output]
    if output is not None and not is_folder:
        raise OutputError(f"-o '{output}' must be an existing folder for {len(models)} models.")
    targets = [(output or Path()) / f"{_name_of(model)}{PREP_SUFFIX}" for model in models]
    twice = {str(target) for target in targets if targets.count(target) > 1}
    if twice:
        raise OutputError(f"two models would both become {min(twice)}; pack them one at a time with -o.")
    return targets


def _name_of(model: Path | HubAddress) -> str:
    """What names the target: the file's stem, or the repository where an address has no path."""
    if isinstance(model, Path):
        return _stem(model)
    return _stem(Path(model.path)) if model.path else model.repo_id.rpartition("/")[2]


def _check_target(target: Path, sources: Iterable[Path | HubAddress], force: bool) -> None:
    """Raise OutputError before any work is done for a result that could not be written, or would replace its source."""
    from prepkit.files import check_writable

    if target.resolve() in {source.resolve() for source in sources if isinstance(source, Path)}:
        raise OutputError(f"'{target}' is the file to be read; name another one for the result.")
    check_writable(target, overwrite=force)


def _stem(path: Path) -> str:
    """The name without its suffix: `model` for model.pt, model.prep.safetensors and model.safetensors.index.json."""
    suffix = next((suffix for suffix in (PREP_SUFFIX, INDEX_SUFFIX) if path.name.endswith(suffix)), path.suffix)
    return path.name.removesuffix(suffix)


def _record(packed: Packed, source: str, target: Path) -> dict[str, Any]:
    prep = packed.prep
    return {
        "source": source,
        "source_format": packed.source_format,
        "source_sha256": prep.origin.source_sha256,
        "output": str(target),
        "architecture": prep.origin.architecture,
        "class_id": prep.origin.class_id,
        "num_parameters": prep.layout.num_parameters,
        "height": prep.shape.height,
        "width": prep.shape.width,
        "dtype": prep.layout.dtype,
        "fill": prep.layout.total / prep.shape.cells,
        "layout_sha256": prep.layout.sha256,
        **(_fusion_record(packed.fusion) if packed.fusion else {"folded": []}),
    }


def _fusion_record(fusion: Fusion) -> dict[str, Any]:
    return {
        "folded": [item.layer for item in fusion.folded],
        "error_before_cast": fusion.error_before_cast,
        "error_after_cast": fusion.error_after_cast,
    }


def _fusion_text(fusion: Fusion) -> str:
    return (
        f"{len(fusion.folded)} BatchNorm layers; outputs equal within {fusion.error_before_cast:.1e} in float64, "
        f"{fusion.error_after_cast:.1e} after the cast back"
    )


def _summary(packed: Packed, source: str, target: Path) -> str:
    prep = packed.prep
    layout, shape, origin = prep.layout, prep.shape, prep.origin
    class_id = "" if origin.class_id is None else f" (ClassId {origin.class_id})"
    before = f" ({packed.num_trained:,} before folding)" if packed.fusion else ""
    before_cast = f", before the cast to {packed.cast}" if packed.cast else ""
    in_dtype = f" in {packed.cast}" if packed.cast else ""
    lines = [
        f"{source} -> {target}",
        f"  architecture  {origin.architecture or 'unknown; tensors in natural name order'}{class_id}",
        f"  parameters    {layout.num_parameters:,}{before}",
        f"  PRep          {shape} {layout.dtype}, {layout.total / shape.cells:.1%} filled",
        *([f"  folded        {_fusion_text(packed.fusion)}{before_cast}"] if packed.fusion else []),
        f"  round trip    exact: {len(layout.names) + len(prep.buffers)} tensors come back bit for bit{in_dtype}",
    ]
    return "\n".join(lines)


def _text(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "-"
    return f"{value:,}" if type(value) is int else str(value)
