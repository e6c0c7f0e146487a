"""Colour masks: the palette file, what is done with each kind of mask, and every mistake."""

import re
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from convlora.cli import main
from convlora.data.check import check_dataset
from convlora.data.images import FileError
from convlora.data.labels import MaskFile, read_label
from convlora.data.palette import count_colours, draft, read_palette
from convlora.errors import DataError
from small import write_shapes, write_table, write_yolo

COLOURS = np.array([(0, 0, 0), (220, 20, 60), (0, 0, 142)], np.uint8)
TEXT = "0 0 0 background\n220 20 60 disc\n#00008e bar\n"


@pytest.fixture
def data(tmp_path):
    """Three classes in colours, with palette.txt and no classes.txt."""
    root = write_shapes(tmp_path / "data", 3, {"train": 4, "val": 2, "test": 2})
    for path in root.rglob("masks/*.png"):
        Image.fromarray(COLOURS[np.array(Image.open(path))]).save(path)
    (root / "classes.txt").unlink()
    (root / "palette.txt").write_text(TEXT)
    return root


def palette(tmp_path, text=TEXT):
    (tmp_path / "p.txt").write_text(text)
    return read_palette(tmp_path / "p.txt")


def first_mask(root):
    return root / "train" / "masks" / "train_00.png"


def test_colours_become_the_ids_they_were_made_of(data, tmp_path):
    report = check_dataset(data)
    assert report.problems == []
    assert report.dataset.classes == ("background", "disc", "bar")
    assert report.statistics["layout"].endswith("palette palette.txt")
    write_shapes(tmp_path / "ids", 3, {"train": 4, "val": 2, "test": 2})
    plain = check_dataset(tmp_path / "ids").dataset
    for split, pairs in report.dataset.splits.items():
        for coloured, pair in zip(pairs, plain.splits[split], strict=True):
            got = read_label(coloured.mask, report.dataset.encoding)
            np.testing.assert_array_equal(got, read_label(pair.mask, plain.encoding))
            assert got.max() == 2
    assert report.dataset.shares == plain.shares


def test_forms_of_lines(tmp_path):
    text = (
        "\ufeff64 128 64\tAnimal\n\n192,0,128 Arch way # seen from below\n"
        "#C0FFEE Animal # 12 pixels\n0 0 0 Void\n"
    )
    read = palette(tmp_path, text)
    assert read.colours == ((64, 128, 64), (192, 0, 128), (192, 255, 238), (0, 0, 0))
    assert read.classes == ("Animal", "Arch way")
    assert read.ids == (0, 1, 0, 255)


def test_what_is_ignored(data):
    (data / "palette.txt").write_text(TEXT.replace("disc", "ignore"))
    found = check_dataset(data).dataset
    assert found.classes == ("background", "bar")
    ids = read_label(found.splits["train"][0].mask, found.encoding)
    assert set(np.unique(ids)) == {0, 1, 255}


def test_ignored_pixels_alone_are_not_taken_for_foreground(data):
    """With two classes, masks of 0 and 255 would be read as background and foreground."""
    (data / "palette.txt").write_text("0 0 0 ground\n9 9 9 tree\n220 20 60 void\n0 0 142 ignore\n")
    report = check_dataset(data, splits=("val",))
    ids = read_label(report.dataset.splits["val"][0].mask, report.dataset.encoding)
    assert set(np.unique(ids)) == {0, 255}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("0 0 0 a\n0 0 256 b\n", "line 2: 0 0 256 is no colour; each of R G B is 0 to 255"),
        (
            "0 0 0 a\nred b\n",
            r"line 2: 'red b' is no line of a palette; each line is 'R G B name' or '#rrggbb",
        ),
        ("0 0 0 a\n1 2 b\n", "line 2: '1 2 b' is no line"),
        ("0 0 0 a\n1 2 3\n", "line 2: '1 2 3' is no line"),
        ("0 0 0 a\n#12345 b\n", "line 2: '#12345 b' is no line"),
        ("0 0 0 a\n\n1 1 1 b\n#000000 c\n", r"line 4: the colour rgb\(0, 0, 0\) was in line 1 already"),
        ("0 0 0 a\n", "names 1 classes; there must be 2 to 255"),
        ("", "names 0 classes"),
    ],
)
def test_bad_palettes(tmp_path, text, message):
    with pytest.raises(DataError, match=message):
        palette(tmp_path, text)


