"""Whether the networks of a spec fit its task: each is tried once before anything is trained."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from prepkit.errors import ZooError, counted
from prepkit.families.importing import reason
from prepkit.families.registry import architecture
from prepkit.tasks.task import Task
from prepkit.training._hyperparameters import Training
from prepkit.training._initialisation import Initialisation, initialise
from prepkit.training.spec import Spec


def check_fit(spec: Spec, task: Task) -> None:
    """Raise ZooError unless every network takes the task's inputs, also in training, and gives the task's outputs."""
    uses: dict[str, list[Training]] = {name: [] for name in spec.architectures}
    for name, training in spec.training.items():
        uses[name].append(training)
    if spec.teacher:
        uses.setdefault(spec.teacher.architecture, []).append(spec.teacher.training)
    for name, trainings in uses.items():
        place, known = f"{spec.name}, architectures: {name}", architecture(name)
        if known.input_shape != task.input_shape:
            asked, given = ("x".join(map(str, shape)) for shape in (known.input_shape, task.input_shape))
            raise ZooError(f"{place} takes inputs of {asked}, but those of the task are {given}.")
        with torch.random.fork_rng(devices=[]), torch.inference_mode():
            network = known.build().eval()
            for how in sorted({training.initialisation for training in trainings}):
                _initialise(network, how, place)
            outputs = _outputs(network, known.example_input(1), f"{place}, run on one input,")
            if outputs.shape[-1] != task.num_outputs:
                number = counted(outputs.shape[-1], "output")
                raise ZooError(f"{place} has {number}, but the task needs {task.num_outputs}.")
            for training in trainings:
                size, batch, remedy = _least_batch(task, training.batch_size)
                what = f"{place}, in training on {batch},"
                found = _outputs(network.train(), known.example_input(size), what, remedy)
                if found.shape != (size, *outputs.shape[1:]):
                    shapes = f"{list(found.shape)}, in evaluation on one {list(outputs.shape)}"
                    raise ZooError(f"{what} gives outputs {shapes}.")


def _initialise(network: nn.Module, how: Initialisation, place: str) -> None:
    try:
        initialise(network, how)
    except ZooError as error:
        raise ZooError(f"{place}: {error}") from None


def _least_batch(task: Task, batch_size: int) -> tuple[int, str, str]:
    """Return the size of an epoch's least batch, 1 or at most 2, what it is, and what to do if that is too small."""
    total = task.splits["train"] if task.record.get("kind") == "images" else 0
    if batch_size > 1 and total % batch_size == 1:
        batches = f"{total:,} images in batches of {batch_size:,} leave one over"
        return 1, f"a batch of one ({batches})", " Choose another batch_size."
    return (1, "a batch of one", " Choose a larger batch_size.") if batch_size == 1 else (2, "a batch of two", "")


def _outputs(network: nn.Module, inputs: Tensor, what: str, remedy: str = "") -> Tensor:
    """Run a network; raise ZooError beginning with `what` if it fails, or returns no tensor."""
    try:
        outputs = network(inputs)
    except Exception as error:  # the code of any network may run here
        raise ZooError(f"{what} fails: {reason(error)}.{remedy}") from error
    if not isinstance(outputs, Tensor):
        raise ZooError(f"{what} returns a {type(outputs).__name__}, not a tensor.")
    return outputs
