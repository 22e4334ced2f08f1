"""A vision transformer that segments: a head reads the full map, in which every patch is back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dynamicvit.backbones import Backbone, backbone_for
from dynamicvit.core.decisions import Sampler, gumbel_sampler
from dynamicvit.core.method import Masking, Method
from dynamicvit.core.model import DynamicViT
from dynamicvit.core.outputs import DenseOutput, MaskedOutput, PrunedOutput
from dynamicvit.core.parts import in_order, only_part
from dynamicvit.core.prediction import PredictionModule
from dynamicvit.core.schedule import Schedule
from dynamicvit.errors import InputError
from dynamicvit.heads import head_named
from dynamicvit.layers.attention import through_backbone
from dynamicvit.layers.tokens import Tokens


@dataclass(frozen=True)
class Labels:
    """How masks name the classes.

    Attributes:
        class_names: in class order; ``None`` if nobody knows.
        ignore_index: of pixels without a class.
        reduce_labels: masks count classes from 1, and 0 is no class, as in ADE20K.
    """

    class_names: tuple[str, ...] | None = None
    ignore_index: int = 255
    reduce_labels: bool = False


class Segmenter(DynamicViT, pipeline_tag="image-segmentation"):
    """A :class:`~dynamicvit.DynamicViT` whose answer is a map: logits for every patch.

    Dropped patches are back in their places before the head
    (:meth:`~dynamicvit.layers.tokens.Tokens.full_map`). :func:`~dynamicvit.segmenter` makes one.

    Args:
        backbone: as for ``DynamicViT``; its own classifier is not asked.
        schedule: likewise; without stages the model is dense.
        predictors: likewise.
        head: name of the head, of :data:`~dynamicvit.heads.HEADS`; or the head itself.
        num_classes: of a fresh head.

    Attributes:
        decode_head: from ``(B, rows, columns, C)`` to ``(B, classes, rows, columns)``.
        labels: how masks name the classes.

    Raises:
        InputError: for a head that there is none of.
    """

    task = "segmentation"

    def __init__(
        self,
        backbone: nn.Module | Backbone,
        schedule: Schedule,
        predictors: Sequence[Method] | type[Method] = PredictionModule,
        *,
        head: str | nn.Module = "linear",
        num_classes: int = 0,
    ) -> None:
        super().__init__(backbone, schedule, predictors)
        if isinstance(head, str):
            like = next(self.backbone.parameters())
            head = head_named(head, self._map_width, num_classes).to(like.device, like.dtype)
        self.decode_head: Any = head
        self.labels = Labels()

    # ---------------------------------------------------------------- the way of the tokens

    @through_backbone
    def forward(self, images: Tensor) -> Tensor | MaskedOutput:
        """Logits ``(B, classes, rows, columns)`` in ``eval()``, a ``MaskedOutput`` in ``train()``.

        Rows and columns are those of the patches; :func:`post_process_semantic_segmentation` gives
        maps of any size.

        Args:
            images: ``(B, channels, height, width)``, normalized as the backbone wants it.
        """
        if self.training:
            return self.forward_masked(images)
        parts = self._walk(self._first(images, True), self._prune, self._depth)
        return self.decode_head(
            in_order(parts, [self.bound.finish(part).full_map() for part in parts])
        )

    def forward_masked(
        self,
        images: Tensor | Tokens,
        decisions: Sequence[Tensor] | None = None,
        *,
        sampler: Sampler = gumbel_sampler,
        masking: Masking = "full",
        full_map: bool = True,
    ) -> MaskedOutput:
        """The masked path, as ``DynamicViT`` has it; ``pooled`` is what the head reads."""
        del full_map
        output = super().forward_masked(
            images, decisions, sampler=sampler, masking=masking, full_map=True
        )
        return replace(output, **self._read(output.full_map))

    def forward_pruned(
        self,
        images: Tensor | Tokens,
        decisions: Sequence[Tensor] | None = None,
        *,
        full_map: bool = True,
    ) -> PrunedOutput:
        """The pruned path, as ``DynamicViT`` has it."""
        del full_map
        output = super().forward_pruned(images, decisions, full_map=True)
        return replace(output, logits=self.decode_head(output.full_map))

    def forward_dense(self, images: Tensor | Tokens) -> DenseOutput:
        """The logits where nothing is dropped."""
        output = super().forward_dense(images)
        return replace(output, **self._read(output.features.full_map()))

    def blank_labels(self, images: Tensor) -> Tensor:
        """``(B, height, width)`` of class 0."""
        shape = (len(images), *images.shape[2:])
        return torch.zeros(shape, dtype=torch.long, device=images.device)

    def dense(self, images: Tensor) -> Tensor:
        """Logits ``(B, classes, rows, columns)`` where nothing is dropped."""
        return self.forward_dense(images).logits

    @through_backbone
    def forward_tokens(self, images: Tensor) -> Tokens:
        """The final tokens after the final norm, which remember the dropped ones."""
        if self.training:
            return self.forward_masked(images).features
        parts = self._walk(self._first(images, True), self._prune, self._depth)
        return self.bound.finish(only_part(parts))

    def forward_head(self, features: Tensor | Tokens, pre_logits: bool = False) -> Tensor:
        """Logits ``(B, classes, rows, columns)``, or the full map ``(B, rows, columns, C)``.

        Args:
            features: what :meth:`forward_tokens` gave.
            pre_logits: stop before the head.

        Raises:
            InputError: for a plain tensor, which does not say where its tokens were.
        """
        if not isinstance(features, Tokens):
            raise InputError("a segmentation head needs the tokens that forward_tokens gives")
        full_map = features.full_map()
        return full_map if pre_logits else self.decode_head(full_map)

    @property
    def _map_width(self) -> int:
        """Channels of the full map."""
        return self.feature_info[-1]["num_chs"]

    def _read(self, full_map: Tensor | None) -> dict[str, Any]:
        """What of an output the head has the say of."""
        logits = self.decode_head(full_map)
        return {"logits": logits, "loss_logits": logits, "pooled": full_map, "patch_logits": None}

    # ---------------------------------------------------------------- others of its kind

    def like(
        self,
        backbone: nn.Module | Backbone,
        schedule: Schedule,
        predictors: Sequence[Method] | type[Method] = (),
    ) -> Segmenter:
        """As of ``DynamicViT``; the head is shared."""
        made = Segmenter(backbone, schedule, predictors, head=self.decode_head)
        made.labels = self.labels
        return made

    # ---------------------------------------------------------------- what timm's users ask

    @property
    def num_classes(self) -> int:
        """Number of classes of the head."""
        return self.decode_head.num_classes

    @property
    def pretrained_cfg(self) -> dict[str, Any]:
        """timm's description of the backbone's input, with this model's classes."""
        own = {k: v for k, v in self.bound.pretrained_cfg.items() if not k.startswith("label_")}
        names = self.labels.class_names
        named = {} if names is None else {"label_names": list(names)}
        # As it sees an image whole: resized until it just fills the window.
        window = {"crop_pct": 1.0, "crop_mode": "center", "interpolation": "bilinear"}
        return {**own, **window, "num_classes": self.num_classes, **named}

    def set_class_names(self, names: Sequence[str] | None) -> None:
        """Say how the classes are called, in class order; ``None`` if nobody knows."""
        self.labels = replace(self.labels, class_names=None if names is None else tuple(names))

    def get_classifier(self) -> nn.Module:
        """The head's last layer."""
        return self.decode_head.classifier

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Give the model a fresh head of its kind.

        Raises:
            InputError: for a pool: a map is not pooled.
        """
        if global_pool is not None:
            raise InputError(f"global_pool={global_pool!r}: a segmentation model does not pool")
        like = next(self.decode_head.parameters())
        fresh = head_named(self.decode_head.name, self._map_width, num_classes)
        self.decode_head = fresh.to(like.device, like.dtype).train(self.training)
        self.set_class_names(None)

    # ---------------------------------------------------------------- saving

    def _own_config(self) -> dict[str, Any]:
        head = {"head": self.decode_head.name, "num_classes": self.num_classes}
        return {"segmentation": {**head, **asdict(self.labels)}}

    @classmethod
    def _from_config(
        cls, config: Any, backbone: nn.Module, schedule: Schedule, method: type[Method]
    ) -> Segmenter:
        values = dict(config["segmentation"])
        head, num_classes = values.pop("head"), values.pop("num_classes")
        names = values.pop("class_names", None)
        model = cls(backbone, schedule, method, head=head, num_classes=num_classes)
        model.labels = Labels(None if names is None else tuple(names), **values)
        return model


def segmenter(model: nn.Module, num_classes: int, head: str = "linear") -> Segmenter:
    """A segmentation model on a vision transformer, with a fresh head (Segmenter, ICCV 2021).

    Args:
        model: a supported vision transformer, for a dense model; or what
            :func:`~dynamicvit.sparsify` made of one, for one that drops patches as that does. It is
            used as it is, not copied; its classifier is taken off.
        num_classes: of a pixel.
        head: "linear", which classifies each patch by itself, or "mask", the mask transformer.

    Returns:
        In the mode of the model that was given. ``sparsify`` makes a dense one sparse.

    Raises:
        UnsupportedBackboneError: naming the class that is not supported, and the families.
        InputError: for an unknown head, no classes, or a backbone of clips.
    """
    core = getattr(model, "dynamicvit", model)  # of a model that speaks transformers' language
    bound = core.bound if isinstance(core, DynamicViT) else backbone_for(model)
    if bound.frames is not None:
        raise InputError(f"{bound.family} takes clips: a segmentation model is for images")
    if isinstance(core, DynamicViT):
        made = Segmenter(
            core.bound, core.schedule, core.methods or core.method, head=head,
            num_classes=num_classes,
        )  # fmt: skip
        made.per_image = core.per_image
    else:
        made = Segmenter(bound, Schedule((), ()), head=head, num_classes=num_classes)
    if made.bound.num_classes:
        made.bound.reset_classifier(0, None)
    made.train(model.training)
    return made


def post_process_semantic_segmentation(
    outputs: Any, target_sizes: Sequence[tuple[int, int]] | None = None
) -> list[Tensor]:
    """The class of each pixel, as image processors of transformers give it.

    Args:
        outputs: logits ``(B, classes, rows, columns)``, or what has them as ``logits``.
        target_sizes: height and width of each image; by default those of the logits.

    Returns:
        For each image ``(height, width)`` class indices.

    Raises:
        InputError: for another number of sizes than images.
    """
    logits = getattr(outputs, "logits", outputs)
    if target_sizes is None:
        return list(logits.argmax(dim=1))
    if len(target_sizes) != len(logits):
        raise InputError(f"{len(target_sizes)} target sizes for {len(logits)} images")
    return [
        F.interpolate(one[None], tuple(size), mode="bilinear")[0].argmax(dim=0)
        for one, size in zip(logits, target_sizes, strict=True)
    ]
