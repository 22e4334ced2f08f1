"""What timm's users expect of a model: its names for features, sizes, classifier and input."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from dynamicvit.backbones import Hierarchical
from dynamicvit.core.levels import level_info, level_maps
from dynamicvit.core.parts import only_part
from dynamicvit.errors import InputError
from dynamicvit.layers.attention import through_backbone
from dynamicvit.layers.tokens import Tokens

if TYPE_CHECKING:
    from dynamicvit.backbones import Backbone


class TimmSurface:
    """timm's methods for a network around a backbone, which knows the answers."""

    bound: Backbone

    # ---------------------------------------------------------------- features

    def forward_features(self, images: Tensor) -> Tensor:
        """``(B, P + K, C)``: the final tokens after the final norm, in ``eval()`` the kept ones.

        :meth:`forward_tokens` gives the same with what is known of them: their places, decisions
        and sizes. Of a network whose maps stay whole the final map, as its own method gives it.

        Args:
            images: ``(B, channels, height, width)``.
        """
        tokens = self.forward_tokens(images)
        return self.bound.features(tokens) if isinstance(self.bound, Hierarchical) else tokens.x

    def forward_head(self, features: Tensor | Tokens, pre_logits: bool = False) -> Tensor:
        """Pool the tokens and classify: ``(B, classes)``, or ``(B, C)`` before the classifier.

        Args:
            features: what :meth:`forward_tokens` gave, or :meth:`forward_features`.
            pre_logits: stop before the classifier.

        Raises:
            InputError: for a plain tensor, if patches are pooled and tokens have merged or are
                masked: it does not say how much each token counts.
        """
        if not isinstance(features, Tokens) and isinstance(self.bound, Hierarchical):
            features = replace(self.bound.tokens(features), unnormed=features)
        if not isinstance(features, Tokens):
            merges = self.policy == "merged" or any(m.merges for m in self.methods)
            if self.bound.reads is None and (merges or self.training):
                raise InputError(
                    "a plain tensor does not say how much each token counts in the pool: give what "
                    "forward_tokens gives"
                )
            prefix = self.num_prefix_tokens + sum(p.adds for p in self.predictors)
            features = Tokens(features, prefix, (features.shape[1] - prefix,))
        return self.bound.head(features, pre_logits)

    @property
    def feature_info(self) -> list[dict[str, Any]]:
        """For each block its name, the width of its tokens and the pixels along a patch's side.

        Of ConvNeXt and Swin for each of the four levels.
        """
        if isinstance(self.bound, Hierarchical):
            return level_info(self.bound)
        reduction = max(self.bound.patch_size)
        return [
            {
                "module": f"backbone.{self.bound.blocks_name}.{i}",
                "num_chs": self.bound.width,
                "reduction": reduction,
            }
            for i in range(len(self.bound.blocks))
        ]

    @through_backbone
    def forward_intermediates(
        self,
        images: Tensor,
        indices: int | list[int] | None = None,
        return_prefix_tokens: bool = False,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
        output_dict: bool = False,
    ) -> Any:
        """Maps of every patch after chosen blocks of the pruned path, as timm's models give them.

        A removed patch's place holds what it was when it was dropped, a merged one's what it
        became part of. Each stage drops tokens as at inference. Of ConvNeXt and Swin there are
        four levels in place of blocks, and all positions of their maps.

        Args:
            images: ``(B, channels, height, width)``.
            indices: blocks by index, or how many of the last ones; by default all.
            return_prefix_tokens: give ``(map, prefix tokens)`` for each block, where there are any.
            norm: put each map through the final norm.
            stop_early: don't run the blocks after the last one asked for.
            output_fmt: ``"NCHW"`` for maps ``(B, C, rows, columns)``, of clips ``(B, C, times,
                rows, columns)``; ``"NLC"`` for ``(B, N, C)``.
            intermediates_only: leave the final tokens ``(B, P + K, C)`` out.
            output_dict: give the same by timm's names.

        Returns:
            The final tokens and the list of maps, or the list alone; as a dictionary
            ``image_features``, ``image_intermediates`` and ``image_intermediates_prefix``.

        Raises:
            InputError: for an unknown format or block.
        """
        if output_fmt not in ("NCHW", "NLC"):
            raise InputError(f"output_fmt is NCHW or NLC, got {output_fmt!r}")
        bound, prefixes = self.bound, []
        if isinstance(bound, Hierarchical):
            wanted = _block_indices(indices, len(bound.levels))
            features, maps = level_maps(self, images, wanted, norm, stop_early)
            maps = maps if output_fmt == "NCHW" else [x.flatten(2).transpose(1, 2) for x in maps]
        else:
            maps = []
            wanted = _block_indices(indices, len(bound.blocks))

            def note(tokens: Tokens) -> None:
                if tokens.block - 1 not in wanted:
                    return
                tokens = bound.finish(tokens) if norm else tokens
                whole = tokens.full_map()
                maps.append(whole.movedim(-1, 1) if output_fmt == "NCHW" else whole.flatten(1, -2))
                prefixes.append(tokens.x[:, : tokens.num_prefix])

            stop = max(wanted) + 1 if stop_early else len(bound.blocks)
            first = self._embed(images).remembering()
            tokens = only_part(self._walk(first, self._prune, stop, note=note))
            features = None if intermediates_only else bound.finish(tokens).x
        with_prefix = return_prefix_tokens and self.num_prefix_tokens > 0
        if output_dict:
            answer: dict[str, Any] = {"image_intermediates": maps}
            if with_prefix:
                answer["image_intermediates_prefix"] = prefixes
            return answer if intermediates_only else {**answer, "image_features": features}
        intermediates = list(zip(maps, prefixes, strict=True)) if with_prefix else maps
        return intermediates if intermediates_only else (features, intermediates)

    # ---------------------------------------------------------------- sizes, classifier, input

    @property
    def pretrained_cfg(self) -> dict[str, Any]:
        """timm's description of the backbone's weights and input."""
        return self.bound.pretrained_cfg

    @property
    def default_cfg(self) -> dict[str, Any]:
        """timm's older name for :attr:`pretrained_cfg`."""
        return self.pretrained_cfg

    @property
    def num_classes(self) -> int:
        """Number of classes of the head."""
        return self.bound.num_classes

    @property
    def num_features(self) -> int:
        """Width of the pooled features that the classifier takes."""
        return self.bound.num_features

    @property
    def num_prefix_tokens(self) -> int:
        """P, the tokens that are never dropped."""
        return self.bound.num_prefix

    @property
    def in_chans(self) -> int:
        """Number of image channels."""
        return self.bound.in_chans

    def get_classifier(self) -> nn.Module:
        """The backbone's classifier."""
        return self.bound.classifier

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Give the backbone a fresh classifier; with another pool, if it can have it.

        Raises:
            InputError: for a pool that the backbone does not have.
        """
        self.bound.reset_classifier(num_classes, global_pool)

    def set_class_names(self, names: Sequence[str] | None) -> None:
        """Say how the classes are called, in class order; ``None`` if nobody knows."""
        self.bound.set_class_names(names)

    def no_weight_decay(self) -> set[str]:
        """Names of the parameters that weight decay must leave alone."""
        return {f"backbone.{name}" for name in self.bound.no_weight_decay()}

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """timm's groups of parameters, for layer-wise decay; the methods' are with the classifier.

        Args:
            coarse: makes no difference.
        """
        del coarse
        groups = self.bound.group_matcher()
        blocks = [(_under_backbone(names), place) for names, place in groups["blocks"]]
        return {"stem": _under_backbone(groups["stem"]), "blocks": blocks}

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Trade computation for memory in training: blocks are run again in the backward pass."""
        self.bound.set_grad_checkpointing(enable)


def _under_backbone(names: str) -> str:
    """A pattern of the backbone's names, as one of the model's."""
    return rf"^backbone\.{names.removeprefix('^')}"


def _block_indices(indices: int | list[int] | None, depth: int) -> list[int]:
    """Blocks by index, from what timm's users write."""
    if indices is None:
        return list(range(depth))
    if isinstance(indices, int):
        indices = list(range(depth - indices, depth))
    if not indices or any(not -depth <= i < depth for i in indices):
        raise InputError(f"indices are blocks 0 to {depth - 1}, got {indices}")
    return sorted(i % depth for i in indices)
