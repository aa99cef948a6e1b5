"""A zoo of LeNets with random weights, whose columns are functions of the weights, so that nothing is trained."""

import numpy as np
import torch

import prepkit

NAME = "lenet_like@digits"
SIZES = {"train": 24, "validation": 10, "test": 12}


def write_zoo(root, *, sizes=SIZES, columns=None, name=NAME, **about):
    """`score` follows the deviation of the weights, `wide` is exp of it, `side` a text that tells whether it is large.

    columns: function of the instance's number -> further columns
    about:   what ZooWriter takes beside the width
    """
    generator = torch.Generator().manual_seed(0)
    network = prepkit.architecture(name).build()
    state = network.state_dict()
    with prepkit.ZooWriter(root, width=64, **about) as writer:
        number = 0
        for split, size in sizes.items():
            for _ in range(size):
                scale = 0.5 + torch.rand((), generator=generator).item()
                tensors = {key: scale * torch.randn(value.shape, generator=generator) for key, value in state.items()}
                network.load_state_dict(tensors)
                row = {"score": round(scale, 4), "wide": float(np.exp(5 * scale)), "side": "ab"[scale > 1]}
                row |= {"same": 1.0, **(columns(number) if columns else {})}
                writer.add(network, split=split or None, id=f"n{number:03}", architecture=name, **row)
                number += 1
    return root
