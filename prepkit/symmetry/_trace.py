"""One run of a network in which every tensor has a label.

A TorchDispatchMode sees the operations below Python, whatever calls them, and asks the rule of each for the labels of
what it makes. What an operation without a rule reads may not change places.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakIdKeyDictionary

from prepkit.support.storages import leaves
from prepkit.symmetry._labels import Axis, Label, Notes

CONSTANT = "it stands beside a constant of the network"
INPUT = "it runs along the network's input"
OUTPUT = "it runs along the network's output"

Rule = Callable[["Call"], "Label | list[Label] | None"]


class Call:
    """One operation of a run.

    run:    what the run knows by now
    name:   name of the operation, `add` for `add_`
    values: arguments by name
    result: what it returned
    order:  axes whose order the whole numbers that it returned tell, and the reason to fix them if these are read
    """

    def __init__(self, run: Run, func: Any, args: Any, kwargs: Mapping[str, Any], result: Any) -> None:
        self.run, self.notes, self.func, self.result = run, run.notes, func, result
        self.order: tuple[list[Axis], str] | None = None
        name = func._schema.name.partition("::")[2]
        self.in_place = name.endswith("_") and not name.endswith("__")
        self.name = name.rstrip("_") if self.in_place else name
        schema = func._schema.arguments
        self.values: dict[str, Any] = {argument.name: argument.default_value for argument in schema}
        self.values |= dict(zip((argument.name for argument in schema), args, strict=False))
        self.values |= kwargs

    def __getitem__(self, name: str) -> Any:
        return self.values[name]

    @property
    def tensors(self) -> list[Tensor]:
        """All tensors among the arguments."""
        return leaves(list(self.values.values()))

    @property
    def made(self) -> list[Tensor]:
        """All tensors that it returned."""
        return leaves(self.result)

    @property
    def place(self) -> str:
        """The operation and the module that it runs in, for reasons."""
        module = self.run.stack[-1]
        return f"`{self.name}`" + (f" in {module}" if module else "")

    def label(self, name: str) -> Label:
        """Return the label of an argument that is a tensor."""
        return self.run.label_of(self.values[name])

    def labels(self, name: str) -> list[Label]:
        """Return the labels of an argument that is a list of tensors."""
        return [self.run.label_of(tensor) for tensor in self.values[name]]

    def optional(self, name: str) -> Label | None:
        """Return the label of an argument that is a tensor or None."""
        value = self.values.get(name)
        return self.run.label_of(value) if isinstance(value, Tensor) else None

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the first tensor that it returned."""
        return tuple(self.made[0].shape)

    def fix(self, axes: Any, why: str = "it depends on the order of its units") -> None:
        """Say that what runs along axes may not change places because of this operation."""
        self.notes.fix(axes, f"{self.place} reads it, and {why}")

    def bind(self, *labels: Label | None) -> None:
        """Note that parameters which were added to these tensors may not be shifted."""
        for label in labels:
            self.notes.bound_shifts.update(name for name, _ in (label.shifts if label else ()))


class Run:
    """Labels of all tensors of a run.

    orders: tensors that hold numbers of units, and what is fixed as soon as one of them is read: axes and the reason
    stack: names of the modules that are running now, the innermost last
    used:  names of the parameters and buffers that an operation has read
    """

    def __init__(self, state: Mapping[str, Tensor], rules: Callable[[str], Rule | None]) -> None:
        self.notes, self.rules = Notes(), rules
        self.stack = [""]
        self.labels: Any = WeakIdKeyDictionary()
        self.orders: Any = WeakIdKeyDictionary()
        self.used: set[str] = set()
        self._names = {_memory(tensor): name for name, tensor in reversed([*state.items()])}
        self.state: dict[str, Label] = {}
        for name, tensor in state.items():
            first = self._names[_memory(tensor)]
            self.state[name] = self.state[first] if first in self.state else self._of_state(name, tensor)

    def _of_state(self, name: str, tensor: Tensor) -> Label:
        label = self.notes.loose_label(tensor.shape)
        wide = [axis for axis in label.axes if axis.dims]
        if len(wide) != 1:
            return label
        self.notes.shift_sites[name] = self.notes.like(wide[0]).site
        return Label(label.axes, ((name, 1.0),))

    def label_of(self, tensor: Tensor) -> Label:
        """Return the label of a tensor; one that no operation of the run made is a constant."""
        label: Label | None = self.labels.get(tensor)
        if (order := self.orders.pop(tensor, None)) is not None:
            self.notes.fix(*order)
        if label is None:
            name = self._names.get(_memory(tensor))
            if name is None:
                label = self.notes.fresh_label(tensor.shape, CONSTANT)
            else:
                label = self.state[name]
                self.used.add(name)
            self.labels[tensor] = label
        return label

    def note(self, func: Any, args: Any, kwargs: Any, result: Any) -> None:
        """Note what an operation did."""
        call = Call(self, func, args, kwargs, result)
        rule = self.rules(call.name)
        if rule is None and torch.Tag.pointwise in func.tags:
            rule = self.rules("pointwise")
        made = call.made
        found = unknown(call) if rule is None else _by_rule(rule, call)
        labels = found if isinstance(found, list) else [found] * len(made)
        if len(labels) != len(made):
            labels = [*unknown(call)]
        for tensor, label in zip(made, labels, strict=True):
            if label is None or len(label.axes) != tensor.dim():
                label = self.notes.fresh_label(tensor.shape, f"it stands beside what {call.place} makes")
            writes = call.in_place and torch.Tag.inplace_view not in func.tags  # `t_` only turns a tensor round
            if writes and tensor is call.values.get("self"):
                self._overwrite(call, tensor, label)
            self.notes.dims.prune(label.dims)
            self.labels[tensor] = label
            if not tensor.is_floating_point() and call.order is not None:
                self.orders[tensor] = call.order

    def _overwrite(self, call: Call, tensor: Tensor, label: Label) -> None:
        before = self.label_of(tensor)
        if tensor._base is not None:
            call.bind(before)
        if [axis.size for axis in before.axes] != [axis.size for axis in label.axes]:
            self.notes.fix([*before.axes, *label.axes], f"{call.place} writes to it in another shape")
            return
        for old, new in zip(before.axes, label.axes, strict=True):
            self.notes.unify(old.dims, new.dims)
            if tensor._base is not None:  # others see the same memory
                self.notes.equal(old, new)


