"""What a report holds: the numbers of the files and nothing else."""

from __future__ import annotations

import hashlib
import html
import json
import os
import re
from pathlib import Path

import pytest
import torch
from PIL import Image
from report_runs import BEGAN, chart, data_of, evaluation, make_run, records, write_lines, written

from stylegan_dist.cli import main
from stylegan_dist.errors import InputError
from stylegan_dist.monitor.console import Console
from stylegan_dist.monitor.images import save_grid
from stylegan_dist.report.page import OTHERS, REALS, write_report
from stylegan_dist.report.reading import read_run
from stylegan_dist.report.values import number


def test_curves_have_the_values_of_the_records(tmp_path):
    run = make_run(tmp_path / "run")
    page = written(tmp_path, run)
    known = records(run)
    for title, names in {"Losses": ["loss/g_main", "loss/d_main"], "Mean logits": ["logits/real", "logits/fake"],
                         "R1 penalty": ["loss/r1"], "Path length": ["path_length/mean", "path_length/target"],
                         "Gradient norms": ["grad_norm/g", "grad_norm/d"], "Throughput": ["time/img_per_sec"],
                         "Peak memory": ["memory/peak_gib"]}.items():
        for series, name in zip(chart(page, title)["series"], names, strict=True):
            assert series["x"] == [one["kimg"] for one in known]
            assert series["y"] == pytest.approx([one[name] for one in known], rel=1e-4)
    shares = chart(page, "Waiting for data")["series"][0]["y"]
    assert shares == pytest.approx([100 * one["time/data_wait"] for one in known], rel=1e-4)
    assert "Replaced gradient values" not in page  # all are 0


def test_schedules_and_what_augmentation_follows(tmp_path):
    """The panels of a run that has them, with the target as a line; other runs have none of them."""
    run = make_run(tmp_path / "run", augment__p="ada", augment__controller="r_v", augment__target=0.5)
    more = {"augment/p": 0.1, "augment/r_t": 0.7, "augment/r_v": 0.4, "logits/held_out": 0.1, "schedule/optim.g.lr": 1e-4,
            "schedule/optim.d.lr": 2e-4, "schedule/optim.g.betas[1]": 0.9, "schedule/loss.r1_gamma": 2.0,
            "schedule/ema.half_life_kimg": 5.0, "schedule/augment.p": 0.1, "schedule/some.knob": 3.0}
    write_lines(run / "metrics.jsonl", [{**one, **{name: value * (1 + one["kimg"]) for name, value in more.items()}}
                                        for one in records(run)])
    page = written(tmp_path, run)
    for title, names in {
        "Mean logits": ["logits/real", "logits/fake", "logits/held_out"], "Augmentation": ["augment/p"],
        "What augmentation follows": ["augment/r_t", "augment/r_v"],
        "Learning rates": ["schedule/optim.g.lr", "schedule/optim.d.lr"],
        "Decay rates of Adam": ["schedule/optim.g.betas[1]"], "Weights of the penalties": ["schedule/loss.r1_gamma"],
        "Half-life of the average": ["schedule/ema.half_life_kimg"], "Other schedules": ["schedule/some.knob"],
    }.items():
        series = chart(page, title)["series"]
        assert len(series) == len(names), title
        for one, name in zip(series, names, strict=True):
            assert one["y"] == pytest.approx([record[name] for record in records(run)], rel=1e-4)
    followed = re.search(r"<h3>What augmentation follows</h3>.*?</figure>", page, re.DOTALL)[0]
    assert followed.count('class="floor"') == 1
    assert "Dotted: the target, 0.5." in followed
    two = written(tmp_path, run, make_run(tmp_path / "fixed", augment__p=0.2))
    assert "What augmentation follows: r_v" in two
    fixed = written(tmp_path, tmp_path / "fixed")
    assert not re.search("<h3>(What augmentation follows|Learning rates|Other schedules)", fixed)


