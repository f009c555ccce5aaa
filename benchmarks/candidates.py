"""Candidates of weighting, answered by the model: on tasks without an adapter, with some labelled rows of each.

    python -m benchmarks.candidates ../shared/data --draws 14

A draw takes labelled rows of each task (DATA/TASK/labelled.jsonl) as measured examples, and ten others as questions.
The model answers both under each candidate's mixes. A bias for each choice is then fitted on the labelled rows' scores,
and added to the questions' scores. `benchmarks.gains` must have scored the rows before. No validation row is read.

Candidates of the literature use no labels. qa-FLoRA (arXiv 2512.11366) weighs the adapters that similarity keeps by how
far each layer's last state moves from the base model's. LoGo (arXiv 2511.07129) weighs three of all adapters by the
norm of their change in the last layer, divided by each adapter's mean. The orthogonal residual is the nearest adapter,
plus half of that part of the second adapter's change which is orthogonal to the first's.
"""

import argparse
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from benchmarks.evaluation.plan import UNFAMILIAR
from benchmarks.gains import (
    KEPT,
    Floats,
    Index,
    Query,
    Rule,
    Weigh,
    by_gains,
    by_similarity,
    labelled,
    read_index,
    unfamiliar,
)
from benchmarks.kept_rows import library_base
from loracomp.composition.blocks import Factors
from loracomp.composition.calibration import fit_biases
from loracomp.composition.layers import SideBySide
from loracomp.composition.predictor import Predictor
from loracomp.composition.strategies import AdapterWeights, Mix, gated
from loracomp.lab.measuring import read_adapters
from loracomp.model.scoring import encode_texts
from loracomp.records import Answer, Composition, Request
from loracomp.registry.library_files import PACKAGED, read_examples_file

QUESTIONS = 10
"""Rows of a task that a draw asks."""
LAYERED = ("qa-FLoRA", "LoGo", "orthogonal residual")
RULES: Mapping[str, Weigh] = {
    "base": lambda index, _: np.zeros(index.adapters),
    "similarity": by_similarity,
    "uniform over those that similarity keeps": lambda index, each: _equal(by_similarity(index, each)),
    "all adapters equally": lambda index, _: np.full(index.adapters, 1 / index.adapters),
    "measured": by_gains(Rule()),
    "measured, five adapters equally": by_gains(Rule(max_adapters=5, shares="equal")),
    "measured, a right answer counts 2 nats": by_gains(Rule(accuracy=2)),
    "both": by_gains(Rule(max_adapters=5, shares="equal", accuracy=2)),
}
BIASED = ("base", "similarity", "all adapters equally", "measured")
"""Candidates that are also tried with biases."""
LABELLED = (2, 4, 8, 16, 32, 48)


def _equal(weights: Floats) -> Floats:
    return (weights > 0) / max(1, (weights > 0).sum())


@dataclass(frozen=True, slots=True)
class Scored:
    """A row's scores [choices] under a candidate."""

    task: int
    row: int
    answer: int
    scores: Floats

    @property
    def is_right(self) -> bool:
        return bool(self.scores.argmax() == self.answer)

    @property
    def log_probability(self) -> float:
        return float(self.scores[self.answer] - np.logaddexp.reduce(self.scores))


