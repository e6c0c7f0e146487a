"""`convlora predict` on bad, odd and many files: what is written, what is refused; nothing is lost."""

import errno
import json
import os
import weakref

import numpy as np
import pytest
from PIL import Image

from convlora.checkpoint import from_pretrained, save_pretrained
from convlora.errors import DataError, DisagreementError
from convlora.inference import files
from convlora.inference.jobs import plan_jobs
from convlora.inference.predictor import Prediction, Predictor
from convlora.model import Segmenter


def write(path, size=(20, 30), seed=0, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8)
    Image.fromarray(pixels).save(path, **options)
    return path


def read(path):
    with Image.open(path) as image:
        return np.array(image)


@pytest.fixture
def photos(tmp_path):
    for i, name in enumerate(("a", "b", "c")):
        write(tmp_path / "in" / f"{name}.png", seed=i)
    return tmp_path / "in"


@pytest.fixture
def no_model(monkeypatch):
    """Loading a model fails the test: mistakes must show before."""

    def load(*_):
        raise AssertionError("the model was loaded first")

    monkeypatch.setattr("convlora.checkpoint.from_pretrained", load)


# --- refused before the model is loaded ---


# arguments after RUN, and the message; IN holds a.png, b.png, c.png
REFUSED = {
    "missing": (["IN/no.png", "--out", "OUT"], "no.png does not exist. Give image files"),
    "pattern": (["IN/*.jpg", "--out", "OUT"], "the shell handed the pattern over as it is"),
    "empty folder": (["ROOT/empty", "--out", "OUT"], "holds no image. Readable are: bmp"),
    "only folders": (["ROOT", "--out", "OUT"], "only folders such as empty, hard"),
    "out is a file": (["IN", "--out", "IN/a.png"], "is a file, not a folder"),
    "out is the input": (["IN", "--out", "IN"], "is a folder of inputs"),
    "out is the input, spelled otherwise": (["IN", "--out", "IN/../in"], "is a folder of inputs"),
    "over an input": (["IN/a.png", "--out", "IN", "--overwrite"], "would overwrite an input"),
    "over a hard link": (["IN/a.png", "--out", "ROOT/hard", "--overwrite"], "would overwrite an input"),
    "through a link": (["IN", "--out", "ROOT/link", "--overwrite"], "is a folder of inputs"),
    "over another input": (
        ["IN/a.png", "ROOT/masks/a_overlay.png", "--out", "ROOT/masks", "--overlay", "--overwrite"],
        "would both be written",
    ),
    "over truth": (["IN/a.png", "--out", "ROOT/masks"], "exists already, and nothing is written over"),
    "both": (["IN", "--out", "OUT", "--overwrite", "--skip-existing"], "are both given. Give one"),
    "device": (["IN", "--out", "OUT", "--device", "gpu"], "device is 'gpu'; it must be cpu, cuda"),
    "no GPU": (["IN", "--out", "OUT", "--device", "cuda:7"], "device is 'cuda:7', but PyTorch finds"),
    "meta": (["IN", "--out", "OUT", "--device", "meta"], "device is 'meta'; it must be"),
    "precision": (
        ["IN", "--out", "OUT", "--precision", "half"],
        "precision is 'half'; it must be",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.usefixtures("no_model")
def test_refused_before_the_model_is_loaded(command, photos, tmp_path, monkeypatch, name):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    (tmp_path / "empty").mkdir()
    (tmp_path / "hard").mkdir()
    os.link(photos / "a.png", tmp_path / "hard" / "a.png")
    (tmp_path / "link").symlink_to(photos)
    for mask in ("a", "a_overlay"):
        write(tmp_path / "masks" / f"{mask}.png", seed=7)
    before = {p: p.read_bytes() for p in tmp_path.rglob("*.png")}
    arguments, message = REFUSED[name]
    places = {"IN": photos, "OUT": tmp_path / "out", "ROOT": tmp_path}
    filled = []
    for argument in arguments:
        head, slash, tail = argument.partition("/")
        filled.append(f"{places.get(head, head)}{slash}{tail}")
    code, _, error = command("predict", "RUN", *filled)
    assert code == 2
    assert message in error
    assert {p: p.read_bytes() for p in tmp_path.rglob("*.png")} == before
    assert not (tmp_path / "out").exists()


def test_names_that_some_file_systems_take_for_one(tmp_path):
    for first, second in (("é.png", "e\u0301.jpg"), ("A.png", "a.jpg"), ("x.png", "x.bmp")):
        inputs = [write(tmp_path / "1" / first), write(tmp_path / "2" / second)]
        with pytest.raises(DataError, match="would both be written"):
            plan_jobs(inputs, tmp_path / "out")
    overlays = [write(tmp_path / "3" / "y.png"), write(tmp_path / "3" / "y_overlay.png")]
    assert len(plan_jobs(overlays, tmp_path / "out")) == 2
    with pytest.raises(DataError, match="would both be written"):
        plan_jobs(overlays, tmp_path / "out", overlay=True)


def test_a_file_that_is_given_twice_is_one(photos, tmp_path):
    assert len(plan_jobs([photos, photos / "a.png", photos], tmp_path / "out")) == 3


# --- outputs that are there ---


def test_existing_outputs(command, binary_adapter, photos, tmp_path):
    out, run = tmp_path / "out", ["predict", binary_adapter, photos, "--out", tmp_path / "out"]
    assert command(*run)[0] == 0
    good = {p.name: p.read_bytes() for p in out.iterdir()}
    assert set(good) == {"a.png", "b.png", "c.png"}
    (out / "a.png").write_bytes(b"mine")
    (out / "b.png").unlink()
    code, _, error = command(*run)
    assert code == 2
    assert "a.png and 1 other outputs exist already" in error
    assert "--skip-existing" in error
    code, text, _ = command(*run, "--skip-existing")
    assert code == 0
    assert "Wrote 1 of 1 masks" in text
    assert "2 were there already" in text
    assert (out / "a.png").read_bytes() == b"mine"
    assert (out / "b.png").read_bytes() == good["b.png"]
    code, text, _ = command(*run, "--skip-existing", "--overlay")  # only what is missing of each image
    assert (code, (out / "a.png").read_bytes()) == (0, b"mine")
    assert (out / "a_overlay.png").is_file()
    assert command(*run, "--overwrite")[0] == 0
    assert (out / "a.png").read_bytes() == good["a.png"]


# --- files that fail, and files that are odd ---


def test_bad_files_are_named_and_the_rest_is_written(command, binary_adapter, photos, tmp_path):
    (photos / "empty.png").write_bytes(b"")
    (photos / "cut.png").write_bytes((photos / "a.png").read_bytes()[:200])
    (photos / "gone.png").symlink_to(tmp_path / "nowhere.png")
    (photos / "._a.png").write_bytes(b"made by macOS")
    (photos / "notes.txt").write_text("x")
    (photos / "a.pgw").write_text("lies beside a map")
    pages = [Image.new("L", (8, 8), shade) for shade in (1, 2)]
    pages[0].save(photos / "pages.tif", save_all=True, append_images=pages[1:])
    code, text, error = command("predict", binary_adapter, photos, "--out", tmp_path / "out", "--json")
    assert code == 1
    summary = json.loads(text)  # standard output is JSON alone
    assert (summary["images"], summary["written"], summary["skipped"], summary["stopped"]) == (7, 3, 0, None)
    failed = {os.path.basename(item["image"]): item["error"] for item in summary["failures"]}  # noqa: PTH119
    assert set(failed) == {"empty.png", "cut.png", "gone.png", "pages.tif"}
    assert "0 bytes" in failed["empty.png"]
    assert "2 pages" in failed["pages.tif"]
    assert all(message in error for message in failed.values())
    assert "1 files are no images, first" in error
    written = sorted(p.name for p in (tmp_path / "out").iterdir())
    assert written == ["a.png", "b.png", "c.png"]
    assert [item["mask"] for item in summary["files"]] == [str(tmp_path / "out" / name) for name in written]


@pytest.mark.parametrize("recorded", [[40, 60], None, [40], "large", [0, 0]])
def test_images_much_larger_than_those_of_the_training(command, small_backbone, tmp_path, recorded):
    """A scene beside tiles: without --tile its roads are thinner than any that were learnt."""
    model = Segmenter.from_backbone(str(small_backbone), ("background", "foreground"))
    save_pretrained(model, tmp_path / "model", {"largest_image": recorded})
    for name, size in (("large", (50, 121)), ("usual", (120, 120))):
        Image.new("RGB", size, (9, 99, 9)).save(tmp_path / f"{name}.png")
    images = [tmp_path / "large.png", tmp_path / "usual.png"]
    code, _, error = command("predict", tmp_path / "model", *images, "--out", tmp_path / "a")
    assert code == 0
    if recorded == [40, 60]:
        assert f"{images[0]}: 121 x 50 pixels were scaled" in error
        assert "had 40 x 60" in error
        assert "--tile 60 " in error
    else:
        assert error == ""
    assert command("predict", tmp_path / "model", *images, "--out", tmp_path / "b", "--tile", "60")[::2] == (
        0,
        "",
    )


def test_names_as_long_as_names_may_be(command, binary_adapter, photos, tmp_path):
    """255 bytes: room for the mask's name, but not for that of a picture of it."""
    name = "ü" * 125 + "x"
    write(photos / f"{name}.png", seed=3)
    run = ["predict", binary_adapter, photos, "--out", tmp_path / "out"]
    code, text, error = command(*run)
    assert (code, error) == (0, "")
    assert read(tmp_path / "out" / f"{name}.png").shape == (20, 30)
    code, text, error = command(*run, "--overlay", "--skip-existing")
    assert (code, "Wrote 3 of 4 masks" in text) == (1, True)
    assert "_overlay.png cannot be written: its name has 263 bytes" in error
    assert len(list((tmp_path / "out").iterdir())) == 7


def test_a_file_that_is_no_image(command, binary_adapter, photos, tmp_path):
    (photos / "notes.txt").write_text("x")
    code, text, error = command("predict", binary_adapter, photos / "notes.txt", "--out", tmp_path / "out")
    assert code == 1
    assert "notes.txt cannot be read as an image" in error
    assert "Wrote 0 of 1 masks" in text


@pytest.fixture(scope="module")
def predictor(binary_adapter):
    return Predictor(from_pretrained(binary_adapter), "cpu", "fp32")


def grey16(size):
    return Image.fromarray(np.linspace(0, 65535, size[0] * size[1]).reshape(size).astype(np.uint16))


ODD = {
    "grey.png": lambda: Image.new("L", (30, 20), 90),
    "alpha.png": lambda: Image.new("RGBA", (30, 20), (9, 90, 200, 30)),
    "deep.png": lambda: grey16((20, 30)),
    "palette.png": lambda: Image.new("RGB", (30, 20), (200, 10, 10)).quantize(4),
    "bits.png": lambda: Image.new("1", (30, 20), 1),
    "print.jpg": lambda: Image.new("CMYK", (30, 20), (10, 20, 30, 40)),
    "dot.png": lambda: Image.new("RGB", (1, 1), (200, 10, 10)),
    "column.png": lambda: Image.new("RGB", (1, 5000), (200, 10, 10)),
    "row.png": lambda: Image.new("RGB", (5000, 1), (200, 10, 10)),
    "ünï ☃.png": lambda: Image.new("RGB", (30, 20)),
    "[bold]x.png": lambda: Image.new("RGB", (30, 20)),
}


@pytest.mark.parametrize("name", ODD)
def test_odd_pictures(predictor, tmp_path, name):
    (tmp_path / "in").mkdir()
    picture = ODD[name]()
    picture.save(tmp_path / "in" / name)
    outcome = files.predict_files(
        predictor, [tmp_path / "in"], tmp_path / "out", overlay=True, probabilities=True
    )
    assert (outcome.written, outcome.failures) == (1, [])
    stem = name.rpartition(".")[0]
    ids, overlay = (read(tmp_path / "out" / f"{stem}{end}.png") for end in ("", "_overlay"))
    probabilities = np.load(tmp_path / "out" / f"{stem}_probabilities.npy")
    size = picture.size[::-1]
    assert (ids.shape, ids.dtype) == (size, np.uint8)
    assert (overlay.shape, overlay.dtype) == ((*size, 3), np.uint8)
    assert (probabilities.shape, probabilities.dtype) == ((2, *size), np.float16)


def test_a_turned_photograph_gives_the_mask_of_what_is_shown(predictor, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # shown turned by a quarter
    stored = write(tmp_path / "in" / "turned.png", (20, 30), exif=exif)
    Image.fromarray(np.rot90(read(stored), -1)).save(tmp_path / "in" / "upright.png")
    files.predict_files(predictor, [tmp_path / "in"], tmp_path / "out", probabilities=True)
    turned, upright = (
        np.load(tmp_path / "out" / f"{n}_probabilities.npy").astype(float) for n in ("turned", "upright")
    )
    assert turned.shape == (2, 30, 20)
    assert (turned == upright).all()
    assert turned.std() > 0


def test_a_log_file_tells_how_far_it_is(command, binary_adapter, binary_data, photos, tmp_path, monkeypatch):
    monkeypatch.setattr("convlora.data.progress._FEW", 2)
    _, _, error = command("predict", binary_adapter, photos, "--out", tmp_path / "out")
    assert error.splitlines() == [f"predicted {n} of 3 images" for n in (1, 2, 3)]
    _, _, error = command("evaluate", binary_adapter, binary_data)
    assert "scored 4 of 4 images" in error


# --- the work ends early ---


def full_disk(monkeypatch, after):
    """Let the disk be full from the n-th mask on; half a file is on it by then."""
    save, calls = files.save_mask, []

    def write_mask(path, ids):
        calls.append(path)
        if len(calls) > after:
            path.write_bytes(b"half")
            raise OSError(errno.ENOSPC, "No space left on device")
        save(path, ids)

    monkeypatch.setattr(files, "save_mask", write_mask)
    return calls


def test_a_full_disk(command, binary_adapter, photos, tmp_path, monkeypatch):
    calls = full_disk(monkeypatch, after=1)
    code, text, error = command("predict", binary_adapter, photos, "--out", tmp_path / "out", "--json")
    assert code == 2
    assert len(calls) == 2  # the third would not fit either
    assert f"{tmp_path / 'out' / 'b.png'} cannot be written: No space left on device" in error
    assert "--skip-existing" in error
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["a.png"]
    assert "No space left" in json.loads(text)["stopped"]
    # the others in the folder are older: to skip them would leave them as if they were new
    _, _, error = command("predict", binary_adapter, photos, "--out", tmp_path / "out", "--overwrite")
    assert "Give the same command again." in error
    assert "--skip-existing" not in error


def test_an_engine_that_computes_something_else_stops_the_work(predictor, photos, tmp_path, monkeypatch):
    calls = []

    def refuse(self, pixels):
        calls.append(pixels)
        raise DisagreementError("it does not compute what PyTorch does")

    monkeypatch.setattr(Predictor, "predict", refuse)
    outcome = files.predict_files(predictor, [photos], tmp_path / "out")
    assert outcome.stopped == "it does not compute what PyTorch does"
    assert (len(calls), outcome.failures, outcome.written) == (1, [], 0)


def test_an_old_file_survives_a_full_disk(predictor, photos, tmp_path, monkeypatch):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "a.png").write_bytes(b"old")
    full_disk(monkeypatch, after=0)
    outcome = files.predict_files(predictor, [photos], tmp_path / "out", existing="overwrite")
    assert "a.png cannot be written" in outcome.stopped
    assert {p.name: p.read_bytes() for p in (tmp_path / "out").iterdir()} == {"a.png": b"old"}


def test_ctrl_c(command, binary_adapter, photos, tmp_path, monkeypatch):
    predict = Predictor.predict

    def stop_at_b(self, image):
        if (tmp_path / "out" / "a.png").exists():
            raise KeyboardInterrupt
        return predict(self, image)

    monkeypatch.setattr(Predictor, "predict", stop_at_b)
    code, text, error = command("predict", binary_adapter, photos, "--out", tmp_path / "out")
    assert code == 130
    assert "Stopped. Go on with the same command and --skip-existing." in error
    assert "Wrote 1 of 3 masks" in text


def test_an_image_too_large_for_the_memory(predictor, photos, tmp_path, monkeypatch):
    segment = Predictor._segment

    def too_large(self, image):
        if image.shape[0] == 25:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes.")
        return segment(self, image)

    monkeypatch.setattr(Predictor, "_segment", too_large)
    write(photos / "big.png", (25, 30))
    outcome = files.predict_files(predictor, [photos], tmp_path / "out")
    assert outcome.written == 3
    assert "25 x 30 pixels does not fit into the memory of cpu. Cut it into tiles" in outcome.failures[0][1]

    def broken(self, image):
        raise RuntimeError("another")

    monkeypatch.setattr(Predictor, "_segment", broken)
    with pytest.raises(RuntimeError, match="another"):  # what is not memory is a bug and shows
        predictor.predict(photos / "a.png")


def test_results_are_not_kept(predictor, tmp_path, monkeypatch):
    for i in range(6):
        write(tmp_path / "in" / f"{i}.png", (8, 8), seed=i)
    alive, most = [], []
    segment = Predictor._segment

    def watched(self, image):
        result = segment(self, image)
        alive.append(weakref.ref(result))
        most.append(sum(ref() is not None for ref in alive))
        return result

    monkeypatch.setattr(Predictor, "_segment", watched)
    outcome = files.predict_files(predictor, [tmp_path / "in"], tmp_path / "out", overlay=True)
    assert outcome.written == len(alive) == 6
    assert max(most) <= 2
    assert isinstance(segment(predictor, np.zeros((8, 8, 3), np.float32)), Prediction)
