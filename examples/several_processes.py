"""One training on several devices or processes, by distributed data parallel.

Run with ``torchrun --nproc-per-node 2 examples/several_processes.py``; started by
``python examples/several_processes.py`` it is one process (about 10 seconds on two cores).
"""

import gc
import os

import torch
from lightning_fabric import Fabric

import pyronorm as pn

local = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))  # torchrun says how many there are
nodes = int(os.environ.get("WORLD_SIZE", "1")) // local
fabric = Fabric(accelerator="auto", devices=local, num_nodes=nodes)
fabric.launch()

torch.manual_seed(0)  # the same network in all processes
data = pn.datasets.load("digits")
train, test = tuple(data.train), tuple(data.test)
network = pn.convert(pn.networks.SmallConvNet(num_classes=10))
prior = pn.priors.BatchNoise(batch_size=1024)
model = pn.NormalizationModel(network, pn.likelihoods.Categorical(), len(train[1]), prior)
guide = pn.guides.MeanField.from_batch_size(model, 1024)

# 64 examples in each process. Validation, early stopping and statistics are those of all.
history = pn.fit(
    model,
    guide,
    train,
    epochs=6,
    batch_size=64,
    lr=5e-3,
    validation=pn.Validation(test, num_samples=4),
    callbacks=[pn.EarlyStopping(patience=3)],
    fabric=fabric,
    seed=0,
    progress=False,
)

# Every process has the whole model now; one of them is enough to predict.
if fabric.is_global_zero:
    print(f"{fabric.world_size} process(es), best epoch {history.best_epoch}")
    metrics = pn.evaluate(model, guide, test, num_samples=32, seed=0)
    print("  ".join(f"{key} {value:.3f}" for key, value in metrics.items()))

# Processes part before Python ends: threads of their connection that outlive it may abort it.
if torch.distributed.is_initialized():
    torch.distributed.destroy_process_group()
    gc.collect()
