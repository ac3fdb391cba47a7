"""Looking at the root of applications: "could not look" is never "nothing there"."""

from __future__ import annotations

import errno
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import fsspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ops_pipeline.analysis.maintenance.object_store import Bucket, opened
from ops_pipeline.analysis.maintenance.root import Found, Known, judge, look, marker_text
from ops_pipeline.analysis.maintenance.walk import DIRECTORY, FILE, MARKER, answer_to, local, numbered, walk
from ops_pipeline.reconcile import Unavailable
from ops_pipeline_tests.object_store import bucket
from ops_pipeline_tests.unprivileged import as_nobody, open_folder

PLACE = "/srv/apps"


def seen(root: Path, *slugs: str) -> dict[str, Any]:
    return walk(local(str(root)), slugs)


def directory(root: Path, *names: str) -> None:
    for name in names:
        (root / name).mkdir(parents=True)


def test_only_directories_named_like_applications_are_present(tmp_path: Path) -> None:
    directory(tmp_path, "gpt/app0", "gpt/app7", "gpt/app12", "gpt/apple", "gpt/app", "gpt/notes", "gpt/app-1")
    found = seen(tmp_path, "gpt", "claude")
    assert sorted(found["present"]["gpt"]) == [0, 7, 12]
    assert found["absent"] == ["claude"]
    assert (found["odd"], found["unknown"]) == ({}, {})


def test_the_quick_way_is_taken_only_where_nothing_is_odd_and_finds_the_same(tmp_path: Path) -> None:
    directory(tmp_path, "gpt/app0", "gpt/app7", "gpt/app12", "claude", "o1/app1", "o1/app02", "o3/app1", "o3/appapp2")
    directory(tmp_path, "mixed/app1", "digits/app1", "digits/app1_0", "other/app٣")
    (tmp_path / "mixed" / "app2").write_text("a file")
    quick = numbered(str(tmp_path))
    assert sorted(quick("gpt") or []) == [0, 7, 12]
    odd = ["o1", "o3", "mixed", "digits", "other", "nowhere"]
    assert [quick(slug) for slug in odd] == [None] * len(odd)
    assert quick("claude") == []
    slugs = ["gpt", "claude", *odd]
    assert walk(local(str(tmp_path)), slugs, quick) == seen(tmp_path, *slugs)


def test_an_empty_directory_is_there_and_an_empty_model_has_none(tmp_path: Path) -> None:
    directory(tmp_path, "gpt/app1", "claude")
    assert seen(tmp_path, "gpt", "claude")["present"] == {"gpt": [1], "claude": []}


def test_links_to_directories_count_and_dangling_ones_are_not_missing(tmp_path: Path) -> None:
    """A link whose target lies on a disk that is not mounted just now is no deleted application."""
    directory(tmp_path, "gpt", "elsewhere/app1")
    (tmp_path / "gpt" / "app1").symlink_to(tmp_path / "elsewhere" / "app1")
    (tmp_path / "gpt" / "app2").symlink_to(tmp_path / "nowhere")
    (tmp_path / "gpt" / "app3").write_text("a file")
    (tmp_path / "linked").symlink_to("gpt")
    (tmp_path / "lost").symlink_to("nowhere")
    found = seen(tmp_path, "gpt", "linked", "lost")
    assert found["present"] == {"gpt": [1], "linked": [1]}
    assert found["odd"]["gpt"] == {"2": "app2 is a dangling link", "3": "app3 is a file"}
    assert found["unknown"] == {"lost": "lost is a dangling link"}


def test_another_spelling_is_odd_and_not_missing(tmp_path: Path) -> None:
    """A share that was mounted without regard to case had every model in capitals."""
    directory(tmp_path, "GPT/app1", "claude/App2", "claude/app03", "claude/app4", "claude/APP4")
    found = seen(tmp_path, "gpt", "claude")
    assert found["unknown"] == {"gpt": "its folder is spelled GPT"}
    assert found["odd"]["claude"] == {"2": "its folder is spelled App2", "3": "its folder is spelled app03"}
    assert found["present"] == {"claude": [4]}


def test_models_with_slashes_lie_in_nested_folders(tmp_path: Path) -> None:
    directory(tmp_path, "openai/gpt/app1", "openai/app2", "mistral/large")
    found = seen(tmp_path, "openai/gpt", "openai", "openai/o1", "mistral/large", "meta/llama")
    assert found["present"] == {"openai/gpt": [1], "openai": [2], "mistral/large": []}
    assert sorted(found["absent"]) == ["meta/llama", "openai/o1"]


@pytest.mark.parametrize("slug", ["", "..", "a/../b", "/etc", "a//b", "a\0b", "a/."])
def test_a_model_whose_name_is_no_path_is_not_looked_for(tmp_path: Path, slug: str) -> None:
    directory(tmp_path, "gpt/app1")
    assert seen(tmp_path, slug)["unknown"] == {slug: "its name is no path"}


