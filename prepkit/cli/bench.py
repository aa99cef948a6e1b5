"""`prepkit bench`: how well a column of a zoo's table is predicted from weights."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from prepkit.cli.common import device_option, force_option
from prepkit.cli.completion import paths
from prepkit.cli.examples import examples
from prepkit.cli.output import Output, json_option

FAILED = 1  # exit status where a learner failed; the results of the others are printed all the same


@click.command(
    epilog=examples(
        "prepkit bench my-zoo --target accuracy -o results",
        'prepkit bench my-zoo --target learning_rate --log --baseline "statistics + ridge"',
        "prepkit bench my-zoo --target accuracy --learner mine:learn",
    )
)
@click.argument("zoo", shell_complete=paths)
@click.option("--target", required=True, metavar="COLUMN", help="Column of the zoo's table to predict.")
@click.option(
    "--kind",
    type=click.Choice(("number", "class")),
    help="Whether its values are numbers or classes.  [default: texts and booleans are classes]",
)
@click.option("--log", is_flag=True, help="Predict the logarithm, as for learning rates.")
@click.option("--where", metavar="EXPR", help="Take only instances that a condition chooses.")
@click.option(
    "--baseline", "baselines", multiple=True, metavar="NAME", help="Run only this baseline. Repeatable. [default: all]"
)
@click.option("--learner", "learners", multiple=True, metavar="MODULE:FUNCTION", help="Run a learner of yours too.")
@click.option("--rerun", is_flag=True, help="Run the test instances to find the best tau that any learner could reach.")
@click.option("--data", type=click.Path(path_type=Path), help="Folder of the task's data, for --rerun.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Seed for all random choices.")
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), metavar="DIR", help="Folder for table, picture and JSON."
)
@device_option
@force_option
@json_option
@click.pass_context
def bench(
    context: click.Context,
    zoo: str,
    target: str,
    kind: Any,
    log: bool,
    where: str | None,
    baselines: tuple[str, ...],
    learners: tuple[str, ...],
    rerun: bool,
    data: Path | None,
    seed: int,
    output: Path | None,
    device: str,
    force: bool,
    out: Output,
) -> None:
    """Predict a column of a zoo's table from weights.

    Baselines learn from the training instances of the zoo's split and are measured on its test instances. They are
    `constant`; `statistics + boosting` and `statistics + ridge`, which read statistics of each tensor; `flat + ridge`,
    which reads all weights; `tokens + transformer`; and `graph + equivariant network`, whose predictions do not depend
    on the order of hidden units.

    A learner is a function (train, validation, test) -> predictions of the test instances. Each of the three has the
    instances as `zoo` and, but for test, the true values as `target`. Exit status 1 means that a learner failed.
    """
    from prepkit.benching.report import check_folder, text_of, write_folder
    from prepkit.benching.run import bench as run_bench

    if output is not None:
        check_folder(output, overwrite=force)
    own = {name: _learner(name) for name in learners}
    with out.bar("learning", "learner") as bar:
        result = run_bench(
            zoo,
            target,
            kind=kind,
            log=log,
            where=where,
            learners=own,
            baselines=baselines or None,
            rerun=rerun,
            data=data,
            seed=seed,
            device=device,
            progress=bar,
        )
    if output is not None:
        write_folder(result, output, overwrite=force)
    out.notes(result.notes)
    out.result(result.to_dict(), text_of(result))
    if any(row.error for row in result.rows.values()):
        context.exit(FAILED)


def _learner(name: str) -> Callable[..., Any]:
    from prepkit.families.importing import load_builder

    sys.path.insert(0, str(Path.cwd()))  # as `python -m` does, since the module may lie in the user's folder
    return load_builder(name, "learner", "predicts")
