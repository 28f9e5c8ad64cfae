"""Time of augmenting 512 images of 32 x 32 with all operations, a strength for each image.

Run: python benchmarks/augment.py [--images 512] [--size 32] [--repeats 15] [--threads 2] [--device cpu]
Budget: 100 ms for the composition of all operations, two torch threads, median over the repeats.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

from sthyper.selftuning.augmentation import Augmentation, colour_jitter, cutout, random_affine, random_flip
from sthyper.selftuning.defaults import AUGMENTATIONS, default_space
from sthyper.selftuning.hyperparameters import Hyperparameters
from sthyper.selftuning.regularisers import gaussian_noise, input_dropout, input_scale, mixup

BUDGET_MS = 100.0


def measure(function: Callable[[], object], repeats: int, cuda: bool) -> tuple[float, float]:
    """Return the median wall-clock time of a call and its smallest process CPU time, milliseconds."""
    wall, cpu = [], []
    for _ in range(repeats + 2):
        start, start_cpu = time.perf_counter(), time.process_time()
        function()
        if cuda:
            torch.cuda.synchronize()
        wall.append(time.perf_counter() - start)
        cpu.append(time.process_time() - start_cpu)
    return 1e3 * statistics.median(wall[2:]), 1e3 * min(cpu[2:])


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=512)
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    device = torch.device(args.device)
    images = torch.rand(args.images, 3, args.size, args.size, device=device)
    classes = torch.randint(10, (args.images,), device=device)
    space = default_space(AUGMENTATIONS)
    hyperparameters = Hyperparameters(space, device=device)
    augmentation = Augmentation(mean=(0.49, 0.48, 0.45), std=(0.25, 0.24, 0.26))
    with hyperparameters.perturbed(args.images):
        s = {name: hyperparameters[name] for name in AUGMENTATIONS}
    half = torch.full((args.images,), 0.5, device=device)

    def colours(*names: str) -> Tensor:
        return colour_jitter(images, **{name: s[name] for name in names})

    operations: dict[str, Callable[[], object]] = {
        "flip": lambda: random_flip(images),
        "affine": lambda: random_affine(images, s["degrees"], s["translate"], s["scale"], s["shear"]),
        "brightness, contrast, saturation": lambda: colours("brightness", "contrast", "saturation"),
        "hue": lambda: colours("hue"),
        "normalise": lambda: augmentation.normalised(images),
        "cutout": lambda: cutout(images, s["cutout_holes"], s["cutout_length"]),
        "all": lambda: augmentation(images, s),
        "two views": lambda: augmentation.two_views(images, s, s),
        "input dropout": lambda: input_dropout(images, half),
        "input dropout, one mask for all channels": lambda: input_dropout(images, half, share_channels=True),
        "noise": lambda: gaussian_noise(images, half),
        "input scale": lambda: input_scale(images, half),
        "mixup": lambda: mixup(images, classes, half, 10),
    }
    print(f"{args.images} images of {args.size} x {args.size} on {device}, {torch.get_num_threads()} threads")
    for name, function in operations.items():
        ms, cpu_ms = measure(function, args.repeats, device.type == "cuda")
        budget = f", {ms / BUDGET_MS:.2f} of the budget ({BUDGET_MS:.0f} ms)" if name == "all" else ""
        print(f"{name}: {ms:.1f} ms ({cpu_ms:.1f} ms CPU){budget}")


if __name__ == "__main__":
    main()
