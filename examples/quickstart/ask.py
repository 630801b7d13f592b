"""Ask a model two questions that are not in rows.jsonl: `python ask.py embedded`, `python ask.py runs/merged`."""

import sys

from transformers import pipeline
from transformers.utils import logging

from tuna_trl.loading import load_model, load_tokenizer


logging.set_verbosity_error()
logging.disable_progress_bar()
name = sys.argv[1]  # load_model also knows "embedded"; of runs/merged, pipeline(..., model="runs/merged") is the same
chat = pipeline("text-generation", model=load_model(name), tokenizer=load_tokenizer(name))
for question in ("Which bird cannot fly?", "What is the capital of Italy?"):
    said = chat([{"role": "user", "content": question}], max_new_tokens=40, do_sample=False)
    print(question, "->", said[0]["generated_text"][-1]["content"].strip())
