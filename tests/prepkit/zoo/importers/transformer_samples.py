"""A small Small Transformer Zoo, written from the description of the format alone, and its networks as functions."""

import csv
import math
from collections import OrderedDict

import numpy as np
import torch
from PIL import Image

WIDTH, HIDDEN, DEPTH, CLASSES, PATCH, SIDE = 8, 12, 2, 3, 4, 8
SETTINGS = {"lr": 0.001, "n_layers": DEPTH, "embed_dim": WIDTH, "patch_size": PATCH}


def places(count):
    table = torch.zeros(count, WIDTH)
    for place in range(count):
        for column in range(WIDTH):
            angle = place / 10_000 ** (2 * (column // 2) / WIDTH)
            table[place, column] = math.cos(angle) if column % 2 else math.sin(angle)
    return table


def weights(seed, text=False, stored_places=True):
    random = torch.Generator().manual_seed(seed)
    state = OrderedDict()

    def linear(name, outputs, inputs, bias=True):
        state[f"{name}.weight"] = torch.randn(outputs, inputs, generator=random) * 2 / inputs**0.5
        if bias:
            state[f"{name}.bias"] = torch.randn(outputs, generator=random) / 4

    if not text:
        if stored_places:
            state["embedding.pos_embedding"] = places((SIDE // PATCH) ** 2)
        state["embedding.conv1.weight"] = torch.randn(WIDTH, 1, PATCH, PATCH, generator=random)
        state["embedding.conv1.bias"] = torch.randn(WIDTH, generator=random)
    for block in range(DEPTH):
        for name in ("queries", "keys", "values", "out_projection"):
            linear(f"encoder.{block}.attention.{name}", WIDTH, WIDTH, bias=False)
        linear(f"encoder.{block}.fc1", HIDDEN, WIDTH)
        linear(f"encoder.{block}.fc2", WIDTH, HIDDEN)
    linear("classifier.fc1", WIDTH, WIDTH)
    linear("classifier.fc2", CLASSES, WIDTH)
    return state


def embedded(state, images):
    """Cut images into patches by loops, map each by the convolution's weights, and add the places."""
    tokens = []
    for row in range(0, images.shape[2], PATCH):
        for column in range(0, images.shape[3], PATCH):
            patch = images[:, :, row : row + PATCH, column : column + PATCH].flatten(1)
            tokens.append(patch @ state["embedding.conv1.weight"].to(images).flatten(1).T)
    tokens = torch.stack(tokens, 1) + state["embedding.conv1.bias"].to(images)
    return tokens + places(tokens.shape[1]).to(images)


def oracle(state, tokens, heads, sums):
    """Run a network on embedded tokens, one head after the other."""

    def norm(x):
        centred = x - x.mean(-1, keepdim=True)
        return centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()

    def linear(name, x):
        return x @ state[f"{name}.weight"].to(x).T + state[f"{name}.bias"].to(x)

    x, size = tokens, WIDTH // heads
    for block in range(DEPTH):
        q, k, v, o = (
            state[f"encoder.{block}.attention.{name}.weight"].to(x)
            for name in ("queries", "keys", "values", "out_projection")
        )
        inputs, mixed = norm(x), []
        for head in range(heads):
            part = slice(head * size, (head + 1) * size)
            scores = (inputs @ q[part].T) @ (inputs @ k[part].T).transpose(1, 2) / size**0.5
            mixed.append(scores.softmax(-1) @ (inputs @ v[part].T))
        attended = torch.cat(mixed, -1) @ o.T
        x = x + attended if sums else attended
        mapped = linear(f"encoder.{block}.fc2", linear(f"encoder.{block}.fc1", norm(x)).clamp(min=0))
        x = x + mapped if sums else mapped
    return linear("classifier.fc2", linear("classifier.fc1", norm(x).mean(1)).clamp(min=0))


def write_pictures(folder):
    """Write gray pictures, and return the test pictures with mean and standard deviation 0.5, and their labels."""
    random, pixels, labels = np.random.default_rng(5), [], []
    for part, count in (("train", 1), ("test", 17)):
        for label in range(CLASSES):
            (folder / part / str(label)).mkdir(parents=True)
            for number in range(count):
                picture = random.integers(0, 256, (SIDE, SIDE)).astype(np.uint8)
                Image.fromarray(picture).save(folder / part / str(label) / f"{number:02}.png")
                if part == "test":
                    pixels.append(picture)
                    labels.append(label)
    return (torch.from_numpy(np.stack(pixels))[:, None] / 255 - 0.5) / 0.5, torch.tensor(labels)


def save(file, state):
    file.parent.mkdir(parents=True, exist_ok=True)
    torch.save(state, file)


def write_table(file, rows):
    """Write rows as the makers' program does: settings, then epoch and file, then accuracy."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("w", newline="") as opened:
        writer = csv.DictWriter(opened, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def write_zoo(root, heads=2, sums=False, images=None, labels=None, in_table=True, runs=3):
    """Write MNIST-Transformers with two checkpoints a run, and its table; return the weights by the files' names."""
    states, rows = {}, []
    for run in range(runs):
        for number, checkpoint in enumerate(("75", "best1")):
            state = weights(10 * run + number)
            right = 0.4 + run / 10
            if images is not None:
                right = (oracle(state, embedded(state, images), heads, sums).argmax(1) == labels).double().mean().item()
            score = int(right * 10_000)
            name = f"run{run}_{checkpoint}_{score}.pt"
            save(root / "MNIST-Transformers/mnist" / name, state)
            states[name] = state
            row = {**SETTINGS, "ckpt_epoch": checkpoint, "ckpt_file": f"mnist/{name}"}
            rows.append({**row, "n_attention_heads": heads if in_table else "", "test_top1_accuracy": score / 10_000})
    write_table(root / "MNIST-Transformers/metadata/mnist.csv", rows)
    return states, rows
