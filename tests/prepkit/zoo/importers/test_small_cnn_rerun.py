"""`zoo verify --rerun` of a Small CNN Zoo, from files as torchvision downloads them.

The stored accuracies are computed here: by a network of numpy, on images whose files the test wrote itself.
"""

import gzip
import pickle
import struct

import numpy as np
import pytest
import scipy.io
from click.testing import CliRunner

import prepkit
from prepkit.cli import main
from prepkit.errors import ZooError
from prepkit.tasks import load_task
from prepkit.tasks.task import DataMissing
from prepkit.zoo.format.manifest import read_manifest

SHAPES = {
    "sequential/conv2d/bias:0": (3,),
    "sequential/conv2d/kernel:0": (3, 3, 1, 3),
    "sequential/conv2d_1/bias:0": (4,),
    "sequential/conv2d_1/kernel:0": (3, 3, 3, 4),
    "sequential/dense/bias:0": (10,),
    "sequential/dense/kernel:0": (4, 10),
}
SIZE = sum(int(np.prod(shape)) for shape in SHAPES.values())
COUNT = 200


def images_of(dataset, seed=0):
    """Images `[N, C, H, W]` uint8 and labels; each class has a colour and a brightness of its own."""
    rng = np.random.default_rng(seed)
    channels, side = (1, 28) if "mnist" in dataset else (3, 32)
    labels = np.arange(COUNT) % 10
    base = rng.integers(0, 200, (10, channels, 1, 1))[labels]
    return (base + rng.integers(0, 56, (COUNT, channels, side, side))).astype(np.uint8), labels


def write(folder, dataset):
    """Write training and test images as torchvision keeps them."""
    for part, seed in (("train", 1), ("test", 0)):
        images, labels = images_of(dataset, seed)
        if "mnist" in dataset:
            raw = folder / ("MNIST" if dataset == "mnist" else "FashionMNIST") / "raw"
            raw.mkdir(parents=True, exist_ok=True)
            name = {"train": "train", "test": "t10k"}[part]
            content = struct.pack(">4I", 2051, COUNT, 28, 28) + images.tobytes()
            (raw / f"{name}-images-idx3-ubyte.gz").write_bytes(gzip.compress(content))
            (raw / f"{name}-labels-idx1-ubyte").write_bytes(
                struct.pack(">2I", 2049, COUNT) + labels.astype(np.uint8).tobytes()
            )
        elif dataset == "cifar10":
            (folder / "cifar-10-batches-py").mkdir(parents=True, exist_ok=True)
            names = ["test_batch"] if part == "test" else [f"data_batch_{number}" for number in range(1, 6)]
            for name, rows in zip(names, np.array_split(np.arange(COUNT), len(names)), strict=True):
                batch = {b"data": images[rows].reshape(len(rows), -1), b"labels": labels[rows].tolist()}
                (folder / "cifar-10-batches-py" / name).write_bytes(pickle.dumps(batch, protocol=2))
        else:
            folder.mkdir(exist_ok=True)
            content = {"X": images.transpose(2, 3, 1, 0), "y": np.where(labels == 0, 10, labels)[:, None]}
            scipy.io.savemat(folder / f"{part}_32x32.mat", content)


def logits(row, images, activation, low=-1.0, weights=(1 / 3, 1 / 3, 1 / 3)):
    """Run a row as TensorFlow does; `low` and `weights` are other conventions than the makers'."""
    variables, start = {}, 0
    for name, shape in SHAPES.items():
        variables[name.split("/", 1)[1]] = row[start : start + int(np.prod(shape))].reshape(shape).astype(np.float64)
        start += int(np.prod(shape))
    pixels = images.transpose(0, 2, 3, 1) / 255
    gray = pixels @ np.array(weights)[:, None] if pixels.shape[3] == 3 else pixels
    features = low + gray * (1 - low)
    for layer in ("conv2d", "conv2d_1"):
        kernel = variables[f"{layer}/kernel:0"]
        windows = np.lib.stride_tricks.sliding_window_view(features, (3, 3), (1, 2))[:, ::2, ::2]
        features = np.einsum("bhwiyx,yxio->bhwo", windows, kernel, optimize=True) + variables[f"{layer}/bias:0"]
        features = np.maximum(features, 0) if activation == "relu" else np.tanh(features)
    return features.mean((1, 2)) @ variables["dense/kernel:0"] + variables["dense/bias:0"]


