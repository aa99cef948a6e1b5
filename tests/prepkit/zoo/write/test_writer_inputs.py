"""What people give to a writer beside tensors: arrays of numpy, and networks whose tensors have no values."""

import warnings

import numpy as np
import pytest
import torch
from torch import nn

import prepkit
from prepkit.errors import LayoutMismatch, ZooError
from prepkit.zoo.write.writer import ZooWriter

pytestmark = pytest.mark.usefixtures("one_thread")


def arrays(network):
    return {name: tensor.detach().numpy() for name, tensor in network.state_dict().items()}


def readonly(array):
    array.flags.writeable = False
    return array


def test_arrays_are_taken_as_tensors(tmp_path):
    known = prepkit.architecture("resnet8@digits")
    network = known.build().eval()
    changed = {
        "plain": lambda array: array,
        "read-only": lambda array: readonly(array.copy()),
        "other order of bytes": lambda array: array.astype(array.dtype.newbyteorder(">")),
        "every second": lambda array: np.repeat(array, 2, axis=-1)[..., ::2] if array.ndim else array,
        "backwards": lambda array: array[::-1].copy()[::-1] if array.ndim else array,
    }
    with ZooWriter(tmp_path / "zoo") as writer:
        writer.add(network, id="tensors")
        for name, change in changed.items():
            writer.add({key: change(array) for key, array in arrays(network).items()}, id=name)
        writer.set_teacher(arrays(network))
    zoo = prepkit.open_zoo(tmp_path / "zoo")
    assert all(torch.equal(preps, zoo.preps(0)[0]) for preps in zoo.preps())
    assert zoo.teacher is not None


def test_stacks_may_be_arrays(tmp_path):
    known = prepkit.architecture("lenet_like@digits")
    rows = [known.build().state_dict() for _ in range(3)]
    stack = {name: torch.stack([row[name] for row in rows]) for name in rows[0]}
    preps = known.layout.pack(stack, known.layout.shape(64))
    given = [stack, {name: tensor.numpy() for name, tensor in stack.items()}, preps, preps.numpy()]
    with ZooWriter(tmp_path / "zoo", width=64) as writer:
        for values in given:
            writer.add_stack(values, architecture=known)
    assert torch.equal(prepkit.open_zoo(tmp_path / "zoo").preps(), preps.repeat(4, 1, 1))


class Lazy(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.LazyLinear(2)


def quantised():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch will move this to another package
        return torch.ao.quantization.quantize_dynamic(nn.Sequential(nn.Linear(3, 2)), {nn.Linear}, torch.qint8)


TAKE_BEFORE = "belongs to a quantised layer, which holds no plain tensors; take the network as it was before quantising"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (Lazy, "'linear.weight' is not initialised yet; run the network once on an input"),
        (quantised, f"'0._packed_params.dtype' is a dtype, and {TAKE_BEFORE}"),
        (lambda: {"weight": [1.0, 2.0]}, "'weight' is a list, not a tensor; leave it out"),
        (lambda: {"weight": np.array(["a"])}, "'weight' is an array of <U1, which no tensor can hold"),
    ],
    ids=["lazy", "quantised", "list", "text"],
)
def test_what_is_no_tensor_is_named(tmp_path, make, message):
    given = make()
    state = given.state_dict() if isinstance(given, nn.Module) else given
    with ZooWriter(tmp_path / "zoo") as writer:
        for asked in (given, state):
            with pytest.raises(LayoutMismatch, match=f"^instance 0: {message}"):
                writer.add(asked)
            with pytest.raises(LayoutMismatch, match=f"^teacher: {message}"):
                writer.set_teacher(asked)
        with pytest.raises(LayoutMismatch, match=f"^stack of lenet_like@digits: {message}"):
            writer.add_stack(state, architecture="lenet_like@digits")
        with pytest.raises(LayoutMismatch, match=r"^stack of lenet_like@digits: 'stack' is a list, not a tensor"):
            writer.add_stack([1.0], architecture="lenet_like@digits")
        with pytest.raises(ZooError, match="expected a network, a state dict or a PRep"):
            writer.add(np.zeros(3))
    with pytest.raises(LayoutMismatch, match=f"^{message}"):
        prepkit.detect(state)


def test_files_of_such_networks_say_what_they_are(tmp_path):
    torch.save(quantised().state_dict(), tmp_path / "quantised.pt")
    torch.save(Lazy().state_dict(), tmp_path / "lazy.pt")
    with pytest.raises(prepkit.PrepkitError, match=TAKE_BEFORE):
        prepkit.pack_checkpoint(tmp_path / "quantised.pt")
    with pytest.raises(prepkit.PrepkitError, match="holds lazy layers without values; run the network once"):
        prepkit.pack_checkpoint(tmp_path / "lazy.pt")


def test_an_architecture_without_plain_tensors_is_named():
    known = prepkit.Architecture("mine", "mine", (3,), f"{__name__}:quantised", {})
    with pytest.raises(LayoutMismatch, match=r"^'mine': '0._packed_params.dtype' is a dtype"):
        _ = known.layout


def test_arrays_are_packed_and_run():
    known = prepkit.architecture("lenet_like@digits")
    network = known.build().eval()
    state = network.state_dict()
    shape = known.layout.shape(64)
    prep = known.layout.pack({name: tensor.numpy() for name, tensor in state.items()}, shape)
    assert torch.equal(prep, known.layout.pack(state, shape))
    inputs = known.example_input(2)
    expected = prepkit.run_instances(known, prep[None], inputs)
    assert torch.equal(prepkit.run_instances(known, prep[None].numpy(), inputs.numpy()), expected)
    with pytest.raises(LayoutMismatch, match="'inputs' is a list, not a tensor"):
        prepkit.run_instances(known, prep[None], [1.0])
