"""Laws of `tuna_trl.push_to_hub`, against a Hub on loopback: what arrives loads without us, byte-equal; what a person
wrote stays; what is appended rewrites nothing; what two push at once is both there."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from doubles.hub_server import Answer, HubServer, error
from ranked_rows import simple_row

from tuna_trl.data.schema import judgment_features, ranked_features


pytestmark = pytest.mark.slow  # each step is a process of its own

WORKER = Path(__file__).with_name("publish_worker.py")
REPO = "tester/ranked"
RANKED = json.dumps(ranked_features().to_dict(), sort_keys=True)
JUDGED = json.dumps(judgment_features().to_dict(), sort_keys=True)


class Hub:
    """The server, the folder of the run, and all that its clients printed."""

    def __init__(self, server: HubServer, folder: Path) -> None:
        self.server, self.folder, self.output = server, folder, ""

    def run(self, step: str, *, token: bool = True) -> dict:
        env = self.server.environment(self.folder / f"home-{step}", token=token) | {"OMP_NUM_THREADS": "1"}
        command = [sys.executable, str(WORKER), step, str(self.folder)]
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300)
        self.output += done.stdout + done.stderr
        assert done.returncode == 0, done.stderr[-4000:]
        return json.loads((self.folder / f"{step}.json").read_text())

    @property
    def repo(self):
        return self.server.repos["dataset", REPO]

    def files(self, revision: str = "main") -> dict[str, bytes]:
        return self.server.files("dataset", REPO, revision)

    def edit_card(self, change, **more: bytes) -> None:
        """A person edits the card in the browser, and adds files."""
        files = self.files() | more
        text = change(files["README.md"].decode())
        self.repo.commit("edit", {**files, "README.md": text.encode()})


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    with HubServer() as server:
        yield Hub(server, tmp_path_factory.mktemp("publish"))


@pytest.fixture(scope="module")
def first(hub):
    return hub.run("first")


@pytest.fixture(scope="module")
def appended(hub, first):
    """(what the append found, the repo before it): between the two pushes a person edited the card."""

    def by_hand(text: str) -> str:
        assert text.count("## Known biases") == 1
        text = text.replace("## Known biases\n", "## Known biases\n\nI found that this one likes lists.\n")
        text = text.replace("<!-- tuna-trl: title", "Words of mine at the top.\n\n<!-- tuna-trl: title", 1)
        return text.replace("license: cc-by-4.0", "license: mit\npaper: mine").replace("tags:\n", "tags:\n- by-hand\n")

    hub.edit_card(by_hand)
    before = hub.files()
    return hub.run("append"), before


def front(text: str) -> dict:
    return yaml.safe_load(text.split("---\n")[1])


def numbered(found: dict) -> dict:
    return {split: [row["prompt"][0]["content"] for row in part["rows"]] for split, part in found.items()}


class TestRoundTrip:
    def test_both_configs_load_pinned_and_without_us_with_equal_rows_and_features(self, hub, first, appended):
        """Loaded after the append: the line that the first push printed gives its rows and no later ones."""
        assert first["push"]["load_line"] == f'load_dataset("{REPO}", revision="{first["push"]["revision"]}")'
        found = hub.run("plain")
        for how in ("default", "streamed"):
            assert {part["features"] for part in found[how].values()} == {RANKED}
            assert found[how]["train"]["rows"] == [simple_row(i) for i in range(5)]
            assert found[how]["test"]["rows"] == [simple_row(i) for i in (90, 91)]
        assert {part["features"] for part in found["judgments"].values()} == {JUDGED}
        assert [row["repeat"] for row in found["judgments"]["train"]["rows"]] == [0, 1, 0, 1]

    def test_the_shards_that_arrive_are_those_of_the_folder_byte_for_byte(self, hub, first):
        files = hub.files(first["push"]["revision"])
        local = {f"{p.parent.name}/{p.name}": p.read_bytes() for p in (hub.folder / "ds").rglob("*.parquet")}
        assert len(local) == 3
        assert {name: data for name, data in files.items() if name.endswith(".parquet")} == local

    def test_card_build_config_and_report_come_in_the_same_commit_as_the_data(self, hub, first):
        (message,) = [m for sha, m, _ in hub.repo.commits if sha == first["push"]["revision"]]
        files = hub.files(first["push"]["revision"])
        assert message == "Write 7 ranked rows"
        assert {"README.md", "tuna_trl.yaml", "report.html"} <= set(files)
        assert yaml.safe_load(files["tuna_trl.yaml"]) == {"seed": 7}
        assert b"<script" not in files["report.html"] and b"answer 0 long" in files["report.html"]
        text = files["README.md"].decode()
        assert front(text)["license"] == "cc-by-4.0" and f'load_dataset("{REPO}")' in text
        assert [c["config_name"] for c in front(text)["configs"]] == ["default", "judgments"]

    def test_a_new_repo_is_private_and_the_same_rows_again_make_no_commit(self, hub, first):
        assert hub.repo.private
        assert first["again"]["revision"] == first["push"]["revision"]

    def test_our_own_readers_see_all_of_it(self, appended):
        found, _ = appended
        assert found["load_ranked"] == found["source"] == [simple_row(i) for i in range(8)]
        assert len(found["replies"]) == 6 and "Words of mine" in found["card"]


class TestAppend:
    def test_new_shards_come_behind_the_old_ones_which_stay_as_they_are(self, hub, appended):
        found, before = appended
        now = hub.files(found["push"]["revision"])
        old = {name: data for name, data in before.items() if name.endswith(".parquet")}
        assert {name: now[name] for name in old} == old
        new = sorted(name for name in now if name.endswith(".parquet") and name not in old)
        assert new == ["data/train-00001-of-00002.parquet", "judgments/train-00001-of-00002.parquet"]
        uploads = [path for method, path in hub.server.requests if method == "PUT"]
        assert len(uploads) == len(set(uploads))  # no blob was sent twice

    def test_all_rows_load_in_order_also_streamed(self, appended):
        found, _ = appended
        for how in ("default", "streamed"):
            assert found[how]["train"]["rows"] == [simple_row(i) for i in range(8)]
            assert {part["features"] for part in found[how].values()} == {RANKED}
            assert numbered(found[how])["test"] == ["question 90", "question 91"]
        assert len(found["judgments"]["train"]["rows"]) == 6

    def test_what_a_person_wrote_in_the_card_stays_and_the_rest_is_counted_anew(self, hub, appended):
        text = hub.files(appended[0]["push"]["revision"])["README.md"].decode()
        assert "I found that this one likes lists." in text and appended[0]["push"]["kept"] == ["biases"]
        assert text.index("Words of mine at the top.") < text.index("# Ranked responses")
        fields = front(text)
        assert fields["license"] == "mit" and fields["paper"] == "mine" and fields["tags"][0] == "by-hand"
        assert {"tuna-trl", "arxiv:2310.13385"} <= set(fields["tags"])
        assert "10 instructions with 30 responses" in text and "| `train` | 8 |" in text
        assert "holds 6 replies" in text and "3.00 USD" in text and "`mit`" in text
        default, judged = fields["dataset_info"]
        assert {s["name"]: s["num_examples"] for s in default["splits"]} == {"train": 8, "test": 2}
        assert judged["splits"][0]["num_examples"] == 6

    def test_of_two_pushes_at_once_both_arrive(self, hub, appended):
        rivals = []

        def rival(repo):
            if len(rivals) < 2:  # twice somebody else is faster
                rivals.append(repo.commit("somebody else", {**repo.at("main")[1], f"{len(rivals)}.txt": b"theirs"}))

        hub.server.before_commit = rival
        try:
            found = hub.run("race")
        finally:
            hub.server.before_commit = None
        files = hub.files(found["push"]["revision"])
        assert len(rivals) == 2 and {"0.txt", "1.txt", "data/train-00002-of-00003.parquet"} <= set(files)
        assert b"12 instructions" in files["README.md"]


class TestReplacing:
    @pytest.fixture(scope="class")
    def replaced(self, hub, appended):
        mine = "configs:\n- config_name: mine\n  data_files: mine.parquet\n"
        table = hub.files()["judgments/train-00000-of-00001.parquet"]
        hub.edit_card(lambda text: text.replace("configs:\n", mine), **{"mine.parquet": table})
        return hub.run("replace")

    def test_a_push_without_append_replaces_its_configs_and_leaves_the_others(self, hub, replaced):
        files = hub.files(replaced["push"]["revision"])
        assert [n for n in sorted(files) if n.startswith("data/")] == ["data/train-00000-of-00001.parquet"]
        assert replaced["default"] == {"train": {"rows": [simple_row(0), simple_row(1)], "features": RANKED}}
        assert [row["status"] for row in replaced["view"]["train"]["rows"]] == ["ok", "ok"]
        fields = front(files["README.md"].decode())
        assert [c["config_name"] for c in fields["configs"]] == ["mine", "default", "judgments", "view"]
        assert {i["config_name"] for i in fields["dataset_info"]} == {"default", "judgments", "view"}
        assert "judgments/train-00000-of-00001.parquet" in files
        assert any("judgments on the Hub are those of an earlier push" in note for note in replaced["push"]["notes"])
        assert b"I found that this one likes lists." in files["README.md"] and fields["license"] == "mit"

    def test_a_branch_is_created_and_main_is_left_alone(self, hub, replaced):
        assert numbered(replaced["there"]) == {"train": ["question 0"]}
        assert numbered(replaced["main"]) == {"train": ["question 0", "question 1"]}
        assert hub.repo.heads["try"] == replaced["branch"]["revision"]
        assert hub.repo.heads["main"] == replaced["push"]["revision"]

    def test_what_cannot_be_is_said_and_changes_nothing(self, hub, replaced):
        for name, card in (("public", b"# mine\n"), ("broken", b"---\na: [\n---\n# mine\n")):
            repo = hub.server.repos["dataset", f"tester/{name}"] = type(hub.repo)()
            repo.commit("by hand", {"README.md": card})
        commits = len(hub.repo.commits)
        found = hub.run("refused")
        assert "exactly these rows are in tester/ranked already" in found["same"]
        assert "column 'topic'" in found["columns"] and "All shards of a config have the same" in found["columns"]
        assert "exists and is public" in found["public"] and "--public" in found["public"]
        assert "owner/name" in found["name"] and "is no folder" in found["folder"]
        assert "YAML at the head of the README.md" in found["card"]
        assert len(hub.repo.commits) == commits and len(hub.server.repos["dataset", "tester/public"].commits) == 1


class TestToken:
    def test_without_one_the_way_to_log_in_is_said(self, hub):
        message = hub.run("refused_without_token", token=False)["message"]
        assert "hf auth login" in message and "HF_TOKEN" in message

    def test_it_is_in_no_file_and_in_no_output(self, hub, appended):
        secret = hub.server.token
        assert secret not in hub.output and not any(secret in line for line in hub.server.log)
        for repo in hub.server.repos.values():
            for _, _, files in repo.commits:
                assert not any(secret.encode() in data for data in files.values())
        for path in hub.folder.rglob("*"):
            assert not path.is_file() or secret.encode() not in path.read_bytes(), path


def test_a_server_that_fails_is_not_the_users_fault(hub, appended):
    from tuna_trl.errors import BuildError

    def fault(repo) -> Answer:
        return error(500, "Internal", "out of order")

    hub.server.before_commit = fault
    try:
        env = hub.server.environment(hub.folder / "home-fault")
        command = [sys.executable, str(WORKER), "fault", str(hub.folder)]
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300)
    finally:
        hub.server.before_commit = None
    assert done.returncode == 1
    assert BuildError.__name__ in done.stderr and "500" in done.stderr and "Run the same command again" in done.stderr
