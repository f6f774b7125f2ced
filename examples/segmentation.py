"""Segmentation with pixels that nobody labelled, and where the network is unsure.

Run with ``python examples/segmentation.py`` (about 20 seconds on two cores).
"""

import torch
from torch import nn

import pyronorm as pn

torch.manual_seed(0)
UNKNOWN, SIZE = -1, 16


def scenes(number: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Noisy images of a disc on a ground, and the class of each pixel."""
    grid = torch.stack(
        torch.meshgrid(torch.arange(SIZE), torch.arange(SIZE), indexing="ij")
    ).float()
    centre = torch.rand(number, 2, 1, 1) * 8 + 4
    radius = torch.rand(number, 1, 1) * 3 + 2
    disc = ((grid - centre).square().sum(1).sqrt() < radius).long()
    return disc[:, None].float() + 0.7 * torch.randn(number, 1, SIZE, SIZE), disc


def block(inputs: int, outputs: int) -> nn.Sequential:
    """Convolution, batch normalization, rectifier."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU()
    )


images, classes = scenes(200)
labelled = torch.where(torch.rand(classes.shape) < 0.3, classes, UNKNOWN)  # 70 % are missing
test = scenes(100)

network = nn.Sequential(block(1, 12), block(12, 12), block(12, 12), nn.Conv2d(12, 2, 1))
likelihood = pn.likelihoods.Categorical(ignore_index=UNKNOWN)
model = pn.NormalizationModel(
    pn.convert(network), likelihood, len(images), pn.priors.BatchNoise(256)
)
point = pn.guides.Point(model)
pn.fit(model, point, (images, labelled), epochs=15, batch_size=20, lr=1e-2, seed=0, progress=False)
bank = pn.collect_bank(model, images, batch_size=20, num_batches=32)  # batch noise as a posterior

for name, posterior in {"plain": point, "batch noise": bank}.items():
    metrics = pn.evaluate(model, posterior, test)
    print(name, {key: round(value, 4) for key, value in metrics.items()})
prediction = pn.predict(model, bank, test[0])
wrong = prediction.mean.argmax(-1) != test[1]
doubt = prediction.entropy
print(f"entropy where right {doubt[~wrong].mean():.3f}, where wrong {doubt[wrong].mean():.3f} nats")
