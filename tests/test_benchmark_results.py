"""What is made of results: whole steps, pictures, the README's figures, and that it is in step."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

pytest.importorskip("tabulate")
pytest.importorskip("matplotlib")
pytest.importorskip("timm")

from benchmarks import model, networks, plot, readme, scaling
from benchmarks.model_table import steps
from benchmarks.record import RESULTS, ModelRow, OpRow, newest, read_csv, write_csv
from examples.irse50 import IRSE50
from seblock_cuda import SEBlock
from seblock_cuda.reference import PlainSEBlock

LAYER = OpRow(
    *("seresnet50", 1, 128, 256, 56, 56, 16, "bfloat16", "nhwc", "both"),
    *(0, "cold", "fused", "split", 2.0, 1.9, 2.2, 5 * 205_520_896, 80.0, 10**9, 9),
)
QUICK = "--quick --device cpu --threads 1 --network mobilenetv3_large_100"
STEP = ModelRow("seresnet50", 128, "bfloat16", "nhwc", "eager", "none", 10.0, 9.9, 10.1, 10**9)


@pytest.fixture(autouse=True)
def _keep_threads() -> Iterator[None]:
    """The benchmark sets torch's thread count for the whole process."""
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize(
    ("name", "layers"),
    [
        ("seresnet50", 16),
        ("efficientnet_b0", 16),
        ("mobilenetv3_large_100", 8),
        ("regnety_016", 27),
        ("irse50", 24),
    ],
)
def test_every_se_layer_is_found(name: str, layers: int) -> None:
    with torch.device("meta"):
        plain = networks.NETWORKS[name].make(32)
        none = networks.NETWORKS[name].make(32)
    assert sum(networks.parts_of(module) is not None for module in plain.modules()) == layers
    assert networks.remove(none) == layers
    assert not any(networks.parts_of(module) for module in none.modules())


@pytest.mark.parametrize("name", ["mobilenetv3_large_100", "regnety_016", "irse50"])
def test_the_variants_differ_in_se_alone(name: str) -> None:
    plain, fused, none = (
        networks.variant(networks.NETWORKS[name], se, 32) for se in networks.SE_KINDS
    )
    images = torch.randn(networks.CHECK_BATCH, 3, 32, 32)
    assert networks.disagreement(plain, fused, images) < networks.AGREEMENT
    assert networks.disagreement(plain, none, images) > 10 * networks.AGREEMENT