def test_every_number_of_the_table_is_in_the_records(tmp_path):
    run = make_run(tmp_path / "run", ticks=500)
    table = written(tmp_path, run).split("Numbers of run as a table")[1].split("</table>")[0]
    names = [html.unescape(name) for name in re.findall(r'<th scope="col">(.*?)</th>', table)]
    known = {number(one["kimg"], 10): one for one in records(run)}
    rows = [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row) for row in table.split("<tbody>")[1].split("</tr>")[:-1]]
    assert len(rows) == 200
    assert rows[-1][0] == "600"
    for row in rows:
        for name, cell in zip(names[1:], row[1:], strict=True):
            assert cell == number(known[row[0]][name])


def test_scores_with_errors_floor_and_the_best(tmp_path):
    run = make_run(tmp_path / "run", scores=4)
    page = written(tmp_path, run)
    lines = [json.loads(line) for line in (run / "evaluation.jsonl").read_text().splitlines()]
    fid = chart(page, "FID, inception")
    assert fid["log"]
    assert fid["series"][0]["y"] == pytest.approx([one["scores"]["fid"]["value"] for one in lines], rel=1e-4)
    assert not chart(page, "Precision, inception")["log"]
    assert page.count('class="star') == 1
    assert page.count('class="error') == 8  # KID and precision
    assert page.count('class="floor"') == 2  # KID's is 0, which a logarithmic axis does not have
    best = json.loads((run / "checkpoints/best.json").read_text())
    assert f"FID {number(best['value'])} at {number(best['nimg'] / 1000, 9)} kimg" in page


def test_of_one_number_of_images_and_network_the_newest_counts(tmp_path):
    """Whatever its digest: after a roll-back another checkpoint may have seen as many images."""
    run = make_run(tmp_path / "run")
    write_lines(run / "evaluation.jsonl", [
        evaluation(1000, 50.0), evaluation(1000, 40.0), evaluation(2000, 30.0, digest="a" * 64, time=BEGAN + 9e6),
        evaluation(2000, 35.0, digest="b" * 64, time=BEGAN + 8e6), evaluation(2000, 7.0, "dinov2-l"),
        evaluation(3000, 20.0, count=10_000), evaluation(2000, 31.0, seed=3)])
    page = written(tmp_path, run)
    series = chart(page, "FID, inception")["series"]
    assert [one["y"] for one in series] == [[20.0], [40.0, 30.0], [31.0]]  # numbers of images and seeds are not mixed
    assert "50,000 images, seed 3" in page
    assert chart(page, "FID, dinov2-l")["series"][0]["y"] == [7.0]


def test_scores_of_an_abandoned_branch_are_left_out(tmp_path):
    """The run went back from 300 to 280 kimg, and was again at 285 kimg a day later."""
    run = make_run(tmp_path / "run", ticks=1)
    day = 86_400
    write_lines(run / "metrics.jsonl", [{"nimg": nimg, "kimg": nimg / 1000, "segment": 0, "time": BEGAN + time}
                                        for nimg, time in ((280_000, 100), (285_000, day), (600_000, 2 * day))])
    times = {270_000: 150, 290_000: 160, 295_000: day + 300, 300_000: 170}  # at the end; each took 100 s
    there = run / "checkpoints/nimg-00282000/manifest.json"  # scored before the first record after the run went back
    there.parent.mkdir()
    there.write_text("{}")
    write_lines(run / "evaluation.jsonl", [
        evaluation(282_000, 28.2, digest=hashlib.sha256(b"{}").hexdigest(), time=BEGAN + 200, seconds=10.0),
        *(evaluation(nimg, nimg / 1e4, time=BEGAN + time, seconds=100.0) for nimg, time in times.items()),
        evaluation(300_000, 25.0, digest="c" * 64, time=BEGAN + day + 400, seconds=100.0)])
    write_lines(run / "metrics.jsonl.abandoned", [])
    (run / "checkpoints/nimg-00600000/state.json").write_text(
        json.dumps({"nimg": 600_000, "rollbacks": [{"at": 300_000, "to": 280_000, "reason": "x"}]}))
    page = written(tmp_path, run)
    series = chart(page, "FID, inception")["series"][0]
    assert series["x"] == [270, 282, 295, 300]
    assert series["y"] == [27.0, 28.2, 29.5, 25.0]
    assert "1 evaluation is left out" in page


