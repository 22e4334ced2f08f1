"""Small backbones of every supported family, with weights at which errors can't hide.

One table, :data:`FAMILIES`; a test that takes ``family`` runs once for each row::

    @each_family
    def test_something(family: Family) -> None: ...
"""

from __future__ import annotations

import copyreg
import pickle
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass, field, replace
from functools import partial, wraps
from importlib.util import find_spec
from io import BytesIO
from math import prod
from typing import Any, get_args

import pytest
import timm
import torch
from torch import Tensor, nn

from dynamicvit import DynamicViT, Schedule, inflate, sparsify
from dynamicvit.core.networks import core_of
from dynamicvit.core.schedule import Policy
from rows import some_or_all

NUM_CLASSES = 7

#: What can become of tokens that are dropped; the maps of tests/maps.py drop none.
POLICIES = tuple(policy for policy in get_args(Policy) if policy != "cheap")

_BUILT: dict[str, Callable[[], nn.Module]] = {}
_MOST_BUILT = 300
_LOADED: list[list[Tensor]] = []


def _copied(tensor: Tensor) -> Tensor:
    copied = tensor.detach().clone()
    if isinstance(tensor, nn.Parameter):
        return nn.Parameter(copied, tensor.requires_grad)
    return copied.requires_grad_(tensor.requires_grad)


def _loaded(number: int) -> Tensor:
    return _copied(_LOADED[-1][number])


def stored(network: nn.Module) -> Callable[[], nn.Module]:
    """Gives networks equal to this one as it is now: pickled but for its tensors.

    That is ten times as fast as copies.
    """
    tensors: list[Tensor] = []
    file = BytesIO()

    def put_aside(tensor: Tensor) -> tuple[Any, ...]:
        tensors.append(_copied(tensor))
        return _loaded, (len(tensors) - 1,)

    def load() -> nn.Module:
        _LOADED.append(tensors)
        try:
            return pickle.loads(file.getvalue())
        finally:
            _LOADED.pop()

    pickler = pickle.Pickler(file)
    pickler.dispatch_table = copyreg.dispatch_table | {Tensor: put_aside, nn.Parameter: put_aside}
    try:
        pickler.dump(network)
    except pickle.PicklingError:  # of a class that a test makes up
        return partial(deepcopy, deepcopy(network))
    return load


def built_once(build: Callable[..., nn.Module]) -> Callable[..., Any]:
    """A copy of what was built for the same arguments: building takes most of a small test."""

    @wraps(build)
    def get(*args: Any, **kwargs: Any) -> nn.Module:
        key = f"{build.__qualname__} {args} {kwargs}"
        known = _BUILT.pop(key, None)
        network = build(*args, **kwargs) if known is None else known()
        _BUILT[key] = known or stored(network)  # the one that was asked for last is the last to go
        if len(_BUILT) > _MOST_BUILT:
            del _BUILT[next(iter(_BUILT))]
        return network

    return get


