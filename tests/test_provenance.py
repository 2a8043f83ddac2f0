"""Where numbers come from: what an evaluation's directory, its tables, page and pictures say that it was made with."""

from __future__ import annotations

import asyncio
import dataclasses
import functools
import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import motes
import worlds
from motes import CalibratedReward, Calibration, ConfidenceReward, FunctionReward, Judge, Problem, Sampling
from motes.cli import main
from motes.errors import RunDirectoryError
from motes.lab import CorruptedReward, Evaluation, Report, evaluate, merge, write_report
from motes.lab.run import identity
from motes.lab.run.calls import write_calls
from motes.lab.run.damage import Damages
from motes.lab.run.evaluation import PROVENANCE, Shard
from motes.lab.run.keys import HIDDEN, without_keys
from motes.lab.run.provenance import MAX_METADATA, Call, Provenance, differences, read_calls, together
from motes.rewards.mixture import MixedReward, Mixture

SMALL = Evaluation(
    methods=("pf", "greedy"), budgets=(1, 2), limit=4, lm="worlds:language_model", reward="worlds:reward_model"
)


def run(directory: Path, evaluation: Evaluation = SMALL, **options: Any) -> Any:
    return asyncio.run(evaluate(evaluation, directory, **options))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("finished")
    run(directory, command="motes eval --out here", lm=worlds.language_model(), reward=motes.reward_model("tiny"))
    return directory


