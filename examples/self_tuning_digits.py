"""A small CNN on 300 noisy digits of scikit-learn tunes its own regularisation while it trains; about a minute.

Compares one run with the start values kept and one in which dropout rates, input noise, label smoothing and weight
decay are tuned by gradient on 600 validation images. The tuned network is then exported as a plain one.

Run: python examples/self_tuning_digits.py [--epochs 100]
"""

from __future__ import annotations

import argparse
from collections import OrderedDict

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from sthyper.config_space import loguniform, uniform
from sthyper.errors import MissingExtra
from sthyper.selftuning.datasets import Batches, load_digit_images
from sthyper.selftuning.hyperparameters import Hyperparameters
from sthyper.selftuning.regularisers import gaussian_noise, smoothed_cross_entropy, weight_decay
from sthyper.selftuning.trainer import SelfTuner, SelfTunerOptions
from sthyper.selftuning.transform import export, self_tune, squared_norms


def make_model() -> nn.Module:
    """Return a plain CNN: (n, 1, 8, 8) pixels to (n, 10) logits."""
    return nn.Sequential(
        OrderedDict(
            conv0=nn.Conv2d(1, 16, 3, padding=1),
            pool0=nn.MaxPool2d(2),
            relu0=nn.ReLU(),
            dropout0=nn.Dropout2d(),
            conv1=nn.Conv2d(16, 32, 3, padding=1),
            pool1=nn.MaxPool2d(2),
            relu1=nn.ReLU(),
            flatten=nn.Flatten(),
            dropout1=nn.Dropout(),
            fc=nn.Linear(128, 10),
        )
    )


SPACE = {
    "dropout0": uniform(0.0, 0.9),  # the names of layers
    "dropout1": uniform(0.0, 0.9),
    "noise": uniform(0.0, 1.0),
    "label_smoothing": uniform(0.0, 0.5),
    "weight_decay": loguniform(1e-5, 1e-1),
}
START = {"dropout0": 0.05, "dropout1": 0.05, "noise": 0.1, "label_smoothing": 0.05, "weight_decay": 1e-4}


def main() -> None:
    """Train with and without tuning."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=100)
    parser.add_argument("--kind", choices=["delta", "stn"], default="delta")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--figure", default="digits.png", help="where to draw the trajectories")
    args = parser.parse_args()
    torch.set_num_threads(1)

    parts = load_digit_images(noise=0.3).split([300, 600, -1], args.seed)
    train, validation, test = (
        Batches(part.inputs, part.labels, batch_size=size, seed=args.seed)
        for part, size in zip(parts, (50, 100, 500), strict=True)
    )
    for tune in (False, True):
        torch.manual_seed(args.seed)
        hyperparameters = Hyperparameters(SPACE, start=START, seed=args.seed)
        model = self_tune(make_model(), hyperparameters, args.kind)

        def training_loss(logits: Tensor, y: Tensor, h: Hyperparameters, model: nn.Module = model) -> Tensor:
            penalty = weight_decay(squared_norms(model), h["weight_decay"])
            return smoothed_cross_entropy(logits, y, h["label_smoothing"]) + penalty

        tuner = SelfTuner(
            model,
            hyperparameters,
            train,
            validation,
            cross_entropy,
            train_loss=training_loss,
            transform=lambda x, y, h: (gaussian_noise(x, h["noise"]), y),
            options=SelfTunerOptions(tune=tune, weight_lr=0.03),
            metrics={"accuracy": lambda logits, y: (logits.argmax(1) == y).double().mean()},
        )
        result = tuner.fit(args.epochs)
        tested = tuner.measure(test)
        print(
            f"{'self-tuned' if tune else 'start values kept'}: validation loss {result.best_val_loss:.4f} in epoch "
            f"{result.best_epoch}, test loss {tested['loss']:.4f}, test accuracy {tested['accuracy']:.4f}"
        )
    for name, value in result.values.items():
        print(f"  {name}: {START[name]} -> {value:.4g}")

    plain = export(model).eval()
    images, labels = parts[2].inputs, parts[2].labels
    with torch.no_grad():
        accuracy = (plain(images).argmax(1) == labels).double().mean()
    print(f"accuracy of the exported {type(plain).__name__}: {accuracy:.4f}")
    try:
        tuner.schedule.plot(args.figure)
        print(f"trajectories: {args.figure}")
    except MissingExtra as missing:
        print(f"no figure: {missing}")


if __name__ == "__main__":
    main()