def test_a_negative_distance_has_a_linear_axis(tmp_path):
    run = make_run(tmp_path / "run")
    write_lines(run / "evaluation.jsonl", [evaluation(1000, 4.0), evaluation(2000, -1.0)])
    assert not chart(written(tmp_path, run), "KID, inception")["log"]


def test_faults_are_counted(tmp_path):
    run = make_run(tmp_path / "run", restarts=3)
    page = written(tmp_path, run)
    assert "3 restarts, 1 roll-back, 3 warnings" in page
    assert page.count('class="rollback"') == page.count('role="img"') + 1  # in each chart, and in the key
    assert page.count('class="restart"') == 3 * page.count('role="img"') + 1
    assert "5 of 100 steps had values that were not finite" in page
    assert "3 records were abandoned" in page
    assert page.count("stopped requeue") == 3
    assert "stylegan_dist 0.1.0, Python 3.11.2, PyTorch 2.13.0" in page  # as the log says
    warnings = page.split("Warnings in log.txt")[2].split("</table>")[0]
    assert re.search(r"waiting for data took 12% of the time.*?<td[^>]*>2</td>", warnings)


def test_the_log_is_read_as_the_trainer_writes_it(tmp_path):
    run = make_run(tmp_path / "run")
    console = Console(run / "log.txt", 600_000)
    console.header([("run", "x"), ("discriminator", "12 parameters"), ("versions", "PyTorch 9.9"), ("rule", "a"), ("", "b")])
    console.warn("disk 7 is slow")
    console.warn("disk 8 is slow")
    console.close()
    read = read_run(run)
    assert read.facts == {"run": "x", "discriminator": "12 parameters", "versions": "PyTorch 9.9", "rule": "a\nb"}
    assert ("disk 7 is slow", 2) in [(one.text, one.count) for one in read.warnings]


def test_roll_backs_without_a_checkpoint_are_those_of_the_abandoned_records(tmp_path):
    run = make_run(tmp_path / "run")
    os.remove(run / "checkpoints/nimg-00600000/state.json")
    page = written(tmp_path, run)
    assert "1 roll-back" in page
    assert "not known" in page


