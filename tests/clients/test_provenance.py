"""What generated files say of themselves, read by `sd-parsers`: the samples of crates/imaging/tests/provenance.rs."""

import pathlib
import unittest

from sd_parsers import ParserManager

SAMPLES = pathlib.Path("crates/imaging/tests/fixtures/provenance")


class Provenance(unittest.TestCase):
    def test_every_format_is_read_as_a1111s(self):
        for name in ["generated.png", "generated.jpg", "generated.webp"]:
            with self.subTest(name):
                found = ParserManager().parse(SAMPLES / name)
                self.assertIsNotNone(found)
                self.assertEqual(found.generator.name, "AUTOMATIC1111")
                self.assertEqual([prompt.value for prompt in found.prompts], ["a house by the sea, ein Häuschen"])
                self.assertEqual([prompt.value for prompt in found.negative_prompts], ["rain"])
                [sampler] = found.samplers
                self.assertEqual((sampler.name, sampler.parameters["steps"], sampler.parameters["seed"]), ("Euler", "20", "42"))
                self.assertEqual([model.name for model in found.models], ["tiny"])


if __name__ == "__main__":
    unittest.main()
