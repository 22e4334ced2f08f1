"""What is read from files, each with damage: a function that reads and uses one damaged input.

It raises :class:`~dynamicvit.InputError` or nothing; :data:`SUBJECTS` makes it for a folder.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from dataclasses import asdict
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

import timm
import torch
from PIL import Image
from torch import nn

from damage import ODD, as_json, damaged, damaged_bytes
from dynamicvit import DynamicViT, Schedule, ScheduleFile, load, sparsify
from dynamicvit.checkpoints.addon import ADDON_NAME, save_addon
from dynamicvit.checkpoints.dense import fill
from dynamicvit.checkpoints.description import described
from dynamicvit.checkpoints.saving import save_as_it_came
from dynamicvit.cli.info import _lines, _of_file, _of_model
from dynamicvit.core.networks import core_of
from dynamicvit.data import eval_transform
from dynamicvit.data.class_names import class_names, read_class_names
from dynamicvit.data.classes import read_class_map
from dynamicvit.runtimes.description import Description, describe
from dynamicvit.runtimes.exported import ExportedModel
from dynamicvit.training import load_recipe
from dynamicvit.training.recipes import dump_recipe, recipe_keys
from dynamicvit.tuning.judge import Notebook, Verdict
from dynamicvit.tuning.price import price_in_seconds
from dynamicvit.tuning.space import Space
from dynamicvit.utils.weights import open_weights

Subject = Callable[[Random], None]
PHOTO = Image.new("RGB", (40, 30), "gray")


@cache
def timm_model() -> DynamicViT:
    """A tiny DynamicViT of timm's."""
    small = {"depth": 2, "embed_dim": 16, "num_heads": 2, "img_size": 32, "num_classes": 3}
    made = core_of(
        sparsify(
            timm.create_model("vit_tiny_patch16_224", **small), 0.7, (0, 1), method="dynamicvit"
        )
    )
    assert isinstance(made, DynamicViT)
    return made.eval()


@cache
def transformers_model(sparse: bool = True) -> nn.Module:
    """A tiny classifier of transformers, within ours or alone."""
    from transformers import ViTConfig, ViTForImageClassification

    small = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 4}
    config = ViTConfig(
        **small, num_attention_heads=2, image_size=32, patch_size=16, id2label={0: "a", 1: "b"}
    )
    dense = ViTForImageClassification(config)
    return core_of(sparsify(dense, 0.7, (0, 1) if sparse else (), method="dynamicvit")).eval()


def use(model: Any, folder: Path, random: Random | None = None) -> None:
    """All that commands ask of a model, on one image; what takes longer, now and then."""
    transform = eval_transform(model)
    images = transform(PHOTO)[None]
    assert len(class_names(model)) == model.num_classes
    if isinstance(model, DynamicViT):
        describe(model)
        if random is None or not random.randrange(10):
            _lines(_of_model(model, folder, has_weights=True))
        model(images)
    else:
        _lines(_of_file(model))


def of_folder(place: Path, model: nn.Module, file: str, keys: tuple[str, ...] = ()) -> Subject:
    """A model's folder with damage in a file of JSON."""
    folder = place / "model"
    save_as_it_came(model, folder)
    original = (folder / file).read_bytes()
    tree = json.loads(original)

    def read(random: Random) -> None:
        if random.randrange(5):
            content = as_json(damaged(tree, random, keys)).encode()
        else:
            content = damaged_bytes(original, random)
        (folder / file).write_bytes(content)
        use(load(folder), folder, random)

    return read


def safetensors(path: Path) -> tuple[dict[str, Any], bytes]:
    """Header and tensors."""
    content = path.read_bytes()
    (size,) = struct.unpack("<Q", content[:8])
    return json.loads(content[8 : 8 + size]), content[8 + size :]


def of_header(place: Path, is_addon: bool) -> Subject:
    """A file of weights, or an add-on, with damage in its header or its metadata."""
    folder = place / "model"
    model = timm_model()
    model.save_pretrained(folder)
    path = folder / "model.safetensors"
    if is_addon:
        path = place / ADDON_NAME
        save_addon(model, path)
    header, data = safetensors(path)
    said = {key: json.loads(value) for key, value in header["__metadata__"].items()}

    def read(random: Random) -> None:
        act = random.randrange(5)
        if act < 2:
            words = damaged(said, random)
            words = words if isinstance(words, dict) else {"dynamicvit": words}
            kept = {k: v if isinstance(v, str) else as_json(v) for k, v in words.items()}
            changed = as_json({**header, "__metadata__": kept}).encode()
        elif act < 4:
            changed = as_json(damaged(header, random, ("dtype", "shape", "data_offsets"))).encode()
        else:
            changed = damaged_bytes(json.dumps(header).encode(), random)
        size = len(changed) if random.randrange(9) else random.choice([0, 7, 2**40, 2**64 - 1])
        path.write_bytes(struct.pack("<Q", size) + changed + data)
        if is_addon:
            use(load(folder, addon=path), folder, random)
            return
        described(open_weights(path))
        if not random.randrange(10):
            use(load(folder), folder, random)

    return read


