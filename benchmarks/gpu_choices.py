"""The parts of the check for a GPU that say what single choices are worth: each on and off, within a step and alone."""

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.gpu_sheet import Figures, Sheet, timed
from benchmarks.gpu_steps import Case
from netspace.space import gpu_functions
from netspace.space.fast import _channels_last, _products
from netspace.space.gpu_functions import CONVOLUTION, PRODUCT
from netspace.training.memory import predicted_at_once
from prepkit.running import instance_losses, instances
from prepkit.support.progress import Progress
from prepkit.tasks._shapes import ShapeTask
from prepkit.tasks.randomness import generator
from prepkit.tasks.task import TaskBatch

OUTPUTS = (1250, 1256)  # of the decoder's second convolution as the paper has it, and filled up to a multiple of 8
RUNNER = instances.runner  # the function itself, whose cache is cleared while another stands in for it


@contextmanager
def changed(owner: Any, name: str, value: Any) -> Iterator[None]:
    """Give an attribute another value until the block ends, and forget the runners that were made with another."""
    before = getattr(owner, name)
    setattr(owner, name, value)
    RUNNER.cache_clear()
    try:
        yield
    finally:
        setattr(owner, name, before)
        RUNNER.cache_clear()


@contextmanager
def one_by_one() -> Iterator[None]:
    """Run predicted instances one after another."""

    def no(*_: object, **__: object) -> bool:
        return False

    with changed(instances, "stacking_pays", no), changed(instance_losses, "stacking_pays", no):
        yield


def host_drawn(
    task: ShapeTask, seeds: Sequence[int], items: Sequence[int], epoch: int, size: int
) -> Iterator[TaskBatch]:
    """Batches whose points the host draws into pinned memory, on a CPU the ones that the task draws."""
    streams = [generator("points", seed, epoch) for seed in seeds]
    half = task.checked.points.pool // 2
    side = (torch.arange(size, device=task.device) >= size // 2) * half
    for _ in range(task.checked.steps_per_epoch):
        first = torch.tensor(task.prepare(items))[:, None] * task._rows.shape[1]
        draws = torch.empty(len(streams), size, dtype=torch.int64, pin_memory=task.device.type == "cuda")
        for row, stream in zip(draws, streams, strict=True):
            torch.randint(half, (size,), generator=stream, out=row)
        places = draws.to(task.device, non_blocking=True) + side + first.to(task.device, non_blocking=True)
        points = task._rows.view(-1, 4).index_select(0, places.flatten()).view(*places.shape, 4).to(task._dtype)
        yield TaskBatch(*torch.split(points, [3, 1], dim=-1))


def third_by(way: str) -> Callable[[Case], None]:
    """Have a case's decoder compute its third convolution in a way."""
    return lambda case: gpu_functions.follow(case.space, {gpu_functions.THIRD: way})


# name: the settings that it concerns, what holds while a case is made and run, and what is done to the case
Variant = tuple[tuple[str, ...], Callable[[], AbstractContextManager[Any]], Callable[[Case], None]]
IMAGES, ALL = ("single", "multi"), ("single", "multi", "sdf")


def nothing(case: Case) -> None:
    """Leave a case as it is."""


VARIANTS: dict[str, Variant] = {  # the newest first, for the part may be cut off by its limit
    "third convolution as a product": (ALL, nullcontext, third_by(PRODUCT)),
    "third convolution by the library": (ALL, nullcontext, third_by(CONVOLUTION)),
    "padded channels": (
        IMAGES,
        lambda: changed(instances, "runner", functools.partial(RUNNER, padded=True)),
        nothing,
    ),
    "points drawn by the host": (("sdf",), lambda: changed(ShapeTask, "batches", host_drawn), nothing),
    "instances in a loop": (IMAGES, one_by_one, nothing),
    "cudnn.benchmark": (ALL, lambda: changed(torch.backends.cudnn, "benchmark", True), nothing),
    "instances NCHW": (
        IMAGES,
        lambda: changed(instances, "Runner", functools.partial(instances.Runner, channels_last=False)),
        nothing,
    ),
    "plain network": (ALL, lambda: changed(_products, "enabled", False), nothing),
}


def part_variants(sheet: Sheet) -> None:
    """(c) Steps a second with single choices the other way."""
    size = (1, 1, 1) if sheet.tiny else (20, 3, 10)
    precision = "float32" if sheet.device.type == "cpu" else "bfloat16"

    def measure(setting: str, variant: Variant) -> Figures:
        _, way, prepare = variant
        with way():
            case = Case(setting, sheet.device, sheet.tiny, precision)
            prepare(case)
            return timed(case.ours, sheet.device, *size)

    for name, variant in VARIANTS.items():
        for setting in sheet.settings:
            if setting in variant[0]:
                sheet.case(f"{setting}, {name}", functools.partial(measure, setting, variant))


def part_choices(sheet: Sheet) -> None:
    """(c) What a training would choose for the decoder, and its second convolution with 1,250 and 1,256 outputs."""
    for setting in sheet.settings:
        sheet.case(f"{setting}, third convolution", functools.partial(third_convolution, setting, sheet))
    for outputs in OUTPUTS:
        for way in ("product", "convolution"):
            measure = functools.partial(second_convolution, outputs, way, sheet)
            sheet.case(f"second convolution, {outputs:,} outputs, {way}", measure)


def third_convolution(setting: str, sheet: Sheet) -> Figures:
    """What `netspace train` would record; both ways are timed on a CPU too, where a decoder has no such choice."""
    case = Case(setting, sheet.device, sheet.tiny)
    with changed(gpu_functions.fast, "decodes_channels_last", lambda *_: True):
        chosen = gpu_functions.choose(case.space, predicted_at_once(case.recipe), halved=True, progress=Progress())
    assert chosen is not None
    return chosen


def second_convolution(outputs: int, way: str, sheet: Sheet) -> Figures:
    """Forward and backward of the second convolution alone, as in the multi setting, with its map as it comes."""
    height, columns, count = (4, 16, 1) if sheet.tiny else (88, 2048, 4)
    dtype = torch.bfloat16
    layer = nn.Conv2d(_channels_last.FIRST, outputs, 3, stride=2, padding=1).to(sheet.device)
    shape = (count, height, columns, _channels_last.FIRST)
    channels_side_by_side = torch.randn(shape, device=sheet.device, dtype=dtype, requires_grad=True)

    def as_product() -> Tensor:
        reads = _channels_last._ChannelsBeside(shape, 1)
        return _channels_last._multiply(layer, reads, channels_side_by_side, dtype)

    def by_the_library() -> Tensor:
        weight, bias = layer.weight.to(dtype), _channels_last._bias(layer).to(dtype)
        image = channels_side_by_side.permute(0, 3, 1, 2)  # its memory is channels-last
        found: Tensor = nn.functional.conv2d(image, weight, bias, 2, 1).contiguous()
        return found

    function = as_product if way == "product" else by_the_library

    def step() -> object:
        return torch.autograd.grad(function().float().sum(), [channels_side_by_side, *layer.parameters()])

    return timed(step, sheet.device, *((1, 1, 1) if sheet.tiny else (20, 3, 5)))
