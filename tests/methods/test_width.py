"""Width scaling: what is sliced, and that head, embedding and MLP stay what they were."""

from __future__ import annotations

import pytest
import torch

from dynamicvit import InputError
from dynamicvit.methods import narrow
from families import BY_NAME, DEIT

HEADS, OLD, NEW = 3, 16, 8


@torch.no_grad()
def coded():
    """A backbone in which every row of qkv tells its number, and every channel of the positions."""
    backbone = DEIT.backbone()
    for block in backbone.blocks:
        block.attn.qkv.bias.copy_(torch.arange(3 * HEADS * OLD))
        block.norm1.bias.copy_(torch.arange(48))
        block.mlp.fc1.bias.copy_(torch.arange(192))
    backbone.pos_embed.copy_(torch.arange(48.0))
    backbone.norm.bias.copy_(torch.arange(48))
    return backbone


def test_heads_keep_their_own_channels() -> None:
    dense = coded()
    small = narrow(dense, NEW)
    for block, old in zip(small.blocks, dense.blocks, strict=True):
        query, key, value = block.attn.qkv.bias.reshape(3, HEADS, NEW).long()
        first = torch.arange(HEADS)[:, None] * OLD
        for part, offset in ((query, 0), (key, HEADS * OLD), (value, 2 * HEADS * OLD)):
            assert ((part - offset - first >= 0) & (part - offset - first < OLD)).all()
        assert torch.equal(key - query, torch.full_like(query, HEADS * OLD)), "they are multiplied"
        kept = block.norm1.bias.long()
        columns = (value - 2 * HEADS * OLD).flatten()
        assert torch.equal(block.attn.proj.weight, old.attn.proj.weight[kept][:, columns])
        rows = block.attn.qkv.bias.long()
        assert torch.equal(block.attn.qkv.weight, old.attn.qkv.weight[rows][:, kept])


def test_the_embedding_is_the_same_everywhere() -> None:
    dense = coded()
    small = narrow(dense, NEW)
    kept = small.norm.bias.long()
    assert len(kept) == HEADS * NEW
    assert torch.equal(small.pos_embed[0, 0].long(), kept)
    assert all(torch.equal(block.norm1.bias.long(), kept) for block in small.blocks)
    assert torch.equal(small.head.weight, dense.head.weight[:, kept])
    assert torch.equal(small.patch_embed.proj.weight, dense.patch_embed.proj.weight[kept])
    for block, old in zip(small.blocks, dense.blocks, strict=True):
        inner = block.mlp.fc1.bias.long()
        assert len(inner) == 4 * len(kept)
        assert torch.equal(block.mlp.fc1.weight, old.mlp.fc1.weight[inner][:, kept])
        assert torch.equal(block.mlp.fc2.weight, old.mlp.fc2.weight[kept][:, inner])


def test_what_weighs_nothing_is_what_goes() -> None:
    """With half of the channels read by nobody, they are the ones that leave."""
    dense = DEIT.backbone()
    unread = torch.arange(0, 48, 2)
    with torch.no_grad():
        for block in dense.blocks:
            block.attn.qkv.weight[:, unread] = 0
            block.mlp.fc1.weight[:, unread] = 0
        dense.head.weight[:, unread] = 0
        dense.pos_embed.copy_(torch.arange(48.0))
    kept = narrow(dense, NEW).pos_embed[0, 0].long()
    assert kept.tolist() == list(range(1, 48, 2))


def test_a_loud_channel_stays_though_it_is_hardly_read() -> None:
    """Every norm divides by it: without it all the others would be read differently."""
    dense = DEIT.backbone()
    with torch.no_grad():
        for block in dense.blocks:
            block.attn.qkv.weight[:, 5] *= 0.1
            block.mlp.fc1.weight[:, 5] *= 0.1
            block.attn.proj.weight[5] *= 100
            block.mlp.fc2.weight[5] *= 100
        dense.head.weight[:, 5] *= 0.1
        dense.pos_embed.copy_(torch.arange(48.0))
    assert 5 in narrow(dense, NEW).pos_embed[0, 0].long()


def test_queries_and_keys_are_chosen_by_their_product() -> None:
    """A channel that queries ask for loudly and no key answers changes no attention."""
    dense = coded()
    unanswered = torch.arange(HEADS * OLD)[::2]
    with torch.no_grad():
        for block in dense.blocks:
            block.attn.qkv.weight[unanswered] *= 100
            block.attn.qkv.weight[HEADS * OLD + unanswered] = 0
    for block in narrow(dense, NEW).blocks:
        query = block.attn.qkv.bias[: HEADS * NEW].long()
        assert (query % 2 == 1).all()


@pytest.mark.parametrize(
    "name", ["deit", "deit_distilled", "dinov2_registers", "registers", "clip"]
)
@torch.no_grad()
def test_it_runs_and_leaves_the_dense_network_alone(name: str) -> None:
    family = BY_NAME[name]
    dense, images = family.backbone(), family.images()
    before = dense(images)
    small = narrow(dense, NEW)
    assert small(images).shape == before.shape
    assert small(images).isfinite().all()
    assert small.embed_dim == small.num_features == HEADS * NEW
    assert torch.equal(dense(images), before)
    assert not {p.data_ptr() for p in small.parameters()} & {
        p.data_ptr() for p in dense.parameters()
    }


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("beit", "another layout"),
        ("siglip", "attention pooling"),
        ("qk_norm", "norms or gates"),
    ],
)
def test_what_can_not_be_sliced(name: str, problem: str) -> None:
    with pytest.raises(InputError, match=problem):
        narrow(BY_NAME[name].backbone(), NEW)


@pytest.mark.parametrize("width", [0, 16, 20])
def test_widths_that_can_not_be(width: int) -> None:
    with pytest.raises(InputError, match=f"1 to 15 wide, got {width}"):
        narrow(DEIT.backbone(), width)
