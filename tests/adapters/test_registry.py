"""The table of methods and the errors of its users and of its authors."""

from dataclasses import dataclass, field, fields
from typing import ClassVar

import pytest

from convlora.adapters import ConvLora, DecoderOnly, Full, Lora, Method, base, build_method, methods, register
from convlora.errors import ConfigError


@pytest.fixture(autouse=True)
def own_table(monkeypatch):
    monkeypatch.setattr(base, "_METHODS", dict(base._METHODS))


def test_names():
    table = methods()
    assert {
        "conv-lora": ConvLora,
        "lora": Lora,
        "decoder-only": DecoderOnly,
        "full": Full,
    }.items() <= table.items()
    table.clear()
    assert methods()  # a copy was returned


def test_build_from_yaml_values():
    method = build_method("conv-lora", {"rank": 4, "scales": [1, 3], "targets": ["mlp.lin1"]})
    assert method == ConvLora(rank=4, scales=(1, 3), targets=("mlp.lin1",))
    assert build_method("conv-lora") == ConvLora()
    assert hash(method) != hash(ConvLora())


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        (
            "conv_lora",
            {},
            "Unknown method: 'conv_lora'. Did you mean 'conv-lora'? Available: adapter, bitfit, conv-lora,",
        ),
        ("xyz", {}, "Unknown method: 'xyz'. Available:"),
        (
            "lora",
            {"rang": 3},
            "Unknown option of lora: 'rang'. Did you mean 'rank'? Available: alpha, rank, targets.",
        ),
        ("full", {"rank": 3}, "Unknown option of full: 'rank'. Available: none."),
        ("lora", {"rank": "3"}, "lora: rank must be an integer of at least 1, got '3'."),
    ],
)
def test_build_errors(name, options, message):
    with pytest.raises(ConfigError) as caught:
        build_method(name, options)
    assert message in str(caught.value)


def test_every_option_is_explained():
    for method in methods().values():
        assert method.__doc__
        assert all(f.metadata["help"].endswith(".") for f in fields(method))


@pytest.mark.parametrize("bad", ["", "Upper", "under_score", "-x", "a--b", 3])
def test_register_checks_the_name(bad):
    @dataclass(frozen=True)
    class Bad(Method):
        name: ClassVar[str] = bad

    with pytest.raises(ValueError, match=r"Bad\.name must be lower-case words joined by hyphens"):
        register(Bad)


def test_register_checks_the_class():
    @dataclass(frozen=True)
    class Taken(Method):
        name: ClassVar[str] = "lora"

    @dataclass
    class Thawed(Method):
        name: ClassVar[str] = "thawed"

    @dataclass(frozen=True)
    class Silent(Method):
        name: ClassVar[str] = "silent"
        rank: int = field(default=1)

    for method, message in (
        (Taken, "'lora' of Taken is taken by Lora"),
        (Thawed, "Thawed must be a frozen dataclass"),
        (Silent, "Silent needs metadata={'help': ...} on: rank"),
    ):
        with pytest.raises(ValueError, match=message):
            register(method)
    assert "silent" not in methods()
