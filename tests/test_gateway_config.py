"""motes.toml: what it may say, and what is refused with its place."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from motes.errors import ConfigurationError
from motes.gateway import readiness, server
from motes.gateway.config import Config, Key, digest
from motes.gateway.draining import LATE
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
    assert config.key("secret") == config.keys[0]
    assert config.key("Secret") is None


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
        (SMALLEST + "particels = 4", "models.math.particels: Extra inputs are not permitted"),
        (SMALLEST + "particles = 0", "models.math.particles: .*greater than or equal to 1"),
        (SMALLEST + "particles = 8\nmax_particles = 4", "models.math: max_particles, 4, is less than particles, 8"),
        (SMALLEST + "deadline = 8\nmax_deadline = 4", "models.math: max_deadline, 4, is less than deadline, 8"),
        (SMALLEST + "method = 'pff'", "models.math: unknown method 'pff': did you mean 'pf'"),
        (SMALLEST + "methods = ['pf:bta=2']", "models.math: .*did you mean 'beta'"),
        (SMALLEST + "prompt = 'lama-3'", "models.math: unknown prompt 'lama-3'"),
        (SMALLEST + "[models.math.sampling]\ntemperature = -1", "models.math: .*temperature must be 0 or more"),
        ("[models.math]\nlm = 'tiny'", "models.math: the method 'pf' needs a reward model"),
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
    assert Config.bundled(keys=(key,)).key(secret) == key
    assert Config.bundled(keys=(key,)).key(secret[:-1]) is None
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
        assert [key.sha256 for key in config.keys] == ["0" * 64]


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
