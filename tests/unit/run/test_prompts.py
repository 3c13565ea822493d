"""The prompt schedule: what is written is what the clips are told, and anything else is refused by its number."""

from __future__ import annotations

import hashlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from longvie_core.model.clip import ClipStrengths
from longvie_core.run.prompts import KEYS, MAX_STRENGTH, REFERENCE_NEGATIVE, ClipPrompt, PromptSchedule, parse_prompts

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
LINES = TEXTS.map(lambda text: " ".join(text.split())).filter(bool)


class TestLines:
    def test_one_a_line_without_empty_ones(self) -> None:
        assert parse_prompts("  a horse \n\n\t\nit gallops\r\n  \nand rests") == (
            ClipPrompt("a horse"),
            ClipPrompt("it gallops"),
            ClipPrompt("and rests"),
        )

    @pytest.mark.parametrize("text", ["", " ", "\n\n", "\t\r\n"])
    def test_nothing_is_one_empty_prompt(self, text: str) -> None:
        assert parse_prompts(text) == (ClipPrompt(""),)

    @given(st.lists(LINES.filter(lambda line: not line.startswith("[")), min_size=1), st.data())
    def test_lines_come_back_in_order(self, lines: list[str], data: st.DataObject) -> None:
        gaps = st.sampled_from(["\n", "\r\n", "\n\n", " \n\t", "\n \n"])
        text = "".join(line + data.draw(gaps) for line in lines)
        assert [prompt.text for prompt in parse_prompts(text)] == lines

    def test_a_line_that_only_holds_json_is_still_text(self) -> None:
        assert parse_prompts('{"prompt": "a"}') == (ClipPrompt('{"prompt": "a"}'),)

    def test_half_of_a_surrogate_pair_is_named_by_its_line(self) -> None:
        with pytest.raises(ValueError, match="prompt 2 holds half of a surrogate pair"):
            parse_prompts("a\n\nb\ud83d")

    def test_a_bracket_that_is_not_first_is_text(self) -> None:
        assert parse_prompts("a [b]\n[c]") == (ClipPrompt("a [b]"), ClipPrompt("[c]"))


ENTRIES = st.one_of(
    TEXTS.map(lambda text: (text, ClipPrompt(text))),
    st.builds(
        lambda prompt, rest, strengths: (
            {"prompt": prompt, **rest, **{f"{name}_strength": value for name, value in strengths.items()}},
            ClipPrompt(prompt, **rest, strengths=ClipStrengths(**strengths)),
        ),
        TEXTS,
        st.fixed_dictionaries({}, optional={"negative": TEXTS, "seed_offset": st.integers(-(2**31), 2**31)}),
        st.dictionaries(st.sampled_from(["dense", "sparse"]), st.floats(0, MAX_STRENGTH) | st.integers(0, 10)),
    ),
)


