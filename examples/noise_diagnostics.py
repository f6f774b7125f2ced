"""How much batch noise a network has on scikit-learn's digits, and of which kind.

Trains a small convolutional network for 12 epochs at batch size 64 and prints, layer by layer, the
effective batch size, whether the batch-noise law holds, and the normalization disturbance.
"""

import torch
from torch.utils.data import DataLoader, RandomSampler, TensorDataset

import pyronorm as pn

torch.manual_seed(0)
data = pn.datasets.load_digits()
x, y = data.train
network = pn.convert(pn.networks.SmallConvNet())
optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)
for _ in range(12):
    for index in torch.randperm(len(x)).split(64)[:-1]:
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(network(x[index]), y[index]).backward()
        optimizer.step()
pn.estimate_population_statistics(network, x, batch_size=64)

sampler = RandomSampler(x, replacement=True, num_samples=64 * 400)
bank = pn.collect_bank(network, DataLoader(TensorDataset(x), 64, sampler=sampler), num_batches=400)
sizes = pn.diagnostics.moment_batch_sizes(bank)
test = pn.diagnostics.noise_law_test(bank)
[disturbance] = pn.diagnostics.normalization_disturbance(network, x[:256], [64], num_draws=10)
print("layer  n_eff of means [95 %]       n_eff of variances    law       disturbance")
for i, name in enumerate(bank.space.names):
    shift, scale = sizes.layer_shift, sizes.layer_scale
    print(
        f"{name}  {shift.value[i]:7.0f} [{shift.low[i]:.0f}, {shift.high[i]:.0f}]  "
        f"{scale.value[i]:7.0f} [{scale.low[i]:.0f}, {scale.high[i]:.0f}]  "
        f"{'rejected' if test.rejected[name] else 'accepted'}  {disturbance.normalized[name]:.3f}"
    )
