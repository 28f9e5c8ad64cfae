"""A deep ReLU network learns y = x^2 from a few noisy points and tunes its own regularisation while it does; seconds.

Tuned within one training run (Delta-STN): a dropout rate for each hidden layer, the noise on the inputs, and the weight
decay; with --tune_scales also how widely each of them is tried.

Run: python examples/self_tuning_relu.py [--kind stn] [--tune_scales] [--animation relu.gif]
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import mse_loss

from sthyper.config_space import loguniform, uniform
from sthyper.errors import MissingExtra
from sthyper.selftuning.datasets import Batches
from sthyper.selftuning.hyperparameters import Hyperparameters
from sthyper.selftuning.networks import dropouts, mlp
from sthyper.selftuning.regularisers import gaussian_noise, weight_decay
from sthyper.selftuning.trainer import SelfTuner, SelfTunerOptions
from sthyper.selftuning.transform import self_tune, squared_norms


def points(n: int, noise: float, seed: int) -> tuple[Tensor, Tensor]:
    """Return ``n`` points of the parabola between -1 and 1, as columns, with noise on y."""
    generator = torch.Generator().manual_seed(seed)
    x = 2 * torch.rand(n, 1, generator=generator) - 1
    return x, x**2 + noise * torch.randn(n, 1, generator=generator)


def main() -> None:
    """Train with and without tuning, and draw the trajectories of the hyperparameters."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=300)
    parser.add_argument("--layers", type=int, default=3, help="hidden layers")
    parser.add_argument("--width", type=int, default=48)
    parser.add_argument("--points", type=int, default=40, help="training points")
    parser.add_argument("--noise", type=float, default=0.3, help="standard deviation of the noise on their y")
    parser.add_argument("--kind", choices=["delta", "stn"], default="delta")
    parser.add_argument("--tune_scales", action="store_true")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--figure", default="relu.png", help="where to draw the trajectories")
    parser.add_argument("--animation", help="where to write them as an animation, .gif or .mp4")
    args = parser.parse_args()
    torch.set_num_threads(1)

    train = Batches(*points(args.points, args.noise, args.seed), batch_size=20, seed=args.seed)
    validation = Batches(*points(200, 0.0, args.seed + 1), batch_size=100, seed=args.seed)
    test = Batches(*points(500, 0.0, args.seed + 2), batch_size=500, shuffle=False)

    def run(tune: bool) -> SelfTuner:
        torch.manual_seed(args.seed)
        model = mlp(1, n_inputs=1, hidden=[args.width] * args.layers)
        space = {name: uniform(0.0, 0.5) for name in dropouts(model) if name != "dropout0"}
        space |= {"noise": uniform(0.0, 0.5), "weight_decay": loguniform(1e-6, 1e-1)}
        start = dict.fromkeys(space, 0.1) | {"weight_decay": 1e-4}
        hyperparameters = Hyperparameters(space, start=start, seed=args.seed)
        self_tune(model, hyperparameters, args.kind)

        def loss_in_training(prediction: Tensor, y: Tensor, h: Hyperparameters) -> Tensor:
            return mse_loss(prediction, y) + weight_decay(squared_norms(model), h["weight_decay"])

        tuner = SelfTuner(
            model,
            hyperparameters,
            train,
            validation,
            mse_loss,
            train_loss=loss_in_training,
            transform=lambda x, y, h: (gaussian_noise(x, h["noise"]), y),
            options=SelfTunerOptions(
                tune=tune,
                weight_lr=0.05 if args.kind == "delta" else 0.01,
                tune_scales=tune and args.tune_scales,
                entropy_weight=1e-3 if tune and args.tune_scales else 0.0,
                max_norm=1.0,
            ),
        )
        tuner.fit(args.epochs)
        return tuner

    for tune in (False, True):
        tuner = run(tune)
        losses = [record.val_loss for record in tuner.history]
        last = losses[-max(1, args.epochs // 10) :]
        print(
            f"{'self-tuned' if tune else 'start values kept'}: validation loss {min(losses):.5f} at best, "
            f"{sum(last) / len(last):.5f} in the last tenth; test loss of the best epoch {tuner.evaluate(test):.5f}"
        )
    print("hyperparameters in the last tenth of the run:")
    for name, value in tuner.schedule.mean_of_last(0.1).items():
        print(f"  {name}: {value:.4g}")

    try:
        tuner.schedule.plot(args.figure)
        print(f"trajectories: {args.figure}")
        if args.animation:
            print(f"animation: {tuner.schedule.animate(Path(args.animation), frames=24, fps=6)}")
    except MissingExtra as missing:
        print(f"no figure: {missing}")


if __name__ == "__main__":
    main()
