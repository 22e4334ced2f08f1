"""The benchmark: its statistics on known times, its runs on a tiny model, measured memory."""

import inspect
import subprocess
import sys
from functools import partial

import pytest
import timm
import torch
from torch import nn

from dynamicvit import InputError, sparsify
from dynamicvit.costs import count_macs, executed_macs
from dynamicvit.evaluation.bench import (
    BenchRow,
    Spread,
    Times,
    bench,
    memory,
    peak_memory,
    settings_of,
)
from dynamicvit.evaluation.bench import timer as clock
from dynamicvit.evaluation.bench.machine import peak_resident_memory
from dynamicvit.runtimes import RUNTIMES
from processes import in_fork, in_this_process


def tiny(**arguments) -> nn.Module:
    return timm.create_model(
        "deit_tiny_patch16_224",
        **{"depth": 4, "embed_dim": 32, "num_heads": 2, "img_size": 64, **arguments},
    )


class Clock:
    """Shows the times that it is told, one at each call; the first is a warm-up's."""

    def __init__(self, *times: float) -> None:
        self.times = iter([0.0, *times])

    def timeit(self, number: int) -> "Clock":
        assert number == 1
        self.median = next(self.times)
        return self


def with_clocks(monkeypatch: pytest.MonkeyPatch, *clocks: Clock) -> None:
    waiting = iter(clocks)
    monkeypatch.setattr(clock, "timer", lambda *_: next(waiting))


class TestTimes:
    def test_quartiles(self):
        assert Spread.of([5.0, 1.0, 3.0, 2.0, 4.0]) == Spread(2.0, 3.0, 4.0)

    def test_ratios_are_of_rounds(self):
        """The medians' ratio would be 2."""
        assert Times((1.0, 4.0, 9.0)).over(Times((1.0, 2.0, 3.0))) == Spread(1.5, 2.0, 2.5)
        assert Times((8.0, 4.0, 2.0)).over(Times((1.0, 2.0, 4.0))).median == 2.0

    @pytest.mark.parametrize(
        ("percent", "samples", "expected"),
        [
            (50, 2, 1.5),
            (95, 19, None),
            (95, 20, 19.05),
            (99, 99, None),
            (99, 100, 99.01),
            (99, 1001, 991.0),
        ],
    )
    def test_percentiles_of_enough_samples(self, percent, samples, expected):
        times = Times(tuple(float(second) for second in range(samples, 0, -1)))
        assert times.percentile(percent) == pytest.approx(expected)

    @pytest.mark.parametrize(
        ("quartiles", "conclusive"),
        [
            ((1.4, 1.5, 1.6), True),
            ((1.1, 1.2, 1.4), False),
            ((0.9, 1.01, 1.1), False),
            ((0.75, 0.8, 0.85), True),
            ((1.0, 1.0, 1.0), False),
        ],
    )
    def test_no_claim_wider_than_its_distance_from_one(self, quartiles, conclusive):
        assert Spread(*quartiles).conclusive is conclusive


def test_rows():
    times = {"pruned": Times((0.1, 0.2, 0.3)), "dense": Times((0.2, 0.4, 0.6))}
    row = BenchRow(8, "eager", "fp32", 1, **times, pruned_macs=100, dense_macs=250)
    assert row.speed(row.dense).median == pytest.approx(20)
    assert row.as_numbers()["pruned"]["throughput"] == pytest.approx(40)
    assert row.macs_ratio == 2.5
    assert row.realized == pytest.approx(0.8)
    alone = BenchRow(8, "onnx", "fp32", 1, pruned=Times((0.1, 0.2)))
    assert alone.macs_ratio is None
    assert "speedup" not in alone.as_numbers()
    with pytest.raises(ValueError, match="dense"):
        _ = alone.speedup


class TestInTurn:
    def test_each_once_a_round_and_the_other_way_round_in_the_next(self):
        done: list[str] = []
        work = [partial(done.append, name) for name in "abc"]
        times = clock.time_in_turn(work, threads=1, seconds=1.0, samples=3)
        # Each sample is one call after two untimed ones.
        assert "".join(done) == "".join(3 * name for name in "abcabccbaabc")
        assert [len(each.seconds) for each in times] == [3, 3, 3]

    def test_times_go_with_their_work(self, monkeypatch):
        with_clocks(monkeypatch, Clock(1.0, 2.0, 3.0), Clock(4.0, 5.0, 6.0))
        times = clock.time_in_turn([print, print], 1, 1.0, 3)
        assert times == [Times((1.0, 2.0, 3.0)), Times((4.0, 5.0, 6.0))]

    def test_time_is_up_but_not_before_five_rounds(self):
        shares: list[float] = []
        [times] = clock.time_in_turn([lambda: None], 1, 1e-9, progress=shares.append)
        assert len(times.seconds) == 5
        assert shares == [0.2, 0.4, 0.6, 0.8, 1.0]


