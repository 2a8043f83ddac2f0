"""A reward model that rides on the language model: a small head on the hidden states from which it samples.

The local engine computes these states in any case. So a probe reads no token, and its cost is that of a product with
its weights for each step. Sources: ReProbe (arXiv 2511.06209), SWIFT (arXiv 2505.12225).
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol
from weakref import WeakKeyDictionary

import numpy as np

from motes import files
from motes.core import NEUTRAL, Failure, FloatArray, HiddenStates, Reads, Scores, Step, Trajectory, Usage
from motes.core.hidden import StepStates
from motes.errors import ConfigurationError, ContextLengthError, MissingExtraError, RewardError
from motes.text import parse_json

WEIGHTS = "probe.safetensors"
SETTINGS = "probe.json"
FORMAT = "motes probe 1"
ARRAYS = ("center", "scale", "inner", "inner_bias", "outer", "outer_bias")

NO_STATES = (
    "the language model returned no hidden states with a step, which the probe reads: use the local engine (hf:…), or "
    "let a copy of the model read the answers (probe:FOLDER?lm=hf:…)"
)

IN_THREAD = 1 << 24
"""Number of multiplications from which on scores are computed in a thread."""


class StateReader(Protocol):
    """A language model that reads the hidden states of any steps, see `LocalLanguageModel.read_states`."""

    @property
    def num_parameters(self) -> int: ...

    async def read_states(
        self, trajectories: Sequence[Trajectory], layers: Sequence[int], *, first: Sequence[int] | None = None
    ) -> list[StepStates]: ...


@dataclass(frozen=True, eq=False)
class Probe:
    """K small networks, the members, each of which maps the states of a step to a logit.

    The states of all layers, the last ones and the means, are F = L · 2 · d numbers x. With z = (x − center) / scale,
    the logit of a member is outer · relu(inner · z + inner_bias) + outer_bias; or outer · z + outer_bias, if it is
    linear. The probability that an answer which goes on from here ends right is

        p = σ(slope · κ · m + shift),  κ = 1/√(1 + temper · v)

    with the mean m and the variance v of the members' logits. With temper = π/8, κ is that of the probit approximation
    of a logistic model whose logit is uncertain (MacKay, "The evidence framework applied to classification networks",
    1992): where members disagree, the probability is nearer to even.

    Attributes:
        layers: (L,) numbers of layers, in ascending order.
        weights: float32 arrays by name: center, scale (F,); inner (K, H, F), inner_bias (K, H), with H = 0 for linear
            members; outer (K, H or F), outer_bias (K,).
        slope, shift: calibration, fitted to problems that the members were not trained on.
        temper: 0 ignores that members disagree.
        provenance: what it was trained on, as values that JSON can hold.

    Raises:
        ConfigurationError: the shapes do not fit together.
    """

    layers: tuple[int, ...]
    weights: Mapping[str, FloatArray]
    slope: float = 1.0
    shift: float = 0.0
    temper: float = 0.0
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if set(self.weights) != set(ARRAYS):
            raise ConfigurationError(f"a probe has the arrays {', '.join(ARRAYS)}")
        num, hidden, size = self.weights["inner"].shape
        shapes = {
            "center": (size,),
            "scale": (size,),
            "inner_bias": (num, hidden),
            "outer": (num, hidden or size),
            "outer_bias": (num,),
        }
        for name, shape in shapes.items():
            if self.weights[name].shape != shape:
                raise ConfigurationError(f"a probe's {name} has the shape {self.weights[name].shape}, not {shape}")
        if not self.layers or size % (2 * len(self.layers)):
            raise ConfigurationError(f"a probe of {len(self.layers)} layers cannot have {size} features")

    @property
    def width(self) -> int:
        """Size of a layer's state."""
        return int(self.weights["center"].shape[0]) // (2 * len(self.layers))

    @property
    def num_parameters(self) -> int:
        return sum(int(self.weights[name].size) for name in ARRAYS[2:])

    @property
    def digest(self) -> str:
        """The SHA-256 of all that scores depend on."""
        digest = hashlib.sha256(json.dumps([self.layers, self.slope, self.shift, self.temper]).encode())
        for name in ARRAYS:
            digest.update(self.weights[name].tobytes())
        return f"sha256:{digest.hexdigest()}"

    def features(self, states: HiddenStates) -> FloatArray:
        """(F,) what the members read of a step.

        Raises:
            ConfigurationError: the states are not those of the model that the probe was trained on.
        """
        try:
            values = states.of(self.layers).values
        except KeyError as error:
            raise ConfigurationError(f"the probe reads layer {error}, whose states the steps lack") from error
        if values.shape[-1] != self.width:
            raise ConfigurationError(
                f"the probe reads states of {self.width} numbers, and the language model's have {values.shape[-1]}: it "
                "was trained on another language model"
            )
        return values.reshape(-1).astype(np.float32)

    def logits(self, features: FloatArray) -> FloatArray:
        """(n, K) the members' logits.

        Args:
            features: (n, F).
        """
        weights = self.weights
        z = (features - weights["center"]) / weights["scale"]
        if weights["inner"].shape[1]:
            inner = np.einsum("nf,khf->nkh", z, weights["inner"], optimize=True) + weights["inner_bias"]
            return np.asarray((np.maximum(inner, 0) * weights["outer"]).sum(-1) + weights["outer_bias"])
        return np.asarray(z @ weights["outer"].T + weights["outer_bias"])

    def scores(self, features: FloatArray) -> list[float]:
        """The probabilities of n steps, in [0, 1]."""
        logits = self.logits(features).astype(np.float64)
        shrunk = logits.mean(1) / np.sqrt(1 + self.temper * logits.var(1))
        values: list[float] = (1 / (1 + np.exp(-np.clip(self.slope * shrunk + self.shift, -700, 700)))).tolist()
        return values

    def save(self, folder: Path) -> None:
        """Write the probe into a folder, two files.

        Raises:
            OSError: it cannot be written.
        """
        from safetensors.numpy import save_file

        folder.mkdir(parents=True, exist_ok=True)
        settings = {
            "format": FORMAT,
            "layers": self.layers,
            "slope": self.slope,
            "shift": self.shift,
            "temper": self.temper,
            **self.provenance,
        }
        arrays = {name: np.ascontiguousarray(array, dtype=np.float32) for name, array in self.weights.items()}
        with files.replacing(folder / WEIGHTS) as path:
            save_file(arrays, path)
        files.write_text(folder / SETTINGS, json.dumps(settings, indent=2, ensure_ascii=False) + "\n")

    @classmethod
    def load(cls, folder: str | Path) -> Probe:
        """Load a probe that `save` has written.

        Raises:
            ConfigurationError: there is none in the folder, or it is damaged.
            MissingExtraError: safetensors is not installed.
        """
        try:
            from safetensors import SafetensorError
            from safetensors.numpy import load_file
        except ImportError as error:
            raise MissingExtraError(f"the probe {str(folder)!r}", "local") from error
        folder = Path(folder).expanduser()
        if not (folder / SETTINGS).is_file():
            raise ConfigurationError(f"there is no probe in {str(folder)!r}: `motes train --kind probe` makes one")
        try:
            settings = parse_json(files.read_text(folder / SETTINGS))
            if settings.pop("format") != FORMAT:
                raise ValueError(f"{SETTINGS} does not say {FORMAT!r}")
            numbers = {name: float(settings.pop(name)) for name in ("slope", "shift", "temper")}
            if not all(map(math.isfinite, numbers.values())) or numbers["temper"] < 0:
                raise ValueError(f"{SETTINGS} has numbers out of range")
            layers = tuple(map(int, settings.pop("layers")))
            return cls(layers, load_file(folder / WEIGHTS), **numbers, provenance=settings)
        except (OSError, ValueError, KeyError, TypeError, AttributeError, SafetensorError) as error:
            raise ConfigurationError(f"the probe in {str(folder)!r} is damaged ({error}): train it anew") from error


