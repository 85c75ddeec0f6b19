#!/usr/bin/env python3
"""Fetches libtorch with pip and unpacks just what building and running the worker needs.

usage: setup.py [cpu|cuda] [DEST]

cpu   540 MB to fetch, 490 MB on disk (the default)
cuda  2.5 GB to fetch, 3.7 GB on disk; for NVIDIA cards with a driver of version 580 or newer

DEST is third_party/libtorch in the repository; what is there is kept if it is right, and replaced once the new one is
complete. Every file is pinned by its hash. With LIBTORCH set (and no DEST given) nothing is fetched: that one is used.
Needs Python 3.8 or newer with pip, and nothing else; pip's own settings (index, proxy, cache) hold.
"""

import fcntl
import hashlib
import os
import pathlib
import platform
import shutil
import subprocess
import sys
import tempfile
import zipfile

HERE = pathlib.Path(__file__).resolve().parent
DEFAULT_DEST = HERE.parents[1] / "third_party" / "libtorch"
# torch-sys compares this file with the version that it binds.
BUILD_VERSION = "2.13.0+cu130\n"
LIBRARIES = {"libc10.so", "libtorch_cpu.so", "libtorch.so", "libgomp.so.1"}
CUDA_LIBRARIES = {
    "libtorch_cuda.so",
    "libtorch_cuda_linalg.so",
    "libc10_cuda.so",
    "libtorch_nvshmem.so",
    "libcaffe2_nvrtc.so",
}
NEEDED_BY_CPU = {"libcudart.so.13", "libcupti.so.13"}
# The wheels' tags; pip takes the first that fits. The Python version only picks the wheel: no Python code is kept.
PLATFORMS = ["2_28", "2_27", "2_25", "2_18", "2_17", "2014", "2010", "2_12"]
ROOM = {"cpu": 1.2e9, "cuda": 6.5e9}


def fail(message):
    sys.exit(f"libtorch: {message}")


def main():
    arguments = sys.argv[1:]
    if "-h" in arguments or "--help" in arguments:
        return print(__doc__.strip())
    flavour = arguments[0] if arguments else "cpu"
    if flavour not in ROOM or len(arguments) > 2:
        fail("usage: setup.py [cpu|cuda] [DEST]")
    if os.environ.get("LIBTORCH") and len(arguments) < 2:
        return print(f"libtorch: LIBTORCH is set, so {os.environ['LIBTORCH']} is used and nothing is fetched")
    dest = pathlib.Path(arguments[1]).absolute() if len(arguments) == 2 else DEFAULT_DEST
    dest.parent.mkdir(parents=True, exist_ok=True)
    # Two builds at once fetch once.
    with open(dest.with_name(dest.name + ".lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if is_there(dest, flavour):
            return print(f"libtorch: {dest} is there")
        check_machine(dest, flavour)
        for left_behind in dest.parent.glob(".libtorch-*"):  # by one that was killed
            shutil.rmtree(left_behind, ignore_errors=True)
        install(dest, flavour)
    print(f"libtorch: {dest} is ready ({flavour})")


def stamp(flavour):
    files = ["cpu.txt"] + (["cuda.txt"] if flavour == "cuda" else [])
    pins = hashlib.sha256(b"".join((HERE / name).read_bytes() for name in files)).hexdigest()
    return f"{flavour} {BUILD_VERSION.strip()} {pins}\n"


def is_there(dest, flavour):
    try:
        found = (dest / "STAMP").read_text()
    except OSError:
        return False
    # The CUDA flavour does all that the other one does.
    return found in (stamp(flavour), stamp("cuda"))


def check_machine(dest, flavour):
    if sys.version_info < (3, 8):
        fail(f"Python 3.8 or newer is needed, this is {platform.python_version()}")
    if (platform.system(), platform.machine()) != ("Linux", "x86_64"):
        fail(f"there are wheels for Linux on x86_64 only; on this machine, set LIBTORCH to a libtorch {BUILD_VERSION.strip()}")
    if subprocess.run([sys.executable, "-m", "pip", "--version"], capture_output=True).returncode != 0:
        fail("pip is missing; on Debian and Ubuntu: apt-get install python3-pip")
    free = shutil.disk_usage(dest.parent).free
    if free < ROOM[flavour]:
        fail(f"{ROOM[flavour] / 1e9:.1f} GB of disk are needed in {dest.parent}, {free / 1e9:.1f} GB are free")


def install(dest, flavour):
    # Beside the destination, so that moving it there is a rename. Gone on every way out.
    with tempfile.TemporaryDirectory(prefix=".libtorch-", dir=dest.parent) as scratch:
        wheels, new = pathlib.Path(scratch) / "wheels", pathlib.Path(scratch) / "new"
        print(f"libtorch: fetching {'540 MB' if flavour == 'cpu' else '2.5 GB'} with pip …", flush=True)
        download(wheels, flavour)
        print("libtorch: unpacking …", flush=True)
        for wheel in sorted(wheels.iterdir()):
            unpack(wheel, new, flavour)
            wheel.unlink()
        (new / "torch" / "build-version").write_text(BUILD_VERSION)
        (new / "STAMP").write_text(stamp(flavour))
        if dest.exists():
            dest.rename(pathlib.Path(scratch) / "old")
        new.rename(dest)


def download(wheels, flavour):
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    command += ["--no-cache-dir", "--only-binary=:all:", "--require-hashes", "--dest", str(wheels)]
    command += ["--implementation", "cp", "--python-version", "3.11", "--abi", "cp311", "--abi", "none"]
    for tag in PLATFORMS:
        separator = "_" if "_" in tag else ""
        command += ["--platform", f"manylinux{separator}{tag}_x86_64"]
    for name in ["cpu.txt"] + (["cuda.txt"] if flavour == "cuda" else []):
        command += ["--requirement", str(HERE / name)]
    if subprocess.run(command).returncode != 0:
        fail(
            "pip could not fetch it; its message is above. Check the network and pip's index (PIP_INDEX_URL, pip.conf), "
            "or set LIBTORCH to a libtorch that is there already."
        )


def unpack(wheel, new, flavour):
    with zipfile.ZipFile(wheel) as archive:
        for member in archive.infolist():
            if is_needed(member.filename, flavour):
                path = archive.extract(member, new)
                if ".so" in os.path.basename(path):
                    os.chmod(path, 0o755)


def is_needed(name, flavour):
    base = os.path.basename(name)
    if not base:
        return False
    if name.startswith("torch/include/") or name == "torch/version.py":
        return True
    if name.startswith("torch/lib/"):
        return base in LIBRARIES or (flavour == "cuda" and base in CUDA_LIBRARIES)
    if name.startswith("nvidia/") and "/lib/" in name and ".so" in base:
        return flavour == "cuda" or base in NEEDED_BY_CPU
    # The licences go with the libraries.
    return ".dist-info/" in name and any(word in name for word in ("LICENSE", "License", "NOTICE", "licenses/"))


if __name__ == "__main__":
    main()
