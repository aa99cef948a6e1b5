"""When a step is run, recorded and repeated, with a recorder that needs no GPU; on a GPU, with the real one."""

import warnings

import pytest
import torch
from torch import Tensor

from prepkit.errors import RecordingFailed
from prepkit.support.graphs import GraphedChain, GraphedStep

CPU = torch.device("cpu")
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


class Recorder:
    """Runs the Python of a call without its effect, as a recording does, and lets it take effect when repeated."""

    def __init__(self, state: Tensor) -> None:
        self.state, self.recorded, self.repeated = state, 0, 0

    def __call__(self, call):
        self.recorded += 1
        before = self.state.clone()
        outputs = call()
        self.state.copy_(before)

        def repeat():
            self.repeated += 1
            outputs.copy_(call())

        return outputs, repeat


def adding(state: Tensor):
    """A step that adds to a state, and the list of its calls in Python."""
    calls = []

    def step(amount: Tensor, sign: int = 1) -> Tensor:
        calls.append(sign)
        state.add_(sign * amount.sum())
        return state.clone()

    return step, calls


def test_every_call_is_one_step_whether_it_is_run_recorded_or_repeated():
    state = torch.zeros(())
    step, _ = adding(state)
    recorder = Recorder(state)
    graphed = GraphedStep(step, CPU, warmups=2, recorder=recorder)
    found = [float(graphed(torch.full((2,), float(number)))) for number in range(6)]
    assert found == [0.0, 2.0, 6.0, 12.0, 20.0, 30.0]
    assert (recorder.recorded, recorder.repeated) == (1, 4)


def test_a_recording_reads_the_tensors_of_each_call():
    state = torch.zeros(())
    step, _ = adding(state)
    graphed = GraphedStep(step, CPU, warmups=1, recorder=Recorder(state))
    given = torch.ones(3)
    for _ in range(3):
        graphed(given)
    given.fill_(10.0)
    assert float(graphed(given)) == 39.0


def test_shapes_and_other_arguments_have_recordings_of_their_own():
    state = torch.zeros(())
    step, _ = adding(state)
    recorder = Recorder(state)
    graphed = GraphedStep(step, CPU, warmups=1, most=2, recorder=recorder)
    for _ in range(3):
        graphed(torch.ones(2), 1)
        graphed(torch.ones(2), -1)
    assert (recorder.recorded, graphed.recorded, float(state)) == (2, 2, 0.0)
    for _ in range(4):  # there is no room for a third
        graphed(torch.ones(5), 1)
    assert (recorder.recorded, float(state)) == (2, 20.0)


def test_what_cannot_be_recorded_is_said_once_and_runs():
    state = torch.zeros(())
    step, calls = adding(state)
    tried = []

    def failing(call):
        tried.append(call)
        raise RuntimeError("operation not permitted when stream is capturing\nmore")

    graphed = GraphedStep(step, CPU, warmups=1, recorder=failing)
    graphed(torch.ones(2))
    with pytest.warns(RecordingFailed, match=r"so it runs without one, which is slower: operation not permitted when"):
        graphed(torch.ones(2))
    for _ in range(3):
        graphed(torch.ones(2))
        graphed(torch.ones(7))
    assert (len(tried), len(calls), float(state)) == (1, 8, 31.0)


def test_a_mistake_of_the_step_is_not_hidden():
    def step() -> Tensor:
        raise ValueError("a mistake")

    with pytest.raises(ValueError, match="a mistake"):
        GraphedStep(step, CPU)()


def test_on_a_cpu_the_function_is_all():
    step, calls = adding(torch.zeros(()))
    graphed = GraphedStep(step, CPU)
    for _ in range(6):
        graphed(torch.ones(1))
    assert (len(calls), graphed.recorded) == (6, 0)


@needs_gpu
def test_a_recorded_training_equals_one_that_is_run():
    results = []
    for warmups in (2, 100):
        torch.manual_seed(0)
        network = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 1)).cuda()
        optimiser = torch.optim.Adam(network.parameters(), lr=torch.tensor(1e-2).cuda(), capturable=True)

        def step(inputs: Tensor, network=network, optimiser=optimiser) -> Tensor:
            optimiser.zero_grad(set_to_none=True)
            loss = network(inputs).square().mean()
            loss.backward()
            optimiser.step()
            return loss.detach()

        graphed = GraphedStep(step, torch.device("cuda"), warmups)
        draws = torch.Generator().manual_seed(1)
        results.append([float(graphed(torch.randn(32, 8, generator=draws).cuda())) for _ in range(10)])
        assert graphed.recorded == (warmups == 2)
    assert results[0] == pytest.approx(results[1], rel=1e-6)


