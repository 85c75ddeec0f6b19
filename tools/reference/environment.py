"""The Python that has the reference: torch, diffusers and transformers, as requirements.txt pins them.

Made on the first use below third_party/reference (1.9 GB, 600 MB to fetch) and kept; with ATELIER_REFERENCE set to a virtual
environment that has it all, that one is used as it is. Needs Python 3.10 or newer with venv, gcc and readelf.
It is a tool of whoever makes fixtures, measures or trains, never of Atelier.
"""

import fcntl
import hashlib
import os
import pathlib
import shutil
import subprocess
import sys

import stubs

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parents[1]
DEFAULT = ROOT / "third_party" / "reference"


def fail(message: str) -> None:
    sys.exit(f"reference: {message}")


def run(program: pathlib.Path, arguments: list[str]) -> None:
    """Goes on as `program` in the reference's Python; does not come back."""
    folder = pathlib.Path(os.environ["ATELIER_REFERENCE"]) if os.environ.get("ATELIER_REFERENCE") else install()
    python = folder / "bin" / "python"
    if not python.exists():
        fail(f"{python} is missing: ATELIER_REFERENCE must name a virtual environment, or nothing")
    os.execve(python, [str(python), str(program), *arguments], settings(folder))


def settings(folder: pathlib.Path) -> dict[str, str]:
    """The environment's variables: the stand-ins for CUDA, our modules, and nothing from the network."""
    values = dict(os.environ)
    libraries = folder / "stubs"
    if not libraries.is_dir():
        stubs.make(torch_lib(folder), libraries)
    values["LD_LIBRARY_PATH"] = os.pathsep.join(filter(None, [str(libraries), values.get("LD_LIBRARY_PATH")]))
    values["PYTHONPATH"] = os.pathsep.join(filter(None, [str(HERE), values.get("PYTHONPATH")]))
    return values | {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error", "PYTHONDONTWRITEBYTECODE": "1", "PYTHONHASHSEED": "0"}


def torch_lib(folder: pathlib.Path) -> pathlib.Path:
    found = sorted(folder.glob("lib/python3*/site-packages/torch/lib"))
    if not found:
        fail(f"{folder} has no torch")
    return found[0]


def install() -> pathlib.Path:
    if sys.version_info < (3, 10):
        fail(f"Python 3.10 or newer is needed, this is {sys.version.split()[0]}")
    for program in ["gcc", "readelf"]:
        if not shutil.which(program):
            fail(f"{program} is missing; on Debian and Ubuntu: apt-get install gcc binutils")
    requirements = HERE / "requirements.txt"
    stamp = hashlib.sha256(requirements.read_bytes() + pathlib.Path(stubs.__file__).read_bytes()).hexdigest()
    DEFAULT.parent.mkdir(parents=True, exist_ok=True)
    with open(DEFAULT.with_name("reference.lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # two at once install once
        mark = DEFAULT / "STAMP"
        if not (mark.exists() and mark.read_text() == stamp):
            print("reference: installing torch, diffusers and transformers; 600 MB to fetch …", file=sys.stderr, flush=True)
            shutil.rmtree(DEFAULT, ignore_errors=True)
            check([sys.executable, "-m", "venv", DEFAULT], "venv failed; on Debian and Ubuntu: apt-get install python3-venv")
            pip = [DEFAULT / "bin" / "python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
            check([*pip, "--no-cache-dir", "--no-deps", "--requirement", requirements], "pip failed; its message is above")
            stubs.make(torch_lib(DEFAULT), DEFAULT / "stubs")
            mark.write_text(stamp)
    return DEFAULT


def check(command: list, message: str) -> None:
    if subprocess.run(command).returncode != 0:
        fail(message)
