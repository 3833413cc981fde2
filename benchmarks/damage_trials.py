"""The trials of damage.py: each is drawn at random, and returns what it did and its outcome.

They share a small run of the embedded digits with every kind of pass, in several shards.
"""

import contextlib
import io
import os
import random
import shutil
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable
from functools import cache
from multiprocessing import get_context
from pathlib import Path

from hostile_files import KINDS as HOSTILE
from hostile_files import forge

import gradscore.engine
import gradscore.extraction
import gradscore.plots  # noqa: F401  what the children need is loaded before they fork
from gradscore.cli import main as command_line
from gradscore.errors import GradScoreError
from gradscore.recorded import extract
from gradscore.run import RunStore, check

FAILURES = ("different", "executed", "outside", "hung", "traceback", "lost")
HANGS_AFTER_S, WAITS_AT_MOST_S = 60, 600
"""Of the processor's time, and of the clock's: what runs beside may take the processor away."""
LIMITS = (
    (signal.SIGPROF, signal.ITIMER_PROF, HANGS_AFTER_S),
    (signal.SIGALRM, signal.ITIMER_REAL, WAITS_AT_MOST_S),
)
PIECE = 2000
"""Bytes of the systematic trials that make one trial."""
SETS = {"a": ("id", "digits:train"), "b": ("ood", "digits:noise")}
QUESTION = (
    *("--method", "gradnorm", "--layers", "last", "--layers", "block4", "-p", "1", "-p", "2"),
    *("--method", "odin", "--epsilon", "0.1", "--method", "mahalanobis"),
    *("--method", "mahalanobis_stages", "--fit", "a"),
)
"""It reads every pass of the run, replays a part of the model, and reads what was learned."""
OUTPUTS = {
    **dict.fromkeys(("score", "evaluate", "predict"), ("-o", "out.csv")),
    **{"ablate": ("-o", "out.md"), "plot": ("--plot", "o.png", "o-scores.png")},
    **{"choose": ("-o", "out.json"), "calibrate": ("-o", "out.safetensors")},
    **{"report": ("-o", "out.html"), "export": ("-o", "out.onnx")},
}
"""Of each command that may be killed: the option, and the files that it writes."""


def record(run: Path, limit: int = 24) -> None:
    """Extract two sets in small shards, with every kind of pass."""
    how = {"limit": limit, "batch_size": 8, "shard_rows": 8}
    extract("digits", SETS, run, layers="last", record="odin", epsilon=(0.1,), **how)
    extract("digits", SETS, run, layers="last", record="mahalanobis", fit="a", **how)
    extract("digits", SETS, run, layers="block3.*,block4.*", keep=("block4",), **how)


def ask(run: Path, output: Path) -> tuple[str, ...]:
    """Return the command that reads everything."""
    return ("score", "--run", str(run), *QUESTION, "-o", str(output), "-q")


def call(*arguments: str) -> tuple[int | str, str]:
    """Run a command in this process; return its exit code, ``hung`` or ``traceback``, and text."""

    def late(number: int, frame: object) -> None:
        raise TimeoutError

    printed = io.StringIO()
    before, sys.argv = sys.argv, ["gradscore", *arguments]
    for sign, timer, seconds in LIMITS:
        signal.signal(sign, late)
        signal.setitimer(timer, seconds)
    try:
        with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
            command_line()
    except SystemExit as stop:
        return stop.code or 0, printed.getvalue()
    except TimeoutError:
        return "hung", printed.getvalue()
    except BaseException as error:
        return "traceback", f"{type(error).__name__}: {error}"
    finally:
        for _, timer, _ in LIMITS:
            signal.setitimer(timer, 0)
        sys.argv = before
    return 0, printed.getvalue()


def end(*arguments: str) -> None:
    """Run a command to its end in a process of its own, which ends with its exit code."""
    code, _ = call(*arguments)
    sys.exit(code if isinstance(code, int) else 3)


