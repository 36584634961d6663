"""Set up ``.venv`` with everything the suite needs: ``python3 tools/setup_env.py`` (``make setup`` calls it).

Six steps: the virtual environment, the pinned requirements, PyTorch's own check, the suite, mmcv's operators, the
frameworks' check. Each leaves a stamp in ``.venv/.setup`` with a hash of what it depends on (the requirement files, the
build script, the step before), so that a second call only compares hashes, an interrupted one goes on where it stopped
and a changed pin is installed. Standard library only, for any Python >= 3.7, so that it can say what is missing.
"""

import argparse
import hashlib
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SUPPORTED = ((3, 11), (3, 12))  # what the pins in requirements/ have wheels for
FREE_GB = 5
# What pip or the compiler says -> what the user can do about it
HINTS = (
    (('No space left on device', 'Errno 28'), f'the disk is full: free at least {FREE_GB} GB and call make again'),
    (
        ('NewConnectionError', 'ConnectTimeout', 'Temporary failure in name resolution', 'Network is unreachable'),
        'the package index cannot be reached: check the network, the proxy (HTTPS_PROXY) and the index (PIP_INDEX_URL)',
    ),
    (
        ('ReadTimeout', 'Read timed out', 'IncompleteRead'),
        'the connection broke off: call make again, it goes on from here',
    ),
    (
        ('(from versions: none)',),
        'the package index cannot be reached or does not have these packages: check the network, the proxy (HTTPS_PROXY) '
        'and the index (PIP_INDEX_URL)',
    ),
    (
        ('No matching distribution found', 'Could not find a version'),
        'the package index has no wheel of that pin for this Python and platform (Linux x86-64 is what was tried)',
    ),
    (
        ('SSLError', 'CERTIFICATE_VERIFY_FAILED'),
        "the index's certificate is not trusted: set PIP_CERT to your CA bundle",
    ),
    (('Python.h',), "Python's headers are missing (Debian, Ubuntu: apt-get install python3-dev)"),
)
IMPORT_ALL = (
    'import eff_plugins, mmcv.ops, mmdet.apis, mmseg.apis, mmdet3d.apis, mmaction.models, sklearn.datasets, timm'
)


class SetupError(Exception):
    """A step failed; the message says why and what to do."""


def say(text):
    print('setup: ' + text, flush=True)


def digest(*parts):
    """Hash of strings and of the contents of paths."""
    state = hashlib.sha256()
    for part in parts:
        state.update(part.read_bytes() if isinstance(part, Path) else str(part).encode())
        state.update(b'\0')
    return state.hexdigest()


def explain(output):
    """The first hint whose sign occurs in a command's output, or an empty string."""
    for signs, hint in HINTS:
        if any(sign in output for sign in signs):
            return hint
    return ''


def python_version(executable):
    """``(major, minor)`` of an interpreter, or None when it does not run."""
    code = 'import sys; print(sys.version_info[0], sys.version_info[1])'
    try:
        result = subprocess.run([str(executable), '-c', code], capture_output=True, check=True)
        return tuple(int(n) for n in result.stdout.split())
    except (OSError, subprocess.CalledProcessError, ValueError):
        return None


def find_python():
    """An interpreter whose version the pins support: the running one, else one on the PATH."""
    if sys.version_info[:2] in SUPPORTED:
        return sys.executable
    wanted = [f'python{major}.{minor}' for major, minor in SUPPORTED]
    for name in wanted:
        if shutil.which(name) and python_version(name) in SUPPORTED:
            return shutil.which(name)
    raise SetupError(
        'no Python 3.11 or 3.12 found (the pinned wheels need one of them; this is '
        f'Python {sys.version_info[0]}.{sys.version_info[1]}). Install one, or name it: make PYTHON=/path/to/python3.11 setup'
    )


