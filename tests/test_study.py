"""The study's bookkeeping: verdicts by their rule, runs that are kept, the page of results."""

import json
import sys
from pathlib import Path

import pytest
import scipy.stats

from convlora.comparison.entries import Cell, parse_methods
from convlora.comparison.launch import Task
from convlora.comparison.statistics import Difference, paired_difference

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT / "benchmarks"), str(ROOT / "benchmarks" / "study")]

import claims as study_claims  # noqa: E402  # scripts, not a package
import comparisons  # noqa: E402
import images as study_images  # noqa: E402
import kept as study_kept  # noqa: E402
import report as study_report  # noqa: E402
import run as study_run  # noqa: E402
import semantics as study_semantics  # noqa: E402
import summary as study_summary  # noqa: E402
import verdicts  # noqa: E402
import yaml  # noqa: E402

AHEAD, BEHIND = Difference(0.02, 0.01, 0.03, 3), Difference(-0.02, -0.03, -0.01, 3)
UNCLEAR, ONE_SEED = Difference(0.02, -0.01, 0.05, 5), Difference(0.02, None, None, 1)
TWO_SEEDS = Difference(0.02, 0.01, 0.03, 2)  # clear, but of too few


@pytest.mark.parametrize(
    ("differences", "expected"),
    [
        ([], "not measured yet"),
        ([AHEAD], "**not decidable here** (s0 for it)"),
        ([AHEAD, AHEAD], "**supported**"),
        ([AHEAD, AHEAD, UNCLEAR], "**supported**"),
        ([AHEAD, TWO_SEEDS], "**not decidable here** (s0 for it)"),
        ([UNCLEAR, ONE_SEED], "**not decidable here**"),
        ([AHEAD, AHEAD, BEHIND], "**not decidable here** (s0, s1 for; s2 against it)"),
        ([BEHIND, UNCLEAR], "**not decidable here** (s0 against it)"),
        ([BEHIND, UNCLEAR, BEHIND], "**not supported**"),
    ],
)
def test_verdicts(differences, expected):
    evidence = [verdicts.Evidence(f"s{place}", d) for place, d in enumerate(differences)]
    assert verdicts.claim("It works", evidence).verdict == expected


@pytest.mark.parametrize(("difference", "word"), [(AHEAD, "supported"), (BEHIND, "not supported")])
def test_a_claim_about_one_set_needs_one(difference, word):
    found = verdicts.claim("It works", [verdicts.Evidence("cracks", difference)], needed=1)
    assert found.verdict == f"**{word}**"


def test_numbers_are_shown_in_points_and_bold_where_clear():
    assert verdicts.shown(AHEAD) == "**+2.00 [+1.00, +3.00]**"
    assert verdicts.shown(UNCLEAR) == "+2.00 [-1.00, +5.00]"
    assert verdicts.shown(ONE_SEED) == "+2.00 (one seed)"
    assert verdicts.shown(None) == "-"


def test_chances_are_those_of_the_paired_t_test():
    ours, theirs = [0.71, 0.74, 0.69, 0.75], [0.70, 0.71, 0.70, 0.71]
    gap = paired_difference(dict(enumerate(ours)), dict(enumerate(theirs)))
    expected = scipy.stats.ttest_rel(ours, theirs).pvalue
    assert 0.1 < expected < 0.3
    assert verdicts.chance(gap) == pytest.approx(expected, rel=1e-9)
    assert verdicts.chance(ONE_SEED) is None
    assert verdicts.chance(Difference(0.1, 0.1, 0.1, 3)) == 0


class Digested(Task):
    """A task whose digest is told; on validation it is another."""

    @property
    def digest(self):
        return self.config["digest"] + (" on val" if self.split == "val" else "")


def keep_runs(folder, gain):
    """Three seeds of lora and conv-lora on two sets, conv-lora ahead by `gain` and a little noise."""
    for name in ("nuclei", "cracks"):
        kept = study_kept.Kept(folder / f"methods-{name}.json", folder / "out" / name, "sam-tiny")
        for seed in range(3):
            for label in ("lora", "conv-lora"):
                dice = 0.7 + 0.03 * seed + (gain + 0.001 * seed if label == "conv-lora" else 0)
                scores = {"mean_dice_foreground": dice, "mean_iou": dice - 0.1}
                scores["image_mean_dice_foreground"] = dice + 0.05
                costs = {"trained_parameters": 1000, "step_seconds": 0.5, "peak_memory_mib": 600}
                result = {"digest": f"{label}-{seed}", "scores": scores, **costs}
                result["validation"] = {"mean_dice_foreground": 0.5}
                kept.add(Cell(parse_methods(label)[0], seed), result)
        tried = {"digest": "t", "validation": {"mean_dice_foreground": 0.25}}
        kept.add(Cell(parse_methods("lora")[0], 9, tuning=True, lr=1e-3), tried)
        kept.add(Cell(parse_methods("lora")[0], 4), {"digest": "e", "error": "out of memory"})


