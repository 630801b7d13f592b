"""Laws of the merged card: what is ours is written anew, what is a person's stays, and foreign texts fool nobody."""

from __future__ import annotations

import re

import pytest
import yaml
from datasets import DatasetDict
from hypothesis import given
from hypothesis import strategies as st
from ranked_rows import dataset_of, rows, simple_row

from tuna_trl.data.card import ranked_card, updated_card
from tuna_trl.data.card_merge import join_card, merge_card, section, split_body, split_card
from tuna_trl.data.hub import save_ranked
from tuna_trl.errors import InputError


lines = st.text("abc <!->#-:\n\ttuna /end", max_size=60)
words = st.text("abcd#* ", min_size=1, max_size=20).filter(str.strip)


def card_of(n: int = 2, **kwargs) -> str:
    return ranked_card(dataset_of([simple_row(i) for i in range(n)]), **kwargs)


def fields_of(text: str) -> dict:
    return split_card(text)[0]


@given(st.dictionaries(st.sampled_from(["title", "content", "biases"]), lines, min_size=1))
def test_what_is_joined_splits_into_the_same_sections_whatever_their_text(texts):
    written = join_card({"a": 1}, [section(name, text) for name, text in texts.items()])
    fields, body = split_card(written)
    found = split_body(body)
    assert fields == {"a": 1}
    assert {part.name: part.text for part in found} == {name: text.strip("\n") for name, text in texts.items()}
    assert not any(part.edited for part in found)


def test_a_text_that_looks_like_the_end_of_its_section_or_like_another_one_is_only_text():
    inner = str(section("licence", "Public domain!"))
    text = f"before\n{inner}\n<!-- /tuna-trl: row {'0' * 16} -->\nafter"
    old = join_card({}, [section("row", text), section("licence", "No licence.")])
    assert [part.name for part in split_body(split_card(old)[1])] == ["row", "licence"]
    new = join_card({}, [section("row", "calm"), section("licence", "mit")])
    assert merge_card(old, new).text == new


@given(st.lists(rows(), min_size=1, max_size=2), st.lists(rows(), min_size=1, max_size=2))
def test_a_card_that_nobody_touched_is_written_anew(before, after):
    new = ranked_card(dataset_of(after))
    merged = merge_card(ranked_card(dataset_of(before)), new, drop_missing=True)
    assert split_card(merged.text)[1].strip() == split_card(new)[1].strip()
    assert merged.kept == () and not merged.left_out


@given(words, words, st.integers(0, 9), st.booleans())
def test_words_of_a_person_stay_where_they_are(outside, inside, where, windows):
    """Between sections and in one of them; also when the editor of the Hub ends lines as Windows does."""
    body = split_body(split_card(card_of(2))[1])
    edited = body[where % len(body)]
    text = card_of(2).replace(edited.text, f"{edited.text}\n{inside}")
    marker = f"<!-- tuna-trl: {body[1].name} "
    text = text.replace(marker, f"{outside}\n\n{marker}")
    merged = merge_card(text.replace("\n", "\r\n") if windows else text, card_of(5))
    assert outside.strip() in merged.text and f"{edited.text}\n{inside}".strip() in merged.text
    assert merged.kept == (() if not inside.strip() else (edited.name,))
    if edited.name != "size":
        assert "5 instructions with 15 responses" in merged.text
    again = merge_card(merged.text, card_of(5))
    assert again.text == merged.text  # nothing is doubled, however often


def test_a_page_of_a_persons_own_is_kept_whole_and_ours_comes_behind_it():
    own = "---\nlicense: mit\n---\n# My data\n\nAll mine.\n"
    merged = merge_card(own, card_of()).text
    assert merged.index("# My data") < merged.index("All mine.") < merged.index("## Who ranked it")
    assert merged.count("\n# ") == 1 and fields_of(merged)["license"] == "mit"