UNUSUAL: tuple[Callable[[torch.Tensor], Any], ...] = (
    lambda t: t.to_sparse(),
    lambda t: t.to("meta"),
    lambda t: torch.quantize_per_tensor(t.float(), 0.1, 0, torch.qint8),
    lambda t: t.new_zeros(()).expand(t.shape),
    lambda t: t.new_zeros(()).expand(10**6, 10**6),
    lambda t: t.to(torch.complex64),
    lambda t: t.to(torch.float8_e4m3fn),
    lambda t: t.to(torch.int8),
    lambda t: t.bool(),
    lambda t: t.half(),
    lambda t: t.bfloat16(),
    lambda t: t.double(),
    lambda t: t * float("nan"),
    lambda t: t * float("-inf"),
    lambda t: t * 1e38 * 1e3,
    lambda t: t.tolist(),
    lambda t: t.numpy(),
    lambda t: None,
    lambda t: t[:0],
    lambda t: t[None],
    lambda t: t.T if t.ndim == 2 else t,
    lambda t: t.flatten(),
    lambda t: t.to_sparse_csr() if t.ndim == 2 else t.to_sparse(),
    lambda t: torch.nested.nested_tensor([t, t]),
    lambda t: torch.empty(10, dtype=torch.uint8).view(torch.uint8)[::2],
    lambda t: nn.Parameter(t),
    lambda t: t.conj() if t.is_complex() else t.to(torch.complex64).conj(),
    lambda t: torch.zeros(3, dtype=torch.uint16),
    lambda t: torch._make_per_tensor_quantized_tensor(t.to(torch.int8), 0.1, 0),
    lambda t: torch.empty(t.shape, dtype=torch.uint4),
    lambda t: torch.empty(t.shape, dtype=torch.bits8),
    lambda t: torch.empty(t.shape, dtype=torch.float4_e2m1fn_x2),
    lambda t: torch.zeros(t.shape, dtype=torch.uint32),
    lambda t: torch.zeros(t.shape, dtype=torch.float8_e8m0fnu),
)


def of_tensors(place: Path) -> Subject:
    """A checkpoint of ``torch.save`` with tensors of unusual kinds, or damaged bytes."""
    state = {k: v.detach() for k, v in timm_model().backbone.state_dict().items()}
    whole = {k: v.detach() for k, v in timm_model().state_dict().items()}
    folder = place / "model"
    timm_model().save_pretrained(folder)
    path = place / "w.pth"

    def read(random: Random) -> None:
        tensors: dict[Any, Any] = dict(random.choice([state, whole]))
        for _ in range(random.randint(0, 2)):
            name = random.choice(list(tensors))
            if isinstance(tensors[name], torch.Tensor):
                try:
                    tensors[name] = UNUSUAL[random.randrange(len(UNUSUAL))](tensors[name])
                except (RuntimeError, TypeError, NotImplementedError, AttributeError):
                    continue  # torch makes none
        if random.randrange(5) == 0:
            tensors[random.choice([0, None, ("a",), "x"])] = random.choice([1, None, torch.ones(1)])
        wrapped = random.choice(
            [tensors, {"model": tensors}, {"state_dict": tensors, "model_ema": {"a": 1}}]
        )
        if random.randrange(8) == 0:
            wrapped = {"model": tensors, "recipe": random.choice(ODD), "counters": {}}
        try:
            torch.save(wrapped, path)
        except (RuntimeError, NotImplementedError, TypeError, AttributeError, KeyError):
            return  # torch saves none
        if random.randrange(8) == 0:
            path.write_bytes(damaged_bytes(path.read_bytes(), random))
        small = {"depth": 2, "embed_dim": 16, "num_heads": 2, "img_size": 32}
        given = (
            load(folder, checkpoint=path)
            if "predictors.0.norm.weight" in str(list(tensors)) or random.randrange(2)
            else None
        )
        if given is None:
            weights = open_weights(path)
            network = timm.create_model("vit_tiny_patch16_224", **small, num_classes=3)
            fill(network, weights, "vit")
        else:
            use(given, folder)

    return read


