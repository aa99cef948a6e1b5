"""`prepkit pack`, `prepkit unpack` and `prepkit fuse`."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from prepkit.cli.batch import Batch
from prepkit.cli.common import force_option
from prepkit.cli.examples import examples
from prepkit.cli.models import Model, check_models, model_on_disk
from prepkit.cli.network_options import DTYPES, NetworkOptions, keep_bn_option, network_options
from prepkit.cli.output import Output, json_option
from prepkit.cli.targets import check_target, make_folder_of, prep_targets, stem
from prepkit.errors import OutputError, PRepFileError, counted, listed
from prepkit.tensors import BITS

if TYPE_CHECKING:
    from torch import Tensor

    from prepkit.address import HubAddress
    from prepkit.casting import Rounding
    from prepkit.fusion.fold import Fusion
    from prepkit.packing import Packed
    from prepkit.prep.layout import Layout


@click.command(
    epilog=examples(
        "prepkit pack model.pt --width 512",
        "prepkit pack hf://user/model --dtype float16 -o model.prep.safetensors",
        "prepkit pack runs/a.pt runs/b.pt --arch my_package.nets:small_net --input 3x32x32 --keep-going -o preps",
    )
)
@click.argument("models", nargs=-1, required=True, type=Model(), metavar="MODEL...")
@click.option("--width", default=512, show_default=True, help="Columns of the PRep, a multiple of 8.")
@click.option("--height", type=int, help="Rows, a multiple of 4. [default: the least that holds all parameters]")
@network_options
@keep_bn_option
@click.option("--dtype", type=click.Choice(DTYPES), help="Cast to this dtype. [default: keep each tensor's dtype]")
@click.option("--allow-nonfinite", is_flag=True, help="Pack NaN and infinity too.")
@click.option("--allow-underflow", is_flag=True, help="Let --dtype turn values that are too small for it into 0.")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="The PRep file, or a folder for several.")
@click.option(
    "--keep-going", is_flag=True, help="After a failure pack the other models; skip those that were packed before."
)
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
    keep_going: bool,
    force: bool,
    out: Output,
) -> None:
    """Pack checkpoints into PReps, and check them.

    Each network is recognised, its BatchNorms are folded, and its parameters are written as one matrix.

    MODEL is a .pt, .pth or .safetensors file, the index of a sharded model or its folder, or an address on the Hub:
    hf://user/model, with @revision and /path/of/a/file where they are needed. The PRep is written to
    <stem>.prep.safetensors in the current folder unless -o names another place.

    With --keep-going, a model that fails does not keep the others from being packed, and the command can be given
    again: a model is skipped if its PRep is whole, and holds the sha256 of the model's file, the same width and height
    and the same options. --force packs it again. The exit status is 1 if one failed.
    """
    from prepkit.prep.shape import PRepShape

    PRepShape.least(1, width)
    targets = prep_targets(models, output)
    if not keep_going:
        check_models(models)
    options: dict[str, Any] = {
        **network.keywords(),
        "keep_batch_norm": keep_bn,
        "dtype": dtype,
        "allow_nonfinite": allow_nonfinite,
        "allow_underflow": allow_underflow,
    }
    make_folder_of(targets)
    if not keep_going:
        for target in targets:
            check_target(target, models, force)

    from prepkit.packing import pack_checkpoint
    from prepkit.prep.file import save_prep

    with out.bar("packing", "model", quiet=len(models) == 1) as bar:
        bar.begin(len(models))
        batch = Batch(len(models), keep_going, out, bar)
        for model, target in zip(models, targets, strict=True):
            with batch.one(model), model_on_disk(model) as local:
                if keep_going and not force and _is_packed(local.file, target, width, height, options):
                    batch.skip(local.source, target)
                    continue
                check_target(target, models, force)
                packed = pack_checkpoint(local.file, width=width, height=height, **options)
                save_prep(packed.prep, target, overwrite=force)
                batch.add(_document(packed, local.source, target), _summary(packed, local.source, target))
    batch.end()


def _is_packed(source: Path, target: Path, width: int, height: int | None, options: dict[str, Any]) -> bool:
    """Whether a whole PRep of this file, packed in this way, is there; raises OutputError if another file is."""
    if not os.path.exists(target):  # Path.exists raises for a name that is too long
        return False
    from prepkit.checkpoint.load import sha256_of
    from prepkit.families.registry import architectures
    from prepkit.packing import chosen_options
    from prepkit.prep.file import load_prep

    try:
        prep = load_prep(target)
    except PRepFileError as error:
        raise OutputError(f"{error} It stands where a PRep is to be written; delete it, or give --force.") from None
    network, before = options["architecture"], dict(prep.origin.options)
    packed_as = prep.origin.architecture
    now = chosen_options(**{name: value for name, value in options.items() if name != "architecture"})
    is_of_network = packed_as == network.name if network else packed_as is None or packed_as in architectures()
    not_as = f"not as {network.name}" if network else "which is not registered"
    shape = prep.layout.shape(width, height)
    differing = {
        "from another file": prep.origin.source_sha256 != sha256_of(source),
        f"in the shape {prep.shape}, not {shape}": prep.shape != shape,
        f"as {packed_as or 'an unknown network'}, {not_as}": not is_of_network,
        f"with the options {_options_text(before)}, not with {_options_text(now)}": before != now,
    }
    how = [text for text, is_so in differing.items() if is_so]
    if how:
        raise OutputError(f"'{target}' was packed {how[0]}; use another name, or give --force to replace it.")
    return True


def _options_text(options: Mapping[str, Any]) -> str:
    return listed([f"{name}={value}" for name, value in options.items()]) or "none"


@click.command(
    epilog=examples(
        "prepkit unpack model.prep.safetensors",
        "prepkit unpack model.prep.safetensors -o model.safetensors --strip-prefix",
    )
)
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


@click.command(
    epilog=examples(
        "prepkit fuse model.pt -o folded.pt",
        "prepkit fuse model.pt --arch my_package.nets:small_net --input 3x32x32 --bn affine -o folded.safetensors",
    )
)
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
        "renamed": list(packed.renamed),
        "stays": list(packed.stays),
        **(_fusion_document(packed.fusion) if packed.fusion else {"folded": [], "affine": []}),
        "notes": [*_notes(packed.fusion), *_wide_notes(prep.layout)],
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


def _wide_notes(layout: Layout) -> list[str]:
    """Say that few values keep a PRep in a wider dtype than most of them have, and so make its file larger."""
    bits = BITS[layout.dtype]
    narrow: Counter[str] = Counter()
    for slot in layout:
        if BITS[slot.dtype] < bits:
            narrow[slot.dtype] += slot.size
    if not narrow or narrow.total() < layout.total / 2:
        return []
    dtype, count = narrow.most_common(1)[0]
    wide = listed((f"'{slot.name}'" for slot in layout if slot.dtype != dtype), 3)
    return [
        f"the PRep is in {layout.dtype}, to hold {wide} exactly; {count / layout.total:.1%} of its values are {dtype}, "
        f"and --dtype {dtype} would store all in {BITS[dtype] / bits:.0%} of the bytes."
    ]


def _rounding_text(rounding: Rounding) -> str:
    if not rounding.num_changed:
        return "no value changed"
    zeros = f"; {counted(rounding.num_zeroed, 'value')} became 0" if rounding.num_zeroed else ""
    return (
        f"{rounding.num_changed:,} of {counted(rounding.num_values, 'value')} changed, "
        f"by at most {rounding.largest:.1e} of the value{zeros}"
    )


def _renamed_text(names: Sequence[str]) -> str:
    return f"{counted(len(names), 'name')} of the checkpoint ({listed(names, 3)}), as the network loads them"


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
        *([f"  renamed       {_renamed_text(packed.renamed)}"] if packed.renamed else []),
        *([f"  left out      {listed(packed.left_out)}"] if packed.left_out else []),
        *([f"  stays behind  {listed(packed.stays)}, which a PRep has no place for"] if packed.stays else []),
        f"  round trip    exact: {come_back} bit for bit{in_dtype}",
    ]
    return "\n".join(lines)
