"""The kernel's matches are scipy's; on a CPU in Triton's interpreter, in a process of its own."""

import importlib.util
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from assignments import BROKEN, EXPERIMENTS, SOLVED, TIED, Problem, losses, problem
from runs import REPOSITORY, environment
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from detr_container.config.detection import DetectionExperiment
from detr_container.models.layers.gpu.assignment import is_best, refusal
from detr_container.tasks.detection.task import DetectionTask

needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="needs Triton")


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the interpreted kernel makes of all problems."""
    path = tmp_path_factory.mktemp("assignments") / "found.pt"
    command = [sys.executable, str(REPOSITORY / "tests" / "assignments.py"), str(path)]
    subprocess.run(command, env=environment(TRITON_INTERPRET="1"), check=True, timeout=300)
    result: dict[str, Any] = torch.load(path, weights_only=True)
    return result


def by_scipy(given: Problem) -> Tensor:
    """[D, B, T]."""
    layers, images, _, slots = given.costs.shape
    matches = np.full((layers, images, slots), -1)
    for layer, image in np.ndindex(layers, images):
        rows, columns = linear_sum_assignment(given.costs[layer, image, :, : given.counts[image]])
        matches[layer, image, columns] = rows
    return torch.from_numpy(matches)


@needs_triton
@pytest.mark.parametrize("name", SOLVED)
def test_matches_are_scipys(found: dict[str, Any], name: str) -> None:
    torch.testing.assert_close(found["matches"][name], by_scipy(SOLVED[name]), rtol=0, atol=0)


@needs_triton
@pytest.mark.parametrize("name", TIED)
def test_ties_cost_the_same(found: dict[str, Any], name: str) -> None:
    given, matches = TIED[name], found["matches"][name]
    expected = by_scipy(given)
    for image, count in enumerate(given.counts):
        slots = torch.arange(count)
        mine, best = matches[0, image, :count], expected[0, image, :count]
        assert (matches[0, image, count:] == -1).all()
        assert len(mine[mine >= 0].unique()) == (mine >= 0).sum() == min(count, 25)
        costs = given.costs[0, image].double()
        mine_cost, best_cost = (costs[each[each >= 0], slots[each >= 0]].sum() for each in (mine, best))
        assert mine_cost == best_cost


@needs_triton
@pytest.mark.parametrize("value", BROKEN)
def test_costs_that_are_not_finite_have_no_matches(found: dict[str, Any], value: str) -> None:
    first, second, third = found["matches"][value][0]
    assert (first == -1).all()
    assert (third == -1).all()
    # Beyond the objects of an image there is nothing that costs.
    assert torch.equal(second, by_scipy(Problem(BROKEN[value].costs[:, 1:2], (5,)))[0, 0])


@needs_triton
@pytest.mark.parametrize("name", EXPERIMENTS)
def test_the_loss_is_that_of_matches_of_the_host(found: dict[str, Any], name: str) -> None:
    for ours, theirs in zip(found["losses"][name], losses(name, "host"), strict=True):
        assert theirs.abs().sum() > 0
        assert torch.equal(ours, theirs)


@needs_triton
def test_the_gradient_says_that_a_prediction_is_not_finite(found: dict[str, Any]) -> None:
    """Also of a box that no object is compared with; the host's matching names it instead."""
    total, _, of_logits, _ = found["spoilt"]
    assert total.isnan()
    assert of_logits.isnan().all()


@needs_triton
def test_the_trial_finds_nothing(found: dict[str, Any]) -> None:
    assert found["refusal"] == ""


@pytest.mark.parametrize("name", ["few", "more objects than queries", "slots without objects"])
def test_the_trial_sees_what_is_wrong(name: str) -> None:
    given, wrong = SOLVED[name], 0
    for image, count in enumerate(given.counts):
        costs, matches = given.costs[0, image, :, :count], by_scipy(given)[0, image]
        assert is_best(costs, matches)
        matched = (matches >= 0).nonzero().flatten()
        changes = [(place, -1) for place in matched[:1]] + [(place, 0) for place in range(count, len(matches))]
        if len(matched) > 1:
            changes += [(matched[0], matches[matched[1]]), (matched, matches[matched].roll(1)), (matched[0], 10**6)]
        for place, value in changes:
            other = matches.clone()
            other[place] = value
            assert not is_best(costs, other)
            wrong += 1
    assert wrong > 5


