"""The page: columns, titles, captions, and what does not fit on it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import matplotlib
import numpy as np
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from dynamicvit import DynamicViT, InputError, PrunedOutput, sparsify
from dynamicvit.data import eval_transform
from dynamicvit.plots import draw, save, visualize
from dynamicvit.plots.page import MAX_IMAGES, MAX_STAGES, merges
from dynamicvit.plots.patches import as_merged, dim, score_map
from dynamicvit.runtimes import ExportedModel
from dynamicvit.runtimes.description import describe

NAMES = ["tench, Tinca tinca", "cat", "$5 bill", "dog", "fox"]


@pytest.fixture(scope="module")
def model() -> DynamicViT:
    """4 x 6 patches of 8, three stages, five classes."""
    torch.manual_seed(0)
    backbone = VisionTransformer(
        img_size=(32, 48), patch_size=8, embed_dim=32, depth=4, num_heads=2, num_classes=5
    )
    return sparsify(backbone, keep_ratio=0.7, policy="removed", method="dynamicvit").eval()


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.rand(2, 3, 32, 48, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def output(model: DynamicViT, images: Tensor) -> PrunedOutput:
    with torch.no_grad():
        return model.forward_pruned(images)


def texts(drawn: Figure) -> list[str]:
    return [text.get_text() for text in drawn.texts]


def pictures(drawn: Figure) -> list[np.ndarray]:
    """What each axes shows, in the order they were made."""
    return [axes.images[0].get_array() for axes in drawn.axes]


def test_figure_shows_each_stage_of_each_image(images: Tensor, output: PrunedOutput) -> None:
    drawn = draw(images, output)
    # For each image: input, three stages, the map and its color bar.
    assert len(drawn.axes) == 2 * 6
    shown = pictures(drawn)
    for row, image in enumerate(images):
        np.testing.assert_allclose(shown[6 * row], image.permute(1, 2, 0).numpy())
        for stage, kept in enumerate(output.kept):
            expected = dim(image, kept[row], (4, 6)).permute(1, 2, 0).numpy()
            np.testing.assert_allclose(shown[6 * row + 1 + stage], expected)
        scores = output.keep_scores[0][row]
        np.testing.assert_allclose(shown[6 * row + 4], score_map(scores, (4, 6)).numpy())
        assert shown[6 * row + 4].argmax() == scores.argmax()
        # Their level means nothing unless the recipe holds it: no numbers, the order in words.
        ends = [label.get_text() for label in drawn.axes[6 * row + 5].get_yticklabels()]
        assert ["dropped" in end for end in ends] == [True, False]
        assert ["kept" in end for end in ends] == [False, True]

    # floor(24 x 0.7), floor(24 x 0.49), floor(24 x 0.343) of 24
    assert {"24 patches", "67 % kept", "46 % kept", "33 % kept"} <= set(texts(drawn))


def test_of_many_stages_six_are_drawn(images: Tensor, output: PrunedOutput) -> None:
    many = replace(output, kept=output.kept * 4, keep_scores=(), groups=())  # 12, as of ToMe
    drawn = draw(images, many)
    assert len(pictures(drawn)) == len(images) * (1 + MAX_STAGES)
    named = [text for text in texts(drawn) if text.startswith("stage")]
    assert named == [f"stage {number}" for number in (1, 3, 5, 8, 10, 12)]
    last = dim(images[0], output.kept[2][0], (4, 6)).permute(1, 2, 0).numpy()
    np.testing.assert_allclose(pictures(drawn)[MAX_STAGES], last)


def test_merged_patches_differ_from_kept_and_removed_ones(
    model: DynamicViT, images: Tensor, output: PrunedOutput
) -> None:
    assert not any(merges(output, stage) for stage in range(3))
    schedule = replace(model.schedule, policy="merged")
    merging = DynamicViT(model.backbone, schedule, model.predictors).eval()
    with torch.no_grad():
        merged = merging.forward_pruned(images)
    assert all(merges(merged, stage) for stage in range(3))
    plain, drawn = draw(images, merged), draw(images, merged, show_merged=True)
    for each in (plain, drawn):
        assert "33 % kept, rest merged" in texts(each)
    for row, image in enumerate(images):
        for stage, kept in enumerate(merged.kept):
            expected = dim(image, kept[row], (4, 6)).permute(1, 2, 0).numpy()
            np.testing.assert_allclose(pictures(plain)[6 * row + 1 + stage], expected)
    for row, image in enumerate(images):
        for stage, (kept, groups) in enumerate(zip(merged.kept, merged.groups, strict=True)):
            shown = torch.from_numpy(pictures(drawn)[6 * row + 1 + stage]).permute(2, 0, 1)
            alike = as_merged(image, kept[row], groups[row], (4, 6))
            whole = kept[row].reshape(4, 6).repeat_interleave(8, 0).repeat_interleave(8, 1)
            torch.testing.assert_close(shown, torch.where(whole, image, (alike + 1) / 2))
    apart = replace(merged, groups=tuple(torch.full_like(g, -1) for g in merged.groups))
    removed = draw(images, apart, show_merged=True)
    assert "33 % kept" in texts(removed)
    unknown = draw(images, replace(merged, groups=()), show_merged=True)
    for one, other in zip(pictures(removed), pictures(unknown), strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_later_stages_map_is_blank_at_patches_dropped_before(
    images: Tensor, output: PrunedOutput
) -> None:
    drawn = draw(images, output, score_stage=2)
    assert any("stage 3" in text and "white" in text for text in texts(drawn))
    for row in range(2):
        blank = pictures(drawn)[6 * row + 4].mask
        np.testing.assert_array_equal(blank, ~output.kept[1][row].reshape(4, 6).numpy())


def test_the_outline_lies_between_kept_and_dropped_patches() -> None:
    kept = torch.ones(1, 6, dtype=torch.bool)
    kept[0, 0] = False  # the upper left patch of 2 x 3
    given = PrunedOutput(torch.zeros(1, 5), (kept,), (), (2, 3))
    drawn = draw(torch.rand(1, 3, 16, 12), given)
    [lines] = drawn.axes[1].collections
    segments = {tuple(map(tuple, segment.vertices)) for segment in lines.get_paths()}
    # Patches are 8 high and 4 wide; the first pixel's center is at 0.
    assert segments == {((-0.5, 7.5), (3.5, 7.5)), ((3.5, -0.5), (3.5, 7.5))}


def test_captions_name_the_classes(images: Tensor, output: PrunedOutput) -> None:
    logits = torch.tensor([[0.6, 0.1, 0.1, 0.1, 0.1], [0.05, 0.1, 0.7, 0.1, 0.05]]).log()
    dense = logits.flip(0)
    given = PrunedOutput(logits, output.kept, output.keep_scores, output.grid)
    full = draw(images, given, method="evit", names=NAMES, dense_logits=dense, labels=[0, 0])
    assert texts(full)[:2] == [
        "evit: tench (60 %) ✓     dense: $5 bill (70 %) ✗     label: tench",
        "evit: $5 bill (70 %) ✗     dense: tench (60 %) ✓     label: tench",
    ]
    assert texts(draw(images, given, names=NAMES))[:2] == [
        "pruned: tench (60 %)",
        "pruned: $5 bill (70 %)",
    ]


def test_captions_name_the_models_method(images: Tensor) -> None:
    """As commands take it, of an exported file too."""
    backbone = VisionTransformer(
        img_size=(32, 48), patch_size=8, embed_dim=32, depth=4, num_heads=2, num_classes=5
    )
    model = sparsify(backbone, keep_ratio=0.7, method="tome").eval()

    def run(given: Tensor) -> list[Tensor]:
        output = model.forward_pruned(given)
        return [output.logits, *output.kept_index]

    for each in (model, ExportedModel(run, describe(model))):
        assert texts(visualize(each, images, names=NAMES).figure)[0].startswith("tome: ")


def test_given_decisions_have_no_map(model: DynamicViT, images: Tensor, tmp_path: Path) -> None:
    decisions = [torch.ones(2, 24), torch.ones(2, 24), torch.zeros(2, 24)]
    decisions[2][0, :12] = 1
    with torch.no_grad():
        given = model.forward_pruned(images, decisions)
    drawn = draw(images, given)
    assert len(drawn.axes) == 2 * 4
    assert "25 % kept" in texts(drawn)  # 12 and 0 of 24
    save(drawn, tmp_path / "given.png")


def test_no_stages_no_classes(images: Tensor, tmp_path: Path) -> None:
    backbone = VisionTransformer(
        img_size=(32, 48), patch_size=8, embed_dim=32, depth=1, num_heads=2, num_classes=0
    )
    dense = sparsify(backbone, keep_ratio=[], stages=[], method="dynamicvit").eval()
    drawn = visualize(dense, images).figure
    assert len(drawn.axes) == 2
    save(drawn, tmp_path / "dense.png")


def test_equal_scores_and_one_patch_can_be_drawn(tmp_path: Path) -> None:
    scores = torch.full((1, 1), 0.5).log()
    given = PrunedOutput(
        torch.zeros(1, 5), (torch.ones(1, 1, dtype=torch.bool),), (scores,), (1, 1)
    )
    save(draw(torch.rand(1, 1, 8, 8), given, names=NAMES), tmp_path / "one.png")


@pytest.mark.parametrize(
    ("shape", "stages"),
    [
        ((320, 32), 3),
        ((32, 320), 3),
        pytest.param((32, 48), 3, marks=pytest.mark.extended),
        pytest.param((320, 32), 0, marks=pytest.mark.extended),
    ],
)
def test_all_words_stay_on_the_page_and_apart(
    shape: tuple[int, int], stages: int, output: PrunedOutput
) -> None:
    """Long names, on narrow pages too."""
    given = replace(output, kept=output.kept[:stages], keep_scores=output.keep_scores[:stages])
    shown = torch.rand(2, 3, *shape)
    names = ["$" + "W" * 1000] * 5
    drawn = draw(shown, given, names=names, dense_logits=given.logits, labels=[0, 1])
    canvas = drawn.canvas
    assert isinstance(canvas, FigureCanvasAgg)
    canvas.draw()
    boxes = [text.get_window_extent(canvas.get_renderer()) for text in drawn.texts]
    for bar in drawn.axes:
        boxes += [label.get_window_extent(canvas.get_renderer()) for label in bar.get_yticklabels()]
    page = drawn.bbox
    assert not any(text.get_parse_math() for text in drawn.texts)  # a dollar sign is one
    for place, box in enumerate(boxes):
        assert page.x0 <= box.x0 < box.x1 <= page.x1
        assert page.y0 <= box.y0 < box.y1 <= page.y1
        assert not any(box.overlaps(other) for other in boxes[:place])
        assert not any(box.overlaps(axes.bbox) for axes in drawn.axes)


def test_figure_names_what_does_not_fit(images: Tensor, output: PrunedOutput) -> None:
    for shown, options, named in (
        (images[:1], {}, "1 images, but 2"),
        (images, {"labels": [1]}, "1 labels"),
        (images, {"dense_logits": torch.zeros(1, 5)}, "1 rows of dense logits"),
        (images, {"score_stage": 3}, "0 to 2, got 3"),
        (images[:0], {}, f"1 to {MAX_IMAGES} images"),
    ):
        with pytest.raises(InputError, match=named):
            draw(shown, output, **options)


def test_visualize_undoes_the_given_or_the_models_normalization(
    model: DynamicViT, images: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = {"mean": (0.1, 0.2, 0.3), "std": (0.5, 0.6, 0.7)}
    monkeypatch.setattr(model.backbone, "pretrained_cfg", config, raising=False)
    for mean, std, options in (
        (*config.values(), {}),
        ((0.5,) * 3, (0.25,) * 3, {"names": NAMES, "mean_std": ((0.5,) * 3, (0.25,) * 3)}),
    ):
        mean, std = (torch.tensor(value)[:, None, None] for value in (mean, std))
        drawn = visualize(model, (images - mean) / std, **options).figure
        np.testing.assert_allclose(pictures(drawn)[0], images[0].permute(1, 2, 0), atol=1e-6)
        assert "dense: " in texts(drawn)[0]
        assert ("class " in texts(drawn)[0]) == (not options)


def test_files_and_pil_images_are_prepared_as_the_model_was_trained(
    model: DynamicViT, tmp_path: Path
) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    photo = Image.fromarray(pixels)
    photo.save(tmp_path / "photo.png")
    found = visualize(model, [tmp_path / "photo.png", photo], tmp_path / "kept", crop_pct=1.0)
    assert sorted(path.name for path in tmp_path.glob("kept*")) == ["kept.pdf", "kept.png"]
    expected = model.forward_pruned(eval_transform(model, crop_pct=1.0)(photo)[None]).logits
    torch.testing.assert_close(found.output.logits, expected.expand(2, -1))
    assert visualize(model, str(tmp_path / "photo.png")).output.logits.shape == (1, 5)
    with pytest.raises(InputError, match=r"none\.png can't be read"):
        visualize(model, tmp_path / "none.png")


def test_pyplot_is_left_alone(images: Tensor, output: PrunedOutput) -> None:
    from matplotlib import pyplot

    before, settings_before = pyplot.get_fignums(), dict(matplotlib.rcParams)
    drawn = draw(images, output)
    assert isinstance(drawn.canvas, FigureCanvasAgg)
    assert pyplot.get_fignums() == before
    assert dict(matplotlib.rcParams) == settings_before
