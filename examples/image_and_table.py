"""Two inputs: an image and a table of numbers beside it, given by name.

Run with ``python examples/image_and_table.py`` (about 15 seconds on two cores).
"""

import torch
from torch import Tensor, nn

import pyronorm as pn

torch.manual_seed(0)
digits = pn.datasets.load("digits")


def with_table(part: pn.datasets.Split) -> tuple[dict[str, Tensor], Tensor]:
    """Hide the upper half of each image; a noisy measurement beside it knows whether it is even."""
    image = part.x.clone()
    image[:, :, :4] = 0
    even = (part.y % 2 == 0).float()[:, None]
    table = torch.cat([even + 0.7 * torch.randn(len(even), 1), torch.randn(len(even), 3)], 1)
    return {"image": image, "table": table}, part.y


class ImageAndTable(nn.Module):
    """A small convolutional network for the image, a layer for the table, one head for both."""

    def __init__(self) -> None:
        super().__init__()
        self.image = nn.Sequential(
            nn.Conv2d(1, 16, 3, stride=2), nn.BatchNorm2d(16), nn.ReLU(), nn.Flatten()
        )
        self.table = nn.Sequential(nn.Linear(4, 16), nn.BatchNorm1d(16), nn.ReLU())
        self.head = nn.Linear(16 * 9 + 16, 10)

    def forward(self, image: Tensor, table: Tensor) -> Tensor:
        """Logits of ten classes."""
        return self.head(torch.cat([self.image(image), self.table(table)], 1))


train, test = with_table(digits.train), with_table(digits.test)
model = pn.NormalizationModel(
    pn.convert(ImageAndTable()),
    pn.likelihoods.Categorical(),
    len(train[1]),
    pn.priors.BatchNoise(256),
)
guide = pn.guides.Point(model)
pn.fit(model, guide, train, epochs=20, batch_size=64, lr=3e-3, seed=0, progress=False)
bank = pn.collect_bank(model, train, batch_size=64, num_batches=32, seed=0)
for name, posterior in {"plain": guide, "batch noise": bank}.items():
    metrics = pn.evaluate(model, posterior, test)
    print(name, {key: round(value, 3) for key, value in metrics.items()})

blind = {"image": test[0]["image"], "table": torch.zeros_like(test[0]["table"])}
print("without the table:", round(pn.evaluate(model, bank, (blind, test[1]))["accuracy"], 3))
