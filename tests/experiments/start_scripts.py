"""Does what `python SCRIPT ARGUMENTS` does, for many scripts: each in a process of its own, which is forked where the
packages are imported already, as that takes seconds.

Reads lines of JSON, [folder to work in, script, *arguments], and answers each with a line: [exit code, stdout, stderr].
"""

import json
import os
import runpy
import sys
import tempfile
import traceback

import matplotlib.pyplot  # noqa: F401
import scipy.integrate  # noqa: F401
import torch  # noqa: F401


def run(folder, words):
    """In the forked process: the script as the main program, found and finding others as from a command line."""
    os.chdir(folder)
    sys.argv, sys.path[0] = words, os.path.dirname(os.path.abspath(words[0]))
    try:
        runpy.run_path(words[0], run_name="__main__")
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def main():
    for line in sys.stdin:
        folder, *words = json.loads(line)
        with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
            child = os.fork()
            if child == 0:
                os.dup2(out.fileno(), 1), os.dup2(err.fileno(), 2)
                code = run(folder, words)
                sys.stdout.flush(), sys.stderr.flush()
                os._exit(code)
            code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            texts = [file.seek(0) or file.read() for file in (out, err)]
        print(json.dumps([code, *texts]), flush=True)


if __name__ == "__main__":
    main()