def of_description(place: Path) -> Subject:
    """The metadata of an exported file."""
    original = describe(timm_model()).to_json()
    tree = json.loads(original)

    def read(random: Random) -> None:
        text = as_json(damaged(tree, random, tuple(asdict(describe(timm_model())))))
        if not random.randrange(5):
            text = damaged_bytes(original.encode(), random).decode("utf-8", "replace")
        description = Description.from_json(text, place / "m.onnx")
        rows = description.input_size
        model = ExportedModel(lambda images: [torch.zeros(len(images), 3)], description)
        use(model, place)
        assert len(rows) == 3

    return read


def of_names(place: Path) -> Subject:
    """Files of class names, class maps, and indices of weights."""
    names = "cat\ndog\nbird\n"
    index = {"weight_map": {"a": "x.safetensors", "b": "y.safetensors"}, "metadata": {"size": 1}}
    suffixes = (".txt", ".json", ".pkl", ".csv", "")

    def read(random: Random) -> None:
        kind = random.randrange(3)
        if kind == 0:
            path = place / "names.txt"
            path.write_bytes(damaged_bytes(names.encode(), random))
            read_class_names(path)
        elif kind == 1:
            path = place / f"map{random.choice(suffixes)}"
            path.write_bytes(
                random.choice(
                    [
                        damaged_bytes(names.encode(), random),
                        as_json(ODD[random.randrange(len(ODD))]).encode(),
                    ]
                )
            )
            read_class_map(str(path))
        else:
            path = place / "model.safetensors.index.json"
            path.write_bytes(
                as_json(damaged(index, random)).encode()
                if random.randrange(3)
                else damaged_bytes(json.dumps(index).encode(), random)
            )
            open_weights(path)

    return read


def of_schedule(place: Path) -> Subject:
    """A file of a schedule."""
    path = place / "schedule.json"
    ScheduleFile(Schedule((0, 1), (0.7, 0.3), "merged"), 2, "tome", 4, {"kl": 0.1}).save(path)
    original = path.read_bytes()
    tree = json.loads(original)

    def read(random: Random) -> None:
        whole = random.randrange(5)
        changed = as_json(damaged(tree, random)).encode() if whole else None
        path.write_bytes(changed or damaged_bytes(original, random))
        sparsify(timm_model().backbone, schedule=path, method="dynamicvit")

    return read


def of_record(place: Path) -> Subject:
    """A record of a search for a schedule."""
    path = place / "tried.json"
    times = {
        "parts": {"fixed": 0.1, "curves": {"a": {"1": 0.1}}, "blocks": ["a"], "stage": "a"},
        "whole": {"dense": 0.2, "pruned": 0.1},
    }
    made = Notebook(path, {"seed": 0})
    made.verdicts, made.times = {"search 3,2": [0.1, 0.9]}, times
    made.save()
    original = path.read_bytes()
    tree = json.loads(original)

    def read(random: Random) -> None:
        whole = random.randrange(5)
        changed = as_json(damaged(tree, random)).encode() if whole else None
        path.write_bytes(changed or damaged_bytes(original, random))
        found = Notebook(path, {"seed": 0})
        assert all(Verdict(*each).kl >= 0 for each in found.verdicts.values())
        if "parts" in found.times:
            space = Space((1,), 3, "removed", movable=True, halves=False)
            price_in_seconds(space, found.times["parts"])((2,))

    return read


