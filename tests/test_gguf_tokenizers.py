"""The tokenizers in GGUF files. (`tests/servers/on_llama_cpp_files.py` compares each with llama.cpp's own.)"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest

import ggufs
from hostile_texts import HOSTILE, mixtures
from motes import Problem, bundled
from motes.errors import ConfigurationError
from motes.gguf import DamagedError, open_header
from motes.gguf.tokenizer import CASED_RULES, RULES, end_token_ids
from motes.vocabulary import Vocabulary

TEXT = "We'LL don't  add 1234567+x1 \r\n\r\n\tHTTPServer's //\n\n  ½ e\u0301東京"
WORDS = {
    "gpt-2": "We|'|LL| don|'t| | add| 1234567|+|x|1| \r\n\r\n|\t|HTTPServer|'s| //|\n\n | ½| e|\u0301|東京",
    "smollm": "We|'|LL| don|'t| | add| |1|2|3|4|5|6|7|+|x|1| \r\n\r\n|\t|HTTPServer|'s| //|\n\n  |½| e|\u0301|東京",
    "llama-bpe": "We|'LL| don|'t| | add| |123|456|7|+x|1| \r\n\r\n|\tHTTPServer|'s| //\n\n| | |½| e|\u0301東京",
    "qwen2": "We|'LL| don|'t| | add| |1|2|3|4|5|6|7|+x|1| \r\n\r\n|\tHTTPServer|'s| //\n\n| | |½| e|\u0301東京",
    "gpt-4o": "We'LL| don't| | add| |123|456|7|+x|1| \r\n\r\n|\tHTTPServer's| //\n\n| | |½| e\u0301東京",
    "tekken": "We|'LL| don|'t| | add| |1|2|3|4|5|6|7|+x|1| \r\n\r\n|\tHTTPServer|'s| //\n\n| | |½| e\u0301東京",
}
"""The words of the text, as llama.cpp 2026.10 cuts it; in the last two rules, whose marks it does not know, as the
models' own tokenizers do."""


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tokens") / "tokens.gguf"


@pytest.mark.parametrize("rule", RULES)
def test_words(rule: str, path: Path):
    pre_tokenizer = Vocabulary.load(str(ggufs.byte_level(path, rule))).tokenizer.backend_tokenizer.pre_tokenizer
    words = [TEXT[start:stop] for _, (start, stop) in pre_tokenizer.pre_tokenize_str(TEXT)]
    assert "".join(words) == TEXT
    (same,) = (known for known in WORDS if RULES[known] == RULES[rule])
    assert "|".join(words) == WORDS[same]


def test_every_rule_has_words():
    assert {RULES[rule] for rule in WORDS} == set(RULES.values())
    assert {rule for rule in WORDS if rule in CASED_RULES} == {"gpt-4o", "tekken"}


@pytest.mark.parametrize("rule", WORDS)
def test_texts_are_their_tokens(rule: str, path: Path):
    vocabulary = Vocabulary.load(str(ggufs.byte_level(path, rule)))
    for text in (*HOSTILE, *mixtures(100, seed=3)):
        assert vocabulary.decode(vocabulary.encode(text, special=False)) == text


@pytest.mark.parametrize(
    ("text", "one", "several"),
    [
        ("<|im_end|>", True, False),  # special
        ("<｜User｜>", True, False),  # special, with characters that are no bytes' stand-ins
        ("<think>", True, True),  # matched wherever it stands
    ],
)
def test_special_tokens(text: str, one: bool, several: bool, path: Path):
    vocabulary = Vocabulary.load(str(ggufs.byte_level(path, "qwen2")))
    token = vocabulary.tokenizer.convert_tokens_to_ids(text)
    for special, expected in ((True, one), (False, several)):
        ids = vocabulary.encode(f"a{text}b", special=special)
        assert (token in ids) is expected
        assert (len(ids) == 3) is expected
    assert vocabulary.decode([token]) == (text if text == "<think>" else "")


