import bench_samples
import pytest


@pytest.fixture(scope="session")
def zoo_folder(tmp_path_factory):
    return bench_samples.write_zoo(tmp_path_factory.mktemp("bench") / "zoo")