class TestSettings:
    def test_those_that_exist(self):
        found, left_out = settings_of(
            ["openvino", "onnx", "eager", "onnx"], ["bf16", "fp32"], "cpu"
        )
        assert found == [
            ("openvino", "bf16"),
            ("openvino", "fp32"),
            ("onnx", "fp32"),
            ("eager", "bf16"),
            ("eager", "fp32"),
        ]
        assert [line[:9] for line in left_out] == ["onnx bf16"]

    def test_files_are_for_the_cpu(self):
        found, [line] = settings_of(["eager", "onnx"], ["fp32"], "cuda")
        assert found == [("eager", "fp32")]
        assert line.endswith("cuda")

    @pytest.mark.parametrize(
        ("runtimes", "precisions", "message"),
        [
            (["tflite"], ["fp32"], f"'tflite': .*{', '.join(RUNTIMES)}"),
            (["eager"], ["fp8"], "'fp8': .*fp32, bf16, int8"),
            (["onnx"], ["bf16"], "onnx bf16"),
            ([], ["bf16"], "nothing to measure"),
        ],
    )
    def test_nothing_left(self, runtimes, precisions, message):
        with pytest.raises(InputError, match=message):
            settings_of(runtimes, precisions, "cpu")


class TestBench:
    def test_what_runs(self):
        """Which network, on which images, in which mode and precision, is timed; in which order."""
        model = sparsify(tiny(), stages=[1], method="dynamicvit").train()
        model.backbone.blocks[0].eval()
        seen = []

        def watch(name):
            def hook(module, inputs, output):
                if not inputs[0].is_meta:  # there MACs are counted
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
        bench(model, batch_sizes=[2], precisions=["bf16"], samples=2, threads=1, reference=False)
        for handle in handles:
            handle.remove()
        assert {autocast for _, autocast in seen} == {True}
        names = [name for name, _ in seen]
        # The pruned path runs as its backbone, whose hook it ends with just before its own.
        whole = [
            a for a, b in zip(names, [*names[1:], ""], strict=True) if (a, b) != ("dense", "pruned")
        ]
        order = [name for i, name in enumerate(whole) if i == 0 or whole[i - 1] != name]
        # A warm-up, then two rounds of which the second goes the other way round.
        assert order == ["dense", "pruned", "dense", "pruned", "dense"]
        assert model.training
        assert not model.backbone.blocks[0].training
        assert torch.get_num_threads() == threads

    def test_speedup_is_of_pairs(self, monkeypatch):
        """A machine that slows down tenfold half-way: the ratio of the pairs doesn't see it."""
        with_clocks(monkeypatch, Clock(2.0, 2.0, 20.0, 20.0), Clock(1.0, 1.0, 10.0, 10.0))
        told = []
        [measured] = bench(
            sparsify(tiny(), method="dynamicvit"),
            batch_sizes=[1],
            precisions=["fp32"],
            samples=4,
            progress=lambda *at: told.append(at),
        )
        assert measured.speedup == Spread(2.0, 2.0, 2.0)
        assert told[0] == (1, "eager fp32, preparing", 0.0)
        assert told[-4:] == [(1, "timing", share) for share in (0.25, 0.5, 0.75, 1.0)]

    def test_the_reference_is_a_row_or_timed_besides(self, monkeypatch):
        clocks = [Clock(4.0, 8.0), Clock(3.0, 6.0), Clock(2.0, 4.0), Clock(1.0, 2.0)]
        with_clocks(monkeypatch, *clocks)
        plan = {"batch_sizes": [1], "samples": 2}
        rows = bench(
            sparsify(tiny(), method="dynamicvit"), precisions=["bf16", "fp32"], **plan
        ).rows
        for measured in rows:
            assert measured.reference is rows[1].dense
            assert measured.reference.seconds == (2.0, 4.0)

        with_clocks(monkeypatch, Clock(4.0, 8.0), Clock(3.0, 6.0), Clock(9.0, 18.0))
        [measured] = bench(sparsify(tiny(), method="dynamicvit"), precisions=["bf16"], **plan)
        assert measured.reference == Times((9.0, 18.0))
        assert measured.speedup.median == pytest.approx(4 / 3)

        with_clocks(monkeypatch, Clock(4.0, 8.0), Clock(3.0, 6.0))
        [measured] = bench(
            sparsify(tiny(), method="dynamicvit"), precisions=["bf16"], reference=False, **plan
        )
        assert measured.reference is None

    def test_macs_of_what_is_timed(self):
        model = sparsify(tiny(in_chans=1), method="dynamicvit")
        dense = tiny(in_chans=1, depth=8)
        plan = {"batch_sizes": [1], "precisions": ["fp32"], "samples": 2, "threads": 1}
        [own] = bench(model, **plan)
        [other] = bench(model, dense=dense, **plan)
        assert own.pruned_macs == other.pruned_macs == executed_macs(model)
        assert own.dense_macs == count_macs(model.backbone)
        assert other.dense_macs == count_macs(dense)

    def test_fewer_tokens_are_faster(self):
        """So few of so many are kept that no noise hides it."""
        backbone = tiny(embed_dim=128, img_size=160)
        model = sparsify(backbone, 0.01, stages=[0], method="dynamicvit")
        [measured] = bench(model, batch_sizes=[8], precisions=["fp32"], samples=3, threads=1)
        assert measured.speedup.median > 1.5

    @pytest.mark.parametrize(
        ("plan", "message"),
        [
            ({"batch_sizes": [1, 0]}, "batch size 0"),
            ({"batch_sizes": []}, "one batch size"),
            ({"calibrate": "photos"}, "calibrate photos"),
            ({"runtimes": ["onnx"], "precisions": ["fp32"], "dense": nn.Identity()}, "eager mode"),
            ({"threads": 0}, "threads 0"),
            ({"seconds": 0.0}, "seconds 0.0"),
            ({"seconds": float("nan")}, "seconds nan"),
            ({"samples": 1}, "samples 1"),
            ({"image_size": 65}, "images of 65x65"),
        ],
    )
    def test_bad_plan(self, plan, message):
        with pytest.raises(InputError, match=message):
            bench(sparsify(tiny(), method="dynamicvit"), **plan)

    def test_weights_of_another_precision(self):
        with pytest.raises(InputError, match="bfloat16"):
            bench(sparsify(tiny(), method="dynamicvit").bfloat16())


