"""`dynamicvit info`: what a model is: backbone, classes, schedule, cost, training, input."""

from __future__ import annotations

import json
from math import prod
from pathlib import Path
from typing import Any

from huggingface_hub.constants import CONFIG_NAME
from rich.console import Console
from timm.data import resolve_model_data_config

from dynamicvit.checkpoints.loading import load
from dynamicvit.cli.console import check_json, percents, say, write_json
from dynamicvit.cli.inference import refuse_fixed
from dynamicvit.cli.options import (
    AddOn,
    Checkpoint,
    Frames,
    JsonFile,
    ModelArgument,
    ModelOrFile,
    Released,
    Tubelet,
    chosen_model,
    one_name,
)
from dynamicvit.core.classifier import PrunedClassifier
from dynamicvit.core.model import DynamicViT
from dynamicvit.core.networks import backbone_name
from dynamicvit.core.registry import fate
from dynamicvit.core.schedule import Schedule
from dynamicvit.core.teacher import has_fresh_classifier
from dynamicvit.costs import DENSE, resolve_image_size, schedule_macs
from dynamicvit.data.class_names import known_class_names, short_name
from dynamicvit.runtimes import ExportedModel, is_exported, load_exported
from dynamicvit.utils.inputs import read_text
from dynamicvit.utils.words import MEASURES, percent

#: Class names that are printed; all are in the JSON.
_LISTED = 10


def info(
    model_argument: ModelArgument = None,
    model_name: ModelOrFile = None,
    released: Released = None,
    checkpoint: Checkpoint = None,
    addon: AddOn = None,
    frames: Frames = None,
    tubelet: Tubelet = None,
    json_file: JsonFile = None,
) -> None:
    """Say what MODEL is: backbone, classes, schedule, MACs, training, preprocessing.

    Example: dynamicvit info runs/flowers
    """
    check_json(json_file)
    model_name = chosen_model(one_name(model_argument, model_name), released)
    path = Path(model_name)
    if path.is_file() and (path.parent / CONFIG_NAME).is_file():  # the config says what it is
        path = path.parent
    if is_exported(model_name):
        given = {"--checkpoint": checkpoint, "--addon": addon}
        refuse_fixed(model_name, {**given, "--frames": frames, "--tubelet": tubelet})
        about = _of_file(load_exported(path))
    else:
        name = path if path.exists() else model_name
        has_weights = path.exists() or checkpoint is not None or addon is not None
        model = load(
            name,
            checkpoint=checkpoint,
            addon=addon,
            pretrained=addon is not None,
            frames=frames,
            tubelet=tubelet,
        )
        about = _of_model(model, path, has_weights)
    console = Console(stderr=json_file == "-")
    say(console, model_name)
    for title, line in _lines(about):
        say(console, f"  {title:<14}{line}")
    write_json(json_file, {"model": model_name, **about})


def _of_file(model: ExportedModel) -> dict[str, Any]:
    """What an exported file says of itself."""
    about = model.description
    return {
        "backbone": about.model,
        "made_by": f"dynamicvit {about.version} export, {about.precision}",
        **_classes(model),
        **_schedule(about.schedule, about.kept, about.grid),
        "method": about.method if about.stages else None,
        **_input(model, about.input_shape),
        "batch": about.batch or "any",
    }


def _of_model(model: DynamicViT, path: Path, has_weights: bool) -> dict[str, Any]:
    """What a model is, and what its folder tells of its training."""
    height, width = resolve_image_size(model)
    grid = model.bound.grid(height, width)
    patches = prod(grid)
    fresh = [method.is_fresh for method in model.predictors]
    return {
        "backbone": backbone_name(model.backbone),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        **_classes(model),
        **_schedule(model.schedule, model.schedule.kept(patches), grid),
        "method": model.method.name if model.schedule.stages else None,
        "macs": schedule_macs(model, model.schedule),
        "dense_macs": schedule_macs(model, DENSE),
        "untrained": [
            part
            for part, is_fresh in (
                ("prediction modules", any(fresh)),
                ("classifier", has_fresh_classifier(model)),
            )
            if is_fresh and has_weights
        ],
        "training": _training(path),
        **_input(model, model.bound.input_shape((height, width))),
    }


def _classes(model: PrunedClassifier) -> dict[str, Any]:
    names = known_class_names(model)
    return {"num_classes": model.num_classes, "class_names": names}


def _schedule(schedule: Schedule, kept: Any, grid: tuple[int, ...]) -> dict[str, Any]:
    return {
        "patches": prod(grid),
        "stages": list(schedule.stages),
        "kept": list(kept),
        "keep_ratios": list(schedule.keep_ratios),
        "policy": schedule.policy if schedule.stages else None,
        "restore_before": schedule.restore_before,
    }


