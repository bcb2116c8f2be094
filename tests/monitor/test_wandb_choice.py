"""What the user has told W&B, in the ways in which W&B is told: its commands, its files, its environment variables."""

import os
import subprocess
import sys

import pytest
from wandb_reader import read_offline_runs
from wandb_server import KEY, serve

from stylegan_dist.monitor.wandb_choice import choose_mode

HOST = "wandb.example:8080"


@pytest.fixture
def home(tmp_path, monkeypatch):
    """The home and working folder of somebody who has told W&B nothing, in a process that has not asked W&B yet."""
    wandb = pytest.importorskip("wandb")
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("NETRC", raising=False)
    monkeypatch.chdir(tmp_path)
    wandb.teardown()
    yield tmp_path
    wandb.teardown()


def wandb_command(*words, **environment):
    """Run `wandb WORDS`, as the user does."""
    done = subprocess.run([sys.executable, "-m", "wandb", *words], env={**os.environ, **environment}, timeout=120, check=False,
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.full
def test_login_command(home):
    with serve() as server:
        wandb_command("login", "--host", server.url, KEY)
        asked = len(server.bodies)
        mode, reason = choose_mode("auto")
        assert len(server.bodies) == asked  # the choice itself needs no network
    assert mode == "online"
    assert server.url in reason
    assert "netrc" in reason
    assert KEY not in reason


@pytest.mark.full
def test_login_for_the_default_server(home):
    import wandb
    from wandb.sdk.lib.wbauth import write_netrc_auth  # what `wandb login` calls once the server has taken the key

    write_netrc_auth(host=wandb.Settings().base_url, api_key=KEY)
    assert choose_mode("auto")[0] == "online"


@pytest.mark.parametrize(("files", "variables", "expected"), [
    ({}, {}, "offline"),
    ({}, {"WANDB_API_KEY": KEY}, "online"),
    ({}, {"WANDB_API_KEY": ""}, "offline"),
    ({".netrc": HOST}, {}, "offline"),                                        # the key of another server
    ({".netrc": HOST}, {"WANDB_BASE_URL": f"https://{HOST}"}, "online"),
    ({"_netrc": HOST}, {"WANDB_BASE_URL": f"https://{HOST}"}, "online"),
    ({"elsewhere": HOST}, {"WANDB_BASE_URL": f"https://{HOST}", "NETRC": "elsewhere"}, "online"),
    ({".netrc": HOST}, {"WANDB_BASE_URL": f"https://{HOST}", "NETRC": "elsewhere"}, "offline"),
    ({".netrc": HOST, ".config/wandb/settings": f"base_url = https://{HOST}"}, {}, "online"),
    ({".netrc": HOST, "conf/settings": f"base_url = https://{HOST}"}, {"WANDB_CONFIG_DIR": "conf"}, "online"),
    ({".config/wandb/settings": f"api_key = {KEY}"}, {}, "online"),
    ({"token": "x"}, {"WANDB_IDENTITY_TOKEN_FILE": "token"}, "online"),
    ({".netrc": "damaged"}, {}, "offline"),
])
def test_where_a_login_is_found(home, monkeypatch, files, variables, expected):
    for name, text in files.items():
        path = home / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"[default]\n{text}\n" if name.endswith("settings") else
                        f"machine {text}\n  login user\n  password {KEY}\n" if text == HOST else text)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    mode, reason = choose_mode("auto")
    assert mode == expected, reason
    assert KEY not in reason