@dataclass(frozen=True)
class Family:
    """One row: a name in timm, what is changed of it, and the image size in patches.

    Attributes:
        name: how tests call it.
        model: the name in timm.
        kwargs: arguments over timm's own for this model.
        patch: side of a patch.
        grid: rows and columns of patches, of clips with times in front. Not square, so that a
            swapped axis shows.
        frames: of the clips that it takes; ``None`` for images.
        unread: what the names of parameters have in common that classification does not read.
        one_classifier: whether the logits are those of one classifier on the pooled features.
        num_features: width of the pooled features.
    """

    name: str
    model: str
    kwargs: dict[str, Any] = field(default_factory=dict)
    patch: int = 16
    grid: tuple[int, ...] = (4, 5)
    one_classifier: bool = True
    num_features: int = 48
    frames: int | None = None
    unread: str = ""

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the images."""
        rows, columns = self.grid[-2:]
        return rows * self.patch, columns * self.patch

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one input."""
        return (*((self.frames,) if self.frames else ()), 3, *self.size)

    @property
    def num_patches(self) -> int:
        """N."""
        return prod(self.grid)

    @built_once
    def backbone(self, depth: int = 4, seed: int = 0, **kwargs: Any) -> nn.Module:
        """The dense network in eval mode, 48 wide, with random weights; dropout only if named."""
        small = dict(embed_dim=48, num_heads=3, depth=depth, num_classes=NUM_CLASSES)
        arguments = {"img_size": self.size, **small, **self.kwargs, **kwargs}
        backbone = timm.create_model(self.model, pretrained=False, **arguments)
        if not any("drop" in name for name in kwargs):  # a few networks come with some
            for module in backbone.modules():
                if isinstance(module, nn.Dropout):
                    module.p = 0.0
        return randomize(backbone, seed).eval()

    def sparse(
        self,
        keep_ratio: float | Sequence[float] = 0.7,
        stages: Sequence[int] | None = None,
        depth: int = 4,
        seed: int = 0,
        policy: Policy = "removed",
        restore_before: int | None = None,
        **kwargs: Any,
    ) -> DynamicViT:
        """The backbone with prediction modules whose scores are well apart, in eval mode."""
        schedule = Schedule.for_depth(depth, keep_ratio, stages, policy)
        model = self.with_modules(schedule.stages, depth, seed, **kwargs)
        model.schedule = replace(schedule, restore_before=restore_before)
        return model

    @built_once
    def with_modules(
        self, stages: tuple[int, ...], depth: int, seed: int, **kwargs: Any
    ) -> DynamicViT:
        """Whatever its schedule says of these stages."""
        backbone = self.backbone(depth, seed, **kwargs)
        model = core_of(sparsify(backbone, [0.5] * len(stages), stages, method="dynamicvit"))
        assert isinstance(model, DynamicViT)
        randomize(model.predictors, seed + 1)
        for predictor in model.predictors:  # of every image some are kept and some dropped
            predictor.mlp[-1].weight.data *= 0.3
            predictor.mlp[-1].bias.data.copy_(torch.tensor([0.5, -0.5]))
        return model.eval()

    def dense(self, backbone: nn.Module, images: Tensor) -> Tensor:
        """Logits as the network's own library computes them."""
        return backbone(images)

    def dense_tokens(self, backbone: nn.Module, images: Tensor) -> Tensor:
        """``(B, P + N, C)``: its final tokens after the final norm, likewise."""
        return backbone.forward_features(images)

    def images(self, batch: int = 2, seed: int = 0) -> Tensor:
        """Noise of this family's shape."""
        return torch.randn(batch, *self.shape, generator=torch.Generator().manual_seed(seed))

    def read(self, model: nn.Module) -> list[tuple[str, nn.Parameter]]:
        """The parameters that classification reads, by name."""
        named = model.named_parameters()
        return [(n, p) for n, p in named if not self.unread or self.unread not in n]

    def decisions(
        self, batch: int = 2, stages: int = 3, share: float = 0.7, seed: int = 0
    ) -> list[Tensor]:
        """Random decisions for each stage, not yet multiplied by those before."""
        random = torch.Generator().manual_seed(seed)
        shape = (batch, self.num_patches)
        return [(torch.rand(shape, generator=random) < share).float() for _ in range(stages)]


@dataclass(frozen=True)
class HFFamily(Family):
    """A row of Hugging Face transformers: the model is named by the front of its class's name.

    Attributes:
        native: side in patches of the square that the positions are made for, if not the grid.
    """

    native: int | None = None

    @built_once
    def backbone(self, depth: int = 4, seed: int = 0, **kwargs: Any) -> nn.Module:
        import transformers

        small = dict(hidden_size=48, num_attention_heads=3, num_hidden_layers=depth)
        size = list(self.size) if self.native is None else self.native * self.patch
        arguments = {**small, "image_size": size, "patch_size": self.patch, **self.kwargs, **kwargs}
        if self.model == "Siglip":
            arguments = {"vision_config": arguments}
        config = getattr(transformers, f"{self.model}Config")(num_labels=NUM_CLASSES, **arguments)
        network = getattr(transformers, f"{self.model}ForImageClassification")(config)
        return randomize(network, seed).eval()

    def dense(self, backbone: nn.Module, images: Tensor) -> Tensor:
        return self._call(backbone, images).logits

    def dense_tokens(self, backbone: nn.Module, images: Tensor) -> Tensor:
        return self._call(next(backbone.children()), images).last_hidden_state

    def _call(self, network: nn.Module, images: Tensor, **kwargs: Any) -> Any:
        if self.native is not None and self.model != "Dinov2":  # which does so unasked
            kwargs["interpolate_pos_encoding"] = True
        return network(images, **kwargs)


