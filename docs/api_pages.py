"""Which public names stand on which page of docs/api, in reading order. Data for build_api.py, nothing else.

A name is written as a user imports it. tests/docs/test_api.py demands every name of `tuna_trl`, of `tuna_trl.losses`,
of what the pages and the examples import, and of our classes in their signatures, once each.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Page:
    """A page: its file in docs/api, its heading, a sentence or two of Markdown, the names.

    `modules`: those whose own docstrings begin the page.
    """

    file: str
    title: str
    about: str
    names: tuple[str, ...]
    modules: tuple[str, ...] = ()


def _names(*groups: str) -> tuple[str, ...]:
    """`"tuna_trl.losses: a b"` -> `("tuna_trl.losses.a", "tuna_trl.losses.b")`."""
    split = (group.split(": ") for group in groups)
    return tuple(f"{module}.{name}" for module, names in split for name in names.split())


PAGES = (
    Page(
        "training.md",
        "Trainer and config",
        "What [training.md](../training.md) is about.",
        _names(
            "tuna_trl: TunaTrainer TunaConfig",
            "tuna_trl.loading: load_model load_tokenizer",
            "tuna_trl.adapters: merge_adapter MergeReport",
            "tuna_trl: score_rows",
        ),
    ),
    Page(
        "losses.md",
        "Losses",
        "Every loss has the signature of [`tuna_loss`](#tuna_loss); which to use when: [training.md](../training.md).",
        _names(
            "tuna_trl.losses: tuna_loss rrhf_loss brio_loss slic_loss simpo_loss",
            "tuna_trl.losses: pro_loss listmle_loss listnet_loss dpo_pl_loss lipo_loss",
            "tuna_trl.losses: RankingLoss needs_reference",
            "tuna_trl: ranking_loss register_ranking_loss",
        ),
        modules=_names("tuna_trl: losses", "tuna_trl.losses: tuna pairwise listwise"),
    ),
    Page(
        "data.md",
        "Data and collator",
        "The columns of a ranked row: [data_format.md](../data_format.md).",
        _names(
            "tuna_trl: load_ranked save_ranked ranked_features normalise_row validate",
            "tuna_trl.data.validate_findings: ValidationReport",
            "tuna_trl: RankedCollator",
        ),
    ),
    Page(
        "converting.md",
        "Importing and exporting",
        "Which shapes are known: [converting.md](../converting.md).",
        _names("tuna_trl: import_ranked to_preference to_sft to_kto to_lmops", "tuna_trl.data.convert: to_source"),
    ),
    Page(
        "building.md",
        "Building with a teacher",
        "Sample and rank by likelihood: [building.md](../building.md); rank what exists already: "
        "[ranking.md](../ranking.md).",
        _names(
            "tuna_trl: TeacherBuildConfig build_teacher_ranked build_teacher_folder rank_by_teacher",
            "tuna_trl.build.rank: RankConfig rank_given describe_unranked",
            "tuna_trl.clients.local: TransformersSampler",
            "tuna_trl.clients.openai_compatible: OpenAICompatibleSampler",
            "tuna_trl.clients.rouge: RougeL",
        ),
    ),
    Page(
        "judging.md",
        "Building with a judge",
        "Protocols, bias, cost, licence terms: [judging.md](../judging.md).",
        _names(
            "tuna_trl: JudgeBuildConfig build_judge_ranked rank_by_judge judge_by_name",
            "tuna_trl.build.judge: judge_builds",
            "tuna_trl.build.judge_dry_run: judge_dry_run JudgeDryRun",
            "tuna_trl.build.from_judgments: rank_from_judgments Reader",
            "tuna_trl.build.min_agreement: filter_agreement Filtered",
            "tuna_trl.build.summary: summarise_judge_build JudgeSummary",
            "tuna_trl.build.bias: bias_report BiasReport",
            "tuna_trl.build.bias_table: bias_table",
        ),
    ),
    Page(
        "protocols.md",
        "Samplers and judges of your own",
        "What a teacher or a judge has to have, and the records that go in and out; how to add one: "
        "[CONTRIBUTING.md](../../CONTRIBUTING.md).",
        _names(
            "tuna_trl.clients.base: Sampler RemoteSampler Sampling Sample Usage",
            "tuna_trl.clients.base: Judge JudgeProtocol JudgeRequest Reply Verdict",
        ),
    ),
    Page(
        "evaluation.md",
        "Evaluation",
        "What is measured, and how: [evaluation.md](../evaluation.md).",
        _names(
            "tuna_trl.evaluation.callback: BenchmarkCallback",
            "tuna_trl.evaluation.runner: Benchmark",
            "tuna_trl: lm_eval_tasks_path",
            "tuna_trl.pipelines.comparison: compare",
            "tuna_trl.evaluation.vicuna.runner: CompletionJudge",
            "tuna_trl.evaluation.vicuna.protocols: PairV2",
            "tuna_trl.evaluation.vicuna.data: PromptText",
        ),
    ),
    Page(
        "publishing.md",
        "Publishing",
        "What is pushed, and what is not: [publishing.md](../publishing.md).",
        _names("tuna_trl: push_to_hub", "tuna_trl.data.push: Pushed"),
    ),
    Page(
        "errors.md",
        "Errors",
        "By message, with what to do: [troubleshooting.md](../troubleshooting.md).",
        _names("tuna_trl: InputError SchemaError BuildError BudgetExceeded TrainingMemoryError"),
    ),
)
