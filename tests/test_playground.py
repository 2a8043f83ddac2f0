"""The gateway's page at `/`, in a real browser: ask, watch, see the answer."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import httpx2
import pytest

import chromium
import gateways
import motes
import worlds
from gateways import Stepwise
from motes.gateway.answering import open_models
from motes.gateway.config import Config, Key
from motes.tasks import TASKS

EXAMPLES = tuple(problem.question for problem in TASKS["arithmetic"]().problems(limit=12)[-2:])
MODEL = {**gateways.MODEL, "examples": EXAMPLES}
COUNT = "document.querySelectorAll({!r}).length".format
TEXT = "document.querySelector({!r}).textContent".format
VALUE = "document.getElementById({!r}).value".format
DONE = "!document.getElementById('run').hidden && document.getElementById('stop').hidden"


@pytest.fixture(scope="module")
def http() -> Iterator[httpx2.Client]:
    with gateways.gateway(gateways.config(models={"story": MODEL})) as client:
        yield client


@pytest.fixture
def stepwise() -> Iterator[tuple[httpx2.Client, Stepwise]]:
    lm = Stepwise()
    with gateways.over(lm, models={"story": MODEL}) as client:
        yield client, lm


@pytest.fixture
def sight(browser) -> Iterator[chromium.Chromium]:
    with browser.undisturbed("http://127.0.0.1", "about:", "data:"):
        yield browser


def open_page(sight: chromium.Chromium, http: httpx2.Client, **window: object) -> None:
    sight.open(f"{http.base_url}/", **window)


def expected(question: str, particles: int = 8) -> motes.Result:
    return motes.solve(
        question, lm=worlds.language_model(), reward=worlds.reward_model(), method=motes.ParticleFilter(particles),
        seed=5, task=TASKS["arithmetic"](),
    )  # fmt: skip


def fill(sight: chromium.Chromium, **values: object) -> None:
    for name, value in values.items():
        sight.js(f"document.getElementById('{name}').value = {str(value)!r}")


def test_ask_watch_and_see_the_answer(sight, http):
    open_page(sight, http)
    assert sight.js("[...document.getElementById('method').options].map((each) => each.value)") == [
        "pf", "majority", "bon", "pg", "pf:ess_threshold=1",
    ]  # fmt: skip
    assert (sight.js(VALUE("particles")), sight.js("document.getElementById('particles').max")) == ("8", "32")
    sight.point_at("#examples button:nth-of-type(2)", click=True)
    assert sight.js(VALUE("question")) == EXAMPLES[1]
    fill(sight, seed=5)
    sight.point_at("#go", click=True)
    sight.until(DONE)
    result = expected(EXAMPLES[1])
    assert sight.js(TEXT("#run h2")).startswith(f"Answer {result.answer}")
    assert f"The answer is {result.answer}, after" in sight.js(TEXT("#status"))
    assert sight.js("[...document.querySelectorAll('.said p')].map((p) => p.textContent).join('\\n\\n')") == result.text
    shown = sight.js("[...document.querySelectorAll('.posterior .what')].map((each) => each.textContent)")
    assert shown == [*result.posterior, *(["no answer"] if sum(result.posterior.values()) < 0.9995 else [])]
    assert sight.js(COUNT(".marks .mark")) == sum(len(record.trajectories) for record in result.records)
    assert sight.js(COUNT(".ess .round")) == len(result.records)
    assert sight.js(COUNT("text.resampling, path.resampling")) >= sum(record.resampled for record in result.records[1:])
    assert "NaN" not in sight.js("document.getElementById('run').outerHTML")
    assert sight.js(COUNT(".answer.selected")) == 1


def test_particles_are_seen_while_they_are_at_work(sight, stepwise):
    """The first round stands there, with scores and no answer yet; the rest follows when the model goes on."""
    http, lm = stepwise
    open_page(sight, http)
    fill(sight, seed=5)
    sight.point_at("#go", click=True)
    sight.until(COUNT(".marks .mark") + " === 8")
    first = expected(EXAMPLES[0]).records[0]
    assert sight.js(TEXT("#run h2")) == "At work"
    assert sight.js(TEXT("#run dl")).startswith("round1ESS")
    assert sight.js(COUNT(".answers, .posterior")) == 0
    assert not sight.js("document.getElementById('stop').hidden")
    sight.point_at('.mark[data-particle="3"]')
    assert f"score {first.scores[3]:.2f}" in sight.js(TEXT(".inspector")).replace("\u00a0", " ")
    assert first.trajectories[3].text.strip() in sight.js(TEXT("#tip"))
    sight.point_at('.mark[data-particle="3"]', click=True)
    lm.let_go()
    sight.until(DONE)
    assert sight.js(TEXT(".inspector h3")).startswith("particle 4round 1"), "what was chosen stays so"


def test_the_bundled_model_warns_of_questions_that_it_cannot_know(sight):
    """As the command line does."""
    config = gateways.config(models={"story": MODEL})
    models = {
        name: dataclasses.replace(served, settings=served.settings.model_copy(update={"lm": "tiny?device=cpu"}))
        for name, served in open_models(config).items()
    }
    with gateways.gateway(config, models) as http:
        open_page(sight, http)
        for question, warnings in ((EXAMPLES[0], 0), ("What is the capital of France?", 1)):
            fill(sight, question=question)
            sight.point_at("#go", click=True)
            sight.until(DONE + " && !document.querySelector('#run h2').textContent.startsWith('At work')")
            assert sight.js(COUNT("#run .warning")) == warnings
        assert "tiny knows nothing but stories" in sight.js(TEXT("#run .warning"))


def test_links_lead_somewhere(sight, http):
    open_page(sight, http)
    links = sight.js("[...document.querySelectorAll('footer a')].map((a) => [a.textContent, a.getAttribute('href')])")
    assert ["API", "/openapi.json"] in links
    assert ["Paper", "https://arxiv.org/abs/2502.01618"] in links
    assert http.get("/openapi.json").status_code == 200


@pytest.mark.parametrize("method", ["majority", "pg"])
def test_other_methods(sight, http, method):
    open_page(sight, http)
    fill(sight, method=method, particles=16)
    sight.point_at("#go", click=True)
    sight.until(DONE)
    assert sight.js(TEXT("#run h2")).startswith("Answer")
    assert sight.js(TEXT(".pictures h3")) == ("Trajectories" if method == "majority" else "Genealogy")
    assert sight.js(COUNT(".genealogy")) == (1 if method == "majority" else 4)


@pytest.mark.parametrize("method", ["refine:rounds=2", "pdr"])
def test_rounds_of_refinement(sight, method):
    """The answers as they are drawn, then round by round, each round beside those before it."""
    with gateways.gateway(gateways.config(models={"story": {**MODEL, "particles": 6, "methods": [method]}})) as http:
        open_page(sight, http)
        fill(sight, method=method, particles=6, seed=5)
        sight.point_at("#go", click=True)
        sight.until(DONE)
        assert sight.js(TEXT(".pictures h3")) == "Genealogy"
        assert sight.js(COUNT(".ess .round")) == (3 if method.startswith("refine") else 2)
        assert sight.js(TEXT("#run dl")).startswith(f"rounds{3 if method.startswith('refine') else 2}")
        assert "NaN" not in sight.js("document.getElementById('run').outerHTML")


def test_a_refinement_at_work_is_drawn_beside_the_rounds_before(sight):
    lm = WaitsToRefine()
    with gateways.over(lm, models={"story": {**MODEL, "methods": ["refine"]}}) as http:
        open_page(sight, http)
        fill(sight, method="refine", particles=8, seed=5)
        sight.point_at("#go", click=True)
        sight.until(COUNT(".marks .mark") + " > 2 && " + COUNT(".ess .round") + " === 2")
        assert lm.waits.wait(10)
        assert sight.js(TEXT("#run h2")) == "At work"
        assert sight.js(COUNT('.marks .mark[data-round="0"].finished')) == 2
        assert sight.js(COUNT('.marks .mark[data-round="1"].going')) == 2
        lm.let_go()
        sight.until(DONE)
        assert sight.js(COUNT(".ess .round")) == 4


class WaitsToRefine(Stepwise):
    """Drafts at once; the second step of each refinement waits to be let go."""

    async def extend(self, trajectories, sampling, seeds):
        if "<solution>" in trajectories[0].problem.question:
            if trajectories[0].depth:
                return await super().extend(trajectories, sampling, seeds)
            return [motes.Step("Let me see.\n\n", "step") for _ in seeds]
        return await worlds.StoryLanguageModel.extend(self, trajectories, sampling, seeds)


def test_with_the_keyboard_alone(sight, stepwise):
    """Type, Enter, Escape; again, arrows through the particles, to the answer."""
    http, lm = stepwise
    open_page(sight, http)
    sight.js("document.getElementById('question').select(); document.getElementById('question').focus()")
    sight.type(EXAMPLES[1])
    sight.press("Enter")
    sight.until(COUNT(".mark") + " > 0")
    sight.press("Escape")
    sight.until(DONE)
    assert lm.cancelled.wait(10), "nothing more is computed"
    assert sight.js(TEXT("#status")) == "Stopped: nothing more is computed."
    assert sight.js(VALUE("question")) == EXAMPLES[1]
    sight.press("Enter")
    sight.until(COUNT(".mark") + " > 0 && !document.getElementById('stop').hidden")
    for _ in range(20):
        sight.press("Tab")
        if sight.js("document.activeElement.matches('.genealogy')"):
            break
    chosen = sight.js(TEXT(".inspector h3"))
    sight.press("ArrowDown")
    sight.press("ArrowUp") if sight.js(TEXT(".inspector h3")) == chosen else None
    moved = sight.js(TEXT(".inspector h3"))
    lm.let_go()
    sight.until(DONE)
    assert sight.js("document.activeElement.matches('.genealogy')"), "the focus stays where it was"
    assert sight.js(TEXT(".inspector h3")) == moved
    sight.press("ArrowRight")
    assert "round 2" in sight.js(TEXT(".inspector h3"))


@pytest.mark.parametrize("dark", [False, True])
def test_a_narrow_screen(sight, http, dark):
    open_page(sight, http, width=360, height=740, dark=dark)
    sight.point_at("#go", click=True)
    sight.until(DONE)
    assert sight.js("document.documentElement.scrollWidth <= innerWidth")
    assert sight.js("document.querySelector('.inspector').offsetTop > document.querySelector('.pictures').offsetTop")


def test_what_is_refused_is_told(sight, http):
    open_page(sight, http)
    sight.js("document.getElementById('particles').removeAttribute('max')")
    fill(sight, particles=64)
    sight.point_at("#go", click=True)
    sight.until("!document.getElementById('trouble').hidden")
    assert sight.js(TEXT("#trouble")) == "motes.particles: at most 32 particles, not 64"
    assert sight.js(TEXT("#run h2")) == "No answer"
    fill(sight, particles=8)
    sight.point_at("#go", click=True)
    sight.until("document.getElementById('trouble').hidden")
    sight.until(DONE)
    sight.complaints[:] = [said for said in sight.complaints if "400 (Bad Request)" not in said]


def test_hostile_texts_are_texts(sight, http):
    hostile = "</textarea><img src=x onerror=\"document.title='broken'\">?"
    open_page(sight, http)
    fill(sight, question=hostile)
    sight.point_at("#go", click=True)
    sight.until(DONE)
    assert hostile in sight.js(TEXT("#run .asked"))
    assert sight.js("document.title") == "motes"


def test_a_key(sight):
    secret, key = Key.make("one")
    with gateways.gateway(gateways.config(models={"story": MODEL}, keys=[key.model_dump()])) as http:
        open_page(sight, http)
        assert sight.js("document.activeElement.id") == "key"
        sight.type("wrong")
        sight.press("Enter")
        sight.until("!document.getElementById('trouble').hidden")
        assert sight.js(TEXT("#trouble")) == "This key is not known."
        fill(sight, key=secret)
        sight.point_at("#unlock", click=True)
        sight.until("document.getElementById('locked').hidden")
        sight.point_at("#go", click=True)
        sight.until(DONE)
        assert sight.js(TEXT("#run h2")).startswith("Answer")
    sight.complaints[:] = [said for said in sight.complaints if "401 (Unauthorized)" not in said]


def test_the_bundled_models(sight):
    """As `motes serve` has them."""
    with gateways.gateway(Config.bundled()) as http:
        open_page(sight, http)
        fill(sight, seed=1)
        sight.point_at("#go", click=True)
        sight.until(DONE)
        assert sight.js(TEXT("#run h2")).startswith("Answer 20")


def test_there_may_be_none():
    with gateways.gateway(gateways.config(playground=False)) as client:
        assert client.get("/").status_code == 404


def test_it_is_safe_to_show(http):
    response = http.get("/")
    assert response.headers["content-type"] == "text/html; charset=utf-8"
    assert response.headers["x-frame-options"] == "DENY"
    assert "default-src 'none'" in response.text
    assert "story" not in response.text, "what there is to ask for is told to those with a key"
