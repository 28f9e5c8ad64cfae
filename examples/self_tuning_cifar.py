"""CIFAR-10 with self-tuned regularisation and augmentation: any of the hyperparameters below, in one training run.

  dropout0 ...        the dropout layers of the network, each with its own rate (``--list`` names them); ``dropout`` and
                      ``fcdropout``: one rate for those that have none
  indropout, inscale, noise, pixel_keep_prob          noise on the inputs
  brightness, contrast, saturation, hue               colours
  degrees, translate, scale, shear                    affine transformations
  cutout_length, cutout_holes, mixup                  other augmentation
  label_smoothing, weight_decay, wdrop, alpha         penalties and DropConnect (of the last layer, or of the LSTM)
  dropoute, dropouti, dropouth, dropouto, beta        --network lstm, which reads an image as a text of 64 visual words

Run: python examples/self_tuning_cifar.py --data cifar-10-binary.tar.gz [--network alexnet] [--tune dropout0 hue ...]
     The data may be the folder or archive of the binary version, or an .npz file with x_train, y_train, x_test, y_test.
"""

from __future__ import annotations

import argparse
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize

from sthyper.config_space import uniform
from sthyper.errors import MissingExtra
from sthyper.selftuning.augmentation import Augmentation
from sthyper.selftuning.datasets import NORMALISATIONS, Batches, load_cifar10
from sthyper.selftuning.defaults import AUGMENTATIONS, Tunable, default_shared, default_space, default_start
from sthyper.selftuning.hyperparameters import Hyperparameters
from sthyper.selftuning.networks import LanguageModel, dropouts, make_network
from sthyper.selftuning.regularisers import (
    DropConnect,
    activation_penalty,
    gaussian_noise,
    input_dropout,
    input_scale,
    mixup,
    smoothed_cross_entropy,
    temporal_penalty,
    weight_decay,
)
from sthyper.selftuning.trainer import SelfTuner, SelfTunerOptions
from sthyper.selftuning.transform import plain_state_dict, self_tune, squared_norms

DEFAULT = [
    *("indropout", "dropout0", "dropout1", "dropout2", "noise", "brightness", "contrast", "saturation"),
    *("cutout_length", "cutout_holes", "weight_decay", "label_smoothing"),
]
OTHERS = [
    "inscale",
    "noise",
    "pixel_keep_prob",
    *AUGMENTATIONS,
    "mixup",
    "label_smoothing",
    "weight_decay",
    "wdrop",
    "alpha",
]
PIXEL_KEEP = Tunable("probability that a pixel is kept", uniform(0.25, 1.0), start=0.95)
PATCH = 4


class Output(NamedTuple):
    """Logits, and the features before the last layer without and with dropout."""

    logits: Tensor
    raw: Tensor
    dropped: Tensor


class Classifier(nn.Module):
    """A network of layers in a row, which also returns what its last layer gets."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.network = make_network(name)
        self.head = [child for child, _ in self.network.named_children()][-1]

    def forward(self, x: Tensor) -> Output:
        """Classify images (``B x 3 x 32 x 32``)."""
        *body, head = self.network
        for layer in body:
            x = layer(x)
        return Output(head(x), x, x)


class Reader(nn.Module):
    """An LSTM that reads images as texts: each patch of 4 x 4 pixels is the nearest one of 256 patches of the data."""

    def __init__(self, hyperparameters: Hyperparameters, images: Tensor, n_words: int = 256) -> None:
        super().__init__()
        patches = self.patches(images[:n_words]).flatten(0, 1)
        self.register_buffer("codebook", patches[torch.randperm(len(patches))[:n_words]])
        self.network = LanguageModel(n_words, hyperparameters, n_outputs=10, size=64, hidden=64, tied=False)

    @staticmethod
    def patches(x: Tensor) -> Tensor:
        """Return the patches of images (``B x 64 x 48``)."""
        return F.unfold(x, PATCH, stride=PATCH).transpose(1, 2)

    def forward(self, x: Tensor) -> Output:
        """Classify images (``B x 3 x 32 x 32``)."""
        words = torch.cdist(self.patches(x.detach()), self.codebook).argmin(-1)
        output = self.network(words)
        return Output(output.logits.mean(1), output.raw, output.dropped)


def known_names(network: str) -> dict[str, str | Tunable]:
    """Return all hyperparameters of a network, and which of the library's regularisers each of them is."""
    if network == "lstm":
        return {
            **{name: name for name in (*LanguageModel.DROPOUTS, "beta", "indropout", *OTHERS)},
            "pixel_keep_prob": PIXEL_KEEP,
        }
    with torch.device("meta"):
        layers = dropouts(make_network(network))
    known: dict[str, str | Tunable] = {name: "fcdropout" if "fc" in name else "dropout" for name in layers}
    known |= {name: name for name in ("dropout", "fcdropout", "indropout", *OTHERS)}
    return known | {"pixel_keep_prob": PIXEL_KEEP}