def a_run(method, seed, where, seconds, command="run.py --jobs 2", **scores):
    made = {"machine": {"processor": where, "instructions": "AVX2", "precision of auto": "fp32"}}
    costs = {"step_seconds": seconds, "trained_parameters": 7, "peak_memory_mib": 100 * seconds}
    result = {**costs, "digest": f"{method}-{seed}", "scores": scores}
    made["command"] = command
    kinds = {"tuning": False, "train_images": None}
    return {"method": method, "seed": seed, **kinds, "made": made, "result": result}


def test_seconds_are_those_of_one_machine():
    runs = [a_run("lora", 0, "old", 9.0), a_run("lora", 1, "old", 9.0), a_run("lora", 2, "new", 1.0)]
    runs += [a_run("conv-lora", 2, "new", 2.0), a_run("vpt", 0, "old", 9.0), a_run("full", 2, "new", 3.0)]
    runs += [a_run("lora", 3, "new", 1.5), a_run("lora", 4, "new", 5.0)]
    runs += [a_run("lora", 5, "new", 0.1, command="run.py DATA")]  # alone on the machine
    comparison = comparisons.Comparison("p", "nuclei", {"runs": dict(enumerate(runs))})
    assert comparison.yardstick == "new, AVX2, computes in fp32, 2 at once"
    assert [comparison.cost(m, "step_seconds") for m in ("lora", "conv-lora", "vpt")] == [1.5, 2.0, None]
    assert comparison.cost("lora", "peak_memory_mib") == 500
    assert comparison.cost("vpt", "trained_parameters") == 7


def test_pairs_of_one_machine_are_counted_and_seeds_can_be_left_out():
    runs = [a_run("lora", seed, "old", 1.0, mean_dice_foreground=0.5) for seed in range(3)]
    runs += [
        a_run("conv-lora", seed, where, 1.0, mean_dice_foreground=0.5 + 0.1 * seed)
        for seed, where in enumerate(("old", "new", "old"))
    ]
    found = {("p", "cracks"): comparisons.Comparison("p", "cracks", {"runs": dict(enumerate(runs))})}
    pair = (verdicts.Runs("p", "conv-lora"), verdicts.Runs("p", "lora"))
    (all_of_them,) = verdicts.apart(found, *pair)
    assert (all_of_them.name, all_of_them.dice.n, all_of_them.alike) == ("cracks", 3, 2)
    assert all_of_them.dice.mean == pytest.approx(0.1)
    (fewer,) = verdicts.apart(found, *pair, without=(0,))
    assert (fewer.dice.n, fewer.alike, fewer.by_image) == (2, 1, None)
    assert fewer.dice.mean == pytest.approx(0.15)
    assert verdicts.apart(found, *pair, size=8) == verdicts.apart(found, *pair, sets=("nuclei",)) == []


def test_intervals_over_images_are_of_the_mean_over_seeds():
    ours = {0: {"a": 0.5, "b": 0.6, "c": 0.7}, 1: {"a": 0.7, "b": 0.6, "c": 0.9}}
    theirs = {0: {"a": 0.4, "b": 0.6, "c": 0.7}, 1: {"a": 0.4, "b": 0.2, "c": 0.7}, 2: {"a": 0.1}}
    found = verdicts.over_images(ours, theirs, pairs=2)
    gaps = [0.2, 0.2, 0.1]  # of a, b, c
    low, high = scipy.stats.ttest_1samp(gaps, 0).confidence_interval(0.95)
    assert (found.mean, found.low, found.high, found.n) == pytest.approx((sum(gaps) / 3, low, high, 3))
    assert verdicts.over_images(ours, theirs, pairs=3) is None  # one pair's images were not kept


