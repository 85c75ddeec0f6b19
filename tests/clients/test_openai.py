"""The Python package `openai`, unmodified, against the real daemon."""

import base64
import io
import signal
import threading
import unittest
import urllib.request

import openai
from PIL import Image

from atelier import TOKEN, daemon, photo, png


def picture(data):
    found = Image.open(io.BytesIO(base64.b64decode(data)))
    found.load()
    return found


class Images(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.daemon = cls.enterClassContext(daemon())
        cls.client = openai.OpenAI(api_key="none", base_url=f"{cls.daemon.base}/v1", timeout=60, max_retries=0)

    def test_generations_come_as_base64(self):
        answer = self.client.images.generate(
            model="gpt-image-1", prompt="a lighthouse", size="96x64", n=2, quality="low",
            extra_body={"seed": 0, "negative_prompt": "fog", "num_inference_steps": 3, "guidance_scale": 4.5},
        )
        self.assertEqual([picture(one.b64_json).size for one in answer.data], [(96, 64), (96, 64)])
        self.assertEqual((answer.size, answer.output_format), ("96x64", "png"))
        params = self.daemon.jobs("a lighthouse")[0]["params"]
        self.assertEqual((params["seed"], params["steps"], params["guidance_scale"]), (0, 3, 4.5))

    def test_generations_come_as_addresses_and_in_other_formats(self):
        answer = self.client.images.generate(model="dall-e-3", prompt="a pier", size="64x64", response_format="url")
        with urllib.request.urlopen(answer.data[0].url, timeout=60) as file:
            self.assertEqual(file.headers["content-type"], "image/png")
        for wanted, found in [("jpeg", "JPEG"), ("webp", "WEBP")]:
            answer = self.client.images.generate(
                model="fake", prompt=f"a pier in {wanted}", output_format=wanted, output_compression=70,
            )
            self.assertEqual(picture(answer.data[0].b64_json).format, found)

    def test_edits_take_one_picture_several_and_a_mask(self):
        file = ("photo.png", png(photo()), "image/png")
        answer = self.client.images.edit(model="gpt-image-1", image=file, prompt="warmer", size="auto", n=1)
        self.assertEqual(picture(answer.data[0].b64_json).format, "PNG")
        self.client.images.edit(model="fake", image=[file, file], prompt="both")
        job = self.daemon.jobs("both")[0]
        self.assertEqual((job["kind"], len(job["inputs"])), ("edit", 2))
        mask = photo(mode="RGBA")
        mask.putalpha(Image.new("L", mask.size, 0))
        self.client.images.edit(image=io.BytesIO(png(photo())), mask=io.BytesIO(png(mask)), prompt="a boat")
        self.assertEqual(self.daemon.jobs("a boat")[0]["kind"], "inpaint")

    def test_a_stream_ends_with_the_picture(self):
        events = list(self.client.images.generate(prompt="in a stream", stream=True, partial_images=2))
        self.assertEqual(events[-1].type, "image_generation.completed")
        self.assertEqual(picture(events[-1].b64_json).format, "PNG")
        file = ("photo.png", png(photo()), "image/png")
        events = list(self.client.images.edit(prompt="in a stream too", image=file, stream=True))
        self.assertEqual(events[-1].type, "image_edit.completed")

    def test_models_are_listed(self):
        self.assertIn("fake", [model.id for model in self.client.models.list()])
        self.assertEqual(self.client.models.retrieve("fake").object, "model")
        with self.assertRaises(openai.NotFoundError):
            self.client.models.retrieve("nonesuch")

    def test_errors_are_the_packages_own(self):
        with self.assertRaises(openai.BadRequestError) as caught:
            self.client.images.generate(prompt="x", size="big")
        self.assertEqual((caught.exception.param, caught.exception.code), ("size", "invalid_params"))
        with self.assertRaises(openai.NotFoundError):
            self.client.images.generate(prompt="x", model="nonesuch")
        with self.assertRaises(openai.APIStatusError) as caught:
            self.client.with_options(max_retries=2).images.generate(prompt="fake:fail@1=device_error*9|broken once")
        self.assertEqual(caught.exception.code, "device_error")
        self.assertEqual(len(self.daemon.jobs("fake:fail@1=device_error*9|broken once")), 1, "it was not sent again")
        with self.assertRaises(openai.APIError):
            list(self.client.images.generate(prompt="fake:fail@1=out_of_memory|broken twice", stream=True))

    def test_a_client_that_loses_patience_finds_its_job_again(self):
        prompt = "fake:slow=400|slow"
        impatient = self.client.with_options(timeout=0.3, max_retries=2)
        with self.assertRaises(openai.APITimeoutError):
            impatient.with_options(max_retries=0).images.generate(prompt=prompt)
        try:
            impatient.images.generate(prompt=prompt)
        except openai.APITimeoutError:
            pass
        answer = self.client.images.generate(prompt=prompt)
        self.assertEqual(picture(answer.data[0].b64_json).format, "PNG")
        self.assertLessEqual(len(self.daemon.jobs(prompt)), 2)
        self.assertEqual(len({job["id"] for job in self.daemon.jobs(prompt)}), len(self.daemon.jobs(prompt)))

    def test_the_same_wish_in_flight_is_one_job(self):
        prompt = "fake:slow=300|together"
        threads = [threading.Thread(target=self.client.images.generate, kwargs={"prompt": prompt}) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self.assertEqual(len(self.daemon.jobs(prompt)), 1)


class Trouble(unittest.TestCase):
    def test_a_restart_in_the_middle_is_a_pause(self):
        for how in [signal.SIGKILL, signal.SIGTERM]:
            with self.subTest(how), daemon() as running:
                client = openai.OpenAI(api_key="none", base_url=f"{running.base}/v1", timeout=60, max_retries=10)
                prompt, answers = "fake:slow=250|through it all", []
                waiting = threading.Thread(
                    target=lambda: answers.append(client.images.generate(prompt=prompt, size="80x80")),
                )
                waiting.start()
                job = running.until(prompt, "running")
                running.stop(how)
                running.start()
                waiting.join(60)
                self.assertEqual([picture(one.data[0].b64_json).size for one in answers], [(80, 80)])
                self.assertEqual([one["id"] for one in running.jobs(prompt)], [job["id"]])

    def test_a_token_is_asked_for(self):
        with daemon(token=True) as running:
            options = {"base_url": f"{running.base}/v1", "timeout": 60, "max_retries": 0}
            with self.assertRaises(openai.AuthenticationError):
                openai.OpenAI(api_key="wrong", **options).models.list()
            client = openai.OpenAI(api_key=TOKEN, **options)
            self.assertTrue(list(client.models.list()))
            # An address is fetched with nothing but itself.
            url = client.images.generate(prompt="a pier", response_format="url").data[0].url
            with urllib.request.urlopen(url, timeout=60) as file:
                self.assertEqual(file.headers["content-type"], "image/png")


if __name__ == "__main__":
    unittest.main()