class ProbeReward:
    """Scores each prefix by a probe.

    Args:
        probe: a `Probe`, or the folder of one.
        reader: a local language model that reads each answer anew, for answers that come from elsewhere: a server with
            the same model, or a file. Without one, the probe reads the states that the run's own language model has
            sampled from; that must be the local engine, with the model that the probe was trained on.

    A trajectory with a step that lacks the states has no score.

    Raises:
        ConfigurationError: there is no such probe, or it is damaged; while scoring, it was trained on another model.
    """

    merges_calls = True  # a call costs nothing, or joins the reader's batch

    def __init__(self, probe: Probe | str | Path, *, reader: StateReader | None = None) -> None:
        self.probe = probe if isinstance(probe, Probe) else Probe.load(probe)
        self.reader = reader
        self._known: WeakKeyDictionary[Trajectory, float] = WeakKeyDictionary()

    @property
    def hidden_layers(self) -> tuple[int, ...]:
        """See `motes.protocols.RewardModelTraits`."""
        return self.probe.layers if self.reader is None else ()

    @property
    def num_parameters(self) -> int:
        """By which each token is multiplied that the reader reads. The probe itself reads no token."""
        return 0 if self.reader is None else self.reader.num_parameters

    def forget(self) -> None:
        self._known.clear()

    async def score(self, trajectories: Sequence[Trajectory]) -> list[Sequence[float] | Failure]:
        """See `motes.protocols.RewardModel`."""
        if self.reader is not None:
            return list(await asyncio.gather(*map(self._read, trajectories)))
        lacking = [any(_lacks_states(step) for step in trajectory.steps) for trajectory in trajectories]
        readable = (trajectory for trajectory, lacks in zip(trajectories, lacking, strict=True) if not lacks)
        new = {node: None for trajectory in readable for node in trajectory.path if node not in self._known}
        await self._learn([(node, node.step.hidden if node.step is not None else None) for node in new])
        return [
            Failure(RewardError(NO_STATES)) if lacks else self._scores_of(trajectory)
            for trajectory, lacks in zip(trajectories, lacking, strict=True)
        ]

    def _scores_of(self, trajectory: Trajectory) -> Scores:
        values = [self._known[node] for node in trajectory.path]
        return Scores(values, Usage(), Reads(0, (0,) * (len(values) + 1)))

    async def _read(self, trajectory: Trajectory) -> Sequence[float] | Failure:
        """The scores of an answer whose states the reader reads."""
        assert self.reader is not None
        path = trajectory.path
        first = next((place for place, node in enumerate(path) if node not in self._known), len(path))
        usage, reads = Usage(), None
        if first < len(path):
            try:
                (found,) = await self.reader.read_states([trajectory], self.probe.layers, first=[first])
            except ContextLengthError as error:
                return Failure(error)
            usage, reads = found.usage, found.reads
            await self._learn(list(zip(path[first:], found.steps, strict=True)))
        return Scores((self._known[node] for node in path), usage, reads)

    async def _learn(self, nodes: Sequence[tuple[Trajectory, HiddenStates | None]]) -> None:
        """Compute the scores of nodes, parents first. A step without a token has the score of the text before it."""
        with_states = [(node, states) for node, states in nodes if states is not None]
        if with_states:
            features = np.stack([self.probe.features(states) for _, states in with_states])
            if len(features) * self.probe.num_parameters < IN_THREAD:
                scores = self.probe.scores(features)
            else:
                scores = await asyncio.to_thread(self.probe.scores, features)
            self._known.update(zip((node for node, _ in with_states), scores, strict=True))
        for node, states in nodes:
            if states is None:
                before = node.parent
                self._known[node] = NEUTRAL if before is None else self._known.get(before, NEUTRAL)

    def __repr__(self) -> str:
        return f"ProbeReward({self.probe.width}x{len(self.probe.layers)})"


def _lacks_states(step: Step) -> bool:
    return step.hidden is None and step.num_tokens > 0