def test_a_word_that_no_merges_lead_to(path: Path):
    """Llama 3's rule takes it nevertheless."""
    for rule, expected in (("llama-bpe", True), ("tekken", True), ("qwen2", False), ("dbrx", False)):
        vocabulary = Vocabulary.load(str(ggufs.byte_level(path, rule)))
        token = vocabulary.tokenizer.convert_tokens_to_ids(ggufs.WITHOUT_MERGES)
        assert (vocabulary.encode("a foobarqux") == [*vocabulary.encode("a"), token]) is expected


def test_unused_tokens_have_no_text(path: Path):
    vocabulary = Vocabulary.load(str(ggufs.byte_level(path, "llama-bpe")))
    unused = open_header(path).metadata["tokenizer.ggml.tokens"].index("[PAD0]")
    assert unused not in vocabulary.encode("[PAD0]")
    assert vocabulary.decode([unused]) == ""


@pytest.mark.parametrize(
    ("rule", "said", "begins"),
    [("qwen2", None, False), ("qwen2", True, True), ("llama-bpe", None, True), ("llama-bpe", False, False)],
)
def test_the_token_that_begins_a_text(rule: str, said: bool | None, begins: bool, path: Path):
    metadata = {} if said is None else {"tokenizer.ggml.add_bos_token": said}
    vocabulary = Vocabulary.load(str(ggufs.byte_level(path, rule, **metadata)))
    bos = vocabulary.tokenizer.bos_token_id
    assert vocabulary.tokenizer.bos_token == "<s>"
    assert vocabulary.prompt(Problem("Hello")) == [bos] * begins + vocabulary.encode("Hello")
    assert bos not in vocabulary.encode("Hello")


def test_a_chat_template(path: Path):
    template = "{{ bos_token }}{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>{% endfor %}"
    file = ggufs.byte_level(path, "llama-bpe", **{"tokenizer.chat_template": template})
    vocabulary = Vocabulary.load(str(file))
    ids = vocabulary.prompt(Problem("Hi <|im_end|>"))
    tokens = vocabulary.tokenizer.convert_ids_to_tokens(ids)
    assert tokens[:2] == ["<s>", "<|im_start|>"]
    assert tokens.count("<|im_end|>") == tokens.count("<s>") == 1
    assert vocabulary.decode(ids) == "user\nHi <|im_end|>"


@pytest.mark.parametrize("kind", ["llama-bpe", "sentencepiece"])
@pytest.mark.parametrize("writes", [True, False])
@pytest.mark.parametrize("adds", [True, False, None])
def test_the_token_that_begins_a_chat(kind: str, writes: bool, adds: bool | None, path: Path):
    """As on llama.cpp, it stands there once, whether or not the template writes it. None: these kinds add it."""
    template = "{{ bos_token }}" * writes + "{{ messages[-1].content }}"
    metadata = {"tokenizer.chat_template": template} | ({} if adds is None else {"tokenizer.ggml.add_bos_token": adds})
    make = ggufs.sentencepiece if kind == "sentencepiece" else partial(ggufs.byte_level, rule=kind)
    vocabulary = Vocabulary.load(str(make(path, **metadata)))
    tokens = vocabulary.tokenizer.convert_ids_to_tokens(vocabulary.prompt(Problem("Hello <s>")))
    begins = writes or adds is not False
    assert tokens.count("<s>") == begins
    assert (tokens[0] == "<s>") is begins


def test_a_token_of_megabytes(path: Path):
    ggufs.with_tokens(path, "llama", ["a", "a" * 3_000_000], [1, 1], {"tokenizer.ggml.scores": [0.0, 0.0]})
    with pytest.raises(DamagedError, match="a token has 3,000,000 characters"):
        Vocabulary.load(str(path))


@pytest.mark.parametrize(
    "template", ["{% for %}", "{{ 1 // 0 }}", "{% for i in range(10 ** 9) %}{% endfor %}", "{{ a.b }}"]
)
def test_a_chat_template_that_fails(template: str, path: Path):
    vocabulary = Vocabulary.load(str(ggufs.byte_level(path, "qwen2", **{"tokenizer.chat_template": template})))
    with pytest.raises(ConfigurationError, match=r"chat template refuses the conversation .*: use another checkpoint"):
        vocabulary.prompt(Problem("Hello"))