def test_images_of_a_run_are_kept_and_taken_over(tmp_path):
    keep_runs(tmp_path, 0.02)
    kept = study_kept.Kept(tmp_path / "methods-nuclei.json", tmp_path / "again", "sam-tiny")
    cell = Cell(parse_methods("lora")[0], 0)
    table = tmp_path / "again" / "runs" / cell.name / "images.csv"
    table.parent.mkdir(parents=True)
    table.write_text("image,mean_dice_foreground,mean_iou\n1,0.25,0.1\n2,,0.1\n")
    result = kept.content["runs"][cell.name]["result"]
    kept.add(cell, result)
    assert kept.content["runs"][cell.name]["images"] == {"1": 0.25}
    assert comparisons.load(tmp_path)["methods", "nuclei"].images("lora") == {0: {"1": 0.25}}
    other = study_kept.Kept(tmp_path / "mixture-nuclei.json", tmp_path / "elsewhere", "sam-tiny")
    other.adopt(Digested(cell, tmp_path, {"digest": result["digest"]}, "test"))
    assert other.content["runs"][cell.name]["images"] == {"1": 0.25}


def test_images_of_older_runs_are_kept_where_the_scores_are_theirs(tmp_path, monkeypatch, capsys):
    keep_runs(tmp_path, 0.02)
    file, runs = tmp_path / "methods-nuclei.json", tmp_path / "runs"
    before = file.read_text()
    for name in ("lora-seed0", "lora-seed1"):
        (runs / name / "run" / "best").mkdir(parents=True)
    monkeypatch.setattr(study_images, "RESULTS", tmp_path)
    monkeypatch.setattr(study_images, "scored_again", lambda run, data, split: (0.75, {"1": 0.75}))
    study_images.complete(file, runs, tmp_path)
    told = capsys.readouterr().out
    assert "lora-seed0: 1 images" in told
    assert "lora-seed1: 0.7500 by image, 0.7800 is kept; left alone" in told
    content = json.loads(file.read_text())["runs"]
    assert [name for name, run in content.items() if "images" in run] == ["lora-seed0"]
    other = tmp_path / "mixture-nuclei.json"  # a part that has the same runs, whose folders are gone
    other.write_text(before)
    study_images.complete(other, tmp_path / "nowhere", tmp_path)
    assert json.loads(other.read_text())["runs"]["lora-seed0"]["images"] == {"1": 0.75}


def test_what_all_pairs_say_counts_a_run_once(tmp_path):
    keep_runs(tmp_path, 0.02)
    for name in ("nuclei", "cracks"):
        (tmp_path / f"low-data-{name}.json").write_text((tmp_path / f"methods-{name}.json").read_text())
    content = json.loads((tmp_path / "methods-cracks.json").read_text())
    run = content["runs"]["conv-lora-seed1"]["result"]
    run["scores"]["mean_dice_foreground"], run["digest"] = 0.1, "another"
    (tmp_path / "methods-cracks.json").write_text(json.dumps(content))
    text = "\n".join(study_summary.consistency(comparisons.load(tmp_path)))
    assert "| conv-lora over lora | 3 of 4 | 4 of 4 |" in text  # both sets have the same six digests here


def test_intervals_are_counted_with_and_without_regard_to_their_number():
    gaps = [Difference(0.02, 0.0199, 0.0201, 5), Difference(0.02, 0.0005, 0.0395, 5), *[UNCLEAR] * 4]
    claims = [verdicts.claim("It works", [verdicts.Evidence(f"s{n}", gap)]) for n, gap in enumerate(gaps)]
    text = study_summary.multiplicity(claims)
    assert text.startswith(
        "Of the 3 different intervals over seeds of the claims below 2 are clear of zero, each by itself; 1"
    )
    assert study_summary.multiplicity([]) == ""


def test_what_is_not_run_yet_is_told(tmp_path):
    keep_runs(tmp_path, 0.02)
    plan = {"parts": {"methods": {"sets": ["nuclei", "cracks"], "methods": "lora,conv-lora", "seeds": 4}}}
    plan["parts"]["full"] = {"sets": ["cracks"], "methods": "full", "seeds": 2, "tune_lr": True}
    text = "\n".join(study_summary.unfinished(comparisons.load(tmp_path), plan))
    assert "| `methods` | nuclei 7 of 8; cracks 7 of 8 |" in text
    assert "| `full` | cracks 0 of 5 |" in text


def test_kept_runs_are_restored_on_another_machine(tmp_path):
    keep_runs(tmp_path, 0.02)
    kept = study_kept.Kept(tmp_path / "methods-nuclei.json", tmp_path / "elsewhere", "sam-tiny")
    kept.restore()
    results = sorted((tmp_path / "elsewhere" / "runs").glob("*/result.json"))
    assert len(results) == 7  # six runs and one that chose a learning rate; the failed one is not kept
    assert json.loads(results[0].read_text())["digest"] == "conv-lora-0"
    made = kept.content["runs"]["lora-seed0"]["made"]
    assert {"commit", "command", "machine", "versions"} <= made.keys()