@dataclass(frozen=True)
class HFVideoFamily(HFFamily):
    """A row of transformers' video classifiers: tubelets of two frames."""

    @built_once
    def backbone(self, depth: int = 4, seed: int = 0, **kwargs: Any) -> nn.Module:
        import transformers

        small = dict(hidden_size=48, num_attention_heads=3, num_hidden_layers=depth)
        size: dict[str, Any] = {"image_size": list(self.size), "num_frames": self.frames}
        if self.model == "Vivit":
            size["tubelet_size"] = [2, self.patch, self.patch]
        elif self.model == "VJEPA2":
            size = {"crop_size": self.size[0], "frames_per_clip": self.frames}
        if self.model != "Vivit":
            size |= {"patch_size": self.patch, "tubelet_size": 2}
        arguments = {**small, **size, **self.kwargs, **kwargs}
        config = getattr(transformers, f"{self.model}Config")(num_labels=NUM_CLASSES, **arguments)
        network = getattr(transformers, f"{self.model}ForVideoClassification")(config)
        return randomize(network, seed).eval()

    def _call(self, network: nn.Module, images: Tensor, **kwargs: Any) -> Any:
        if type(network).__name__ == "VJEPA2Model":
            kwargs["skip_predictor"] = True
        return network(images, **kwargs)


@dataclass(frozen=True)
class InflatedFamily(Family):
    """A row of timm's image networks over clips, with positions in time that can be seen."""

    @built_once
    def backbone(self, depth: int = 4, seed: int = 0, **kwargs: Any) -> nn.Module:
        image = super().backbone(depth, seed, **kwargs)
        assert self.frames is not None
        made = inflate(image, self.frames, self.frames // self.grid[0], "average")
        randomize(made.vit.patch_embed, seed)
        made.time_embed.data.normal_(generator=torch.Generator().manual_seed(seed))
        return made


#: Without the parameter that stands for masked patches in pretraining only.
UNMASKED = {"use_mask_token": False}

NO_BIAS = {"use_rel_pos_bias": False}

#: transformers need not be installed.
HF_FAMILIES = (
    (
        HFFamily("hf_vit", "ViT", {"intermediate_size": 96, "qkv_bias": False}),
        HFFamily("hf_deit", "DeiT", {"intermediate_size": 96}, native=3),
        HFFamily("hf_dinov2", "Dinov2", UNMASKED, patch=14, num_features=96, native=5),
        HFFamily(
            "hf_dinov2_swiglu",
            "Dinov2",
            {**UNMASKED, "use_swiglu_ffn": True},
            patch=14,
            num_features=96,
            native=5,
        ),
        HFFamily(
            "hf_siglip", "Siglip", {"intermediate_size": 96, "vision_use_head": False}, native=3
        ),
    )
    if find_spec("transformers")
    else ()
)

HF_VIDEO_FAMILIES = (
    (
        HFVideoFamily(
            "hf_videomae",
            "VideoMAE",
            {"intermediate_size": 96, "layer_norm_eps": 1e-6},
            patch=8,
            grid=(2, 3, 4),
            frames=4,
        ),
        HFVideoFamily(
            "hf_vivit", "Vivit", {"intermediate_size": 96}, patch=8, grid=(2, 3, 4), frames=4
        ),
        HFVideoFamily(
            "hf_vjepa2",
            "VJEPA2",
            {
                "num_pooler_layers": 1,
                "mlp_ratio": 2,
                "pred_hidden_size": 12,
                "pred_num_hidden_layers": 1,
                "pred_num_attention_heads": 1,
            },
            patch=8,
            grid=(2, 3, 3),
            frames=4,
            unread="predictor",
        ),
    )
    if find_spec("transformers")
    else ()
)

#: One for each way to place tokens: learned, rotary, relative.
INFLATED_FAMILIES = (
    InflatedFamily("inflated_augreg", "vit_tiny_patch16_224", grid=(2, 2, 3), frames=4),
    InflatedFamily("inflated_eva02", "eva02_base_patch14_224", patch=14, grid=(2, 2, 3), frames=2),
    InflatedFamily("inflated_beit", "beit_base_patch16_224", grid=(2, 2, 3), frames=4),
)

FAMILIES = (
    Family("deit", "deit_tiny_patch16_224"),
    Family("deit_distilled", "deit_tiny_distilled_patch16_224", one_classifier=False),
    Family("deit3", "deit3_small_patch16_224"),
    Family("augreg", "vit_tiny_patch16_224"),
    Family("registers", "vit_betwixt_patch16_reg4_gap_256"),
    Family("dinov2", "vit_small_patch14_dinov2", patch=14),
    Family("dinov2_registers", "vit_small_patch14_reg4_dinov2", patch=14),
    Family("clip", "vit_base_patch16_clip_224"),
    Family("siglip", "vit_base_patch16_siglip_224"),
    Family("siglip_gap", "vit_base_patch16_siglip_gap_224"),
    Family("eva01", "eva_giant_patch14_224", {"mlp_ratio": 4.0}, patch=14),
    Family("eva02_fused", "eva02_tiny_patch14_224", patch=14),
    Family("eva02_split", "eva02_base_patch14_224", patch=14),
    Family("eva02_clip", "eva02_large_patch14_clip_224", patch=14),
    Family("eva_qk_norm", "eva02_tiny_patch14_224", {"qk_norm": True}, patch=14),
    Family("eva_mixed_rope", "eva02_tiny_patch14_224", {"rope_type": "mixed"}, patch=14),
    Family("eva_map", "eva02_tiny_patch14_224", {"global_pool": "map"}, patch=14),
    Family("dinov3", "vit_small_patch16_dinov3"),
    Family("beit", "beit_base_patch16_224"),
    Family("beitv2", "beitv2_base_patch16_224"),
    Family("beit_shared", "beit_base_patch16_224", {**NO_BIAS, "use_shared_rel_pos_bias": True}),
    Family("beit_both", "beit_base_patch16_224", {"use_shared_rel_pos_bias": True}),
    Family("beit_absolute", "beit_base_patch16_224", {**NO_BIAS, "use_abs_pos_emb": True}),
    # Stems of 32 channels or more, as real ones are: on CPUs with AMX, oneDNN 3.12 gets bfloat16
    # convolutions wrong that don't overlap and have fewer.
    Family("lvvit", "lvvit_s", {"stem_width": 32}, one_classifier=False),
    Family(
        "lvvit_third", "lvvit_l", {"patch_size": 8, "stem_width": 48}, patch=8, one_classifier=False
    ),
    Family("max", "vit_tiny_patch16_224", {"global_pool": "max"}),
    Family("avgmax", "vit_tiny_patch16_224", {"global_pool": "avgmax"}),
    Family("avg_all", "vit_tiny_patch16_224", {"global_pool": "avg", "pool_include_prefix": True}),
    Family("map_all", "vit_tiny_patch16_224", {"global_pool": "map", "pool_include_prefix": True}),
    Family("qk_norm", "vit_tiny_patch16_224", {"qk_norm": True}),
    Family("inner_norms", "vit_tiny_patch16_224", {"scale_attn_norm": True, "init_values": 0.1}),
    *HF_FAMILIES,
    *HF_VIDEO_FAMILIES,
    *INFLATED_FAMILIES,
)

BY_NAME = {family.name: family for family in FAMILIES}
DEIT = BY_NAME["deit"]

each_family = pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)

