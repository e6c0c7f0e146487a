"""Configuration: ranges, names, presets, and the way through YAML and back."""

import re

import pytest
from pydantic import ValidationError

from convlora.config import RunConfig, load_config, make_config
from convlora.errors import ConfigError
from convlora.presets import LEARNED_ROUTER, PAPER
from convlora.settings import parse_assignments, read_yaml

BASE = {"data": "d", "out": "o"}


def test_round_trip_through_yaml(tmp_path):
    config = make_config(
        {**BASE, "preset": "paper", "method": {"name": "lora", "rank": 8}, "classes": ["a", "b"], "lr": 3e-4}
    )
    (tmp_path / "config.yaml").write_text(config.to_yaml())
    assert load_config(tmp_path / "config.yaml") == config
    assert load_config(tmp_path / "config.yaml", {"seed": 5}).seed == 5
    with pytest.raises(ConfigError, match=r"(?m)^  lr: got -1"):  # the caller's, not the file's
        load_config(tmp_path / "config.yaml", {"lr": -1})


def test_the_default_presets_router():
    """It is written out; an option changes it in that alone, but for those that ask for another router."""
    learned = {"name": "conv-lora", **LEARNED_ROUTER}
    for method in (None, "conv-lora", {"name": "conv-lora"}, {}):
        assert make_config({**BASE, "method": method}).method == learned
    ranked = make_config({**BASE, "method": {"rank": 8}})
    assert ranked.method == {"rank": 8, **learned}
    for option in (
        {"routing": "switch"},
        {"top_k": 2},
        {"balance_weight": 0.1},
        {"routing": "soft", "gain": 2},
    ):
        method = make_config({**BASE, "method": {"name": "conv-lora", **option}}).method
        assert method == {"name": "conv-lora", **option}
    for option in ({"gain": 2}, {"temperature": 1.0, "start": "random"}, {"scope": "window"}):
        assert make_config({**BASE, "method": option}).method == {**learned, **option}
    assert make_config({**BASE, "method": "lora"}).method == {"name": "lora"}
    assert make_config({**BASE, "preset": "paper"}).method == {"name": "conv-lora"}
    assert make_config(ranked.model_dump()) == ranked


def test_paper_preset_and_what_is_given_wins():
    paper = make_config({**BASE, "preset": "paper"})
    for key, value in PAPER.items():
        assert getattr(paper, key) == value
        assert getattr(make_config(BASE), key) != value or key in {"epochs", "augment", "resize"}
    assert make_config({**BASE, "preset": "paper", "epochs": 3}).epochs == 3


def test_none_means_not_given():
    assert make_config({**BASE, "epochs": None}) == make_config(BASE)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"epoch": 3}, "'epoch' is no key. Did you mean 'epochs'?"),
        ({"xyzzy": 3}, "'xyzzy' is no key. Valid are: augment, backbone"),
        ({"lr": -1}, r"lr: got -1; it must be a finite number, above 0 and at most 1\. \(Peak learning rate"),
        ({"batch_size": "many"}, "batch_size: got 'many'; it must be a whole number, at least 1"),
        ({"resize": "crop"}, "resize: got 'crop'; it must be one of pad, stretch"),
        ({"method": {"name": "conv-lore"}}, "(?s)conv-lore.*conv-lora"),
        ({"method": {"name": "lora", "rnk": 2}}, "(?s)rnk.*rank"),
        ({"preset": "fast"}, "preset: got 'fast'; it must be one of default, paper"),
        ({"seed": -1, "epochs": 0}, "(?s)epochs: .*seed: "),
    ],
)
def test_bad_values(values, message):
    with pytest.raises(ConfigError, match=message):
        make_config({**BASE, **values})


def test_assignments():
    items = ["lr=1e-3", "method.rank=8", "method.scales=[1, 2]", "backbone=sam-tiny"]
    assert parse_assignments(items) == {
        "lr": 1e-3,
        "method": {"rank": 8, "scales": [1, 2]},
        "backbone": "sam-tiny",
    }


