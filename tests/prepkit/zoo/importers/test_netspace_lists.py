"""`prepkit zoo import netspace-lists`: networks of the reference's lists, run again by plain functions."""

import json
import math

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from torch.nn.functional import avg_pool2d, batch_norm, conv2d, leaky_relu, linear

import prepkit
from prepkit.cli import main
from prepkit.errors import CheckpointError, UnsafeCheckpoint, ZooError
from prepkit.zoo.format.manifest import read_manifest
from prepkit.zoo.importers.kinds import found_by

LENET, VANILLA, RESNET = "lenetlike;d0;scifar10", "vanilla_cnn;d1;scifar10", "resnet_fusedbn;d2;d8;scifar10"


def layer(name, *shape):
    return {f"{name}.weight": shape, f"{name}.bias": shape[:1]}


SHAPES = {
    LENET: {
        **layer("conv1", 6, 3, 5, 5),
        **layer("conv2", 16, 6, 5, 5),
        **layer("fc1", 120, 400),
        **layer("fc2", 84, 120),
        **layer("fc3", 10, 84),
    },
    VANILLA: {
        **layer("layers.0", 8, 3, 3, 3),
        **layer("layers.1", 8, 8, 3, 3),
        **layer("layers.2", 32, 8, 3, 3),
        **layer("layers.3", 64, 32, 3, 3),
        **layer("layers.4", 64, 64, 3, 3),
        **layer("layers.5", 10, 1024),
    },
}