def changed(directory: Path, place: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    """A copy of an evaluation whose only call is another one."""
    shutil.copytree(directory, place)
    (line,) = (place / PROVENANCE).read_text().splitlines()
    told = json.loads(line)
    change(told)
    (place / PROVENANCE).write_text(json.dumps(told) + "\n")
    return place


class TestACall:
    def test_says_what_it_did_the_runs_with(self, finished: Path):
        (call,) = read_calls(finished)
        assert call.motes["version"] == motes.__version__
        assert call.command == "motes eval --out here"
        assert call.started.endswith("+00:00")
        assert call.models["lm"]["code"] == "worlds:StoryLanguageModel"
        assert call.models["reward"]["kind"] == "local"
        assert call.models["reward"]["name"] == "worlds:reward_model"  # what the evaluation calls it
        assert call.task == {"name": "arithmetic", "problems": 4, "digest": identity.of_problems(SMALL.problems())}
        assert call.machine["python"].split()[1].count(".") == 2
        assert call.packages["numpy"]
        assert call.settings == {"concurrency": 64}
        assert call.runs_before == 0

    def test_the_next_one_adds_a_line_and_one_without_runs_none(self, tmp_path: Path):
        run(tmp_path, shard=Shard(1, 2))
        run(tmp_path)
        run(tmp_path)
        first, second = read_calls(tmp_path)
        assert (first.settings["shard"], first.runs_before) == ("1/2", 0)
        assert ("shard" in second.settings, second.runs_before) == (False, 6)

    def test_what_a_killed_process_left_is_cut_off(self, finished: Path, tmp_path: Path):
        whole = (finished / PROVENANCE).read_bytes()
        (tmp_path / PROVENANCE).write_bytes(whole + whole[:100])
        run(tmp_path)
        assert (tmp_path / PROVENANCE).read_bytes().startswith(whole + b'{"started"')
        assert len(read_calls(tmp_path)) == 2

    def test_the_command_line_tells_its_command(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setenv("SOME_TOKEN", "swordfish-and-more")
        words = ["eval", "--limit", "1", "--budgets", "1", "--methods", "greedy", "--out", f"{tmp_path}/a b"]
        models = ["--model", "worlds:language_model", "--reward", "none"]
        assert main([*words, *models, "--stop", "swordfish-and-more"]) == 0
        (call,) = read_calls(tmp_path / "a b")
        assert call.command is not None
        assert call.command.startswith("motes eval --limit 1 --budgets 1")
        assert f"'{tmp_path}/a b'" in call.command
        assert HIDDEN in call.command
        assert "swordfish" not in (tmp_path / "a b" / PROVENANCE).read_text()
        assert "reward" not in call.models


class TestKeys:
    @pytest.mark.parametrize(
        ("text", "hidden"),
        [
            ("http://h/v1#m?api_key=abc123&seeds=none", f"http://h/v1#m?api_key={HIDDEN}&seeds=none"),
            ("motes eval --model 'http://h/v1#m?api_key=abc'", f"motes eval --model 'http://h/v1#m?api_key={HIDDEN}'"),
            ("http://h/v1#m?api_key_env=MY_KEY", "http://h/v1#m?api_key_env=MY_KEY"),
            ("https://me:pass@host/v1", f"https://{HIDDEN}@host/v1"),
            ("Authorization: Bearer abcdefghijkl", f"Authorization: Bearer {HIDDEN}"),
            ("python run.py --api-key abc --out x", f"python run.py --api-key {HIDDEN} --out x"),
            ("HF_TOKEN=abc motes eval", f"HF_TOKEN={HIDDEN} motes eval"),
            ("see sk-0123456789abcdefgh", f"see {HIDDEN}"),
            ("motes eval --max-tokens 512 --step-tokens 8 --answer-tokens 9 --task quiz.jsonl?answer=key", None),
        ],
    )
    def test_are_hidden_by_their_names_and_forms(self, text: str, hidden: str | None):
        once = without_keys(text)
        assert once == (hidden or text)
        assert without_keys(once) == once

    def test_are_in_no_configuration(self, tmp_path: Path):
        evaluation = dataclasses.replace(SMALL, lm="http://h/v1#m?api_key=abc", methods=("greedy",))
        models = {"lm": worlds.language_model(), "reward": worlds.reward_model()}
        run(tmp_path, evaluation, **models)
        assert all("abc" not in path.read_text() for path in tmp_path.iterdir() if path.suffix != ".gz")
        run(tmp_path, dataclasses.replace(evaluation, lm="http://h/v1#m?api_key=other"), **models)  # it is no other one
        path = tmp_path / "config.json"
        path.write_text(path.read_text().replace(HIDDEN, "abc"))  # as earlier versions wrote it
        assert "abc" not in Report.load(tmp_path).markdown()
        run(tmp_path, evaluation, **models)


class TestIdentity:
    def test_of_a_local_model_is_its_files(self, tmp_path: Path):
        folder = tmp_path / "lm"
        shutil.copytree(motes.bundled.path("lm"), folder)
        first = identity.of_checkpoint(str(folder))
        assert first == identity.of_checkpoint(str(motes.bundled.path("lm")))
        (folder / "README.md").write_text("what nobody loads")
        (folder / "pytorch_model.bin").write_bytes(b"nor this, beside the other form")
        assert identity.of_checkpoint(str(folder)) == first
        for name, part in (
            ("config.json", "config"),
            ("tokenizer.json", "tokenizer"),
            ("model.safetensors", "weights"),
        ):
            before = identity.of_checkpoint(str(folder))
            (folder / name).write_bytes((folder / name).read_bytes() + b" ")
            after = identity.of_checkpoint(str(folder))
            assert {key for key in after if after[key] != before[key]} == {"digest", part}

    def test_of_a_model_that_is_not_here_is_not_known(self):
        assert identity.of_checkpoint("nobody/has-this") == identity.of_checkpoint("") == {}

    def test_digests_of_large_files_are_kept(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setenv("MOTES_HOME", str(tmp_path / "home"))
        monkeypatch.setattr(identity, "LARGE", 4)
        path = tmp_path / "weights.bin"
        path.write_bytes(b"12345")
        digest = identity.file_digest(path)
        kept = tmp_path / "home" / "digests.json"
        assert list(json.loads(kept.read_text()).values()) == [digest]
        kept.write_text(kept.read_text().replace(digest, "0" * 64))
        assert identity.file_digest(path) == "0" * 64  # nothing was read
        path.write_bytes(b"123456")
        assert identity.file_digest(path) not in (digest, "0" * 64)
        kept.write_text('{"a": NaN')
        assert len(identity.file_digest(path)) == 64

    def test_the_hubs_cache_names_large_files_by_their_digest(self, tmp_path: Path):
        (tmp_path / "blobs").mkdir()
        (tmp_path / "blobs" / ("a" * 64)).write_bytes(b"whatever")
        (tmp_path / "model.safetensors").symlink_to(tmp_path / "blobs" / ("a" * 64))
        assert identity.file_digest(tmp_path / "model.safetensors") == "a" * 64

    def test_of_code_is_its_file(self):
        def score(problem: Problem, text: str) -> float:
            return 0.5

        told = identity.of_model(FunctionReward(score))
        assert told["code"] == f"{__name__}:TestIdentity.test_of_code_is_its_file.<locals>.score"
        assert told["source"] == identity.of_code(TestIdentity)["source"]
        assert identity.of_code(functools.partial(score))["code"] == told["code"]
        assert "source" not in identity.of_code(FunctionReward)  # motes's own are told all together

    def test_of_wrapped_models_holds_that_of_the_one_inside(self):
        tiny = motes.reward_model("tiny")
        inside = identity.of_model(tiny)
        noisy = identity.of_model(CorruptedReward(tiny, noise=2.0))
        assert (noisy["code"], noisy["noise"], noisy["of"]) == ("motes.lab.corruption:CorruptedReward", 2.0, inside)
        maps = [CalibratedReward(tiny, Calibration((0.5,), (share,))) for share in (0.5, 0.25)]
        one, other = map(identity.of_model, maps)
        assert one["of"] == other["of"] == inside
        assert one["calibration"] != other["calibration"]
        judge = identity.of_model(Judge(worlds.language_model(), num_verdicts=2))
        assert (judge["rubric"], judge["num_verdicts"], judge["of"]["code"]) == ("step", 2, "worlds:StoryLanguageModel")

    def test_of_a_mixture_holds_its_weights_and_its_members(self):
        members = [motes.reward_model("tiny"), ConfidenceReward("tail", window=8)]
        one, other = (
            identity.of_model(MixedReward(members, Mixture(("tiny", "confidence:tail"), (1.0, weight))))
            for weight in (0.5, 0.25)
        )
        assert one["of"] == other["of"] == {"1": identity.of_model(members[0]), "2": identity.of_model(members[1])}
        assert one["mixture"] != other["mixture"]
        assert one["of"]["2"] == {"kind": "confidence", "measure": "tail", "window": 8, "top_logprobs": 20}

    def test_of_problems_is_what_is_asked(self):
        asked = Problem("2+2?", id="a", answer="4")
        same = asked.asked_as([{"role": "user", "content": "Please: 2+2?"}])  # a prompt is no part of it
        assert identity.of_problems([asked]) == identity.of_problems([same])
        others = [Problem("2+2?", id="b", answer="4"), Problem("2+3?", id="a", answer="4"), Problem("2+2?", id="a")]
        assert len({identity.of_problems([problem]) for problem in [asked, *others]}) == 4

    def test_of_motes_tells_its_commit_where_it_is_in_a_repository(self, tmp_path: Path):
        git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b"]
        if shutil.which("git") is None:
            pytest.skip("no git")
        package = tmp_path / "motes"
        package.mkdir()
        (package / "__init__.py").write_text("")
        assert identity._commit(package) == {}  # no repository
        subprocess.run([*git, "init", "--quiet"], check=True)
        subprocess.run([*git, "commit", "--quiet", "--allow-empty", "-m", "a"], check=True)
        assert identity._commit(package) == {}  # one that only surrounds it, as a project does its environment
        subprocess.run([*git, "add", "."], check=True)
        subprocess.run([*git, "commit", "--quiet", "-m", "b"], check=True)
        told = identity._commit(package)
        assert (len(told["commit"]), told["modified"]) == (40, False)
        (package / "new.py").write_text("")
        assert identity._commit(package) == {**told, "modified": True}

    def test_says_nothing_of_whose_machine_it_is(self):
        told = json.dumps([identity.of_machine(), identity.of_motes(), identity.of_packages()])
        assert os.uname().nodename not in told
        assert str(Path.home()) not in told.replace('"/"', "")
        assert (
            identity._without_home("/home/ada/models/x")
            == identity._without_home("/Users/ada/models/x")
            == "~/models/x"
        )
        assert identity._without_home("/srv/models/x") == "/srv/models/x"


class TestReading:
    @pytest.mark.parametrize(
        "line",
        [
            "[]", "no JSON", '{"started": "x"}', '{"started": 1, "motes": {}, "models": {}}',
            '{"started": "", "motes": {"a": [1]}, "models": {}}', '{"started": "", "motes": {}, "models": {"lm": 3}}',
            '{"started": "", "motes": {}, "models": {}, "runs_before": -1}', '{"started": "", "started": ""}',
            '{"started": "", "motes": {"a": {"b": {"c": {"d": {"e": 1}}}}}, "models": {}}', "[" * 5000, "x" * 70_000,
        ],
    )  # fmt: skip
    def test_a_damaged_line_is_told_and_the_rest_is_read(self, line: str, finished: Path, tmp_path: Path):
        for path in finished.iterdir():
            (tmp_path / path.name).write_bytes(path.read_bytes())
        (tmp_path / PROVENANCE).write_text(line + "\n" + (finished / PROVENANCE).read_text())
        report = Report.load(tmp_path)
        (warning,) = report.warnings()
        assert warning.startswith(f"1 provenance line could not be read: {tmp_path / PROVENANCE} line 1: ")
        assert len(report.provenance.calls) == 1
        with pytest.raises(RunDirectoryError, match="line 1"):
            read_calls(tmp_path)

    @pytest.mark.parametrize("end", ['"command": "½'.encode()[:-1], b'"command": "', b"\xff"])
    def test_a_torn_last_line_is_passed_over_and_cut_off(self, end: bytes, finished: Path, tmp_path: Path):
        """A killed process may leave half a character."""
        whole = (finished / PROVENANCE).read_bytes()
        (tmp_path / PROVENANCE).write_bytes(whole + b'{"started": "2026-01-01", ' + end)
        calls = read_calls(finished)
        assert read_calls(tmp_path) == calls
        write_calls(tmp_path, calls)
        assert (tmp_path / PROVENANCE).read_bytes() == whole + whole

    def test_too_many_lines_are_left_out(self, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setattr("motes.lab.run.calls.MAX_LINES", 3)
        (tmp_path / PROVENANCE).write_text((finished / PROVENANCE).read_text() * 9)
        damages = Damages()
        assert len(read_calls(tmp_path, damages.of("provenance lines"))) == 3
        assert len(damages.lines()) == 1

    def test_older_directories_have_none(self, finished: Path, tmp_path: Path):
        for name in ("config.json", "records.jsonl"):
            (tmp_path / name).write_bytes((finished / name).read_bytes())
        report = Report.load(tmp_path)
        assert report.warnings() == []
        assert "older than the record of provenance" in report.markdown()

    def test_whatever_a_configuration_holds_is_shown(self):
        deep: Any = "x"
        for _ in range(3000):
            deep = [deep]
        told = Provenance({"sampling": {"a": deep, "b": {"c": {"d": {"e": {"f": {"g": 1}}}}}}, "prompt": 3})
        assert told.rows()
        assert told.facts

    def test_round_trip(self):
        call = Call(started="2026-01-01", motes={"version": "1"}, models={"lm": {"name": "½", "n": 1.5}}, runs_before=3)
        assert Call.from_json(call.to_json()) == call


class TestShowing:
    def test_tables_and_page_carry_it(self, finished: Path, tmp_path: Path):
        directory = shutil.copytree(finished, tmp_path / "copy")
        report = Report.load(directory)
        write_report(directory, report, plots=False)  # of pictures see test_lab.py
        told = report.provenance.to_json()
        assert json.loads(told)["made_with"][0]["commands"] == ["motes eval --out here"]
        assert json.loads(told)["configuration"]["seeds"] == [0]
        digest = read_calls(directory)[0].models["reward"]["digest"][7:19]
        for name in ("report.md", "report.html"):
            text = (directory / name).read_text()
            assert digest in text
            assert "motes eval --out here" in text
        beside = json.loads((directory / "csv-metadata.json").read_text())
        assert {table["url"] for table in beside["tables"]} == {path.name for path in directory.glob("*.csv")}
        assert beside["dc:source"] == told

    def test_a_name_has_a_row_for_each_thing_that_it_was(self, finished: Path):
        (call,) = read_calls(finished)
        later = dataclasses.replace(call, started="2999-01-01T00:00:00", machine={"processor": "<b>Z80</b>"})
        rows = Provenance({}, (call, later)).rows()
        assert [value for name, value in rows if name == "machine"][1] == "<b>Z80</b>, no GPU"
        assert len([value for name, value in rows if name == "language model"]) == 1
        assert dict(rows)["date"].endswith(" – 2999-01-01 00:00 UTC, 2 calls")
        many = [dataclasses.replace(call, command=f"command {i}") for i in range(50)]
        shown = [value for name, value in Provenance({}, tuple(many)).rows() if name == "command"]
        assert shown[-1] == f"and {51 - len(shown)} others"

    def test_metadata_is_bounded(self, finished: Path):
        (call,) = read_calls(finished)
        same = Provenance({}, tuple(dataclasses.replace(call, runs_before=i) for i in range(2000)))
        assert len(same.to_json()) < 4000
        assert json.loads(same.to_json())["made_with"][0]["calls"] == 2000
        others = (dataclasses.replace(call, machine={"processor": f"{i} " + "x" * 5000}) for i in range(200))
        told = json.loads(text := Provenance({}, tuple(others)).to_json())
        assert len(text) <= MAX_METADATA
        assert len(told["made_with"]) + told["left_out"] == 200
        assert len(Provenance({"task": "x" * MAX_METADATA}).to_json()) < 100

    def test_models_that_changed_on_the_way_are_told(self, finished: Path, tmp_path: Path):
        (call,) = read_calls(finished)
        other = {**call.models, "reward": {**call.models["reward"], "weights": "sha256:" + "0" * 64, "digest": "d"}}
        directory = shutil.copytree(finished, tmp_path / "copy")
        with (directory / PROVENANCE).open("a") as file:
            file.write(dataclasses.replace(call, models=other).to_json() + "\n")
        (warning,) = Report.load(directory).warnings()
        assert warning.startswith("not all runs were made with the same reward model: weights sha256:")
        run(directory, dataclasses.replace(SMALL), lm=worlds.language_model(), reward=motes.reward_model("tiny"))
        assert warning not in (directory / "log.txt").read_text()  # there was nothing to do
        (directory / "records.jsonl").write_text("")
        run(directory, dataclasses.replace(SMALL), lm=worlds.language_model(), reward=motes.reward_model("tiny"))
        assert warning in (directory / "log.txt").read_text()


class TestDifferences:
    def test_of_the_same_there_are_none(self, finished: Path, tmp_path: Path):
        later = changed(finished, tmp_path / "b", lambda call: call.update(started="later", command="another"))
        assert differences(finished, later) == []
        moved = changed(finished, tmp_path / "c", lambda call: call["motes"].update(commit="0", version="9"))
        assert differences(finished, moved) == []  # the same sources

    @pytest.mark.parametrize(
        ("change", "names"),
        [
            (lambda call: call["models"]["reward"].update(weights="w", digest="d"), ["reward model: weights"]),
            (lambda call: call["models"]["reward"].update(dtype="bfloat16"), ["reward model: dtype"]),
            (lambda call: call["task"].update(digest="d"), ["task: digest"]),
            (lambda call: call["machine"].update(gpus="1 × H200"), ["machine: gpus"]),
            (lambda call: call["packages"].update(numpy="0"), ["packages: numpy"]),
            (lambda call: call["motes"].update(source="s", commit="c"), ["motes: commit", "motes: source"]),
        ],
    )
    def test_are_told_by_name(self, change: Any, names: list[str], finished: Path, tmp_path: Path):
        found = differences(finished, changed(finished, tmp_path / "b", change))
        assert sorted(difference.name for difference in found) == sorted(names)
        assert all(difference.first != difference.second for difference in found)

    def test_of_settings(self, finished: Path, tmp_path: Path):
        sampling, prompt = Sampling(temperature=1.0), motes.prompt("boxed")
        run(
            tmp_path,
            dataclasses.replace(SMALL, sampling=sampling, prompt=prompt, seeds=(1,)),
            lm=worlds.language_model(),
        )
        found = {difference.name: difference for difference in differences(finished, tmp_path)}
        assert str(found["sampling: temperature"]) == "sampling: temperature: 0.8 against 1.0"
        assert found["seeds"][1:] == ("0", "1")
        assert found["prompt: name"][1:] == ("not recorded", "boxed")

    def test_what_one_has_not_recorded_may_be_one(self, finished: Path, tmp_path: Path):
        for name in ("config.json", "records.jsonl"):
            (tmp_path / name).write_bytes((finished / name).read_bytes())
        found = {difference.name: difference for difference in differences(finished, tmp_path)}
        assert found["reward model: weights"].second == "not recorded"


def test_a_merged_directory_keeps_what_its_parts_were_made_with(tmp_path: Path):
    parts = [tmp_path / "1", tmp_path / "2"]
    for number, part in enumerate(parts, start=1):
        run(part, shard=Shard(number, 2), command=f"part {number}")
    with (parts[0] / PROVENANCE).open("a") as file:
        file.write("damaged\n")
    damages = Damages()
    merge(tmp_path / "all", parts, damages)
    merge(tmp_path / "all", parts, damages)
    assert [call.command for call in read_calls(tmp_path / "all")] == ["part 1", "part 2"]
    assert "provenance lines could not be read" in damages.lines()[0]
    assert len(together([Provenance.read(tmp_path / "all"), Provenance.read(parts[1])]).calls) == 2


def test_several_evaluations_in_one_table_are_told_together(finished: Path):
    (call,) = read_calls(finished)
    first = Provenance({"task": "arithmetic", "methods": {"pf": {}}, "seeds": [0]}, (call,))
    other = dataclasses.replace(call, models={"lm": {"name": "another", "code": "another:Model"}})
    second = Provenance({"task": "arithmetic", "methods": {"bon": {}}, "seeds": [0]}, (other,))
    third = Provenance({"task": "arithmetic", "methods": {"bon": {}}, "seeds": [1]}, (call,))
    whole = together([first, second, third])
    assert [value for name, value in whole.rows() if name == "seeds"] == ["0", "1"]
    assert [value.partition(",")[0] for name, value in whole.rows() if name == "language model"] == [
        "worlds:language_model", "another",
    ]  # fmt: skip
    assert whole.warnings() == []  # other names are other models
    assert len(json.loads(whole.to_json())["made_with"]) == 2
    assert not together([])


def test_a_served_model_is_what_its_server_tells():
    from motes.models.served.model import HTTPLanguageModel

    model = object.__new__(HTTPLanguageModel)
    model.capabilities = SimpleNamespace(
        engine="vllm", version="0.10", model="m", origin="/home/ada/m", context_length=None
    )
    told = {"kind": "served", "engine": "vllm", "version": "0.10", "model": "m", "root": "~/m"}
    assert identity.of_model(model) == told
    model.capabilities.model = "/home/ada/m.gguf"  # as llama.cpp names its models
    assert identity.of_model(model) == told | {"model": "~/m.gguf"}