class Asking:
    """Scores labelled rows under any weights for adapters, or for adapters and modules."""

    def __init__(self, index: Index, data: Path) -> None:
        self._base = library_base()
        self._adapters = [adapter.weights for adapter in read_adapters(PACKAGED, self._base)]
        self._packed = [adapter.packed() for adapter in self._adapters]
        self._modules = sorted({module for adapter in self._adapters for module in adapter.factors})
        self._layers = [int(module.split(".")[2]) for module in self._modules]
        self._predictor = Predictor(self._base)
        self._examples = {}
        for task in UNFAMILIAR:
            hashes = [each.tobytes() for each in read_examples_file(KEPT, task).content_hashes]
            first = index.owners.tolist().index(index.tasks.index(task))
            read = {example.content_hash: example for example in labelled(task, data)}
            self._examples |= {first + at: read[each] for at, each in enumerate(hashes) if each in read}
        self._known: dict[tuple[int, bytes], Floats] = {}
        self._norms: dict[int, Floats] = {}

    @property
    def rows(self) -> list[int]:
        """All labelled rows."""
        return sorted(self._examples)

    def scores(self, rows: Sequence[int], weights: Sequence[Floats]) -> list[Floats]:
        """Each row's scores under its weights, [adapters] or [modules, adapters]; 0 everywhere is the base model."""
        keys = [(row, each.round(3).tobytes()) for row, each in zip(rows, weights, strict=True)]
        new = {key: each for key, each in zip(keys, weights, strict=True) if key not in self._known}
        made: dict[int, AdapterWeights] = {}
        requests = [self._request(row, each, made) for (row, _), each in new.items()]
        for key, answer in zip(
            new, self._predictor.predict(requests, lambda ids: [made[id_] for id_ in ids]), strict=True
        ):
            assert isinstance(answer, Answer), answer
            self._known[key] = np.array(answer.choice_scores)
        return [self._known[key] for key in keys]

    def _request(self, row: int, weights: Floats, made: dict[int, AdapterWeights]) -> Request:
        used = [int(place) for place in np.flatnonzero(weights.reshape(-1, len(self._adapters)).any(0))]
        if weights.ndim == 1:
            parts = [self._adapters[place] for place in used]
        else:
            parts = [self._scaled(row, place, weights[:, place]) for place in used]
        made |= {each.id: each for each in parts}
        shares = tuple(weights[used].round(3).tolist()) if weights.ndim == 1 else (1.0,) * len(used)
        mix = Composition(tuple(each.id for each in parts), tuple(each.sha256 for each in parts), shares, "cat")
        example = self._examples[row]
        return Request(example.prompt, example.choices, None, normalization="tokens", composition=mix)

    def _scaled(self, row: int, place: int, weights: Floats) -> AdapterWeights:
        """An adapter whose change of each module is multiplied by that module's weight."""
        whole, by_module = self._adapters[place], dict(zip(self._modules, weights.tolist(), strict=True))
        factors = {module: Factors(A, B * by_module[module]) for module, (A, B) in whole.factors.items()}
        return replace(whole, id=hash((row, place, weights.tobytes())), factors=factors)

    def layered(self, index: Index, each: Query) -> dict[str, Floats]:
        """Weights [modules, adapters] of the candidates of the literature."""
        similar = by_similarity(index, each)
        kept = np.argsort(-similar)[: int((similar > 0).sum())]
        moved, norms = self._signals(each.row, kept)
        self._norms[each.row] = norms
        shape = len(self._modules), index.adapters
        flora, residual = np.zeros(shape), np.zeros(shape)
        flora[:, kept] = (moved / moved.sum(1, keepdims=True))[self._layers]
        residual[:, kept[0]] = 1
        if len(kept) > 1:
            residual[:, kept[1]] = 0.5
            residual[:, kept[0]] -= 0.5 * self._overlap(*kept[:2])
        norm = norms / np.mean(list(self._norms.values()), axis=0)
        best = np.argsort(-norm)[:3]
        logo = np.zeros(index.adapters)
        logo[best] = norm[best] / norm[best].sum()
        return dict(zip(LAYERED, (flora, logo, residual), strict=True))

    @torch.inference_mode()
    def _signals(self, row: int, kept: Sequence[int]) -> tuple[Floats, Floats]:
        """At the prompt's last token: divergence of each layer's next token from the base model's, for the kept
        adapters [layers, kept]; and the norm of each adapter's change of the last layer [adapters].
        """
        model, prompt = self._base.model, self._examples[row].prompt.rstrip()
        ids = torch.tensor(encode_texts(self._base.tokenizer, [prompt]))
        mixes = [Mix(), *(gated("cat", [self._packed[place]], (1.0,)) for place in kept)]
        with SideBySide(model, mixes).composed(mixes):
            states = model.model(input_ids=ids.expand(len(mixes), -1), output_hidden_states=True).hidden_states
        divergences = []
        for layer, state in enumerate(states[1:], start=1):
            last = state[:, -1] if layer == len(states) - 1 else model.model.norm(state[:, -1])
            logs = model.get_output_embeddings()(last).float().log_softmax(-1)
            divergences.append((logs[1:].exp() * (logs[1:] - logs[0])).sum(-1))
        layer = model.model.layers[-1]
        x = layer.input_layernorm(states[-2][0, -1]).float()
        norms = []
        for adapter in self._adapters:
            pairs = [adapter.factors[module] for module in self._modules if f".{len(states) - 2}." in module]
            norms.append(adapter.scaling * sum(float((B.float() @ (A.float() @ x)).norm()) for A, B in pairs))
        return torch.stack(divergences).double().numpy(), np.array(norms)

    def _overlap(self, first: int, second: int) -> Floats:
        """How much of the second adapter's change of each module is the first's: [modules]."""

        def product(module: str, one: AdapterWeights, other: AdapterWeights) -> float:
            (A, B), (C, D) = one.factors[module], other.factors[module]
            return one.scaling * other.scaling * float(((B.float().T @ D.float()) * (A.float() @ C.float().T)).sum())

        a, b = self._adapters[first], self._adapters[second]
        return np.array([product(module, a, b) / (product(module, a, a) or 1) for module in self._modules])


def first_of_each(asked: Sequence[Query]) -> list[Query]:
    """QUESTIONS of each task."""
    return [each for task in {each.task for each in asked} for each in [e for e in asked if e.task == task][:QUESTIONS]]