def resnet_shapes(depth=8, outputs=10, flat=64):
    shapes = {"conv1.weight": (16, 3, 3, 3), **norm("bn1", 16)}
    inputs = 16
    for stage, width in enumerate((16, 32, 64), 1):
        for block in range((depth - 2) // 6):
            at = f"layer{stage}.{block}"
            shapes |= {f"{at}.conv1.weight": (width, inputs, 3, 3), **norm(f"{at}.bn1", width)}
            shapes |= {f"{at}.conv2.weight": (width, width, 3, 3), **norm(f"{at}.bn2", width)}
            if inputs != width:
                shapes |= {f"{at}.downsample.0.weight": (width, inputs, 1, 1), **norm(f"{at}.downsample.1", width)}
            inputs = width
    return shapes | {"fc.weight": (outputs, flat), "fc.bias": (outputs,)}


def norm(name, width):
    kinds = ("weight", "bias", "running_mean", "running_var")
    return {f"{name}.{kind}": (width,) for kind in kinds} | {f"{name}.num_batches_tracked": ()}


SHAPES[RESNET] = resnet_shapes()


def values(shapes, seed):
    """Random values, those of BatchNorms too, so that every mistake in folding shows."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, shape in shapes.items():
        drawn = torch.randn(shape, generator=generator)
        if len(shape) > 1:
            drawn = drawn * math.sqrt(2 / math.prod(shape[1:]))
        tensors[name] = drawn.abs() + 0.5 if name.endswith("running_var") else drawn
        if name.endswith("num_batches_tracked"):
            tensors[name] = torch.tensor(7)
    return tensors


def logits(kind, t, images):
    """The networks of the reference's code, written down from its description."""
    with torch.no_grad():
        if kind == LENET:
            x = leaky_relu(conv2d(images, t["conv1.weight"], t["conv1.bias"], stride=2))
            x = leaky_relu(conv2d(x, t["conv2.weight"], t["conv2.bias"], stride=2)).flatten(1)
            for name in ("fc1", "fc2"):
                x = leaky_relu(linear(x, t[f"{name}.weight"], t[f"{name}.bias"]))
            return linear(x, t["fc3.weight"], t["fc3.bias"])
        if kind == VANILLA:
            x = images
            for number, stride in enumerate((2, 1, 2, 1, 2)):
                weight, bias = t[f"layers.{number}.weight"], t[f"layers.{number}.bias"]
                x = leaky_relu(conv2d(x, weight, bias, stride=stride, padding=1))
            return linear(x.flatten(1), t["layers.5.weight"], t["layers.5.bias"])
        x = leaky_relu(normed(conv2d(images, t["conv1.weight"], padding=1), t, "bn1"))
        for stage, stride in ((1, 1), (2, 2), (3, 2)):
            at, same = f"layer{stage}.0", x
            y = leaky_relu(normed(conv2d(x, t[f"{at}.conv1.weight"], stride=stride, padding=1), t, f"{at}.bn1"))
            y = normed(conv2d(y, t[f"{at}.conv2.weight"], padding=1), t, f"{at}.bn2")
            if stride == 2:
                same = normed(conv2d(x, t[f"{at}.downsample.0.weight"], stride=2), t, f"{at}.downsample.1")
            x = leaky_relu(y + same)
        return linear(avg_pool2d(x, 8).flatten(1), t["fc.weight"], t["fc.bias"])


def normed(x, t, name):
    return batch_norm(x, *(t[f"{name}.{kind}"] for kind in ("running_mean", "running_var", "weight", "bias")))


def save(file, content):
    file.parent.mkdir(parents=True, exist_ok=True)
    torch.save(content, file)


def write_lists(root, lists):
    """Write the lists and the networks that they name, and return kind and tensors of each by path."""
    written = {}
    folder = root / "models/input_lists/multi"
    folder.mkdir(parents=True)
    for name, lines in lists.items():
        (folder / f"{name}.txt").write_text("\n".join(lines))  # the reference's lists end without a line feed
        for line in lines:
            kind, _, path = line.rpartition(";")
            written[path] = kind, values(SHAPES[kind], len(written))
            save(root / path, written[path][1])
    return folder, written


LISTS = {
    "test": [f"{LENET};ckpts/lenet/2.pt", f"{RESNET};ckpts/resnet8/2.pt"],
    "train": [f"{LENET};ckpts/lenet/0.pt", f"{VANILLA};ckpts/vanilla/0.pt", f"{RESNET};ckpts/resnet8/0.pt"],
    "val": [f"{RESNET};ckpts/resnet8/1.pt"],
}


def imported(folder, target, **options):
    return prepkit.import_zoo("netspace-lists", folder, target, width=512, **options)


def command(*arguments, status=0):
    result = CliRunner().invoke(main, ["zoo", *map(str, arguments)])
    assert result.exit_code == status, (result.output, result.exception)
    assert "Traceback" not in result.output
    return result.output


def test_networks_of_lists_are_those_built_in_and_give_the_logits_of_the_reference(tmp_path):
    folder, written = write_lists(tmp_path / "ref", LISTS)
    notes = imported(folder, tmp_path / "zoo").notes
    zoo = prepkit.open_zoo(tmp_path / "zoo")
    rows = zoo.table.to_pylist()
    assert [(row["id"], row["split"], row["architecture"], row["class_id"]) for row in rows] == [
        ("lenet/0", "train", "lenet_like@cifar10", 0),
        ("vanilla/0", "train", "vanilla_cnn@cifar10", 1),
        ("resnet8/0", "train", "resnet8@cifar10", 2),
        ("resnet8/1", "validation", "resnet8@cifar10", 2),
        ("lenet/2", "test", "lenet_like@cifar10", 0),
        ("resnet8/2", "test", "resnet8@cifar10", 2),
    ]
    images = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    for row in rows:
        kind, tensors = written[f"ckpts/{row['id']}.pt"]
        expected = logits(kind, tensors, images)
        with torch.no_grad():
            assert torch.allclose(zoo.network(row["id"])(images), expected, rtol=1e-4, atol=1e-4 * expected.abs().max())
    assert any(f"start from '{tmp_path / 'ref'}'" in note for note in notes)
    manifest = read_manifest(tmp_path / "zoo")
    assert manifest.task["dataset"] == "uoft-cs/cifar10"
    assert manifest.task["split"] == {"validation": 10_000, "last": True, "test": "test"}
    assert str(manifest.function) == "unverified"
    # The PRep of the reference: all parameters in the order in which its fused network registers them.
    kind, tensors = written["ckpts/vanilla/0.pt"]
    in_order = [tensors[f"layers.{number}.{part}"].flatten() for number in range(6) for part in ("weight", "bias")]
    assert torch.equal(zoo["vanilla/0"][0].values.flatten()[:68_818], torch.cat(in_order))


def test_running_on_the_images_proves_the_accuracy_of_a_table(tmp_path):
    folder, written = write_lists(tmp_path / "ref", {"train": [f"{VANILLA};a/0.pt", f"{RESNET};b/0.pt"]})
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    generator = np.random.default_rng(0)
    images, labels = [], []
    for number in range(40):
        pixels = generator.integers(0, 256, (32, 32, 3), dtype=np.uint8)
        for part in ("train", "test"):
            file = tmp_path / f"images/{part}/class{number % 10}/{number}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(file)
        images.append(((torch.from_numpy(pixels) / 255 - mean) / std).permute(2, 0, 1))
        labels.append(number % 10)
    rows = ["file,accuracy"]
    for path, (kind, tensors) in written.items():
        right = logits(kind, tensors, torch.stack(images)).argmax(dim=1) == torch.tensor(labels)
        rows.append(f"{path},{right.float().mean().item()}")
    (tmp_path / "scores.csv").write_text("\n".join(rows))
    task = {"kind": "images", "dataset": "folder", "mean": mean.tolist(), "std": std.tolist()}
    (tmp_path / "task.json").write_text(json.dumps({**task, "split": {"seed": 0, "test": "test"}}))
    given = ("--table", tmp_path / "scores.csv", "--task", tmp_path / "task.json")
    command("import", "netspace-lists", folder, tmp_path / "zoo", *given)
    assert "verified" in command("verify", tmp_path / "zoo", "--rerun", 2, "--data", tmp_path / "images")
    assert read_manifest(tmp_path / "zoo").function.verified.instances == 2


LINES = {
    "class": ("lenet;d0;scifar10;a.pt", "there is no class 'lenet'.*Did you mean 'lenetlike'"),
    "letter": ("lenetlike;d0;xcifar10;a.pt", "a line is lenetlike;d<ClassId>;s<data set>;<path>"),
    "too few": ("resnet_fusedbn;d2;scifar10;a.pt", "a line is resnet_fusedbn;d<ClassId>;d<depth>;s<data set>;<path>"),
    "number": ("lenetlike;dx;scifar10;a.pt", "'dx' is no argument; d8 is a whole number"),
    "data set": ("lenetlike;d0;smnist;a.pt", "no data set 'mnist'; lists have cifar10, tiny-imagenet-200"),
    "depth": ("resnet_fusedbn;d2;d9;scifar10;a.pt", "no ResNet has depth 9"),
    "no file": ("lenetlike;d0;scifar10;", "names no file, so it stands for random weights"),
    "no cells": ("lenetlike", "a line is lenetlike;"),
}


@pytest.mark.parametrize(("line", "message"), LINES.values(), ids=LINES)
def test_a_line_that_cannot_be_read_is_named_with_its_list(tmp_path, line, message):
    folder, _ = write_lists(tmp_path / "ref", LISTS)
    with (folder / "train.txt").open("a") as file:
        file.write(f"\n\n{line}\n")
    with pytest.raises(ZooError, match=rf"train\.txt, line 5: .*{message}"):
        imported(folder, tmp_path / "zoo")
    assert not (tmp_path / "zoo").exists()


def test_lists_that_contradict_each_other_are_refused_and_repeated_lines_told(tmp_path):
    folder, _ = write_lists(tmp_path / "ref", LISTS)
    train, val = (folder / f"{name}.txt" for name in ("train", "val"))
    text = train.read_text()
    train.write_text(f"{text}\n{LENET};ckpts/lenet/0.pt")
    assert any("1 line left out" in note for note in found_by("netspace-lists", folder, {}).notes())
    train.write_text(f"{text}\n{RESNET};ckpts/resnet8/1.pt")
    with pytest.raises(ZooError, match=r"val\.txt, line 1: 'ckpts/resnet8/1\.pt' stands in .*train\.txt, line 4 too"):
        imported(folder, tmp_path / "other")
    train.write_text(f"{text}\nlenetlike;d3;scifar10;ckpts/lenet/7.pt")
    with pytest.raises(ZooError, match=r"train\.txt, line 4: lenet_like@cifar10 has ClassId 3, but .* has 0 in"):
        imported(folder, tmp_path / "other")
    train.write_text(f"{text}\n{LENET};ckpts/lenet/8.pt")
    with pytest.raises(ZooError, match=r"1 of 7 networks is no file .*: ckpts/lenet/8\.pt \(.*train\.txt, line 4\)"):
        imported(folder, tmp_path / "other")
    assert val.exists()
    assert not (tmp_path / "other").exists()


def test_a_file_of_another_network_a_half_one_and_one_with_code_are_named_and_mending_goes_on(tmp_path):
    lists = {"train": [f"{LENET};a/0.pt"], "val": [f"{LENET};a/1.pt"]}
    folder, written = write_lists(tmp_path / "ref", lists)
    file = tmp_path / "ref/a/1.pt"
    whole = file.read_bytes()
    save(file, values(SHAPES[VANILLA], 0))
    with pytest.raises(ZooError, match=r"val\.txt, line 1: .*a/1\.pt' holds no lenetlike for cifar10"):
        imported(folder, tmp_path / "zoo")
    file.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CheckpointError, match=r"val\.txt, line 1: .*truncated"):
        imported(folder, tmp_path / "zoo")
    save(file, {"model": torch.nn.Linear(2, 2), "run": print})
    with pytest.raises(UnsafeCheckpoint, match=r"val\.txt, line 1: .*it was not read"):
        imported(folder, tmp_path / "zoo")
    _, bad = written["a/1.pt"]
    save(file, {**bad, "fc3.bias": torch.full((10,), math.nan)})
    with pytest.raises(CheckpointError, match="NaN"):
        imported(folder, tmp_path / "zoo")
    assert not (tmp_path / "zoo/zoo.json").exists()
    imported(folder, tmp_path / "zoo", drop_nan=True)
    assert len(prepkit.open_zoo(tmp_path / "zoo")) == 1


