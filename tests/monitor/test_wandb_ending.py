"""W&B's processes and its server, broken in the ways that clusters break them: the end of the run waits for a bounded time.

Each bound here is far above what is needed, and far below the time-out that would hold without the code under test.
"""

import pytest
from wandb_reader import read_offline_run, read_offline_runs
from wandb_server import serve

pytestmark = pytest.mark.full


def test_service_killed_under_us(run):
    out = run("""
        w = tracker()
        w.log({"loss/g_main": 1.0}, 1)
        wait_for(w._jobs.empty)  # then the start is over, not only begun
        service()[0].kill()
        time.sleep(0.5)
        for nimg in range(2, 20):
            w.log({"loss/g_main": 1.0}, nimg)
            time.sleep(0.02)
        w.alert("title", "text")
        w.finish(0)
    """)
    assert out["seconds"] < 600
    assert len(out["warned"]) == 2
    assert "W&B failed in logging" in out["warned"][0]
    assert "W&B is off" in out["warned"][1]
    assert out["service"] is None  # child processes must not look for the dead service


@pytest.mark.parametrize("code", [0, 75])
def test_stopped_service_delays_neither_training_nor_the_end_and_does_not_outlive_it(run, code):
    well, early = "init_timeout=10.0, finish_timeout=2.0", "init_timeout=3000.0, finish_timeout=3000.0, early_timeout=1.0"
    out = run(f"""
        w = tracker({early if code else well})
        w.log({{"loss/g_main": 1.0}}, 0)
        wait_for(w._jobs.empty)
        wait_for(lambda: len(service()) > 1)  # it starts one that watches the machine
        processes = service()
        for process in processes:
            process.suspend()
        began_logging = time.monotonic()
        for nimg in range(2000):
            w.log({{f"metric/{{i}}": 1.0 for i in range(20)}}, nimg)
        assert time.monotonic() - began_logging < 600
        w.finish({code})
        assert gone(processes)
    """)
    assert out["seconds"] < 600
    assert out["whole"] < out["seconds"] + 600
    assert any("did not finish in time" in warning for warning in out["warned"])


def test_service_that_stops_while_it_starts(run):
    out = run("""
        w = tracker(init_timeout=3000.0, early_timeout=1.0)
        process = service()[0]
        process.suspend()
        w.finish(75)
        assert gone([process])
    """)
    assert out["seconds"] < 600
    assert out["whole"] < out["seconds"] + 600


def test_stop_signal_while_waiting_for_the_end(run):
    out = run("""
        w = tracker(finish_timeout=3000.0)
        wait_for(lambda: w._run)
        processes = service()
        for process in processes:
            process.suspend()
        signal.signal(signal.SIGALRM, signal.default_int_handler)
        signal.setitimer(signal.ITIMER_REAL, 1.0)
        try:
            w.finish(0)
        except KeyboardInterrupt:
            warned.append("interrupted")
        assert gone(processes)
    """)
    assert out["seconds"] < 600
    assert out["warned"][-1] == "interrupted"


def test_a_service_that_others_use_is_left_alone(run):
    run("""
        import wandb
        theirs = wandb.init(mode="offline", dir="..", settings=wandb.Settings(silent=True))
        processes = service()
        w = tracker()
        wait_for(lambda: w._run)
        w._jobs.put(("logging", lambda: time.sleep(10_000)))  # W&B hangs
        w.early_timeout = 0.5
        w.finish(1)
        assert processes[0].is_running()
        theirs.finish()
    """)


def test_server_that_never_answers(run, tmp_path):
    with serve() as server:
        server.answering.clear()
        out = run("""
            w = tracker("online", init_timeout=1.0, finish_timeout=30.0)
            w.log({"loss/g_main": 1.0}, 1)
            w.finish(0)
        """, **server.environment)
    (warning,) = out["warned"]
    assert "out of reach" in warning
    assert read_offline_runs(tmp_path)[0].values("loss/g_main") == {1: 1.0}


@pytest.mark.parametrize("code", [0, 75])
def test_server_that_stops_to_answer(run, tmp_path, code):
    with serve() as server:
        out = run(f"""
            w = tracker("online", finish_timeout=20.0 if {code} == 0 else 3000.0, early_timeout=20.0)  # W&B writes every 2 s
            w._start_deadline = 0.0
            w.log({{"loss/g_main": 1.0}}, 1)
            wait_for(lambda: said)
            processes = service()
            urllib.request.urlopen("{server.url}/hang")
            w.log({{"loss/g_main": 2.0}}, 2)
            w.finish({code})
            assert gone(processes)
        """, **server.environment)
    assert out["seconds"] < 600
    assert len(out["warned"]) == 1
    assert "wandb sync --include-online" in out["warned"][0]
    (path,) = tmp_path.glob("wandb/run-*/*.wandb")
    assert read_offline_run(path).values("loss/g_main") == {1: 1.0, 2: 2.0}