class Trials:
    """What every trial starts from: a sound run, its scores, and another run."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.sound, self.other = folder, folder / "sound", folder / "other"
        record(self.sound)
        record(self.other, limit=16)
        self.scores = folder / "scores.csv"
        for run in (self.sound, self.other):
            code, told = call(*ask(run, self.scores))  # also stores what methods learn
            assert code == 0, told
        call(*ask(self.sound, self.scores))
        self.far, detector = folder / "far", folder / "detector.safetensors"
        threshold = ("--id", "a", "--method", "gradnorm", "--tpr", "0.8")
        calibrate = ("calibrate", "--run", str(self.sound), *threshold, "--guarantee", "marginal")
        call(*calibrate, "-o", str(detector), "-q")
        given = ("--detector", str(detector))
        asked = {
            "score": ask(self.sound, folder / "out.csv")[:-3],
            "evaluate": ("evaluate", "--run", str(self.sound)),
            "ablate": ("ablate", "p", "--run", str(self.sound)),
            "plot": ("ablate", "kl", "--run", str(self.sound)),
            "choose": ("choose", "--run", str(self.far)),
            "calibrate": calibrate,
            "predict": ("predict", "digits:noise", *given),
            "report": ("report", "--run", str(self.sound), *given),
            "export": ("export", *given),
        }
        self.commands = {}
        for name, words in asked.items():
            option, *outputs = OUTPUTS[name]
            self.commands[name] = (*words, option, str(folder / outputs[0]), "-q"), outputs
        self.expected = cache(self._undisturbed)
        began = time.perf_counter()
        self._child(record, folder / "timed")
        self.seconds = time.perf_counter() - began
        self.files = sorted(
            path.relative_to(self.sound).as_posix()
            for path in self.sound.rglob("*")
            if path.is_file() and path.name != ".lock"
        )

    def _undisturbed(self, name: str) -> tuple[float, list[bytes]]:
        """Return how long a command takes by itself, and what it writes."""
        if name == "choose":
            extract("digits", SETS, self.far, layers="last", record="surrogates", limit=200)
        words, outputs = self.commands[name]
        began = time.perf_counter()
        assert self._child(end, *words) == 0, words
        seconds = time.perf_counter() - began
        return seconds, [(self.folder / one).read_bytes() for one in outputs]

    def _child(self, work: Callable, *arguments: object, killed_after: float = 0) -> int:
        child = get_context("fork").Process(target=work, args=arguments)
        child.start()
        if killed_after:
            time.sleep(killed_after)
            os.kill(child.pid, signal.SIGKILL)
        child.join()
        return child.exitcode

    def kill(self, rng: random.Random, number: int) -> tuple[str, str]:
        """Kill an extraction, or a command that reads, and do it again."""
        name = ("extract", "extract", *self.commands)[number % (2 + len(self.commands))]
        if name == "extract":
            return self._kill_extraction(rng)
        seconds, expected = self.expected(name)
        words, outputs = self.commands[name]
        places = [self.folder / one for one in outputs]
        for place in places:
            place.unlink(missing_ok=True)
        delay = rng.uniform(0, seconds)
        self._child(end, *words, killed_after=delay)
        there = [place.read_bytes() if place.exists() else None for place in places]
        half = any(one not in (None, whole) for one, whole in zip(there, expected, strict=True))
        code = self._child(end, *words)
        again = [place.read_bytes() for place in places] == expected
        left = [*self.folder.rglob("*.part"), *check(self.sound)]
        fine = not half and code == 0 and again and not left
        return f"{name} after {delay:.2f} s", "same" if fine else "lost"

    def _kill_extraction(self, rng: random.Random) -> tuple[str, str]:
        run = self.folder / "killed"
        shutil.rmtree(run, ignore_errors=True)
        delays = [round(rng.uniform(0, self.seconds), 2) for _ in range(rng.choice((1, 1, 2)))]
        sound = True
        for delay in delays:
            self._child(record, run, killed_after=delay)
            sound = sound and not ((run / "run.json").exists() and check(run))
        ended = self._child(record, run)
        code, _ = call(*ask(run, self.folder / "k.csv"))
        same = code == 0 and (self.folder / "k.csv").read_bytes() == self.scores.read_bytes()
        fine = sound and ended == 0 and same and not check(run) and not list(run.rglob("*.part"))
        return f"extract after {delays} s", "same" if fine else "lost"

    def judged(self, run: Path) -> str:
        """Return what the commands make of a damaged run."""
        output = self.folder / "judged.csv"
        output.unlink(missing_ok=True)
        code, told = call(*ask(run, output))
        checked, more = call("run", "check", str(run))
        worst = next((one for one in (code, checked) if isinstance(one, str)), "")
        if code and not worst:
            if sum(line.startswith("Error: ") for line in told.splitlines()) == 1:
                return "refused"
            worst = "traceback"
        if worst:
            print(worst, told, more, file=sys.stderr)
            return worst
        return "same" if output.read_bytes() == self.scores.read_bytes() else "different"

    def flip(self, rng: random.Random, number: int) -> tuple[str, str]:
        """Flip a bit of a file, every byte of the run as likely."""
        sizes = [(self.sound / file).stat().st_size for file in self.files]
        (file,) = rng.choices(self.files, sizes)
        place, bit = rng.randrange((self.sound / file).stat().st_size), rng.randrange(8)
        return f"{file}: bit {bit} of byte {place}", self._flipped(file, place, bit, self.judged)

    def _flipped(self, file: str, place: int, bit: int, judge: Callable[[Path], str]) -> str:
        run = self.folder / "damaged"
        if not run.exists():
            shutil.copytree(self.sound, run)
        content = (self.sound / file).read_bytes()
        changed = bytearray(content)
        changed[place] ^= 1 << bit
        (run / file).write_bytes(changed)
        found = judge(run)
        (run / file).write_bytes(content)
        return found

    def shards(self) -> list[str]:
        """Return the two shards whose every byte is damaged: of the base, and of norms."""
        return [
            next(file for file in self.files if file.startswith(start))
            for start in ("a/base/", "b/norms-")
        ]

    def command(self, rng: random.Random, number: int) -> tuple[str, str]:
        """Flip the bit of a byte that the systematic trials flip too, through the command."""
        file = self.shards()[number % 2]
        place = rng.randrange((self.sound / file).stat().st_size)
        told = f"{file}: bit {place % 8} of byte {place}"
        return told, self._flipped(file, place, place % 8, self.judged)

    def systematic(self, rng: random.Random, number: int) -> tuple[str, str]:
        """Flip one bit of each byte of a piece of a shard, and read it as the commands do."""
        pieces = self.pieces()
        file, start, stop = pieces[number]
        set_name, pass_name, _ = file.split("/")
        norms = [] if pass_name == "base" else [pass_name]

        def read(run: Path) -> str:
            try:
                blocks = list(store.blocks(set_name, norms=norms))
            except GradScoreError:
                return "refused"
            except Exception:
                return "traceback"
            texts = [value.tolist() for block in blocks for value in block.values()]
            return "same" if texts == sound else "different"

        self._flipped(file, 0, 0, lambda run: "")
        store = RunStore(self.folder / "damaged")
        sound = [v.tolist() for b in store.blocks(set_name, norms=norms) for v in b.values()]
        found = Counter(self._flipped(file, at, at % 8, read) for at in range(start, stop))
        worst = next((one for one in FAILURES if found[one]), "refused")
        return f"{file}: bytes {start} to {stop}: {dict(found)}", worst

    def pieces(self) -> list[tuple[str, int, int]]:
        """Return the pieces of both shards, a trial each."""
        sizes = [(file, (self.sound / file).stat().st_size) for file in self.shards()]
        return [
            (file, start, min(start + PIECE, size))
            for file, size in sizes
            for start in range(0, size, PIECE)
        ]

    def change(self, rng: random.Random, number: int) -> tuple[str, str]:
        """Change a whole file."""
        run = self.folder / "changed"
        shutil.rmtree(run, ignore_errors=True)
        shutil.copytree(self.sound, run)
        kinds = ("exchange", "copy", "truncate", "delete", "foreign", "append", "empty", "link")
        kind, file, partner = kinds[number % len(kinds)], *rng.sample(self.files, 2)
        path, content = run / file, (run / file).read_bytes()
        foreign = self.other / file
        if kind == "exchange":
            path.write_bytes((run / partner).read_bytes())
            (run / partner).write_bytes(content)
        elif kind in ("delete", "link"):
            path.unlink()
        elif kind == "foreign" and foreign.exists():
            path.write_bytes(foreign.read_bytes())
        else:
            kept = content[: rng.randrange(len(content))]
            extra = content + rng.randbytes(rng.randrange(1, 99))
            copied = (run / partner).read_bytes()
            path.write_bytes({"truncate": kept, "append": extra, "copy": copied}.get(kind, b""))
        if kind == "link":
            path.symlink_to(rng.choice([self.sound / file, foreign, "/etc/passwd", "/dev/zero"]))
        return f"{kind}: {file}, {partner}", self.judged(run)

    def hostile(self, rng: random.Random, number: int) -> tuple[str, str]:
        """Give the command a file that was made to harm."""
        return forge(self.folder, list(HOSTILE)[number % len(HOSTILE)], rng, call)
