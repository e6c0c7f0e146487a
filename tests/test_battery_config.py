"""Every way to configure a run wrongly ends in a message: the key, the value, its place and the remedy."""

import pytest
import yaml
from safetensors.torch import load_file

from convlora.cli.combine import combine
from convlora.config import RunConfig, make_config
from convlora.errors import ConfigError
from convlora.presets import LEARNED_ROUTER

SETTINGS = [
    ("epochs=ten", ["epochs (--set epochs): got 'ten'; it must be a whole number, at least 1."]),
    ("epochs=1.5", ["epochs", "got 1.5", "whole number"]),
    ("epochs=true", ["got True; it must be a whole number"]),
    ("epochs=null", ["--set: epochs has no value", "leave the key out"]),
    ("epochs=[3]", ["got [3]; it must be a whole number"]),
    ("epochs=0", ["got 0; it must be a whole number, at least 1"]),
    ("epochs.x=1", ["'epochs' has no parts; only 'method' has", "method.rank=8"]),
    ("lr=0", ["got 0; it must be a finite number, above 0 and at most 1"]),
    ("lr=-1e-3", ["got -0.001;"]),
    ("lr=.nan", ["got nan;"]),
    ("lr=1e-3x", ["got '1e-3x'; it must be a finite number"]),
    ("lr=", ["the value is empty. Write lr=null"]),
    ("lr", ["must have the form key=value"]),
    ("=3", ["must have the form key=value"]),
    ("method..rank=3", ["must have the form key=value"]),
    ("clip=.inf", ["clip", "got inf; it must be a finite number"]),
    ("weight_decay=true", ["got True; it must be a finite number"]),
    ("batch_size=0", ["batch_size", "got 0;"]),
    ("seed=-1", ["seed", "at least 0 and below 2147483648"]),
    ("seed=4294967296", ["got 4294967296"]),
    ("workers=-1", ["workers", "at least 0 and at most 64"]),
    ("image_size=31", ["image_size", "at least 32 and at most 4096"]),
    ("image_size=100000", ["got 100000"]),
    ("precision=fp8", ["precision", "got 'fp8'; it must be one of auto, fp32, bf16, fp16"]),
    ("precision=half", ["got 'half'"]),
    ("augment=flips", ["Did you mean 'flip'?"]),
    ("preset=papr", ["preset", "Did you mean 'paper'?"]),
    ("resize=no", ["got False; it must be one of pad, stretch"]),
    ("num_masks=0", ["num_masks", "at least 2"]),
    ("num_masks=9", ["multiclass_head 'per-class' has one mask for each class. Leave num_masks out"]),
    ("classes=[no, yes]", ["got False", "quote words such as 'no'"]),
    ("classes=a", ["got 'a'; it must be a list of 2 to 255 different names"]),
    ("classes=[a", ["--set classes=[a is not valid YAML, line 1"]),
    ("backbone=3", ["backbone", "got 3; it must be text"]),
    ("wrkers=2", ["'wrkers' is no key. Did you mean 'workers'?"]),
    ("method=convlora", ["Unknown method: 'convlora'. Did you mean 'conv-lora'?"]),
    ("method=[lora]", ["got ['lora']; it must be a name, or keys such as name and rank"]),
    ("method.name=[a]", ["Unknown method: ['a']"]),
    ("method.rnk=8", ["Unknown option of conv-lora: 'rnk'. Did you mean 'rank'?"]),
    ("method.rank=0", ["rank must be an integer of at least 1, got 0"]),
    ("method.rank=3.5", ["rank must be an integer of at least 1, got 3.5"]),
    ("method.alpha=.nan", ["alpha must be a number above 0, got nan"]),
    ("method.scales=[]", ["scales must be a list of integers of at least 1, got []"]),
    ("method.scales=[0]", ["got [0]"]),
    ("method.top_k=9", ["top_k must be an integer from 1 to the number of scales, 8, got 9"]),
    ("method.targets=attn.qkv", ["targets must be a list", "got 'attn.qkv'"]),
    ("method.targets=[[a]]", ["targets must be a list", "got [['a']]"]),
    ("method.rank.x=1", ["'method' has parts one deep"]),
]


@pytest.mark.parametrize(("setting", "messages"), SETTINGS, ids=[case[0] for case in SETTINGS])
def test_bad_setting(command, binary_data, tmp_path, setting, messages):
    code, _, error = command("train", binary_data, "--out", tmp_path / "run", "--set", setting)
    assert code == 2
    assert error.startswith("error: ")
    for message in messages:
        assert message in error
    assert not (tmp_path / "run").exists()


# these need the data or the backbone: still before anything is written
LATER = [
    (["--image-size", "60"], ["image_size is 60", "patch size 8", "Use 56 or 64."]),
    (["--set", "method.rank=1000000"], ["rank is 1000000", "Set method.rank to 32 or less"]),
    (["--set", "method.targets=[attn.query]"], ["'attn.query' is not there", "attn.qkv"]),
    (["--set", "metric=mean_dice"], ["metric 'mean_dice' is not computed here", "Did you mean 'mean_"]),
    (["--set", "loss=structur"], ["Did you mean 'structure'?"]),
    (["--set", "loss=ce-dice"], ["for head 'per-class', but the head is 'binary'"]),
    (["--set", "method=lora", "--set", "method.rank=99"], ["Set method.rank to 32"]),
]