@pytest.mark.parametrize("item", ["lr", "=3"])
def test_bad_assignment(item):
    with pytest.raises(ConfigError, match="must have the form key=value"):
        parse_assignments([item])


@pytest.mark.parametrize(
    ("content", "message"), [("- a\n", "must hold keys and values, got list"), ("a: [", "is not valid YAML")]
)
def test_bad_yaml(tmp_path, content, message):
    (tmp_path / "c.yaml").write_text(content)
    with pytest.raises(ConfigError, match=message):
        read_yaml(tmp_path / "c.yaml")


def test_missing_yaml(tmp_path):
    with pytest.raises(ConfigError, match=r"no\.yaml does not exist"):
        read_yaml(tmp_path / "no.yaml")


def test_embeddings_of_an_untouched_encoder_are_kept_where_inputs_are_few():
    frozen = make_config({**BASE, "method": "decoder-only"})
    assert (frozen.augment, frozen.keep_embeddings, frozen.keeps_embeddings) == ("flip", None, True)
    for augment in ("none", "flip", "strong"):
        asked = make_config({**BASE, "method": "decoder-only", "augment": augment})
        assert asked.keeps_embeddings == (augment != "strong")
        assert not make_config({**BASE, "augment": augment}).keeps_embeddings
        switched_off = {"method": "decoder-only", "augment": augment, "keep_embeddings": False}
        assert not make_config({**BASE, **switched_off}).keeps_embeddings


def test_a_recorded_run_keeps_its_augmentation(tmp_path):
    """Also one of a version without `keep_embeddings`."""
    frozen = make_config({**BASE, "method": "decoder-only"})
    (tmp_path / "config.yaml").write_text(frozen.to_yaml())
    assert load_config(tmp_path / "config.yaml") == frozen
    before = (
        frozen.to_yaml().replace("augment: flip", "augment: strong").replace("keep_embeddings: null\n", "")
    )
    (tmp_path / "config.yaml").write_text(before)
    loaded = load_config(tmp_path / "config.yaml")
    assert (loaded.augment, loaded.keeps_embeddings) == ("strong", False)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {},
            "keep_embeddings is true, but method .conv-lora. trains the encoder, .* use --method decoder",
        ),
        ({"method": "lst"}, "method 'lst' trains the encoder"),
        (
            {"method": "decoder-only", "augment": "strong"},
            "augment 'strong' gives every image new pixels .* Set augment=flip or augment=none, or leave",
        ),
        ({"keep_embeddings": "perhaps"}, "keep_embeddings: got 'perhaps'; it must be true or false"),
    ],
)
def test_embeddings_that_cannot_be_kept(values, message):
    with pytest.raises(ConfigError, match=message):
        make_config({**BASE, "keep_embeddings": True, **values})


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"num_masks": 4}, "num_masks is 4, but multiclass_head 'per-class'"),
        (
            {"method": {"name": "lora", "rank": "{text}"}},
            "lora: rank must be an integer of at least 1, got '{text}'",
        ),
        ({"data": "a\0{b}"}, "'a\\x00{b}' can be no path"),
    ],
)
def test_a_message_of_ours_is_all_that_is_said(values, said):
    """Whoever builds a RunConfig without `make_config` reads pydantic's listing of it."""
    given = {"data": "d", "out": "o", **values}
    with pytest.raises(ValidationError) as plain:
        RunConfig(**given)
    assert [said in problem["msg"] for problem in plain.value.errors()] == [True]
    assert not any(sign in str(plain.value) for sign in ("\0", "Value error"))
    key = "" if "num_masks" in values else f"{next(iter(values))}: "
    with pytest.raises(ConfigError, match=re.escape(f"is not valid:\n  {key}")) as error:
        make_config(given)
    assert said in str(error.value)
