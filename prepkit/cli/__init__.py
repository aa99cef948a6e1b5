"""The command line `prepkit`: commands that parse, call the Python API and print.

Only commands that need torch import it.
"""

from __future__ import annotations

import click

from prepkit.cli import (
    adapters,
    aligning,
    arch,
    auditing,
    bench,
    browsing,
    changing,
    hub,
    import_classifiers,
    import_kinds,
    import_packed,
    import_published,
    import_ray_tree,
    importing,
    inspecting,
    normalising,
    novelty,
    pack,
    show,
    train,
    zoo,
)
from prepkit.cli.common import EXIT_STATUS, Commands


@click.group(
    cls=Commands, epilog=EXIT_STATUS, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110}
)
@click.version_option(package_name="prepkit")
def main() -> None:
    """Trained networks as data: pack any checkpoint into a matrix (a PRep) and back, exactly.

    \b
    prepkit pack model.pt --width 512       recognise, fold BatchNorm, pack, check
    prepkit show model.prep.safetensors     draw it
    prepkit unpack model.prep.safetensors   back to a plain state dict
    """


for command in (pack.pack, pack.unpack, pack.fuse, show.show, show.inspect, inspecting.stat, inspecting.diff):
    main.add_command(command)
for command in (arch.arch, zoo.zoo, bench.bench, hub.pull, hub.push):
    main.add_command(command)
for command in (
    importing.create,
    importing.import_,
    changing.cut,
    changing.drop,
    changing.annotate,
    adapters.adapters,
    auditing.audit,
    browsing.view,
    novelty.novelty,
    normalising.normalise,
    aligning.align,
    train.train,
    train.specs,
):
    zoo.zoo.add_command(command)
for command in (
    *import_kinds.COMMANDS,
    *import_published.COMMANDS,
    *import_packed.COMMANDS,
    *import_classifiers.COMMANDS,
    *import_ray_tree.COMMANDS,
):
    importing.import_.add_command(command)