@needs_triton
@pytest.mark.parametrize("columns", [32, 512])
def test_it_compiles_without_a_gpu(columns: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The interpreter does not see types that change within a loop."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from detr_container.models.layers.gpu.assignment_kernel import _assign

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    types = dict.fromkeys(("images", "queries", "slots"), "i32")
    types = {"costs": "*fp32", "valid": "*u8", "matches": "*i64", **types, "COLUMNS": "constexpr"}
    source = ASTSource(_assign, signature=types, constexprs={"COLUMNS": columns})
    assert triton.compile(source, target=GPUTarget("cuda", 90, 32)).asm["cubin"]


def prepared(matching: Any, device: str) -> str:
    experiment = DetectionExperiment()
    return DetectionTask(replace(experiment, train=replace(experiment.train, matching=matching)), None, 3).prepare(
        torch.device(device)
    )


def test_a_cpu_matches_on_the_host() -> None:
    assert prepared("auto", "cpu") == prepared("host", "cpu") == ""
    with pytest.raises(ValueError, match=r"train\.matching=device: there is no GPU\. Use auto or host"):
        prepared("device", "cpu")


# -- on a GPU ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def largest() -> tuple[Problem, Problem]:
    """Two of the sizes of a micro batch of 16 COCO images."""
    counts = (93, 0, 1, 7, 63, 12, 3, 0, 40, 5, 93, 2, 20, 9, 4, 17)
    first = problem(counts, 300, 93, layers=6)
    return first, Problem(first.costs.flip(2) + 1, counts[::-1])


@pytest.mark.gpu
def test_a_gpu_passes_the_trial() -> None:
    device = torch.device("cuda", 0)
    assert [refusal(device, queries) for queries in (25, 100, 300)] == [""] * 3
    assert prepared("device", "cuda") == prepared("auto", "cuda") == "matching on the GPU"
    assert prepared("host", "cuda") == "matching on the host: train.matching=host"


@pytest.mark.gpu
def test_a_gpu_finds_scipys_matches_and_does_not_wait(largest: tuple[Problem, Problem]) -> None:
    from detr_container.models.layers.gpu.assignment_kernel import assign

    given = [(each.costs.cuda(), each.valid.cuda()) for each in largest]
    assign(*given[0])
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        found = [assign(*each) for each in given]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    for matches, each in zip(found, largest, strict=True):
        assert torch.equal(matches.cpu(), by_scipy(each))


@pytest.mark.gpu
def test_a_gpu_solves_all_kinds_of_problems() -> None:
    from detr_container.models.layers.gpu.assignment_kernel import assign

    for each in SOLVED.values():
        assert torch.equal(assign(each.costs.cuda(), each.valid.cuda()).cpu(), by_scipy(each))
    for each in TIED.values():
        matches = assign(each.costs.cuda(), each.valid.cuda()).cpu()
        for image, count in enumerate(each.counts):
            assert is_best(each.costs[0, image, :, :count], matches[0, image])
    for each in BROKEN.values():
        first, second, third = assign(each.costs.cuda(), each.valid.cuda()).cpu()[0]
        assert (first == -1).all()
        assert (third == -1).all()
        assert torch.equal(second, by_scipy(Problem(each.costs[:, 1:2], (5,)))[0, 0])


@pytest.mark.gpu
def test_a_cuda_graph_matches_other_costs(largest: tuple[Problem, Problem]) -> None:
    from detr_container.models.layers.gpu.assignment_kernel import assign

    first, second = largest
    costs, valid = first.costs.cuda(), first.valid.cuda()
    assign(costs, valid)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        matches = assign(costs, valid)
    for each in (second, first):
        costs.copy_(each.costs)
        valid.copy_(each.valid)
        graph.replay()
        assert torch.equal(matches.cpu(), by_scipy(each))


@pytest.mark.gpu
@pytest.mark.parametrize("name", EXPERIMENTS)
def test_a_gpu_has_the_loss_of_matches_of_the_host(name: str) -> None:
    for ours, theirs in zip(losses(name, "device", "cuda"), losses(name, "host", "cuda"), strict=True):
        torch.testing.assert_close(ours, theirs)
    assert losses(name, "device", "cuda", spoil=float("nan"))[0].isnan()
