"""Stand-ins for the CUDA libraries that torch's wheel is linked to.

The wheel on the index is built for CUDA, and its libraries do not load without CUDA's, which are 2.5 GB. On a CPU not one
of their functions does anything, so empty ones of the same names and versions serve: fifteen files, 300 KB.
Needs gcc and readelf.
"""

import collections
import pathlib
import re
import subprocess

# What a C library brings; anything else that is missing beside torch's own libraries is CUDA's.
SYSTEM = re.compile(r"(lib(c|m|dl|pthread|rt|gcc_s|stdc\+\+|gomp)|ld-linux.*)[.-]")
# Symbols without a version do not say whose they are; their prefixes do. The first that fits is taken.
OWNERS = [
    ("cudnn", "libcudnn"),
    ("nccl", "libnccl"),
    ("cublasLt", "libcublasLt"),
    ("cublas", "libcublas"),
    ("cusparseLt", "libcusparseLt"),
    ("cusparse", "libcusparse"),
    ("cufft", "libcufft"),
    ("curand", "libcurand"),
    ("cuFile", "libcufile"),
    ("cusolver", "libcusolver"),
    ("cupti", "libcupti"),
    ("nvrtc", "libnvrtc"),
    ("nvshmem", "libnvshmem_host"),
    ("cuda", "libcudart"),
    ("__cuda", "libcudart"),
]
NO_DEVICE = 100  # cudaErrorNoDevice
# Called on a CPU too: "there is no device" must be said in the way that torch reads it.
SPECIAL = {
    "cudaGetDeviceCount": f"int cudaGetDeviceCount(int *count) {{ if (count) *count = 0; return {NO_DEVICE}; }}",
    "cudaGetErrorName": 'const char *cudaGetErrorName(int code) { return "cudaErrorNoDevice"; }',
    "cudaGetErrorString": 'const char *cudaGetErrorString(int code) { return "no CUDA: this is a stand-in"; }',
    "cudaGetLastError": "int cudaGetLastError(void) { return 0; }",
    "cudaPeekAtLastError": "int cudaPeekAtLastError(void) { return 0; }",
    "cudaStreamIsCapturing": "int cudaStreamIsCapturing(void *stream, int *status) { if (status) *status = 0; return 0; }",
}


def make(torch_lib: pathlib.Path, out: pathlib.Path) -> None:
    """Writes a stand-in for every library that those in `torch_lib` need and that is not there."""
    libraries = {path.name: path for path in torch_lib.glob("*.so*")}
    wanted: dict[str, dict[str, str]] = {}  # library: symbol: version
    loose: set[str] = set()
    provided: set[str] = set()
    for path in libraries.values():
        for name in re.findall(r"\(NEEDED\).*\[(.*)\]", readelf("-d", path)):
            if name not in libraries and not SYSTEM.match(name):
                wanted.setdefault(name, {})
        owners = versions(path)
        for name, version, defined in symbols(path):
            if defined:
                provided.add(name)
            elif not version:
                loose.add(name)
            elif owners.get(version) in wanted:
                wanted[owners[version]][name] = version
    for name in sorted(loose - provided):
        owner = next((library for prefix, library in OWNERS if name.startswith(prefix)), None)
        for library, names in wanted.items():
            if owner and library.startswith(f"{owner}.so"):
                names.setdefault(name, "")
    out.mkdir(parents=True, exist_ok=True)
    for library, names in wanted.items():
        compile_stub(library, names, out)


def readelf(what: str, path: pathlib.Path) -> str:
    return subprocess.run(["readelf", "-W", what, path], capture_output=True, text=True, check=True).stdout


def versions(path: pathlib.Path) -> dict[str, str]:
    """Which library each version of symbols comes from."""
    found, library = {}, ""
    for line in readelf("-V", path).splitlines():
        if match := re.search(r"File: (\S+)", line):
            library = match[1]
        elif library and (match := re.search(r"Name: (\S+)\s+Flags", line)):
            found[match[1]] = library
    return found


def symbols(path: pathlib.Path) -> list[tuple[str, str, bool]]:
    """Name, version and whether it is defined here, of every dynamic symbol."""
    found = []
    for line in readelf("--dyn-syms", path).splitlines():
        fields = line.split()
        if len(fields) >= 8 and fields[0].rstrip(":").isdigit():
            name, _, version = fields[7].partition("@")
            found.append((name, version.lstrip("@"), fields[6] != "UND"))
    return found


def compile_stub(library: str, names: dict[str, str], out: pathlib.Path) -> None:
    source = "".join(SPECIAL.get(name, f"int {name}(void) {{ return {NO_DEVICE}; }}") + "\n" for name in names)
    by_version = collections.defaultdict(list)
    for name, version in names.items():
        if version:
            by_version[version].append(name)
    script = "".join(f"{version} {{ global: {' '.join(f'{name};' for name in of)} }};\n" for version, of in by_version.items())
    command = ["gcc", "-shared", "-fPIC", "-w", "-x", "c", "-", f"-Wl,-soname,{library}", "-o", out / library]
    map_file = out / f"{library}.map"
    if script:
        map_file.write_text(script)
        command.append(f"-Wl,--version-script,{map_file}")
    subprocess.run(command, input=source, text=True, check=True)
    map_file.unlink(missing_ok=True)
