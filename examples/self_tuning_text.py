"""An LSTM language model that tunes its own regularisation while it trains, with a training loop of one's own.

Tuned: dropout of outputs, inputs, hidden layers (one mask for all times) and of whole words, DropConnect, and the
penalties of activations (AR) and of their changes (TAR). Without --data the example makes up a text; then a minute.
The experiment of the paper: --data PENN_TREEBANK --size 650 --batch_size 40 --length 70 --optimizer sgd --lr 30

Run: python examples/self_tuning_text.py [--data FOLDER_OR_FILE] [--no_tuning]
"""

from __future__ import annotations

import argparse
import copy
import math
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from sthyper.errors import MissingExtra
from sthyper.selftuning.datasets import Corpus, batchify, bptt_chunks, load_corpus, make_corpus
from sthyper.selftuning.defaults import default_shared, default_space, default_start
from sthyper.selftuning.hyperparameters import Hyperparameters
from sthyper.selftuning.networks import LanguageModel, LanguageOutput
from sthyper.selftuning.regularisers import activation_penalty, temporal_penalty
from sthyper.selftuning.schedule import Schedule
from sthyper.selftuning.steps import Notices, PredictionLoss, delta_stn_step, evaluating, hyper_step, stn_step
from sthyper.selftuning.transform import general_parameters, response_parameters, self_tune

NAMES = [*LanguageModel.DROPOUTS, "alpha", "beta"]
State = list[tuple[Tensor, Tensor]]


def made_up_text(n_lines: int, seed: int) -> list[str]:
    """Return lines of words: mostly one of three words follows a word, and a line keeps to its topic."""
    generator = torch.Generator().manual_seed(1234)
    n_words, n_topics = 50, 2
    following = torch.randint(n_words, (n_topics, n_words, 3), generator=generator)
    generator.manual_seed(seed)
    lines = []
    for _ in range(n_lines):
        topic, word = (int(torch.randint(n, (), generator=generator)) for n in (n_topics, n_words))
        words = []
        for choice in torch.randint(30, (12,), generator=generator).tolist():
            words.append(f"w{word}")
            # Now and then any word may come.
            anything = int(torch.randint(n_words, (), generator=generator))
            word = int(following[topic, word, choice % 3]) if choice < 27 else anything
        lines.append(" ".join(words))
    return lines


def text(data: str | None) -> Corpus:
    """Return the text that is given, or one that is made up."""
    if data is not None:
        return load_corpus(data)
    return make_corpus(made_up_text(300, 0), made_up_text(150, 1), made_up_text(150, 2))


def word_loss(output: LanguageOutput, following: Tensor) -> Tensor:
    """Return the mean loss over all words."""
    return cross_entropy(output.logits.flatten(0, 1), following.flatten())


def detached(state: State) -> State:
    """Return a state through which no gradient goes back."""
    return [(h.detach(), c.detach()) for h, c in state]


@torch.no_grad()
def evaluate(model: LanguageModel, streams: Tensor, length: int) -> float:
    """Return the mean loss over all words, with the hyperparameters at their centre."""
    total, state = 0.0, None
    with evaluating(model):
        for words, following in bptt_chunks(streams, length):
            output = model(words, state)
            total, state = total + float(word_loss(output, following)) * following.numel(), output.state
    return total / (streams.numel() - len(streams))


def endless(streams: Tensor, length: int) -> Iterator[tuple[Tensor, Tensor, bool]]:
    """Yield chunks again and again, and whether one is the first."""
    while True:
        for i, (words, following) in enumerate(bptt_chunks(streams, length)):
            yield words, following, i == 0


