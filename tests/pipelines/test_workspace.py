"""Workspaces of their own, on real git and real DVC: one cache, the committed code, the overrides, the raw data."""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from dvc.fs import localfs
from dvc.rwlock import RWLockFileCorruptedError, rwlock

from pipelines import rebuild
from pipelines.execution import commands
from pipelines.workspace import commits, params_file
from pipelines.workspace import dvc_graph as graph
from pipelines.workspace import worktree as workspace
from tests.pipelines.conftest import ROOT, dvc, git


def test_shares_the_cache_so_that_nothing_is_done_twice(project, home):
    """Also the raw data that git does not keep hash the same; of their folder the README is in git."""
    dvc(project, "repro")
    with workspace.fresh(project, "HEAD", {"train.epochs": 2}, "two epochs") as folder:
        assert yaml.safe_load((folder / "params.yaml").read_text())["train"]["epochs"] == 2
        assert (folder / "raw").is_symlink()
        assert git(folder, "status", "--porcelain", "--untracked-files=no", "raw") == ""
        assert not (folder / "weights.txt").exists()
        output = dvc(folder, "repro")
        assert "Stage 'prepare' is cached" in output
        assert "Running stage 'train'" in output
        assert not (folder / ".dvc" / "cache").exists()
    assert (home / "prepared.log").read_text() == "prepared\n"
    assert not folder.exists()
    assert git(project, "worktree", "list").count("\n") == 0
    assert yaml.safe_load((project / "params.yaml").read_text())["train"]["epochs"] == 3


@pytest.mark.slow
def test_two_cells_that_make_the_same_at_once(project):
    """No lock between them: what is made twice is the same, the cache that they share stays whole, neither fails."""
    (project / "prepare.py").write_text("import time; time.sleep(2)\n" + (project / "prepare.py").read_text())
    git(project, "commit", "--quiet", "-am", "prepare takes a while")
    command = [sys.executable, "-m", "dvc", "repro", "prepare"]
    with workspace.fresh(project, "HEAD", {}, "one") as one, workspace.fresh(project, "HEAD", {}, "two") as two:
        both = [subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL) for folder in (one, two)]
        assert [process.wait() for process in both] == [0, 0]
        assert (one / "prepared.txt").read_text() == (two / "prepared.txt").read_text()
    with workspace.fresh(project, "HEAD", {}, "three") as three:
        assert "Stage 'prepare' is cached" in dvc(three, "repro", "prepare")
        assert (three / "prepared.txt").read_text()


def test_works_on_the_committed_revision_not_on_what_lies_around(project):
    first = git(project, "rev-parse", "HEAD")
    (project / "params.yaml").write_text("seed: 7\ntrain: {method: plain, epochs: 3, seconds: 0.02}\n")
    git(project, "commit", "--quiet", "-am", "seed 7")
    with workspace.fresh(project, first, {}, "old") as folder:
        assert yaml.safe_load((folder / "params.yaml").read_text())["seed"] == 0


def test_a_failed_workspace_stays_until_the_next_of_its_name(project):
    with pytest.raises(RuntimeError), workspace.fresh(project, "HEAD", {}, "fails") as folder:
        raise RuntimeError
    assert folder.is_dir()
    with workspace.fresh(project, "HEAD", {}, "another") as other:
        assert folder.is_dir()
    with workspace.fresh(project, "HEAD", {}, "fails") as again:
        assert not folder.exists()
        with workspace.fresh(project, "HEAD", {}, "fails"):
            assert again.is_dir()  # in use: not swept up
    assert not other.exists()


def test_revision_that_does_not_exist(project):
    with pytest.raises(commits.WorkspaceError, match=r"revision 'v9' does not exist.*git log"):
        commits.resolve(project, "v9")


def test_a_clone_fetches_a_revision_that_was_pushed_later(project, tmp_path):
    git(tmp_path, "clone", "--quiet", str(project), "clone")
    git(project, "commit", "--quiet", "--allow-empty", "-m", "later")
    later = git(project, "rev-parse", "HEAD")
    assert commits.resolve(tmp_path / "clone", later) == later


def test_a_branch_that_only_the_remote_has_and_a_commit_that_a_shallow_clone_lacks(project, tmp_path):
    """As pods clone: the last commit of one branch."""
    first = git(project, "rev-parse", "HEAD")
    git(project, "commit", "--quiet", "--allow-empty", "-m", "second")
    git(tmp_path, "clone", "--quiet", "--depth", "1", f"file://{project}", "pod")
    git(project, "checkout", "--quiet", "-b", "other", first)
    git(project, "commit", "--quiet", "--allow-empty", "-m", "of the other")
    other = git(project, "rev-parse", "HEAD")
    assert commits.resolve(tmp_path / "pod", first) == first
    assert commits.resolve(tmp_path / "pod", "other") == other