@pytest.mark.parametrize(("configured", "variables", "stored", "expected", "named"), [
    ("auto", {}, None, "online", "WANDB_API_KEY"),
    ("auto", {"WANDB_MODE": "disabled"}, None, "disabled", "WANDB_MODE=disabled"),
    ("auto", {"WANDB_MODE": "offline"}, None, "offline", "WANDB_MODE=offline"),
    ("auto", {"WANDB_MODE": "dryrun"}, None, "offline", "WANDB_MODE=dryrun"),
    ("auto", {"WANDB_MODE": "shared"}, None, "online", "WANDB_API_KEY"),
    ("auto", {"WANDB_DISABLED": "true"}, None, "disabled", "WANDB_DISABLED"),
    ("auto", {"WANDB_DISABLED": "1", "WANDB_MODE": "online"}, None, "disabled", "WANDB_DISABLED"),
    ("auto", {"WANDB_DISABLED": "false"}, None, "online", "WANDB_API_KEY"),
    ("online", {"WANDB_MODE": "disabled"}, None, "disabled", "before monitor.wandb=online"),
    ("online", {"WANDB_MODE": "offline"}, None, "offline", "before monitor.wandb=online"),
    ("offline", {"WANDB_MODE": "online"}, None, "offline", "monitor.wandb=offline"),
    ("disabled", {"WANDB_MODE": "online"}, None, "disabled", "monitor.wandb=disabled"),
    ("auto", {}, "mode = offline", "offline", "settings"),
    ("online", {}, "mode = disabled", "disabled", "settings"),
    ("auto", {"WANDB_MODE": "online"}, "mode = disabled", "online", "WANDB_API_KEY"),      # as in W&B itself
    ("auto", {}, "mode = offline\nbase_url = none", "offline", "settings"),                # W&B leaves out all of this file
])
def test_the_most_private_wish_holds(home, monkeypatch, configured, variables, stored, expected, named):
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    if stored:
        (home / "wandb").mkdir()
        (home / "wandb" / "settings").write_text(f"[default]\n{stored}\n")
    mode, reason = choose_mode(configured)
    assert mode == expected
    assert named in reason
    assert KEY not in reason


@pytest.mark.full
@pytest.mark.parametrize("command", ["offline", "disabled"])
def test_opt_out_commands(home, monkeypatch, command):
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    wandb_command(command)
    assert choose_mode("auto")[0] == command


def test_nothing_leaves_the_machine_after_an_opt_out(run, tmp_path):
    with serve() as server:
        proxies = dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), server.url)
        out = run("""
            w = tracker("auto")
            w.log({"loss/g_main": 1.0}, 1)
            w.finish(0)
            assert os.environ["WANDB_ERROR_REPORTING"] == "false"  # W&B's reports about itself, which it sends at the end
        """, **{**server.environment, **proxies, "WANDB_MODE": "offline"})
    assert server.bodies == []
    assert out["warned"] == []
    assert "WANDB_MODE=offline" in out["said"][0]
    assert len(read_offline_runs(tmp_path)) == 1


def test_disabled_by_the_environment_does_not_even_import_wandb(run, tmp_path):
    out = run("""
        w = tracker("auto")
        w.log({"loss/g_main": 1.0}, 1)
        w.finish(0)
    """, WANDB_MODE="disabled")
    assert not out["wandb"]
    assert out["warned"] == []
    assert "WANDB_MODE=disabled" in out["said"][0]
    assert not (tmp_path / "wandb").exists()


@pytest.mark.full
@pytest.mark.parametrize("variables", [{"WANDB_MODE": "ofline"}, {"WANDB_API_KEY": f"{KEY} "}, {"WANDB_BASE_URL": "none"}])
def test_variable_that_wandb_refuses_is_one_warning(run, tmp_path, variables):
    out = run("""
        w = tracker("auto")
        w.finish(0)
    """, **variables)
    (warning,) = out["warned"]
    assert "W&B is off" in warning
    assert KEY not in warning


@pytest.mark.full
def test_names_of_the_environment(run, tmp_path):
    out = run("""
        w = tracker("offline", project="", name="")
        w.finish(0)
    """, WANDB_PROJECT="their-project", WANDB_NAME="their-name", WANDB_RUN_ID="their-id", WANDB_TAGS="a,b", WANDB_NOTES="note",
        WANDB_RUN_GROUP="group", WANDB_DIR=str(tmp_path / "home"), WANDB_RESUME="must", WANDB_SERVICE="3-1-tcp-127.0.0.1-9",
        WANDB_SILENT="false", WANDB_CONSOLE="wrap")
    assert out["warned"] == []
    (segment,) = read_offline_runs(tmp_path)  # in the folder of the run
    assert (segment.project, segment.name, segment.run_id) == ("their-project", "their-name", "their-id")
    assert (segment.tags, segment.notes, segment.group) == (["a", "b"], "note", "group")
    out = run("""
        w = tracker("offline", name="")
        w.finish(0)
    """, WANDB_RUN_ID="another", WANDB_PROJECT="another")
    assert any("WANDB_RUN_ID" in line for line in out["said"])
    later = read_offline_runs(tmp_path)[-1]
    assert (later.run_id, later.project, later.name) == ("their-id", "project", tmp_path.name)
