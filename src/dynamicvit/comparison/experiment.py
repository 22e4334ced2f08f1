"""One comparison: which rows it has, and how each is made, or found where it has been made."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import ConcatDataset

from dynamicvit._version import __version__
from dynamicvit.checkpoints.runs import holds_run
from dynamicvit.comparison.cache import FORMAT, Cache, identity
from dynamicvit.comparison.lines import Row
from dynamicvit.comparison.measuring import clips_of, measure, passes
from dynamicvit.comparison.remembered import Remembered
from dynamicvit.comparison.rows import Candidate, Entry
from dynamicvit.comparison.timing import Timing, time_method
from dynamicvit.core.model import DynamicViT
from dynamicvit.core.networks import DenseNetwork
from dynamicvit.costs import DENSE, count_macs, schedule_macs
from dynamicvit.data import ImageData, Loader, images_digest
from dynamicvit.errors import InputError
from dynamicvit.evaluation.bench import processor_name
from dynamicvit.training import ExternalTeacher, Progress, Recipe, fit, load_recipe
from dynamicvit.training.tasks import task_of
from dynamicvit.utils.precision import autocast_dtype
from dynamicvit.utils.tensors import fingerprint


@dataclass
class Experiment:
    """A model, images, and a recipe; rows and timings come from it one by one.

    Attributes:
        backbone: the dense network, or dense segmentation model; never changed.
        evaluated: images to evaluate on, their labels in the network's classes.
        trained: images to fine-tune on; empty for a comparison without training.
        recipe: name or file of the recipe.
        overrides: of its values, as ``key=value``; a candidate's own come last.
        output: folder of rows, timings and runs.
        precision: ``"fp32"`` or ``"bf16"``.
        device: where.
        batch_size: of evaluation; of videos a quarter.
        workers: processes that read images.
        crop_pct: of evaluation; the model's own by default.
        threads: CPU threads of the timings.
        seconds: of each timing.
    """

    backbone: nn.Module
    evaluated: ImageData
    trained: Sequence[ImageData]
    recipe: str
    overrides: Sequence[str]
    output: Path
    precision: str = "fp32"
    device: str = "cpu"
    batch_size: int = 32
    workers: int = 1
    crop_pct: float | None = None
    threads: int = field(default_factory=torch.get_num_threads)
    seconds: float = 10.0
    _dense: Remembered | None = field(default=None, init=False, repr=False)
    _saved: dict[str, str] = field(default_factory=dict, init=False, repr=False)

    # ---------------------------------------------------------------- what there is to do

    def entries(
        self, candidates: Sequence[Candidate], fractions: Sequence[float], seeds: int
    ) -> list[Entry]:
        """The rows: dense, untrained where that means anything, and fine-tuned.

        A model that was trained before has one row, at its own budget.
        """
        found = [Entry(None, 1.0, None)]
        for candidate in candidates:
            if candidate.saved is not None:
                share = count_macs(candidate.build(self.backbone, 1.0)) / self._dense_macs
                found.append(Entry(candidate, round(share, 4), None))
        methods = [candidate for candidate in candidates if candidate.saved is None]
        for fraction in fractions:
            for candidate in methods:
                if candidate.works_untrained:
                    found.append(Entry(candidate, fraction, None))
                if self.trained:
                    found += [Entry(candidate, fraction, seed) for seed in range(seeds)]
        return found

    def recipe_of(self, candidate: Candidate, seed: int) -> Recipe:
        """The recipe as it is run for a candidate.

        Raises:
            InputError: for values that don't go together.
        """
        return load_recipe(self.recipe, [*self.overrides, f"seed={seed}", *candidate.overrides])

    def check(self, candidate: Candidate) -> None:
        """Find out before anything is run whether a candidate can be fine-tuned here.

        Raises:
            InputError: for a recipe that does not go with the candidate or the images.
        """
        recipe = self.recipe_of(candidate, 0)
        if recipe.losses.classification and not all(images.labeled for images in self.trained):
            raise InputError(
                "some images have no labels, which the classification loss needs: "
                "--set losses.classification=0"
            )
        self._loader(recipe)

    # ---------------------------------------------------------------- rows

    def row(self, entry: Entry, on_step: Callable[[Progress], None] | None = None) -> Row:
        """A row, computed unless it has been: trained and evaluated.

        A run that was interrupted goes on where it was.
        """
        key = self.key(entry)
        known = self.rows.get(key)
        if known is not None:
            return Row(**known)
        torch.manual_seed(entry.seed or 0)
        model, images = self.model(entry), 0
        folder = self.output / "runs" / f"{entry.name}-{identity(key)}"
        if entry.candidate is not None and entry.seed is not None:
            images = self._train(model, entry.candidate, entry.seed, folder, on_step)
        row = self._evaluate(model, entry, images)
        self.rows.put(key, asdict(row))
        for checkpoint in folder.glob("checkpoint*"):  # done: nothing to go on with
            checkpoint.unlink()
        return row

    def known_rows(self) -> list[Row]:
        """Every row of this model, data, recipe and version that the folder has."""
        trained = [] if self.training is None else [self.training]
        return [
            Row(**value)
            for training in (None, *trained)
            for value in self.rows.values(base=self.base, training=training)
            if self._is_current(value)
        ]

    def model(self, entry: Entry) -> DynamicViT:
        """The model of a row, fresh."""
        if entry.candidate is None:
            return self._dense_model()
        return entry.candidate.build(self._copy(), entry.fraction).eval()

    def key(self, entry: Entry) -> dict[str, Any]:
        """All that a row hangs on."""
        candidate, seed = entry.candidate, entry.seed
        recipe = None if candidate is None or seed is None else self.recipe_of(candidate, seed)
        return {
            "base": self.base,
            "training": None if recipe is None else self.training,
            "method": entry.name,
            "fraction": entry.fraction,
            "recipe": None if recipe is None else recipe.model_dump(mode="json"),
            "seed": seed,
            **self._given(candidate),
        }

    @property
    def rows(self) -> Cache:
        """Where rows are kept."""
        return Cache(self.output / "rows")

    @cached_property
    def base(self) -> str:
        """What all rows of this comparison have in common."""
        return identity(
            {
                "weights": self._weights,
                "evaluated": images_digest([self.evaluated]) + clips_of(self.evaluated),
                "precision": self.precision,
                "crop_pct": self.crop_pct,
                "version": [__version__, FORMAT],
            }
        )

    @cached_property
    def training(self) -> str | None:
        """What all its fine-tuned rows have in common besides."""
        if not self.trained:
            return None
        recipe = load_recipe(self.recipe, list(self.overrides)).model_dump(mode="json")
        return identity({"recipe": recipe, "images": images_digest(self.trained)})

    def _given(self, candidate: Candidate | None) -> dict[str, str]:
        """What tells a model that was trained before from another of its name."""
        if candidate is None or candidate.saved is None:
            return {}
        if candidate.saved not in self._saved:
            built = candidate.build(self.backbone, 1.0)
            self._saved[candidate.saved] = fingerprint(built.state_dict())
        return {"given": self._saved[candidate.saved]}

    def _is_current(self, value: Mapping[str, Any]) -> bool:
        """Whether a kept value is not of older weights of a trained model."""
        given = value.get("given", "")
        return given in ("", self._saved.get(value["method"], given))

    @cached_property
    def _weights(self) -> str:
        return fingerprint(self.backbone.state_dict())

    @cached_property
    def _dense_macs(self) -> int:
        return schedule_macs(self.backbone, DENSE)

    def _train(
        self,
        model: DynamicViT,
        candidate: Candidate,
        seed: int,
        folder: Path,
        on_step: Callable[[Progress], None] | None,
    ) -> int:
        """Fine-tune in place; images seen."""
        recipe = self.recipe_of(candidate, seed)
        report = fit(
            model,
            self._loader(recipe),
            recipe,
            folder,
            resume=holds_run(folder),
            device=self.device,
            precision=self._autocast,
            # A sliced network is not its own dense self.
            teacher=ExternalTeacher(self._copy(), model) if recipe.asks_external_teacher else None,
            on_step=on_step,
        )
        if not candidate.is_network:  # whose name is that of another network
            with suppress(InputError):  # of a backbone that can't be described
                model.save_pretrained(folder)
        return report.images

    def _copy(self) -> nn.Module:
        return copy.deepcopy(self.backbone)

    def _dense_model(self) -> DynamicViT:
        """A copy that drops nothing."""
        dense = self._copy()
        return (dense if isinstance(dense, DynamicViT) else DynamicViT(dense, DENSE, [])).eval()

    def _loader(self, recipe: Recipe) -> Loader:
        task, model = task_of(recipe), self._dense_model()
        sources = [task.for_training(source, model, recipe) for source in self.trained]
        return Loader(
            ConcatDataset(sources),
            recipe.batch_size,
            shuffle=True,
            seed=recipe.seed,
            num_workers=self.workers,
            drop_last=True,
        )

    def _evaluate(self, model: DynamicViT, entry: Entry, images: int) -> Row:
        if self._dense is None:
            self._dense = Remembered(DenseNetwork(self._dense_model()))
            if entry.is_given:  # which may want other pixels than the dense network
                first = Entry(None, 1.0, None)
                self._evaluate(self.model(first), first, 0)
        torch.manual_seed(entry.seed or 0)  # chance, too, is to be had again
        result = measure(
            model,
            self.evaluated,
            self._dense,
            batch_size=self.batch_size,
            workers=self.workers,
            crop_pct=self.crop_pct,
            device=self.device,
            amp_dtype=self._autocast,
        )
        macs = count_macs(model)
        return Row(
            method=entry.name,
            fraction=entry.fraction,
            macs_fraction=macs / self._dense_macs,
            gmacs=macs / 1e9 * passes(self.evaluated),
            seed=entry.seed,
            images=images,
            **result._asdict(),
            given=self._given(entry.candidate).get("given", ""),
        )

    @property
    def _autocast(self) -> torch.dtype | None:
        return autocast_dtype(self.precision)

    # ---------------------------------------------------------------- timings

    def timing(self, candidate: Candidate, fraction: float) -> list[Timing]:
        """How fast a candidate is on this machine, measured unless it has been; trained or not.

        One for each of :data:`~dynamicvit.comparison.timing.BATCH_SIZES`.
        """
        key = {**self._machine, "method": candidate.name, "fraction": fraction}
        key |= self._given(candidate)
        known = self.timings.get(key)
        if known is None:
            model = self.model(Entry(candidate, fraction, None)).to(self.device)
            model.warns_untrained = False  # it takes as long as a trained one
            dense = DenseNetwork(self._dense_model())
            measured = time_method(
                model,
                dense.to(self.device),
                precision=self.precision,
                threads=self.threads,
                seconds=self.seconds,
            )
            rows = [asdict(timing) for timing in measured]
            known = {"method": candidate.name, "fraction": fraction, "timings": rows}
            known |= self._given(candidate)
            self.timings.put(key, known)
        return [Timing(**timing) for timing in known["timings"]]

    def known_timings(self) -> dict[tuple[str, float], list[Timing]]:
        """Every timing of this network on this machine in the folder, by name and fraction."""
        return {
            (value["method"], value["fraction"]): [Timing(**timing) for timing in value["timings"]]
            for value in self.timings.values(**self._machine)
            if self._is_current(value)
        }

    @property
    def timings(self) -> Cache:
        """Where timings are kept."""
        return Cache(self.output / "timings")

    @cached_property
    def _machine(self) -> dict[str, Any]:
        """All that timings hang on, besides the candidate."""
        processor = torch.cuda.get_device_name() if self.device == "cuda" else processor_name()
        return {
            "weights": self._weights,
            "precision": self.precision,
            "threads": self.threads,
            "seconds": self.seconds,
            "processor": processor,
            "torch": torch.__version__,
            "version": [__version__, FORMAT],
        }
