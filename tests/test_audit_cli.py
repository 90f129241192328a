import json

import pytest
from click.testing import CliRunner

from ledger.encoding import encode
from miner.audit import alone
from node.cli.group import cli
from tests.audit_stage import PARAMS, Stage
from tests.builders import build_genesis

JOB = "job_01K1ZZZZZZZZZZZZZZZZZZZZZZ"


@pytest.fixture(scope="module")
def stage(tmp_path_factory):
    return Stage(tmp_path_factory.mktemp("model"))


@pytest.fixture
def kept(stage, tmp_path):
    return Kept(stage, tmp_path)


class Kept:
    """Files in a folder, and the command on them."""

    def __init__(self, stage, folder):
        self.stage = stage
        self.folder = folder
        self.write(stage.files(stage.answer()))

    def write(self, files):
        self.files = files
        for name, data in (
            ("bundle.json", files.bundle),
            ("job.json", encode(files.job)),
            ("genesis.json", files.genesis),
        ):
            (self.folder / name).write_bytes(data)

    def audit(self, *more, model=None):
        arguments = ["audit", str(self.folder / "bundle.json"), "--threads", "1"]
        arguments += ["--disclosure", str(self.folder / "job.json")]
        arguments += ["--model", str(model or self.stage.directory), *map(str, more)]
        return CliRunner(env={"AITBC_THREADS": None}).invoke(cli, arguments)


def test_an_honest_answer_passes_claim_by_claim(kept):
    result = kept.audit("--genesis", kept.folder / "genesis.json")
    assert result.exit_code == 0, result.output
    assert "audited: pass" in result.output
    for name in ("quorum", "tokens_digest", "model_digest", "drawable", "mean_gap", "ending"):
        assert f"verified       {name}" in result.output
    assert "Not shown:" in result.output
    assert kept.files.job["result"] not in result.output, "an answer is nobody's business"


def test_without_a_genesis_file_the_signatures_are_checked_alone(kept):
    result = kept.audit()
    assert result.exit_code == 0
    assert "not applicable finality" in result.output
    assert "verified       provider_signature" in result.output


def test_json_has_the_measures_and_the_claims(kept):
    result = kept.audit("--json")
    found = json.loads(result.stdout)
    assert (found["passed"], found["method"]) == (True, "aitbc-replay-v1")
    assert found["measures"]["exact_tokens"] == found["measures"]["tokens"] == 24
    assert found["model_digest"] == kept.stage.digest
    assert {claim["status"] for claim in found["claims"]} == {"verified", "not_applicable"}


def test_an_answer_of_another_seed_fails(kept):
    kept.write(kept.stage.files(kept.stage.answer(), seed=PARAMS.seed + 1))
    result = kept.audit()
    assert result.exit_code == 1
    assert "audited: FAIL" in result.output
    assert "FAILED         mean_gap" in result.output


def test_texts_that_are_not_those_of_the_receipt_are_not_replayed(kept):
    for change in ({"prompt": "Why not?"}, {"result": "Because."}):
        (kept.folder / "job.json").write_bytes(encode(kept.files.job | change))
        result = kept.audit()
        assert result.exit_code == 1
        assert f"FAILED         {next(iter(change))}_digest" in result.output
        assert "mean_gap" not in result.output


def test_an_answer_that_ends_by_a_stop_sequence_says_that_no_digest_covers_it(kept):
    whole = kept.stage.answer()
    cut = kept.stage.answer(stop=(whole.result[6:8],))
    kept.write(kept.stage.files(cut))
    result = kept.audit()
    assert result.exit_code == 0
    assert "no digest covers those" in result.output
    (kept.folder / "job.json").write_bytes(encode(kept.files.job | {"params": {"stop": []}}))
    result = kept.audit()
    assert result.exit_code == 1
    assert "FAILED         ending" in result.output


def test_a_receipt_of_another_network_fails(kept):
    other = kept.folder / "other.json"
    other.write_bytes(encode(build_genesis(network="another")))
    result = kept.audit("--genesis", other)
    assert result.exit_code == 1
    assert "audited: FAIL" in result.output


def test_an_answer_that_nobody_can_repeat_fails(kept):
    for change in ({"sampler": "dice"}, {"model_digest": ""}):
        kept.write(kept.stage.files(kept.stage.answer(), **change))
        result = kept.audit()
        assert result.exit_code == 1
        assert "FAILED         sampler" in result.output


def test_an_auditor_with_another_copy_is_told_so(kept, tmp_path):
    copy = tmp_path / "copy"
    copy.mkdir()
    for path in kept.stage.directory.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    (copy / "README").write_text("mine")
    result = kept.audit(model=copy)
    assert result.exit_code == 0
    assert "not applicable model_digest" in result.output


def test_what_is_missing_is_named(kept):
    job = kept.files.job
    for broken, said in (
        (job | {"disclosure": {"prompt_salt": "", "result_salt": ""}}, "output_token_ids"),
        ({key: job[key] for key in job if key != "result"}, "result"),
        (job | {"params": {"stop": 7}}, "params"),
        ([], "disclosure"),
    ):
        (kept.folder / "job.json").write_bytes(json.dumps(broken).encode())
        result = kept.audit()
        assert result.exit_code == 2
        assert said in result.stderr
        assert result.stderr.count("\n") == 1


def test_what_is_no_model_or_no_bundle_is_refused_in_one_line(kept, tmp_path):
    empty = tmp_path / "empty"
    empty.mkdir()
    assert kept.audit(model=empty).exit_code == 2
    (kept.folder / "bundle.json").write_bytes(b"{}")
    result = kept.audit()
    assert result.exit_code == 2
    assert "bundle" in result.stderr


def test_a_model_whose_logits_depend_on_how_it_is_run_is_no_auditor(kept, monkeypatch):
    monkeypatch.setattr(alone, "MOST_UNSTEADY", 0.0)
    result = kept.audit()
    assert result.exit_code == 2
    assert "depend on how a text is cut into runs" in result.stderr


@pytest.mark.parametrize(
    "arguments",
    [[], ["bundle.json"], ["bundle.json", "--disclosure", "job.json", "--job", JOB]],
)
def test_files_or_a_job_must_be_given(kept, arguments):
    result = CliRunner().invoke(cli, ["audit", *arguments])
    assert result.exit_code == 2
    assert "BUNDLE and --disclosure FILE, or --job ID" in result.stderr


@pytest.mark.parametrize("job_id", ["", "job_1", "rcp_x", "../v1/genesis"])
def test_what_is_no_job_is_told_before_anything_is_asked(kept, job_id):
    result = CliRunner().invoke(cli, ["audit", "--job", job_id, "--url", "http://127.0.0.1:9"])
    assert result.exit_code == 2
    assert f"{job_id!r} is no job id" in result.stderr


def test_without_a_model_only_the_embedded_one_is_at_hand(kept):
    arguments = ["audit", str(kept.folder / "bundle.json")]
    arguments += ["--disclosure", str(kept.folder / "job.json")]
    result = CliRunner().invoke(cli, arguments)
    assert result.exit_code == 2
    assert (
        f"--model DIR with your own copy of 'tiny:1b', digest {kept.stage.digest}" in result.stderr
    )