def test_roll_backs_that_follow_each_other_are_told_apart(tmp_path):
    run = make_run(tmp_path / "run")
    os.remove(run / "checkpoints/nimg-00600000/state.json")
    write_lines(run / "metrics.jsonl.abandoned", [{"nimg": 1000 * (i + 1), "guard/rollbacks": i // 3} for i in range(6)])
    page = written(tmp_path, run)
    assert "2 roll-backs" in page
    assert "6 records were abandoned" in page


def test_a_spike_survives_thinning_and_curves_are_short(tmp_path):
    run = make_run(tmp_path / "run", ticks=5000)
    rows = records(run)
    rows[1234]["loss/d_main"] = 77.0
    rows[2345]["loss/d_main"] = "NaN"
    write_lines(run / "metrics.jsonl", rows)
    page = written(tmp_path, run)
    series = chart(page, "Losses")["series"][1]
    assert 900 < len(series["x"]) <= 1001
    assert 77.0 in series["y"]
    assert None in series["y"]
    assert (series["x"][0], series["x"][-1]) == (rows[0]["kimg"], rows[-1]["kimg"])
    assert "as far as 77" in page  # one value does not flatten the curve
    assert chart(page, "Losses")["high"] < 5


def test_pictures_are_those_of_the_files(tmp_path):
    import base64
    import io

    run = make_run(tmp_path / "run", grids=3)
    for i, nimg in enumerate((0, 300_000, 600_000)):
        Image.new("RGB", (64, 64), ((255, 0, 0), (0, 255, 0), (0, 0, 255))[i]).save(run / f"samples/nimg-{nimg:08d}.png")
    page = written(tmp_path, run)
    for row, colour in zip(data_of(page)["grids"][0], ((254, 0, 0), (0, 255, 0), (0, 0, 254)), strict=True):
        source = re.search(rf'<img src="data:image/webp;base64,([^"]*)"[^>]*id="{row[2]}"', page)[1]
        pixel = Image.open(io.BytesIO(base64.b64decode(source))).convert("RGB").getpixel((30, 30))
        assert max(abs(a - b) for a, b in zip(pixel, colour, strict=True)) < 12


def test_pictures_of_an_evaluation_are_shown_with_captions(tmp_path):
    run = make_run(tmp_path / "run")
    (run / "evaluation").mkdir()
    for name in ("truncation", "neighbours", "interpolation", "classes"):
        save_grid(run / f"evaluation/{name}.png", torch.zeros(6, 1, 16, 16), 3, about=f"At 7 kimg, {name}.")
    (run / "evaluation/interpolation.gif").write_bytes(b"is not shown")
    page = written(tmp_path, run)
    for file, caption in OTHERS.items():
        assert caption in page
        assert f"{caption}. At 7 kimg, {Path(file).stem}." in page or file == REALS
    assert page.count('id="other-0-') == len(OTHERS)


def test_several_runs(tmp_path):
    runs = [make_run(tmp_path / "x/a", loss__r1_gamma=2.0), make_run(tmp_path / "y/a", kimg=300, loss__r1_gamma=5.0),
            make_run(tmp_path / "b", grids=4, seed=1)]
    page = written(tmp_path, *runs)
    data = data_of(page)
    assert data["runs"] == ["x/a", "y/a", "b"]
    table = page.split("<h2>What differs in their configurations</h2>")[1].split("</table>")[0]
    assert re.findall(r'<th scope="row"[^>]*>(.*?)</th>', table) == ["run.kimg", "loss.r1_gamma"]
    cells = [re.sub("<.*?>", "", cell) for cell in re.findall(r"<td.*?</td>", table)]
    assert cells == ["600", "300", "600", "2.0", "5.0", "auto"]
    losses = chart(page, "Losses: generator")["series"]
    assert [one["x"][-1] for one in losses] == [600, 300, 600]
    assert [len(rows) for rows in data["grids"]] == [7, 7, 4]
    assert [step[0] for step in data["steps"]] == sorted({*range(0, 601, 100), *range(0, 301, 50), 200, 400})
    order = [page.index(f"<h2>{title}</h2>") for title in ("What differs in their configurations", "Curves", "Samples")]
    assert order == sorted(order)


def test_the_command(tmp_path, capsys, monkeypatch):
    a, b = make_run(tmp_path / "a"), make_run(tmp_path / "b")
    assert main(["report", str(a)]) == 0
    assert str(a / "report.html") in capsys.readouterr().out
    assert (a / "report.html").is_file()
    assert main(["report", str(a), str(b), "--out", str(tmp_path / "both.html")]) == 0
    assert (tmp_path / "both.html").is_file()
    monkeypatch.chdir(tmp_path)
    assert main(["report", "a", "b"]) == 0
    assert (tmp_path / "report.html").is_file()


@pytest.mark.parametrize(("runs", "out", "named"), [
    (["nowhere"], "x.html", "nowhere"), (["."], "x.html", "config.yaml"), (["run"], "run", "run/report.html"),
    (["run"], "none/x.html", "--out"), (["run"] * 17, "x.html", "16"),
])
def test_what_cannot_be_is_said_in_one_line(tmp_path, monkeypatch, runs, out, named):
    make_run(tmp_path / "run", ticks=2, grids=1, scores=1)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=re.escape(named)):
        write_report([Path(run) for run in runs], Path(out))


def test_a_report_replaces_the_last_one_whole(tmp_path):
    run = make_run(tmp_path / "run", ticks=2, grids=1, scores=1)
    write_report([run], run / "report.html")
    first = os.stat(run / "report.html").st_ino
    write_report([run], run / "report.html")
    assert os.stat(run / "report.html").st_ino != first
    assert not list(run.glob("*.tmp"))