def test_two_long_names_are_two_folders():
    long = "rebuild finetune.method=autolora finetune.reference=released threat.eps=8/255 seed="
    one, two = workspace.slug(f"{long}1 @abc"), workspace.slug(f"{long}2 @def")
    assert one != two
    assert max(len(one), len(two)) <= workspace.LONGEST
    assert workspace.slug("a b") == "a-b"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("seed", "expected KEY=VALUE"),
        ("sede=1", "override sede: params.yaml has no such key; there are seed, train"),
        ("train.epoch=1", "override train.epoch: params.yaml has no such key; there are method, epochs, seconds"),
        ("tarin.epochs=1", "no section 'tarin'; it has seed, train"),
    ],
)
def test_unknown_override(project, text, message):
    with pytest.raises(commits.WorkspaceError, match=message):
        params_file.override(project, params_file.parse_overrides([text]))


def test_our_own_schema_judges_overrides():
    """The revision's pydantic model speaks: key, value, what is allowed."""
    with (
        pytest.raises(commits.WorkspaceError, match=r"finetune.method is 'vanila'.*'vanilla'"),
        workspace.fresh(ROOT, "HEAD", {"finetune.method": "vanila"}, "test override"),
    ):
        pass


def test_override_values_are_yaml():
    found = params_file.parse_overrides(["a.b=0.5", "c=null", "d=[fp16, int8]", "e=8/255", "f=x=y"])
    assert found == {"a.b": 0.5, "c": None, "d": ["fp16", "int8"], "e": "8/255", "f": "x=y"}


def test_uncommitted_changes_are_named_but_not_dvc_s_own(project):
    (project / ".gitignore").write_text(".work\n/reports/timing\n")  # outputs and raw data are not ignored, but known
    git(project, "commit", "--quiet", "-am", "less is ignored")
    dvc(project, "repro")
    commits.refuse_uncommitted(project)
    for ours in ("notes.txt", "rebuild.log", "my.yaml"):  # new, and no stage reads them
        (project / ours).write_text("new")
    (project / "params.yaml").write_text("seed: 7\n")  # what a run is given is recorded with it
    commits.refuse_uncommitted(project)
    (project / "train.py").write_text("# changed\n")
    (project / "helper.py").write_text("# beside modules that stages name")
    (project / "raw" / "README.md").write_text("changed")
    (project / "reports" / "robustness.json").write_text("{}")
    assert commits.uncommitted(project) == ["raw/README.md", "train.py", "helper.py"]
    with pytest.raises(commits.WorkspaceError, match=r"not committed: raw/README.md, train.py, helper.py. Commit"):
        commits.refuse_uncommitted(project)


def test_the_params_that_lie_there_are_the_run_s(project):
    """`cp presets/folder.yaml params.yaml` and then an override: not committed, and used all the same."""
    (project / "params.yaml").write_text("seed: 7\ntrain: {method: plain, epochs: 3, seconds: 0.02}\n")
    with workspace.fresh(project, None, {"train.epochs": 2}, "mine") as folder:
        params = yaml.safe_load((folder / "params.yaml").read_text())
    assert (params["seed"], params["train"]["epochs"]) == (7, 2)
    with workspace.fresh(project, "HEAD", {}, "committed") as folder:
        assert yaml.safe_load((folder / "params.yaml").read_text())["seed"] == 0


@pytest.mark.parametrize("readme", ["as committed", "changed since"])
def test_class_folders_are_read_in_a_workspace_as_here(project, readme):
    """Our own reader of images, which follows no link to a folder and none that leads out of data.path."""
    from stages.dataset.folders import folder as read

    for name in ("cat/1.png", "dog/2.png"):
        (project / "raw" / name).parent.mkdir()
        (project / "raw" / name).write_bytes(b"\x89PNG")
    if readme == "changed since":
        (project / "raw" / "README.md").write_text("changed")
    with workspace.fresh(project, None, {}, "classes") as there:
        here, found = ([(f.path, f.label, f.reason) for f in read(root / "raw")] for root in (project, there))
        assert found == here
        assert [label for _, label, fault in found if not fault] == ["cat", "dog"]
        assert (there / "raw" / "README.md").read_text() == "images go here\n"  # the commit's, whatever lies here
    assert (project / "raw" / "cat" / "1.png").exists()  # the workspace is gone, what it showed is not


