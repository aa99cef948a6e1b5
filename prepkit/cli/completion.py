"""What <TAB> offers in a shell: paths, and names that are known without torch."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import click
from click.shell_completion import BashComplete, CompletionItem, add_completion_class, get_completion_class

from prepkit.cli.examples import examples
from prepkit.cli.output import Output, json_option
from prepkit.errors import PrepkitError

Complete = Callable[[click.Context, click.Parameter, str], list[CompletionItem]]
MOST_IDS = 1000  # A longer list helps nobody.


@add_completion_class
class BashWithNames(BashComplete):
    """Completion in bash, for which the @ in `resnet8@digits` no longer parts two words."""

    source_template = f"{BashComplete.source_template}COMP_WORDBREAKS=${{COMP_WORDBREAKS//@}}\n"


def paths(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Offer files and folders."""
    return [CompletionItem(incomplete, type="file")]


def names(known: Callable[[], Iterable[str]], *, or_path: bool = False) -> Complete:
    """Return a function that offers names, and where none of them fits files and folders, if these may be given."""

    def complete(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
        offered = [CompletionItem(name) for name in known() if name.startswith(incomplete)]
        return [CompletionItem(incomplete, type="file"), *offered] if or_path else offered

    return complete


def architectures() -> Sequence[str]:
    """Return the names of all architectures."""
    from prepkit.families.registry import architectures as known

    return known()


def specs() -> Sequence[str]:
    """Return the names of the built-in specs of zoos."""
    from prepkit.training.spec import spec_names

    return spec_names()


def zoo_ids(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Offer the ids of the zoo DIR, or of the zoo of a run: --zoo, or where it was in training."""
    given = context.params
    folder = given.get("folder") or given.get("zoo") or _zoo_of_run(given.get("run"))
    return [CompletionItem(name) for name in _ids(folder) if name.startswith(incomplete)][:MOST_IDS]


def _ids(folder: object) -> list[str]:
    from prepkit.zoo.format.manifest import read_manifest
    from prepkit.zoo.format.sizes import check_sizes
    from prepkit.zoo.format.tables import read_table

    if not isinstance(folder, str | Path):
        return []
    try:
        manifest = read_manifest(folder)
        check_sizes(Path(folder), manifest)
        table = manifest.table
        return [str(name) for name in read_table(Path(folder) / table.path, table)["id"].to_pylist()]
    except (PrepkitError, OSError):
        return []


def _zoo_of_run(run: object) -> str | None:
    """Return where a run's zoo was in training, without opening the run, which takes torch."""
    if not isinstance(run, str | Path):
        return None
    try:
        record = json.loads((Path(run) / "run.json").read_bytes())
        path = record["zoo"]["path"]
    except (TypeError, ValueError, KeyError, OSError):
        return None
    return path if isinstance(path, str) else None


def completion_command(program: str) -> click.Command:
    """Return the command that prints what a shell must run so that <TAB> completes a program's commands."""
    shells = click.Choice(("bash", "zsh", "fish"))
    lines = (
        f"echo 'eval \"$({program} completion bash)\"' >> ~/.bashrc",
        f"echo 'eval \"$({program} completion zsh)\"' >> ~/.zshrc",
        f"{program} completion fish > ~/.config/fish/completions/{program}.fish",
    )

    @click.command(epilog=examples(*lines))
    @click.argument("shell", type=shells, metavar="SHELL")
    @json_option
    @click.pass_context
    def completion(context: click.Context, shell: str, out: Output) -> None:
        """Print what makes <TAB> work in a shell.

        SHELL is bash, zsh or fish. Commands, options, files, and names such as those of architectures, specs, recipes
        and a zoo's instances are completed. In zsh the line must stand after compinit.
        """
        shown = get_completion_class(shell)
        assert shown is not None, shell
        root = context.find_root().command
        script = shown(root, {}, program, f"_{program}_COMPLETE".upper()).source()
        out.result({"program": program, "shell": shell, "script": script}, script)

    return completion
