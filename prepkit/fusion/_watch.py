"""Watching one run of a network: which module made a tensor, and who read it.

A TorchFunctionMode sees what Python does to a tensor (`.numpy()`, `.data_ptr()`), and a TorchDispatchMode sees what
TorchScript and C++ do. Forward hooks tell in which module it happens. Looking at a shape does not count as reading.
Tensors are recognised by their storage, so reading a view counts as reading the tensor. Weak references reserve the
storage's address, so that no later tensor can get it, but release its data: no activation is kept in memory.
"""

from __future__ import annotations

import dataclasses
import gc
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from prepkit.errors import FusionError
from prepkit.fusion._functional import Function, function_of, names_of_parameters
from prepkit.fusion._output import COPIES, METADATA, MOVES, VIEWS, Output, Reader, View
from prepkit.fusion._output import quoted as quoted
from prepkit.fusion.norm import Convolution, is_norm
from prepkit.support.storages import leaves, own_tensors, storage_key, tensors_in


class UnfoldableNetwork(FusionError):
    """A network, or some of its BatchNorms, cannot be folded.

    refusals: the BatchNorms that cannot be folded, each with its reason; empty if the network as a whole is at fault
    """

    def __init__(self, message: str, refusals: Sequence[Refusal] = ()) -> None:
        super().__init__(message)
        self.refusals = tuple(refusals)


@dataclass(frozen=True)
class Refusal:
    """The name of a BatchNorm that cannot be folded, and the reason."""

    batch_norm: str
    reason: str

    def __str__(self) -> str:
        return f"{self.batch_norm or quoted(self.batch_norm)}: {self.reason}"


_OUTSIDE_TENSORS = (
    "The network cannot be deep-copied: its copy runs on tensors of the original, by {}; a lambda or a closure holds "
    "them. Make it a method or a module."
)


