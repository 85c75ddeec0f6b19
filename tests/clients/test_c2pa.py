"""Signed outputs, read by `c2pa-python`: whole they verify, changed they do not."""

import io
import itertools
import json
import pathlib
import subprocess
import tempfile
import unittest

import c2pa
from PIL import Image

import atelier

PROFILE = """basicConstraints=critical,CA:FALSE
keyUsage=critical,digitalSignature
extendedKeyUsage=emailProtection
subjectKeyIdentifier=hash
authorityKeyIdentifier=keyid
"""
NUMBERS = itertools.count()
TYPES = {"png": "image/png", "jpeg": "image/jpeg", "webp": "image/webp"}


def openssl(folder, *arguments):
    subprocess.run(["openssl", *arguments], cwd=folder, check=True, capture_output=True)


def certify(folder):
    """An authority, and a certificate by it."""
    curve = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
    openssl(folder, "req", "-x509", *curve, "-keyout", "ca.key", "-out", "ca.pem", "-days", "30",
            "-subj", "/O=Tests/CN=Authority", "-addext", "keyUsage=critical,keyCertSign")
    openssl(folder, "req", *curve, "-keyout", "key.pem", "-out", "own.csr", "-subj", "/O=Tests/CN=Studio")
    (folder / "profile").write_text(PROFILE)
    openssl(folder, "x509", "-req", "-in", "own.csr", "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial",
            "-days", "20", "-extfile", "profile", "-out", "own.pem")


class ContentCredentials(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.folder = pathlib.Path(cls.enterClassContext(tempfile.TemporaryDirectory(prefix="atelier-c2pa-")))
        certify(cls.folder)
        more = ["[provenance]", f"certificate_file = {json.dumps(str(cls.folder / 'own.pem'))}",
                f"key_file = {json.dumps(str(cls.folder / 'key.pem'))}", 'algorithm = "es256"']
        cls.daemon = cls.enterClassContext(atelier.daemon(more=more))
        cls.settings = {"trust": {"trust_anchors": (cls.folder / "ca.pem").read_text()}}

    def output(self, format, kind="generate", image=None):
        """The bytes of a finished job's only output."""
        params = {"prompt": f"picture {next(NUMBERS)}", "seed": 3, "steps": 2, "format": format}
        job = {"kind": kind, "model": "fake", "params": params}
        if image is not None:
            answer = self.post_form(job, image)
        else:
            answer = self.daemon.post("/api/v1/jobs", job)
        self.daemon.until(params["prompt"], "succeeded")
        return self.bytes_of(answer["id"])

    def post_form(self, job, image):
        import httpx

        answer = httpx.post(f"{self.daemon.base}/api/v1/jobs", data={"job": json.dumps(job)},
                            files={"image": ("home.png", image, "image/png")}, timeout=atelier.PATIENCE)
        answer.raise_for_status()
        return answer.json()

    def bytes_of(self, job):
        import urllib.request

        with urllib.request.urlopen(f"{self.daemon.base}/api/v1/jobs/{job}/outputs/0", timeout=atelier.PATIENCE) as file:
            return file.read()

    def read(self, format, picture, trust=True):
        context = c2pa.Context(settings=c2pa.Settings.from_dict(self.settings if trust else {}))
        with c2pa.Reader(TYPES[format], io.BytesIO(picture), context=context) as reader:
            return json.loads(reader.json())

    def actions(self, told):
        manifest = told["manifests"][told["active_manifest"]]
        [assertion] = [a for a in manifest["assertions"] if a["label"].startswith("c2pa.actions")]
        return manifest, [(a["action"], a.get("digitalSourceType", "").rpartition("/")[2]) for a in assertion["data"]["actions"]]

    def test_a_generated_picture_verifies_in_every_format(self):
        for format in TYPES:
            with self.subTest(format):
                picture = self.output(format)
                told = self.read(format, picture)
                self.assertEqual(told["validation_state"], "Trusted", told)
                self.assertEqual(self.read(format, picture, trust=False)["validation_state"], "Valid")
                manifest, actions = self.actions(told)
                self.assertEqual(actions, [("c2pa.created", "trainedAlgorithmicMedia")])
                self.assertEqual(manifest["claim_generator_info"][0]["name"], "Atelier")
                self.assertEqual(manifest["signature_info"]["common_name"], "Studio")
                self.assertEqual(manifest["signature_info"]["alg"], "Es256")

    def test_a_changed_picture_does_not(self):
        for format in TYPES:
            with self.subTest(format):
                picture = bytearray(self.output(format))
                # Among the pixels.
                places = {"png": picture.rfind(b"IEND") - 12, "jpeg": len(picture) - 8, "webp": picture.find(b"VP8 ") + 30}
                at = places[format]
                picture[at] ^= 1
                told = self.read(format, bytes(picture))
                self.assertEqual(told["validation_state"], "Invalid", told)
                codes = [failure["code"] for failure in told["validation_results"]["activeManifest"]["failure"]]
                self.assertIn("assertion.dataHash.mismatch", codes)

    def test_an_edited_picture_names_what_it_was_made_from(self):
        first = self.output("png")
        second = self.output("png", "edit", first)
        told = self.read("png", second)
        self.assertEqual(told["validation_state"], "Trusted", told)
        manifest, actions = self.actions(told)
        self.assertEqual(actions[0], ("c2pa.opened", ""))
        self.assertEqual(actions[1][0], "c2pa.edited")
        [source] = manifest["ingredients"]
        self.assertEqual(source["relationship"], "parentOf")
        self.assertIn(source["active_manifest"], told["manifests"])
        self.assertNotIn("home.png", json.dumps(told))

    def test_the_picture_itself_is_what_it_was(self):
        from hashlib import sha256

        picture = self.output("png")
        job = self.daemon.jobs()[0]
        manifest = self.daemon.get(f"/api/v1/jobs/{job['id']}/manifest")
        self.assertEqual(manifest["outputs"][0]["sha256"], sha256(picture).hexdigest())
        # Without its own chunk it is the file that the worker has made.
        at = picture.index(b"caBX") - 4
        plain = picture[:at] + picture[at + 12 + int.from_bytes(picture[at:at + 4], "big"):]
        self.assertEqual(manifest["signature"]["unsigned_sha256"], [sha256(plain).hexdigest()])
        self.assertEqual(Image.open(io.BytesIO(plain)).tobytes(), Image.open(io.BytesIO(picture)).tobytes())


if __name__ == "__main__":
    unittest.main()