def test_resnets_of_another_depth_and_class_ids_that_the_zoo_has_not_are_told(tmp_path):
    line = "resnet_fusedbn;d4;d14;scifar10"
    SHAPES[line] = resnet_shapes(14)
    folder, _ = write_lists(tmp_path / "ref", {"train": [f"{line};x/a.pt"]})
    notes = imported(folder / "train.txt", tmp_path / "zoo", root=tmp_path / "ref").notes
    zoo = prepkit.open_zoo(tmp_path / "zoo")
    assert zoo.network(0)(torch.zeros(1, 3, 32, 32)).shape == (1, 10)
    assert zoo.metadata(0)["architecture"] == "resnet14@cifar10"
    assert any("resnet14@cifar10 is 0 (list 4)" in note for note in notes)


def test_the_teacher_is_a_line_too(tmp_path):
    folder, _ = write_lists(tmp_path / "ref", {"train": [f"{LENET};a/0.pt"]})
    tensors = values(SHAPES[RESNET], 9)
    save(tmp_path / "ref/teacher.pt", tensors)
    imported(folder, tmp_path / "zoo", teacher="resnet_fusedbn;d4;d8;scifar10;teacher.pt")
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    expected = logits(RESNET, tensors, images)
    with torch.no_grad():
        found = prepkit.open_zoo(tmp_path / "zoo").teacher(images)
    assert torch.allclose(found, expected, rtol=1e-4, atol=1e-4 * expected.abs().max())
    save(tmp_path / "ref/teacher.pt", values(SHAPES[VANILLA], 9))
    with pytest.raises(ZooError, match=r"`teacher`: .*holds no resnet_fusedbn"):
        imported(folder, tmp_path / "other", teacher="resnet_fusedbn;d4;d8;scifar10;teacher.pt")
    with pytest.raises(ZooError, match="`teacher`: is for tiny-imagenet-200, and networks of the lists for cifar10"):
        imported(folder, tmp_path / "other", teacher="resnet_fusedbn;d4;d8;stiny-imagenet-200;teacher.pt")
    assert not (tmp_path / "other").exists()


