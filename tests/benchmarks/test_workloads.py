from __future__ import annotations

import pytest

from benchmarks.architectures import ARCHITECTURES
from benchmarks.contenders.catalogue import CONTENDERS, REFERENCE, find_contenders
from benchmarks.contenders.models import EXPORTERS
from benchmarks.contenders.process import ROOT
from benchmarks.environments import ENVIRONMENTS
from benchmarks.workloads import WORKLOADS, find_workload
from edgediffusion.errors import RequestError


@pytest.mark.parametrize("name", WORKLOADS)
def test_a_workload_is_of_a_known_architecture_and_a_size_it_can_have(name: str) -> None:
    workload = find_workload(name)
    assert workload.architecture in {"shapes", *ARCHITECTURES}
    assert all(side % 64 == 0 for side in workload.size)
    assert workload.latent_shape == (1, 4, workload.size[0] // 8, workload.size[1] // 8)
    assert set(workload.counts) <= {*workload.stages, "cold_start"}
    assert workload.stages[-1] == "end_to_end_20"


@pytest.mark.parametrize("name", [n for n, w in WORKLOADS.items() if w.architecture != "shapes"])
def test_a_workload_is_of_the_size_that_its_network_was_made_for(name: str) -> None:
    workload = WORKLOADS[name]
    network = ARCHITECTURES[workload.architecture].models["unet"]
    assert network.config["sample_size"] * 8 == workload.size[0] == workload.size[1]


def test_an_unknown_workload_is_an_error_with_near_names() -> None:
    with pytest.raises(RequestError, match=r"unknown workload 'sd15': did you mean .*sd15-512"):
        find_workload("sd15")


def test_an_unknown_contender_is_an_error_with_near_names() -> None:
    with pytest.raises(RequestError, match=r"unknown contender 'diffusers': did you mean diff"):
        find_contenders(["edgediffusion-cpu", "diffusers"])


def test_all_contenders_run_unless_some_are_named() -> None:
    assert list(find_contenders([])) == list(CONTENDERS)
    assert list(find_contenders([REFERENCE])) == [REFERENCE]


@pytest.mark.parametrize("name", CONTENDERS)
def test_a_contender_has_an_environment_a_worker_and_files(name: str) -> None:
    contender = CONTENDERS[name]
    assert contender.environment in ENVIRONMENTS
    assert (ROOT / "benchmarks" / "contenders" / f"{contender.worker}.py").is_file()
    assert contender.files in {"checkpoint", *EXPORTERS}
    assert all(exporter.environment in ENVIRONMENTS for exporter in EXPORTERS.values())