@needs_gpu
def test_a_step_that_waits_for_the_gpu_goes_on_unrecorded():
    state = torch.zeros((), device="cuda")

    def step(amount: Tensor) -> Tensor:
        noise = torch.nn.functional.dropout(torch.ones(4, device="cuda"), 0.5)
        state.add_(amount.item() + 0 * noise.sum())
        return state.clone()

    graphed = GraphedStep(step, torch.device("cuda"), warmups=1)
    graphed(torch.ones((), device="cuda"))
    with pytest.warns(RecordingFailed):
        graphed(torch.ones((), device="cuda"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(3):
            graphed(torch.ones((), device="cuda"))
    assert float(state) == 5.0
    assert torch.cuda.current_stream() == torch.cuda.default_stream()
    torch.randn(3, device="cuda")
    works = GraphedStep(lambda amount: state.add_(amount), torch.device("cuda"), warmups=1)
    for _ in range(3):
        works(torch.ones((), device="cuda"))
    assert (works.recorded, float(state)) == (1, 8.0)


# Chains -----------------------------------------------------------------------------------------------------------


class Parts:
    """A chain that multiplies a number by 10, lets the host read it, and adds the judgement to a total."""

    def __init__(self, **options) -> None:
        self.recorded: list[str] = []
        self.total = 0.0
        recorders = (self.recorder("forward or backward"), self.recorder("judge"))
        self.chain = GraphedChain(
            self.forward, self.choose, self.judge, self.backward, CPU, recorders=recorders, **options
        )

    def recorder(self, name):
        def record(call):
            self.recorded.append(name)
            before = self.total
            outputs = call()
            self.total = before

            def repeat():
                again = call()
                for old, new in zip(outputs or (), again or (), strict=True):
                    old.copy_(new)

            return outputs, repeat

        return record

    def forward(self, number):
        return (number * 10,)

    def choose(self, outputs):
        return int(outputs[0]) % 100

    def judge(self, outputs, choice, number):
        return (), (outputs[0] + choice,)

    def backward(self, outputs, gradients, again):
        self.total += float(outputs[0])

    def __call__(self, number):
        (result,) = self.chain(torch.tensor(float(number)))
        return float(result)


def test_a_chain_judges_by_what_the_host_reads():
    parts = Parts(warmups=2)
    numbers = [1, 2, 1, 2, 1, 1, 1, 2, 3]
    assert [parts(number) for number in numbers] == [number * 20.0 for number in numbers]
    assert parts.total == 10 * sum(numbers)
    assert parts.recorded == ["forward or backward"] * 2 + ["judge"]  # 1 was judged three times since


def test_judgings_that_were_asked_for_longest_ago_give_way():
    parts = Parts(warmups=1, choices=2)
    for number in [1, 1, 1, 2, 2, 1, 3, 3]:  # recorded: 1, 2, then 3 in place of 2
        assert parts(number) == number * 20
    before = parts.recorded.count("judge")
    assert before == 3
    assert parts(1) == 20.0
    assert parts.recorded.count("judge") == before
    parts(2)
    parts(2)
    assert parts.recorded.count("judge") == before + 1


def test_as_many_judgings_stay_as_may():
    parts = Parts(warmups=1, choices=8)
    numbers = list(range(1, 9))
    for number in [0, 0, *numbers, *numbers, *numbers]:
        assert parts(number) == number * 20
    assert parts.recorded.count("judge") == 8


def test_only_some_kinds_of_arguments_are_recorded():
    parts = Parts(warmups=1, most=1)
    for shape in ((), (1,)):
        for _ in range(3):
            parts.chain(torch.ones(shape))
    assert parts.chain.recorded == 1


def test_a_chain_that_cannot_be_recorded_says_so_once_and_runs():
    parts = Parts(warmups=1)

    def fails(call):
        raise RuntimeError("operation not permitted when stream is capturing")

    parts.chain._recorders = fails, fails
    assert parts(1) == 20
    with pytest.warns(RecordingFailed, match="operation not permitted"):
        assert parts(2) == 40
    assert parts(3) == 60
    assert parts.total == 60
