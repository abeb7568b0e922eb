"""`cifargan data`: inspect writes what it says, pack and typos."""

import hashlib
import html
import re
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

from PIL import Image

Command = Callable[..., CompletedProcess[str]]


def test_inspect_writes_pictures_and_one_page(command: Command, tmp_path: Path) -> None:
    ran = command("data", "inspect", "data=digits", "data.classes=['3','5']", "--out", "look", "--per-class", "4")
    assert ran.returncode == 0, ran.stderr
    assert re.search(r"^class +train +test\n3 +156 +27\n5 +153 +29\n", ran.stdout, re.MULTILINE), ran.stdout
    assert re.search(r"^train: fingerprint [0-9a-f]{64}$", ran.stdout, re.MULTILINE)
    assert re.search(r"^train and test +0 ", ran.stdout, re.MULTILINE)
    names = {path.name for path in (tmp_path / "look").iterdir()}
    assert names == {"grid_train.png", "grid_test.png", "histograms.png", "index.html"}
    for name in names - {"index.html"}:
        with Image.open(tmp_path / "look" / name) as image:
            image.load()
            assert min(image.size) > 50
    page = (tmp_path / "look" / "index.html").read_text()
    assert "default-src 'none'" in html.unescape(page)
    assert not re.findall(r"(?:src|href)=\"(?!data:)", page)
    assert "<script" not in page


def test_names_cannot_break_out_of_the_page(command: Command, pictures: Callable[..., Path], tmp_path: Path) -> None:
    folder = pictures("<img src=x onerror=alert(1)>", '$a_b$ & "c"')
    for path in folder.glob("<img*/1.png"):
        path.write_bytes((path.parent / "0.png").read_bytes())
    ran = command("data", "inspect", "data=folder", f"data.root={folder}", "data.image_size=16", "--out", "look")
    assert ran.returncode == 0, ran.stderr
    page = (tmp_path / "look" / "index.html").read_text()
    assert "<img src=x" not in page
    assert "&lt;img src=x onerror=alert(1)&gt;" in page
    assert re.search(r"^within all +1 +0 +0$", ran.stdout, re.MULTILINE), ran.stdout


def test_duplicates_between_splits_and_their_labels(command: Command, pictures: Callable[..., Path]) -> None:
    source = pictures("ant", "bee")
    both = source.parent / "both"
    both.mkdir()
    source.rename(both / "train")
    for name in ("ant", "bee"):
        (both / "test" / name).mkdir(parents=True)
        Image.new("RGB", (16, 16), (9, 9, 200)).save(both / "test" / name / "own.png")
    (both / "test/bee/copy.png").write_bytes((both / "train/ant/0.png").read_bytes())
    ran = command("data", "inspect", "data=folder", f"data.root={both}", "data.image_size=16", "--out", "look")
    assert ran.returncode == 0, ran.stderr
    assert re.search(r"^train and test +1 +0 +1$", ran.stdout, re.MULTILINE), ran.stdout
    assert re.search(r"^within test +1 +0 +1$", ran.stdout, re.MULTILINE), ran.stdout  # the two flat ones


def test_pack_says_what_it_packed(command: Command, pictures: Callable[..., Path], tmp_path: Path) -> None:
    ran = command("data", "pack", str(pictures("ant", "bee")), "p.zip")
    assert ran.returncode == 0, ran.stderr
    assert re.search(r"^all +8$", ran.stdout, re.MULTILINE)
    assert hashlib.sha256((tmp_path / "p.zip").read_bytes()).hexdigest() in ran.stdout
    assert command("data", "pack", "pictures", "p.zip").returncode == 2


def test_typos_are_told(command: Command) -> None:
    for arguments, text in (
        (("data", "inspekt"), "did you mean inspect?"),
        (("data", "inspect", "data=cifar"), "did you mean cifar10?"),
        (("data", "inspect", "data=folder"), "set data.root="),
        (("data", "inspect", "data=digits", "data.clases=[1]"), "did you mean data.classes"),
        (("data", "inspect", "pictures"), "data=folder data.root=pictures"),
        (("data", "inspect", "--ot", "x"), "did you mean --out"),
        (("data", "inspect", "data=digits", "--low-contrast", "2"), "not a number from 0 to below 1"),
    ):
        ran = command(*arguments)
        assert ran.returncode == 2
        assert text in ran.stderr, (arguments, ran.stderr)