def test_ends_of_answers(path: Path):
    """The file's own, and those with the name of one; in harmony's format, "<|end|>" ends a message only."""
    tokens = ["a", "<|eot|>", "<|im_end|>", "<|end|>", "</s>", "<|return|>", "b"]
    named = {"tokenizer.ggml.eos_token_id": 1, "tokenizer.ggml.eot_token_id": 0, "tokenizer.ggml.eom_token_id": 99}
    types = [1, 3, 1, 3, 3, 3, 1]
    ggufs.with_tokens(path, "gpt2", tokens, types, named)
    assert end_token_ids(open_header(path)) == [0, 1, 2, 3, 4, 5]
    ggufs.with_tokens(path, "gpt2", [*tokens, "<|call|>"], [*types, 3], named)
    assert end_token_ids(open_header(path)) == [0, 1, 2, 4, 5, 7]


def test_an_end_that_the_file_takes_for_text(path: Path):
    """llama.cpp takes it for a special token all the same."""
    tokens = [*"ab", "<|im_end|>", "Ċ", "1", "Ġ", "B", "ab"]
    metadata = {"tokenizer.ggml.pre": "qwen2", "tokenizer.ggml.merges": ["a b"]}
    file = ggufs.with_tokens(path, "gpt2", tokens, [1] * 8, metadata)
    assert Vocabulary.load(str(file)).decode([0, 2]) == "a"


@pytest.mark.parametrize("prefix", [None, True, False])
def test_sentencepiece(prefix: bool | None, path: Path):
    metadata = {} if prefix is None else {"tokenizer.ggml.add_space_prefix": prefix}
    vocabulary = Vocabulary.load(str(ggufs.sentencepiece(path, **metadata)))
    tokenizer = vocabulary.tokenizer
    begins = prefix is not False
    assert tokenizer.convert_ids_to_tokens(tokenizer.encode("the"))[0] == "<s>"
    assert tokenizer.convert_ids_to_tokens(tokenizer.encode("the"))[1].startswith("▁") is begins
    assert tokenizer.convert_ids_to_tokens(vocabulary.encode("ꙮ")) == ["<0xEA>", "<0x99>", "<0xAE>"]
    assert tokenizer.convert_tokens_to_ids("<|im_end|>") not in vocabulary.encode("a<|im_end|>", special=False)
    for text in (*HOSTILE, *mixtures(100, seed=3)):
        assert vocabulary.decode(vocabulary.encode(text, special=False)) == text


def test_sentencepiece_merges_the_best_pair_first(path: Path):
    tokens = ["<unk>", "<s>", "</s>", *"▁ab1B\n", "<0x0A>", "▁a", "ab", "▁ab", "bb"]
    types = [2, 3, 3, *[1] * 6, 6, *[1] * 4]
    for scores, expected in (([-1.0, -2.0, -3.0, -4.0], ["▁ab"]), ([-3.0, -4.0, -9.0, -1.0], ["▁ab"])):
        all_scores = [0.0, 0.0, 0.0, *[-20.0] * 6, 0.0, *scores]
        ids = {f"tokenizer.ggml.{name}_token_id": i for i, name in enumerate(("unknown", "bos", "eos"))}
        file = ggufs.with_tokens(path, "llama", tokens, types, {"tokenizer.ggml.scores": all_scores, **ids})
        tokenizer = Vocabulary.load(str(file)).tokenizer
        assert tokenizer.tokenize("ab") == expected
        first = ["▁ab", "b"] if scores[0] > scores[3] else ["▁a", "bb"]
        assert tokenizer.tokenize("abb") == first


def test_the_bundled_tokenizer(path: Path):
    """All of its texts that are in the normal form of Unicode; its own tokenizer normalises others, llama.cpp not."""
    import unicodedata

    import to_gguf

    to_gguf.convert(bundled.path("lm"), path)
    mine, theirs = Vocabulary.load(str(path)), Vocabulary.load(str(bundled.path("lm")))
    for text in (*HOSTILE, *mixtures(300, seed=4)):
        if unicodedata.is_normalized("NFC", text):
            for special in (False, True):
                assert mine.encode(text, special=special) == theirs.encode(text, special=special), text
    for system in ("", "Be brief."):
        problem = Problem("Hi <|im_end|>", system=system)
        assert mine.prompt(problem) == theirs.prompt(problem)
