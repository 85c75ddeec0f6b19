"""The Python package `replicate`, unmodified, against the real daemon."""

import io
import unittest

import replicate
from PIL import Image
from replicate.exceptions import ModelError, ReplicateError

from atelier import TOKEN, daemon, photo, png


def picture(output):
    return Image.open(io.BytesIO(output.read()))


class Predictions(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.daemon = cls.enterClassContext(daemon(token=True))
        cls.client = replicate.Client(api_token=TOKEN, base_url=cls.daemon.base)
        cls.client.poll_interval = 0.05

    def test_run_gives_files(self):
        wish = {"prompt": "a boat", "width": 96, "height": 64, "num_outputs": 2, "seed": 0}
        output = self.client.run("atelier/fake", input=wish)
        self.assertEqual([picture(one).size for one in output], [(96, 64), (96, 64)])
        version = self.client.models.get("atelier/fake").latest_version.id
        output = self.client.run(f"atelier/fake:{version}", input={"prompt": "by its version"})
        self.assertEqual(picture(output[0]).format, "PNG")
        self.assertIn("fake", [model.name for model in self.client.models.list()])

    def test_files_are_sent_ahead_or_along(self):
        image = io.BytesIO(png(photo()))
        image.name = "photo.png"
        output = self.client.run("atelier/upscale", input={"image": image, "scale": 2})
        self.assertEqual(picture(output[0]).size, (128, 96))
        output = self.client.run(
            "atelier/upscale", input={"image": image, "scale": 4}, file_encoding_strategy="base64",
        )
        self.assertEqual(picture(output[0]).size, (256, 192))
        kept = self.client.files.list()[0]
        self.assertEqual((kept.name, kept.content_type), ("photo.png", "image/png"))
        self.assertEqual(self.client.files.get(kept.id).etag, kept.etag)
        self.assertTrue(self.client.files.delete(kept.id))

    def test_a_caption_is_a_text(self):
        image = io.BytesIO(png(photo()))
        self.assertEqual(self.client.run("atelier/caption", input={"image": image}), "a picture of 64 by 48 pixels")

    def test_a_prediction_is_made_watched_and_called_off(self):
        slow = self.client.predictions.create("fake", {"prompt": "fake:slow=200|slow"})
        self.assertEqual(slow.status, "starting")
        seen = set()
        while slow.status not in ["succeeded", "failed", "canceled"]:
            if slow.progress:
                seen.add(slow.progress.total)
            slow.reload()
        self.assertEqual((slow.status, seen), ("succeeded", {4}))
        self.assertGreater(slow.metrics["predict_time"], 0)
        endless = self.client.predictions.create("fake", {"prompt": "fake:slow=500|endless", "steps": 900})
        endless.cancel()
        endless.wait()
        self.assertEqual(endless.status, "canceled")
        self.assertIn(endless.id, [one.id for one in self.client.predictions.list()])

    def test_a_wait_that_is_too_short_goes_on(self):
        made = self.client.predictions.create("fake", {"prompt": "fake:slow=400|longer than a second"}, wait=1)
        self.assertEqual(made.status, "starting")
        made.wait()
        self.assertEqual(made.status, "succeeded")

    def test_errors_are_the_packages_own(self):
        with self.assertRaises(ModelError) as caught:
            self.client.run("atelier/fake", input={"prompt": "fake:fail@1=out_of_memory|broken"})
        self.assertIn("told to fail", str(caught.exception))
        with self.assertRaises(ReplicateError) as caught:
            self.client.run("atelier/fake", input={"prompt": "x", "steps": 0})
        self.assertEqual(caught.exception.status, 422)
        with self.assertRaises(ReplicateError) as caught:
            self.client.run("no/such", input={"prompt": "x"})
        self.assertEqual(caught.exception.status, 404)
        with self.assertRaises(ReplicateError) as caught:
            replicate.Client(api_token="wrong", base_url=self.daemon.base).predictions.list()
        self.assertEqual(caught.exception.status, 401)


if __name__ == "__main__":
    unittest.main()
