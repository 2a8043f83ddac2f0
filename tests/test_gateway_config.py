"""motes.toml: what it may say, and what is refused with its place."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest
import yaml

import worlds
from engines import VLLM, LlamaCpp, on_a_socket
from motes.cli import main
from motes.errors import ConfigurationError, EngineError, UnreachableError
from motes.gateway import readiness, server
from motes.gateway.answering import open_models
from motes.gateway.config import Config, Limits
from motes.gateway.draining import LATE
from motes.gateway.keys import Key, digest, find_key
from motes.gateway.virtual import SamplingTable, VirtualModel
from motes.lab import method_from_spec

SMALLEST = '[models.math]\nlm = "tiny"\nreward = "tiny"\n'


def load(tmp_path: Path, text: str, **changes) -> Config:
    (tmp_path / "motes.toml").write_text(text)
    return Config.load(tmp_path / "motes.toml", **changes)


def test_everything_has_a_default_but_a_model(tmp_path):
    config = load(tmp_path, SMALLEST)
    assert (config.host, config.port, config.keys) == ("127.0.0.1", 8080, ())
    model = config.models["math"]
    assert (model.method, model.particles, model.most_particles, model.longest_deadline) == ("pf", 16, 16, 60.0)
    assert model.default_sampling().temperature == 0.8


def test_a_file_says_everything(tmp_path):
    text = """
        host = "0.0.0.0"
        port = 80
        [limits]
        particles = 64
        [models.math]
        lm = "http://127.0.0.1:8000/v1#small"
        reward = "http://127.0.0.1:8001#prm"
        method = "pf:beta=2"
        methods = ["majority", "wbon"]
        particles = 8
        max_particles = 64
        deadline = 5
        max_deadline = 20
        prompt = "qwen2.5-math"
        task = "math-500"
        [models.math.sampling]
        temperature = 0.7
        step_tokens = 64
        [[keys]]
        name = "team-a"
        sha256 = "{}"
        concurrency = 2
        requests_per_minute = 30
        models = ["math"]
    """.format(digest("secret"))
    config = load(tmp_path, text)
    model = config.models["math"]
    assert (model.most_particles, model.longest_deadline, method_from_spec("wbon", 8).budget) == (64, 20.0, 8)
    sampling = model.default_sampling()
    assert (sampling.temperature, sampling.delimiter, sampling.max_step_tokens) == (0.7, None, 64)
    assert find_key(config.keys, "secret") == config.keys[0]
    assert find_key(config.keys, "Secret") is None


def test_changes_win(tmp_path):
    assert load(tmp_path, SMALLEST, port=9).port == 9
    assert Config.bundled(port=9).models["tiny"].most_particles == 256


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "models: Field required"),
        ("[models]", "models: .*at least 1 item"),
        ("[models.math", "is not TOML"),
        ("[models.math]\nreward='tiny'", "models.math.lm: Field required"),
        (SMALLEST + "particels = 4", "models.math.particels: Extra inputs are not permitted: did you mean 'particles'"),
        (SMALLEST + "particles = 0", "models.math.particles: .*greater than or equal to 1"),
        (SMALLEST + "particles = 8\nmax_particles = 4", "models.math.max_particles: 4 is less than particles, 8"),
        (SMALLEST + "deadline = 8\nmax_deadline = 4", "models.math.max_deadline: 4 is less than deadline, 8"),
        (SMALLEST + "method = 'pff'", "models.math.method: unknown method 'pff': did you mean 'pf'"),
        (SMALLEST + "methods = ['pf:bta=2']", "models.math.methods: .*did you mean 'beta'"),
        (SMALLEST + "prompt = 'lama-3'", "models.math.prompt: unknown prompt 'lama-3'"),
        (SMALLEST + "[models.math.sampling]\ntemperature = -1", "models.math.sampling: temperature must be 0 or more"),
        ("[models.math]\nlm = 'tiny'", "models.math.method: the method 'pf' needs a reward model"),
        (SMALLEST + "deadline = inf", "models.math.deadline: Input should be a finite number"),
        (SMALLEST + "sampling = {temperature = nan}", "models.math.sampling.temperature: .* a finite number"),
        (SMALLEST + "[limits]\ndrain = 1e9", "limits.drain: .*less than or equal to 604800"),
        (SMALLEST + "particles = true", "models.math.particles: Input should be a valid integer"),
        ('[models.""]\nlm = "tiny"', 'models."": a name must not be blank'),
        ('[models."a\\u001b"]\nlm = "tiny"', "a name has at most 256 printable characters"),
        (f'[models."{"a" * 257}"]\nlm = "tiny"', "a name has at most 256 printable characters"),
        ("[models.math]\nlm = 'tiny?prefix'", "models.math.lm: an option after `.` has no value"),
        ("[models.math]\nlm = 'tiny?prefix='", "models.math.lm: an option after `.` has no value"),
        ("host = '0.0.0.0'\n" + SMALLEST, "there is no key: make one"),
        ("host = 'gateway.example'\n" + SMALLEST, "there is no key: make one"),
        (SMALLEST + "max_particles = 2000", "raise limits.particles, or lower max_particles"),
        (SMALLEST + "[[keys]]\nname = 'a'\nsha256 = 'abc'", "keys.0.sha256: "),
        (SMALLEST + 2 * f"[[keys]]\nname = 'a'\nsha256 = '{digest('x')}'\n", "two keys have the same name"),
        (
            SMALLEST + f"[[keys]]\nname = 'a'\nmodels = ['m']\nsha256 = '{digest('x')}'",
            "'m', which is no model",
        ),
    ],
)
def test_what_cannot_work_is_named_with_its_place(tmp_path, text, message):
    with pytest.raises(ConfigurationError, match=message):
        load(tmp_path, text)


def test_every_fault_is_named_at_once(tmp_path):
    with pytest.raises(ConfigurationError, match=r"port: .*; models.math.lm: "):
        load(tmp_path, "port = 'x'\n[models.math]\nreward = 'tiny'")


def test_a_method_without_a_reward_needs_none(tmp_path):
    assert load(tmp_path, "[models.vote]\nlm = 'tiny'\nmethod = 'majority'").models["vote"].reward is None


def test_a_missing_file(tmp_path):
    with pytest.raises(ConfigurationError, match=r"motes.toml cannot be read: No such file"):
        Config.load(tmp_path / "motes.toml")


def test_a_key_is_told_once_and_kept_as_its_hash():
    secret, key = Key.make("team-a")
    assert secret not in key.model_dump_json()
    assert find_key(Config.bundled(keys=(key,)).keys, secret) == key
    assert find_key([key], secret[:-1]) is None
    assert Key.make("team-a")[0] != secret
    assert len(secret) > 43  # 256 bits in base 64


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "::1", "localhost"])
def test_on_loopback_keys_may_be_missing(host):
    assert Config.bundled(host=host).host == host


class TestRecipes:
    """What recipes/gateway deploys."""

    HERE = Path(__file__).parents[1] / "recipes/gateway"

    @pytest.fixture
    def config(self) -> Config:
        return Config.load(self.HERE / "motes.toml")

    @pytest.fixture(params=["compose", "kubernetes"])
    def servers(self, request) -> dict[str, list[str]]:
        """The arguments of each server, by the name that it has in the network."""
        if request.param == "compose":
            services = yaml.safe_load((self.HERE / "compose.yaml").read_text())["services"]
            return {name: service["command"] for name, service in services.items() if name != "gateway"}
        objects = list(yaml.safe_load_all((self.HERE / "kubernetes.yaml").read_text()))
        ports = {each["metadata"]["name"]: each["spec"]["ports"][0] for each in objects if each["kind"] == "Service"}
        found = {}
        for each in objects:
            if each["kind"] == "Deployment" and (name := each["metadata"]["name"]) != "motes":
                (container,) = each["spec"]["template"]["spec"]["containers"]
                found[name] = container["args"]
                assert f"--port={ports[name]['port']}" in container["args"]
        return found

    def test_the_servers_are_those_of_the_configuration(self, config, servers):
        (model,) = config.models.values()
        assert set(servers) == {"lm", "prm"}
        for spec in (model.lm, model.reward):
            address, _, name = spec.partition("#")
            host, _, port = address.removeprefix("http://").removesuffix("/v1").partition(":")
            assert {f"--model={name}", f"--port={port}"} <= set(servers[host])
        assert "--runner=pooling" in servers["prm"]

    def test_there_is_time_to_drain(self, config):
        longest = config.limits.drain + LATE + 3 * server.PATIENCE  # see Server
        gateway = yaml.safe_load((self.HERE / "compose.yaml").read_text())["services"]["gateway"]
        assert int(gateway["stop_grace_period"].removesuffix("s")) >= longest + 5
        pod = next(yaml.safe_load_all((self.HERE / "kubernetes.yaml").read_text()))["spec"]["template"]["spec"]
        (container,) = pod["containers"]
        before = container["lifecycle"]["preStop"]["sleep"]["seconds"]
        assert pod["terminationGracePeriodSeconds"] >= before + longest + 5

    def test_probes_fit_the_gateway_and_each_other(self):
        pod = next(yaml.safe_load_all((self.HERE / "kubernetes.yaml").read_text()))["spec"]["template"]["spec"]
        (container,) = pod["containers"]
        probes = {name: container[f"{name}Probe"] for name in ("startup", "readiness", "liveness")}
        assert {name: probe["httpGet"]["path"] for name, probe in probes.items()} == {
            "startup": "/health", "readiness": "/ready", "liveness": "/health",
        }  # fmt: skip
        ready, alive = probes["readiness"], probes["liveness"]
        assert ready["timeoutSeconds"] > readiness.PATIENCE
        noticed = {name: probe["periodSeconds"] * probe["failureThreshold"] for name, probe in probes.items()}
        assert noticed["readiness"] < noticed["liveness"], "it leaves the service before it is restarted"
        assert alive["periodSeconds"] >= alive["timeoutSeconds"]

    def test_nobody_has_the_key_that_is_written_there(self, config):
        assert [key.sha256 for key in config.keys] == [("0" * 64,)]


NASTY = [
    "inf", "-inf", "nan", "1e400", "true", "false", "0", "-1", "1.5", "1" + 30 * "0", "1" + 5000 * "0",
    "0x" + 400 * "f", '""', '" "', '"\\u0000"', '"\\u202e"', '"@"', '"@nowhere.toml"', '"?"', '"/"', '"#"', '"abc"',
    '"é"', f'"{"x" * 300}"', f'"{"x" * 100_000}"', "[]", "[1]", '[""]', '["\\u0000"]', "[[]]", "{}", "{a = 1}",
    "2026-01-01", "2026-01-01T00:00:00", "12:00:00",
]  # fmt: skip
FIELDS = {
    "": ["host", "port", "playground", "limits", "keys", "models", "unknown"],
    "[limits]\n": [*Limits.model_fields, "unknown"],
    "[models.math]\n": [*VirtualModel.model_fields, "unknown"],
    "[models.math.sampling]\n": [*SamplingTable.model_fields, "unknown"],
    "[[keys]]\n": [*Key.model_fields, "unknown"],
}
SOUND = {
    "lm": '"worlds:language_model"', "reward": '"worlds:reward_model"', "name": '"a"', "sha256": f'"{digest("x")}"'
}  # fmt: skip


@pytest.mark.parametrize(("table", "field"), [(table, field) for table, fields in FIELDS.items() for field in fields])
def test_no_value_of_any_field_is_a_surprise(tmp_path, table, field):
    """Whatever it is, it is taken, or the file and the field are named."""
    needed = {"[models.math]\n": ("lm", "reward"), "[[keys]]\n": ("name", "sha256")}.get(table, ())
    messages = []
    for value in NASTY:
        lines = {**{name: SOUND[name] for name in needed}, field: value}
        text = "".join(f"{name} = {value}\n" for name, value in lines.items())
        others = "" if table == "[models.math]\n" or field == "models" else SMALLEST
        try:
            load(tmp_path, f"{text}{others}" if table == "" else f"{others}{table}{text}")
        except ConfigurationError as error:
            messages.append(str(error))
    assert len(messages) >= 10
    file = str(tmp_path / "motes.toml")
    for message in messages:
        assert message.startswith(f"{file} is not TOML" if "is not TOML" in message else f"{file}: ")
        assert "is not TOML" in message or field in message or "models" in message
        assert len(message) < 3000, "no value of 100,000 characters is quoted"


@pytest.mark.parametrize(
    ("table", "value"), [(table, value) for table in ("models", "limits", "keys", "models.math") for value in NASTY]
)
def test_no_table_is_a_surprise(tmp_path, table, value):
    others = "" if table.startswith("models") else SMALLEST
    with contextlib.suppress(ConfigurationError):
        load(tmp_path, f"{table} = {value}\n{others}")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "models: Field required"),
        (b"# nothing\n", "models: Field required"),
        (b"\xff\xfe\xfd", "cannot be read: .*UTF-8"),
        (b"a = " + b"[" * 100_000, "nested too deeply"),
        (SMALLEST.encode() + SMALLEST.encode(), "is not TOML: Cannot declare .*twice"),
        (SMALLEST.encode() + b'lm = "tiny"\n', "is not TOML: .*overwrite"),
        (b"\0", "is not TOML"),
    ],
)
def test_a_file_that_is_none(tmp_path, content, message):
    (tmp_path / "motes.toml").write_bytes(content)
    with pytest.raises(ConfigurationError, match=f"motes.toml.*{message}"):
        Config.load(tmp_path / "motes.toml")


def test_a_directory_is_no_file(tmp_path):
    with pytest.raises(ConfigurationError, match=r"cannot be read: Is a directory: name a file"):
        Config.load(tmp_path)


def test_faults_of_all_tables_and_between_them_are_named_at_once(tmp_path):
    same = digest("x")
    text = f"""
        port = true
        host = "0.0.0.0"
        [limits]
        drain = inf
        waiting = 1e400
        [models.one]
        lm = "http://127.0.0.1:1/v1#m?attempts=abc"
        method = "@nowhere.toml"
        prompt = "lama-3"
        [models." two "]
        lm = "http://me:secret@127.0.0.1:1"
        particles = 8
        max_particles = 4
        method = "majority"
        methods = ["pf"]
        [[keys]]
        name = "a"
        sha256 = "{same}"
        models = ["three"]
        [[keys]]
        name = "a"
        sha256 = "{same}"
        [[keys]]
        name = "b"
        sha256 = "{same}"
        [[keys]]
        name = ""
        sha256 = "secret"
    """
    with pytest.raises(ConfigurationError) as caught:
        load(tmp_path, text)
    told = str(caught.value)
    for place in (
        "port: ", "limits.drain: ", "limits.waiting: ", "models.one.lm: attempts", "models.one.method: ",
        "models.one.prompt: ", 'models." two ": ', 'models." two ".lm: ', 'models." two ".max_particles: ',
        'models." two ".methods: ', "keys.0.models: ", "keys.1.name: ", "keys.2.sha256: ", "keys.3.name: ",
        "keys.3.sha256: ",
    ):  # fmt: skip
        assert place in told, place
    assert "secret" not in told


@pytest.mark.parametrize("field", ["lm", "reward", "outcome_reward"])
@pytest.mark.parametrize(
    "spec",
    [
        "http://me:SECRET@127.0.0.1:1/v1#m",
        "https://SECRET@127.0.0.1:1/v1#m",
        "HTTP://me:SECRET@127.0.0.1:1/v1#m",
        " http://me:SECRET@127.0.0.1:1/v1#m",
        "http:/me:SECRET@127.0.0.1:1/v1#m",
        "http:me:SECRET@127.0.0.1:1/v1#m",
        "me:SECRET@127.0.0.1:1/v1#m",
        "http://me:SECRET/@127.0.0.1:1/v1#m",
        "http://me:SECRET#@127.0.0.1:1/v1#m",
        "http://me:SECRET?@127.0.0.1:1/v1#m",
        "http://me:x?SECRET=y@127.0.0.1:1/v1#m",
        "http://me:x?y=1&y=SECRET@127.0.0.1:1/v1#m",
        "http://[me:SECRET@127.0.0.1:1/v1#m",
        "http://127.0.0.1:1/v1#m?api_key=SECRET",
        "http://127.0.0.1:1/v1?api_key=SECRET#m",
        "http://127.0.0.1:1/v1#m?attempts=1&api_key=SECRET",
        "http://127.0.0.1:1/v1#m?API_KEY=SECRET",
        "http://127.0.0.1:1/v1#m?apikey=SECRET",
        "http://127.0.0.1:1/v1#m?token=SECRET",
        "judge:http://me:SECRET@127.0.0.1:1/v1#m",
        "judge:http://127.0.0.1:1/v1#m?api_key=SECRET",
    ],
)
def test_a_key_in_an_address_is_refused_and_not_repeated(tmp_path, field, spec):
    lines = {"lm": "tiny", "reward": "tiny", field: spec}
    text = "".join(f"{name} = '{value}'\n" for name, value in lines.items())
    with pytest.raises(ConfigurationError, match=rf"models\.math\.{field}: ") as caught:
        load(tmp_path, "[models.math]\n" + text)
    assert "SECRET" not in str(caught.value)


@pytest.mark.parametrize(
    "spec", ["http://127.0.0.1:1#@cf/model", "http://127.0.0.1:1/v1#m?attempts=3", "hf:/a@b", "a:b"]
)
def test_an_address_without_a_key_is_taken(tmp_path, spec):
    assert load(tmp_path, f"[models.math]\nlm = '{spec}'\nmethod = 'majority'").models["math"].lm == spec


@pytest.mark.parametrize(
    "query",
    [
        "x", "x=", "attempts", "attempts=", "=3", "attempts=1&attempts=2", "attempts=0", "x=1", "read_timeout=inf",
        "read_timeout=nan", "attempts=1.5", f"attempts={'9' * 500}",
    ],
)  # fmt: skip
def test_options_of_a_model_are_checked(tmp_path, query):
    for field, spec in (("lm", "http://127.0.0.1:1/v1#m"), ("reward", "judge:http://127.0.0.1:1/v1#m")):
        lines = {"lm": "tiny", "reward": "tiny", field: f"{spec}?{query}"}
        text = "".join(f"{name} = '{value}'\n" for name, value in lines.items())
        with pytest.raises(ConfigurationError, match=rf"motes.toml: models\.math\.{field}: "):
            load(tmp_path, "[models.math]\n" + text)


def test_models_that_cannot_be_opened_are_named_with_their_places(tmp_path):
    text = """
        [models.one]
        lm = "hf:/nowhere"
        reward = "nowhere:reward"
        [models."t w o"]
        lm = "hf:/nowhere"
        method = "majority"
        [models.three]
        lm = "http://127.0.0.1:1/v1#m?attempts=1"
        method = "majority"
    """
    config = load(tmp_path, text)
    with pytest.raises(EngineError) as caught:
        open_models(config, "motes.toml")
    assert str(caught.value).startswith('motes.toml: models.one.lm, models."t w o".lm: there is no folder')
    assert "; models.one.reward: 'nowhere:reward'" in str(caught.value)
    assert "; models.three.lm: nothing answers at" in str(caught.value)
    with pytest.raises(ConfigurationError, match=r"models\.one\.lm: there is no folder"):
        open_models(config.model_copy(update={"models": {"one": config.models["one"]}}), "motes.toml")


def test_an_error_of_ones_own_code_says_where_it_happened(tmp_path, monkeypatch):
    monkeypatch.setattr(worlds, "broken", lambda: 1 / 0, raising=False)
    config = load(tmp_path, "[models.math]\nlm = 'worlds:broken'\nmethod = 'majority'")
    with pytest.raises(ZeroDivisionError) as caught:
        open_models(config, "motes.toml")
    assert caught.value.__notes__ == ["This happened when motes opened models.math.lm of motes.toml."]


class TestCheck:
    """`motes serve --check FILE`."""

    def check(self, tmp_path, capsys, text: str, *more: str) -> tuple[int, str, str]:
        (tmp_path / "motes.toml").write_text(text)
        code = main(["serve", "--check", str(tmp_path / "motes.toml"), *more])
        return code, *capsys.readouterr()

    def test_it_shows_each_model_and_what_its_server_lacks(self, tmp_path, capsys):
        with on_a_socket(LlamaCpp()) as url:
            text = f"[models.math]\nlm = '{url}'\nreward = 'judge:{url}'\nmethods = ['majority']\nmax_particles = 64\n"
            code, out, err = self.check(
                tmp_path,
                capsys,
                text
                + "[models.own]\n"
                + text.partition("\n")[2]
                .replace(f"'{url}'", "'worlds:language_model'", 1)
                .replace(f"judge:{url}", "worlds:reward_model"),
            )
        assert (code, err) == (0, "")
        lines = out.splitlines()
        assert lines[0] == "math: pf, majority; 16 particles, at most 64"
        assert lines[1].startswith(f"  lm: {url}, llama.cpp b11549-abc; lacks: ")
        assert "several prompts in one request" in lines[1]
        assert lines[2].startswith(f"  reward: judge:{url}, llama.cpp b11549-abc; lacks: ")
        assert lines[4:] == [
            "  lm: worlds:language_model, in this process",
            "  reward: worlds:reward_model, in this process",
            f"{tmp_path / 'motes.toml'} has no fault",
        ]

    def test_a_model_that_is_passed_through(self, tmp_path, capsys):
        with on_a_socket(VLLM()) as url:
            name = f"{url}#test-model" if "#" not in url else url
            text = f"[models.raw]\nlm = ['{name}', 'http://127.0.0.1:1/v1#m']\nmethod = 'none'\n"
            code, out, _ = self.check(tmp_path, capsys, text)
        assert code == 0, "one of its servers answers"
        assert out.splitlines()[:2] == ["raw: no method", f"  lm: {name}, http://127.0.0.1:1/v1#m, passed through"]

    def test_faults_of_the_file_and_of_servers(self, tmp_path, capsys):
        code, out, err = self.check(tmp_path, capsys, "[models.math]\nlm = 'tiny'\nparticles = true\n")
        assert (code, out) == (2, "")
        assert err.startswith(f"motes: {tmp_path / 'motes.toml'}: models.math.particles: ")
        text = "[models.math]\nlm = 'http://127.0.0.1:1/v1#m?attempts=1'\nmethod = 'majority'\n"
        code, out, err = self.check(tmp_path, capsys, text)
        assert (code, out) == (1, "")
        assert "motes.toml: models.math.lm: nothing answers at http://127.0.0.1:1/v1/models" in err

    def test_a_language_model_for_a_reward(self, tmp_path, capsys):
        with on_a_socket(VLLM()) as url:
            code, _, err = self.check(tmp_path, capsys, f"[models.math]\nlm = '{url}'\nreward = '{url}'\n")
        assert code == 2
        assert f"models.math.reward: '{url}' is no reward model" in err

    def test_a_model_that_is_out_of_reach(self, tmp_path, capsys, monkeypatch):
        class Gone(worlds.StoryLanguageModel):
            async def ready(self) -> None:
                raise UnreachableError("nothing answers")

        monkeypatch.setattr(worlds, "gone", Gone, raising=False)
        text = "[models.math]\nlm = 'worlds:gone'\nmethod = 'majority'\n"
        code, out, err = self.check(tmp_path, capsys, text)
        assert (code, "has no fault" in out) == (1, False)
        assert "math: language model" in err

    def test_the_file_by_either_name(self, tmp_path, capsys):
        text = "[models.math]\nlm = 'worlds:language_model'\nmethod = 'majority'\n"
        assert self.check(tmp_path, capsys, text)[0] == 0
        assert main(["serve", "--config", str(tmp_path / "motes.toml"), "--check"]) == 0
        assert "has no fault" in capsys.readouterr().out
        assert self.check(tmp_path, capsys, text, "--config", "other.toml")[0] == 2


@pytest.mark.parametrize(
    ("told", "place"),
    [
        ('playground = "yes"\n' + SMALLEST, "playground: Input should be a valid boolean"),
        ("port = 80.0\n" + SMALLEST, "port: Input should be a valid integer"),
        ('port = "80"\n' + SMALLEST, "port: Input should be a valid integer"),
        (SMALLEST + "particles = true\n", "models.math.particles: Input should be a valid integer"),
        (SMALLEST + 'deadline = "5"\n', "models.math.deadline: Input should be a valid number"),
        (SMALLEST + "methods = [1]\n", "models.math.methods.0: Input should be a valid string"),
        (
            SMALLEST + 'sampling = {temperature = "1"}\n',
            "math.sampling.temperature: Input should be a valid number",
        ),
    ],
)
def test_no_value_is_made_to_fit(tmp_path, told, place):
    with pytest.raises(ConfigurationError, match=place):
        load(tmp_path, told)


def test_lists_of_a_file_are_taken(tmp_path):
    config = load(tmp_path, SMALLEST + 'deadline = 5\nexamples = ["1 + 1?"]\nsampling = {delimiter = [";", "."]}\n')
    model = config.models["math"]
    assert (model.deadline, model.examples, model.default_sampling().delimiter) == (5.0, ("1 + 1?",), (";", "."))