def make(root, dataset, **convention):
    """Write a zoo of six networks with the accuracies that numpy finds, and import it."""
    images, labels = images_of(dataset)
    values = np.random.default_rng(3).normal(size=(6, SIZE)).astype(np.float32)
    names = ("relu", "tanh") * 3
    for row, name in zip(values, names, strict=True):  # so that classes are told by brightness, and not at random
        row[-50:-40] = 0
        row[-50:-40] -= logits(row, images, name).mean(0)
    found = [
        float((logits(row, images, name, **convention).argmax(1) == labels).mean())
        for row, name in zip(values, names, strict=True)
    ]
    source = root / "src"
    source.mkdir(parents=True)
    np.save(source / "weights.npy", values)
    lines, start = ["varname,start_idx,end_idx,shape"], 0
    for name, shape in SHAPES.items():
        lines.append(f'{name},{start},{start + int(np.prod(shape))},"{shape}"')
        start += int(np.prod(shape))
    (source / "layout.csv").write_text("\n".join(lines) + "\n")
    table = ["config.activation,config.dataset,modeldir,step,test_accuracy"]
    table += [f"{names[row]},{dataset},/x/{row},86,{found[row]}" for row in range(6)]
    (source / "metrics.csv.gz").write_bytes(gzip.compress("\n".join(table).encode()))
    prepkit.import_zoo("small-cnn-zoo", source, root / "zoo")
    return found


@pytest.mark.parametrize("dataset", ["mnist", "fashion_mnist", "cifar10", "svhn_cropped"])
def test_running_finds_what_is_stored(tmp_path, dataset):
    found = make(tmp_path, dataset)
    assert len(set(found)) > 3  # or a network that runs otherwise could find it too
    write(tmp_path / "data", dataset)
    arguments = ["zoo", "verify", tmp_path / "zoo", "--rerun", 6, "--data", tmp_path / "data"]
    result = CliRunner().invoke(main, list(map(str, arguments)))
    assert result.exit_code == 0, result.output
    function = read_manifest(tmp_path / "zoo").function
    assert function.status == "verified"
    assert (function.verified.instances, function.verified.largest_difference < 1e-9) == (6, True)
    assert "pixels are scaled to -1 to 1" in function.how.assumed


@pytest.mark.parametrize("convention", [{"low": 0.0}, {"weights": (0.299, 0.587, 0.114)}])
def test_another_convention_is_not_verified(tmp_path, convention):
    make(tmp_path, "cifar10", **convention)
    write(tmp_path / "data", "cifar10")
    found = prepkit.verify(tmp_path / "zoo", rerun=6, data=tmp_path / "data")
    assert not all(run.agrees for run in found.reruns)
    assert found.function.status == "unverified"


class Evil:
    def __reduce__(self):
        return print, ("run",)


def task(name, **more):
    return {"kind": "images", "dataset": name, "split": {"seed": 0, "train": "train", "test": "test"}, **more}


def test_bad_files_are_named_and_nothing_of_them_is_run(tmp_path, capsys):
    for dataset in ("mnist", "cifar10", "svhn_cropped"):
        write(tmp_path, dataset)
    with pytest.raises(DataMissing, match=r"the files of cifar10, as torchvision keeps them.*data=PATH"):
        load_task(task("cifar10"))
    with pytest.raises(ZooError, match=r"has no file of fashion_mnist: looked for .*FashionMNIST/raw/train-images"):
        load_task(task("fashion_mnist"), tmp_path)
    batch = tmp_path / "cifar-10-batches-py/test_batch"
    whole = batch.read_bytes()
    for content in (pickle.dumps(Evil()), whole[:-20], b"", pickle.dumps({b"data": 3, b"labels": []})):
        batch.write_bytes(content)
        with pytest.raises(ZooError, match=r"test_batch: .*CIFAR-10"):
            load_task(task("cifar10"), tmp_path)
    assert capsys.readouterr().out == ""
    labels = tmp_path / "MNIST/raw/t10k-labels-idx1-ubyte"
    labels.write_bytes(labels.read_bytes()[:-1])
    with pytest.raises(ZooError, match="t10k-labels-idx1-ubyte: damaged"):
        load_task(task("mnist"), tmp_path)
    (tmp_path / "test_32x32.mat").write_bytes(b"no matrix")
    with pytest.raises(ZooError, match=r"test_32x32\.mat: no file of SVHN"):
        load_task(task("svhn"), tmp_path)
    with pytest.raises(ZooError, match="svhn has no part valid; it has train and test"):
        load_task({**task("svhn"), "split": {"seed": 0, "test": "valid"}}, tmp_path)
