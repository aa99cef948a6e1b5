"""Engines that make a step of many instances, and how fast they are: what `zoo train` chooses among, and others.

Images are random; there is nothing to download. With tiny sizes all runs on a CPU in seconds.
"""

from __future__ import annotations

import copy
import gc
import json
import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor
from torch.func import functional_call
from torch.nn import functional as F

import prepkit
from benchmarks.gpu_sheet import Figures, say, wait
from prepkit.families.registry import Architecture
from prepkit.running._stacking import StackedConvolution, StackedNetwork
from prepkit.running.instances import runner
from prepkit.support.graphs import GraphedStep
from prepkit.training._hyperparameters import Training
from prepkit.training._optimiser import Adam, Optimiser, Parameters, Rates, Sgd
from prepkit.training._stack import fresh_tensors
from prepkit.training._step import StackSetup
from prepkit.training._values import Epochs, Range

Tensors = dict[str, Tensor]

SGD = Training("sgd", Range(0.05, 0.05), batch_size=128, epochs=Epochs((2,)), momentum=Range(0.9, 0.9))
ADAM = Training("adam", Range(1e-4, 1e-4), batch_size=128, epochs=Epochs((2,)))

# An engine runs a pack of g instances, tensors [g, ...] and inputs [g, B, ...], to outputs [g, B, classes].
Forward = Callable[[Tensors, Tensor], Tensor]


class ProductConvolution(StackedConvolution):
    """K convolutions as one batched matrix product of weights and unfolded features."""

    def forward(self, features: Tensor) -> Tensor:
        count, outputs, _, rows, columns = self.weight.shape
        batch, shared = len(features), features.shape[1] == self.channels
        (stride, _), padding = self.arguments["stride"], self.arguments["padding"]
        padded = F.pad(features, (padding[1], padding[1], padding[0], padding[0]))
        windows = padded.unfold(2, rows, stride).unfold(3, columns, stride)
        height, width = windows.shape[2:4]
        windows = windows.permute(0, 1, 4, 5, 2, 3).reshape(batch, 1 if shared else count, -1, height * width)
        found = self.weight.view(1, count, outputs, -1) @ windows
        if self.bias is not None:
            found = found + self.bias.unsqueeze(-1)
        return found.reshape(batch, count * outputs, height, width)


def exchanged(network: StackedNetwork, kind: type[StackedConvolution]) -> StackedNetwork:
    """The network with all its convolutions run in another way."""
    network = copy.deepcopy(network)
    for module in network.modules():
        if type(module) is StackedConvolution:
            module.__class__ = kind
    return network


def forward_of(architecture: Architecture, engine: str, device: torch.device) -> Forward:
    """The forward of an engine by its name."""
    if engine == "alone":
        own = runner(architecture, False, False, device)
        return lambda tensors, inputs: own(tensors, inputs, training=True)
    if engine == "vmap":
        alone = architecture.build().requires_grad_(False).train().to(device)

        def single(tensors: Tensors, inputs: Tensor) -> Tensor:
            outputs: Tensor = functional_call(alone, tensors, (inputs,))
            return outputs

        return torch.vmap(single)
    kind, layout = engine.split(" ")
    network = runner(architecture, False, True, device, dense=kind == "dense").network
    assert isinstance(network, StackedNetwork)
    network = exchanged(network, ProductConvolution) if kind == "bmm" else network
    return lambda tensors, inputs: network.train().call(tensors, inputs, False, layout == "nhwc")


@dataclass(frozen=True)
class Way:
    """A way to make a step.

    engine:  see `forward_of`
    pack:    instances in a pack; packs run one after another
    streams: streams among which packs are dealt
    bf16:    in bfloat16, else float32 (TF32 on a GPU)
    graph:   whether a CUDA graph repeats the step
    free:    cuDNN tries all its kernels, and may take one whose last bits differ from run to run
    """

    engine: str
    pack: int
    streams: int = 1
    bf16: bool = False
    graph: bool = True
    free: bool = False

    def __str__(self) -> str:
        traits = [f"{self.engine} x{self.pack}", f"{self.streams} streams" if self.streams > 1 else ""]
        traits += ["bf16" if self.bf16 else "tf32", "graph" if self.graph else "eager", "free" if self.free else ""]
        return ", ".join(filter(None, traits))


