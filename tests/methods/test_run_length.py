"""Run-length tokenization: what it drops of a clip, and that clips may keep different numbers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

import dynamicvit
from dynamicvit import DynamicViT, InputError, sparsify
from dynamicvit.backbones.video import Video
from dynamicvit.core.networks import core_of
from dynamicvit.core.schedule import Policy
from dynamicvit.costs import count_macs, schedule_macs
from dynamicvit.methods.run_length import THRESHOLD, RunLength, run_lengths
from families import BY_NAME, Family, assert_agree

each_family = pytest.mark.parametrize(
    "family", [BY_NAME["hf_videomae"], BY_NAME["inflated_augreg"]], ids=lambda family: family.name
)


def moving(family: Family, batch: int = 3) -> Tensor:
    """Clips in which so many tubelets of each time change as the clip's number says."""
    frames, channels, height, width = family.shape
    clips = torch.randn(batch, 1, channels, height, width).expand(-1, frames, -1, -1, -1).clone()
    side = family.patch
    rows, columns = height // side, width // side
    for clip in range(batch):
        for frame in range(1, frames):
            for place in range(min(clip, rows * columns)):
                y, x = place // columns * side, place % columns * side
                clips[clip, frame, :, y : y + side, x : x + side] += frame + torch.rand(())
    return clips + 0.01 * torch.rand(clips.shape)


def made(family: Family, keep_ratio: float = 0.6, **arguments: object) -> DynamicViT:
    return core_of(sparsify(family.backbone(), keep_ratio, method="rlt", **arguments)).eval()


def trained(model: DynamicViT) -> DynamicViT:
    """With an embedding of the length of runs."""
    [method] = model.methods
    assert isinstance(method, RunLength)
    torch.nn.init.normal_(method.lengths)
    return model


def test_differences_are_those_of_the_paper() -> None:
    """Of a tubelet's last frame and the first one of the tubelet before."""
    family = BY_NAME["hf_videomae"]
    bound, clips = made(family).bound, family.images()
    assert isinstance(bound, Video)
    side, (times, rows, columns) = family.patch, bound.grid(*bound.image_size)
    motion = bound.motion(clips).reshape(-1, times, rows, columns)
    assert motion[:, 0].isinf().all()
    for time in range(1, times):
        last, first = (
            clips[:, time * bound.tubelet + bound.tubelet - 1],
            clips[:, (time - 1) * bound.tubelet],
        )
        for row in range(rows):
            for column in range(columns):
                place = (
                    ...,
                    slice(row * side, (row + 1) * side),
                    slice(column * side, (column + 1) * side),
                )
                expected = (last[place] - first[place]).abs().mean(dim=(1, 2, 3))
                torch.testing.assert_close(motion[:, time, row, column], expected)


@each_family
@torch.no_grad()
def test_what_stands_still_is_dropped(family: Family) -> None:
    model, clips = made(family, 0.8), moving(family)
    output = model.forward_pruned(clips)
    times, *space = model.bound.grid(*model.bound.image_size)
    kept = output.kept[0].unflatten(1, (times, *space)).flatten(2)
    assert kept[:, 0].all(), "all of the first time"
    assert kept[2, 1:, :2].all(), "and what moves"
    scores = output.keep_scores[0].unflatten(1, (times, *space)).flatten(2)
    assert ((scores[2, 1:] > 0).sum(dim=1) == 2).all(), "0 is the threshold"
    assert (scores[0, 1:] < 0).all()


def test_lengths_of_runs() -> None:
    kept = torch.tensor([[1, 1], [0, 1], [0, 0], [1, 0]]).bool().reshape(1, 4, 1, 2)
    assert run_lengths(kept).tolist() == [[3, 1, 1, 3, 1, 1, 1, 1]]


@torch.no_grad()
def test_a_kept_tubelet_knows_the_length_of_its_run() -> None:
    family = BY_NAME["inflated_augreg"]
    model, clips = made(family), moving(family)
    before = model(clips)
    trained(model)
    assert not torch.allclose(model(clips), before)
    model.keep_ratio = 1.0  # every run is of one
    assert torch.allclose(model(clips), model.dense(clips), atol=1e-5)


def test_the_embedding_of_lengths_is_learned() -> None:
    family = BY_NAME["inflated_augreg"]
    model = made(family).train()
    model(moving(family)).logits.square().sum().backward()
    assert model.methods[0].lengths.grad.abs().sum() > 0


@each_family
@pytest.mark.parametrize("policy", ["removed", "merged", "bypassed"])
@torch.no_grad()
def test_both_paths_agree(family: Family, policy: Policy) -> None:
    model, clips = trained(made(family, policy=policy)), moving(family)
    pruned = model.forward_pruned(clips, full_map=True)
    decisions = [kept.float() for kept in pruned.kept]
    masked = model.forward_masked(clips, decisions, full_map=True)
    assert_agree(masked.logits, pruned.logits)
    assert_agree(masked.full_map, pruned.full_map)


@each_family
@torch.no_grad()
def test_a_budget_for_each_clip(family: Family) -> None:
    """Clips with more motion keep more; together they are computed as alone."""
    model = trained(made(family, 0.8, per_image=True))
    many = torch.cat([moving(family, 8) for _ in range(4)])
    model.calibrate(many)
    output = model.forward_pruned(many)
    counts = output.kept[0].sum(dim=1)
    [mean] = model.schedule.kept(output.kept[0].shape[1])
    assert counts.float().mean() == pytest.approx(mean, rel=0.1)
    assert counts[7] > counts[0]
    alone = torch.cat([model(clip[None]) for clip in many[:8]])
    assert_agree(model(many)[:8], alone)


@each_family
def test_macs_are_those_that_run(family: Family) -> None:
    model = made(family)
    assert schedule_macs(model, model.schedule) == count_macs(model)
    assert count_macs(model) < count_macs(model.backbone)


def test_saved_and_loaded(tmp_path: Path) -> None:
    family = BY_NAME["inflated_augreg"]
    model = trained(made(family))
    assert model.schedule.stages == (0,)
    model.save_pretrained(tmp_path)
    again = dynamicvit.load(tmp_path)
    assert again.schedule == model.schedule
    clips = moving(family)
    with torch.no_grad():
        assert torch.equal(again.eval()(clips), model(clips))
    assert model.keep_ratio == 0.6
    model.keep_ratio = 0.8
    assert model.schedule == made(family, 0.8).schedule


def test_bad_input() -> None:
    with pytest.raises(InputError, match=r"its one stage is 0, got \(1,\)"):
        sparsify(BY_NAME["hf_videomae"].backbone(), [0.7], stages=[1], method="rlt")
    assert THRESHOLD == 0.1
