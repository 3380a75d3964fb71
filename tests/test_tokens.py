"""Token counts: what they say about themselves is true, and no upper bound is ever exceeded."""

import base64
import os
import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tiktoken
from hypothesis import given, settings
from hypothesis import strategies as st
from tiktoken import registry
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

import slow_parts
from children import child
from infrastructure import (
    FinetuneError,
    TokenCount,
    count_messages_tokens,
    count_prefixes,
    count_tokens,
    find_max_exchanges_under_limit,
    tokenizer_for,
)

VOCABULARIES = ("o200k_base", "cl100k_base")
CHANCE = random.Random(5)
TEXTS = {
    "English": "I wasn't sure what you'd say, honestly: we've argued about it for years. " * 3,
    "German": "Die Rechtsschutzversicherungsgesellschaft \u00fcbernimmt gr\u00f6\u00dfere Kosten. ",
    "French": "L'\u00e9t\u00e9 dernier, je n'ai pas o\u00f9 \u00eatre; \u00e7a m'a pes\u00e9. " * 2,
    "Polish": "Cze\u015b\u0107, \u017c\u00f3\u0142w zjad\u0142 \u0142\u0119towe p\u0105ki. " * 2,
    "Chinese": "\u4eca\u5929\u6211\u611f\u5230\u975e\u5e38\u96be\u8fc7\u3002" * 5,
    "Japanese": "\u304a\u5143\u6c17\u3067\u3059\u304b\u3001\u7530\u4e2d\u3055\u3093\u3002" * 5,
    "Arabic": "\u0645\u0631\u062d\u0628\u0627 \u0643\u064a\u0641 \u062d\u0627\u0644\u0643 " * 5,
    "Thai": "\u0e2a\u0e27\u0e31\u0e2a\u0e14\u0e35\u0e04\u0e23\u0e31\u0e1a" * 5,
    "emoji": "\U0001f600\U0001f468\u200d\U0001f469\u200d\U0001f467 \U0001f1e9\U0001f1ea" * 5,
    "digits": "3141592653589793238462643383279502884197 1,234,567.89 +49 30 901820",
    "Python": "def f(x: int) -> str:\n    return f'{x!r:>8}' if x else ''  # no\n" * 3,
    "JSON": '{"id":"t_01","score":0.82,"tags":["a","b",null],"ok":true}' * 3,
    "hex": CHANCE.randbytes(80).hex(),
    "base64": base64.b64encode(CHANCE.randbytes(120)).decode(),
    "random bytes": CHANCE.randbytes(150).decode("latin-1"),
    "shouting": "WHY WOULD NOBODY LISTEN TO ME?! HTTPS XML ABC " * 3,
    "white space": "a\t\tb\n\n\n    c" + " " * 40 + "d\r\n" * 5,
    "special tokens": "<|endoftext|><|im_start|>user<|im_end|>" * 3,
    "single letters": "a b c d e f g h i j k l m n o p q r s t u v w x y z",
    "numbers in a row": " ".join(str(n % 10) for n in range(60)),
    "a table of numbers": "| 1 | 2 | 3 | 4 |\n" * 5,
    "consonants": "xqz " * 20,
    "pauses": " . " * 20 + " \n" * 20,
}
MEASURED = {  # text: tokens in o200k_base and in cl100k_base; a slow test counts them again
    "1 2 3 4 5 6 7 8 9 10 11 12": 23,
    "xqz xqz xqz xqz xqz xqz": 18,
    "hello world": 2,
}


