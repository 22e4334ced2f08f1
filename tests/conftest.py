"""Small models: one thread is fastest for each, and ``make test`` runs as many tests as cores."""

import torch

torch.set_num_threads(1)