def answer(asking: Asking, index: Index, queries: Sequence[Query], weights: Sequence[Floats]) -> list[Scored]:
    """The queries' scores under these weights."""
    given = asking.scores([each.row for each in queries], weights)
    answers = [int(index.answers[each.row]) for each in queries]
    return [Scored(each.task, each.row, a, s) for each, a, s in zip(queries, answers, given, strict=True)]


def with_bias(learnt: Sequence[Scored], asked: Sequence[Scored]) -> list[Scored]:
    """The same questions, with a bias of each task's choices fitted on its labelled rows."""
    by_task = {task: [each for each in learnt if each.task == task] for task in {each.task for each in learnt}}
    biases = {
        task: fit_biases(np.array([each.scores for each in rows]), np.array([each.answer for each in rows]))
        for task, rows in by_task.items()
    }
    return [replace(each, scores=each.scores + biases[each.task]) for each in asked]


def difference(found: Sequence[Scored], other: Sequence[Scored]) -> str:
    """Points of accuracy above another candidate, mean of tasks, and its standard error by rows."""
    gains: dict[int, list[int]] = defaultdict(list)
    for one, two in zip(found, other, strict=True):
        gains[one.task].append(one.is_right - two.is_right)
    means = {task: float(np.mean(each)) for task, each in gains.items()}
    off: dict[int, float] = defaultdict(float)  # a row of several draws counts once
    for one, two in zip(found, other, strict=True):
        off[one.row] += (one.is_right - two.is_right - means[one.task]) / len(gains[one.task])
    error = np.sqrt(sum(each**2 for each in off.values())) / len(means)
    return f"{100 * np.mean(list(means.values())):+.1f} ({100 * error:.1f})"


def by_rows(asking: Asking, index: Index, draws: int) -> None:
    """Print what biases are worth by the number of labelled rows, under mixes that are the same for each row."""
    rows = asking.rows
    owners, answers = np.array([index.owners[row] for row in rows]), np.array([index.answers[row] for row in rows])
    print(f"{len(rows)} rows, {draws} draws\n\n| adapters | without | {' | '.join(map(str, LABELLED))} |")
    fixed = {"base": np.zeros(index.adapters), "all equally": np.full(index.adapters, 1 / index.adapters)}
    for name, weights in fixed.items():
        scores = asking.scores(rows, [weights] * len(rows))
        found: dict[int, list[float]] = defaultdict(list)
        for task in np.unique(owners):
            own = np.flatnonzero(owners == task)
            generator = np.random.default_rng(0)
            given, right = np.array([scores[at] for at in own]), answers[own]
            found[0].append(float((given.argmax(1) == right).mean()))
            for count in LABELLED:
                shares = []
                for _ in range(draws):
                    order = generator.permutation(len(own))
                    learnt, asked = order[:count], order[count:]
                    biased = given[asked] + fit_biases(given[learnt], right[learnt])
                    shares.append((biased.argmax(1) == right[asked]).mean())
                found[count].append(float(np.mean(shares)))
        print(f"| {name} | {' | '.join(f'{100 * np.mean(each):.1f}' for each in found.values())} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--draws", type=int, default=14)
    parser.add_argument("--labelled", type=int, default=16, help="labelled rows a task; 16")
    parser.add_argument("--calibration", action="store_true", help="only biases, by the number of labelled rows")
    options = parser.parse_args()
    index = read_index()
    asking = Asking(index, options.data)
    if options.calibration:
        return by_rows(asking, index, options.draws)
    found: dict[str, list[Scored]] = defaultdict(list)
    for draw in range(options.draws):
        learnt, rest = unfamiliar(index, options.labelled, draw)
        asked = first_of_each(rest)
        for name, rule in RULES.items():
            answered = answer(asking, index, asked, [rule(index, each) for each in asked])
            found[name] += answered
            if name in BIASED:
                known = answer(asking, index, learnt, [rule(index, each) for each in learnt])
                found[f"{name}, biases fitted"] += with_bias(known, answered)
        layered = [asking.layered(index, each) for each in asked]
        for name in LAYERED:
            found[name] += answer(asking, index, asked, [each[name] for each in layered])
        print(f"draw {draw + 1}", flush=True)
    print(f"\n{len(found['base'])} answers\n\n| candidate | right | over base | over measured | log-probability |")
    print("|---|---|---|---|---|")
    for name, scored in found.items():
        tasks = defaultdict(list)
        for each in scored:
            tasks[each.task].append((each.is_right, each.log_probability))
        right, log = np.mean([np.mean(each, axis=0) for each in tasks.values()], axis=0)
        versus = f"{difference(scored, found['base'])} | {difference(scored, found['measured'])}"
        print(f"| {name} | {100 * right:.1f} | {versus} | {log:.3f} |")


if __name__ == "__main__":
    main()
