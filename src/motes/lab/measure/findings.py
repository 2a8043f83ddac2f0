"""The findings of an examination (`motes.lab.measure.examination`), each with its remedy."""

from __future__ import annotations

import re
import shlex
import statistics
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence

from motes.core import StepEnd
from motes.lab.measure.examination import Examination, Finding, Level, Trial, share
from motes.lab.measure.formats import duration
from motes.lab.measure.found_answers import answer_findings, reference_findings
from motes.prompts import Prompt
from motes.protocols import LanguageModelTraits
from motes.text import counted, shortened

BUDGET = 16
"""Number of answers to each problem in the estimate of a run's time."""
FEW_STEPS, MANY_STEPS = 3, 40
"""The numbers of steps between which a filter has enough to choose from."""
SHORT_STEP = 8
"""Number of tokens below which a step hardly says anything that can be scored."""
TURNS = re.compile(
    r"<\|[\w▁-]{2,20}\|>|</s>|<(?:end|start)_of_turn>|\[/?INST\]"
    r"|^(?:#+\s*)?(?:Question|Problem|Q|User|Human|Instruction|Exercise)\s*(?:\d+\s*)?:",
    re.MULTILINE,
)
"""Marks of a next turn: of chat templates, and of texts with several questions."""


def findings(examination: Examination) -> list[Finding]:
    """What the trials show, the most general first. Reads and grades answers: not for the event loop."""
    if not examination.answered:
        return [*_failures(examination)]
    kinds: tuple[Callable[[Examination], Iterator[Finding]], ...] = (
        _failures, _prompts, answer_findings, reference_findings, _thoughts, _ends, _steps, _scores, _time,
    )  # fmt: skip
    return [finding for kind in kinds for finding in kind(examination)]


def _failures(examination: Examination) -> Iterator[Finding]:
    trials = examination.trials
    errors = Counter(trial.error for trial in trials if trial.error is not None)
    for error, number in errors.items():
        level: Level = "broken" if number == len(trials) else "warning"
        yield Finding(
            "questions",
            level,
            f"{share(number, trials)} could not be answered: {shortened(str(error), 400)}",
            "do what the message says; in an evaluation such runs fail, and count as not right",
        )


# What the model reads


def _prompts(examination: Examination) -> Iterator[Finding]:
    """Parts of questions and system prompts that are missing in the text that the model reads."""
    known = [trial for trial in examination.trials if trial.prompt is not None]
    missing = [part for trial in known if (part := _missing_part_of(trial, examination.evaluation.prompt))]
    if missing:
        yield Finding(
            "prompt",
            "warning",
            f"the model does not read all of {share(len(missing), known)} prompts: {shortened(missing[0], 60)!r} is "
            "missing",
            "its chat template, or its tokenizer, swallows that: write it in another way, or use another prompt "
            "(--prompt); a system prompt can stand in the question",
        )
    elif known:
        yield Finding("prompt", "fine", f"the model reads all of {counted(len(known), 'question')}")
    else:
        yield Finding("prompt", "fine", "not checked: the model does not show what it reads")


def _missing_part_of(trial: Trial, prompt: Prompt | None) -> str:
    """The beginning of what is missing in the text that the model has read; empty if it has all messages."""
    asked = trial.problem if prompt is None else prompt.problem(trial.problem)
    parts = (missing_part(message["content"], trial.prompt or "") for message in asked.messages)
    return next(filter(None, parts), "")


def missing_part(content: str, prompt: str) -> str:
    """The first words of a message's content that a prompt lacks; empty if it has all of them, in order."""
    words, text = _normal(content).split(), _normal(prompt)
    if " ".join(words) in text:
        return ""
    low, high = 0, len(words)  # the first `low` words are there, the first `high` are not
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if " ".join(words[:middle]) in text else (low, middle)
    return " ".join(words[low : low + 8])


def _normal(text: str) -> str:
    return " ".join(unicodedata.normalize("NFKC", text).split())


# The model's texts