class Watch:
    """A record of one run. Modules go by their names in `network.named_modules()`.

    calls:      how often each module ran
    sources:    where the inputs of each BatchNorm came from, call by call: an output, or words for the rest
    outputs:    the outputs of each layer and BatchNorm, call by call
    inputs:     their inputs, call by call; None for a call with more than one tensor
    moved:      what operations that move values made of tracked outputs, in order
    arguments:  args and kwargs of each layer's last call, with floating-point tensors on the meta device
    outside:    for each module, a read of its parameters or buffers outside its own calls
    functional: modules in which batch_norm ran without a BatchNorm module
    layer_functions: layers that were called as functions on parameters, by the name of the weight
    other_reads: by storage, a read of a parameter or buffer other than as weight or bias of such a function
    results:    copies of the tensors that the network returned
    escape:     the error for an operation on a tensor of the original network, if there was one
    stack:      names of the modules that are running now, the innermost last
    functions:  names of the Python functions on tensors that are running now, the innermost last
    tracked:    by storage, the output of a layer or BatchNorm that lies in it
    constants:  storages of tensors that were made of parameters alone
    makers:     by storage, a sentence about the operation that made the tensor in it
    owners:     by storage, the names of the modules whose parameter or buffer lies in it
    """

    def __init__(self, network: nn.Module, foreign: set[int | None]) -> None:
        self.network, self.foreign = network, foreign
        self.calls: Counter[str] = Counter()
        self.sources: dict[str, list[Output | str]] = {}
        self.outputs: dict[str, list[Output]] = {}
        self.inputs: dict[str, list[View | None]] = {}
        self.moved: list[Output] = []
        self.arguments: dict[str, tuple[Any, Any]] = {}
        self.layer_functions: dict[str, Function] = {}
        self.other_reads: dict[int | None, Reader] = {}
        self.outside: dict[str, Reader] = {}
        self.functional: dict[str, None] = {}
        self.results: list[Tensor] = []
        self.escape: UnfoldableNetwork | None = None
        self.stack, self.functions = [""], [""]
        self.tracked: dict[int | None, Output] = {}
        self.constants: set[int | None] = set()
        self.makers: dict[int | None, str] = {}  # if an address is reused, only an error's wording is wrong
        self.layers = [n for n, module in network.named_modules() if isinstance(module, Convolution | nn.Linear)]
        self.batch_norms = {name for name, module in network.named_modules() if is_norm(module)}
        self.owners = _owners(network)
        self.parameter_names = names_of_parameters(network)
        self._applied: set[int | None] = set()  # parameters of the function that is running now

    def enter(self, name: str, args: Any, kwargs: Any) -> None:
        """Note that module `name` starts, and where the input of a BatchNorm comes from."""
        self.stack.append(name)
        self.calls[name] += 1
        if name in self.batch_norms:
            self.sources.setdefault(name, []).append(self._source([*args, *kwargs.values()]))
        if name in self.batch_norms or name in self.layers:
            self.inputs.setdefault(name, []).append(self._view_of_input([*args, *kwargs.values()]))

    def _view_of_input(self, inputs: list[Any]) -> View | None:
        if len(inputs) != 1 or not isinstance(inputs[0], Tensor) or (key := storage_key(inputs[0])) is None:
            return None
        with torch._C.DisableTorchFunction():
            return View.of(inputs[0], self.tracked.get(key))

    def _source(self, inputs: list[Any]) -> Output | str:
        if len(inputs) != 1 or not isinstance(inputs[0], Tensor):
            return "it is called with more than one tensor"
        key = storage_key(inputs[0])
        source = self.tracked.get(key)
        if source is not None and source.call is None and source.module not in self.layer_functions:
            return source
        return self.makers.get(key, "its input is a tensor that no operation of the run made")

    def leave(self, name: str, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        """Note that module `name` has ended, and track the tensor that a layer or a BatchNorm returned."""
        while self.stack.pop() != name:
            pass
        if not (name in self.layers or name in self.batch_norms) or not isinstance(output, Tensor):
            return
        if (tracked := self._track(name, output)) is not None:
            with torch._C.DisableTorchFunction():
                self.arguments[name] = pytree.tree_map(_without_values, (args, kwargs))
            self.outputs.setdefault(name, []).append(tracked)

    def _track(self, name: str, tensor: Tensor, call: tuple[Any, Any, Any] | None = None) -> Output | None:
        if (key := storage_key(tensor)) is None:
            return None
        with torch._C.DisableTorchFunction():
            storage = tensor.untyped_storage()
            length = storage.nbytes() // tensor.element_size()
            view = View.of(tensor, None)
            tracked = Output(name, view, length, StorageWeakRef(storage), call)  # type: ignore[no-untyped-call]
        self.tracked[key] = tracked
        return tracked

    def move(self, func: Any, args: Any, kwargs: Any, result: Any) -> None:
        """Track what an operation that moves values into new memory made of tracked outputs."""
        keys = {storage_key(tensor) for tensor in leaves((args, kwargs))}
        if keys.isdisjoint(self.tracked) or not isinstance(result, Tensor) or storage_key(result) in keys:
            return

        def view(leaf: Any) -> Any:
            return View.of(leaf, self.tracked.get(storage_key(leaf))) if isinstance(leaf, Tensor) else leaf

        moved = self._track(self.stack[-1], result, (func, *pytree.tree_map(view, (args, kwargs or {}))))
        if moved is not None:
            self.moved.append(moved)

    @contextmanager
    def applying(self, func: Any, args: Any, kwargs: Any) -> Iterator[Callable[[Any], None]]:
        """While a function runs, note its parameters as read by it; the value is a function that takes its result."""
        layer = None
        if self.stack[-1] not in self.layers:
            layer = function_of(func, args, kwargs, self.parameter_names)

        def track(result: Any) -> None:
            if layer is not None and isinstance(result, Tensor):
                self.calls[layer.weight] += 1
                same = self.layer_functions.setdefault(layer.weight, layer) == layer
                tracked = self._track(layer.weight, result) if same else None
                if tracked is not None:
                    self.outputs.setdefault(layer.weight, []).append(tracked)

        outer = self._applied
        names = () if layer is None else layer.parameters
        self._applied = {storage_key(self.network.get_parameter(name)) for name in names}
        try:
            yield track
        finally:
            self._applied = outer

    def read(self, operation: str, value: Any, moves: bool = False, exact: bool = False) -> None:
        """Note that `operation` reads the tensors in `value`; see Reader for `moves`.

        exact: whether it cannot read more of their storages than these tensors
        """
        inside = not self.batch_norms.isdisjoint(self.stack) or "instance_norm" in self.functions
        if "batch_norm" in operation and not inside and not self._only_parameters(value):
            self.functional.setdefault(self.stack[-1])
        if operation in METADATA:
            return
        reader = Reader(self._operation(operation), self.stack[-1], moves)
        for tensor in leaves(value):
            key = storage_key(tensor)
            if exact and not moves and key in self.tracked:
                with torch._C.DisableTorchFunction():
                    view = View.of(tensor, self.tracked[key])
                self._read([key], dataclasses.replace(reader, view=view))
            else:
                self._read([key], reader)

    def _only_parameters(self, value: Any) -> bool:
        """Return whether an operation reads parameters, or what was made of them alone, as weight standardisation."""
        return all(self._is_constant(storage_key(tensor)) for tensor in leaves(value))

    def _is_constant(self, key: int | None) -> bool:
        return key in self.owners or key in self.constants

    def _read(self, keys: Iterable[int | None], reader: Reader) -> None:
        for key in keys:
            if key in self.foreign:
                # This is raised before the operation, which could change the statistics of the original.
                self.escape = UnfoldableNetwork(_OUTSIDE_TENSORS.format(reader))
                raise self.escape
            if key in self.tracked:
                self.tracked[key].readers.setdefault(reader)
            owners = self.owners.get(key, set())
            if owners and key not in self._applied:
                self.other_reads.setdefault(key, reader)
            if not owners.intersection(self.stack):
                self.outside.update(dict.fromkeys(owners, reader))

    def produced(self, operation: str, arguments: Any, value: Any) -> None:
        """Note that `operation` has made the tensors in `value` of `arguments`."""
        constant = bool(leaves(arguments)) and self._only_parameters(arguments)
        maker = Reader(self._operation(operation), self.stack[-1])
        words = f"its input comes from {maker}, not straight from a convolution or Linear layer"
        keys = {storage_key(tensor) for tensor in leaves(value)}
        self.makers.update(dict.fromkeys(keys, words))
        if constant:
            self.constants |= keys
        else:
            self.constants -= keys  # an address may be that of an earlier tensor

    def _operation(self, operation: str) -> str:
        """Return the Python function's name, which users know, unless an operation in place (`relu_`) ran."""
        return operation if operation.endswith("_") else self.functions[-1] or operation

    def finish(self, result: Any) -> None:
        """Copy the tensors that the network returned; returning them counts as reading them."""
        returned = tensors_in(result)
        self._read(map(storage_key, returned), Reader("", ""))
        self.results = [tensor.detach().clone() for tensor in returned]

    def mark_held(self) -> None:
        """Note which outputs are still held after the run, such as in an attribute or a list."""
        outputs = [*self.moved, *(output for calls in self.outputs.values() for output in calls)]
        if any(map(_alive, outputs)):
            gc.collect()  # outputs that only a reference cycle keeps alive do not count as held
        for output in outputs:
            output.held = _alive(output)


class _Functions(TorchFunctionMode):
    """Sees the operations on tensors that Python calls."""

    def __init__(self, watch: Watch) -> None:
        super().__init__()
        self.watch = watch

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = _function_name(func)
        self.watch.functions.append(name)
        try:
            with self.watch.applying(func, args, kwargs or {}) as track:
                result = func(*args, **(kwargs or {}))
                # A function that returns its argument itself (dropout, contiguous) may do nothing. If it does
                # something, it dispatches an operation, which _Dispatches sees.
                if not any(result is leaf for leaf in leaves(args)):
                    self.watch.read(name, (args, kwargs), name in MOVES, _is_apart(result, (args, kwargs)))
                track(result)
            return result
        finally:
            self.watch.functions.pop()


class _Dispatches(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Sees the operations on tensors below Python, whatever calls them."""

    def __init__(self, watch: Watch) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.watch = watch

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Return False; else torch would load its compiler, which takes over a second, to wrap `__torch_dispatch__`."""
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.__name__.split(".")[0]
        fresh = not func._schema.is_mutable
        exact = fresh and all(returned.alias_info is None for returned in func._schema.returns)
        self.watch.read(name, (args, kwargs), fresh and (name in COPIES or name in VIEWS), exact)
        result = func(*args, **(kwargs or {}))
        self.watch.produced(name, (args, kwargs), result)
        if fresh and name in COPIES:
            self.watch.move(func, args, kwargs, result)
        return result


_INPUT = "its input is the network's input: there is no layer before it"


def watch(network: nn.Module, args: Any, kwargs: Any, original: nn.Module) -> Watch:
    """Run `network(*args, **kwargs)` once and return what it did.

    original: the network of which `network` is a copy
    raises UnfoldableNetwork before an operation touches a tensor of `original`
    """
    seen = Watch(network, set(map(storage_key, own_tensors(original))) - {None})
    seen.makers.update({storage_key(tensor): _INPUT for tensor in leaves((args, kwargs))})
    with _hooked(network, seen), _Functions(seen), _Dispatches(seen):
        result = network(*args, **kwargs)
    if seen.escape:  # it was raised, but the network caught it
        raise seen.escape
    seen.finish(result)
    del result
    seen.mark_held()
    return seen


@contextmanager
def _hooked(network: nn.Module, seen: Watch) -> Iterator[None]:
    with ExitStack() as handles:
        for name, module in network.named_modules():
            if isinstance(module, torch.jit.ScriptModule):
                continue  # it has no hooks; its operations are seen all the same, in the module that calls it
            before, after = _hooks(name, seen)
            # Our hooks run before and after all of the user's hooks. With `always_call`, the second one also runs after
            # an exception, which the network may catch.
            handles.enter_context(module.register_forward_pre_hook(before, prepend=True, with_kwargs=True))
            handles.enter_context(module.register_forward_hook(after, with_kwargs=True, always_call=True))
        yield


def _hooks(name: str, seen: Watch) -> tuple[Callable[..., None], Callable[..., None]]:
    def before(module: nn.Module, args: Any, kwargs: Any) -> None:
        seen.enter(name, args, kwargs)

    def after(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        seen.leave(name, module, args, kwargs, output)

    return before, after


def _owners(network: nn.Module) -> dict[int | None, set[str]]:
    owners: dict[int | None, set[str]] = {}
    for name, module in network.named_modules():
        for tensor in (*module.parameters(recurse=False), *module.buffers(recurse=False)):
            owners.setdefault(storage_key(tensor), set()).add(name)
    owners.pop(None, None)
    return owners


def _alive(output: Output) -> bool:
    return not output.storage.expired()  # type: ignore[no-untyped-call]


def _is_apart(result: Any, arguments: Any) -> bool:
    """Return whether a function has given tensors that lie in other storages than those it read."""
    given = {storage_key(tensor) for tensor in leaves(result)}
    return bool(given) and given.isdisjoint(storage_key(tensor) for tensor in leaves(arguments))


def _without_values(leaf: Any) -> Any:
    if isinstance(leaf, Tensor) and leaf.is_floating_point():
        return torch.empty(leaf.shape, dtype=leaf.dtype, device="meta")
    return leaf


def _function_name(func: Any) -> str:
    """Return the name of an operation; for `tensor.shape`, which is a descriptor's `__get__`, the attribute's name."""
    name = str(getattr(func, "__name__", "an operation"))
    return str(getattr(func.__self__, "__name__", name)) if name == "__get__" else name