def test_palettes_that_cannot_be_read(tmp_path):
    with pytest.raises(DataError, match=r"The palette .*no.txt does not exist. It is a text file; each line"):
        read_palette(tmp_path / "no.txt")
    with pytest.raises(DataError, match=r"is a folder. It is a text file"):
        read_palette(tmp_path)
    (tmp_path / "l.txt").write_bytes("0 0 0 bär".encode("latin-1"))
    with pytest.raises(DataError, match=r"l.txt is not UTF-8 text"):
        read_palette(tmp_path / "l.txt")


def test_a_colour_that_is_not_in_the_palette(data):
    pixels = np.array(Image.open(first_mask(data)))
    pixels[0, :7] = (221, 20, 61)
    Image.fromarray(pixels).save(first_mask(data))
    (problem,) = check_dataset(data).errors
    assert (problem.code, problem.file) == ("unknown-colour", str(first_mask(data)))
    assert "rgb(221, 20, 61) x 7 pixels (nearest: rgb(220, 20, 60) disc, distance 1.4)" in problem.found
    assert "Add a line for the colour to the palette" in problem.fix


def test_jpeg_masks_are_told_apart(data):
    pixels = Image.open(first_mask(data))
    pixels.save(first_mask(data).with_suffix(".jpg"), quality=50)
    first_mask(data).unlink()
    with pytest.raises(
        DataError, match=r"(?s)colours that .* does not name.*JPEG changes colours: save the mask"
    ):
        check_dataset(data).raise_if_errors()


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P"])
def test_every_kind_of_mask_is_read_by_its_colours(tmp_path, mode):
    """Also an indexed one, whose indices here are others than the ids."""
    ids = np.array([[0, 1, 2], [2, 2, 0]], np.uint8)
    image = Image.fromarray(COLOURS[ids])
    if mode == "P":
        image = Image.fromarray(2 - ids)
        image.putpalette(COLOURS[::-1].ravel().tolist())
    image.convert(mode).save(tmp_path / "m.png")
    label = MaskFile(tmp_path / "m.png", palette(tmp_path))
    np.testing.assert_array_equal(label.read(), ids)
    if mode == "P":
        np.testing.assert_array_equal(MaskFile(tmp_path / "m.png").read(), 2 - ids)


def test_grey_masks_by_their_greys(tmp_path):
    Image.fromarray(np.array([[0, 255, 100]], np.uint8)).save(tmp_path / "m.png")
    greys = palette(tmp_path, "255 255 255 a\n0 0 0 b\n100 100 100 void\n")
    assert MaskFile(tmp_path / "m.png", greys).read().tolist() == [[1, 0, 255]]


def test_ids_with_a_palette_are_an_error(tmp_path):
    Image.fromarray(np.array([[0, 1, 2]], np.uint8)).save(tmp_path / "m.png")
    with pytest.raises(
        FileError, match=r"rgb\(1, 1, 1\) x 1 .*If the mask holds class ids, not colours, leave out"
    ):
        MaskFile(tmp_path / "m.png", palette(tmp_path)).read()
    Image.fromarray(np.array([[0, 300]], np.uint16)).save(tmp_path / "n.png")
    with pytest.raises(
        FileError, match=r"one channel of numbers \(mode I.*leave out the palette if these are"
    ):
        MaskFile(tmp_path / "n.png", palette(tmp_path)).read()