def _by_rule(rule: Rule, call: Call) -> Label | list[Label] | None:
    """Return what a rule says; where it fails, as for tensors that vmap wraps, nothing is known of the operation.

    What it had noted until then only makes more units stay.
    """
    try:
        return rule(call)
    except Exception:
        return unknown(call)


def unknown(call: Call) -> list[Label]:
    """Fix all that an operation without a rule reads."""
    labels = [call.run.label_of(tensor) for tensor in call.tensors]
    call.bind(*labels)
    for label in labels:
        call.notes.fix(label.axes, f"{call.place} reads it, of which nothing is known")
    return [call.notes.fresh_label(tensor.shape, f"it stands beside what {call.place} makes") for tensor in call.made]


class _Dispatches(TorchDispatchMode):  # type: ignore[no-untyped-call]
    def __init__(self, run: Run) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.run = run

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Return False; else torch would load its compiler, which takes over a second, to wrap `__torch_dispatch__`."""
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.run.note(func, args, kwargs or {}, result)
        return result


def trace(network: nn.Module, args: Any, kwargs: Any, rules: Callable[[str], Rule | None]) -> tuple[Run, Any]:
    """Run `network(*args, **kwargs)` once; return what is known of its tensors, and the result.

    The Dims along inputs and outputs are fixed. What the network returns other than tensors is not looked at.
    """
    state = {name: tensor for name, tensor in network.state_dict(keep_vars=True).items() if tensor.is_floating_point()}
    run = Run(state, rules)
    for tensor in leaves((args, kwargs)):
        run.labels[tensor] = run.notes.fresh_label(tensor.shape, INPUT)
    with torch.no_grad(), _named(network, run), _without_fast_paths(), _Dispatches(run):
        result = network(*args, **kwargs)
    return run, result


@contextmanager
def _named(network: nn.Module, run: Run) -> Iterator[None]:
    with ExitStack() as handles:
        for name, module in network.named_modules():
            if not isinstance(module, torch.jit.ScriptModule):
                before, after = _hooks(name, run)
                handles.enter_context(module.register_forward_pre_hook(before))
                handles.enter_context(module.register_forward_hook(after, always_call=True))
        yield


def _hooks(name: str, run: Run) -> tuple[Callable[..., None], Callable[..., None]]:
    def before(module: nn.Module, args: Any) -> None:
        run.stack.append(name)

    def after(module: nn.Module, args: Any, output: Any) -> None:
        run.stack.pop()

    return before, after


@contextmanager
def _without_fast_paths() -> Iterator[None]:
    """Let attention run by its own operations, not by one that does all."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


def _memory(tensor: Tensor) -> object:
    if tensor.numel() == 0:
        return id(tensor)
    return (tensor.untyped_storage()._cdata, tensor.storage_offset(), tuple(tensor.shape), tensor.stride())


def axis_index(label: Label, index: int) -> int:
    """Return the number of an axis that may be counted from the end."""
    return index % len(label.axes) if label.axes else 0


def with_axis(label: Label, index: int, axis: Axis) -> Label:
    """Return a label with another axis in place of one."""
    return Label((*label.axes[:index], axis, *label.axes[index + 1 :]), label.shifts)
