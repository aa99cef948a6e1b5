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
    information,
    inspecting,
    normalising,
    novelty,
    pack,
    show,
    train,
    zoo,
)
from prepkit.cli.common import EXIT_STATUS, Commands
from prepkit.cli.completion import completion_command
from prepkit.cli.examples import examples
from prepkit.cli.verbosity import add_verbosity
from prepkit.version import __version__

EXAMPLES = examples(
    "prepkit pack model.pt --width 512        # recognise, fold BatchNorm, pack, check",
    "prepkit show model.prep.safetensors      # draw it",
    "prepkit unpack model.prep.safetensors    # back to a plain state dict",
)


@click.group(
    cls=Commands,
    epilog=f"{EXIT_STATUS}\n\n{EXAMPLES}",
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)
@click.version_option(__version__)
def main() -> None:
    """Trained networks as data: pack any checkpoint into a matrix (a PRep) and back, exactly."""


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
main.add_command(information.info)
main.add_command(completion_command("prepkit"))
for command in (
    *import_kinds.COMMANDS,
    *import_published.COMMANDS,
    *import_packed.COMMANDS,
    *import_classifiers.COMMANDS,
    *import_ray_tree.COMMANDS,
):
    importing.import_.add_command(command)
add_verbosity(main)
