"""Folders of runs as a trainer, an evaluator and Slurm leave them, made up in a moment; and what a report says of them."""

from __future__ import annotations

import json
import math
import random
import re
from pathlib import Path
from typing import Any

import yaml
from PIL import Image, ImageDraw

from stylegan_dist.config import config_of, dotted, to_dict
from stylegan_dist.report.page import write_report

BEGAN = 1_760_000_000.0  # unix seconds


def make_run(path: Path, ticks: int = 60, grids: int = 7, scores: int = 5, restarts: int = 2, seed: int = 0,
             kimg: float = 600, side: int = 96, **settings: Any) -> Path:
    """A run of `kimg` with so many records, sample grids (square, of `side` pixels) and scored checkpoints.

    It goes back once, at half of its length. Settings are dotted keys with two underscores for the dot.
    """
    draw = random.Random(seed)
    path.mkdir(parents=True)
    total = round(kimg * 1000)
    records = [_record(draw, round(total * (i + 1) / ticks), i * (restarts + 1) // ticks, (i + 1) / ticks)
               for i in range(ticks)]
    write_lines(path / "metrics.jsonl", records)
    half = total // 2
    write_lines(path / "metrics.jsonl.abandoned",
                [_record(draw, half - total // 50 + i * total // 100, 0, 0.5) for i in range(3)])
    (path / "samples").mkdir()
    for i in range(grids):
        nimg = round(total * i / max(grids - 1, 1))
        draw_grid(path / f"samples/nimg-{nimg:08d}.png", side, i / max(grids - 1, 1), f"{nimg / 1000:g}", seed)
    draw_grid(path / "samples/reals.png", side, 1.0, "reals", seed)
    scored = [round(total * (i + 1) / scores) for i in range(scores)]
    write_lines(path / "evaluation.jsonl", [evaluation(nimg, _fid(nimg / total)) for nimg in scored])
    best = min(scored, key=lambda nimg: _fid(nimg / total), default=total)
    checkpoint = path / f"checkpoints/nimg-{total:08d}"
    checkpoint.mkdir(parents=True)
    back = {"at": half, "to": half - total // 30, "reason": "5 of 100 steps had values that were not finite"}
    (checkpoint / "state.json").write_text(json.dumps({"nimg": total, "rollbacks": [back]}))
    (path / "checkpoints/best.json").write_text(json.dumps({"metric": "fid", "nimg": best, "value": _fid(best / total)}))
    values = to_dict(config_of("stylegan2"))
    for key, value in {"run__dir": str(path), "run__kimg": kimg, **settings}.items():
        section, _, name = key.partition("__")
        assert f"{section}.{name}" in dotted(values), key
        values[section][name] = value
    (path / "config.yaml").write_text(yaml.safe_dump(values, sort_keys=False))
    (path / "restarts.tsv").write_text("".join(
        f"{BEGAN + 3600 * i:.0f}\t{4100 + i // 2}\t{i}\tstopped requeue\t{total * (i + 1) // (restarts + 1)}\ttime limit\n"
        for i in range(restarts)))
    (path / "log.txt").write_text(_log(total))
    return path


def write_lines(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def evaluation(nimg: int, fid: float, network: str = "inception", digest: str = "", **more: Any) -> dict[str, Any]:
    """A line of evaluation.jsonl."""
    return {
        "version": 1, "nimg": nimg, "digest": digest or f"{nimg:064x}", "network": network, "count": 50_000, "seed": 0,
        "seconds": 214.0, "time": BEGAN + nimg,
        "scores": {
            "fid": {"value": fid, "error": None, "floor": 1.12, "lower_is_better": True},
            "kid": {"value": fid / 4000, "error": fid / 30000, "floor": 0.0, "lower_is_better": True},
            "precision": {"value": 0.7 - fid / 200, "error": 0.01, "floor": 0.72, "lower_is_better": False},
        }, **more}


def draw_grid(path: Path, side: int, sharpness: float, text: str, seed: int = 0) -> None:
    """Noise that becomes coloured discs."""
    draw = random.Random(seed)
    noise = Image.effect_noise((side, side), 90 * (1 - sharpness) + 4).convert("RGB")
    discs = Image.new("RGB", (side, side), (20, 24, 30))
    pen = ImageDraw.Draw(discs)
    cell = side // 6
    for row in range(6):
        for column in range(6):
            colour = tuple(draw.randrange(60, 255) for _ in range(3))
            size = cell * draw.uniform(0.25, 0.45)
            x, y = (column + 0.5) * cell, (row + 0.5) * cell
            pen.ellipse((x - size, y - size, x + size, y + size), fill=colour)
    picture = Image.blend(noise, discs, 0.15 + 0.8 * sharpness)
    ImageDraw.Draw(picture).text((4, 4), text, fill=(255, 255, 255))
    picture.save(path, compress_level=1)


def _fid(part: float) -> float:
    """The best is before the end."""
    return 60 * math.exp(-4 * part) + 8 * (part - 0.3) ** 2 + 5


def _record(draw: random.Random, nimg: int, segment: int, part: float) -> dict[str, Any]:
    noise = draw.gauss(0, 0.05)
    speed = 900 + 40 * draw.gauss(0, 1)
    return {
        "nimg": nimg, "kimg": nimg / 1000, "segment": segment, "time": BEGAN + nimg / 900,
        "loss/g_main": 0.7 + part + noise, "loss/d_main": 1.3 - 0.3 * part + draw.gauss(0, 0.04),
        "loss/r1": 0.02 * math.exp(2 * part + draw.gauss(0, 0.3)), "loss/path_length": 0.4 * math.exp(-2 * part),
        "path_length/mean": 2 - part + noise, "path_length/target": 2 - part,
        "logits/real": 0.4 + part / 2 + noise, "logits/fake": -0.4 - part / 2 + draw.gauss(0, 0.05),
        "grad_norm/g": math.exp(draw.gauss(0, 0.5)), "grad_norm/d": 2 * math.exp(draw.gauss(0, 0.7)),
        "grad_nonfinite/g": 0.0, "grad_nonfinite/d": 0.0, "time/img_per_sec": speed, "time/sec_per_kimg": 1000 / speed,
        "time/data_wait": abs(draw.gauss(0.004, 0.004)), "data/replaced": 0, "guard/rollbacks": int(part >= 0.5),
        "memory/peak_gib": 21.4, "ema/decay": 0.99,
    }


def _log(total: int) -> str:
    lines = ["  run             runs/x, seed 0", "  engine          8 x NVIDIA H200, data parallel",
             "  data            data/photos: 70,000 images, 256 px, 3 channels", "  generator       24,767,458 parameters",
             "  rule            precision.dtype = bf16 (this device computes in it)",
             "                  run.batch_gpu = 8 (from the resolution)",
             "  versions        stylegan_dist 0.1.0, Python 3.11.2, PyTorch 2.13.0",
             "kimg 4.0  0.1%  img/s 900.0", "WARNING: waiting for data took 12% of the time on rank 3; the cause is disk",
             "WARNING: waiting for data took 19% of the time on rank 5; the cause is disk",
             f"WARNING: training has diverged: at {total // 2000} kimg 5 of 100 steps had values that were not finite"]
    return "".join(f"2026-03-01 10:00:{i:02d}  {line}\n" for i, line in enumerate(lines))


def written(tmp_path: Path, *runs: Path, **more: Any) -> str:
    return write_report(runs, tmp_path / "out.html", **more).path.read_text("utf-8")


def data_of(page: str) -> dict[str, Any]:
    """What the script of the page reads."""
    return json.loads(page.split('type="application/json">')[1].split("</script>")[0])


def chart(page: str, title: str) -> dict[str, Any]:
    """The data of a chart by its title."""
    name = re.search(rf'<title>{re.escape(title)}</title><clipPath id="(\w+)-clip"', page)
    assert name, f"no chart {title}"
    return next(one for one in data_of(page)["charts"] if one["id"] == name[1])


def records(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