def test_a_run_of_another_part_is_taken_over(tmp_path):
    keep_runs(tmp_path, 0.02)
    other = study_kept.Kept(tmp_path / "mixture-nuclei.json", tmp_path / "elsewhere", "sam-tiny")
    cell = Cell(parse_methods("lora")[0], 0)

    def task(digest, split="test"):
        return Digested(cell, tmp_path, {"digest": digest}, split)

    assert other.adopt(task("another")) is None
    assert other.adopt(task("e")) is None  # it failed
    assert other.adopt(task("t")) is None  # it only chose a learning rate
    found = other.adopt(task("lora-0"))
    first = json.loads((tmp_path / "methods-nuclei.json").read_text())["runs"]["lora-seed0"]
    assert (found, other.content["runs"]["lora-seed0"]) == (first["result"], first)
    stranger = study_kept.Kept(tmp_path / "mixture-camvid.json", tmp_path / "elsewhere", "sam-tiny")
    assert stranger.adopt(task("lora-0")) is None
    on_validation = other.adopt(task("lora-0", "val"))
    assert on_validation["scores"] == {"mean_dice_foreground": 0.5} != found["scores"]
    assert on_validation["digest"] == "lora-0 on val"
    assert stranger.adopt(task("t", "val")) is None


def test_the_default_learning_rate_is_the_same_spelt_out_and_left_out(tmp_path):
    def task(lr):
        return Task(Cell(parse_methods("lora")[0], 0), tmp_path, {"lr": lr, "loss": "default"}, "test")

    for spelt, other in ((0.001, None), (None, 0.001)):
        folder = tmp_path / str(spelt)
        made = study_kept.Kept(folder / "default-nuclei.json", folder, "sam-tiny")
        made.add(task(spelt).cell, {"digest": task(spelt).digest, "scores": {"mean_iou": 0.5}})
        taker = study_kept.Kept(folder / "low-data-nuclei.json", folder, "sam-tiny")
        assert taker.adopt(task(0.003)) is None
        assert taker.adopt(task(other)) == {"digest": task(other).digest, "scores": {"mean_iou": 0.5}}
        assert task(other).digest != task(spelt).digest


def test_folders_of_this_machine_are_not_kept(tmp_path):
    (tmp_path / "data").mkdir()
    words = ["run.py", str(tmp_path / "data"), "--part", "default", "--work", str(tmp_path), "--jobs", "2"]
    assert study_kept.command(words) == "run.py DATA --part default --jobs 2"
    kept = study_kept.Kept(tmp_path / "methods-nuclei.json", tmp_path / "out", "sam-tiny")
    places = {"data": str(tmp_path), "out": str(tmp_path)}
    outcome = {"rows": [], "data": {}, "settings": {}, "configuration": {**places, "lr": 0.1}}
    kept.finish({**outcome, "runs": [1]})
    assert kept.content["outcome"] == {**outcome, "configuration": {"lr": 0.1}}


def test_runs_from_another_backbone_are_dropped(tmp_path):
    keep_runs(tmp_path, 0.02)
    file = tmp_path / "methods-nuclei.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "backbone": "another"}))
    other = study_kept.Kept(file, tmp_path / "elsewhere", "sam-tiny")
    assert other.content["runs"] == {}
    other.restore()
    assert not (tmp_path / "elsewhere").exists()


def test_runs_of_random_weights_are_not_dropped_for_those_of_another_processor(tmp_path):
    file = tmp_path / "full-random-nuclei.json"
    study_kept.Kept(file, tmp_path / "out", "random:sam-tiny").add(
        Cell(parse_methods("full")[0], 0), {"digest": "d"}
    )
    study_kept.Kept(file, tmp_path / "out", "random:sam-tiny")
    before = file.read_text()
    file.write_text(json.dumps({**json.loads(before), "backbone": "another"}))
    with pytest.raises(SystemExit, match=r"holds runs of other random weights.*move the file away"):
        study_kept.Kept(file, tmp_path / "out", "random:sam-tiny")


