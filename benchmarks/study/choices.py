"""What the kept runs say of this package's own choices: router, default preset, settings; of few images."""

from collections.abc import Callable, Iterator

from claims import OFFICIAL, of_the_paper
from comparisons import Found
from verdicts import Claim, Runs, apart, claim

FAST = "conv-lora:routing=soft:scope=image:start=zero:temperature=0.03:gain=32"  # a candidate
CHOSE_IT = (0, 1)  # its seeds in part `routing`
PAIRS = (("lora", "decoder-only"), ("conv-lora", "decoder-only"), ("conv-lora", "lora"))
ROUTERS = (("conv-lora", OFFICIAL), (OFFICIAL, "lora"))


def of_the_router(found: Found) -> Iterator[Claim]:
    """On the validation split, where it is chosen."""
    yield claim(
        "The default preset's beats the official one",
        apart(found, Runs("routing", "conv-lora"), Runs("routing", OFFICIAL)),
    )
    for other in (OFFICIAL, "conv-lora", "lora"):
        for without, note in (((), ""), (CHOSE_IT, ", without the two seeds that chose it")):
            pair = (Runs("routing-gain", FAST), Runs("routing-gain", other))
            yield claim(f"With a gain of 32 it beats {other}{note}", apart(found, *pair, without=without))


def of_the_preset(found: Found) -> Iterator[Claim]:
    """Its methods against each other, and Conv-LoRA against the paper's preset."""
    for part, what, asked in (
        ("default", "", (*PAIRS, *ROUTERS)),
        ("epochs", "After 30 epochs ", PAIRS),
        ("default-padded", "With resize=pad ", (*PAIRS, *ROUTERS)),
    ):
        for method, other in asked:
            yield claim(f"{what}{method} beats {other}", apart(found, Runs(part, method), Runs(part, other)))
    for ours, theirs, what in (("default", "paper", ""), ("epochs", "epochs-paper", "After 30 epochs ")):
        text = f"{what}conv-lora beats itself with --preset paper, which has a tenth of the learning rate"
        yield claim(text, apart(found, Runs(ours, "conv-lora"), Runs(theirs, "conv-lora")))


def of_few_images(found: Found) -> Iterator[Claim]:
    """Against a U-Net from random weights, which sees what SAM sees."""
    unet = Runs("low-data", "unet")
    for size in (8, 16, 32, None):
        text = f"Of {size or 'all'} training images Conv-LoRA makes more than a U-Net"
        yield claim(text, apart(found, Runs("low-data", "conv-lora"), unet, size=size))
    for method in ("lora", "conv-lora"):
        part = "methods" if method == "conv-lora" else "others"
        text = f"Of all training images {method} makes more than a U-Net, the rates of both tuned"
        yield claim(text, apart(found, Runs(part, method), Runs("others", "unet")))
    for size in (8, None):
        ours = Runs("low-data-512", "decoder-only") if size else Runs("size-512", "decoder-only")
        text = f"Of {size or 'all'} images the decoder alone at 512 px makes more than a U-Net at 256 px"
        yield claim(text, apart(found, ours, unet, size=size))


def of_the_settings(found: Found) -> Iterator[Claim]:
    """What the default preset's geometry, input, learning rate, loss and backbone rest on."""
    alone = "decoder-only"
    chosen = Runs("loss-bce-dice", alone)
    yield claim(
        "Images stretched to the square beat padded ones, decoder alone, on validation",
        apart(found, chosen, Runs("loss-bce-dice-padded", alone)),
    )
    for method in (alone, "conv-lora"):
        yield claim(
            f"Stretched images beat padded ones on test, {method}",
            apart(found, Runs("default", method), Runs("default-padded", method)),
        )
    for size in (384, 512):
        yield claim(
            f"Where areas are thin, inputs of {size} px beat those of 256, decoder alone (about cracks, as "
            "was settled after its first results)",
            apart(found, Runs(f"size-{size}", alone), Runs("default", alone), sets=("cracks",)),
            needed=1,
        )
    for method in (alone, "lora", "conv-lora"):
        yield claim(
            f"A learning rate of 0.003 beats the default preset's 0.001, {method}",
            apart(found, Runs("learning-rate", method), Runs("default", method)),
        )
    for alpha in (10, 100):
        yield claim(
            f"An alpha of {alpha} beats the default 32, conv-lora, on validation",
            apart(found, Runs("alpha", f"conv-lora:alpha={alpha}"), Runs("alpha", "conv-lora")),
        )
    for other in ("structure", "structure-official", "focal-dice"):
        yield claim(
            f"Cross entropy + Dice beats {other}, decoder alone, on validation",
            apart(found, chosen, Runs(f"loss-{other}", alone)),
        )
    yield claim(
        "Full tuning from sam-tiny's weights beats full tuning from random ones",
        apart(found, Runs("full", "full"), Runs("full-random", "full")),
    )


NOT_TUNED = "Learning rates not tuned, but where it is said."
Section = Callable[[Found], Iterator[Claim]]
SECTIONS: dict[str, tuple[str, Section]] = {
    "The paper's claims": (NOT_TUNED, of_the_paper),
    "The router": (f"On validation. {NOT_TUNED}", of_the_router),
    "The default preset": (NOT_TUNED, of_the_preset),
    "Few images": (NOT_TUNED, of_few_images),
    "Settings and backbone": (NOT_TUNED, of_the_settings),
}
