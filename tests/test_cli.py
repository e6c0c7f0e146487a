"""The commands as a user types them: the whole way from images to masks, and what mistakes look like."""

import json
import shlex
import shutil
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

COMMANDS = (
    *("check", "convert", "train", "evaluate", "predict", "compare", "analyze"),
    *("methods", "backbones", "info", "merge", "pretrain", "sample"),
)
TRAIN = ["--max-steps", "3", "--set", "eval_every=2", "--image-size", "64", "--set", "previews=1"]


@pytest.fixture
def run(command):
    """Run a command; returns exit code, standard output, standard error."""
    return command


@pytest.fixture(scope="module")
def trained(tmp_path_factory, binary_data, small_backbone):
    """A run of three steps."""
    from convlora.config import make_config
    from convlora.training.fit import fit

    out = tmp_path_factory.mktemp("runs") / "binary"
    fit(
        make_config(
            {
                "data": binary_data,
                "out": out,
                "backbone": str(small_backbone),
                "max_steps": 3,
                "eval_every": 2,
                "image_size": 64,
                "previews": 1,
            }
        )
    )
    return out


def test_help_and_version_load_no_torch():
    code = (
        "import sys; import convlora, convlora.cli\n"
        "try:\n    sys.argv = ['convlora', '--help']; convlora.cli.main()\nexcept SystemExit: pass\n"
        "assert not {'torch', 'numpy', 'kornia', 'accelerate'} & set(sys.modules), 'heavy import'"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for command in COMMANDS:
        assert f"  {command} " in done.stdout
    version = subprocess.run(
        [
            sys.executable,
            "-c",
            "import sys; sys.argv=['convlora','--version']; from convlora.cli import main; main()",
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert version.stdout.startswith("convlora ")


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help(run, name):
    code, out, _ = run(name, "--help")
    assert code == 0
    assert "Usage" in out
    assert ("--set KEY=VALUE" in out) == (name in {"train", "compare"})


def test_run_folder(trained):
    names = {path.name for path in trained.iterdir()}
    assert names >= {
        "best",
        "last",
        "previews",
        "config.yaml",
        "environment.json",
        "metrics.json",
        "metrics.jsonl",
        "split.json",
    }
    rows = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if "loss" in row] == [1, 2, 3]
    assert [row["step"] for row in rows if "best" in row] == [2, 3]
    assert {path.name for path in (trained / "previews").iterdir()} == {
        "000002_val_00.png",
        "000003_val_00.png",
    }
    assert json.loads((trained / "environment.json").read_text())["versions"]["torch"]
    assert json.loads((trained / "metrics.json").read_text())["val"]["step"] in {2, 3}


def test_train_evaluate_predict(run, three_class_data, small_backbone, tmp_path):
    out = tmp_path / "run"
    code, text, error = run("train", three_class_data, "--out", out, "--backbone", small_backbone, *TRAIN)
    assert (code, error) == (0, "")
    assert "parameters trained" in text
    assert f"Next: convlora evaluate {out} {three_class_data}" in text

    code, text, _ = run(
        "evaluate", out, three_class_data, "--json", tmp_path / "s.json", "--overlay", out / "p"
    )
    assert code == 0
    assert "disc" in text
    scores = json.loads((tmp_path / "s.json").read_text())
    assert scores["n_images"] == 4
    assert scores["split"] == "test"
    assert scores["checkpoint"] == str(out / "best")
    assert scores["data"] == str(three_class_data)
    flat = {
        "mean_dice_foreground",
        "mean_iou",
        "mean_iou_foreground",
        "pixel_accuracy",
        "dice/bar",
        "iou/disc",
    }
    assert flat | {f"image_{key}" for key in ("mean_iou", "dice/bar")} <= set(scores)
    assert json.loads((out / "metrics.json").read_text())["test"] == scores
    assert len(list((out / "p").glob("*.png"))) == 5  # four images and the overview

    images = three_class_data / "test" / "images"
    code, text, _ = run("predict", out, images, "--out", tmp_path / "masks", "--overlay", "--probabilities")
    assert code == 0
    assert "Wrote 4 of 4 masks" in text
    for path in images.iterdir():
        with Image.open(tmp_path / "masks" / path.name) as mask, Image.open(path) as image:
            assert mask.size == image.size
            assert set(np.unique(np.array(mask))) <= {0, 1, 2}
        probabilities = np.load(tmp_path / "masks" / f"{path.stem}_probabilities.npy")
        assert probabilities.shape == (3, *np.array(Image.open(path)).shape[:2])
        np.testing.assert_allclose(probabilities.sum(axis=0), 1, atol=3e-3)  # float16
        assert (tmp_path / "masks" / f"{path.stem}_overlay.png").is_file()


def test_config_of_a_run_replays_it(run, trained, binary_data, tmp_path):
    code, _, error = run(
        "train", binary_data, "--out", tmp_path / "again", "--config", trained / "config.yaml"
    )
    assert (code, error) == (0, "")
    first, second = (
        json.loads((folder / "metrics.json").read_text())["val"] for folder in (trained, tmp_path / "again")
    )
    assert first == second


def test_paper_preset_trains(run, binary_data, small_backbone, tmp_path):
    arguments = ["--out", tmp_path / "run", "--backbone", small_backbone, "--preset", "paper", *TRAIN]
    code, _, error = run("train", binary_data, *arguments)
    assert (code, error) == (0, "")
    text = (tmp_path / "run" / "config.yaml").read_text()
    assert "resize: stretch" in text
    assert "loss: official" in text


def test_mask_classification_trains(run, three_class_data, small_backbone, tmp_path):
    arguments = ["--out", tmp_path / "run", "--backbone", small_backbone, *TRAIN]
    code, _, error = run(
        "train", three_class_data, *arguments, "--set", "multiclass_head=mask-classification"
    )
    assert (code, error) == (0, "")
    config = json.loads((tmp_path / "run" / "best" / "adapter_config.json").read_text())
    assert (config["head"], config["num_masks"]) == ("mask-classification", 10)


def test_check(run, binary_data, tmp_path):
    code, out, _ = run("check", binary_data)
    assert code == 0
    assert "0 errors" in out
    data = shutil.copytree(binary_data, tmp_path / "data")
    (data / "train" / "masks" / "train_02.png").unlink()
    code, out, _ = run("check", data, "--json")
    assert code == 1
    report = json.loads(out)
    assert [(p["code"], p["severity"]) for p in report["problems"]] == [("missing-mask", "error")]
    assert report["problems"][0]["file"].endswith("train_02.png")


def test_methods_and_backbones(run):
    code, out, _ = run("methods", "--backbone", "sam-tiny")
    assert code == 0
    assert "conv-lora" in out
    code, out, _ = run("backbones")
    assert "facebook/sam-vit-huge" in out
    assert "unet" in out.splitlines()[-1]


def test_without_test_images_the_next_command_scores_val(run, binary_data, small_backbone, tmp_path):
    data = shutil.copytree(binary_data, tmp_path / "data")
    shutil.rmtree(data / "test")
    out = tmp_path / "run"
    code, text, _ = run("train", data, "--out", out, "--backbone", small_backbone, *TRAIN)
    assert code == 0
    told = text.splitlines()[-1]
    assert told == f"Next: convlora evaluate {out} {data} --split val"
    assert run(*told.split()[2:])[0] == 0


def test_next_commands_of_places_with_blanks(run, binary_data, small_backbone, tmp_path, monkeypatch):
    """As they are pasted into a shell."""
    data, out, merged = tmp_path / "my data", tmp_path / "it's a run", tmp_path / "merged model"
    code, text, _ = run("convert", binary_data, "--out", data)
    assert (code, following(text)) == (0, ["convlora", "train", str(data), "--out", "RUN"])
    arguments = ["--backbone", small_backbone, *TRAIN, "--method", "lora"]
    code, text, _ = run("train", data, "--out", out, *arguments)
    assert (code, following(text)) == (0, ["convlora", "evaluate", str(out), str(data)])
    code, text, _ = run("merge", out, "--out", merged)
    assert following(text) == ["convlora", "predict", str(merged), "IMAGE_OR_DIR", "--out", "masks"]
    for name in ("loop.pretrain", "shards.write_shards", "textures.TextureBank"):
        monkeypatch.setattr(f"convlora.pretraining.{name}", lambda *_, **__: tmp_path / "a backbone")
    code, text, _ = run("pretrain", "--out", tmp_path / "out", "--no-teacher")
    assert following(text)[-2:] == ["--backbone", str(tmp_path / "a backbone")]


def following(text):
    return shlex.split(text.splitlines()[-1].partition("Next: ")[2])


def test_help_tells_the_defaults():
    from convlora.cli import options
    from convlora.config import RunConfig

    texts = {"epochs": options.Epochs, "batch_size": options.BatchSize, "precision": options.Precision}
    for key, option in texts.items():
        default = RunConfig.model_fields[key].default
        assert option.__metadata__[0].help.endswith(f"default {default}.")


def test_info(run, trained):
    code, out, _ = run("info", trained)
    assert code == 0
    assert json.loads(out)["method"] == "conv-lora"


def test_sample(run, tmp_path):
    code, out, _ = run("sample", "brain", tmp_path / "brain")
    assert code == 0
    assert "Next: convlora train" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("train", "DATA", "--out", "RUN", "--method", "conv-lore"), "conv-lore"),
        (("train", "DATA", "--out", "RUN", "--set", "lrr=1"), "Did you mean 'lr'"),
        (
            ("train", "DATA", "--out", "RUN", "--lr", "1", "--set", "lr=2"),
            "given both as an option and with --set",
        ),
        (("train", "DATA", "--out", "RUN", "--image-size", "60"), "multiple of the backbone's patch size"),
        (("train", "DATA", "--out", "RUN", "--set", "loss=structur"), "Did you mean 'structure'"),
        (("train", "DATA", "--out", "RUN", "--set", "metric=dice"), "metric 'dice' is not computed here"),
        (("train", "DATA", "--out", "TRAINED"), "holds a run already"),
        (("train", "nowhere", "--out", "RUN"), "is not a folder that exists"),
        (
            ("train", "DATA", "--out", "RUN", "--method", "lora", "--set", "method.name=full"),
            "'method' is given both as an option and with --set",
        ),
        (("train", "DATA", "--out", "RUN", "--set", "method=3"), "got 3; it must be a name, or keys"),
        (
            ("train", "DATA", "--out", "TRAINED", "--resume", "--lr", "0.5"),
            "lr: None in the run, 0.5 now",
        ),
        (("train", "DATA", "--out", "RUN", "--resume"), "config.yaml does not exist"),
        (
            ("evaluate", "TRAINED", "DATA", "--split", "holdout"),
            "split is 'holdout'; it must be one of train, val, test",
        ),
        (("evaluate", "nowhere", "DATA"), "is no folder that exists here"),
        (("predict", "TRAINED", "nowhere.png", "--out", "RUN"), "nowhere.png does not exist"),
        (("methods", "--backbone", "vit"), "'vit' is no preset"),
        (("info", "nowhere"), "is no folder that exists here"),
    ],
)
def test_mistakes_end_in_a_message(run, trained, binary_data, small_backbone, tmp_path, arguments, message):
    places = {"DATA": binary_data, "RUN": tmp_path / "run", "TRAINED": trained}
    filled = [places.get(argument, argument) for argument in arguments]
    if arguments[0] == "train":
        filled += ["--backbone", small_backbone, "--max-steps", 1]
    code, _, error = run(*filled)
    assert code == 2
    assert error.startswith("error: ")
    assert message in error
    assert "Traceback" not in error


def test_unknown_command(run):
    code, _, error = run("trian")
    assert code == 2
    assert "No such command" in error