def test_a_section_that_is_new_comes_behind_the_one_that_it_follows():
    def parts(*names):
        return join_card({}, [section(name, f"text of {name}") for name in names])

    merged = merge_card(parts("title", "content", "licence"), parts("title", "rankers", "content", "judgments"))
    names = [part.name for part in split_body(split_card(merged.text)[1])]
    assert names == ["title", "rankers", "content", "judgments", "licence"]
    dropped = merge_card(parts("title", "content"), parts("title"), drop_missing=True)
    assert [part.name for part in split_body(split_card(dropped.text)[1])] == ["title"]


class TestFields:
    OLD = {
        "license": "mit",
        "language": ["de"],
        "tags": ["mine", "trl"],
        "size_categories": ["n>1T"],
        "configs": [{"config_name": "mine", "data_files": "a.csv"}, {"config_name": "default", "default": True}],
        "dataset_info": {"config_name": "mine", "features": []},
    }
    NEW = {
        "license": "cc0-1.0",
        "language": ["en"],
        "tags": ["tuna-trl", "trl"],
        "size_categories": ["n<1K"],
        "configs": [{"config_name": "default", "data_files": "x"}],
        "dataset_info": {"config_name": "default", "features": []},
    }

    def merged(self, **kwargs) -> dict:
        return fields_of(merge_card(join_card(self.OLD, []), join_card(self.NEW, []), **kwargs).text)

    def test_a_persons_field_gives_way_only_to_one_given_on_purpose(self):
        assert self.merged()["license"] == "mit" and self.merged()["language"] == ["de"]
        assert self.merged(given={"license"})["license"] == "cc0-1.0"

    def test_tags_are_joined_and_sizes_are_counted(self):
        assert self.merged()["tags"] == ["mine", "trl", "tuna-trl"]
        assert self.merged()["size_categories"] == ["n<1K"]

    def test_configs_and_their_features_are_merged_by_name(self):
        found = self.merged()
        assert found["configs"] == [
            {"config_name": "mine", "data_files": "a.csv"},
            {"config_name": "default", "default": True, "data_files": "x"},
        ]
        assert [info["config_name"] for info in found["dataset_info"]] == ["mine", "default"]
        assert [c["config_name"] for c in self.merged(owned={"mine"})["configs"]] == ["default"]

    @pytest.mark.parametrize("head", ["a: [", "- a\n- b", "just words"])
    def test_yaml_that_cannot_be_read_is_refused_before_anything_is_lost(self, head):
        with pytest.raises(InputError, match="YAML at the head of the README.md"):
            merge_card(f"---\n{head}\n---\n# Mine\n", card_of())


class TestSaving:
    def test_a_new_save_keeps_what_was_written_by_hand(self, tmp_path):
        folder = save_ranked(dataset_of([simple_row()]), tmp_path / "ds")
        text = (folder / "README.md").read_text("utf-8")
        text = text.replace("tags:\n", "pretty_name: My set\ntags:\n- mine\n")
        text = text.replace("## Citation\n", "## Citation\n\nMe.\n")
        (folder / "README.md").write_text("---\nlicense: mit\n" + text.removeprefix("---\n") + "\nAnd so on.\n")
        save_ranked(DatasetDict(train=dataset_of([simple_row(i) for i in range(3)])), folder)
        now = (folder / "README.md").read_text("utf-8")
        assert not [w for w in ("Me.", "And so on.", "# My set", "`mit`") if w not in now]
        assert "3 instructions" in now and fields_of(now)["tags"][0] == "mine"
        info = fields_of(now)["dataset_info"]
        assert info["splits"][0]["num_examples"] == 3

    def test_saved_twice_is_saved_once(self, tmp_path):
        data = dataset_of([simple_row()])
        once = (save_ranked(data, tmp_path / "ds") / "README.md").read_bytes()
        assert (save_ranked(data, tmp_path / "ds") / "README.md").read_bytes() == once


def test_a_licence_in_the_old_card_is_the_one_that_the_text_names():
    old = "---\nlicense: apache-2.0\n---\n"
    merged = updated_card(old, dataset_of([simple_row()]), infos={})
    assert "`apache-2.0`. The terms" in merged.text and "No licence was given" not in merged.text
    assert yaml.safe_load(re.split("---\n", merged.text)[1])["license"] == "apache-2.0"