@pytest.fixture(autouse=True)
def no_vocabulary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A machine with no tokenizer: nothing loaded, an empty cache folder."""
    monkeypatch.setattr(registry, "ENCODINGS", {})
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path / "empty"))
    tokenizer_for.cache_clear()
    yield
    tokenizer_for.cache_clear()


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> tiktoken.Encoding:
    """A vocabulary of bytes and two merges, under the name of the usual one."""
    ranks = {bytes([n]): n for n in range(256)} | {b"th": 256, b"the": 257}
    specials = {"<|endoftext|>": 300}
    encoding = tiktoken.Encoding(
        "o200k_base", pat_str=r"\w+|\W+", mergeable_ranks=ranks, special_tokens=specials
    )
    monkeypatch.setitem(registry.ENCODINGS, "o200k_base", encoding)
    return encoding


CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' "
    "+ message['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
)
REWRITES = (  # drops what was thought in all turns but the last
    "{% for m in messages %}<|im_start|>{{ m.role }}: "
    "{{ m.content if loop.last else m.content.split('think')[-1] }}<|im_end|>{% endfor %}"
)
RUNS_ON = "{% for m in messages %}{{ m.content }}{% endfor %}"  # tokens join across messages


def own(folder: Path, template: str | None = CHATML) -> Path:
    """A folder with a byte-level tokenizer.json of a few merges, and a chat template."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = {sign: n for n, sign in enumerate([*alphabet, "th", "the", "in"])}
    tokenizer = Tokenizer(models.BPE(words, [("t", "h"), ("th", "e"), ("i", "n")]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    marks = ("<|im_start|>", "<|im_end|>")
    tokenizer.add_special_tokens([AddedToken(mark, special=True) for mark in marks])
    folder.mkdir(exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    if template:
        (folder / "chat_template.jinja").write_text(template)
    return folder


def messages(exchanges: list[tuple[str, str]], system: str | None) -> list[dict[str, str]]:
    said = [{"role": "system", "content": system}] if system else []
    for user, assistant in exchanges:
        said += [{"role": "user", "content": user}, {"role": "assistant", "content": assistant}]
    return said


# What a count knows about itself


def test_without_a_vocabulary_a_count_is_an_estimate_that_says_so() -> None:
    count = count_tokens("Hello there, how are you today?")
    assert (count.method, count.exactness) == ("estimate", "estimate")
    assert 4 <= count <= count.upper <= len("Hello there, how are you today?")


def test_a_vocabulary_at_hand_is_exact_for_its_own_models(tiny: tiktoken.Encoding) -> None:
    for target in ("o200k_base", "gpt-4o"):
        count = count_tokens("the thing", target)
        assert (count, count.upper, count.exactness) == (6, 6, "exact")
        assert count.method == "tiktoken:o200k_base"


def test_a_relatives_vocabulary_is_no_exact_count(tiny: tiktoken.Encoding) -> None:
    count = count_tokens("the thing", "some-new-model")
    assert (count, count.exactness) == (6, "same-family")
    assert count.upper > 6


def test_a_folder_with_the_models_own_tokenizer_is_exact(tmp_path: Path) -> None:
    count = count_tokens("the thing", own(tmp_path / "model"))
    assert (count, count.upper, count.exactness) == (5, 5, "exact")
    assert "tokenizer.json" in count.method


def test_a_folder_without_a_tokenizer_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FinetuneError, match=r"no tokenizer\.json"):
        count_tokens("x", tmp_path)


def test_a_count_is_a_number_like_any_other() -> None:
    count = TokenCount(7, "estimate", "estimate", 9)
    assert (count + 1, f"{count:,}", sorted([8, count])) == (8, "7", [7, 8])


def test_a_count_survives_being_copied_and_sent_to_another_process() -> None:
    import copy
    import pickle

    count = TokenCount(7, "estimate", "estimate", 9)
    for twin in (copy.deepcopy(count), pickle.loads(pickle.dumps(count))):
        assert (twin, twin.method, twin.upper) == (7, "estimate", 9)


# Texts that broke counters


def test_special_token_text_is_counted_like_any_text(tiny: tiktoken.Encoding) -> None:
    assert count_tokens("<|endoftext|>") == len("<|endoftext|>")
    assert count_tokens("<|endoftext|>", "some-new-model").upper >= 13


@pytest.mark.parametrize("empty", [None, ""])
def test_nothing_is_no_tokens(empty: str | None) -> None:
    assert count_tokens(empty) == count_tokens(empty).upper == 0


def test_a_message_without_content_counts_only_its_frame(tiny: tiktoken.Encoding) -> None:
    nothing = [{"role": "assistant", "content": None}]
    assert count_messages_tokens(nothing) == count_messages_tokens(
        [{"role": "assistant", "content": ""}]
    )


def test_a_message_without_content_goes_through_a_chat_template_too(tmp_path: Path) -> None:
    folder = own(tmp_path / "model")
    nothing = count_messages_tokens([{"role": "assistant", "content": None}], folder)
    assert nothing == count_messages_tokens([{"role": "assistant", "content": ""}], folder)


@pytest.mark.parametrize("way", ["estimate", "tiktoken", "tokenizer.json"])
def test_half_a_surrogate_pair_is_counted_and_not_an_error(
    way: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    if way == "tiktoken":
        request.getfixturevalue("tiny")
    count = count_tokens("a\ud800b", own(tmp_path / "model") if way == "tokenizer.json" else None)
    assert 2 <= count <= count.upper


def test_a_tokenizer_that_pads_or_cuts_for_training_counts_all_the_same(tmp_path: Path) -> None:
    folder = own(tmp_path / "model")
    saved = Tokenizer.from_file(str(folder / "tokenizer.json"))
    saved.enable_truncation(4)
    saved.save(str(folder / "tokenizer.json"))
    assert count_tokens("x" * 50, folder) == 50
    saved.enable_padding(length=32)
    saved.save(str(folder / "tokenizer.json"))
    tokenizer_for.cache_clear()
    assert count_tokens("xyz", folder) == 3


# Upper bounds


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_an_estimate_lies_within_its_bound_and_the_bound_within_the_bytes(text: str) -> None:
    count = count_tokens(text)
    assert 0 < count <= count.upper
    assert count.upper <= len(text.encode())


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_an_estimates_bound_is_no_lower_than_a_small_vocabularys_count_of_dense_text(
    text: str, tiny: tiktoken.Encoding
) -> None:
    """A token per byte is the most a byte-level vocabulary can make of it."""
    relative = count_tokens(text, "some-new-model")
    assert len(text.encode()) >= relative.upper >= relative == len(tiny.encode_ordinary(text))


@pytest.mark.parametrize(("text", "tokens"), MEASURED.items())
def test_the_estimates_bound_holds_for_texts_that_were_measured(text: str, tokens: int) -> None:
    assert count_tokens(text).upper >= tokens


@given(st.text(), st.text())
@settings(deadline=None)
def test_more_text_never_has_a_lower_bound(start: str, more: str) -> None:
    assert count_tokens(start + more).upper + 2 >= count_tokens(start).upper
    assert count_tokens(start).upper <= len(start.encode())


# Prefixes and limits

EXCHANGES = [(f"the thing {n} " * n, f"in the think end {n}" * (7 - n)) for n in range(1, 7)]
TARGETS = ["estimate", "tiktoken", "relative", "template", "rewrites", "runs on", "no template"]


@pytest.fixture
def target(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    """What to count with, by its name in TARGETS."""
    if request.param in ("tiktoken", "relative"):
        request.getfixturevalue("tiny")
        return {"tiktoken": "o200k_base", "relative": "some-new-model"}[request.param]
    templates = {"template": CHATML, "rewrites": REWRITES, "runs on": RUNS_ON, "no template": None}
    known = request.param in templates
    return own(tmp_path / "model", templates[request.param]) if known else None


@pytest.mark.parametrize("target", TARGETS, indirect=True)
@pytest.mark.parametrize("system", [None, "Be kind to the user."])
def test_prefix_counts_equal_counting_each_prefix_anew(target: Any, system: str | None) -> None:
    counts = count_prefixes(EXCHANGES, system, target)
    wanted = [count_messages_tokens(messages(EXCHANGES[:n], system), target) for n in range(1, 7)]
    assert counts == wanted
    assert [count.upper for count in counts] == [count.upper for count in wanted]


def test_tokens_that_join_across_messages_are_counted_as_the_model_sees_them(
    tmp_path: Path,
) -> None:
    folder = own(tmp_path / "model", RUNS_ON)
    assert count_prefixes([("t", "h"), ("e", "in")], None, folder) == [1, 2]


def test_no_exchanges_are_no_prefixes() -> None:
    assert count_prefixes([], "system") == []
    assert find_max_exchanges_under_limit([], "system", 10) == 0


@pytest.mark.parametrize("target", TARGETS, indirect=True)
def test_what_fits_under_a_limit_never_exceeds_it_by_its_bound(target: Any) -> None:
    bounds = [0] + [count.upper for count in count_prefixes(EXCHANGES, "Be kind.", target)]
    for limit in range(0, bounds[-1] + 50, 7):
        fits = find_max_exchanges_under_limit(EXCHANGES, "Be kind.", limit, target)
        assert bounds[fits] <= limit
        assert fits == 6 or bounds[fits + 1] > limit


@given(
    st.lists(st.tuples(st.text(), st.text()), max_size=6), st.integers(0, 200), st.integers(0, 9)
)
@settings(deadline=None)
def test_more_room_never_fits_fewer_exchanges(
    exchanges: list[tuple[str, str]], limit: int, more: int
) -> None:
    fits = find_max_exchanges_under_limit(exchanges, None, limit)
    assert fits <= find_max_exchanges_under_limit(exchanges, None, limit + more)


def test_exchanges_may_be_pairs_or_mappings() -> None:
    named = [{"user": user, "assistant": assistant} for user, assistant in EXCHANGES]
    assert count_prefixes(named, None) == count_prefixes(EXCHANGES, None)


# Chat templates


def test_a_conversation_is_counted_as_its_template_renders_it(tmp_path: Path) -> None:
    folder = own(tmp_path / "model")
    count = count_messages_tokens(messages([("the", "in")], None), folder)
    marks_and_newlines, roles, words = 2 * 4, len("user") + len("assistant"), 2
    assert count == marks_and_newlines + roles + words


def test_a_template_may_also_stand_in_the_tokenizers_settings(tmp_path: Path) -> None:
    import json

    folder, talk = own(tmp_path / "model"), messages(EXCHANGES, None)
    before = count_messages_tokens(talk, folder)
    (folder / "chat_template.jinja").unlink()
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": CHATML}))
    tokenizer_for.cache_clear()
    assert count_messages_tokens(talk, folder) == before


def test_a_template_that_refuses_a_conversation_says_so_in_its_own_words(tmp_path: Path) -> None:
    folder = own(tmp_path / "model", "{{ raise_exception('roles must alternate') }}")
    with pytest.raises(FinetuneError, match="roles must alternate"):
        count_messages_tokens(messages(EXCHANGES, None), folder)


@pytest.mark.parametrize(
    "attack", ["''.__class__.__mro__", "messages.append(1)", "cycler.__init__"]
)
def test_a_downloaded_template_can_only_shape_text(attack: str, tmp_path: Path) -> None:
    folder = own(tmp_path / "model", "{{ " + attack + ".__globals__ }}")
    talk = messages([("a", "b")], None)
    with pytest.raises(Exception, match=r"unsafe|not safely"):
        count_messages_tokens(talk, folder)
    assert len(talk) == 2


# No network

OFFLINE = """
import sys
def refuse(event, arguments):
    if event.startswith("socket."):
        raise RuntimeError(f"network: {event}")
sys.addaudithook(refuse)
from infrastructure import count_tokens
count = count_tokens("Hello there", *sys.argv[1:])
print(count.exactness, 0 < count <= count.upper)
"""


@pytest.mark.parametrize("target", [[], ["gpt-4o"], ["cl100k_base"], ["some-new-model"]])
def test_counting_needs_no_network(target: list[str]) -> None:
    done = child("-c", OFFLINE, *target)
    assert (done.stdout, done.stderr) == ("estimate True\n", "")


def test_a_damaged_vocabulary_is_not_fetched_again(tmp_path: Path) -> None:
    cached = tmp_path / "empty" / "fb374d419588a4632f3f557e76b4b70aebbca790"
    cached.parent.mkdir()
    cached.write_text("aGk= 0\n")
    done = child("-c", OFFLINE)
    assert (done.stdout, done.stderr) == ("estimate True\n", "")


# With real vocabularies and libraries


REAL_CACHE = os.environ.get("TIKTOKEN_CACHE_DIR", str(slow_parts.CACHE / "tiktoken"))


def real(name: str, monkeypatch: pytest.MonkeyPatch) -> tiktoken.Encoding:
    """The vocabulary itself, from the cache of this machine; the kernel still knows none."""
    with monkeypatch.context() as patched:
        patched.setenv("TIKTOKEN_CACHE_DIR", REAL_CACHE)
        slow_parts.require("tiktoken")
        patched.setattr(registry, "ENCODINGS", {})
        exact = count_tokens("x", name).exactness == "exact"
        tokenizer_for.cache_clear()
        if not exact:
            pytest.skip(f"{name}: its vocabulary is not in the cache")
        return tiktoken.get_encoding(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", VOCABULARIES)
def test_the_estimates_bound_is_no_lower_than_the_real_count_of_any_text(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoding = real(name, monkeypatch)
    ratios = {
        title: count_tokens(text).upper / len(encoding.encode_ordinary(text))
        for title, text in TEXTS.items()
    }
    print(name, {title: round(ratio, 2) for title, ratio in ratios.items()})
    assert {title: ratio for title, ratio in ratios.items() if ratio < 1} == {}


@pytest.mark.slow
def test_the_counts_that_the_fast_tests_rely_on_are_the_real_ones(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    encoding = real("o200k_base", monkeypatch)
    assert {text: len(encoding.encode_ordinary(text)) for text in MEASURED} == MEASURED


@pytest.mark.slow
def test_a_cache_folder_named_by_the_environment_is_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoding = real("o200k_base", monkeypatch)
    cached = "fb374d419588a4632f3f557e76b4b70aebbca790"
    (tmp_path / "empty").mkdir()
    shutil.copy(Path(REAL_CACHE, cached), tmp_path / "empty")
    count = count_tokens("Hello there", "o200k_base")
    assert (count.exactness, count) == ("exact", len(encoding.encode_ordinary("Hello there")))


@pytest.mark.slow
@pytest.mark.parametrize("template", [CHATML, REWRITES, RUNS_ON])
def test_a_template_renders_as_transformers_renders_it(template: str, tmp_path: Path) -> None:
    slow_parts.require("transformers")
    from transformers import PreTrainedTokenizerFast

    folder = own(tmp_path / "model", template)
    theirs = PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"))
    talk = messages([("Caf\u00e9 <b>'x'</b>", "in the\n\nend"), ("again", "")], "Be kind.")
    rendered = theirs.apply_chat_template(talk, chat_template=template, tokenize=False)
    ours = tokenizer_for(folder).render
    assert ours is not None
    assert ours(talk) == rendered
