"""The catalog of backbones: right numbers, and the page in docs as fresh as they are."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import timm
import torch

from dynamicvit import InputError
from dynamicvit.checkpoints.released import RELEASES
from dynamicvit.checkpoints.timm_names import BACKBONES, PREFIX
from dynamicvit.costs import count_macs
from dynamicvit.evaluation.catalog import COMMAND, KEEP_RATIOS, Entry, check_page, entry_for, page

PAGE = Path(__file__).resolve().parents[1] / "docs" / "backbones.md"


@pytest.fixture(scope="module")
def entries() -> dict[str, Entry]:
    return {backbone: entry_for(backbone) for backbone in BACKBONES}


@pytest.fixture(scope="module")
def fresh(entries: dict[str, Entry]) -> str:
    return page([*entries.values()])


def test_the_page_in_docs_is_fresh(fresh: str) -> None:
    check_page(PAGE, fresh)


@pytest.mark.parametrize("backbone", ["deit_small_patch16_384", "lvvit_t", "vit_huge_patch14_224"])
def test_numbers_are_those_of_the_model(entries: dict[str, Entry], backbone: str) -> None:
    """Counted on a whole run at one ρ; the catalog adds up parts."""
    entry = entries[backbone]
    assert tuple(at.keep_ratio for at in entry.ratios) == KEEP_RATIOS
    with torch.device("meta"):
        model = timm.create_model(
            f"{PREFIX}{backbone}", keep_ratio=KEEP_RATIOS[-1], policy="removed"
        )
    assert entry.ratios[-1].macs == count_macs(model)
    assert entry.dense_macs == count_macs(model.backbone)
    assert entry.ratios[-1].kept == model.schedule.kept(entry.num_patches)
    assert entry.stages == model.schedule.stages
    sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
    assert entry.parameters == sum(sizes.values())
    inside = (size for name, size in sizes.items() if name.startswith("predictors."))
    assert entry.predictor_parameters == sum(inside)


def section(text: str, backbone: str) -> str:
    return text.partition(f"\n## {PREFIX}{backbone}\n")[2].partition("\n## ")[0]


def test_every_registered_model_stands_on_the_page_once(fresh: str) -> None:
    sections = re.findall(rf"^## ({PREFIX}\w+)$", fresh, flags=re.MULTILINE)
    assert sorted(sections) == sorted(timm.list_models(f"{PREFIX}*"))
    links = re.findall(r"^\| \[\w+\]\(#(\w+)\)", fresh, flags=re.MULTILINE)
    assert links == sections


def test_every_released_checkpoint_stands_on_the_page_at_its_ratio(fresh: str) -> None:
    for name, release in RELEASES.items():
        [line] = re.findall(rf"^.*`{re.escape(name)}`.*$", fresh, flags=re.MULTILINE)
        assert line in section(fresh, release.architecture.model)
        assert line.startswith(f"| {release.keep_ratio} |")
        assert f"{release.top1:.2f} %" in line


@pytest.mark.parametrize(
    ("backbone", "row", "giga"),
    [
        ("deit_small_patch16_224", "dense", 4.60),
        ("deit_small_patch16_224", "0.7", 2.965),
        ("deit_small_patch16_384", "0.5", 7.15),
        ("lvvit_s", "dense", 6.55),
        ("lvvit_s", "0.9", 5.857),
        ("lvvit_m", "0.7", 8.565),
    ],
)
def test_known_figures_stand_on_the_page(fresh: str, backbone: str, row: str, giga: float) -> None:
    """Of the paper's networks, prediction modules counted."""
    [found] = re.findall(rf"^\| {row} \| ([\d.]+) \|", section(fresh, backbone), re.MULTILINE)
    assert float(found) == pytest.approx(giga, rel=0.005)


def test_a_page_that_is_not_fresh(fresh: str, tmp_path: Path) -> None:
    other = tmp_path / "page.md"
    for text in (fresh.replace("0.7", "0.6"), fresh[:99], f"{fresh}more\n"):
        other.write_text(text, encoding="utf-8")
        with pytest.raises(InputError, match=COMMAND):
            check_page(other, fresh)
    with pytest.raises(InputError, match=r"absent\.md"):
        check_page(tmp_path / "absent.md", fresh)


# ---------------------------------------------------------------- as it is typed


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch, entries: dict[str, Entry]) -> str:
    """One model, measured already, or each call would take seconds."""
    monkeypatch.setattr("dynamicvit.cli.backbones.BACKBONES", BACKBONES[:1])
    monkeypatch.setattr("dynamicvit.cli.backbones.entry_for", entries.__getitem__)
    return page([entries[BACKBONES[0]]])


def test_the_command_that_the_page_names(
    command: Callable[..., int],
    quick: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert command("backbones") == 0
    assert capsys.readouterr().out == quick

    program, *words = COMMAND.split()
    assert program == "dynamicvit"
    monkeypatch.chdir(tmp_path)
    (tmp_path / "docs").mkdir()
    assert command(*words) == 0
    [written] = tmp_path.glob("**/*.md")
    assert written.read_text(encoding="utf-8") == quick
    assert command("backbones", "--check", written) == 0
    written.write_text("old")
    assert command("backbones", "--check", written) == 2
    assert written.read_text() == "old"
    assert command("backbones", "--check", written, "-o", written) == 2
