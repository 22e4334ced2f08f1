"""The benchmark: its statistics on known times, its runs on a tiny model, memory for real."""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import timm
import torch
from torch import nn

from dynamicvit import InputError, benchmark, sparsify
from dynamicvit.benchmark import BenchRow, MemoryRow, Spread, bench, peak_memory


def tiny(**arguments) -> nn.Module:
    return timm.create_model(
        "deit_tiny_patch16_224",
        **{"depth": 4, "embed_dim": 32, "num_heads": 2, "img_size": 64, **arguments},
    )


def row(speedup: Spread) -> BenchRow:
    return BenchRow(8, "fp32", 1, 5, Spread(0.3, 0.4, 0.5), Spread(0.1, 0.2, 0.3), speedup)


class TestRows:
    def test_quartiles(self):
        assert Spread.of([5.0, 1.0, 3.0, 2.0, 4.0]) == Spread(2.0, 3.0, 4.0)

    def test_throughput(self):
        measured = row(Spread(1.9, 2.0, 2.1))
        assert measured.dense_throughput == pytest.approx(20)
        assert measured.pruned_throughput == pytest.approx(40)

    @pytest.mark.parametrize(
        ("speedup", "conclusive"),
        [
            (Spread(1.4, 1.5, 1.6), True),
            (Spread(1.1, 1.2, 1.4), False),
            (Spread(0.9, 1.01, 1.1), False),
            (Spread(0.75, 0.8, 0.85), True),
            (Spread(1.0, 1.0, 1.0), False),
        ],
    )
    def test_no_claim_wider_than_its_distance_from_one(self, speedup, conclusive):
        assert row(speedup).conclusive is conclusive


class TestBench:
    def test_one_row_for_each_setting(self):
        model = sparsify(tiny())
        rows = bench(model, batch_sizes=[1, 2], samples=3, threads=1)
        assert [(r.batch_size, r.precision) for r in rows] == [
            (1, "fp32"),
            (2, "fp32"),
            (1, "bf16"),
            (2, "bf16"),
        ]
        for measured in rows:
            assert measured.pairs == 3
            assert measured.threads == 1
            assert 0 < measured.speedup.low <= measured.speedup.median <= measured.speedup.high
            assert measured.dense_seconds.median > 0

    def test_what_runs(self):
        """Which network, on which images, in which mode and precision, is timed; in which order."""
        model = sparsify(tiny(), stages=[1]).train()
        model.backbone.blocks[0].eval()
        seen = []

        def watch(name):
            def hook(module, inputs, output):
                alone = name == "dense" and inputs[0].ndim == 4
                if alone or name == "pruned":
                    assert not module.training
                    assert torch.is_inference_mode_enabled()
                    assert torch.get_num_threads() == 1
                    assert inputs[0].shape == (2, 3, 64, 64)
                    assert output.shape == (2, 1000)
                    seen.append((name, torch.is_autocast_enabled("cpu")))

            return hook

        handles = [
            model.backbone.register_forward_hook(watch("dense")),
            model.register_forward_hook(watch("pruned")),
        ]
        threads = torch.get_num_threads()
        bench(model, batch_sizes=[2], precisions=["bf16"], samples=2, threads=1)
        for handle in handles:
            handle.remove()
        assert {autocast for _, autocast in seen} == {True}
        order = [name for i, (name, _) in enumerate(seen) if i == 0 or seen[i - 1][0] != name]
        assert order == ["dense", "pruned", "dense"]  # the second pair the other way round
        assert model.training
        assert not model.backbone.blocks[0].training
        assert torch.get_num_threads() == threads

    def test_speedup_is_of_pairs(self, monkeypatch):
        """A machine that slows down tenfold half-way: the ratio of the pairs doesn't see it."""

        class Clock:
            def __init__(self, times):
                self.times = iter(times)

            def timeit(self, number):
                assert number == 1
                self.median = next(self.times)
                return self

        clocks = iter([Clock([2.0, 2.0, 20.0, 20.0]), Clock([1.0, 1.0, 10.0, 10.0])])
        monkeypatch.setattr(benchmark, "timer_of", lambda *_: next(clocks))
        shares = []
        [measured] = bench(
            sparsify(tiny()),
            batch_sizes=[1],
            precisions=["fp32"],
            samples=4,
            progress=lambda *at: shares.append(at),
        )
        assert measured.speedup == Spread(2.0, 2.0, 2.0)
        assert shares == [(1, "fp32", share) for share in (0.25, 0.5, 0.75, 1.0)]

    def test_time_is_up_but_not_before_five_pairs(self):
        [measured] = bench(
            sparsify(tiny()), batch_sizes=[1], precisions=["fp32"], seconds=1e-6, threads=1
        )
        assert measured.pairs == 5

    def test_fewer_tokens_are_faster(self):
        """So few are kept that no noise hides it."""
        model = sparsify(tiny(embed_dim=128, depth=12), 0.01, stages=[0])
        [measured] = bench(model, batch_sizes=[16], precisions=["fp32"], samples=3, threads=1)
        assert measured.speedup.median > 1.5

    @pytest.mark.parametrize(
        ("plan", "message"),
        [
            ({"batch_sizes": [1, 0]}, "batch size is at least 1, got 0"),
            ({"batch_sizes": []}, "at least one batch size"),
            ({"precisions": ["fp8"]}, "one of fp32, bf16, got 'fp8'"),
            ({"threads": 0}, "threads are at least 1, got 0"),
            ({"seconds": 0.0}, "seconds are positive, got 0.0"),
            ({"seconds": float("nan")}, "seconds are positive, got nan"),
            ({"samples": 1}, "at least 2 samples, got 1"),
            ({"image_size": 65}, "images of 65x65"),
        ],
    )
    def test_bad_plan(self, plan, message):
        with pytest.raises(InputError, match=message):
            bench(sparsify(tiny()), **plan)

    def test_weights_that_would_be_mislabelled(self):
        with pytest.raises(InputError, match="bfloat16"):
            bench(sparsify(tiny()).bfloat16())