def main() -> None:
    """Train, test, and draw the trajectories."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="folder with train.txt, valid.txt and test.txt, or one text file")
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--warm_up", type=int, default=2, help="epochs before the first hyper step")
    parser.add_argument("--size", type=int, default=48, help="of embedding and layers")
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--batch_size", type=int, default=10)
    parser.add_argument("--length", type=int, default=20, help="words for backpropagation through time")
    parser.add_argument("--optimizer", choices=["adam", "sgd"], default="adam", help="of the weights")
    parser.add_argument("--lr", type=float, default=0.01)
    parser.add_argument("--hyper_lr", type=float, default=0.03)
    parser.add_argument("--clip", type=float, default=0.25, help="largest norm of gradients")
    parser.add_argument("--kind", choices=["delta", "stn"], default="delta")
    parser.add_argument("--no_tuning", action="store_true", help="keep the start values")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--figure", default="text.png", help="where to draw the trajectories")
    parser.add_argument("--threads", type=int, default=1, help="of torch; more pay for large sizes only")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)

    corpus = text(args.data)
    train, tuning = batchify(corpus.train, args.batch_size), batchify(corpus.validation, args.batch_size)
    validation, test = batchify(corpus.validation, min(10, args.batch_size)), batchify(corpus.test, 1)
    h = Hyperparameters(default_space(NAMES), start=default_start(NAMES), shared=default_shared(NAMES), seed=args.seed)
    model = LanguageModel(len(corpus.vocabulary), h, size=args.size, hidden=args.size, n_layers=args.layers)
    self_tune(model, h, args.kind)

    optimizer = {"adam": torch.optim.Adam, "sgd": torch.optim.SGD}[args.optimizer]
    weights = optimizer(general_parameters(model), lr=args.lr)
    responses = torch.optim.Adam(response_parameters(model), lr=0.003)
    hyper = torch.optim.Adam([h.raw], lr=args.hyper_lr)
    lengths = torch.Generator().manual_seed(args.seed)
    notices, schedule, tuning_chunks = Notices(), Schedule(), endless(tuning, args.length)
    tuning_state: State | None = None
    best, best_state, step = math.inf, copy.deepcopy(model.state_dict()), 0

    for epoch in range(1, args.epochs + 1):
        state: State | None = None
        total = 0.0
        model.train()
        for words, following in bptt_chunks(train, args.length, lengths):
            ends: list[State] = []

            def predict(
                words: Tensor = words, before: State | None = state, ends: list[State] = ends
            ) -> LanguageOutput:
                output = model(words, before)
                ends.append(output.state)
                return output

            def loss(output: LanguageOutput, following: Tensor = following) -> Tensor:
                ar = activation_penalty(output.dropped, h["alpha"])
                tar = temporal_penalty(output.raw, h["beta"], batch_first=True)
                return word_loss(output, following) + ar + tar

            closure = PredictionLoss(predict, loss)
            # A step over few words is a small one.
            weights.param_groups[0]["lr"] = args.lr * words.shape[1] / args.length
            if args.no_tuning:
                weights.zero_grad()
                with h.off():
                    value = closure()
                value.backward()
                torch.nn.utils.clip_grad_norm_(weights.param_groups[0]["params"], args.clip)
                weights.step()
            elif args.kind == "stn":
                value = stn_step(closure, h, [weights, responses], len(words), max_norm=args.clip).loss
            else:
                value = delta_stn_step(closure, h, weights, responses, len(words), max_norm=args.clip).loss
            # The first pass is that of the weights at the centre.
            state, total, step = detached(ends[0]), total + float(value.detach()) * words.shape[1], step + 1

            if not args.no_tuning and epoch > args.warm_up and step % 2 == 0:
                words, following, first = next(tuning_chunks)
                if first:
                    tuning_state = None
                outputs: list[LanguageOutput] = []

                def tuning_loss(words: Tensor = words, following: Tensor = following) -> Tensor:
                    outputs.append(model(words, tuning_state))  # noqa: B023
                    return word_loss(outputs[0], following)  # noqa: B023

                with evaluating(model):
                    notices.hear(hyper_step(tuning_loss, h, hyper), step)
                tuning_state = detached(outputs[0].state)
                schedule.record(h, step=step, epoch=epoch)

        val_loss = evaluate(model, validation, args.length)
        schedule.record(h, step=step, epoch=epoch, train_loss=total / train.shape[1], val_loss=val_loss, kind="epoch")
        print(f"epoch {epoch:3}: train {total / train.shape[1]:.3f}, validation perplexity {math.exp(val_loss):.2f}")
        if val_loss < best:
            best, best_state = val_loss, copy.deepcopy(model.state_dict())

    model.load_state_dict(best_state)
    print(f"best validation perplexity {math.exp(best):.2f}, with")
    for name, value in h.values().items():
        print(f"  {name}: {value:.4g}")
    print(f"test perplexity {math.exp(evaluate(model, test, args.length)):.2f}")
    try:
        schedule.plot(args.figure)
        print(f"trajectories: {args.figure}")
    except MissingExtra as missing:
        print(f"no figure: {missing}")


if __name__ == "__main__":
    main()
