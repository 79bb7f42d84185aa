"""What a config, an archive, a checkpoint and an environment can not do."""

import ast
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

import hatllm
import run
from hatllm.compose import config_of
from hatllm.data import download
from hatllm.redact import is_secret_name, redacted
from hatllm.trusted import refuse_foreign_code

ROOT = Path(hatllm.__file__).parents[2]
SECRET = "s3cret-value-0001"


@pytest.fixture(autouse=True)
def secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", SECRET)


def test_the_settings_of_the_project_are_allowed() -> None:
    words = ["hydra/launcher=basic", "hydra.sweeper.n_trials=2", "experiment=paper/main", "a=1,2"]
    refuse_foreign_code(words, [run.CONF])


@pytest.mark.parametrize(
    "word",
    [
        "+hydra.callbacks.x={_target_:os.system}",
        "hydra/job_logging=default",
        "hydra.job_logging.handlers.x.class=os.system",
        "+hydra.job.env_set={PYTHONPATH:/x}",
        "hydra.searchpath=[file:///x]",
        "experiment@hydra.callbacks=demo",
        "experiment=../../x",
        "+logger._target_=os.system",
        "data.name=${oc.create:x}",
        "data.name=${oc.env:HF_TOKEN}",
        "data.name=${oc.env:'AWS_SECRET_ACCESS_KEY',x}",
        f"logger.project={SECRET}",
        "data.reviews_url=https://me:word@host/x",
    ],
)
def test_a_word_cannot_run_code_or_carry_a_secret(word: str) -> None:
    with pytest.raises(ValueError) as caught:
        refuse_foreign_code([word], [run.CONF])
    assert SECRET not in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("word", ["loss=[1]", "model=[tiny]", "mask={a: 1}", "data=7", "loss="])
def test_a_choice_is_one_name(word: str) -> None:
    with pytest.raises(ValueError, match=r"must name a file of \w+/$"):
        refuse_foreign_code([word], [run.CONF])


@pytest.mark.parametrize(
    "text",
    [
        "logger: {_target_: os.system}",
        'logger: {"\\x5ftarget_": os.system}',
        "hydra: {callbacks: {x: {_target_: os.system, command: ls}}}",
        "hydra: {callbacks: {sweep: {_target_: {a: 1}}}}",
        "hydra: {job_logging: {handlers: {x: {(): os.system}}}}",
        "hydra: {job: {env_set: {LD_PRELOAD: x}}}",
        "hydra: {launcher: {setup: [rm -rf x]}}",
        "hydra: {searchpath: [pkg://x]}",
        "hydra: {callbacks: \"${oc.create:'{x: {_tar get_: y}}'}\"}",
        "# @package hydra.callbacks.x\na: 1",
        "defaults: [override /hydra/callbacks: x]",
        "defaults: [demo@hydra.callbacks]",
        "defaults: [../../x]",
        "data: {name: '${oc.env:HF_TOKEN}'}",
        "x: !!python/object/apply:os.system [ls]",
        "x: [",
        "x: \x00",
    ],
)
def test_a_file_of_settings_cannot_run_code(tmp_path: Path, text: str) -> None:
    path = tmp_path / "experiment" / "theirs.yaml"
    path.parent.mkdir()
    path.write_text(text)
    with pytest.raises(ValueError, match=r"theirs\.yaml"):
        refuse_foreign_code([], [tmp_path])


def test_a_file_of_settings_may_repeat_itself(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("x: &x {y: [1, 2]}\nz: *x\n")
    refuse_foreign_code([], [tmp_path])


def test_a_secret_that_reaches_a_setting_another_way_is_refused() -> None:
    with pytest.raises(ValueError, match=r"logger\.project holds the value of .* WANDB_API_KEY"):
        config_of([f"logger.project={SECRET}"], run.CONF)


def test_secrets_are_known_by_name_and_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HF_TOKEN", "WANDB_API_KEY", "AWS_SESSION", "MY_SECRET", "db_password"):
        assert is_secret_name(name), name
    for name in ("HOME", "KEYBOARD", "AWS_REGION", "TOKENIZERS_PARALLELISM", "OMP_NUM_THREADS"):
        assert not is_secret_name(name), name
    monkeypatch.setenv("A_TOKEN", "short")
    text = redacted(f"key {SECRET} at https://me:word@host/x, a short word")
    assert text == "key *** at https://***@host/x, a short word"


def calls(path: Path) -> Iterator[tuple[str, dict[str, str]]]:
    """Every call of a source file: what is called, and its keywords."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call):
            keywords = {str(k.arg): ast.unparse(k.value) for k in node.keywords}
            yield ast.unparse(node.func), keywords


SOURCES = sorted([*(ROOT / "src").rglob("*.py"), *(ROOT / "experiments").rglob("*.py"),
                  ROOT / "run.py"])  # fmt: skip
FORBIDDEN = ("eval", "exec", "compile", "__import__", "pickle.load", "pickle.loads", "joblib.load",
             "os.system", "yaml.unsafe_load", "yaml.full_load", "pl.DataFrame.deserialize",
             "hydra.utils.instantiate", "instantiate")  # fmt: skip


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_is_loaded_that_could_run_code(path: Path) -> None:
    for name, keywords in calls(path):
        last = name.rsplit(".", 1)[-1]
        assert name not in FORBIDDEN, name
        assert last not in ("extractall", "extract", "unpack_archive"), name
        assert keywords.get("allow_pickle") != "True", name
        assert keywords.get("shell") != "True", name
        if name == "torch.load" or (last == "fit" and "ckpt_path" in keywords):
            assert keywords.get("weights_only") == "True", name
    source = path.read_text()
    assert "trust_remote_code=True" not in source.replace(" ", "").replace('"', "")


def wheel(path: Path, members: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            info = zipfile.ZipInfo(name)
            info.compress_type = zipfile.ZIP_DEFLATED
            if name.startswith("link"):
                info.external_attr = 0o120777 << 16
            archive.writestr(info, content)
    return path


@pytest.mark.parametrize("member", ["../out.txt", "/tmp/out.txt", "a/../../out.txt", "link"])
def test_an_archive_does_not_choose_where_its_members_land(tmp_path: Path, member: str) -> None:
    folder = tmp_path / "in" / "here"
    folder.mkdir(parents=True)
    archive = wheel(folder / "a.whl", {member: b"/etc/passwd"})
    part = download._extract_member(archive, member, folder / "member.part")
    assert part.read_bytes() == b"/etc/passwd"
    assert not part.is_symlink()
    files = {path.name for path in tmp_path.rglob("*") if path.is_file()}
    assert files == {"a.whl", "member.part"}


def test_a_member_larger_than_it_may_be_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download, "MAX_MEMBER_BYTES", 1 << 20)
    archive = wheel(tmp_path / "a.whl", {"zeros": bytes(4 << 20)})
    with pytest.raises(ValueError, match="larger than"):
        download._extract_member(archive, "zeros", tmp_path / "part")
    assert (tmp_path / "part").stat().st_size <= 3 << 20


@pytest.mark.parametrize("url", ["file:///etc/passwd", "ftp://host/x", "http://host/x"])
def test_a_download_is_https_or_has_a_checksum(url: str) -> None:
    words = ["data=amazon", "data.category=Toys", f"data.reviews_url='{url}'"]
    with pytest.raises(ValueError, match=r"data\.reviews_url=.* must begin with https"):
        config_of(words, run.CONF)
