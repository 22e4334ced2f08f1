"""What a process holds in training, with whole weights (DDP) and with parts of them (FSDP).

On Linux, on the CPU; from the root, the second line for FSDP (docs/scaling.md)::

    export MALLOC_MMAP_THRESHOLD_=65536  # what is freed goes back to the system
    torchrun --nproc-per-node 2 benchmarks/sharding_memory.py vit_base_patch16_224
    torchrun --nproc-per-node 2 benchmarks/sharding_memory.py vit_base_patch16_224 --shard
"""

from __future__ import annotations

import ctypes
import gc
import sys
from pathlib import Path

import timm
import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from dynamicvit import sparsify
from dynamicvit.data import Batch
from dynamicvit.training import load_recipe
from dynamicvit.training.loop import averaged
from dynamicvit.training.optimizer import create_optimizer
from dynamicvit.training.step import Split, Step
from dynamicvit.training.teachers import teachers_for
from dynamicvit.utils.distributed import launched_processes

SIZE = 64
RECIPE = load_recipe("deit_small", ["ema=0.9", "augment.mixup=0", "augment.cutmix=0"])


def main(name: str, sharded: bool) -> None:
    """Two steps on one image for each process; the second is looked at."""
    processes = launched_processes(sharded=sharded)
    libraries = resident("VmRSS")
    model = sparsify(timm.create_model(name, img_size=SIZE), 0.7).train()
    teachers = teachers_for(model, RECIPE)
    student = processes.student(model)
    optimizer = create_optimizer(student, RECIPE)
    ema = averaged(model, student, RECIPE, processes)
    step = Step(student, teachers, RECIPE, processes)
    batch = Batch(torch.randn(1, 3, SIZE, SIZE), torch.tensor([1]))
    between = 0.0
    for number in range(2):
        optimizer.zero_grad()
        if number:
            gc.collect()
            ctypes.CDLL(None).malloc_trim(0)
            between = resident("VmRSS")
            Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
        step.backward(batch, Split(number, processes.rank, processes.count))
        optimizer.step()
        ema.update(student, step=number)
    weights = list(student.parameters())
    held = {
        "weights": weights,
        "gradients": [weight.grad for weight in weights if weight.grad is not None],
        "moments": [value for state in optimizer.state.values() for value in state.values()],
        "averages": list(ema.module.parameters()),
    }
    if processes.is_main:
        for part, tensors in held.items():
            print(f"{part:<10}{sum(own(tensor).nbytes for tensor in tensors) / 1e6:8.0f} MB")
        print(f"{'between':<10}{between - libraries:8.0f} MB resident, beside the libraries")
        print(f"{'peak':<10}{resident('VmHWM') - libraries:8.0f} MB resident, likewise")
    processes.close()


def own(tensor: Tensor) -> Tensor:
    """The part that this process holds."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def resident(what: str) -> float:
    """Memory of this process in MB, as Linux counts it."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(what)).split()[1]) * 1024 / 1e6


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(sys.argv[1], "--shard" in sys.argv)