def test_two_rebuilds_of_one_workspace(project):
    """The second one, from another process, is told who is at work; the lock goes with its holder."""
    code = "from pathlib import Path; from pipelines.workspace.worktree import alone\n"
    code += f"with alone(Path({str(project)!r})): pass"
    command = [sys.executable, "-c", code]
    with workspace.alone(project):
        second = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        assert "is being rebuilt by process" in second.stderr
    assert subprocess.run(command, cwd=ROOT).returncode == 0


def test_private_dvc_settings_come_along(project):
    dvc(project, "config", "--local", "core.remote", "mine")
    with workspace.fresh(project, "HEAD", {}, "private") as folder:
        assert workspace.remote(folder)
    assert not workspace.remote(ROOT)


def test_weights_that_no_stage_depends_on_come_along(project):
    """Their sha256 is among the parameters; git ignores the file, and the workspace reads it where it is named."""
    (project / ".gitignore").write_text((project / ".gitignore").read_text() + "/weights\n")
    params = yaml.safe_load((project / "params.yaml").read_text()) | {"backbone": {"weights": None}}
    (project / "params.yaml").write_text(yaml.safe_dump(params))
    git(project, "commit", "--quiet", "-am", "a backbone")
    (project / "weights").mkdir()
    (project / "weights" / "robust.pt").write_text("1.5")
    with workspace.fresh(project, None, {"backbone.weights": "weights/robust.pt"}, "linked") as folder:
        assert (folder / "weights" / "robust.pt").read_text() == "1.5"
        assert git(folder, "status", "--porcelain", "--", "weights") == ""
    assert (project / "weights" / "robust.pt").read_text() == "1.5"
    for elsewhere in ("../outside.pt", "weights", "hf:a/b", "https://host/robust.pt"):
        with workspace.fresh(project, None, {"backbone.weights": elsewhere}, "not linked") as folder:
            assert not (folder / "weights").exists()


def test_settings_that_stand_are_not_written_again(project, tmp_path, monkeypatch):
    """Runs beside this one read the file; and what it holds besides stays."""
    monkeypatch.setenv("AUTOLORA_REMOTE", str(tmp_path / "remote"))
    monkeypatch.setenv("AUTOLORA_CACHE", str(tmp_path / "cache"))
    dvc(project, "config", "--local", "core.autostage", "true")
    workspace.use_storage(project)
    settings = project / ".dvc" / "config.local"
    before, text = settings.stat().st_mtime_ns, settings.read_text()
    assert "autostage" in text
    workspace.use_storage(project)
    assert settings.stat().st_mtime_ns == before
    monkeypatch.setenv("AUTOLORA_CACHE", str(tmp_path / "other"))
    workspace.use_storage(project)
    assert settings.read_text() != text


@pytest.mark.slow
def test_what_one_machine_has_built_another_fetches(template, tmp_path, home, monkeypatch):
    """Two clones without a common cache, and a DVC remote that only the environment names."""
    monkeypatch.setenv("AUTOLORA_REMOTE", str(tmp_path / "remote"))
    said: list[str] = []
    for name in ("one", "two"):
        project = Path(shutil.copytree(template, tmp_path / name))
        workspace.use_storage(project)
        assert git(project, "status", "--porcelain") == ""  # the settings are private to the machine
        for stage in graph.stages(project, ["train"]):
            rebuild.run_stage(stage, project, commands.environment(), said.append)
    assert sum("Running stage 'train'" in line for line in said) == 1
    assert sum("Stage 'train' is cached - skipping run" in line for line in said) == 1
    assert (tmp_path / "one" / "weights.txt").read_text() == (tmp_path / "two" / "weights.txt").read_text()
    assert (home / "prepared.log").read_text() == "prepared\n"


def test_an_override_of_a_whole_section_is_refused():
    """It would set every other key of it to its default."""
    params = {"finetune": {"method": "autolora", "epochs": 20}, "backbone": {"options": {"depth": 1}}}
    with pytest.raises(commits.WorkspaceError, match=r"all of this section anew; give finetune\.method"):
        params_file.put(params, "finetune", {"method": "vanilla"}, allow_new=True)
    params_file.put(params, "backbone.options", {"width": 2}, allow_new=True)
    assert params["backbone"] == {"options": {"width": 2}}


def test_an_override_that_is_given_twice_is_refused():
    with pytest.raises(commits.WorkspaceError, match="override seed is given twice"):
        params_file.parse_overrides(["seed=1", "seed=2"])