def _thoughts(examination: Examination) -> Iterator[Finding]:
    trials = examination.answered
    trajectories = {trial: trial.trajectory for trial in trials if trial.trajectory is not None}
    thinking = [
        trial
        for trial, trajectory in trajectories.items()
        if trajectory.thinking.reading.opening or trajectory.thought_tokens
    ]
    if not thinking:
        yield Finding("thoughts", "fine", "none: no text has the tags of a thought")
        return
    tokens = [trajectories[trial].thought_tokens for trial in thinking]
    part = sum(tokens) / max(1, sum(trial.num_tokens for trial in thinking))
    text = f"in {share(len(thinking), trials)} texts, of {_between(tokens)} tokens, {100 * part:.0f} % of all"
    open_ended = [trial for trial in thinking if trajectories[trial].thinking.is_open]
    if not open_ended:
        yield Finding("thoughts", "fine", f"{text}; all are closed, and no answer is read in them")
        return
    budget = max(1, min(trial.num_tokens for trial in open_ended) // 2)
    remedy = "allow more tokens, or let the model think less (many chat templates have a switch)"
    if examination.continues_prefixes or LanguageModelTraits(examination.lm).takes_thinking_budget:
        remedy = f"end thoughts early enough for an answer, --max-thinking-tokens {budget}, or allow more tokens"
    if not any(trial.is_cut for trial in open_ended):
        remedy = (
            "the texts end by themselves within the thought: the closing tag may be a special token that the server "
            "leaves out, so start it with a reasoning parser, or use another route"
        )
    level: Level = "broken" if len(open_ended) == len(trials) else "warning"
    yield Finding("thoughts", level, f"{text}; {share(len(open_ended), thinking)} thoughts are never closed", remedy)


def _ends(examination: Examination) -> Iterator[Finding]:
    trials = examination.answered
    reasons = Counter(trial.trajectory.finished for trial in trials if trial.trajectory is not None)
    by_themselves = reasons["eos"] + reasons["answer"]
    if by_themselves == len(trials):
        at_answers = f", {reasons['answer']} of them at a final answer" if reasons["answer"] else ""
        yield Finding("ends", "fine", f"all {len(trials)} texts end by themselves{at_answers}")
    if silent := sum(_says_nothing(trial) for trial in trials):
        yield Finding(
            "ends",
            "broken" if silent == len(trials) else "warning",
            f"{share(silent, trials)} texts end before they say anything outside of thoughts",
            "look at one with --json: the model may need a chat template or another prompt (--prompt), a stop text "
            "(--stop) may be too common, or the server may leave something out of texts",
        )
    level: Level = "broken" if not by_themselves and not any(trial.answer for trial in trials) else "warning"
    for reason in ("max_tokens", "max_steps"):
        if cut := [trial for trial in trials if trial.trajectory is not None and trial.trajectory.finished == reason]:
            where, remedy = _limit(reason, max(trial.num_tokens for trial in cut), examination)
            yield Finding("ends", level, f"{share(len(cut), trials)} texts are cut off {where}", remedy)
    if number := reasons["deadline"]:
        yield Finding(
            "ends",
            level,
            f"{share(number, trials)} answers were not complete at the deadline",
            "the model is slow, or never stops: limit its tokens (--max-tokens), or wait longer (--deadline)",
        )
    yield from _marks_of_turns(trials)
    if loops := sum(trial.is_cut and _is_loop(trial.text) for trial in trials):
        yield Finding(
            "ends",
            "warning",
            f"{share(loops, trials)} texts repeat themselves until they are cut off",
            "sample at a higher temperature (--temperature), or use a model that was trained to chat",
        )


def _says_nothing(trial: Trial) -> bool:
    """Whether a text that the model has ended consists of closed thoughts and blanks."""
    trajectory = trial.trajectory
    if trajectory is None or trial.is_cut or trajectory.thinking.is_open:
        return False
    return not trajectory.content.strip()


def _limit(reason: str, num_tokens: int, examination: Examination) -> tuple[str, str]:
    """Where texts are cut off for a reason, the longest after so many tokens; and how to allow more."""
    sampling = examination.evaluation.sampling
    if reason == "max_steps" and examination.continues_prefixes:
        steps = sampling.max_steps
        return f"after {counted(steps, 'step')}", f"allow more: --max-steps {2 * steps}; or make longer steps"
    limit = sampling.whole().max_step_tokens if reason == "max_steps" else sampling.max_tokens
    if limit is not None and num_tokens >= limit:
        return f"at the limit of {limit:,} tokens", f"allow more: --max-tokens {2 * limit}"
    return (
        f"after {num_tokens:,} tokens, where the model's context, or the server's limit, ends",
        "use a model or a server with a larger context, or a shorter prompt",
    )


def _marks_of_turns(trials: Sequence[Trial]) -> Iterator[Finding]:
    """Texts that go on with another turn, or another question. The marks of a heading are left out: the end of a step
    may cut them off, and a stop text must lie within a step."""
    contents = (trial.trajectory.content for trial in trials if trial.trajectory is not None)
    marks = Counter(match[0].lstrip("# \t") for content in contents if (match := TURNS.search(content, 1)))
    for mark, number in marks.most_common(1):
        yield Finding(
            "ends",
            "warning",
            f"{share(number, trials)} texts go on after {mark!r}, the mark of another turn",
            f"end answers there: --stop {shlex.quote(mark)}",
        )


def _is_loop(text: str) -> bool:
    """Whether the end of a text occurs many times in it."""
    end = text[-40:].strip()
    return len(end) > 8 and text[-4000:].count(end) >= 5


# Steps


def _steps(examination: Examination) -> Iterator[Finding]:
    trials, sampling = examination.answered, examination.evaluation.sampling
    if not examination.continues_prefixes:
        yield Finding(
            "steps",
            "fine",
            "none: the model writes whole answers only, so the methods are greedy, majority, bon and wbon",
        )
        return
    trajectories = [trial.trajectory for trial in trials if trial.trajectory is not None]
    complete = [trajectory.depth for trajectory, trial in zip(trajectories, trials, strict=True) if not trial.is_cut]
    numbers = [trajectory.depth for trajectory in trajectories]
    steps = [step for trajectory in trajectories for step in trajectory.steps]
    if not steps:
        return
    tokens = [step.num_tokens for step in steps]
    length = statistics.median(tokens)
    ends = Counter(step.end for step in steps)
    where = ", ".join(f"{ends[end]} {words}" for end, words in _WHERE.items() if ends[end])
    text = (
        f"{_between(numbers)} in an answer, of {_between(tokens)} tokens ({length:.0f} in the middle); they end {where}"
    )
    remedy = ""
    if max(complete, default=0) == 1:
        text += "; each whole answer is one step, so a filter has nothing to choose from"
        remedy = f"end steps elsewhere: {_other_ends(trials)}"
    elif ends["length"] > len(trials):
        text += f"; many are cut at the limit of {sampling.max_step_tokens:,} tokens"
        remedy = f"end steps elsewhere: {_other_ends(trials)}"
    elif length < SHORT_STEP and statistics.median(numbers) > FEW_STEPS:
        text += "; most are too short to be judged"
        remedy = f"make them longer: {_other_ends(trials)}"
    yield Finding("steps", "warning" if remedy else "fine", text, remedy)


_WHERE: Mapping[StepEnd, str] = {
    "step": "at the end of a step",
    "eos": "with the answer",
    "length": "at a limit",
}


def _between(numbers: Sequence[int]) -> str:
    low, high = min(numbers), max(numbers)
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


_ENDS: tuple[tuple[str, str], ...] = (
    (r"--delimiter '\n\n'", r"\n\n"),
    (r"--delimiter '\n'", r"\n"),
    (r"--pattern '(?<=[.!?])\s'", r"(?<=[.!?])\s"),
)
"""Other ends of steps: the option, and the expression that finds them."""


def _other_ends(trials: Sequence[Trial]) -> str:
    """Options that would divide these texts into a sensible number of steps, each with that number."""
    suggestions = []
    for option, pattern in _ENDS:
        pieces = [sum(1 for piece in re.split(pattern, trial.text) if piece.strip()) for trial in trials]
        if FEW_STEPS <= (number := statistics.median(pieces)) <= MANY_STEPS:
            suggestions.append(f"{option} ({number:.0f} steps)")
    tokens = statistics.median(trial.num_tokens for trial in trials)
    size = max(16, round(tokens / 8))
    if tokens >= 2 * size:
        suggestions.append(f"--step-tokens {size} ({tokens / size:.0f} steps)")
    return ", or ".join(suggestions[:3]) or "the answers are too short to be divided: use bon, wbon or majority"


# The reward model


def _scores(examination: Examination) -> Iterator[Finding]:
    if not examination.has_reward:
        return
    trials = examination.answered
    failed = [trial for trial in trials if trial.scores is None]
    scored = [trial.scores for trial in trials if trial.scores is not None]
    if failed:
        yield Finding(
            "reward",
            "warning" if scored else "broken",
            f"{share(len(failed), trials)} answers could not be scored: {shortened(str(failed[0].reward_error), 300)}",
            "do what the message says; particles without a score are dropped",
        )
    if not scored:
        return
    last_only = examination.is_outcome
    values = [scores[-1] for scores in scored] if last_only else [score for scores in scored for score in scores]
    text = (
        f"{counted(len(values), 'score')}, one for each {'answer' if last_only else 'step'}: from {min(values):.3f} to "
        f"{max(values):.3f}, {statistics.median(values):.3f} in the middle"
    )
    if len(values) > 1 and max(values) - min(values) < 1e-6:
        yield Finding(
            "reward",
            "warning",
            f"{text}: they do not vary",
            "a filter then chooses by chance: check the reward model's format, and that it reads answers of this kind "
            "(`motes rate`)",
        )
    else:
        yield Finding("reward", "fine", text)


# Time


def _time(examination: Examination) -> Iterator[Finding]:
    trials = examination.answered
    seconds = [trial.seconds for trial in trials]
    tokens = sum(trial.num_tokens for trial in trials)
    answers = BUDGET * examination.num_problems
    whole = examination.seconds * answers / len(trials)
    yield Finding(
        "time",
        "fine",
        f"{min(seconds):.1f} to {max(seconds):.1f} s for an answer, {tokens / len(trials):,.0f} tokens on average. "
        f"{BUDGET} answers to each of {counted(examination.num_problems, 'problem')} are {answers:,} answers and about "
        f"{answers * tokens / len(trials):,.0f} tokens: {duration(whole)} (h:mm:ss) at the pace of these "
        f"{len(trials)}, which were written at the same time; with more in flight most engines are faster",
    )