def main() -> None:
    """Train, test, and draw the trajectories."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="CIFAR-10: folder or archive of the binary version, or an .npz file")
    networks = ["small_cnn", "alexnet", "vgg16", "keras_cnn", "lstm"]
    parser.add_argument("--network", default="small_cnn", choices=networks)
    parser.add_argument("--tune", nargs="+", metavar="NAME", help="hyperparameters; 'all' for those of the network")
    parser.add_argument("--start", nargs="+", default=[], metavar="NAME=VALUE", help="other start values")
    parser.add_argument("--list", action="store_true", help="list the hyperparameters of the network and end")
    parser.add_argument("--paper", default="stn", choices=["stn", "delta-stn"], help="whose ranges")
    parser.add_argument("--kind", default="delta", choices=["delta", "stn"])
    parser.add_argument("--response", default="auto", choices=["auto", "full", "lowrank"])
    parser.add_argument("--update", choices=["linearised", "nonlinear", "joint"])
    parser.add_argument("--tune_scales", action="store_true")
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--batch_size", type=int, default=128)
    parser.add_argument("--lr", type=float, default=0.01)
    parser.add_argument("--images", type=int, default=50_000, help="training and validation images, split 80/20")
    parser.add_argument("--test_images", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--figure", default="cifar.png", help="where to draw the trajectories")
    parser.add_argument("--save", help="where to save the plain network's state")
    args = parser.parse_args()

    known = known_names(args.network)
    if args.list:
        print("\n".join(known))
        return
    if args.data is None:
        parser.error("--data is missing; this example downloads nothing")
    names = list(known) if args.tune == ["all"] else args.tune or [name for name in DEFAULT if name in known]
    if args.tune == ["all"]:
        # Layers have their own rates then.
        names = [name for name in names if name not in ("dropout", "fcdropout")]
    if unknown := [name for name in names if name not in known]:
        parser.error(f"--tune: {args.network} does not know {unknown}; see --list")
    meaning = {name: known[name] for name in names}
    start = default_start(meaning) | {name: float(value) for name, value in (s.split("=") for s in args.start)}
    space, shared = default_space(meaning, args.paper), default_shared(meaning)
    hyperparameters = Hyperparameters(space, start=start, shared=shared, seed=args.seed)

    torch.manual_seed(args.seed)
    mean, std = NORMALISATIONS["cifar10"]
    view = Augmentation(flip=0.5, mean=tuple(mean), std=tuple(std))
    whole, test = (part.to(args.device) for part in load_cifar10(args.data))
    train, validation = whole[: args.images].split([0.8, 0.2], args.seed)
    loaders = [Batches(train.inputs, train.labels, batch_size=args.batch_size, seed=args.seed)]
    for part in (validation, test[: args.test_images]):
        loaders.append(Batches(view.normalised(part.inputs), part.labels, batch_size=args.batch_size))

    exclude, rates = [], {}
    model: Classifier | Reader
    if args.network == "lstm":
        model = Reader(hyperparameters, view.normalised(train.inputs[:256].cpu()))
    else:
        model = Classifier(args.network)
        for layer in dropouts(model.network):
            shared_rate = "fcdropout" if "fc" in layer else "dropout"
            own = layer if layer in names else shared_rate if shared_rate in names and layer != "indropout" else None
            if own is not None:
                rates[f"network.{layer}"] = own
        if "wdrop" in names:
            head = model.network.get_submodule(model.head)
            parametrize.register_parametrization(head, "weight", DropConnect(hyperparameters, "wdrop"))
            exclude.append(f"network.{model.head}")
    has_indropout = "network.indropout" in rates
    self_tune(
        model.to(args.device),
        hyperparameters.to(args.device),
        args.kind,
        args.response,
        exclude=exclude,
        dropout=rates,
        seed=args.seed,
    )

    def augmented(x: Tensor, y: Tensor, h: Hyperparameters) -> tuple[Tensor, Tensor]:
        if "pixel_keep_prob" in h:
            x = input_dropout(x, 1 - h["pixel_keep_prob"], rescale=False)
        x = view(x, h)
        if "inscale" in h:
            x = input_scale(x, h["inscale"])
        if "noise" in h:
            x = gaussian_noise(x, h["noise"])
        if "indropout" in h and not has_indropout:
            x = input_dropout(x, h["indropout"])
        return mixup(x, y, h["mixup"], n_classes=10) if "mixup" in h else (x, y)

    def training_loss(output: Output, y: Tensor, h: Hyperparameters) -> Tensor:
        if "label_smoothing" in h:
            loss = smoothed_cross_entropy(output.logits, y, h["label_smoothing"])
        else:
            loss = F.cross_entropy(output.logits, y)
        if "weight_decay" in h:
            loss = loss + weight_decay(squared_norms(model), h["weight_decay"])
        if "alpha" in h:
            loss = loss + activation_penalty(output.dropped, h["alpha"])
        if "beta" in h:
            loss = loss + temporal_penalty(output.raw, h["beta"], batch_first=True)
        return loss

    tuner = SelfTuner(
        model,
        hyperparameters,
        loaders[0],
        loaders[1],
        lambda output, y: F.cross_entropy(output.logits, y),
        train_loss=training_loss,
        transform=augmented,
        options=SelfTunerOptions(
            update=args.update,
            weight_lr=args.lr,
            tune_scales=args.tune_scales,
            entropy_weight=1e-3 if args.tune_scales else 0.0,
        ),
        metrics={"accuracy": lambda output, y: (output.logits.argmax(1) == y).double().mean()},
        reporter=lambda **m: print(
            f"epoch {m['epoch']:3}: train {m['train_loss']:.3f}, validation {m['val_loss']:.3f}"
        ),
    )
    result = tuner.fit(args.epochs)
    print(f"best epoch {result.best_epoch}: validation loss {result.best_val_loss:.4f}")
    for name, value in result.values.items():
        print(f"  {name}: {value:.4g}")
    measured = tuner.measure(loaders[2])
    print(f"test loss {measured['loss']:.4f}, accuracy {measured['accuracy']:.4f}")
    if args.save:
        torch.save(plain_state_dict(model), args.save)
    try:
        tuner.schedule.plot(args.figure)
        print(f"trajectories: {args.figure}")
    except MissingExtra as missing:
        print(f"no figure: {missing}")


if __name__ == "__main__":
    main()