def test_probes_are_of_runs_that_came_to_their_end(tmp_path, monkeypatch):
    """A run that was cut off has a best model too."""
    asked = []
    monkeypatch.setattr(study_semantics, "train_to_the_end", asked.append)
    cell = tmp_path / "default-camvid" / "runs" / "lora-seed1"
    (cell / "run" / "best").mkdir(parents=True)
    own = study_semantics.trained(tmp_path / "data", "lora", 1, tmp_path, {"max_steps": 7})
    assert own == tmp_path / "semantics" / "lora-seed1"
    (config,) = asked
    assert (config.out, config.method["name"], config.seed, config.max_steps) == (own, "lora", 1, 7)
    (cell / "result.json").write_text("{}")
    assert study_semantics.trained(tmp_path / "data", "lora", 1, tmp_path, {}) == cell / "run"
    assert len(asked) == 1


@pytest.mark.parametrize(("gain", "word"), [(0.02, "supported"), (-0.02, "not supported")])
def test_the_page_says_what_the_runs_say(tmp_path, gain, word):
    keep_runs(tmp_path, gain)
    plan = yaml.safe_load((ROOT / "benchmarks" / "study" / "plan.yaml").read_text())
    text = "\n".join(study_report.page(comparisons.load(tmp_path), plan))
    sign = "+" if gain > 0 else "-"
    lines = text.splitlines()
    claim = "| 1. Conv-LoRA with the default preset's router beats LoRA, tuned"
    (at,) = (place for place, line in enumerate(lines) if line.startswith(claim))
    assert f"{claim} | **{word}** | nuclei | **{sign}" in lines[at]
    assert lines[at].endswith(" | 3 (3) |")
    assert lines[at + 1].startswith(f"|  |  | cracks | **{sign}")
    alone = "| 3. Adapting the encoder with LoRA beats training the decoder alone, tuned"
    assert f"{alone} | not measured yet | - | - | - | - | - |" in text
    row = "| lora | all | 73.0 ± 3.0 (3) | 78.0 ± 3.0 (3) | 63.0 ± 3.0 (3) | - | - | - | 1,000 | 0.50 | 600 |"
    assert row in text
    under = text.partition("## methods: nuclei")[2].partition("</details>")[0]
    made = json.loads((tmp_path / "methods-nuclei.json").read_text())["runs"]["lora-seed0"]["made"]
    assert f"- 7 runs, seed 0, 1, 2, 9; {comparisons.machine(made['machine'])}; {made['commit']}: `" in under


def test_what_learning_rates_gave_is_told_before_and_beside_scores(tmp_path):
    keep_runs(tmp_path, 0.02)
    plan = yaml.safe_load((ROOT / "benchmarks" / "study" / "plan.yaml").read_text())
    rates = "| method | 0.001 | 0.003 |\n| --- | --- | --- |\n| lora | 25.0 | - |\n| conv-lora | - | 31.0 |\n"
    file = tmp_path / "methods-cracks.json"
    content = json.loads(file.read_text())
    tried = {"digest": "u", "validation": {"mean_dice_foreground": 0.31}}
    run = {
        "method": "conv-lora",
        "seed": 9,
        "lr": 0.003,
        "train_images": None,
        "tuning": True,
        "result": tried,
    }
    content["runs"]["u"] = {**content["runs"]["lora-seed0"], **run}
    for runs in (content["runs"], {name: r for name, r in content["runs"].items() if r["tuning"]}):
        file.write_text(json.dumps({**content, "runs": runs}))
        text = "\n".join(study_report.page(comparisons.load(tmp_path), plan)) + "\n"
        page = text.partition("## methods: cracks")[2]
        assert rates in page
        assert ("Scores on test" in page) == (len(runs) > 2)
    assert "## methods: nuclei" in text


def test_two_parts_are_compared_on_the_sets_that_both_have(tmp_path):
    keep_runs(tmp_path, 0.02)
    (tmp_path / "methods-nuclei.json").rename(tmp_path / "others-nuclei.json")
    keep_runs(tmp_path, 0.03)
    found = comparisons.load(tmp_path)
    (row,) = verdicts.apart(
        found, verdicts.Runs("methods", "conv-lora"), verdicts.Runs("others", "conv-lora")
    )
    assert row.name == "nuclei"
    assert row.dice.mean == row.by_image.mean == pytest.approx(0.01)
    assert row.dice.clear


def test_scales_of_which_lora_alone_has_run_tell_nothing_yet(tmp_path):
    keep_runs(tmp_path, 0.02)
    file = tmp_path / "methods-nuclei.json"
    content = json.loads(file.read_text())
    content["runs"] = {name: run for name, run in content["runs"].items() if run["method"] == "lora"}
    (tmp_path / "scales-nuclei.json").write_text(json.dumps(content))
    assert study_claims.best_scale(comparisons.load(tmp_path)).verdict == "not measured yet"


