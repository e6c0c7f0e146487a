"""Runs on a Ray cluster of two workers on this machine; skipped nowhere, Ray is among the tests' packages."""

import json
import os
import sys
import time

import pytest
import ray
from ray.cluster_utils import Cluster

from convlora.comparison.engines import RayEngine, choose_engine
from convlora.comparison.entries import Cell, parse_methods
from convlora.comparison.launch import Task, one_by_one
from convlora.errors import ConfigError, MissingExtraError


@pytest.fixture(scope="module")
def cluster():
    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    made.add_node(num_cpus=1)
    yield made.address
    ray.shutdown()
    made.shutdown()


def tasks(folder, count):
    (entry,) = parse_methods("lora")
    return [Task(Cell(entry, seed), folder / str(seed), {"seed": seed}, "test") for seed in range(count)]


def test_both_workers_work_and_one_failure_is_told(cluster, tmp_path):
    def work(task):
        time.sleep(2)  # long enough for the second worker to be given one
        if task.cell.seed == 2:
            os._exit(1)
        return {"node": ray.get_runtime_context().get_node_id(), "seed": task.cell.seed}

    todo = tasks(tmp_path, 4)
    found = {task.cell.seed: result for task, result in RayEngine(cluster, work)(todo)}
    assert len({found[seed]["node"] for seed in (0, 1, 3)}) == 2
    assert [found[seed]["seed"] for seed in (0, 1, 3)] == [0, 1, 3]
    assert found[2]["error"].startswith("Ray: ")
    assert found[2]["digest"] == todo[2].digest


def test_a_comparison_on_the_cluster(cluster, command, binary_data, small_backbone, tmp_path):
    arguments = ("--methods", "decoder-only", "--seeds", "2", "--max-steps", "2", "--image-size", "64")
    backbone = ("--backbone", small_backbone, "--set", "previews=0", "--set", "precision=fp32")
    one, many = tmp_path / "one", tmp_path / "many"
    code, text, _ = command("compare", binary_data, "--out", many, *arguments, *backbone, "--ray", cluster)
    assert code == 0, text
    assert command("compare", binary_data, "--out", one, *arguments, *backbone)[0] == 0
    runs = [json.loads((out / "results.json").read_text())["runs"] for out in (one, many)]
    for a, b in zip(*runs, strict=True):
        assert a["run"] == b["run"]
        # the number of threads may differ, so sums are rounded in another order
        assert a["scores"]["mean_iou"] == pytest.approx(b["scores"]["mean_iou"], abs=0.02)
    assert runs[0][0]["scores"] != runs[0][1]["scores"]


def test_without_ray(monkeypatch):
    assert choose_engine(None) is one_by_one
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'convlora\[ray\]'"):
        choose_engine("local")


def test_no_cluster_there(monkeypatch):
    def fail(**_):
        raise ConnectionError("Could not find any running Ray instance.\nmore")

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", fail)
    with pytest.raises(
        ConfigError, match=r"--ray auto: no cluster answers there: Could not find .*ray start"
    ):
        choose_engine("auto")
