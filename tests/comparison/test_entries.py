"""What a user writes for `compare`: methods, sizes, seeds, and what is said where it is not valid."""

import re

import pytest

import convlora
from convlora.adapters import methods
from convlora.comparison.entries import Cell, make_cells, parse_methods, parse_train_sizes
from convlora.comparison.settings import make_settings, refuse_of_a_run
from convlora.errors import ConfigError


def test_methods_with_options():
    entries = parse_methods("lora, conv-lora:rank=2:scales=[1,2],unet")
    assert [entry.label for entry in entries] == ["lora", "conv-lora:rank=2:scales=[1,2]", "unet"]
    assert entries[1].changes == {"method": {"name": "conv-lora", "rank": 2, "scales": [1, 2]}}
    assert entries[2].changes["backbone"] == "unet"


def test_all_is_every_method():
    assert [entry.label for entry in parse_methods("all")] == list(methods())
    assert parse_methods("all,unet")[-1].label == "unet"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("lroa", r"there is no method 'lroa'. Did you mean 'lora'\?"),
        ("unett", r"no method 'unett'. Did you mean 'unet'\?"),
        ("lora:rnk=2", r"(?s)--methods lora:rnk=2.*'rnk'"),
        ("lora:rank=-1", r"(?s)--methods lora:rank=-1.*rank must be"),
        ("lora:rank", r"method.rank"),
        ("unet:rank=2", "unet takes no options, got rank=2"),
        ("lora,lora", "names lora twice"),
        ("all,lora", "names lora twice"),
        (" , ", "give 'all' or names"),
    ],
)
def test_methods_that_are_not_valid(text, message):
    with pytest.raises(ConfigError, match=message):
        parse_methods(text)


def test_train_sizes():
    assert parse_train_sizes("8, 16,all") == [8, 16, None]
    for text in ("8,8", "0", "-3", "some", "", "1.5", "08"):
        with pytest.raises(ConfigError, match="--train-sizes is"):
            parse_train_sizes(text)


def test_cells_have_folders_of_their_own():
    entries = parse_methods("lora,lora:rank=2,lora:rank=3,conv-lora:scales=[1,2],conv-lora:scales=[1 ,2]")
    cells = make_cells(entries, range(2), [4, None], {"lora": 0.01})
    assert len({cell.name for cell in cells}) == len(cells) == 20
    assert all(cell.name.isascii() and "/" not in cell.name for cell in cells)
    assert cells[0] == Cell(entries[0], 0, 4, 0.01)
    assert [cell.seed for cell in cells[:10]] == [0] * 5 + [1] * 5
    assert cells[0].config() == {"method": {"name": "lora"}, "seed": 0, "train_images": 4, "lr": 0.01}
    assert "lr" not in cells[1].config()
    rates = [Cell(entries[0], 0, lr=lr, tuning=True).name for lr in (1e-3, 3e-3)]
    assert len({*rates, cells[10].name}) == 3


def test_reference():
    assert make_settings("conv-lora,lora").reference == "lora"
    assert make_settings("conv-lora,unet").reference == "conv-lora"
    assert make_settings("conv-lora,lora", reference="conv-lora").reference == "conv-lora"


def test_fresh_seeds():
    assert list(make_settings("lora", seeds=2).seed_range) == [0, 1]
    assert list(make_settings("lora", seeds=2, first_seed=5).seed_range) == [5, 6]
    assert make_settings("lora", seeds=1, first_seed=999_999).seed_range[-1] == 999_999


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"reference": "ssf"}, "--reference is ssf, which is not compared. Give one of conv-lora, lora"),
        ({"seeds": 0}, "--seeds is 0; give 1 or more"),
        ({"first_seed": -1}, "The seeds are -1 to 1; --first-seed and --seeds must keep them from 0"),
        ({"first_seed": 999_999, "seeds": 2}, "The seeds are 999999 to 1000000; --first-seed and --seeds"),
        ({"split": "tst"}, "split is 'tst'; it must be one of train, val, test. Did you mean 'test'"),
        ({"metrics": "a,a"}, "--metrics is 'a,a'; give different names"),
        ({"metrics": ""}, "--metrics is ''"),
    ],
)
def test_settings_that_are_not_valid(options, message):
    with pytest.raises(ConfigError, match=message):
        make_settings("conv-lora,lora", **options)


OF_A_RUN = [
    ("method.rank=8", {"method": {"rank": 8}}, "method: got {'rank': 8}, .*--methods lora:rank=8"),
    ("method=lora", {"method": {"name": "lora"}}, "method: got {'name': 'lora'}, .*--methods lora:rank=8"),
    ("seed=5", {"seed": 5}, "seed: got 5, .*Give --first-seed and --seeds"),
    ("train_images=4", {"train_images": 4}, "train_images: got 4, .*Give --train-sizes"),
    ("train_images=null", {"train_images": None}, "train_images: got None, .*Give --train-sizes"),
]


@pytest.mark.parametrize(("item", "options", "message"), OF_A_RUN, ids=[case[0] for case in OF_A_RUN])
def test_what_the_runs_differ_in_is_not_dropped(command, tmp_path, item, options, message):
    out = tmp_path / "out"
    code, _, error = command("compare", tmp_path, "--out", out, "--set", "epochs=3", "--set", item)
    assert code == 2
    assert re.search(message, error)
    with pytest.raises(ConfigError, match=message):
        convlora.compare(tmp_path, out, **options)
    assert not out.exists()


def test_all_that_the_runs_differ_in_is_listed_and_the_rest_taken():
    refuse_of_a_run({"epochs": 3, "backbone": "sam-tiny"})
    with pytest.raises(ConfigError, match=r"(?s)shared by all runs of a comparison:\n  method: .*\n  seed: "):
        refuse_of_a_run({"seed": 0, "method": "lora"})


def test_a_file_that_sets_them_is_taken_and_told(command, tmp_path, monkeypatch):
    file = tmp_path / "config.yaml"
    file.write_text("method: {name: lora, rank: 8}\nseed: 5\ntrain_images: null\npreset: paper\n")
    seen = []

    def run(config, *_):
        seen.append(config)
        raise ConfigError("far enough")

    monkeypatch.setattr("convlora.comparison.compare.compare", run)
    arguments = ("compare", tmp_path, "--out", tmp_path / "out", "--config", file)
    code, text, error = command(*arguments)
    assert (code, "far enough" in error) == (2, True)
    assert text == f"note: method, seed of {file} not used: the runs of a comparison differ in that\n"
    assert seen[0].preset == "paper"
    code, text, _ = command(*arguments[:-2], "--preset", "paper")
    assert (text, seen[1].preset) == ("", "paper")
