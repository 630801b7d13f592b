"""Claude reads the answers of several models and ranks them, within a cap in USD.

export ANTHROPIC_API_KEY=...                # ANTHROPIC_BASE_URL, if set, names another server of the Messages API
python examples/03_rank_with_claude.py

Read the licence terms of the provider and of the models before you train on such ranks (docs/judging.md).
"""

from tuna_trl import JudgeBuildConfig, judge_by_name, rank_by_judge, save_ranked
from tuna_trl.build.bias import bias_report
from tuna_trl.build.bias_table import bias_table
from tuna_trl.build.summary import summarise_judge_build


# 1. What is to be ranked: prompts with the answers of any models; equal texts are shown to the judge once.
rows = [
    {
        "prompt": "Why is the sky blue?",
        "responses": [
            {"content": "Air scatters blue light more than red.", "model": "a"},
            {"content": "Because it is.", "model": "b"},
            {"content": "The sea is blue, and the sky mirrors it.", "model": "c"},
        ],
    },
    {
        "prompt": "Give me a word that rhymes with house.",
        "responses": [
            {"content": "Mouse.", "model": "a"},
            {"content": "Home.", "model": "b"},
            {"content": "A word that rhymes with house is mouse.", "model": "c"},
        ],
    },
]

# 2. The judge. The key is read from the environment and goes into no file; `effort` and the rest are AnthropicJudge's.
judge = judge_by_name("claude-haiku-5-5", max_tokens=2048)

# 3. Three judgments a row, so that each of three candidates is shown at each place once. Before a request is sent its
#    worst case is reserved against `max_cost`; every reply is in the journal before it is used, and is not paid twice.
config = JudgeBuildConfig(repeats=3, max_cost=0.50, journal="runs/03_claude.journal.sqlite")
ranked, judgments = rank_by_judge(rows, judge, config)
save_ranked(ranked, "runs/03_claude_ranked", judgments=judgments)

# 4. What came out, what it cost, and how far the judge went by place and length instead of quality.
for row in ranked["train"]:
    print(row["prompt"][-1]["content"], "->", [f"{r['rank']}: {r['model']}" for r in row["responses"]])
print(summarise_judge_build(ranked, judgments).table())
print(bias_table(bias_report(judgments, ranked)))