@pytest.mark.parametrize(("arguments", "messages"), LATER, ids=[" ".join(case[0]) for case in LATER])
def test_what_the_data_or_the_backbone_refuses(
    command, binary_data, small_backbone, tmp_path, arguments, messages
):
    code, _, error = command(
        "train", binary_data, "--out", tmp_path / "run", "--backbone", small_backbone, *arguments
    )
    assert code == 2
    for message in messages:
        assert message in error
    assert not (tmp_path / "run").exists()


LINES = [
    (["--set", "lr=1", "--set", "lr=2"], "--set gives lr two values, 1 and 2"),
    (["--set", "method=lora", "--set", "method.name=full"], "--set gives method.name two values"),
    (["--set", "method=3", "--set", "method.rank=3"], "gives method the value 3 and parts"),
    (["--method", "lora", "--set", "method.name=full"], "'method' is given both as an option and with --set"),
    (["--seed", "3", "--set", "seed=3"], "'seed' is given both as an option and with --set"),
    (["--epochs", "3", "--max-steps", "5"], "Give one of them"),
    (["--epochs", "3", "--set", "max_steps=5"], "Give one of them"),
    (["--classes", "a,,b"], "2 to 255 different names"),
    (["--classes", "a,a"], "2 to 255 different names"),
    (["--classes", "a"], "2 to 255 different names"),
    (["--classes", ""], "2 to 255 different names"),
    (["--epochs", "ten"], "Invalid value for '--epochs'"),
    (["--epochz", "3"], "No such option: --epochz"),
    (["--resume", "--config", "c.yaml"], "--resume goes on with the configuration in"),
    (["--json"], "--json goes with --dry-run; what a training gives is in its metrics.json. Leave it out."),
    (["--resume"], "so there is no run to resume"),
]


@pytest.mark.parametrize(("arguments", "message"), LINES, ids=[" ".join(case[0]) for case in LINES])
def test_bad_command_lines(command, binary_data, tmp_path, arguments, message):
    code, _, error = command("train", binary_data, "--out", tmp_path / "run", *arguments)
    assert code == 2
    assert message in error


FILES = [
    (b"", "is empty; it must hold keys and values"),
    (b"- a\n", "must hold keys and values, got list"),
    (b"epochs: 3\nlr: [1\n", "is not valid YAML, line 3"),
    (b"epochs: 3\nlr: 0.1\nepochs: 4\n", "line 3: the key 'epochs' is there twice; keep one of them"),
    (b"method: {rank: 3, rank: 4}\n", "line 1: the key 'rank' is there twice"),
    (b"epochs:\t3\n\tlr: 1\n", "is not valid YAML, line 1"),
    (b"backbone: \xff\xfe\n", "is not UTF-8 text"),
    (b"method: &a [x]\nclasses: *a\n", "line 2: an alias (*name) is not read here; write it out"),
    (b"epochs: null\nworkers:\n", "epochs, workers have no value"),
    (b"epoch: 3\n", "'epoch' is no key. Did you mean 'epochs'?"),
    (b"1: 2\n", "'1' is no key"),
    (b"epochs: '3.x'\n", "got '3.x'"),
    (b"? [a]\n: 1\n", "is not valid YAML"),
    (b"!!python/object:os.system {}\n", "is not valid YAML"),
    (b"[" * 2000, "is not valid YAML"),
]


@pytest.mark.parametrize(("content", "message"), FILES, ids=range(len(FILES)))
def test_bad_files(command, binary_data, tmp_path, content, message):
    file = tmp_path / "config.yaml"
    file.write_bytes(content)
    code, _, error = command("train", binary_data, "--out", tmp_path / "run", "--config", file)
    assert code == 2
    assert message in error
    assert str(file) in error


def test_files_that_are_none(command, binary_data, tmp_path):
    for file, message in ((tmp_path, "cannot be read: Is a directory"), (tmp_path / "no", "does not exist")):
        code, _, error = command("train", binary_data, "--out", tmp_path / "run", "--config", file)
        assert (code, message in error) == (2, True)


def test_all_problems_at_once_with_their_places(command, binary_data, tmp_path):
    file = tmp_path / "my.yaml"
    file.write_text("epoch: 3\nclip: 0\nmethod: {name: lora, rank: 0, alpha: -1, rnk: 2}\n")
    code, _, error = command(
        "train", binary_data, "--out", tmp_path / "run", "--config", file, "--lr", "7", "--set", "seed=-1"
    )
    assert code == 2
    for message in (
        f"epoch ({file}): 'epoch' is no key",
        f"clip ({file}): got 0",
        "lr (--lr): got 7",
        "seed (--set seed): got -1",
        "rank must be an integer",
        "alpha must be a number",
        "Unknown option of lora: 'rnk'",
    ):
        assert message in error


