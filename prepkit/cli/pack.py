"""`prepkit pack`, `prepkit unpack` and `prepkit fuse`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from prepkit.cli.common import force_option
from prepkit.cli.models import Model, check_models, model_on_disk
from prepkit.cli.network_options import DTYPES, NetworkOptions, keep_bn_option, network_options
from prepkit.cli.output import Output, json_option
from prepkit.cli.targets import check_target, make_folder_of, prep_targets, stem
from prepkit.errors import counted, listed

if TYPE_CHECKING:
    from torch import Tensor

    from prepkit.address import HubAddress
    from prepkit.casting import Rounding
    from prepkit.fusion.fold import Fusion
    from prepkit.packing import Packed


@click.command()
@click.argument("models", nargs=-1, required=True, type=Model(), metavar="MODEL...")
@click.option("--width", default=512, show_default=True, help="Columns of the PRep, a multiple of 8.")
@click.option("--height", type=int, help="Rows, a multiple of 4. [default: the least that holds all parameters]")
@network_options
@keep_bn_option
@click.option("--dtype", type=click.Choice(DTYPES), help="Cast to this dtype. [default: keep each tensor's dtype]")
@click.option("--allow-nonfinite", is_flag=True, help="Pack NaN and infinity too.")
@click.option("--allow-underflow", is_flag=True, help="Let --dtype turn values that are too small for it into 0.")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="The PRep file, or a folder for several.")
@force_option
@json_option
def pack(
    models: tuple[Path | HubAddress, ...],
    width: int,
    height: int | None,
    network: NetworkOptions,
    keep_bn: bool,
    dtype: str | None,
    allow_nonfinite: bool,
    allow_underflow: bool,
    output: Path | None,
    force: bool,
    out: Output,
) -> None:
    """Pack checkpoints into PReps, and check them.

    Each network is recognised, its BatchNorms are folded, and its parameters are written as one matrix.

    MODEL is a .pt, .pth or .safetensors file, the index of a sharded model or its folder, or an address on the Hub:
    hf://user/model, with @revision and /path/of/a/file where they are needed. The PRep is written to
    <stem>.prep.safetensors in the current folder unless -o names another place.
    """
    from prepkit.prep.shape import PRepShape

    PRepShape.least(1, width)
    targets = prep_targets(models, output)
    check_models(models)
    keywords = network.keywords()
    make_folder_of(targets)
    for target in targets:
        check_target(target, models, force)

    from prepkit.packing import pack_checkpoint
    from prepkit.prep.file import save_prep

    documents = []
    with out.bar("packing", "model", quiet=len(models) == 1) as bar:
        bar.begin(len(models))
        for model, target in zip(models, targets, strict=True):
            with model_on_disk(model, out.as_json) as local:
                packed = pack_checkpoint(
                    local.file,
                    width=width,
                    height=height,
                    keep_batch_norm=keep_bn,
                    dtype=dtype,
                    allow_nonfinite=allow_nonfinite,
                    allow_underflow=allow_underflow,
                    **keywords,
                )
            save_prep(packed.prep, target, overwrite=force)
            documents.append(_document(packed, local.source, target))
            out.part(_summary(packed, local.source, target))
            out.notes(_notes(packed.fusion))
            bar.advance(1)
    out.end({"packed": documents})


@click.command()
@click.argument("prep", type=click.Path(path_type=Path), metavar="PREP")
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    help="MODEL.pt or MODEL.safetensors. [default: <stem>.unpacked.pt]",
)
@click.option("--strip-prefix", is_flag=True, help="Leave out a prefix of all names such as `module.`.")
@force_option
@json_option
def unpack(prep: Path, output: Path | None, strip_prefix: bool, force: bool, out: Output) -> None:
    """Write a PRep's tensors as a plain state dict.

    torch.load or safetensors reads it without prepkit. The names are those of the checkpoint that was packed.
    """
    from prepkit.checkpoint.export import save_state_dict, writer_for

    target = output or Path(f"{stem(prep)}.unpacked.pt")
    writer_for(target)
    check_target(target, [prep], force)

    from prepkit.prep.file import load_prep

    loaded = load_prep(prep)
    tensors = loaded.state_dict(prefix=not strip_prefix)
    save_state_dict(tensors, target, overwrite=force)
    prefix = "" if strip_prefix else loaded.origin.prefix
    document = {"output": str(target), "tensors": len(tensors), "prefix": prefix or None}
    named = f", named '{prefix}*' as in the checkpoint (--strip-prefix leaves that out)" if prefix else ""
    out.result(document, f"{prep} -> {target}: {counted(len(tensors), 'tensor')}{named}")


@click.command()
@click.argument("model", type=click.Path(path_type=Path))
@network_options
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="MODEL.pt or MODEL.safetensors.")
@force_option
@json_option
def fuse(
    model: Path,
    network: NetworkOptions,
    output: Path,
    force: bool,
    out: Output,
) -> None:
    """Fold BatchNorm into the layers before it.

    The state dict of the equivalent network is written.
    """
    from prepkit.checkpoint.export import save_state_dict, writer_for

    writer_for(output)
    check_target(output, [model], force)
    check_models([model])
    keywords = network.keywords()

    from prepkit.packing import fold_checkpoint

    tensors, fusion = fold_checkpoint(model, **keywords)
    save_state_dict(tensors, output, overwrite=force)
    document = {"output": str(output), **_fusion_document(fusion)}
    out.result(document, f"{model} -> {output}\n  folded        {_fusion_text(fusion)}")
    out.notes(_notes(fusion))


def _document(packed: Packed, source: str, target: Path) -> dict[str, Any]:
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
        **(_fusion_document(packed.fusion) if packed.fusion else {"folded": [], "affine": [], "notes": []}),
    }


def _fusion_document(fusion: Fusion) -> dict[str, Any]:
    return {
        "folded": [item.layer for item in fusion.folded],
        "affine": [item.batch_norm for item in fusion.affine],
        "error_before_cast": fusion.error_before_cast,
        "error_after_cast": fusion.error_after_cast,
        "notes": _notes(fusion),
    }


def _notes(fusion: Fusion | None) -> list[str]:
    return [] if fusion is None else list(fusion.notes)


def _fusion_text(fusion: Fusion) -> str:
    norms = {item.batch_norm for item in fusion.folded}
    maps = [item.batch_norm for item in fusion.affine]
    affine = f", {len(maps):,} made affine ({listed(maps, 3)})" if maps else ""
    return (
        f"{counted(len(norms), 'BatchNorm layer')}{affine}; "
        f"outputs equal within {fusion.error_before_cast:.1e} in {fusion.precision}, "
        f"{fusion.error_after_cast:.1e} after the cast back"
    )


def _rounding_text(rounding: Rounding) -> str:
    if not rounding.num_changed:
        return "no value changed"
    zeros = f"; {counted(rounding.num_zeroed, 'value')} became 0" if rounding.num_zeroed else ""
    return (
        f"{rounding.num_changed:,} of {counted(rounding.num_values, 'value')} changed, "
        f"by at most {rounding.largest:.1e} of the value{zeros}"
    )


def _buffers_text(buffers: Mapping[str, Tensor]) -> str:
    """Describe the integers, which a matrix of floats cannot hold; the file keeps them as they are."""
    names = listed(buffers, 3)
    return f"{counted(len(buffers), 'integer tensor')} ({names})"


def _summary(packed: Packed, source: str, target: Path) -> str:
    prep = packed.prep
    layout, shape, origin = prep.layout, prep.shape, prep.origin
    class_id = "" if origin.class_id is None else f" (ClassId {origin.class_id})"
    before = f" ({packed.num_trained:,} before folding)" if packed.fusion else ""
    before_cast = f", before the cast to {packed.cast}" if packed.cast else ""
    in_dtype = f" in {packed.cast}" if packed.cast else ""
    tensors = len(layout.names) + len(prep.buffers)
    come_back = f"{counted(tensors, 'tensor')} {'comes' if tensors == 1 else 'come'} back"
    lines = [
        f"{source} -> {target}",
        f"  architecture  {origin.architecture or 'unknown; tensors in natural name order'}{class_id}",
        f"  parameters    {layout.num_parameters:,}{before}",
        f"  PRep          {shape} {layout.dtype}, {layout.total / shape.cells:.1%} filled",
        *([f"  folded        {_fusion_text(packed.fusion)}{before_cast}"] if packed.fusion else []),
        *([f"  cast          to {packed.cast}: {_rounding_text(packed.rounding)}"] if packed.rounding else []),
        *([f"  beside it     {_buffers_text(prep.buffers)}"] if prep.buffers else []),
        *([f"  names         without '{origin.prefix}', which unpack puts back"] if origin.prefix else []),
        *([f"  left out      {listed(packed.left_out)}"] if packed.left_out else []),
        f"  round trip    exact: {come_back} bit for bit{in_dtype}",
    ]
    return "\n".join(lines)