class Setup:
    """The steps of one set-up, in order, with their stamps."""

    def __init__(self, venv):
        self.venv = venv
        self.python = venv / 'bin' / 'python'
        self.stamps = venv / '.setup'
        self.log = self.stamps / 'setup.log'
        self.key = digest(sys.platform)  # grows with every step: a step is redone when one before it was
        self.done = 0

    def step(self, name, what, inputs, action):
        """Run ``action`` unless the stamp of ``name`` has the hash of ``inputs`` and of all steps before."""
        self.key = digest(self.key, name, *inputs)
        stamp = self.stamps / name
        if stamp.is_file() and stamp.read_text() == self.key:
            return
        say(what)
        start = time.monotonic()
        if stamp.exists():
            stamp.unlink()
        try:
            action()
        except SetupError as error:
            raise SetupError(f'step "{name}" failed: {error}') from None
        partial = stamp.with_suffix('.tmp')
        partial.write_text(self.key)
        partial.replace(stamp)
        self.done += 1
        say(f'  {name}: done in {time.monotonic() - start:.0f} s')

    def call(self, *command, fallback=''):
        """Run a command; its output goes to the log. Raises with the reason, a remedy and the log's end."""
        env = dict(os.environ, PYTHONPATH=str(ROOT), PIP_DISABLE_PIP_VERSION_CHECK='1', PIP_NO_INPUT='1')
        env['PATH'] = f'{self.python.parent}{os.pathsep}{env.get("PATH", "")}'
        with self.log.open('ab+') as stream:
            begin = stream.seek(0, os.SEEK_END)
            code = subprocess.run(
                [str(c) for c in command], stdout=stream, stderr=stream, env=env, cwd=str(ROOT)
            ).returncode
            stream.seek(begin)
            output = stream.read().decode(errors='replace')
        if code != 0:
            hint = explain(output) or fallback or f'{Path(str(command[0])).name} said:'
            tail = '\n'.join(output.strip().splitlines()[-12:])
            raise SetupError(f'{hint}\n{tail}\n(exit {code}; full log: {self.log})')

    def works(self, code):
        """Whether a line of Python runs in the environment."""
        env = dict(os.environ, PYTHONPATH=str(ROOT))
        command = [str(self.python), '-c', code]
        try:
            return subprocess.run(command, capture_output=True, env=env, cwd=str(ROOT), check=False).returncode == 0
        except OSError:
            return False

    def make_venv(self):
        if self.works('import pip'):
            return
        for broken in self.python.parent.glob('python*'):
            broken.unlink()
        incomplete = "Python's venv module is incomplete (Debian, Ubuntu: apt-get install python3-venv)"
        self.call(find_python(), '-m', 'venv', self.venv, fallback=incomplete)

    def install_requirements(self):
        free = shutil.disk_usage(str(self.venv)).free / 1e9
        if free < FREE_GB and not self.works('import torch, mmdet3d'):
            raise SetupError(f'the disk has {free:.1f} GB free, the environment needs {FREE_GB} GB')
        files = ['-r', 'requirements/runtime.txt', '-r', 'requirements/dev.txt']
        self.call(self.python, '-m', 'pip', 'install', '--no-deps', '--only-binary=:all:', *files)

    def check_torch(self):
        """A CUDA build of PyTorch needs libraries that --no-deps left out; torch's metadata pins them exactly."""
        if not self.works('import torch'):
            pins = ['-r', 'requirements/torch.txt', '-c', 'requirements/runtime.txt']
            self.call(self.python, '-m', 'pip', 'install', *pins)
        self.call(self.python, '-c', 'import torch; torch.ones(2, 2) @ torch.ones(2, 2)')

    def install_suite(self):
        self.call(self.python, '-m', 'pip', 'install', '--no-deps', '--no-build-isolation', '-e', '.')

    def build_mmcv(self):
        if not self.works('import mmcv.ops; assert mmcv.__version__ == "2.1.0"'):
            self.call(self.python, '-m', 'eff_plugins.build_mmcv')

    def check_frameworks(self):
        self.call(self.python, '-m', 'eff_plugins.repair_hosts')
        self.call(self.python, '-c', IMPORT_ALL)

    def run(self):
        needs = ROOT / 'requirements'
        self.stamps.mkdir(parents=True, exist_ok=True)
        version = python_version(self.python)
        if version is not None and version not in SUPPORTED:
            raise SetupError(f'{self.venv} has Python {version[0]}.{version[1]}, the pins need 3.11 or 3.12: delete it')
        self.step('venv', 'creating the virtual environment .venv', [], self.make_venv)
        text = 'installing the pinned requirements (about 4 minutes with an empty pip cache)'
        pins = [needs / 'runtime.txt', needs / 'dev.txt']
        self.step('requirements', text, pins, self.install_requirements)
        self.step('torch', 'checking PyTorch', [], self.check_torch)
        package = [ROOT / 'setup.py', ROOT / 'pyproject.toml']
        self.step('suite', 'installing the suite itself (editable)', package, self.install_suite)
        text = "building and installing mmcv's operators (1 to 3 minutes on 2 cores; none when built before)"
        self.step('mmcv', text, [ROOT / 'eff_plugins' / 'build_mmcv.py'], self.build_mmcv)
        repair = [ROOT / 'eff_plugins' / 'compat' / name for name in ('hosts.py', 'torchvision_ops.py')]
        text = 'repairing mmaction2 and torchvision, importing all frameworks'
        self.step('frameworks', text, repair, self.check_frameworks)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--venv', type=Path, default=ROOT / '.venv', help='where the environment lives')
    setup = Setup(parser.parse_args().venv.absolute())
    try:
        import fcntl

        setup.stamps.mkdir(parents=True, exist_ok=True)
        with (setup.stamps / 'lock').open('w') as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                say('waiting for another set-up of the same folder')
                fcntl.flock(lock, fcntl.LOCK_EX)
            setup.run()
    except SetupError as error:
        print(f'setup: {error}', file=sys.stderr)
        return 1
    except OSError as error:
        print(f'setup: cannot write the environment: {error}', file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print('setup: interrupted; call make again to go on', file=sys.stderr)
        return 130
    say('ready' if setup.done else '.venv is up to date')
    return 0


if __name__ == '__main__':
    sys.exit(main())
