"""The command line `prepkit`: thin commands over the Python API. torch is imported only by commands that need it."""

from __future__ import annotations

import click

from prepkit.cli import arch, hub, pack, train, zoo
from prepkit.cli.common import Commands


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="prepkit")
def main() -> None:
    """Trained networks as data: pack any checkpoint into a matrix (a PRep) and back, exactly.

    \b
    prepkit pack model.pt --width 512       recognise, fold BatchNorm, pack, check
    prepkit show model.prep.safetensors     draw it
    prepkit unpack model.prep.safetensors   back to a plain state dict

    Results go to stdout, progress and errors to stderr. Exit status: 0 done, 1 the operation failed,
    2 wrong usage or input, 130 interrupted.
    """


for command in (pack.pack, pack.unpack, pack.fuse, pack.show, pack.inspect, arch.arch, zoo.zoo, hub.pull, hub.push):
    main.add_command(command)
for command in (train.train, train.specs):
    zoo.zoo.add_command(command)
