"""Rows in the documented shape of each source of ranked data, written for these tests; none is taken from the data.

`DOCUMENTED`: name of the shape -> (rows as they are published, what their first ranked row must say: contents with
ranks, in the order of the source).
"""

from __future__ import annotations

from typing import Any


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


ALPACA = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the request."
    "\n\n### Instruction:\nName a sea.\n\n### Response:"
)
ALPACA_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further context. Write a "
    "response that appropriately completes the request.\n\n### Instruction:\nAdd one.\n\n### Input:\n41\n\n"
    "### Response:"
)
INPUTS = {"instruction": "Add one.", "input": "41", "response1": "42", "response2": "43"}


def aspect(rating: str, **more: str) -> dict[str, str]:
    return {"Rating": rating, "Rationale": f"It is {rating}.", **more}


def completion(model: str, response: str, ratings: list[str], **more: Any) -> dict[str, Any]:
    names = ("instruction_following", "honesty", "truthfulness", "helpfulness")
    extra = {"helpfulness": {"Type": ["1"], "Rationale For Rating": "Useful."}}
    annotations = {name: aspect(r, **extra.get(name, {})) for name, r in zip(names, ratings, strict=True)}
    known = {"model": model, "principle": "helpfulness", "custom_system_prompt": f"You are {model}."}
    return {**known, "response": response, "annotations": annotations, "critique": "Fine.", **more}


BINARIZED = {
    "prompt": "Name a sea.",
    "prompt_id": "0a1b",
    "chosen": [user("Name a sea."), assistant("The Baltic.")],
    "rejected": [user("Name a sea."), assistant("Water")],
    "messages": [user("Name a sea."), assistant("The Baltic.")],
    "score_chosen": 8.5,
    "score_rejected": 4.0,
}
ARGILLA = {
    "source": "evol_instruct",
    "prompt": "Name a sea.",
    "chosen": [user("Name a sea."), assistant("The Baltic.")],
    "chosen-rating": 4.75,
    "chosen-model": "gpt-4",
    "rejected": [user("Name a sea."), assistant("Water")],
    "rejected-rating": 2.0,
    "rejected-model": "alpaca-7b",
}
SHP = {
    "post_id": "ab12",
    "domain": "askculinary_train",
    "upvote_ratio": 0.98,
    "history": "Why does bread rise?",
    "c_root_id_A": "c1",
    "c_root_id_B": "c2",
    "created_at_utc_A": 1643212925,
    "created_at_utc_B": 1643212901,
    "score_A": 3,
    "score_B": 12,
    "human_ref_A": "Yeast.",
    "human_ref_B": "Yeast makes gas.",
    "labels": 0,
    "seconds_difference": 24.0,
    "score_ratio": 4.0,
}
ANNOTATION = {
    "instruction": "Name a sea.",
    "output_1": "The Baltic Sea.",
    "generator_1": "gpt4_1106_preview",
    "dataset": "helpful_base",
    "annotator": "weighted_alpaca_eval_gpt4_turbo",
}