def failing(root: Path, at: str, number: int) -> Callable[[str], Iterator[tuple[str, str]]]:
    """Lists folders of a root, and fails at one of them as a network file system does."""

    @contextmanager
    def scandir(path: str) -> Iterator[Any]:
        if path.endswith(at):
            raise OSError(number, os.strerror(number), path)
        with os.scandir(path) as entries:
            yield entries

    return local(str(root), scandir)  # type: ignore[return-value]


@pytest.mark.parametrize("number", [errno.EACCES, errno.ESTALE, errno.EIO, errno.ETIMEDOUT])
def test_a_folder_that_cannot_be_read_makes_its_applications_unknown(tmp_path: Path, number: int) -> None:
    directory(tmp_path, "gpt/app1", "claude/app1", "openai/gpt/app1", "openai/o1/app1")
    found = walk(failing(tmp_path, "/gpt", number), ["gpt", "claude", "openai/gpt", "openai/o1"])
    assert sorted(found["unknown"]) == ["gpt", "openai/gpt"]
    assert all(os.strerror(number) in reason for reason in found["unknown"].values())
    assert (found["present"], found["absent"]) == ({"claude": [1], "openai/o1": [1]}, [])


@pytest.mark.parametrize("number", [errno.EACCES, errno.ESTALE])
def test_an_application_that_cannot_be_looked_at_is_odd(tmp_path: Path, number: int) -> None:
    class Entry:
        name, path = "app1", "app1"

        def is_dir(self) -> bool:
            raise OSError(number, os.strerror(number), "gpt/app1")

    @contextmanager
    def scandir(path: str) -> Iterator[Any]:
        if path.endswith("gpt"):
            yield [Entry()]
        else:
            with os.scandir(path) as entries:
                yield entries

    directory(tmp_path, "gpt")
    found = walk(local(str(tmp_path), scandir), ["gpt"])
    assert found["odd"] == {"gpt": {"1": f"gpt/app1: {os.strerror(number)}"}}


def test_an_unreadable_folder_is_unknown_for_an_ordinary_user() -> None:
    with open_folder() as folder:
        directory(folder, "gpt/app1", "claude/app1")
        (folder / "gpt").chmod(0o000)
        text = as_nobody(lambda: seen(folder, "gpt", "claude"), folder)
        (folder / "gpt").chmod(0o755)
    assert "'unknown': {'gpt': " in text and "Permission denied" in text
    assert "'present': {'claude': [1]}" in text


def test_a_root_that_is_absent_a_file_or_unreadable_could_not_be_looked_at(tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match=r"nowhere: No such file or directory\. No application was marked or"):
        look(str(tmp_path / "nowhere"), ["gpt"])
    (tmp_path / "file").write_text("")
    with pytest.raises(Unavailable, match="it is no directory"):
        look(str(tmp_path / "file"), ["gpt"])
    with open_folder() as folder:
        (folder / "apps").mkdir(mode=0o000)
        text = as_nobody(lambda: answer_to({"location": str(folder / "apps"), "slugs": []}), folder)
        (folder / "apps").chmod(0o755)
    assert text.startswith("PermissionError")


def test_a_look_tells_device_marker_and_applications(tmp_path: Path) -> None:
    directory(tmp_path, "gpt/app1")
    found = look(str(tmp_path), ["gpt", "claude"])
    assert found == Found(tmp_path.stat().st_dev, None, {"gpt": frozenset({1})}, {}, frozenset({"claude"}), {})
    assert look(str(tmp_path), [], write_marker="one").marker == "one"
    # It is written once: two runs that begin at once have the same marker.
    assert look(f"file://{tmp_path}", [], write_marker="two").marker == "one"
    assert "leave it here" in (tmp_path / MARKER).read_text()


def test_a_marker_that_cannot_be_read_is_no_marker_and_no_root(tmp_path: Path) -> None:
    (tmp_path / MARKER).write_text("{")
    with pytest.raises(Unavailable, match=r"marker of .* cannot be read"):
        look(str(tmp_path), [])


def test_a_look_that_hangs_is_left_behind(tmp_path: Path) -> None:
    """A network file system that hung kept the run, and with it all maintenance, until somebody rebooted."""
    started = time.monotonic()
    with pytest.raises(Unavailable, match=r"did not answer within 0\.5 s: a network file system that hangs"):
        look(str(tmp_path), [], seconds=0.5, command=[sys.executable, "-c", "import time; time.sleep(60)"])
    assert time.monotonic() - started < 20


def test_a_look_that_dies_could_not_look(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "import sys; sys.stdin.read(); raise SystemExit('out of memory')"]
    with pytest.raises(Unavailable, match="out of memory"):
        look(str(tmp_path), [], command=command)


# Whether what was seen is the root


HERE = Found(device=7, marker="one", present={"gpt": frozenset({1})})


def test_a_root_seen_for_the_first_time_is_remembered_and_then_known() -> None:
    assert judge(PLACE, HERE, None, 5)
    assert not judge(PLACE, HERE, Known("one", 7), 5)
    assert judge(PLACE, Found(device=7), None, 0)


