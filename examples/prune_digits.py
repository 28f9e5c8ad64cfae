"""A CNN on scikit-learn's digits learns which 30 percent of its channels it needs, and is cut to them; half a minute.

Each channel of a convolution has a gate behind its normalisation. The probabilities of the gates are trained along
with the weights, under a Lagrange multiplier that grows until the expected number of open gates is the given one. Then
closed channels are cut out, and the small network, an ordinary one, is trained a little more. For comparison the whole
network is trained for the same number of epochs.

Run: python examples/prune_digits.py [--keep 0.3] [--seed 0]
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from sthyper.selftuning.datasets import Batches, Images, load_digit_images
from sthyper.straight_through.gates import Gate
from sthyper.straight_through.pruning import PrunedModel, prune

WIDTHS = (32, 64, 64)
LR, GATE_LR, MULTIPLIER_LR = 3e-3, 0.05, 3e-3


def make_model(widths: Iterable[int] = WIDTHS) -> nn.Sequential:
    """Return a plain CNN: (n, 1, 8, 8) pixels to (n, 10) logits."""
    layers: list[nn.Module] = []
    channels = 1
    for i, width in enumerate(widths):
        layers += [nn.Conv2d(channels, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()]
        layers += [nn.MaxPool2d(2)] if i else []
        channels = width
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(4 * channels, 10))


def train(
    model: nn.Module, data: Images, epochs: int, seed: int, gates: dict[str, Gate] | None = None, size: int = 0
) -> None:
    """Train a network; with gates, these too, towards ``size`` open ones."""
    batches = Batches(data.inputs, data.labels, batch_size=64, drop_last=True, seed=seed)
    steps = epochs * len(batches)
    optimizer = torch.optim.Adam(model.parameters(), lr=LR)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    gates = gates or {}
    logits = torch.optim.Adam([gate.logits for gate in gates.values()], lr=GATE_LR) if gates else None
    hooks = [
        model.get_submodule(path).register_forward_hook(lambda module, args, output, gate=gate: gate(output))
        for path, gate in gates.items()
    ]
    multiplier = 0.0
    model.train()
    for _ in range(epochs):
        for x, y in batches:
            loss = cross_entropy(model(x), y)
            optimizer.zero_grad()
            if logits is not None:
                logits.zero_grad()
                excess = torch.stack([gate.expected_size() for gate in gates.values()]).sum() / size - 1
                loss = loss + multiplier * excess
                multiplier = max(0.0, multiplier + MULTIPLIER_LR * float(excess.detach()))
            loss.backward()
            optimizer.step()
            if logits is not None:
                logits.step()
            schedule.step()
    for hook in hooks:
        hook.remove()


def decisions(gates: dict[str, Gate], most: int) -> dict[str, Tensor]:
    """Return which gates are open: those with a probability above one half, and of them the ``most`` likely."""
    ranked = torch.cat([gate.probabilities().detach() for gate in gates.values()]).sort(descending=True).values
    limit = ranked[most] if most < len(ranked) else -1.0
    return {path: gate.decisions() & (gate.probabilities() > limit) for path, gate in gates.items()}


def compress(data: Images, keep: float, epochs: int, seed: int) -> tuple[nn.Module, dict[str, Tensor], PrunedModel]:
    """Train a network with gates, and cut it.

    Returns:
        The network without its gates, what they decided, and what is left of the network.
    """
    torch.manual_seed(seed)
    model = make_model()
    gates = {
        path: Gate(module.num_features, 0.9, dim=1, estimator="hard_concrete", seed=seed + i, name=path)
        for i, (path, module) in enumerate(model.named_modules())
        if isinstance(module, nn.BatchNorm2d)
    }
    most = math.floor(keep * sum(WIDTHS))
    train(model, data, epochs, seed, gates, most)
    chosen = decisions(gates, most)
    return model, chosen, prune(model, chosen, example_input=data.inputs[:2])


@torch.no_grad()
def accuracy(model: nn.Module, data: Images) -> float:
    """Return the share of digits that are recognised."""
    return (model.eval()(data.inputs).argmax(1) == data.labels).double().mean().item()


def size_of(model: nn.Module) -> str:
    """Describe how large a network is."""
    widths = [module.out_channels for module in model.modules() if isinstance(module, nn.Conv2d)]
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return f"{sum(widths)} channels {widths}, {parameters} parameters"


def main() -> None:
    """Train, cut, compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--keep", type=float, default=0.3, help="share of the channels that may stay")
    parser.add_argument("--epochs", type=int, default=25, help="epochs with gates")
    parser.add_argument("--fine_tuning", type=int, default=25, help="epochs after the cut")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--file", default="pruned_digits.pt", help="where to write the weights of the small network")
    args = parser.parse_args()
    if not 0 < args.keep < 1:
        parser.error(f"--keep must lie between 0 and 1; it is {args.keep}")
    torch.set_num_threads(1)
    data, test = load_digit_images().split([1200, -1], args.seed)

    torch.manual_seed(args.seed)
    whole = make_model()
    train(whole, data, args.epochs + args.fine_tuning, args.seed)
    print(f"whole: test accuracy {accuracy(whole, test):.4f}, {size_of(whole)}")

    _, chosen, pruned = compress(data, args.keep, args.epochs, args.seed)
    n_open = sum(int(mask.sum()) for mask in chosen.values())
    print(f"gates: {n_open} of {sum(WIDTHS)} open; test accuracy after the cut {accuracy(pruned.model, test):.4f}")
    for entry in pruned.folded:
        print(f"  {len(entry.channels)} closed channels of {entry.path!r} stay: {entry.reason}")
    train(pruned.model, data, args.fine_tuning, args.seed)
    print(f"pruned: test accuracy {accuracy(pruned.model, test):.4f}, {size_of(pruned.model)}")

    # The result is an ordinary network: its weights fit one that is made with the smaller numbers of channels.
    torch.save(pruned.model.state_dict(), args.file)
    small = make_model(module.out_channels for module in pruned.model if isinstance(module, nn.Conv2d))
    small.load_state_dict(torch.load(args.file))
    print(f"loaded from {args.file}: test accuracy {accuracy(small, test):.4f}")


if __name__ == "__main__":
    main()