class Case:
    """K instances of an architecture in training on random inputs, whose step is made in a given way."""

    def __init__(self, name: str, count: int, batch: int, way: Way, device: torch.device, dtype: torch.dtype) -> None:
        architecture = prepkit.architecture(name)
        training = SGD if len(architecture.input_shape) == 3 else ADAM
        setup = StackSetup(architecture, training, None, None, device, count, None, dtype)  # type: ignore[arg-type]
        learning, self.statistics = fresh_tensors(setup, range(count))
        self.parameters = Parameters(learning)
        self.optimiser: Optimiser = Sgd() if training is SGD else Adam()
        self.rates = Rates(self.parameters, [5e-4] * count, [0.9] * count, in_place=device.type == "cuda")
        self.rates.set_learning_rates([1e-3] * count)
        self.optimiser.count_step(self.parameters)  # once is enough: Adam divides by constants then
        draws = torch.Generator().manual_seed(1)
        shape = (count, batch, *architecture.input_shape)
        self.inputs = torch.randn(shape, generator=draws).to(device, dtype)
        if training is SGD:
            self.targets = torch.randint(10, (count, batch), generator=draws).to(device)
        else:
            self.targets = torch.randn((count, batch, 1), generator=draws).to(device, dtype)
        self.way, self.device, self.count = way, device, count
        self.forward = forward_of(architecture, way.engine, device)
        self.gradients = self.parameters.tensors(self.parameters.gradients)
        streams = way.streams if device.type == "cuda" else 1
        self.streams = [torch.cuda.Stream(device) for _ in range(streams)] if streams > 1 else []  # type: ignore[no-untyped-call]

    def losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        if targets.dim() == 3:
            return (outputs.float() - targets).square().mean((1, 2))
        outputs = outputs.to(torch.promote_types(outputs.dtype, torch.float32))
        found = F.cross_entropy(outputs.flatten(0, 1), targets.flatten(), reduction="none")
        return found.view(targets.shape).mean(1)

    def step(self) -> Tensor:
        """Losses [K] of one step."""
        leaves = {name: leaf.detach() for name, leaf in self.parameters.leaves.items()}
        if self.way.bf16:  # weights are cast once for all instances, as autocast would one by one
            leaves = {name: leaf.bfloat16() if leaf.dim() > 2 else leaf for name, leaf in leaves.items()}
        main = torch.cuda.current_stream(self.device) if self.streams else None
        found = []
        for number, first in enumerate(range(0, self.count, self.way.pack)):
            stream = self.streams[number % len(self.streams)] if self.streams else None
            if stream is not None and main is not None:
                stream.wait_stream(main)
            with torch.cuda.stream(stream) if stream is not None else nullcontext():
                found.append(self.pack(leaves, slice(first, first + self.way.pack)))
        for stream in self.streams:
            assert main is not None
            main.wait_stream(stream)
        self.optimiser.step(self.parameters, self.rates)
        return torch.cat(found)

    def pack(self, leaves: Tensors, rows: slice) -> Tensor:
        """Losses [g] of a pack, whose gradients are written."""
        own = {name: leaf[rows].requires_grad_() for name, leaf in leaves.items()}
        others = {name: tensor[rows] for name, tensor in self.statistics.items()}
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.way.bf16):
            outputs = self.forward({**own, **others}, self.inputs[rows])
        losses = self.losses(outputs, self.targets[rows])
        gradients = torch.autograd.grad(losses.sum(), list(own.values()))
        torch._foreach_copy_([self.gradients[name][rows] for name in own], list(gradients))
        return losses.detach()


class Plain:
    """The loop that everybody writes: K networks with an optimiser each, and a step of each after another."""

    def __init__(self, name: str, count: int, batch: int, way: Way, device: torch.device, dtype: torch.dtype) -> None:
        case = Case(name, count, batch, replace(way, engine="alone", pack=1, streams=1), device, dtype)
        self.inputs, self.targets, self.losses = case.inputs, case.targets, case.losses
        self.way, self.device, self.optimiser = way, device, case.optimiser
        build = prepkit.architecture(name).build
        self.networks = [build().train().to(device, dtype) for _ in range(count)]
        kind: Callable[..., torch.optim.Optimizer] = partial(torch.optim.SGD, lr=1e-3, momentum=0.9, weight_decay=5e-4)
        if case.targets.dim() == 3:
            kind = partial(torch.optim.Adam, lr=1e-4, capturable=way.graph and device.type == "cuda")
        self.optimisers = [kind(network.parameters()) for network in self.networks]

    def step(self) -> Tensor:
        found = []
        for index, (network, optimiser) in enumerate(zip(self.networks, self.optimisers, strict=True)):
            optimiser.zero_grad(set_to_none=True)
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.way.bf16):
                outputs = network(self.inputs[index])
            loss = self.losses(outputs[None], self.targets[index : index + 1])
            loss.sum().backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            found.append(loss.detach())
        return torch.cat(found)


def measured(
    name: str,
    count: int,
    batch: int,
    way: Way,
    device: torch.device,
    rounds: int = 3,
    steps: int = 20,
    seconds: float = 1.2,
    launches: bool = True,
) -> Figures:
    """Steps a second of a way (median, slowest and fastest round), launches of a step, and the peak of memory."""
    release(device)
    with precision(device, way.free):
        kind = Plain if way.engine == "plain" else Case
        case = kind(name, count, batch, way, device, torch.float32)
        graphed = GraphedStep(case.step, device, warmups=3, most=1 if way.graph else 0)
        first = [float(graphed().mean()) for _ in range(2)]
        for _ in range(4):
            losses = graphed()
        wait(device)
        began = time.perf_counter()
        graphed()
        wait(device)
        steps = max(2, min(steps, int(seconds / rounds / max(time.perf_counter() - began, 1e-6))))
        rates = []
        for _ in range(rounds):
            began = time.perf_counter()
            for _ in range(steps):
                losses = graphed()
            wait(device)
            rates.append(steps / (time.perf_counter() - began))
        assert bool(losses.isfinite().all()), losses
        rate = statistics.median(rates)
        figures: Figures = {
            "steps a second": round(rate, 2),
            "spread": [round(min(rates), 2), round(max(rates), 2)],
            "instance-steps a second": round(rate * count, 1),
            "first losses": [round(loss, 5) for loss in first],
        }
        if device.type == "cuda":
            figures["peak MiB"] = round(torch.cuda.max_memory_allocated(device) / 2**20)
            if way.graph and not graphed.recorded:
                figures["not recorded"] = graphed.failure
            if launches and not way.graph:
                figures["launches a step"] = launches_of(case.step)
    return figures