@pytest.mark.parametrize(
    ("found", "says"),
    [
        (Found(device=7, present=HERE.present), "lacks the marker it had"),
        (Found(device=7, marker="two", present=HERE.present), "has the marker of another root"),
        (Found(device=8, marker="one", present=HERE.present), "is on device 8, and was on 7 before"),
    ],
)
def test_another_root_is_refused_until_a_person_adopts_it(found: Found, says: str) -> None:
    with pytest.raises(Unavailable, match=says) as caught:
        judge(PLACE, found, Known("one", 7), 5)
    assert "launch once with adopt_root: true" in str(caught.value)
    assert judge(PLACE, found, Known("one", 7), 5, adopt=True)


@pytest.mark.parametrize("adopt", [True, False])
@pytest.mark.parametrize("known", [None, Known("one", 7)])
def test_a_root_without_any_application_is_an_empty_mount_point(known: Known | None, *, adopt: bool) -> None:
    with pytest.raises(Unavailable, match="has none of 5 applications: it looks like an empty mount point"):
        judge(PLACE, Found(device=7, marker="one", present={"gpt": frozenset()}), known, 5, adopt=adopt)


# Object stores


@pytest.fixture
def url(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    with bucket(monkeypatch) as made:
        yield f"{made}/apps"


def fill(url: str, *keys: str) -> None:
    files = fsspec.filesystem("s3", skip_instance_cache=True)
    for key in keys:
        files.pipe_file(f"{url}/{key}", b"x")


def test_an_object_store_is_looked_at_like_a_folder(url: str) -> None:
    fill(
        url, "gpt/app1/main.py", "gpt/app1/lib/a.py", "gpt/app22/main.py", "openai/o1/app3/x", "gpt/app4", "GPT5/app1/x"
    )
    found = look(url, ["gpt", "openai/o1", "claude", "gpt5"])
    assert found.device is None
    assert found.present == {"gpt": {1, 22}, "openai/o1": {3}}
    assert found.odd == {("gpt", 4): "app4 is a file"}
    assert (found.absent, found.unknown) == ({"claude"}, {"gpt5": "its folder is spelled GPT5"})
    assert look(url, [], write_marker="one").marker == "one"
    assert look(url, [], write_marker="two").marker == "one"


def test_an_object_store_is_asked_once_per_model_and_not_once_per_application(url: str) -> None:
    """A call per application took a minute for each thousand of them."""
    fill(url, *(f"gpt/app{number}/main.py" for number in range(1, 41)), "claude/app1/main.py")
    place, asked = opened(url), []

    class Counted:
        def ls(self, path: str, detail: bool) -> Any:
            asked.append(path)
            return place.files.ls(path, detail=detail)

    found = walk(Bucket(Counted(), place.root).list, ["gpt", "claude"])
    assert sorted(found["present"]["gpt"]) == list(range(1, 41))
    assert len(asked) == 3


def test_a_bucket_that_is_not_there_or_not_reached_could_not_be_looked_at(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(Unavailable, match="could not be looked at"):
        look("s3://no-such-bucket-at-all/apps", ["gpt"])
    with pytest.raises(Unavailable, match="could not be looked at"):
        look(url, ["gpt"])
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    with pytest.raises(Unavailable, match=r"could not be looked at|did not answer"):
        look(url, ["gpt"], seconds=20)


# Whatever stands there

NAMES = st.sampled_from(["gpt", "GPT", "openai", "app1", "app2", "App1", "app01", "notes", "o1"])
TREES = st.recursive(
    st.sampled_from([FILE, "dangling link", "Stale file handle"]),
    lambda inner: st.dictionaries(NAMES, inner, max_size=4),
    max_leaves=12,
)
SLUGS = st.lists(st.sampled_from(["gpt", "openai", "openai/o1", "openai/gpt", "GPT", "meta", "app1"]), unique=True)


def listing(tree: Any) -> Callable[[str], list[tuple[str, str]]]:
    def list_(relative: str) -> list[tuple[str, str]]:
        node = tree
        for name in relative.split("/") if relative else []:
            node = node[name]
        return [(name, DIRECTORY if isinstance(one, dict) else one) for name, one in node.items()]

    return list_


@settings(max_examples=200, deadline=None)
@given(st.dictionaries(NAMES, TREES, max_size=4), SLUGS)
def test_each_model_is_present_absent_or_unknown_and_no_directory_is_ever_missing(tree: Any, slugs: list[str]) -> None:
    found = walk(listing(tree), slugs)
    told = [*found["present"], *found["absent"], *found["unknown"]]
    assert sorted(told) == sorted(slugs)
    for slug in slugs:
        node: Any = tree
        for name in slug.split("/"):
            node = node.get(name, {}) if isinstance(node, dict) else {}
        there = {name for name, one in node.items() if isinstance(one, dict)} if isinstance(node, dict) else set()
        for number in (1, 2):
            if f"app{number}" in there:
                assert slug in found["unknown"] or number in found["present"].get(slug, [])


def test_the_text_of_a_marker_is_read_back() -> None:
    assert '"id": "one"' in marker_text("one")
