"""Sounds inside the page: WAV files of a run in data URIs, within a number of bytes."""

from __future__ import annotations

import base64
from pathlib import Path

from stylegan_dist.files import open_regular
from stylegan_dist.kinds.audio import read_sound
from stylegan_dist.report.reading import SAMPLES_NAME, RunFiles
from stylegan_dist.report.thinning import evenly
from stylegan_dist.report.values import kimg

MOST_SOUNDS = 8          # of a run
MOST_BYTES = 1 << 24     # of a file
_HEAD = "data:audio/wav;base64,"


def encode_sounds(run: RunFiles, room: int) -> dict[str, str]:
    """The newest samples of a run, real ones, those of the best checkpoint, and others evenly spaced: what they are -> URI.

    What is damaged, and what does not fit, becomes a note.

    Args:
        room: characters that all together may take.
    """
    seen = list(run.sounds)
    wanted = {f"Samples at {kimg(seen[-1])} kimg": run.sounds[seen[-1]],
              "Real samples, for comparison": run.path / SAMPLES_NAME / "reals.wav"}
    if run.best:
        best = min(seen, key=lambda nimg: abs(nimg - run.best.nimg))  # type: ignore[union-attr]
        wanted.setdefault(f"Samples at {kimg(best)} kimg", run.sounds[best])
    for at in reversed(evenly(len(seen), MOST_SOUNDS - len(wanted) + 1)):
        wanted.setdefault(f"Samples at {kimg(seen[at])} kimg", run.sounds[seen[at]])
    found: dict[str, str] = {}
    for what, path in wanted.items():
        try:
            uri = _uri(path)
        except FileNotFoundError:
            continue
        except (OSError, ValueError) as error:
            run.notes.append(f"{SAMPLES_NAME}/{path.name} cannot be heard: {error}")
            continue
        if len(uri) > room:
            run.notes.append(f"sounds: {len(found)} of {len(wanted)} fit in here; all are in {SAMPLES_NAME}/*.wav")
            break
        found[what] = uri
        room -= len(uri)
    return found


def _uri(path: Path) -> str:
    """Raises ValueError where it is no WAV file."""
    with open_regular(path) as file:
        content = file.read(MOST_BYTES + 1)
    if len(content) > MOST_BYTES:
        raise ValueError(f"it has more than {MOST_BYTES >> 20} MiB")
    read_sound(content, MOST_BYTES)
    return _HEAD + base64.b64encode(content).decode()
