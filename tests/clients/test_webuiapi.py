"""The Python package `webuiapi`, unmodified, against the real daemon."""

import threading
import time
import unittest

import webuiapi
from PIL import Image, PngImagePlugin

from atelier import TOKEN, daemon, photo


class Webui(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.daemon = cls.enterClassContext(daemon())
        cls.api = webuiapi.WebUIApi(host="127.0.0.1", port=cls.daemon.port, steps=4)

    def test_text_to_image(self):
        result = self.api.txt2img(prompt="a boat", negative_prompt="fog", seed=0, width=96, height=64, n_iter=2)
        self.assertEqual([image.size for image in result.images], [(96, 64), (96, 64)])
        self.assertEqual((result.info["seed"], result.info["all_seeds"]), (0, [0, 1]))
        self.assertEqual(result.parameters["prompt"], "a boat")
        again = self.api.txt2img(prompt="a boat", negative_prompt="fog", seed=0, width=96, height=64, n_iter=2)
        self.assertEqual(result.image.tobytes(), again.image.tobytes())

    def test_image_to_image_with_and_without_a_mask(self):
        result = self.api.img2img(images=[photo()], prompt="warmer", denoising_strength=0.5)
        self.assertEqual(result.image.format, "PNG")
        self.assertEqual(self.daemon.jobs("warmer")[0]["params"]["strength"], 0.5)
        mask = Image.new("L", (64, 48), 255)
        self.api.img2img(images=[photo()], mask_image=mask, inpainting_mask_invert=1, prompt="in the hole")
        self.assertEqual(self.daemon.jobs("in the hole")[0]["kind"], "inpaint")

    def test_extras_are_our_upscalers(self):
        result = self.api.extra_single_image(photo(), upscaling_resize=2)
        self.assertEqual(result.image.size, (128, 96))
        self.assertIn("Upscaler", result.info)
        result = self.api.extra_batch_images([photo(), photo((10, 10))], upscaling_resize=4)
        self.assertEqual([image.size for image in result.images], [(256, 192), (40, 40)])

    def test_a_picture_is_read_and_captioned(self):
        info = PngImagePlugin.PngInfo()
        info.add_text("parameters", "a boat\nSteps: 20")
        picture = photo()
        picture.info["parameters"] = "a boat\nSteps: 20"
        self.assertEqual(self.api.png_info(picture).info, "a boat\nSteps: 20")
        self.assertEqual(self.api.interrogate(photo()).info, "a picture of 64 by 48 pixels")

    def test_controlnet_is_there(self):
        self.assertEqual(self.api.controlnet_version(), 2)
        self.assertIn("fake", self.api.controlnet_model_list())
        self.assertIn("none", self.api.controlnet_module_list())
        unit = webuiapi.ControlNetUnit(image=photo(), module="none", model="fake")
        result = self.api.txt2img(prompt="along the lines", controlnet_units=[unit])
        self.assertEqual(len(result.images), 1)
        self.assertEqual(self.daemon.jobs("along the lines")[0]["kind"], "control")

    def test_lists_and_options(self):
        self.assertIn("Euler a", self.api.util_get_sampler_names())
        self.assertIn("karras", self.api.util_get_scheduler_names())
        self.assertEqual(self.api.util_get_model_names(), ["fake", "sdxl"])
        self.api.util_set_model("sdx")
        self.assertEqual(self.api.util_get_current_model(), "sdxl")
        self.api.txt2img(prompt="by the chosen model", width=64, height=64)
        self.assertEqual(self.daemon.jobs("by the chosen model")[0]["model"], "sdxl")
        self.api.set_options({"sd_model_checkpoint": ""})
        self.assertIn("fake", [upscaler["name"] for upscaler in self.api.get_upscalers()])
        self.assertEqual(self.api.get_loras(), [])
        self.assertGreater(self.api.get_memory()["ram"]["total"], 0)
        self.api.refresh_checkpoints()
        for ask in [self.api.get_sd_vae, self.api.get_face_restorers, self.api.get_prompt_styles, self.api.get_scripts]:
            self.assertIsNotNone(ask())

    def test_progress_and_interrupt(self):
        answers = []
        prompt = "fake:slow=200|stopped"
        waiting = threading.Thread(target=lambda: answers.append(self.api.txt2img(prompt=prompt, steps=900)))
        waiting.start()
        self.daemon.until(prompt, "running")
        while self.api.get_progress()["state"]["sampling_steps"] != 900:
            time.sleep(0.02)
        self.api.interrupt()
        waiting.join(60)
        self.assertEqual((answers[0].images, answers[0].info["interrupted"]), ([], True))
        self.api.util_wait_for_ready(check_interval=0.05)

    def test_errors_are_readable(self):
        with self.assertRaises(RuntimeError) as caught:
            self.api.txt2img(prompt="x", enable_hr=True)
        self.assertIn("enable_hr", str(caught.exception))
        with self.assertRaises(RuntimeError):
            self.api.extra_single_image(photo(), upscaling_resize=3)


class Password(unittest.TestCase):
    def test_a_token_is_the_password(self):
        with daemon(token=True) as running:
            api = webuiapi.WebUIApi(port=running.port, username="anybody", password=TOKEN)
            self.assertEqual(api.util_get_model_names(), ["fake", "sdxl"])
            self.assertEqual(webuiapi.WebUIApi(port=running.port).session.get(f"{api.baseurl}/options").status_code, 401)


if __name__ == "__main__":
    unittest.main()