@pytest.fixture(scope="module")
def peaks() -> dict[bool, MemoryRow]:
    """Two shapes at which pruned must be smaller, and one process that is far larger."""
    ballast = b"x" * (1 << 30)  # a child that inherits this peak would show no difference
    backbone = tiny(img_size=224, embed_dim=48)
    settings = [(sparsify(backbone, 0.3, [0]), False), (sparsify(backbone, 0.5), True)]
    with ThreadPoolExecutor(2) as both:
        measured = both.map(
            lambda setting: peak_memory(setting[0], 64, graph=setting[1], threads=1), settings
        )
        rows = {measurement.graph: measurement for measurement in measured}
    assert len(ballast) == 1 << 30
    return rows


class TestMemory:
    def test_dropping_at_once_lowers_the_peak(self, peaks):
        measured = peaks[False]
        assert measured.pruned.inference < 0.9 * measured.dense.inference
        assert measured.pruned.total < measured.dense.total

    def test_dropping_later_shrinks_the_graph(self, peaks):
        measured = peaks[True]
        assert measured.pruned.inference < 0.8 * measured.dense.inference
        assert measured.pruned.total < measured.dense.total

    def test_inference_keeps_no_graph(self, peaks):
        assert peaks[False].dense.inference < 0.5 * peaks[True].dense.inference

    def test_a_model_that_cannot_be_handed_over(self):
        model = sparsify(tiny())
        model.sampler = lambda log_probs, decision, k: decision
        with pytest.raises(InputError, match="process of its own"):
            peak_memory(model)


def test_the_timer_is_imported_late_and_without_a_word() -> None:
    """Importing it looks for a compiler, and complains where there is no CUDA."""
    code = (
        "import sys, dynamicvit.cli.commands\n"
        "from dynamicvit.benchmark import _timer_class\n"
        "assert 'torch.utils.benchmark' not in sys.modules\n"
        "print(_timer_class().__name__)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "Timer\n"
    assert done.stderr == ""
