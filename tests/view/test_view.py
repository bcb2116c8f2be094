"""The server of the viewer: what it draws, what it refuses, and what it does with many requests at once."""

from __future__ import annotations

import http.client
import io
import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from launching import TINY_STYLEGAN3
from PIL import Image
from untrained_run import R3GAN, TINY, make_run
from view_server import served

from stylegan_dist.cli import main
from stylegan_dist.editing.directions import load_directions, save_directions, sefa
from stylegan_dist.editing.points import draw, points_of_files
from stylegan_dist.errors import InputError
from stylegan_dist.kinds.base import to_uint8
from stylegan_dist.latents.saved import load_latents
from stylegan_dist.latents.trained import open_trained
from stylegan_dist.networks.generator import great_circle
from stylegan_dist.view.scene import open_scene
from stylegan_dist.view.server import ViewServer
from stylegan_dist.view.settings import Settings

DCGAN = ["data.shards=somewhere", "generator.family=dcgan", "generator.z_dim=16", "generator.channel_base=256",
         "generator.channel_max=32", "discriminator.channel_base=256", "discriminator.channel_max=32"]
STYLEGAN3 = ["data.shards=somewhere", "generator.family=stylegan3-t", *TINY_STYLEGAN3]
SECONDS = 120  # for a request, against hanging only


@pytest.fixture(scope="module")
def run(tmp_path_factory, labelled_shards) -> Path:
    data = [f"data.shards={labelled_shards}", *TINY[1:]]
    return make_run(tmp_path_factory.mktemp("viewed") / "run", 3, knobs=data, contrast=3)


@pytest.fixture(scope="module")
def server(run: Path) -> Iterator[ViewServer]:
    with served(run) as one:
        yield one


def ask(server: ViewServer, place: str, query: str = "", token: str | None = None, host: str | None = None,
        method: str = "GET") -> tuple[int, bytes, http.client.HTTPMessage]:
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=SECONDS)
    try:
        words = [f"token={server.token if token is None else token}", *([query] if query else [])]
        connection.request(method, f"{place}?{'&'.join(words)}", headers={} if host is None else {"Host": host})
        reply = connection.getresponse()
        return reply.status, reply.read(), reply.headers
    finally:
        connection.close()


def pixels(content: bytes | Path) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(content) if isinstance(content, bytes) else content)).astype(int)


def shown(server: ViewServer, query: str) -> np.ndarray:
    status, content, _ = ask(server, "/frame", query)
    assert status == 200, content
    return pixels(content)


def test_a_seed_has_the_pixels_of_generate(server: ViewServer, run: Path, tmp_path: Path):
    out = tmp_path / "g"
    generate = ["generate", str(run), "--out", str(out), "--device", "cpu"]
    assert main([*generate, "--seeds", "5,4294967295", "--trunc", "0.7"]) == 0
    assert main([*generate, "--seeds", "5", "--class", "1", "--noise", "none"]) == 0
    for query, name in (("seed=5&psi=0.7&label=", "seed0005-class2"), ("seed=4294967295&psi=0.7", "seed4294967295-class0"),
                        ("seed=5&label=1&noise=none", "seed0005-class1")):
        assert np.array_equal(shown(server, query), pixels(out / f"{name}.png"))
        assert np.array_equal(pixels(ask(server, "/picture.png", query)[1]), pixels(out / f"{name}.png"))


def test_the_second_sample_replaces_the_first(server: ViewServer):
    first, second = shown(server, "seed=3&label=1"), shown(server, "seed=8&label=1")
    pair, layers = "seed=3&second=8&label=1", server.scene.trained.generator.num_ws
    assert np.array_equal(shown(server, f"{pair}&blend=0"), first)
    assert np.array_equal(shown(server, f"{pair}&mix_from=0&mix_to={layers}"), second)
    assert np.array_equal(shown(server, f"{pair}&mix_from=2&mix_to=2"), first)
    assert np.abs(shown(server, f"{pair}&blend=1") - second).max() <= 1
    half, some = shown(server, f"{pair}&blend=0.5"), shown(server, f"{pair}&mix_from=0&mix_to=2")
    assert all(np.abs(one - other).max() > 8 for one in (half, some) for other in (first, second))


def test_a_saved_latent_is_the_picture(server: ViewServer, run: Path, tmp_path: Path):
    query = "seed=3&second=8&label=1&psi=0.9&blend=0.3&mix_from=1&mix_to=3&moves=0,2.5&noise=seed&noise_seed=7"
    file = tmp_path / "seed.safetensors"
    file.write_bytes(ask(server, "/latents.safetensors", query)[1])
    trained = open_trained(run, "cpu")
    (point,) = points_of_files(trained, [str(file)])
    picture = shown(server, query)
    assert np.array_equal(draw(trained, point).permute(1, 2, 0).numpy(), picture)
    for part in ("blend=0.3", "mix_to=3", "moves=0,2.5", "noise=seed", "noise_seed=7", "psi=0.9"):
        assert not np.array_equal(shown(server, query.replace(part, "", 1).replace("&&", "&").strip("&")
                                        .replace("mix_from=1&moves", "moves")), picture), part
    save_directions(tmp_path / "d.safetensors", sefa(trained, [0], 1))
    assert main(["edit", "apply", str(run), "--directions", str(tmp_path / "d.safetensors"), "--latents", str(file),
                 "--strengths=0", "--device", "cpu", "--out", str(tmp_path / "e.png")]) == 0
    assert np.array_equal(pixels(tmp_path / "e.png")[-64::2, ::2], picture)  # enlarged by two, below its caption


