"""The routes of the two services that Atelier replaces, as a script with `requests` calls them."""

import base64
import io
import time
import unittest

import requests
from PIL import Image

from atelier import PATIENCE, daemon, photo, png


class Studio(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.daemon = cls.enterClassContext(daemon())

    def post(self, path, status=200, **options):
        answer = requests.post(self.daemon.base + path, timeout=PATIENCE, **options)
        self.assertEqual(answer.status_code, status, answer.text)
        return answer.json()

    def get(self, path, status=200):
        answer = requests.get(self.daemon.base + path, timeout=PATIENCE)
        self.assertEqual(answer.status_code, status, answer.text)
        return answer

    def until_completed(self, path):
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            job = self.get(path).json()
            if job["status"] == "completed":
                return job
            self.assertIn(job["status"], ["queued", "processing"])
        self.fail("the job did not end")

    def test_a_result_comes_at_once_or_later(self):
        wish = {"prompt": "a boat", "width": 96, "height": 64, "num_inference_steps": 3, "seed": 0, "num_images": 2}
        done = self.post("/api/generate/sdxl", json=wish)
        sizes = [Image.open(io.BytesIO(base64.b64decode(one))).size for one in done["images"]]
        self.assertEqual((done["seed"], sizes), (0, [(96, 64), (96, 64)]))
        file = self.get(done["download_urls"][1])
        self.assertEqual(file.content, base64.b64decode(done["images"][1]))
        later = self.post("/api/generate/sdxl", 202, json={**wish, "async": True})
        job = self.until_completed(later["status_url"])
        self.assertEqual(len(job["files"]), 2)

    def test_what_is_not_installed_says_how_to_get_it(self):
        problem = self.post("/api/video/wan21", 503, json={"prompt": "x"})
        self.assertIn("models/Wan-AI/Wan2.1-T2V-1.3B-Diffusers is missing", problem["detail"])
        available = {model["name"]: model["available"] for model in self.get("/models").json()["models"]}
        self.assertEqual((available["sdxl"], available["wan21"]), (True, False))
        self.assertFalse(self.get("/api/comfyui/status").json()["available"])
        self.assertFalse(self.get("/api/tts/status").json()["available"])

    def test_the_editor_edits_a_photo_and_cleans_up(self):
        files = {"image": ("photo.png", png(photo()), "image/png")}
        job = self.post("/api/jobs", 202, files=files, data={"prompt": "warmer", "seed": "7"})
        done = self.until_completed(f"/api/jobs/{job['job_id']}/status")
        file = self.get(done["download_url"])
        self.assertEqual(Image.open(io.BytesIO(file.content)).format, "PNG")
        deadline = time.monotonic() + PATIENCE
        while requests.get(f"{self.daemon.base}/api/jobs/{job['job_id']}", timeout=PATIENCE).status_code != 404:
            self.assertLess(time.monotonic(), deadline, "the job stays")

    def test_the_dashboard(self):
        self.post("/api/generate/sdxl", json={"prompt": "for the dashboard", "width": 64, "height": 64})
        self.assertEqual(self.get("/api/dashboard/status").json()["status"], "ok")
        self.assertEqual(self.get("/api/dashboard/results?limit=1").json()["results"][0]["prompt"], "for the dashboard")
        self.assertGreaterEqual(self.get("/api/dashboard/metrics").json()["succeeded"], 1)
        self.assertTrue(self.get("/api/dashboard/logs").json()["logs"])
        self.post("/api/dashboard/logs/clear")
        self.post("/api/dashboard/settings", json={"theme": "dark"})
        self.assertEqual(self.get("/api/dashboard/settings").json()["settings"], {"theme": "dark"})
        self.post("/api/unload/sdxl")
        self.post("/api/unload-all")


if __name__ == "__main__":
    unittest.main()