@pytest.mark.parametrize("left", ["", '{"read": {"/a"', "\x00\x00"])
def test_what_a_full_disk_has_left_of_dvc_s_list_blocks_nobody(project, left):
    folder = project / ".dvc/tmp"
    folder.mkdir(exist_ok=True)
    (folder / "rwlock").write_text(left)

    def at_work():
        return rwlock(str(folder), localfs, "repro", [str(project / "raw")], [], hardlink=False)

    with pytest.raises(RWLockFileCorruptedError), at_work():
        pass
    with workspace.alone(project), at_work():
        listed = (folder / "rwlock").read_text()
        workspace.remove_half_written_rwlock(folder)
        assert (folder / "rwlock").read_text() == listed  # a whole one stays: somebody is at work
        assert "repro" in listed


def test_settings_of_a_remote_stay_beside_its_address(project, tmp_path, monkeypatch):
    """A user was set by hand: the next run must reach the remote too."""
    config = project / ".dvc/config.local"
    config.write_text("['remote \"shared\"']\n    url = http://old/place\n    user = jo\n    auth = basic\n")
    monkeypatch.setenv("AUTOLORA_REMOTE", "http://new/place")
    workspace.use_storage(project)
    text = config.read_text()
    assert "http://new/place" in text
    assert "user = jo" in text
    assert "auth = basic" in text
    before = config.stat().st_mtime_ns
    workspace.use_storage(project)
    assert config.stat().st_mtime_ns == before


def test_the_address_of_an_s3_goes_with_its_variable(project, tmp_path, monkeypatch):
    """Amazon's, or a folder, would else be looked for there."""
    config = project / ".dvc/config.local"
    config.write_text("['remote \"shared\"']\n    url = s3://bucket\n    endpointurl = http://minio.example.org\n")
    monkeypatch.setenv("AUTOLORA_REMOTE", str(tmp_path / "remote"))
    workspace.use_storage(project)
    assert "endpointurl" not in config.read_text()


@pytest.mark.parametrize(
    ("remote", "module", "says"),
    [
        ("s3://bucket", "dvc_s3", "s3, and dvc-s3 is not installed: `uv sync --group workers`"),
        (
            "webdavs://jo:secret@host/place",
            "dvc_webdav",
            "webdavs, and dvc-webdav is not installed: `uv pip install dvc-webdav`",
        ),
    ],
)
def test_a_remote_whose_package_is_missing_is_refused_at_once(project, monkeypatch, remote, module, says):
    """Group `workers` is not among those that `uv sync` installs."""
    if importlib.util.find_spec(module):
        pytest.skip(f"{module} is installed here")
    monkeypatch.setenv("AUTOLORA_REMOTE", remote)
    with pytest.raises(commits.WorkspaceError, match=re.escape(f"AUTOLORA_REMOTE is on {says}")) as refused:
        workspace.use_storage(project)
    assert "secret" not in str(refused.value)
    assert not (project / ".dvc/config.local").exists()


def test_a_project_below_the_top_of_its_repository_gets_no_workspace(project, tmp_path):
    top = tmp_path / "mono"
    shutil.copytree(project, top / "ml", ignore=shutil.ignore_patterns(".git"), symlinks=True)
    for command in (["init", "-q"], ["add", "-A"], ["-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qm", "x"]):
        subprocess.run(["git", *command], cwd=top, check=True)
    refused = pytest.raises(commits.WorkspaceError, match="the project at the top of its git repository")
    with refused, workspace.fresh(top / "ml", "HEAD", {}, "x"):
        pass


def test_a_preset_that_is_not_committed_is_named(project):
    (project / "mine.yaml").write_text("seed: 1\n")
    with pytest.raises(commits.WorkspaceError, match=r"mine\.yaml is not committed"):
        commits.require_committed(project, "mine.yaml")
    commits.require_committed(project, "params.yaml")


def test_recipes_are_the_commit_s_and_not_those_that_lie_around(project):
    """A stage depends on their folder as on images; a sweep of a commit must not read what is edited meanwhile."""
    graph_file = project / "dvc.yaml"
    content = yaml.safe_load(graph_file.read_text())
    next(iter(content["stages"].values()))["deps"].append("presets/recipes")
    graph_file.write_text(yaml.safe_dump(content, sort_keys=False))
    recipe = project / "presets/recipes/mine.yaml"
    recipe.parent.mkdir(parents=True)
    recipe.write_text("finetune: {method: mart}\n")
    git(project, "add", "presets", "dvc.yaml")
    git(project, "-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qm", "a recipe")
    recipe.write_text("finetune: {method: arow}\n")
    (recipe.parent / "new.yaml").write_text("finetune: {method: arow}\n")
    assert commits.uncommitted(project) == ["presets/recipes/mine.yaml", "presets/recipes/new.yaml"]
    with workspace.fresh(project, "HEAD", {}, "x") as folder:
        assert (folder / "presets/recipes/mine.yaml").read_text() == "finetune: {method: mart}\n"
        assert not (folder / "presets/recipes/new.yaml").exists()