DOCUMENTED: dict[str, tuple[list[dict[str, Any]], list[tuple[str, int | None]]]] = {
    "own": (
        [
            {
                "prompt": "Name a sea.",
                "responses": ["The Baltic.", "Water", "Sea"],
                "scores": [1.5, 0, 1.5],
                "mine": 1,
            },
            {"prompt": [user("a")], "responses": ["b", "c"], "ranks": [2, 1]},
            {"prompt": "a", "responses": [{"content": "b", "score": 1.0}, {"content": "c", "model": "m"}]},
            {"prompt": "a", "responses": ["b", "c"]},
        ],
        [("The Baltic.", 1), ("Water", 3), ("Sea", 1)],
    ),
    "preference": (
        [
            {"prompt": "The sky is", "chosen": " blue.", "rejected": " green."},
            {"chosen": "The sky is blue.", "rejected": "The sky is green."},
            {
                "prompt": [user("sky?")],
                "chosen": [assistant("Blue.")],
                "rejected": [assistant("Green.")],
                "tools": None,
            },
            {"chosen": [user("sky?"), assistant("Blue.")], "rejected": [user("sky?"), assistant("Green.")]},
            {
                "prompt": "sky?",
                "chosen": [user("sky?"), assistant("Blue.")],
                "rejected": [user("sky?"), assistant("Green.")],
            },
            {"instruction": "Add one.", "input": "41", "output": "42", "chosen": "42", "rejected": "43"},
        ],
        [(" blue.", 1), (" green.", 2)],
    ),
    "ultrafeedback_binarized": (
        [BINARIZED, {**BINARIZED, "score_rejected": 8.5}],
        [("The Baltic.", 1), ("Water", 2)],
    ),
    "argilla": ([ARGILLA, {**ARGILLA, "rejected-rating": None}], [("The Baltic.", 1), ("Water", 2)]),
    "distilabel_pairs": (
        [
            {
                "prompt": "Name a sea.",
                "prompt_id": "0a",
                "chosen": [user("Name a sea."), assistant("The Baltic.")],
                "chosen_model": "a",
                "chosen_rating": 5,
                "rejected": [user("Name a sea."), assistant("Water")],
                "rejected_model": "b",
                "rejected_rating": 1,
            }
        ],
        [("The Baltic.", 1), ("Water", 2)],
    ),
    "hh_rlhf": (
        [
            {
                "chosen": "\n\nHuman: Hi\n\nAssistant: Hello.\n\nHuman: A sea?\n\nAssistant: The Baltic.",
                "rejected": "\n\nHuman: Hi\n\nAssistant: Hello.\n\nHuman: A sea?\n\nAssistant: Water",
            },
            {"chosen": "\n\nHuman: Hi\n\nAssistant:No space", "rejected": "\n\nHuman: Hi\n\nAssistant:"},
        ],
        [("The Baltic.", 1), ("Water", 2)],
    ),
    "shp": ([SHP, {**SHP, "labels": 1, "score_A": 13}], [("Yeast.", 2), ("Yeast makes gas.", 1)]),
    "nectar": (
        [
            {
                "prompt": "\n\nHuman: Name a sea.\n\nAssistant: ",
                "answers": [
                    {"answer": "Water", "model": "gpt-3.5-turbo", "rank": 2},
                    {"answer": "The Baltic.", "model": "gpt-4", "rank": 1},
                    {"answer": "Sea", "model": "llama-2-7b-chat", "rank": 3},
                ],
                "turns": 1,
                "num_responses": 3,
                "source": ["lmsys-chat-1m"],
                "good_natured": True,
            },
            {
                "prompt": "\n\nHuman: a\n\nAssistant: b\n\nHuman: c\n\nAssistant: ",
                "answers": [{"answer": "d", "model": "m", "rank": 1}, {"answer": "d", "model": "n", "rank": 2}],
                "turns": 2,
                "num_response": 2,
                "source": ["sharegpt", "flan"],
                "good_natured": False,
            },
        ],
        [("Water", 2), ("The Baltic.", 1), ("Sea", 3)],
    ),
    "ultrafeedback": (
        [
            {
                "source": "evol_instruct",
                "instruction": "Name a sea.",
                "models": ["a", "b", "c"],
                "completions": [
                    completion("a", "Water", ["1", "2", "1", "2"], **{"overall_score": 10, "fine-grained_score": 1.5}),
                    completion("b", "The Baltic.", ["5", "5", "5", "4"], overall_score=8),
                    completion("c", "Sea", ["5", "N/A", "5", "4"], overall_score=8),
                ],
                "correct_answers": ["None"],
                "incorrect_answers": ["None"],
            }
        ],
        [("Water", 2), ("The Baltic.", 1), ("Sea", None)],
    ),
    "mix_instruct": (
        [
            {
                "id": "unified_chip2/1",
                "instruction": "Add one.",
                "input": "41",
                "output": "42",
                "candidates": [
                    {
                        "decoding_method": "top_p_sampling",
                        "model": model,
                        "text": words,
                        "scores": {"logprobs": -0.1, "bleu": 3.0, "bertscore": 0.7, "rougeL": 0.2, "bartscore": score},
                    }
                    for model, words, score in (("flan-t5-xxl", "43", -3.5), ("alpaca-native", "42", -1.25))
                ],
                "cmp_results": "{}",
            }
        ],
        [("43", 2), ("42", 1)],
    ),
    "distilabel": (
        [
            {
                "instruction": "Name a sea.",
                "generations": ["The Baltic.", "Water"],
                "generation_models": ["a", "b"],
                "ratings": [5, 1],
                "rationales": ["Right.", "Wrong."],
                "model_name": "gpt-4",
                "distilabel_metadata": {"raw_output_rate_0": "Rating: 5"},
            },
            {"instruction": "a", "generations": ["b", None], "model_names": ["x", None], "ratings": None},
        ],
        [("The Baltic.", 1), ("Water", 2)],
    ),
    "tuna_probabilistic": (
        [
            {
                "orig": {"instruction": "Add one.", "input": "41", "output": "42"},
                "text": ["43", "42", "It is 42."],
                "avg_token_prob": [-1.5, -0.25, -0.5],
                "length": [2, 2, 4],
                "logprob": [-3.0, -0.5, -2.0],
            }
        ],
        [("43", 3), ("42", 1), ("It is 42.", 2)],
    ),
    "tuna_contextual": (
        [
            {
                "prompt": ALPACA + "\n\n###Response 0:\nWater\n",
                "instruct": ALPACA,
                "generation": ["Water", "The Baltic.", "Sea", "The  Baltic."],
                "id": 7,
                "gpt_eval": "### Response 4: The Black Sea.\n\nrank: [1, 4, 0]",
                "rank_str": "[1, 4, 0]",
                "rank": [1, 4, 0],
                "response_4": "The Black Sea.",
            },
            {"instruct": ALPACA_INPUT, "generation": ["42", "43"], "id": 8, "ranks": [0, 1, 5], "response_4": ""},
        ],
        [("Water", 4), ("The Baltic.", 1), ("Sea", None), ("The  Baltic.", 1), ("The Black Sea.", 3)],
    ),
    "lmops": (
        [
            {"id": 0, "instruction": ALPACA, "output": ["Water", "The Baltic."], "score": [-1.5, -0.5]},
            {"id": 1, "instruction": ALPACA_INPUT, "output": ["42", "43"], "score": [2, 1]},
            {"id": 2, "instruction": "No template", "output": ["42", "43"], "score": [1, 1]},
        ],
        [("Water", 2), ("The Baltic.", 1)],
    ),
    "alpaca_eval_outputs": (
        [
            {"instruction": "Name a sea.", "output": words, "generator": model, "dataset": "helpful_base"}
            for model, words in (("alpaca-7b", "Water"), ("vicuna-7b", "The Baltic."))
        ],
        [("Water", None), ("The Baltic.", None)],
    ),
    "alpaca_eval_annotations": (
        [
            {**ANNOTATION, "output_2": "Water", "generator_2": "alpaca-7b", "preference": 1.25, "raw_completion": {}},
            {**ANNOTATION, "output_2": "The Baltic.", "generator_2": "vicuna-7b", "preference": 1.75},
            {**ANNOTATION, "output_2": "Sea", "generator_2": "phi-2", "preference": None},
            {**ANNOTATION, "output_2": "Ocean", "generator_2": "phi-3", "preference": 0},
        ],
        [("The Baltic Sea.", 2), ("Water", 4), ("The Baltic.", 1), ("Sea", None), ("Ocean", 2)],
    ),
    "alpaca_eval_lists": (
        [
            {
                "id": "alpacaeval-0",
                "instruction": "Name a sea.",
                "input": "",
                "dataset": "helpful_base",
                "responses": [
                    {"model": "a", "text": "Water", "gpt4turbo_pref": 1e-5, "gpt4_pref_vs_davinci003": None},
                    {"model": "b", "text": "The Baltic.", "gpt4turbo_pref": 0.5, "gpt4_pref_vs_davinci003": 1.0},
                ],
                "source": "AlpacaEval",
            }
        ],
        [("Water", 2), ("The Baltic.", 1)],
    ),
    "pandalm": (
        [
            {
                "idx": 0,
                "motivation_app": "Grammarly",
                "cmp_key": "bloom-7b_llama-7b",
                **INPUTS,
                "annotator1": 1,
                "annotator2": 0,
                "annotator3": 1,
            },
            {**INPUTS, "input": float("nan"), "response1": True, "annotator1": 0, "annotator2": 0, "annotator3": 0},
        ],
        [("42", 1), ("43", 2)],
    ),
    "pandalm_train": (
        [
            {
                "inputs": INPUTS,
                "outputs": {"evaluation_result": result, "evaluation_reason": "So.", "reference_response": "42"},
            }
            for result in ("2", "Tie", "1", "unclear")
        ],
        [("42", 2), ("43", 1)],
    ),
    "pandalm_lists": (
        [
            {
                "id": "pandalm-0",
                "instruction": "Add one.",
                "input": "41",
                "responses": [
                    {"model": "llama-7b", "text": "42", "human_win_rate": 1.0, "n_votes": 6},
                    {"model": "opt-7b", "text": "43", "human_win_rate": 0.0, "n_votes": 6},
                ],
                "pairs": [["llama-7b", "opt-7b", [1, 1, 1]]],
                "source": "PandaLM",
            }
        ],
        [("42", 1), ("43", 2)],
    ),
    "prometheus": (
        [
            {
                "id": "prometheus-vicuna-1",
                "category": "generic",
                "instruction": "Name a sea.",
                "input": "",
                "reference": "The Baltic Sea.",
                "rubric": "[Is it a sea?]",
                "responses": [
                    {"model": "a", "text": "Water", "gpt4_scores": [1, 2, 1], "mean_score": 4 / 3},
                    {"model": "b", "text": "The Baltic.", "gpt4_scores": [5, 5, 5], "mean_score": 5.0},
                ],
            }
        ],
        [("Water", 2), ("The Baltic.", 1)],
    ),
}