def launches_of(step: Callable[[], object]) -> dict[str, int]:
    """Calls of CUDA in one step that is run by Python."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as found:
        step()
        torch.cuda.synchronize()
    counts: Counter[str] = Counter()
    for event in found.key_averages():
        for what in ("Launch", "Memcpy", "Memset"):
            if event.key.startswith(("cuda", "cu")) and what in event.key:
                counts[what] += event.count
    return dict(counts)


@contextmanager
def precision(device: torch.device, free: bool) -> Iterator[None]:
    """TF32, and cuDNN's kernels as a zoo's training chooses them unless `free`."""
    if device.type != "cuda":
        yield
        return
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = True
    try:
        with torch.backends.cudnn.flags(enabled=True, benchmark=free, deterministic=not free, allow_tf32=True):
            yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before


def release(device: torch.device) -> None:
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


def image_ways(count: int) -> list[Way]:
    """Ways of ResNet8, the telling ones first."""
    few, more = min(4, count), min(8, count)
    ways = [
        Way("plain", 1, graph=False),
        Way("dense nhwc", few, 4),
        Way("dense nhwc", few, 4, free=True),
        Way("dense nhwc", few, 8),
        Way("dense nchw", few, 4),
        Way("dense nhwc", more, 4),
        Way("dense nhwc", min(2, count), 8),
        Way("alone", 1, 8),
        Way("grouped nhwc", count, graph=False),
        Way("grouped nhwc", count),
        Way("grouped nhwc", count, free=True),
        Way("grouped nhwc", few, 4),
        Way("grouped nchw", count),
        Way("plain", 1),
        Way("bmm nchw", few),
        Way("bmm nchw", count),
        Way("vmap", count),
    ]
    return [replace(way, bf16=bf16) for way in ways for bf16 in (True, False) if not (bf16 and way.engine == "vmap")]


def deep_ways(count: int) -> list[Way]:
    """Ways of ResNet32, of which one step takes four times as many kernels."""
    few = min(4, count)
    ways = [Way("dense nhwc", few, 4), Way("plain", 1, graph=False), Way("grouped nhwc", count), Way("alone", 1, 8)]
    return [replace(way, bf16=bf16) for way in ways for bf16 in (True, False)]


def linear_ways(count: int) -> list[Way]:
    """Ways of the sine MLP."""
    ways = [
        Way("plain", 1, graph=False),
        Way("grouped nchw", count, graph=False),  # it has linear layers alone, which are one bmm each
        Way("grouped nchw", count),
        Way("alone", 1, 4),
        Way("grouped nchw", min(4, count), 2),
    ]
    return [replace(way, bf16=bf16) for way in ways for bf16 in (False, True)]


def zoo_speed(device: torch.device, tiny: bool, seconds: float = 30.0) -> Figures:
    """Speed of all ways for ResNet8 (K = 32), ResNet32 (K = 16) and the sine MLP (K = 32); some if time is short."""
    cases: list[tuple[str, int, int, Callable[[int], list[Way]], float]] = [
        ("resnet8@cifar10", 4 if tiny else 32, 2 if tiny else 128, image_ways, 0.65),
        ("sine_mlp@sdf_small" if tiny else "sine_mlp@sdf", 4 if tiny else 32, 8 if tiny else 20_000, linear_ways, 0.15),
        ("resnet8@digits" if tiny else "resnet32@cifar10", 2 if tiny else 16, 2 if tiny else 128, deep_ways, 0.2),
    ]
    figures: Figures = {}
    began, share = time.monotonic(), 0.0
    for name, count, batch, ways_of, own_share in cases:
        share += own_share
        title = f"{name}, K = {count}, batch {batch}"
        found: Figures = figures.setdefault(title, {})
        for way in ways_of(count):
            if time.monotonic() - began > share * seconds:
                found[str(way)] = {"left out": "no time"}
                continue
            try:
                rounds, steps = (1, 1) if tiny else (3, 20)
                found[str(way)] = measured(name, count, batch, way, device, rounds, steps, launches=not tiny)
            except Exception as error:  # one way that fails must not hide the others
                found[str(way)] = {"error": f"{type(error).__name__}: {str(error)[:300]}"}
            say(f"{title}: {way}: {json.dumps(found[str(way)])}")
    release(device)
    return figures
