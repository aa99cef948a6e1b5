"""`prepkit zoo adapters`: LoRA adapters of a zoo as the files that PEFT loads."""

from __future__ import annotations

from pathlib import Path
from typing import BinaryIO

import click

from prepkit.address import HubAddress, UrlAddress
from prepkit.cli.common import force_option
from prepkit.cli.examples import examples
from prepkit.cli.output import Output, json_option
from prepkit.cli.zoo import folder_or_address
from prepkit.errors import counted


@click.command(
    epilog=examples(
        "prepkit zoo adapters my-zoo adapters",
        "prepkit zoo adapters my-zoo adapters --where \"task_type == 'CAUSAL_LM' and r == 8\" --canonical",
    )
)
@folder_or_address
@click.argument("target", type=click.Path(path_type=Path), metavar="DST")
@click.option("--ids", type=click.File("rb"), metavar="FILE", help="List of ids, one a line; - for standard input.")
@click.option("--where", metavar="EXPR", help="Only adapters whose row meets a condition: task == 'sst2'")
@click.option("--canonical", is_flag=True, help="Write pairs of the thin SVD: same products, unique factors.")
@force_option
@json_option
def adapters(
    folder: Path | HubAddress | UrlAddress,
    target: Path,
    ids: BinaryIO | None,
    where: str | None,
    canonical: bool,
    force: bool,
    out: Output,
) -> None:
    """Write LoRA adapters of a zoo as files of PEFT.

    Each adapter becomes a folder in DST that is called by its id, with adapter_model.safetensors and the
    adapter_config.json that it came with, as it was: PEFT's from_pretrained loads it. Tensors are those of the zoo,
    bit for bit; with --canonical they are others with the same products dW = s B A. DIR may be an address.
    """
    from prepkit.api import open_zoo
    from prepkit.cli.changing import ids_in

    opened = open_zoo(str(folder))
    chosen = opened if where is None else opened.where(where)
    listed = ids_in(ids)
    if listed is not None:
        chosen = chosen.select([chosen.index(id_) for id_ in listed])
    written = 0

    def advance(count: int) -> None:
        nonlocal written
        written += count
        bar.advance(count)

    try:
        with out.bar("writing", "adapter") as bar:
            bar.begin(len(chosen))
            paths = chosen.adapters().save(target, canonical=canonical, overwrite=force, progress=advance)
    except KeyboardInterrupt:
        out.leave_interrupted(
            f"interrupted; {counted(written, 'adapter is', 'adapters are')} written. With --force the same command "
            "writes all of them."
        )
    document = {"zoo": str(folder), "target": str(target), "adapters": [str(path) for path in paths]}
    out.result(document, f"{counted(len(paths), 'adapter')} of {folder} -> {target}")