class TestMemory:
    @pytest.mark.parametrize("process", ["forked", pytest.param("new", marks=pytest.mark.extended)])
    def test_dropping_before_the_first_block_lowers_the_peak(self, process, monkeypatch):
        """In forks of a process that has imported the package, which takes most of the time."""
        if process == "forked":
            run = partial(in_fork, in_this_process)
            monkeypatch.setattr(
                memory.subprocess, "run", lambda words, input, **_: run(words, input)
            )
        backbone = tiny(img_size=224, embed_dim=48, depth=1)
        model = sparsify(backbone, 0.3, [0], "removed", method="dynamicvit")
        measured = peak_memory(model, 64, threads=1)
        assert measured.pruned.inference < 0.9 * measured.dense.inference
        assert measured.pruned.total < measured.dense.total

    def test_a_process_does_not_count_the_peak_of_the_one_that_started_it(self):
        """Or a child of one as large as this would show no difference."""
        code = inspect.getsource(peak_resident_memory)
        code = f"import sys\nfrom pathlib import Path\n{code}\nprint(peak_resident_memory())"
        said = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
        assert int(said.stdout) < 1 << 26 < peak_resident_memory()

    @pytest.mark.parametrize("graph", [False, True])
    def test_a_graph_is_kept_where_it_is_asked_for(self, graph, monkeypatch):
        """And each part is the network that it names; in this process, or it takes seconds."""
        seen = []

        def network(file, part):
            def run(images):
                seen.append((part, torch.is_grad_enabled()))
                return images

            assert file.endswith("model.pt")
            return run

        monkeypatch.setattr(memory, "_filled", network)
        monkeypatch.setattr(memory.subprocess, "run", in_this_process)
        peak_memory(sparsify(tiny(), method="dynamicvit"), 1, graph=graph, threads=1)
        assert seen == [("dense", graph), ("pruned", graph)]

    @torch.no_grad()
    def test_each_part_is_the_network_that_it_names(self, tmp_path):
        model = sparsify(tiny(), 0.3, [0], "removed", method="dynamicvit")
        file = memory._shapes(model, tmp_path)
        lengths = []
        for part in ("dense", "pruned"):
            network = memory._filled(file, part)
            for block in [m for m in network.modules() if type(m).__name__ == "Block"][:1]:
                block.mlp.register_forward_pre_hook(lambda _, x: lengths.append(x[0].shape[1]))
            network(torch.zeros(1, 3, 64, 64))
        assert lengths == [17, 5]

    def test_a_model_that_cannot_be_pickled(self):
        model = sparsify(tiny(), method="dynamicvit")
        model.note = lambda: None
        with pytest.raises(InputError, match="lambda"):
            peak_memory(model)