def test_directions_of_a_file(run: Path, tmp_path: Path):
    trained, file = open_trained(run, "cpu"), tmp_path / "d.safetensors"
    save_directions(file, sefa(trained, [0, 1], 2))
    with served(run, file) as server:
        assert json.loads(ask(server, "/facts")[1])["moves"] == 2
        point = server.scene.point(Settings(moves=(0.0, 1.0)))
        directions = load_directions(file, trained)
        still = server.scene.point(Settings()).latents
        assert torch.allclose(point.latents - still, directions.move(still[None], 1, 1.0)[0] - still)
        assert ask(server, "/frame", "moves=0,0,1")[0] == 400


def test_the_page_knows_the_generator(server: ViewServer):
    facts = json.loads(ask(server, "/facts")[1])
    assert facts["names"] == ["class0", "class1", "class2"]
    assert (facts["classes"], facts["resolution"], facts["moves"], facts["truncates"]) == (3, 32, 10, True)


@pytest.mark.parametrize("knobs", [R3GAN, DCGAN], ids=["normal", "uniform"])
def test_a_generator_without_w(knobs: list[str], tmp_path: Path):
    run = make_run(tmp_path / "run", 3, knobs=knobs)
    with served(run) as server:
        facts = json.loads(ask(server, "/facts")[1])
        assert (facts["layers"], facts["moves"], facts["noise"], facts["truncates"]) == (0, 0, False, False)
        assert np.array_equal(shown(server, "seed=2&second=4&blend=1&label=1"), shown(server, "seed=4&label=1"))
        assert not np.array_equal(shown(server, "seed=2&second=4&blend=0.5"), shown(server, "seed=2"))
        assert ask(server, "/frame", "psi=0.5")[0] == 400
        assert ask(server, "/frame", "mix_to=1")[0] == 400
        file = tmp_path / "l.safetensors"
        file.write_bytes(ask(server, "/latents.safetensors", "seed=2&label=1")[1])
        values = load_latents(file).drawn_by(server.scene.trained)
        assert np.array_equal(to_uint8(values)[0].permute(1, 2, 0).numpy(), shown(server, "seed=2&label=1"))
    with pytest.raises(InputError, match="without a mapping network"):
        open_scene(open_trained(run, "cpu"), "d.safetensors")


@pytest.mark.parametrize(("channels", "resolution", "kind"), [(1, 256, "image/jpeg"), (3, 256, "image/jpeg"),
                                                               (4, 32, "image/png")])
def test_frames_of_all_kinds_of_images(channels: int, resolution: int, kind: str, tmp_path: Path):
    with served(make_run(tmp_path / "run", 0, channels, resolution,
                         [*TINY, "discriminator.channel_base=256"])) as server:
        _, content, headers = ask(server, "/frame", "seed=3")
        frame, exact = pixels(content), pixels(ask(server, "/picture.png", "seed=3")[1])
        assert headers["Content-Type"] == kind
        assert headers["Server-Timing"].startswith("draw;dur=")
        assert frame.shape == exact.shape == (resolution, resolution, channels)[:2 + (channels > 1)]
        assert np.abs(frame - exact).mean() < (3 if kind == "image/jpeg" else 1e-9)
        assert ask(server, "/frame", "label=0")[0] == 400


def test_a_generator_with_layers_and_without_noise(tmp_path: Path):
    with served(make_run(tmp_path / "run", 0, resolution=16, knobs=STYLEGAN3)) as server:
        facts = json.loads(ask(server, "/facts")[1])
        assert (facts["layers"] > 0, facts["moves"], facts["noise"]) == (True, 8, False)  # w has 8 numbers
        server.scene.trained.generator.synthesis.magnitudes.fill_(1)  # which are none where they are negative
        plain = shown(server, "seed=2")
        assert not np.array_equal(shown(server, "seed=2&moves=0,3"), plain)
        assert np.array_equal(shown(server, f"seed=9&second=2&mix_to={facts['layers']}"), plain)
        assert np.array_equal(shown(server, "seed=2&noise=seed&noise_seed=5"), plain)