#: One family for each way to pool or place tokens, for tests that are too slow for all rows.
FEW = [BY_NAME[name] for name in ("deit", "registers", "siglip", "eva02_split", "beit")]

few_families = pytest.mark.parametrize("family", FEW, ids=lambda family: family.name)

#: One of each library's blocks and of each way to pool or place tokens.
KINDS = [*FEW, *(BY_NAME[name] for name in ("lvvit", "inflated_augreg"))]
KINDS += [*HF_FAMILIES[:1], *HF_VIDEO_FAMILIES[:1]]


def or_all(families: Sequence[Any], rows: Sequence[Any] = FAMILIES) -> pytest.MarkDecorator:
    """These rows of a table in every run, all with ``-m extended``."""
    return some_or_all("family", families, rows, ids=lambda family: family.name)


few_families_or_all = or_all(FEW)

#: For tests of our own code that asks a family for nothing but its blocks, which the law has seen.
kinds_or_all = or_all(KINDS)


@torch.no_grad()
def randomize(module: nn.Module, seed: int = 0) -> nn.Module:
    """Random values for every parameter, of a size that keeps the signal alive.

    Fresh networks hide errors: layer scales of 1e-5, classifiers and relative biases of zero,
    batch norms whose statistics change nothing.
    """
    random = torch.Generator().manual_seed(seed)
    for name, value in module.named_parameters():
        noise = torch.randn(value.shape, generator=random, dtype=value.dtype)
        last = name.rpartition(".")[-1]
        if (
            "gamma" in last or "lambda" in last or (last == "weight" and value.ndim == 1)
        ):  # layer scale, norm
            value.copy_(1 + 0.3 * noise)
        elif last == "weight" and "position" not in name:
            value.copy_(noise * 1.5 * value[0].numel() ** -0.5)
        elif last == "relative_position_bias_table":
            value.copy_(noise)
        else:  # biases, positions, prefix tokens
            value.copy_(0.3 * noise)
    for norm in module.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.running_mean.normal_(0.0, 0.3, generator=random)
            norm.running_var.uniform_(0.5, 2.0, generator=random)
    return module


def assert_agree(actual: Tensor, expected: Tensor, tolerance: float = 1e-5) -> None:
    """Equal up to ``tolerance`` of the largest value, or of 1 if that is larger."""
    scale = max(1.0, expected.abs().max().item())
    torch.testing.assert_close(actual, expected, rtol=0.0, atol=tolerance * scale)