def test_networks_of_both_data_sets_are_known(tmp_path):
    lines = ["lenetlike;d0;stiny-imagenet-200;a.pt", "vanilla_cnn;d1;stiny-imagenet-200;b.pt"]
    lines += [f"resnet_fusedbn;d{number};d{depth};stiny-imagenet-200;{depth}.pt" for number, depth in ((2, 8), (3, 32))]
    (tmp_path / "test.txt").write_text("\r\n".join(lines))
    for name in ("a", "b", "8", "32"):
        (tmp_path / f"{name}.pt").write_bytes(b"")
    source = found_by("netspace-lists", tmp_path, {})
    assert source.task["dataset"] == "zh-plus/tiny-imagenet"
    assert [net.architecture.name.partition("@")[0] for net in source.nets] == [
        "lenet_like",
        "vanilla_cnn",
        "resnet8",
        "resnet32",
    ]
    assert not [note for note in source.notes() if "ClassId" in note]


def test_distance_functions_are_sine_mlps_that_are_run_on_their_points(tmp_path):
    generator = torch.Generator().manual_seed(0)
    for number in range(3):
        tensors = {}
        for place, (rows, columns) in zip((0, 2, 4), ((64, 3), (64, 64), (1, 64)), strict=True):
            tensors[f"mlp.{place}.weight"] = torch.randn(rows, columns, generator=generator) / 8 / math.sqrt(columns)
            tensors[f"mlp.{place}.bias"] = torch.randn(rows, generator=generator) / 30
        points = torch.rand(500, 3, generator=generator) * 2 - 1
        x = torch.sin(30 * linear(points, tensors["mlp.0.weight"], tensors["mlp.0.bias"]))
        x = torch.sin(30 * linear(x, tensors["mlp.2.weight"], tensors["mlp.2.bias"]))
        x = linear(x, tensors["mlp.4.weight"], tensors["mlp.4.bias"])
        save(tmp_path / f"sdf/chair{number}.pt", {"mlp": tensors, "sdf": torch.cat([points, x], dim=1)})
    output = command("import", "netspace-lists", tmp_path / "sdf", tmp_path / "zoo")
    assert "so they fit their points" in output
    assert "sdf (3 models)" in output
    zoo = prepkit.open_zoo(tmp_path / "zoo")
    assert zoo.table["id"].to_pylist() == ["chair0", "chair1", "chair2"]
    assert {row["architecture"] for row in zoo.table.to_pylist()} == {"sine_mlp@sdf_small"}
    with torch.no_grad():
        assert torch.allclose(zoo.network(2)(points), x, atol=1e-5)
    save(tmp_path / "sdf/chair3.pt", {"mlp": {"mlp.0.weight": torch.zeros(1, 2), "mlp.0.bias": torch.zeros(1)}})
    message = command("import", "netspace-lists", tmp_path / "sdf", tmp_path / "other", status=2)
    assert "chair3.pt" in message
    assert "where 3 numbers come in" in message


def test_folders_that_hold_neither_are_refused(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ZooError, match="holds no list"):
        imported(tmp_path / "empty", tmp_path / "zoo")
    (tmp_path / "a.zip").write_bytes(b"PK\x03\x04")
    with pytest.raises(ZooError, match="unpack an archive first"):
        imported(tmp_path / "a.zip", tmp_path / "zoo")
    folder, _ = write_lists(tmp_path / "ref", LISTS)
    assert "Say with --root which folder" in command(
        "import", "netspace-lists", folder.rename(tmp_path / "lists"), tmp_path / "zoo", status=2
    )
