"""What importing a plugin, and having it register, does to a process: `python -m … TARGET` tells it as JSON."""

import json
import logging
import os
import signal
import sys
import tempfile
import threading
from pathlib import Path

from moorage import PluginManager
from moorage_app import hooks as app_hooks
from moorage_conformance.finding import find_plugin


def _state() -> dict[str, object]:
    """Return what is everybody's, and no plugin should change when it is imported."""
    return {
        "the working folder": str(Path.cwd()),
        "the environment's variables": dict(os.environ),
        "how signals are handled": [repr(signal.getsignal(each)) for each in signal.valid_signals()],
        "the handlers of the root logger": [repr(each) for each in logging.getLogger().handlers],
    }


def main() -> None:
    """Import and register, with standard output and error turned to a file, and say what happened."""
    with tempfile.TemporaryFile() as file, os.fdopen(os.dup(1), "w") as answer:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
        before = _state()
        failed = ""
        try:
            found = find_plugin(sys.argv[1])
            manager = PluginManager(app_hooks)
            manager.register(found.plugin, found.name)
            for hook in ("register_routes", "register_commands"):
                manager.call(hook)
        except BaseException as error:  # noqa: BLE001 - whatever it is, it is told
            failed = f"{type(error).__name__}: {error}"
        sys.stdout.flush()
        sys.stderr.flush()
        after = _state()
        file.seek(0)
        told = {
            "failed": failed,
            "said": file.read().decode(errors="replace"),
            "threads": [each.name for each in threading.enumerate() if each is not threading.main_thread()],
            "changed": [name for name, value in before.items() if after[name] != value],
        }
        answer.write(json.dumps(told))
        answer.flush()
    # Not to wait for threads that were started.
    os._exit(0)


main()
