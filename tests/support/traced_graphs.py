"""CUDA graphs without a GPU: a recorder for GraphedStep that records tensors' operations, and no Python, on a CPU."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._python_dispatch import TorchDispatchMode


class TracedRecorder:
    """Records a call's operations with the tensors and numbers of that call, as a CUDA graph would.

    state: all tensors that a call changes; tracing changes them too, so they are set back
    """

    def __init__(self, state: Callable[[], Sequence[Tensor]]) -> None:
        self.state, self.recorded, self.repeated = state, 0, 0

    def __call__(self, call: Callable[[], Tensor]) -> tuple[Tensor, Callable[[], None]]:
        self.recorded += 1
        state = list(self.state())
        before = [tensor.detach().clone() for tensor in state]
        graph = make_fx(call)()
        for tensor, values in zip(state, before, strict=True):
            tensor.detach().copy_(values)
        outputs = torch.empty(0)

        def repeat() -> None:
            self.repeated += 1
            with torch.no_grad():  # gradients are among the operations that were recorded
                found = graph()
            outputs.resize_(found.shape).copy_(found)

        return outputs, repeat


class HostTraffic(TorchDispatchMode):
    """Counts what makes a GPU and its host wait for each other: tensors made from numbers, and numbers read back."""

    WAITING = ("aten::lift_fresh", "aten::_local_scalar_dense", "aten::nonzero", "aten::equal", "aten::is_nonzero")

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        name = operation._schema.name
        if name in self.WAITING:
            self.found.append(name)
        return operation(*args, **(kwargs or {}))
