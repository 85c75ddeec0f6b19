"""The npm package `openai`: starts the daemon, and node on it."""

import base64
import os
import pathlib
import shutil
import subprocess
import unittest

from atelier import daemon, photo, png

NODE_MODULES = pathlib.Path(os.environ["ATELIER_NODE"])


class Node(unittest.TestCase):
    def test_the_npm_package(self):
        # node looks for packages beside the script, so the script goes where they are.
        script = pathlib.Path(shutil.copy(pathlib.Path(__file__).with_name("openai.test.mjs"), NODE_MODULES))
        with daemon() as running:
            environment = {
                **os.environ, "ATELIER_BASE_URL": running.base, "ATELIER_PHOTO": base64.b64encode(png(photo())).decode(),
            }
            subprocess.run(["node", "--test", script], check=True, cwd=NODE_MODULES, env=environment, timeout=300)


if __name__ == "__main__":
    unittest.main()