def test_without_a_palette_one_is_drafted(data):
    (data / "palette.txt").unlink()
    report = check_dataset(data)
    problem, *others = [p for p in report.errors if p.code == "colour-mask"]
    assert len({problem.file, *(p.file for p in others)}) == 8
    assert {p.fix for p in others} == {
        f"Its colours need a palette: --palette FILE, or {data / 'palette.txt'}. convlora check {data} "
        f"drafts one for all masks, at {Path(problem.file).name}."
    }
    assert "(8 of 8 masks hold colours)" in problem.found
    assert f"Then: convlora check {data}" in problem.fix
    assert "--palette FILE" in problem.fix
    lines = [line for line in problem.fix.splitlines() if re.match(r"\d", line)]
    assert [line.split(" class")[0] for line in lines] == ["0 0 0", "220 20 60", "0 0 142"]
    pixels = [int(re.findall(r"# (\d+) pixels", line)[0]) for line in lines]
    sizes = sum(np.array(Image.open(path))[..., 0].size for path in data.rglob("masks/*.png"))
    assert sum(pixels) == sizes
    (data / "palette.txt").write_text("\n".join(lines))  # it can be used as it is
    assert check_dataset(data).dataset.classes == ("class0", "class1", "class2")


def test_the_draft_of_a_table_names_the_table(tmp_path):
    data = write_table(tmp_path)
    Image.fromarray(COLOURS[np.eye(20, 30, dtype=int)]).save(data / "truth" / "train0_mask.png")
    with pytest.raises(DataError, match=r"(?s)into .*/palette.txt with.*Then: convlora check .*/data.csv"):
        check_dataset(data / "data.csv").raise_if_errors()


def test_a_draft_ends_somewhere(tmp_path):
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 255, (9, 9, 3), dtype=np.uint8)).save(tmp_path / "m.png")
    (tmp_path / "broken.png").write_bytes(b"")
    colours = count_colours([tmp_path / "m.png", tmp_path / "broken.png"])
    text = draft(colours)
    assert len(text.splitlines()) == 21
    assert f"... and {len(colours) - 20} more colours: check that no mask is a photograph or JPEG" in text


def test_names_are_the_palettes(data, tmp_path):
    assert check_dataset(data, ["background", "disc", "bar"]).ok
    with pytest.raises(
        DataError, match=r"palette.txt names the classes background, disc, bar, but the classes asked"
    ):
        check_dataset(data, ["background", "bar", "disc"]).raise_if_errors()
    (data / "classes.txt").write_text("a\nb\n")
    with pytest.raises(DataError, match=r"but .*classes.txt says a, b. Both must be the same"):
        check_dataset(data).raise_if_errors()


def test_a_palette_without_masks(tmp_path):
    root = write_yolo(tmp_path)
    (root / "palette.txt").write_text(TEXT)
    with pytest.raises(
        DataError, match=r"is for mask files, but the data is YOLO polygons, .* Leave the palette out"
    ):
        check_dataset(root).raise_if_errors()


def test_fingerprint_follows_the_palette(data):
    before = check_dataset(data).dataset.fingerprint
    (data / "palette.txt").write_text(TEXT + "\n")
    assert check_dataset(data).dataset.fingerprint == before
    (data / "palette.txt").write_text("0 0 0 background\n#00008e bar\n220 20 60 disc\n")
    assert check_dataset(data).dataset.fingerprint != before


def test_a_given_palette_wins(data, tmp_path, monkeypatch, capsys):
    (tmp_path / "mine.txt").write_text(TEXT.replace("disc", "ring"))
    monkeypatch.setattr(
        sys, "argv", ["convlora", "check", str(data), "--palette", str(tmp_path / "mine.txt")]
    )
    with pytest.raises(SystemExit) as stop:
        main()
    assert not stop.value.code
    assert "classes: ['background', 'ring', 'bar']" in capsys.readouterr().out


def test_numbers_of_16_bits_beside_a_palette(tmp_path):
    """As GeoTIFFs hold class ids: the way out keeps the palette."""
    (tmp_path / "palette.txt").write_text("0 0 0 ignore\n1 1 1 wheat\n2 2 2 maize\n", encoding="utf-8")
    values = np.array([[0, 1], [2, 2]], np.uint16)
    Image.fromarray(values).save(tmp_path / "a.tif")
    palette = read_palette(tmp_path / "palette.txt")
    with pytest.raises(FileError, match="or its numbers as an 8-bit PNG, which are greys to the palette"):
        MaskFile(tmp_path / "a.tif", palette).read()
    Image.fromarray(values.astype(np.uint8)).save(tmp_path / "a.png")
    np.testing.assert_array_equal(MaskFile(tmp_path / "a.png", palette).read(), [[255, 0], [1, 1]])
