"""A teacher on this machine ranks by likelihood: responses that it samples itself, and answers that are there already.

python examples/02_rank_with_a_local_teacher.py                      # the embedded model, no download
python examples/02_rank_with_a_local_teacher.py Qwen/Qwen3-4B        # any causal language model with a chat template
"""

import sys

from tuna_trl import TeacherBuildConfig, build_teacher_ranked, rank_by_teacher, save_ranked
from tuna_trl.clients.local import TransformersSampler
from tuna_trl.loading import load_model, load_tokenizer


# 1. The teacher, and prompts: a text or messages each.
name = sys.argv[1] if len(sys.argv) > 1 else "embedded"
model, tokenizer = load_model(name), load_tokenizer(name)
prompts = [{"prompt": "Name a colour."}, {"prompt": "What do bees make?"}, {"prompt": "Name a fish."}]

# 2. It draws four responses to each prompt and ranks them by their mean log-probability (nats a token). Every sample
#    goes to the journal first: run this again, and nothing is drawn twice.
config = TeacherBuildConfig(
    num_responses=4,
    max_new_tokens=32,
    rank_truncated=True,  # a small model talks on; by default a response that was cut has no rank
    journal="runs/02_teacher.journal.sqlite",
)
ranked = build_teacher_ranked(prompts, TransformersSampler(model, tokenizer, name=name), config)
save_ranked(ranked, "runs/02_teacher_ranked")  # a folder that load_dataset, TunaTrainer and the Hub understand
for row in ranked["train"]:
    best, worst = row["responses"][0], row["responses"][-1]
    print(f"{row['prompt'][-1]['content']}  {worst['score']:.2f} -> {best['score']:.2f}: {best['content']!r}")

# 3. Answers that exist already, of whatever models: the teacher scores them and draws nothing.
answers = [
    {
        "prompt": "Name a sea.",
        "responses": [
            {"content": "The Baltic Sea is a sea.", "model": "a"},
            {"content": "Sea sea sea sea.", "model": "b"},
            {"content": "Lake Geneva is a lake.", "model": "c"},
        ],
    }
]
given = rank_by_teacher(answers, model, tokenizer, name=name)
print("The Baltic Sea among three ->", [response["model"] for response in given["train"][0]["responses"]])
