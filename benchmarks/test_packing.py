"""Packing and unpacking against a memory copy of the same bytes in the same run; every result is checked.

Cold: the call goes round many networks whose bytes together exceed the caches, as when a zoo is packed. Hot: one
network again and again, all in the cache. Ratios are to torch's own copy with the same number of threads.
"""

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor

import prepkit
from benchmarks import baselines
from benchmarks.timing import interleaved, record, summary
from prepkit.prep.layout import Layout, Slot

WIDTH = 512
COLD_BYTES = 500 << 20


def folded(name: str) -> tuple[Layout, dict[str, Tensor]]:
    architecture = prepkit.architecture(name)
    return architecture.layout, dict(architecture.build_folded().state_dict())


def hundred_million() -> tuple[Layout, dict[str, Tensor]]:
    tensors = {f"layers.{index}.weight": torch.randn(3_000, 3_000) for index in range(11)}
    tensors |= {f"layers.{index}.bias": torch.randn(3_000) for index in range(11)}
    return Layout.of_tensors(tensors), tensors


def check(layout: Layout, tensors: dict[str, Tensor], prep: Tensor) -> None:
    flat = torch.cat([tensors[slot.name].reshape(*prep.shape[:-2], -1) for slot in layout], dim=-1)
    assert torch.equal(prep.reshape(*prep.shape[:-2], -1)[..., : layout.total], flat)
    assert not prep.reshape(*prep.shape[:-2], -1)[..., layout.total :].any()


class Round:
    """Calls that go round `copies` networks, one a call."""

    def __init__(self, layout: Layout, tensors: dict[str, Tensor], copies: int) -> None:
        self.layout = layout
        self.shape = layout.shape(WIDTH)
        self.networks = [{name: tensor.clone() for name, tensor in tensors.items()} for _ in range(copies)]
        self.sources = [layout.pack(network, self.shape) for network in self.networks]
        self.outs = [torch.zeros_like(source) for source in self.sources]
        self.turn = 0

    def next(self) -> int:
        self.turn = (self.turn + 1) % len(self.networks)
        return self.turn

    def memory_copy(self) -> None:
        index = self.next()
        baselines.memory_copy(self.sources[index], self.outs[index])

    def pack_into_out(self) -> None:
        index = self.next()
        self.layout.pack(self.networks[index], out=self.outs[index])

    def allocate_and_copy(self) -> None:
        baselines.allocate_and_copy(self.sources[self.next()])

    def pack(self) -> None:
        self.layout.pack(self.networks[self.next()], self.shape)

    def vector_and_pad(self) -> None:
        values = list(self.networks[self.next()].values())
        baselines.pack_vector_and_pad(values, self.shape.height, self.shape.width)

    def row_by_row(self) -> None:
        values = list(self.networks[self.next()].values())
        baselines.pack_row_by_row(values, self.shape.height, self.shape.width)


CASES = {
    "resnet8@cifar10": lambda: folded("resnet8@cifar10"),
    "resnet32@cifar10": lambda: folded("resnet32@cifar10"),
    "100M parameters": hundred_million,
}


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("temperature", ["cold", "hot"])
@pytest.mark.parametrize("case", CASES)
def test_pack(benchmark: BenchmarkFixture, case: str, temperature: str, threads: int) -> None:
    layout, tensors = CASES[case]()
    num_bytes = layout.total * 4
    copies = max(1, COLD_BYTES // num_bytes) if temperature == "cold" and num_bytes < COLD_BYTES // 2 else 1
    if temperature == "hot" and num_bytes > COLD_BYTES // 2:
        pytest.skip("100M parameters fit no cache")
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with torch.no_grad():
            turns = Round(layout, tensors, copies)
            check(layout, turns.networks[0], layout.pack(turns.networks[0], out=turns.outs[0]))
            loops = max(1, min(copies * 2, 400)) if num_bytes < COLD_BYTES // 2 else 1
            ways = {
                "memory copy": turns.memory_copy,
                "pack into out": turns.pack_into_out,
                "allocate and copy": turns.allocate_and_copy,
                "pack": turns.pack,
                "vector and pad": turns.vector_and_pad,
                "row by row": turns.row_by_row,
            }
            seconds = interleaved(ways, rounds=11, loops=loops)
            check(layout, turns.networks[-1], turns.outs[-1])
            benchmark.pedantic(turns.pack_into_out, rounds=11, iterations=loops)
    finally:
        torch.set_num_threads(before)
    result = summary(seconds, "memory copy")
    result["pack to allocate and copy"] = {  # type: ignore[assignment]
        "ratio": round(result["pack"]["microseconds"] / result["allocate and copy"]["microseconds"], 3)
    }
    record(benchmark, "packing", f"{case}, {temperature}, {threads} threads", result)


@pytest.mark.parametrize("threads", [1, 2])
def test_pack_a_stack(benchmark: BenchmarkFixture, threads: int) -> None:
    layout, one = folded("resnet8@cifar10")
    stack = {name: torch.randn(1_000, *tensor.shape) for name, tensor in one.items()}
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with torch.no_grad():
            source = layout.pack(stack, layout.shape(WIDTH))
            out = torch.zeros_like(source)
            ways = {
                "memory copy": lambda: baselines.memory_copy(source, out),
                "pack into out": lambda: layout.pack(stack, out=out),
                "allocate and copy": lambda: baselines.allocate_and_copy(source),
                "pack": lambda: layout.pack(stack, layout.shape(WIDTH)),
            }
            result = summary(interleaved(ways, rounds=11), "memory copy")
            benchmark.pedantic(lambda: layout.pack(stack, out=out), rounds=11)
            check(layout, stack, out)
    finally:
        torch.set_num_threads(before)
    result["pack to allocate and copy"] = {  # type: ignore[assignment]
        "ratio": round(result["pack"]["microseconds"] / result["allocate and copy"]["microseconds"], 3)
    }
    record(benchmark, "packing", f"1,000 stacked resnet8@cifar10, {threads} threads", result)


@pytest.mark.parametrize("case", ["resnet8@cifar10", "resnet32@cifar10", "1,000 stacked", "10,000 slots"])
def test_unpack(benchmark: BenchmarkFixture, case: str) -> None:
    if case == "10,000 slots":
        layout = Layout(tuple(Slot(f"s{i}", (3, 3), "float32", "parameter", 9 * i) for i in range(10_000)))
    else:
        layout, _ = folded("resnet8@cifar10" if case == "1,000 stacked" else case)
    shape = layout.shape(WIDTH)
    batch = (1_000,) if case == "1,000 stacked" else ()
    prep = torch.randn(*batch, shape.height, shape.width)
    shapes = [(slot.name, slot.shape) for slot in layout]
    ways = {"unpack": lambda: layout.unpack(prep)}
    if not batch:
        ways["slices and clones"] = lambda: baselines.unpack_by_slices(prep, shapes)
    seconds = interleaved(ways, rounds=15, loops=3 if len(layout) > 1_000 else 100)
    tensors = benchmark.pedantic(layout.unpack, (prep,), rounds=15, iterations=10)
    memory = prep.untyped_storage().data_ptr()
    assert all(tensor.untyped_storage().data_ptr() == memory for tensor in tensors.values())  # views: no copies
    result = summary(seconds, "unpack")
    result["unpack"]["microseconds a tensor"] = round(result["unpack"]["microseconds"] / len(layout), 3)
    record(benchmark, "packing", f"unpack, {case}", result)