def test_no_branch_is_multiplied_by_zero() -> None:
    model = networks.variant(networks.NETWORKS["seresnet50"], "plain", 32)
    norms = [module for module in model.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    assert all(norm.weight.all() for norm in norms)


def test_a_wrong_fused_layer_is_not_timed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(networks, "squeeze_excitation", lambda x, *rest, **names: 1.1 * x)
    monkeypatch.setattr(networks, "fuse", lambda model: networks._replace(model, networks._FusedSE))
    options = f"{QUICK} --layout nchw --results"
    assert model.main([*options.split(), str(tmp_path)]) == model.WRONG
    assert "fused and plain are" in capsys.readouterr().out
    assert read_csv(tmp_path / "model.csv", ModelRow) == []


def test_whole_steps_are_timed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = f"{QUICK} --layout nhwc --results"
    assert model.main([*options.split(), str(tmp_path)]) == 0
    rows = read_csv(tmp_path / "model.csv", ModelRow)
    assert [row.se for row in rows] == ["plain", "fused", "none"]
    assert all(row.batch == 2 and row.median_ms > 0 for row in rows)
    columns = "network,batch,dtype,layout,mode,se,median_ms,p20_ms,p80_ms,peak_bytes"
    assert (tmp_path / "model.csv").read_text().splitlines()[0] == columns
    assert "mobilenetv3_large_100" in capsys.readouterr().out
    assert "SE's share" in (tmp_path / "model.md").read_text()


def test_what_se_costs() -> None:
    rows = [
        STEP,
        replace(STEP, se="plain", median_ms=14.0),
        replace(STEP, se="fused", median_ms=11),
    ]
    (step,) = steps(rows)
    assert step.share("plain") == pytest.approx(4 / 14) and step.cost_ratio == pytest.approx(1 / 4)
    (noisy,) = steps([replace(STEP, p20_ms=8.0, p80_ms=12.5), *rows[1:]])
    assert math.isnan(noisy.cost_ratio)
    (partial,) = steps(rows[:1])
    assert math.isnan(partial.cost_ratio)


def test_irse50_is_the_network_of_the_paper() -> None:
    """24 blocks, 43.8 million parameters, 512 numbers; the fused layer has the same weights."""
    with torch.device("meta"):
        plain, fused = IRSE50(PlainSEBlock), IRSE50(SEBlock)
    assert len(plain.blocks) == 24
    assert sum(p.numel() for p in plain.parameters()) == pytest.approx(43.8e6, rel=0.01)
    assert list(plain.state_dict()) == list(fused.state_dict())
    assert plain(torch.empty(2, 3, 112, 112, device="meta")).shape == (2, 512)


def test_the_sweeps_vary_one_thing() -> None:
    for sweep, values in scaling.SWEEPS.items():
        shapes = [(w.batch, w.channels, w.height) for w in scaling.workloads([sweep])]
        varied = [index for index in range(3) if len({shape[index] for shape in shapes}) > 1]
        assert varied == ["nchw".index(sweep[-1])] if sweep != "sweep_s" else varied == [2]
        assert len(set(shapes)) == len(values)


def write_gpu_folder(results: Path) -> Path:
    folder = results / "h200-20270102"
    folder.mkdir(parents=True)
    copy = replace(LAYER, layout=None, direction=None, provider="copy", median_ms=0.5)
    copy = replace(copy, bytes=2 * 205_520_896)
    others = [replace(LAYER, provider="plain", median_ms=6.0), copy]
    tail = [replace(row, residual=1, median_ms=2.5) for row in (LAYER, others[0])]
    write_csv(folder / "op.csv", [LAYER, *others, *tail], OpRow)
    sweep = [replace(row, network="sweep_n", layout=row.layout and "nchw") for row in (LAYER, copy)]
    write_csv(folder / "scaling.csv", sweep, OpRow)
    plain_step = replace(STEP, se="plain", median_ms=14.0)
    write_csv(folder / "model.csv", [STEP, plain_step], ModelRow)
    return folder


def test_pictures_are_drawn_of_what_there_is(tmp_path: Path) -> None:
    folder = write_gpu_folder(tmp_path)
    names = sorted(path.name for path in plot.draw_folder(folder))
    stems = ("model", "op_bfloat16_both_cold", "scaling_bfloat16_both_cold_nchw")
    assert names == sorted(f"{stem}.{kind}" for stem in stems for kind in ("png", "svg"))
    assert (folder / "model.png").read_bytes().startswith(b"\x89PNG")
    first = (folder / "model.svg").read_bytes()
    plot.draw_folder(folder)
    assert (folder / "model.svg").read_bytes() == first
    assert plot.draw_folder(tmp_path) == []


def test_pages_say_what_was_measured_and_what_was_not(tmp_path: Path) -> None:
    empty = f"before\n{readme.BEGIN}\nold figures\n{readme.END}\nafter"
    nothing = readme.render(empty, tmp_path)
    assert "On a GPU: not measured" in nothing and "On a CPU: not measured" in nothing
    assert nothing.startswith("before\n") and nothing.endswith("\nafter") and "old" not in nothing
    assert readme.page(tmp_path).count("\nNot measured.") == 2

    write_gpu_folder(tmp_path)
    text = readme.render(nothing, tmp_path)
    (layer,) = (line for line in text.splitlines() if "forward + backward" in line)
    assert [cell.strip() for cell in layer.split("|")[2:4]] == ["3.0x", "not measured"]
    assert "training step of seresnet50" in text
    assert readme.render(text, tmp_path) == text
    with pytest.raises(ValueError, match="needs the lines"):
        readme.render("no marks", tmp_path)

    text = readme.page(tmp_path)
    assert "seresnet50/1, 128 x 256 x 56 x 56" in text
    assert "3.0x" in text and "4.0" in text  # over plain, copies
    assert "torch.compile: not measured" in text and "`make gpu-check`: not measured" in text
    assert "28.6%" in text  # the share of plain SE: (14 - 10) / 14
    assert "relu(x * gate + shortcut)" in text


def test_the_newest_folder_counts(tmp_path: Path) -> None:
    for name in ("cpu-20260101", "h200-20261231", "a100-20270101", "cpu-20250505", "notes"):
        (tmp_path / name).mkdir()
    assert newest(tmp_path, on_cpu=True) == tmp_path / "cpu-20260101"
    assert newest(tmp_path, on_cpu=False) == tmp_path / "a100-20270101"


@pytest.mark.skipif(not RESULTS.exists(), reason="a source distribution has no results")
def test_the_pages_are_in_step() -> None:
    assert readme.main(["--check"]) == 0, "run: make readme"