def _input(model: Any, size: tuple[int, ...]) -> dict[str, Any]:
    config = resolve_model_data_config(model)
    keys = ("mean", "std", "interpolation", "crop_pct", "crop_mode")
    return {"input_size": list(size), **{key: config[key] for key in keys}}


def _training(folder: Path) -> dict[str, Any] | None:
    """The report of the run that made a folder; ``None`` without one that can be read."""
    try:
        report = json.loads(read_text(folder / "report.json"))
        training, self_taught = report["training"], bool(report["keep_ratios"])
        least, greatest = report.get("budgets") or (None, None)
        return {
            "images": int(training["images"]),
            "steps": int(training["steps"]),
            "budgets": None if least is None else [float(least), float(greatest)],
            "held_out_top1": _measured(report.get("held_out"), "top1"),
            "dense_held_out_top1": _measured(report.get("dense_held_out"), "top1"),
            "held_out_miou": _measured(report.get("held_out"), "miou"),
            "dense_held_out_miou": _measured(report.get("dense_held_out"), "miou"),
            "teacher": str(
                report["teacher"]["model"] or ("the dense model" if self_taught else "labels")
            ),
        }
    except Exception:  # of a file that may say anything
        return None


def _measured(held_out: dict[str, Any] | None, measure: str) -> float | None:
    found = (held_out or {}).get(measure)
    return None if found is None else float(found)


def _lines(about: dict[str, Any]) -> list[tuple[str, str]]:
    """Title and text of each line."""
    names, macs = about["class_names"], about.get("macs")
    lines = [("backbone", str(about["backbone"]))]
    if "parameters" in about:
        lines[0] = "backbone", f"{about['backbone']}, {about['parameters'] / 1e6:.1f} M parameters"
    if "made_by" in about:
        lines.append(("written by", about["made_by"]))
    listed = "without names"
    if names is not None:
        more = ["..."] if len(names) > _LISTED else []
        listed = ", ".join([*map(short_name, names[:_LISTED]), *more])
    lines.append(("classes", f"{about['num_classes']:,}: {listed}"))
    if about["stages"]:
        kept = ", ".join(map(str, about["kept"]))
        stages = ", ".join(map(str, about["stages"]))
        of = f"of {about['patches']} patches ({percents(about['keep_ratios'])})"
        lines.append(("schedule", f"{kept} {of} from blocks {stages} on"))
        dropped = fate(about["method"], about["policy"])
        back = about["restore_before"]
        again = "" if back is None else f"; from block {back} on all patches are there"
        lines.append(("policy", f"the others {dropped}{again}"))
    else:
        lines.append(("schedule", f"all {about['patches']} patches kept: no stages"))
    if about.get("method"):
        lines.append(("method", about["method"]))
    if macs is not None:
        dense = about["dense_macs"]
        digits = 2 if dense >= 1e8 else 4
        share = f", {percent(macs / dense, 0)} of the dense {dense / 1e9:.{digits}f}"
        lines.append(("GMACs", f"{macs / 1e9:.{digits}f}{share if about['stages'] else ''}"))
    lines += [("untrained", part) for part in about.get("untrained", ())]
    lines += [("training", line) for line in _trained(about.get("training"))]
    *clip, channels, height, width = about["input_size"]
    frames = f"{clip[0]} frames of " if clip else ""
    crop = f"crop {about['crop_pct']:.3g} ({about['crop_mode']})"
    size = f"{frames}{channels}x{height}x{width}"
    lines.append(("input", f"{size}, {about['interpolation']}, {crop}"))
    spread = [" ".join(f"{value:.3g}" for value in about[key]) for key in ("mean", "std")]
    lines.append(("normalized", f"mean {spread[0]}, std {spread[1]}"))
    if "batch" in about:
        lines.append(("batch", f"{about['batch']} images"))
    return lines


def _trained(training: dict[str, Any] | None) -> list[str]:
    if training is None:
        return []
    lines = [f"{training['images']:,} images in {training['steps']:,} steps, taught by "]
    lines[0] += training["teacher"]
    if training["budgets"]:
        lines[0] += ", at keep ratios from {:g} to {:g}".format(*training["budgets"])
    for measure in ("top1", "miou"):
        share, dense = training[f"held_out_{measure}"], training[f"dense_held_out_{measure}"]
        if share is not None:
            beside = "" if dense is None else f", dense {percent(dense, 2)}"
            lines.append(f"held-out {MEASURES[measure]} {percent(share, 2)}{beside}")
    return lines