def test_numbers_without_a_point_are_numbers(tmp_path):
    (tmp_path / "c.yaml").write_text("lr: 1e-3\nclip: 2\nweight_decay: 5E-2\n")
    config = combine({"data": "d", "out": "o"}, ["method.alpha=1e1"], tmp_path / "c.yaml").config()
    assert (config.lr, config.clip, config.weight_decay, config.method["alpha"]) == (1e-3, 2.0, 0.05, 10.0)


# --- the file and the command line ---


def asked(tmp_path, file, options=(), settings=()):
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(file))
    return combine({"data": "d", "out": "o", **dict(options)}, settings, tmp_path / "c.yaml")


def test_the_command_line_counts_and_says_so(tmp_path):
    got = asked(tmp_path, {"seed": 1, "lr": 1e-4, "data": "other"}, {"seed": 2}, ["lr=1e-3", "clip=2"])
    assert (got.config().seed, got.config().lr, str(got.config().data)) == (2, 1e-3, "d")
    file = tmp_path / "c.yaml"
    assert sorted(got.notes) == [
        f"data: d from DATA, not other as in {file}",
        f"lr: 0.001 from --set lr, not 0.0001 as in {file}",
        f"seed: 2 from --seed, not 1 as in {file}",
    ]
    assert asked(tmp_path, {"seed": 2, "out": "old"}, {"seed": 2}).notes == []


def test_an_option_of_the_method_keeps_the_file_s_method(tmp_path):
    lora = {"name": "lora", "rank": 4, "alpha": 8.0}
    got = asked(tmp_path, {"method": lora}, settings=["method.rank=5"])
    assert got.config().method == {"name": "lora", "rank": 5, "alpha": 8.0}
    assert got.notes == [f"method.rank: 5 from --set, not 4 as in {tmp_path / 'c.yaml'}"]
    got = asked(tmp_path, {"method": lora}, {"method": "conv-lora"})
    assert got.config().method == {"name": "conv-lora", **LEARNED_ROUTER}
    assert "not lora with its options" in got.notes[0]
    assert asked(tmp_path, {"method": "lora"}, {"method": "lora"}).config().method == {"name": "lora"}


def test_epochs_replace_the_steps_of_the_file(tmp_path):
    got = asked(tmp_path, {"epochs": 30, "max_steps": 3}, {"epochs": 5})
    assert (got.config().epochs, got.config().max_steps) == (5, None)
    assert any(note.startswith("max_steps: left out for --epochs, not 3") for note in got.notes)
    assert asked(tmp_path, {"epochs": 30, "max_steps": 3}, {"max_steps": 7}).config().max_steps == 7


def test_a_preset_against_the_file_is_refused(tmp_path):
    recorded = make_config({"data": "d", "out": "o"}).model_dump(mode="json")
    with pytest.raises(ConfigError, match=r"--preset paper is given, but .*says loss: default, lr: None"):
        asked(tmp_path, recorded, {"preset": "paper"})
    paper = make_config({"data": "d", "out": "o", "preset": "paper"}).model_dump(mode="json")
    with pytest.raises(ConfigError, match=r"--preset default is given, but .*says preset: paper"):
        asked(tmp_path, paper, {"preset": "default"})
    assert asked(tmp_path, {"seed": 3}, {"preset": "paper"}).config().resize == "stretch"


def test_null_replaces_the_preset_s_value(tmp_path):
    paper = combine({"data": "d", "out": "o", "preset": "paper"}, ["patience=null"], None).config()
    assert paper.patience is None
    assert make_config({"data": "d", "out": "o", "preset": "paper"}).patience == 10
    (tmp_path / "c.yaml").write_text(paper.to_yaml())
    assert combine({}, [], tmp_path / "c.yaml").config() == paper


def test_every_default_is_recorded_and_read_back(tmp_path):
    config = make_config({"data": "d", "out": "o"})
    assert set(yaml.safe_load(config.to_yaml())) == set(RunConfig.model_fields)
    (tmp_path / "c.yaml").write_text(config.to_yaml())
    assert combine({}, [], tmp_path / "c.yaml").config() == config


def test_replay_ends_in_the_same_weights(command, binary_data, small_backbone, tmp_path):
    start = ["--backbone", small_backbone, "--max-steps", "2", "--set", "method.top_k=2", "--seed", "5"]
    assert command("train", binary_data, "--out", tmp_path / "a", *start, "--lr", "3e-3")[0] == 0
    recorded = tmp_path / "a" / "config.yaml"
    assert command("train", binary_data, "--out", tmp_path / "b", "--config", recorded)[0] == 0
    code, out, _ = command("train", binary_data, "--out", tmp_path / "c", "--config", recorded, "--seed", "6")
    assert code == 0
    assert f"seed: 6 from --seed, not 5 as in {recorded}" in out
    a, b, c = (load_file(tmp_path / run / "last" / "adapter_model.safetensors") for run in "abc")
    assert a.keys() == b.keys()
    assert all(a[name].equal(b[name]) for name in a)
    assert not all(a[name].equal(c[name]) for name in a)
