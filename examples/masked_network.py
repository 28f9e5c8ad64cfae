"""A network that learns without changing a weight: its weights stay random, only which of them are kept is trained.

Digits of scikit-learn, a few seconds. The probability of each weight is trained through sampled masks by the
straight-through estimator (Isik et al. 2023, https://arxiv.org/abs/2209.15328); at the end the plain network is
exported, the weights that are not kept being 0.

Run: python examples/masked_network.py [--seed 0] [--epochs 25]
"""

from __future__ import annotations

import argparse

import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from sthyper.straight_through.masked_layers import convert_to_masked_model, export_masked
from sthyper.straight_through.masks import MaskOptions, kept_share, set_evaluation


def digits(seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return training and test images (N x 64, from -1 to 1) and labels: x, y, x, y."""
    x, y = load_digits(return_X_y=True)
    parts = train_test_split(x / 8 - 1, y, test_size=0.25, stratify=y, random_state=seed)
    x_train, x_test, y_train, y_test = (torch.as_tensor(part) for part in parts)
    return x_train.float(), y_train, x_test.float(), y_test


def accuracy(model: nn.Module, x: Tensor, y: Tensor) -> float:
    """Return the share of right answers in evaluation mode."""
    with torch.no_grad():
        return float((model.eval()(x).argmax(1) == y).float().mean())


def main() -> None:
    """Train masks, compare ways to evaluate them, and export the plain network."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--epochs", type=int, default=25)
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(args.seed)
    x, y, x_test, y_test = digits(args.seed)

    network = nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 10))
    for layer in network:
        if isinstance(layer, nn.Linear):
            nn.init.kaiming_normal_(layer.weight)
    print(f"random network: test accuracy {accuracy(network, x_test, y_test):.3f}")

    # Scores start near 0, so that each weight is kept half of the time.
    masked = convert_to_masked_model(network, MaskOptions(estimator="identity", std=0.01))
    before = {name: p.detach().clone() for name, p in masked.named_parameters() if not p.requires_grad}
    optimizer = torch.optim.Adam((p for p in masked.parameters() if p.requires_grad), lr=0.1)
    for _ in range(args.epochs):
        masked.train()
        for batch in torch.randperm(len(x)).split(64):
            optimizer.zero_grad()
            cross_entropy(masked(x[batch]), y[batch]).backward()
            optimizer.step()

    set_evaluation(masked, "sample")
    sampled = [accuracy(masked, x_test, y_test) for _ in range(10)]
    print(f"masks by sampling: test accuracy {sum(sampled) / 10:.3f} (mean of 10, worst {min(sampled):.3f})")
    set_evaluation(masked, "threshold")
    print(f"masks by threshold: test accuracy {accuracy(masked, x_test, y_test):.3f}")
    print(f"kept weights: {kept_share(masked):.1%}")

    after = dict(masked.named_parameters())
    print(f"weights changed: {any(not torch.equal(value, after[name]) for name, value in before.items())}")
    plain = export_masked(masked)
    print(f"exported {[type(layer).__name__ for layer in plain]}: test accuracy {accuracy(plain, x_test, y_test):.3f}")


if __name__ == "__main__":
    main()
