"""A step that a CUDA graph repeats: hundreds of kernels are launched by one call, where Python launched each.

    step = GraphedStep(train_on, device)     # train_on(images, labels) -> tensors
    for images, labels in batches:
        losses = step(images, labels)        # holds until the next call; clone what must last longer

The first calls run the function as it is, and they count as steps like any other. Then the function is recorded, which
runs its Python but nothing on the device, and from there on each call copies its tensors into the recorded inputs and
repeats what was recorded. On a CPU, and wherever recording fails, every call runs the function itself.

What the function must keep to, so that a repetition is a step:
- All that changes from step to step is in tensors that are changed in place, such as an optimiser's state (capturable
  Adam), a learning rate (a tensor, set by `fill_` or `copy_` outside), or the tensors that the call is given.
- It does not wait for the device: no `.item()`, no `.tolist()`, no tensor made from numbers on the host.
- It clears the gradients first of all, and may set them to None, as a repetition writes the recorded ones; gradients
  that another recording reads are cleared with `set_to_none=False`.
- What its Python does beside that, such as counting steps, is done by the caller.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Hashable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from prepkit.errors import RecordingFailed

WARMUPS = 3  # Libraries choose their kernels in the first calls, which cannot be recorded.
MOST_GRAPHS = 16
MOST_CHOICES = 8
MOST_KNOWN = 1000  # choices that are remembered
_END_ALLOCATING = ("_cuda_endAllocateToPool", "_cuda_endAllocateCurrentStreamToPool")  # today's name, that of torch 2.6

T = TypeVar("T")
Recorder = Callable[[Callable[[], T]], tuple[T, Callable[[], None]]]


@dataclass
class _Variant(Generic[T]):
    """The calls with arguments of one kind: how many there were, and what was recorded for them."""

    calls: int = 0
    inputs: tuple[Tensor, ...] = ()
    outputs: T | None = None
    repeat: Callable[[], None] | None = None


class GraphedStep(Generic[T]):
    """A function that a CUDA graph repeats once it was called some times; see the module for what it must keep to.

    step:     takes tensors on the device, and other arguments, which are hashable; each combination of the tensors'
              shapes and dtypes with the other arguments has a recording of its own
    device:   only on a CUDA device anything is recorded
    warmups:  number of calls of each combination before it is recorded
    most:     number of combinations that are recorded; calls with others run the function itself
    recorder: records a call and returns its outputs, and the function that repeats it; for tests
    Recordings share memory, so the outputs of a call are only good until the next call, whatever its arguments.
    """

    def __init__(
        self,
        step: Callable[..., T],
        device: torch.device,
        warmups: int = WARMUPS,
        most: int = MOST_GRAPHS,
        recorder: Recorder[T] | None = None,
    ) -> None:
        self.step, self.warmups, self.most = step, max(1, warmups), most
        self.failure: str | None = None
        if recorder is None and device.type == "cuda":
            recorder = CudaRecorder(device)
        self._recorder = recorder
        self._variants: dict[Hashable, _Variant[T]] = {}

    @property
    def recorded(self) -> int:
        """How many combinations of arguments are recorded."""
        return sum(variant.repeat is not None for variant in self._variants.values())

    def __call__(self, *arguments: Any) -> T:
        """Do one step."""
        if self._recorder is None or self.failure is not None:
            return self.step(*arguments)
        variant = self._variants.setdefault(_kind(arguments), _Variant())
        variant.calls += 1
        if variant.repeat is None and (variant.calls <= self.warmups or self.recorded >= self.most):
            return self._run(arguments)
        if variant.repeat is None and not self._record(variant, arguments):
            return self.step(*arguments)
        given = [argument for argument in arguments if isinstance(argument, Tensor)]
        for own, tensor in zip(variant.inputs, given, strict=True):
            if own is not tensor:
                own.copy_(tensor, non_blocking=True)
        assert variant.repeat is not None
        variant.repeat()
        return variant.outputs  # type: ignore[return-value]  # they are there once it is recorded

    def _run(self, arguments: tuple[Any, ...]) -> T:
        """Run the function where it will be recorded."""
        return _aside(self._recorder, lambda: self.step(*arguments))

    def _record(self, variant: _Variant[T], arguments: tuple[Any, ...]) -> bool:
        """Record the function for arguments of this kind; say so and give up all recordings if that fails."""
        assert self._recorder is not None
        inputs = [argument.clone() if isinstance(argument, Tensor) else argument for argument in arguments]
        try:
            variant.outputs, variant.repeat = self._recorder(lambda: self.step(*inputs))
        except RuntimeError as error:  # torch's own errors, out of memory among them, are all of this kind
            self.failure = _say_failure(error)
            self._variants.clear()  # their memory is what may be missing
            return False
        variant.inputs = tuple(argument for argument in inputs if isinstance(argument, Tensor))
        return True


def _aside(recorder: Any, call: Callable[[], T]) -> T:
    """Make a call where it will be recorded: libraries keep a workspace for each stream."""
    aside = getattr(recorder, "aside", None)
    return call() if aside is None else aside(call)


def _say_failure(error: RuntimeError) -> str:
    """Warn that a recording failed, and return why."""
    cause = error.__context__ or error  # where the recording was broken off, before it was ended
    failure = (str(cause).strip().splitlines() or [type(cause).__name__])[0]
    warnings.warn(
        f"a step cannot be recorded as a CUDA graph, so it runs without one, which is slower: {failure}",
        RecordingFailed,
        stacklevel=4,
    )
    return failure


def _kind(arguments: tuple[Any, ...]) -> Hashable:
    """What a recording depends on: shapes and dtypes of tensors, and all other arguments themselves."""
    return tuple(
        (argument.shape, argument.dtype, argument.stride()) if isinstance(argument, Tensor) else argument
        for argument in arguments
    )


@dataclass
class _Chain:
    """What was recorded for arguments of one kind: forward, backward, and a judging for each choice."""

    calls: int = 0
    inputs: tuple[Any, ...] = ()
    outputs: tuple[Any, ...] = ()
    gradients: tuple[Tensor, ...] = ()
    forward: Callable[[], None] | None = None
    backward: Callable[[], None] | None = None
    judged: dict[Hashable, _Variant[Any]] = field(default_factory=dict)


class GraphedChain(Generic[T]):
    """A differentiated function in whose middle the host has to know what the first half computed.

    forward:  takes the arguments (tensors on the device, and hashable ones) and returns a tuple, some tensors of which
              need gradients
    choose:   waits for the device and returns what the host has to know of these outputs, hashable
    judge:    takes the outputs, the choice and the arguments, and returns the gradients of those outputs that need
              them, in their order, and its results; it must not use the outputs' history
    backward: takes the outputs, their gradients, and whether their history is needed again; it adds to the gradients
              of parameters
    device, warmups, most: see GraphedStep
    choices:   number of choices whose judging is recorded for each kind of arguments; the one that was asked for
               longest ago gives way to another
    recorders: the recorders of forward and backward, and of judgings; for tests
    Forward and backward are recorded once for each kind of arguments, the judging for each choice too. A recorded kind
    keeps all activations of its forward. Results are only good until the next call.
    """

    def __init__(
        self,
        forward: Callable[..., tuple[Any, ...]],
        choose: Callable[[Any], Hashable],
        judge: Callable[..., tuple[tuple[Tensor, ...], T]],
        backward: Callable[[Any, tuple[Tensor, ...], bool], None],
        device: torch.device,
        warmups: int = WARMUPS,
        most: int = MOST_GRAPHS,
        choices: int = MOST_CHOICES,
        recorders: tuple[Recorder[Any], Recorder[Any]] | None = None,
    ) -> None:
        self.forward, self.choose, self.judge, self.backward = forward, choose, judge, backward
        self.warmups, self.most, self.choices = max(1, warmups), most, choices
        self.failure: str | None = None
        if recorders is None and device.type == "cuda":
            # Judgings are recorded after backward but run before it: in one pool, it would write over their results.
            recorders = CudaRecorder(device), CudaRecorder(device)
        self._recorders = recorders
        self._chains: dict[Hashable, _Chain] = {}

    @property
    def recorded(self) -> int:
        """How many kinds of arguments are recorded."""
        return sum(chain.backward is not None for chain in self._chains.values())

    def __call__(self, *arguments: Any) -> T:
        """Compute the results, and add to the gradients."""
        if self._recorders is None or self.failure is not None:
            self._chains.clear()  # the memory of recordings is what may be missing
            return self._run(arguments)
        recorder, judging = self._recorders
        chain = self._chains.setdefault(_kind(arguments), _Chain())
        chain.calls += 1
        if chain.backward is None and (chain.calls <= self.warmups or self.recorded >= self.most):
            return _aside(recorder, lambda: self._run(arguments))
        if chain.backward is None and not self._record(chain, arguments, recorder):
            return self._run(arguments)
        for own, given in zip(chain.inputs, arguments, strict=True):
            if isinstance(own, Tensor) and own is not given:
                own.copy_(given, non_blocking=True)
        assert chain.forward is not None
        assert chain.backward is not None
        chain.forward()
        results = self._judge(chain, self.choose(chain.outputs), judging)
        chain.backward()
        return results

    def _run(self, arguments: tuple[Any, ...]) -> T:
        """Run all three functions as they are."""
        outputs = self.forward(*arguments)
        gradients, results = self.judge(outputs, self.choose(outputs), *arguments)
        self.backward(outputs, gradients, False)
        return results

    def _record(self, chain: _Chain, arguments: tuple[Any, ...], recorder: Recorder[Any]) -> bool:
        """Record forward and backward; between the two, nothing may change what backward reads."""
        inputs = tuple(argument.clone() if isinstance(argument, Tensor) else argument for argument in arguments)
        try:
            outputs, forward = recorder(lambda: self.forward(*inputs))
            gradients = tuple(
                torch.zeros_like(output) for output in outputs if isinstance(output, Tensor) and output.requires_grad
            )
            # The history is kept, for what it holds must not become the memory of recordings that come later.
            _, backward = recorder(lambda: self.backward(outputs, gradients, True))
        except RuntimeError as error:
            self.failure = _say_failure(error)
            self._chains.clear()
            return False
        chain.inputs, chain.outputs, chain.gradients = inputs, outputs, gradients
        chain.forward, chain.backward = forward, backward
        return True

    def _judge(self, chain: _Chain, choice: Hashable, recorder: Recorder[Any]) -> T:
        """Judge the outputs, by a recording if there is one, and leave the gradients where backward reads them."""

        def judge() -> T:
            gradients, results = self.judge(chain.outputs, choice, *chain.inputs)
            for own, gradient in zip(chain.gradients, gradients, strict=True):
                own.copy_(gradient)
            return results

        variant = chain.judged.pop(choice, _Variant())
        chain.judged[choice] = variant  # the last one is the one that was asked for last
        if len(chain.judged) > MOST_KNOWN:
            del chain.judged[next(known for known, each in chain.judged.items() if each.repeat is None)]
        variant.calls += 1
        if variant.repeat is None:
            if variant.calls <= self.warmups or self.failure is not None:
                return _aside(recorder, judge)
            recorded = [known for known, each in chain.judged.items() if each.repeat is not None]
            for known in recorded[: max(0, len(recorded) + 1 - self.choices)]:
                del chain.judged[known]
            try:
                variant.outputs, variant.repeat = recorder(judge)
            except RuntimeError as error:
                self.failure = _say_failure(error)
                return judge()
        variant.repeat()
        return variant.outputs  # type: ignore[return-value]  # they are there once it is recorded


class CudaRecorder:
    """Records calls as CUDA graphs that share one pool of memory."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self.pool = torch.cuda.graph_pool_handle()

    def aside(self, call: Callable[[], T]) -> T:
        """Make a call on the stream on which calls are recorded."""
        current = torch.cuda.current_stream(self.device)
        self.stream.wait_stream(current)
        with torch.cuda.stream(self.stream):
            outputs = call()
        current.wait_stream(self.stream)
        return outputs

    def __call__(self, call: Callable[[], T]) -> tuple[T, Callable[[], None]]:
        """Record a call, and return its outputs, which are empty yet, and the function that repeats it."""
        graph = torch.cuda.CUDAGraph()
        current = torch.cuda.current_stream(self.device)
        random_state = torch.cuda.get_rng_state(self.device)
        try:
            # "thread_local" lets other threads, such as those that read batches ahead, use the device meanwhile.
            with torch.cuda.graph(graph, pool=self.pool, stream=self.stream, capture_error_mode="thread_local"):
                outputs = call()
        except BaseException:
            self._recover(current, random_state)
            raise
        return outputs, graph.replay

    def _recover(self, current: torch.cuda.Stream, random_state: Tensor) -> None:
        """Bring torch back from a recording that failed: it leaves stream, allocator and generator in between."""
        torch.cuda.set_stream(current)
        index = torch.cuda.current_device() if self.device.index is None else self.device.index
        with suppress(RuntimeError):
            name = next(name for name in _END_ALLOCATING if hasattr(torch._C, name))
            getattr(torch._C, name)(index, self.pool)
        generator = torch.cuda.default_generators[index]
        with suppress(RuntimeError):
            fresh = torch.Generator(self.device).manual_seed(generator.initial_seed())
            generator.graphsafe_set_state(fresh.graphsafe_get_state())
            torch.cuda.set_rng_state(random_state, self.device)
        with suppress(RuntimeError):
            torch.cuda.synchronize(self.device)
