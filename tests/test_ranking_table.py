"""The table of ranked prompts: right places green, ties share theirs, texts cannot break the markup."""

from __future__ import annotations

import io

from datasets import Dataset
from rich.console import Console
from training import config

from tuna_trl import TunaTrainer
from tuna_trl.ranking_table import RankingTable, ranking_table


class Words:
    """A tokenizer whose ids are its texts."""

    def decode(self, ids, skip_special_tokens):
        return " ".join(ids)


def printed(rows, scores) -> str:
    console = Console(width=160, record=True, force_terminal=True, file=io.StringIO())
    console.print(ranking_table(rows, scores, Words(), 7))
    return console.export_text(styles=True)


def row(ranks, texts=None):
    texts = texts or [f"answer{k}" for k in range(len(ranks))]
    return {"prompt_ids": ["why", "[bold]x"], "response_ids": [[t] for t in texts], "ranks": ranks}


def test_a_response_at_its_rank_is_green_and_another_red():
    text = printed([row([1, 2, 3])], [[-1.0, -3.0, -2.0]])
    assert "\x1b[32m1\x1b[0m" in text
    assert "\x1b[31m3\x1b[0m" in text and "\x1b[31m2\x1b[0m" in text


def test_ties_may_stand_at_any_of_their_places():
    text = printed([row([1, 2, 2])], [[-1.0, -3.0, -2.0]])
    assert "\x1b[31m" not in text.split("model's rank")[1]


def test_markup_in_a_text_is_shown_not_obeyed():
    text = printed([row([1, 2], ["[red]a[/red]", "[/]"])], [[-1.0, -2.0]])
    assert "[red]a[/red]" in text and "[/]" in text and "[bold]x" in text


def test_the_callback_prints_before_the_first_step_and_every_so_many(tiny_llama, tiny_tokenizer, tmp_path, capsys):
    rows = [{"prompt": f"p{i}", "responses": ["a b", "c"], "scores": [1, 0]} for i in range(6)]
    args = config(tmp_path, per_device_train_batch_size=2, num_train_epochs=1)
    trainer = TunaTrainer(tiny_llama, args, train_dataset=Dataset.from_list(rows), processing_class=tiny_tokenizer)
    trainer.add_callback(RankingTable(trainer, num_prompts=2, every=2))
    trainer.train()
    out = capsys.readouterr().out
    assert [f"Step {step}:" in out for step in (0, 1, 2, 3)] == [True, False, True, False]
    assert trainer.model.training  # the table leaves the modes as they were