def test_a_great_circle_keeps_the_length():
    a, b = torch.tensor([3.0, 0.0, 0.0]), torch.tensor([0.0, 3.0, 0.0])
    for share, angle in ((0.0, 0.0), (1 / 3, 30.0), (0.5, 45.0), (1.0, 90.0)):
        expected = 3 * torch.tensor([np.cos(np.radians(angle)), np.sin(np.radians(angle)), 0.0])
        assert torch.allclose(great_circle(a[None], b[None], share)[0], expected.float(), atol=1e-6)
    assert torch.allclose(great_circle(a[None], a[None], 0.3)[0], a)
    assert great_circle(a[None], -a[None], 0.3).isfinite().all()


@pytest.mark.parametrize("host", ["example.com", "127.0.0.1.example.com", "localhost.example.com:80", "0.0.0.0", "",
                                  "[::1]", "127.0.0.1:80:80", "127.0.0.1@example.com"])
def test_other_hosts_are_refused(server: ViewServer, host: str):
    for place in ("/", "/frame"):
        assert ask(server, place, host=host)[0] == 403


@pytest.mark.parametrize("place", ["/", "/facts", "/frame", "/page.js", "/picture.png", "/nothing"])
def test_who_has_no_token_is_refused(server: ViewServer, place: str):
    asked = server.newest.asked
    for token in ("", "x", server.token[:-1], server.token + "x", server.token.swapcase(), f"{server.token}&token=x"):
        status, content, headers = ask(server, place, token=token)
        assert status == 403
        assert server.token.encode() not in content
        assert headers["Access-Control-Allow-Origin"] is None
    assert server.newest.asked == asked


@pytest.mark.parametrize("query", [
    "seed=-1", "seed=4294967296", "seed=1.5", "seed=x", "seed=", "seed=" + "9" * 5000, "second=-1", "blend=1.1", "blend=nan",
    "psi=inf", "psi=-3", "label=3", "label=-1", "mix_from=-1", "mix_to=99", "moves=11", "moves=nan", "moves=1,,2",
    "moves=" + ",".join(["0"] * 11), "noise=loud", "noise_seed=-1", "other=1", "seed=1&seed=2", "seed",
    "&".join(["seed=1"] * 50), "seed=%00", "seed=1%0d%0aX:1",
])
def test_wrong_numbers_are_refused_in_a_line(server: ViewServer, query: str):
    for place in ("/frame", "/latents.safetensors"):
        status, content, headers = ask(server, place, query)
        assert status == 400
        assert content.count(b"\n") == 1
        assert len(content) < 300
        assert b"Traceback" not in content
        assert headers["X"] is None


def test_other_places_and_methods(server: ViewServer):
    assert ask(server, "/nothing")[0] == 404
    assert ask(server, "/../settings.py")[0] == 404
    assert ask(server, "/frame", method="POST")[0] == 501
    status, content, headers = ask(server, "/", host="LOCALHOST:9999")
    assert status == 200
    assert server.token.encode() in content
    assert headers["Content-Security-Policy"].startswith("default-src 'self';")
    assert headers["Access-Control-Allow-Origin"] is None
    assert headers["Referrer-Policy"] == "no-referrer"
    assert server.server_address[0] == "127.0.0.1"


def test_of_200_requests_at_once_the_newest_is_drawn(server: ViewServer):
    """While one picture is computed, 199 wait; those that are no longer the newest are answered before it is ready."""
    ready, newest = threading.Event(), server.newest
    before = newest.asked
    with ThreadPoolExecutor(202) as clients:
        try:
            busy = clients.submit(newest.run, lambda: ready.wait(SECONDS))
            wait_for(newest, before + 1)
            old = [clients.submit(ask, server, "/frame", f"seed={seed}") for seed in range(199)]
            wait_for(newest, before + 200)
            last = clients.submit(ask, server, "/frame", "seed=777")
            wait_for(newest, before + 201)
            assert [one.result(SECONDS)[:2] for one in old] == [(204, b"")] * 199
            assert not last.done()
        finally:
            ready.set()
        assert busy.result(SECONDS)
        assert np.array_equal(pixels(last.result(SECONDS)[1]), shown(server, "seed=777"))


def wait_for(newest, asked: int) -> None:
    tick = threading.Event()
    for _ in range(100 * SECONDS):
        if newest.asked >= asked:
            return
        tick.wait(0.01)
    pytest.fail(f"{newest.asked} requests have come, of {asked}")


def test_a_failure_of_the_computation_is_told_and_ends_nothing(server: ViewServer, monkeypatch):
    def fail(*_):
        raise RuntimeError("too little memory\nand more")

    with monkeypatch.context() as patched:
        patched.setattr(server.scene.trained.generator, "synthesize", fail)
        assert ask(server, "/frame")[:2] == (500, b"RuntimeError: too little memory\n")
    assert ask(server, "/frame")[0] == 200


def test_a_port_that_is_taken(server: ViewServer, run: Path, capsys):
    assert main(["view", str(run), "--no-browser", "--device", "cpu", "--port", str(server.server_port)]) == 2
    assert f"--port {server.server_port} cannot be used" in capsys.readouterr().err