YAML_WORDS = (
    *("2024-01-01", "2024-01-01 10:00:00", "12:30:45", "0x1F", "0o17", "1_000", "1e3", "1.5e300"),
    *(".nan", ".inf", "-.inf", "~", "null", "yes", "no", "on", "!!binary aGk=", "!!python/none"),
    *("!!python/object/apply:os.system [ls]", "!!set {a, b}", "!!omap [a: 1]", "!!int x"),
    *("!!float y", "!!timestamp z", "!!timestamp 2024-99-99", "!!binary '%'", "!foo bar", "<<: 1"),
    *(
        "*a",
        "&a [*a]",
        "&a {b: *a}",
        "[" * 1200,
        "[" * 1200 + "]" * 1200,
        "{a: " * 2000,
        "- " * 3000,
    ),
    *(
        "9" * 30,
        "9" * 5000,
        "-9" * 9,
        "0x" + "f" * 5000,
        "1e400",
        "-1e400",
        "1e-400",
        "? a",
        "? [a]: b",
    ),
    *(
        "{[a]: 1}",
        "{? {a: 1} : 2}",
        "{1: 2}",
        "{null: 1}",
        "{a: 1, a: 2}",
        "'",
        '"\\x',
        "%YAML 9.9",
    ),
    *(
        "---\na: 1\n---\nb: 2",
        "\t",
        "\x00",
        "\ud83d",
        "@",
        "`",
        "|",
        ">",
        "a: b: c",
        "0.5",
        "[0.5, 0.5]",
    ),
    *(
        "[1, 2, 3]",
        "-1",
        "0",
        "1",
        "true",
        "merged",
        "x" * 5000,
        "[0.1, -5]",
        "[nan, nan]",
        "[.nan, .nan]",
    ),
    *(
        "2024-13-45",
        "0001-01-01",
        "99999-01-01",
        "190:20:30",
        "685_230.15",
        "0b1",
        "[.inf, 1]",
        "1e18",
    ),
    "&a [x, x]\n"
    + "".join(
        f"{chr(98 + level)}: &{chr(98 + level)} [{', '.join([f'*{chr(97 + level)}'] * 9)}]\n"
        for level in range(9)
    ),  # a billion laughs
)


def of_recipe(place: Path) -> Subject:
    """Recipe files and overrides."""
    original = dump_recipe(load_recipe("small_data"))
    lines = original.splitlines()
    keys = recipe_keys()
    path = place / "r.yaml"
    odd_keys = (
        "base",
        "version",
        "",
        "losses",
        "augment",
        "teacher",
        "dense",
        ".",
        "a.b",
        "losses.",
        ".x",
        "losses.token.x",
        "[a]",
        "0",
        "é",
        "dropped",
        "leave",
        "share_stem",
    )

    def word(random: Random) -> str:
        odd = random.choice(ODD)
        return random.choice([random.choice(YAML_WORDS), as_json(odd)])

    def read(random: Random) -> None:
        act = random.randrange(6)
        overrides = []
        if act == 0:
            path.write_bytes(damaged_bytes(original.encode(), random))
        elif act == 1:
            changed = list(lines)
            for _ in range(random.randint(1, 3)):
                place = random.randrange(len(changed))
                before = changed[place].partition(":")[0]
                changed[place] = f"{before}: {word(random)}"
            path.write_text("\n".join(changed), "utf-8", "replace")
        elif act == 2:
            key = random.choice([*keys, *odd_keys])
            base = random.choice(
                [
                    "small_data",
                    "r.yaml",
                    str(path),
                    "none.yaml",
                    "/dev/zero",
                    "x" * 300,
                    "..",
                    word(random),
                    "a/../r.yaml",
                    "\0",
                ]
            )
            path.write_text(
                f"base: {base}\n{key.partition('.')[0]}: {word(random)}\n", "utf-8", "replace"
            )
        else:
            path.write_text("base: small_data\n")
            for _ in range(random.randint(1, 2)):
                key = random.choice([*keys, *keys, *odd_keys])
                overrides.append(
                    f"{key}{random.choice(['=', '=', '=', '=', '', '=='])}{word(random)}"
                )
        recipe = load_recipe(
            str(path) if random.randrange(3) or act < 3 else "small_data", overrides
        )
        again = dump_recipe(recipe)
        (path.with_name("again.yaml")).write_text(again)
        assert load_recipe(str(path.with_name("again.yaml"))) == recipe, (overrides, again)

    return read


SUBJECTS: dict[str, Callable[[Path], Subject]] = {
    "schedule": of_schedule,
    "record": of_record,
    "timm config": lambda place: of_folder(
        place,
        timm_model(),
        "config.json",
        ("depth", "img_size", "mean", "std", "crop_pct", "interpolation", "label_names", "method"),
    ),
    "transformers config": lambda place: of_folder(
        place,
        transformers_model(),
        "config.json",
        ("model_type", "auto_map", "quantization_config", "dtype"),
    ),
    "dense transformers config": lambda place: of_folder(
        place,
        transformers_model(False),
        "config.json",
        ("model_type", "auto_map", "id2label", "quantization_config", "torch_dtype"),
    ),
    "processor": lambda place: of_folder(
        place,
        transformers_model(),
        "preprocessor_config.json",
        ("image_processor_type", "auto_map", "crop_size", "size_divisor"),
    ),
    "header": lambda place: of_header(place, is_addon=False),
    "addon": lambda place: of_header(place, is_addon=True),
    "tensors": of_tensors,
    "description": of_description,
    "names": of_names,
    "recipe": of_recipe,
}
