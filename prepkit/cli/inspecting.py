"""`prepkit stat` and `prepkit diff`: the values of one network, and how those of two differ."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import click

from prepkit.cli import colour
from prepkit.cli.completion import paths
from prepkit.cli.examples import examples
from prepkit.cli.output import Output, json_option
from prepkit.errors import counted
from prepkit.support.text import shape_text, table

if TYPE_CHECKING:
    from prepkit.inspecting.differences import TensorDifference

PLACES = """Each place is a checkpoint, a PRep file, an instance of a zoo as ZOO#ID, one of these on the Hub
(hf://user/model, hf://user/zoo#ID), or an instance of a zoo in another store (s3://bucket/zoo#ID); FILE#KEY takes the
state dict under a key."""
DIFFERENT = 1  # exit status of `prepkit diff`, as of diff and cmp
EXAMPLES_OF_STAT = examples("prepkit stat run.ckpt#ema", "prepkit stat my-zoo#net-57 --json")
EXAMPLES_OF_DIFF = examples(
    "prepkit diff before.pt after.safetensors --atol 1e-6", "prepkit diff my-zoo#net-4 my-zoo#net-57"
)


@click.command(epilog=f"{PLACES}\n\n{EXAMPLES_OF_STAT}")
@click.argument("place", shell_complete=paths)
@json_option
def stat(place: str, out: Output) -> None:
    """Tell the mean, deviation and norm of every tensor.

    Measures are in float64 and over the finite values; NaN and infinities are only counted.
    """
    from prepkit.inspecting.places import tensors_at
    from prepkit.inspecting.statistics import statistics

    with tensors_at(place) as tensors:
        measured = statistics(tensors)
    header = ("name", "shape", "dtype", "mean", "deviation", "min", "max", "norm", "zeros", "NaN", "infinite")
    rows = []
    for name, s in measured.items():
        measures = map(_number, (s.mean, s.deviation, s.minimum, s.maximum, s.norm))
        counts = ("-" if count is None else count for count in (s.zeros, s.nan, s.infinite))
        rows.append((name, shape_text(s.shape), s.dtype, *measures, *counts))
    values = counted(sum(s.size for s in measured.values()), "value")
    text = f"{table(rows, header)}\n\n{place}: {counted(len(measured), 'tensor')}, {values}"
    document = {
        "place": place,
        "tensors": {name: {key: _json(value) for key, value in s.to_dict().items()} for name, s in measured.items()},
    }
    out.result(document, text)


@click.command(
    epilog=f"{PLACES}\n\nExit status: 0 no tensor differs, 1 some tensor differs, 2 wrong usage or input.\n\n"
    f"{EXAMPLES_OF_DIFF}"
)
@click.argument("a", shell_complete=paths)
@click.argument("b", shell_complete=paths)
@click.option(
    "--atol", default=0.0, show_default=True, metavar="X", help="Largest difference that still counts as equal."
)
@click.option("--rtol", default=0.0, show_default=True, metavar="X", help="The same, as a share of the value in B.")
@json_option
@click.pass_context
def diff(context: click.Context, a: str, b: str, atol: float, rtol: float, out: Output) -> None:
    """Compare two networks tensor by tensor.

    The tensors that differ are listed: in name, shape, dtype, or in a value by more than --atol + --rtol * |B's value|.
    NaN equals NaN. Wrappers' prefixes such as `module.` are taken off the names, and where no name is in both, any
    prefix without which some are.
    """
    from prepkit.inspecting.differences import differences, prefixes
    from prepkit.inspecting.places import tensors_at

    with tensors_at(a) as tensors_of_a, tensors_at(b) as tensors_of_b:
        starts = prefixes(tensors_of_a, tensors_of_b)
        plain = (
            {name.removeprefix(start): tensor for name, tensor in tensors.items()}
            for start, tensors in zip(starts, (tensors_of_a, tensors_of_b), strict=True)
        )
        compared = differences(*plain, atol=atol, rtol=rtol)
    out.notes(
        [f"the names of {what} are taken without '{start}'." for what, start in zip("AB", starts, strict=True) if start]
    )
    different = {name: difference for name, difference in compared.items() if not difference.is_same}
    total = counted(len(compared), "tensor")
    if not compared:
        text = "Neither has a tensor."
    elif different:
        header = ("name", "shape", "dtype", "values that differ", "largest", "mean", "largest at")
        verdict = colour.bad(f"{len(different):,} of {total} differ")
        text = f"{table([_row(name, d) for name, d in different.items()], header)}\n\n{verdict}"
    else:
        text = colour.good(f"{total}, none differs")
    document = {
        "a": a,
        "b": b,
        "atol": atol,
        "rtol": rtol,
        "prefixes": {"a": starts[0], "b": starts[1]},
        "same": not different,
        "tensors": {name: {key: _json(v) for key, v in d.to_dict().items()} for name, d in compared.items()},
    }
    out.result(document, text)
    if different:
        context.exit(DIFFERENT)


def _row(name: str, d: TensorDifference) -> tuple[str, ...]:
    a, b = d.shapes
    if a is None or b is None:
        only = "only in A" if b is None else "only in B"
        return name, shape_text(a or b or ()), d.dtypes[0] or d.dtypes[1] or "", only, "-", "-", "-"
    shape = shape_text(a) if a == b else f"{shape_text(a)} -> {shape_text(b)}"
    dtype = str(d.dtypes[0]) if d.dtypes[0] == d.dtypes[1] else f"{d.dtypes[0]} -> {d.dtypes[1]}"
    count = "-" if d.differing is None else f"{d.differing:,} of {math.prod(a):,}"
    place = "-" if d.at is None or not d.largest else ",".join(map(str, d.at)) or "-"
    return name, shape, dtype, count, _number(d.largest), _number(d.mean), place


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"


def _json(value: Any) -> Any:
    """Return a value that JSON has: a number that is too large for float64 becomes null."""
    return None if isinstance(value, float) and not math.isfinite(value) else value