def keep_scores(folder, part, name, scores):
    """Three seeds of each method, with its mean Dice and a little noise of its own."""
    kept = study_kept.Kept(folder / f"{part}-{name}.json", folder / "out" / part / name, "sam-tiny")
    for place, (label, dice) in enumerate(scores.items()):
        for seed in range(3):
            found = {"mean_dice_foreground": dice + 0.001 * ((seed + place) % 3)}
            result = {"digest": f"{label}-{seed}", "scores": found, "trained_parameters": 1}
            kept.add(Cell(parse_methods(label)[0], seed), result)


def verdict(folder, start):
    (found,) = (c for c in study_claims.of_the_paper(comparisons.load(folder)) if c.text.startswith(start))
    return found.verdict


def test_lora_must_beat_every_other_method_on_two_sets(tmp_path):
    low, claim = dict.fromkeys(study_claims.OTHERS, 0.7), "1. LoRA beats every other"
    keep_scores(tmp_path, "others", "nuclei", {"lora": 0.8, **low, "unet": 0.9})
    assert verdict(tmp_path, claim) == "**not decidable here** (nuclei for it)"  # six methods, but one set
    keep_scores(tmp_path, "others", "cracks", {"lora": 0.8, **low, "vpt": 0.8})
    assert verdict(tmp_path, claim) == "**not decidable here** (nuclei for it)"
    keep_scores(tmp_path, "others", "camvid", {"lora": 0.8, **low})
    assert verdict(tmp_path, claim) == "**supported**"
    keep_scores(tmp_path, "others", "cracks", {"lora": 0.8, **low, "vpt": 0.9})
    assert verdict(tmp_path, claim) == "**not decidable here** (nuclei, camvid for; cracks against it)"


def test_intervals_against_six_methods_are_corrected(tmp_path):
    """At 95 % each would be clear."""
    low = dict.fromkeys(study_claims.OTHERS, 0.7)
    for name in ("nuclei", "cracks"):
        keep_scores(tmp_path, "others", name, {"lora": 0.7035, **low})
    found = comparisons.load(tmp_path)
    (claim,) = (c for c in study_claims.of_the_paper(found) if c.text.startswith("1. LoRA beats every"))
    assert any(row.dice.clear for row in claim.evidence)
    assert claim.verdict == "**not decidable here**"


def test_scales_differ_where_each_best_is_clear_over_the_others(tmp_path):
    labels = [f"conv-lora:routing=balance:scales=[{scale}]" for scale in (1, 2, 4)]
    keep_scores(tmp_path, "scales", "nuclei", dict(zip(labels, (0.5, 0.7, 0.7002), strict=True)))
    keep_scores(tmp_path, "scales", "cracks", dict(zip(labels, (0.5, 0.7002, 0.7), strict=True)))
    assert verdict(tmp_path, "5. ") == "**not decidable here**"  # clear over the worst alone
    keep_scores(tmp_path, "scales", "camvid", dict(zip(labels, (0.8, 0.7, 0.6), strict=True)))
    assert verdict(tmp_path, "5. ") == "**supported**"


def test_the_plan_is_one_that_compare_takes():
    plan = yaml.safe_load((ROOT / "benchmarks" / "study" / "plan.yaml").read_text())
    keys = set()
    for part, own in plan["parts"].items():
        config, settings = study_run.comparison(plan, part, ROOT / "data", ROOT / "out")
        assert settings.reference in settings.methods
        assert (config.max_steps, settings.seeds) == (
            own.get("options", {}).get("max_steps", plan["common"]["max_steps"]),
            own["seeds"],
        )
        keys |= own.get("options", {}).keys()
    assert {"multiclass_head", "preset"} <= keys


def test_the_page_in_the_docs_is_the_one_of_the_results():
    page = study_report.PAGE
    plan = yaml.safe_load((ROOT / "benchmarks" / "study" / "plan.yaml").read_text())
    assert page.read_text() == "\n".join(study_report.page(comparisons.load(), plan)).rstrip() + "\n"


def test_the_table_of_the_readme_is_the_one_of_the_results(tmp_path):
    text = study_report.README.read_text()
    assert text == study_report.with_summary(text, comparisons.load())
    assert study_report.with_summary(text, {}) != text