class TestJson:
    def test_by_hand(self) -> None:
        text = '\n [ "a\\nb", {"prompt": "c", "negative": "", "seed_offset": -3}, {"prompt": "", "negative": null} ]'
        assert parse_prompts(text) == (ClipPrompt("a\nb"), ClipPrompt("c", "", -3), ClipPrompt("", None, 0))

    @given(st.lists(ENTRIES, min_size=1), st.sampled_from([None, 1]), st.booleans())
    def test_entries_come_back_in_order(self, entries: list, indent: int | None, ascii_only: bool) -> None:
        text = json.dumps([written for written, _ in entries], indent=indent, ensure_ascii=ascii_only)
        assert parse_prompts(text) == tuple(expected for _, expected in entries)

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("[a red car] drives", "start with '\\['.*one prompt a line"),
            ('["a", "b"', "start with '\\['.*list of strings"),
            ("[]", "empty JSON list"),
            ("[" * 100_000, "start with '\\['"),
            ("[" + "1" * 5000 + "]", "'\\['|prompt 1 is a int"),
            ('["a", {"prompt": "b", "dense_strength": -0.1}]', "prompt 2: 'dense_strength' must be a number from 0 to 10"),
            ('[{"prompt": "a", "sparse_strength": 10.5}]', "prompt 1: 'sparse_strength' must be a number from 0 to 10"),
            ('[{"prompt": "a", "dense_strength": "1"}]', "prompt 1: 'dense_strength' must be a number"),
            ('[{"prompt": "a", "dense_strength": true}]', "prompt 1: 'dense_strength' must be a number"),
            ('[{"prompt": "a", "dense_strength": [1]}]', "prompt 1: 'dense_strength' must be a number"),
            ('[{"prompt": "a", "sparse_strength": NaN}]', "prompt 1: 'sparse_strength' must be a number"),
            ('[{"prompt": "a", "sparse_strength": Infinity}]', "prompt 1: 'sparse_strength' must be a number"),
            ('[{"prompt": "a", "sparse_strength": 1' + "0" * 400 + "}]", "prompt 1: 'sparse_strength' must be a number"),
            ('["a", 5]', "prompt 2 is a int: give a string or an object"),
            ('["a", null]', "prompt 2 is a NoneType"),
            ('["a", ["b"]]', "prompt 2 is a list"),
            ('[{"prompt": "a"}, {"text": "b"}]', "prompt 2 has an unknown key 'text': use prompt, negative, seed_"),
            ('[{"negative": "b"}]', "prompt 1 has no text under 'prompt'"),
            ('[{"prompt": 3}]', "prompt 1 has no text under 'prompt'"),
            ('[{"prompt": "a", "negative": ["b"]}]', "prompt 1: 'negative' must be a string"),
            ('["z", {"prompt": "a", "seed_offset": 1.5}]', "prompt 2: 'seed_offset' must be a whole number"),
            ('[{"prompt": "a", "seed_offset": "1"}]', "prompt 1: 'seed_offset' must be a whole number"),
            ('[{"prompt": "a", "seed_offset": true}]', "prompt 1: 'seed_offset' must be a whole number"),
            ('[{"prompt": "a", "seed_offset": null}]', "prompt 1: 'seed_offset' must be a whole number"),
            # Half of a surrogate pair is no character: neither a tokenizer nor a hash can read it.
            (r'["a", "b\ud83d"]', "prompt 2"),
            (r'["a", {"prompt": "b", "negative": "\udc00"}]', "prompt 2"),
        ],
    )
    def test_what_is_wrong_is_named_by_its_number(self, text: str, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            parse_prompts(text)

    def test_strengths_by_hand(self) -> None:
        text = (
            '["a", {"prompt": "b", "dense_strength": 0}, {"prompt": "c", "dense_strength": null, "sparse_strength": 2.5}, '
            '{"prompt": "d", "dense_strength": 0, "sparse_strength": 10}]'
        )
        strengths = [(prompt.strengths.dense, prompt.strengths.sparse) for prompt in parse_prompts(text)]
        assert strengths == [(None, None), (0.0, None), (None, 2.5), (0.0, 10.0)]
        assert all(type(value) is float for pair in strengths for value in pair if value is not None)

    def test_a_whole_surrogate_pair_is_a_character(self) -> None:
        assert parse_prompts(r'["\ud83d\ude00"]') == (ClipPrompt("\U0001f600"),)


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from([*KEYS, "x"]), inner, max_size=4),
    max_leaves=8,
)


@given(st.one_of(TEXTS, TEXTS.map("[".__add__), st.lists(JSON_VALUES, max_size=3).map(json.dumps)))
def test_any_text_gives_prompts_or_a_value_error(text: str) -> None:
    try:
        prompts = parse_prompts(text)
    except ValueError as error:
        assert "prompt" in str(error)
        return
    assert prompts
    for prompt in prompts:
        assert all(value is None or 0 <= value <= MAX_STRENGTH for value in vars(prompt.strengths).values())
        assert isinstance(prompt.text, str) and type(prompt.seed_offset) is int
        assert prompt.negative is None or isinstance(prompt.negative, str)


def test_clips_beyond_the_last_prompt_repeat_it() -> None:
    prompts = parse_prompts("a\nb\nc")
    assert [PromptSchedule(prompts).of(clip).text for clip in range(6)] == ["a", "b", "c", "c", "c", "c"]
    assert [PromptSchedule(prompts[:1]).of(clip).text for clip in range(3)] == ["a", "a", "a"]


def test_the_stock_negative_prompt_is_wans() -> None:
    """Taken from the host's own Wan 2.2 image-to-video template, where it stands word for word."""
    assert len(REFERENCE_NEGATIVE) == 137
    digest = hashlib.sha256(REFERENCE_NEGATIVE.encode()).hexdigest()
    assert digest == "ce96e0324e4b54ce4b6e867f669ca520952e1a34cc116543516b1897f0d3c47e"
