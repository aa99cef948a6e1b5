"""Training on a real Ray cluster of two workers: the zoo of the local run bit for bit, also if a worker is killed.

Its tests without a cluster stand first: once one is connected, it is used whatever the address is.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from click.testing import CliRunner
from folder_contents import files_of
from killed_training import CHAIRS, LAST, spec
from run_samples import Notes

import prepkit.training._ray as on_cluster
from prepkit.cli import main
from prepkit.errors import ZooError
from prepkit.program import ENVIRONMENT as SETTINGS
from prepkit.tasks import load_task
from prepkit.training._engine import Engine, choose_engine
from prepkit.training._plan import plan
from prepkit.training._ray import RETRIES, WorkerLost, check_room, on_ray, resources_for
from prepkit.training._units import units_of
from prepkit.training.run import train_zoo

pytestmark = [
    pytest.mark.usefixtures("undrawn_cards"),
    pytest.mark.xdist_group("ray"),  # one cluster serves all
    pytest.mark.filterwarnings("ignore::ResourceWarning:ray"),
    pytest.mark.filterwarnings("ignore::FutureWarning:ray"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:ray"),
]
ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AUTH_MODE": "disabled",  # no token is written to the home folder
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
}
CPU = torch.device("cpu")


def parts(text=LAST, threads=1):
    """Units of one instance each, the task and the engine of a spec."""
    found = spec(text)
    jobs = plan(found)
    engine = choose_engine(found, jobs, CPU, 1, threads)
    return units_of(found, jobs, engine), load_task(found.task), engine


def trained(folder, text=LAST, **options):
    return train_zoo(spec(text), folder, device="cpu", threads=1, stack=1, **options)


# Without a cluster --------------------------------------------------------------------------------------------


def test_what_a_unit_takes_and_how_many_there_is_room_for():
    on_gpu = Engine("cuda", None, {})
    assert resources_for(on_gpu, 0.25) == {"num_gpus": 0.25, "num_cpus": 1}
    assert resources_for(Engine("cpu", 4, {}), 1.0) == {"num_cpus": 4}
    assert check_room({"CPU": 64.0, "GPU": 2.0}, resources_for(on_gpu, 0.25), "auto") == 8
    assert check_room({"CPU": 3.0, "GPU": 2.0}, resources_for(on_gpu, 0.25), "auto") == 3
    assert check_room({"CPU": 9.0}, {"num_cpus": 4}, "auto") == 2
    with pytest.raises(ZooError, match=r"takes 0\.25 gpus, 1 cpus, but the Ray cluster at 'auto' has 0 gpus, 8 c"):
        check_room({"CPU": 8.0}, resources_for(on_gpu, 0.25), "auto")


def test_ray_that_is_not_installed(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    units, task, engine = parts()
    with pytest.raises(ZooError, match=r"needs the extra: pip install 'prepkit\[ray\]'"):
        next(on_ray("auto", units, task, engine, 1.0, print))
    assert list(on_ray("auto", [], task, engine, 1.0, print)) == []  # nothing is left to do


@pytest.mark.parametrize(
    ("resources", "threads", "message"),
    [(None, 1, "needs the extra"), ({"CPU": 2.0}, 4, "a unit takes 4 cpus")],
    ids=["no Ray", "no room"],
)
def test_what_is_missing_is_told_before_anything_is_written(tmp_path, monkeypatch, resources, threads, message):
    fake = resources and SimpleNamespace(is_initialized=lambda: True, cluster_resources=lambda: resources)
    monkeypatch.setitem(sys.modules, "ray", fake)
    with pytest.raises(ZooError, match=message):
        train_zoo(spec(LAST), tmp_path / "zoo", device="cpu", threads=threads, ray="auto")
    assert not (tmp_path / "zoo").exists()


@pytest.mark.parametrize("address", ["127.0.0.1:{port}", "ray://127.0.0.1:{port}", "no such host", "auto"])
def test_no_cluster_at_an_address_is_told_soon(monkeypatch, address):
    pytest.importorskip("ray")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        asked = address.format(port=free.getsockname()[1])
        if asked == "auto":
            monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{free.getsockname()[1]}")
        units, task, engine = parts()
        start = time.monotonic()
        with pytest.raises(
            ZooError, match=rf"no Ray cluster answers at '{asked}': .*\. Start one \(`ray start --head`\)"
        ):
            next(on_ray(asked, units, task, engine, 1.0, print))
        assert time.monotonic() - start < 30


def test_workers_get_the_settings_of_a_command_line_and_none_from_the_library(monkeypatch):
    asked = []
    fake = SimpleNamespace(is_initialized=lambda: False, init=lambda **options: asked.append(options), shutdown=int)
    monkeypatch.setitem(sys.modules, "ray", fake)
    for name in SETTINGS:
        monkeypatch.delenv(name, raising=False)
    with on_cluster.cluster("local"):
        pass
    for name, value in SETTINGS.items():
        monkeypatch.setenv(name, value)
    with on_cluster.cluster("local"):
        pass
    assert [options["runtime_env"]["env_vars"] for options in asked] == [{}, SETTINGS]


@pytest.mark.slow
def test_a_cluster_is_started_and_stopped_and_only_we_are_heard(tmp_path):
    """In a process of its own, as a user has it: without settings of Ray's, and with a new home."""
    (tmp_path / "spec.toml").write_text(CHAIRS)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    command = [sys.executable, "-c", "from prepkit.cli import main; main()"]
    options = ["--device", "cpu", "--threads", "1", "--stack", "1", "--ray", "local", "--json"]
    done = subprocess.run(
        [*command, "zoo", "train", str(tmp_path / "spec.toml"), str(tmp_path / "zoo"), *options],
        capture_output=True,
        text=True,
        check=False,
        env={**environment, "HOME": str(tmp_path)},
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["instances"] == 3
    trained(tmp_path / "here", CHAIRS)
    assert files_of(tmp_path / "zoo") == files_of(tmp_path / "here")


# On a cluster -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def cluster():
    """Two workers, on this machine; the module `ray`, connected to them."""
    patch = pytest.MonkeyPatch()
    for name, value in ENVIRONMENT.items():
        patch.setenv(name, value)
    ray = pytest.importorskip("ray")
    ray.init(
        num_cpus=2, include_dashboard=False, object_store_memory=100 << 20, log_to_driver=False, logging_level="error"
    )
    yield ray
    ray.shutdown()
    patch.undo()


@pytest.fixture(scope="module")
def local(tmp_path_factory):
    """Files of the zoo that this process trains."""
    root = tmp_path_factory.mktemp("local") / "zoo"
    trained(root)
    return files_of(root)


@pytest.fixture
def noted(tmp_path, monkeypatch):
    """A file in which workers write a line for each unit that they begin: its number and their process."""

    def note(before=lambda unit, task, engine: None):
        file = str(tmp_path / "begun")
        real = on_cluster.train_remotely

        def train_noted(unit, task, engine, expected):
            with open(file, "a") as opened:
                opened.write(f"{unit.number} {os.getpid()}\n")
            before(unit, task, engine)
            return real(unit, task, engine, expected)

        monkeypatch.setattr(on_cluster, "train_remotely", train_noted)
        return lambda: [tuple(map(int, line.split())) for line in Path(file).read_text().splitlines()]

    return note


def test_the_zoo_is_that_of_the_local_run(cluster, local, noted, tmp_path):
    begun = noted()
    progress = Notes()
    told = trained(tmp_path / "zoo", ray="auto", progress=progress)
    assert files_of(tmp_path / "zoo") == local
    assert told.instances == 6
    assert progress.done == pytest.approx(progress.work)
    assert sorted(number for number, _ in begun()) == [0, 1, 2, 3, 4, 5, 6]  # six instances and the teacher
    pids = {pid for _, pid in begun()}
    assert os.getpid() not in pids
    assert len(pids) >= 2
    assert cluster.is_initialized()  # it was connected before, and still is


@pytest.mark.slow
def test_a_start_is_fitted_on_the_cluster_before_the_instances(cluster, noted, tmp_path):
    text = CHAIRS.replace('keep = "last"', 'keep = "last"\nstart = {fitted = 7}')
    trained(tmp_path / "here", text)
    begun = noted()
    trained(tmp_path / "zoo", text, ray="auto")
    assert files_of(tmp_path / "zoo") == files_of(tmp_path / "here")
    (first, pid), *others = begun()
    assert (first, sorted(number for number, _ in others)) == (4, [0, 1, 2])
    assert pid != os.getpid()


def test_a_worker_that_is_killed_is_replaced_and_only_its_unit_trained_again(cluster, local, noted, tmp_path):
    marker = str(tmp_path / "marker")

    def stop_in_the_middle(unit, task, engine):
        from prepkit.training._units import train_unit

        if unit.number == 3 and not os.path.exists(marker):
            train = train_unit(
                unit, task, engine, CPU, advance=lambda work: work and (Path(marker).write_text("x"), time.sleep(60))
            )
            raise AssertionError(train)

    begun = noted(stop_in_the_middle)
    killed = []

    def kill():
        while not os.path.exists(marker):
            time.sleep(0.02)
        killed.extend(pid for number, pid in begun() if number == 3)
        os.kill(killed[0], signal.SIGKILL)

    thread = threading.Thread(target=kill, daemon=True)
    thread.start()
    file = tmp_path / "spec.toml"
    file.write_text(LAST)
    options = ["--device", "cpu", "--threads", "1", "--stack", "1", "--ray", "auto", "--json"]
    result = CliRunner().invoke(main, ["zoo", "train", str(file), str(tmp_path / "zoo"), *options])
    thread.join(10)
    assert json.loads(result.stdout)["instances"] == 6, result.output  # what Ray says of its workers is not in it
    assert len(killed) == 1
    assert killed[0] != os.getpid()
    assert files_of(tmp_path / "zoo") == local
    counts = [number for number, _ in begun()]
    assert {number: counts.count(number) for number in range(7)} == {**dict.fromkeys(range(7), 1), 3: 2}
    assert {pid for number, pid in begun() if number == 3} != {killed[0]}


@pytest.mark.slow
def test_a_worker_that_is_lost_each_time(cluster, local, noted, tmp_path, monkeypatch):
    def die(unit, task, engine):
        if unit.number == 5:
            os.kill(os.getpid(), signal.SIGKILL)

    with monkeypatch.context() as patch:
        patch.setattr(on_cluster, "AHEAD", 1)
        begun = noted(die)
        with pytest.raises(
            WorkerLost, match=r"vanilla_cnn-0000\d and 0 others: the worker was lost 4 times \(.*\)"
        ) as told:
            trained(tmp_path / "zoo", ray="auto")
    assert "run the same command to go on" in str(told.value)
    assert told.value.exit_code == 1
    before = [number for number, _ in begun()]
    assert before.count(5) == RETRIES + 1
    monkeypatch.undo()
    trained(tmp_path / "zoo")  # here, to the end
    assert files_of(tmp_path / "zoo") == local


def test_an_error_in_a_worker_arrives_as_it_is(cluster, tmp_path):
    text = CHAIRS.replace("learning_rate = 2e-3", "learning_rate = 1e38").replace("epochs = 3", "epochs = 1")
    with pytest.raises(ZooError, match=r"sine_mlp-0000\d: diverged with 101 seeds") as told:
        trained(tmp_path / "zoo", text, ray="auto")
    assert type(told.value) is ZooError
    assert "ray" not in str(told.value)


def test_a_worker_with_other_versions_is_refused(cluster, tmp_path, monkeypatch):
    monkeypatch.setattr(on_cluster, "versions", lambda: {"prepkit": "9", "torch": "9"})
    units, task, engine = parts()
    with pytest.raises(ZooError, match=r"a worker has .*, here are {'prepkit': '9', 'torch': '9'}; install the same"):
        list(on_ray("auto", units, task, engine, 1.0, lambda work: None))


def test_a_unit_that_no_worker_has_room_for(cluster):
    units, task, engine = parts(threads=3)
    with pytest.raises(ZooError, match=r"a unit takes 3 cpus, but the Ray cluster at 'auto' has 2 cpus. Give fewer"):
        next(on_ray("auto", units, task, engine, 1.0, print))


def test_no_more_units_wait_in_line_than_are_told(cluster, monkeypatch):
    """The driver holds results of no more than AHEAD units a worker."""
    sent = []
    real = cluster.wait
    monkeypatch.setattr(cluster, "wait", lambda refs, **options: (sent.append(len(refs)), real(refs, **options))[1])
    monkeypatch.setattr(on_cluster, "AHEAD", 2)
    units, task, engine = parts()
    assert len(list(on_ray("auto", units, task, engine, 1.0, lambda work: None))) == 6
    assert sent == [4, 4, 4, 3, 2, 1]
