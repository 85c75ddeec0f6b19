"""Webhooks, checked by `standardwebhooks`, `openai` and `replicate`, each with its own verifier."""

import http.server
import threading
import time
import unittest

import openai
import replicate.webhook
import standardwebhooks

import atelier


class Receiver(http.server.BaseHTTPRequestHandler):
    told = []
    refuse = 1

    def do_POST(self):
        body = self.rfile.read(int(self.headers["content-length"]))
        headers = {name.lower(): value for name, value in self.headers.items()}
        status = 503 if len(self.told) < self.refuse else 204
        self.told.append((headers, body))
        self.send_response(status)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, *_):
        pass


class Webhooks(unittest.TestCase):
    def test_three_verifiers_take_what_is_sent_and_refuse_what_was_changed(self):
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Receiver)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        more = ["[webhooks]", "allow_private = true", 'backoff = "100ms"']
        with atelier.daemon(more=more) as daemon:
            url = f"http://127.0.0.1:{server.server_port}/hook"
            job = daemon.post("/api/v1/jobs", {"kind": "generate", "params": {"prompt": "a house"}, "webhook": url})
            deadline = time.monotonic() + atelier.PATIENCE
            while len(Receiver.told) < 2:
                self.assertLess(time.monotonic(), deadline, "nobody was told")
                time.sleep(0.02)
            secret = (daemon.root / "data" / "webhook-secret").read_text().strip()
        server.shutdown()
        first, again = Receiver.told[:2]
        self.assertEqual(first[1], again[1])
        self.assertEqual(first[0]["webhook-id"], again[0]["webhook-id"])
        client = openai.OpenAI(api_key="none", base_url="http://127.0.0.1:9/")
        for headers, body in [first, again]:
            message = standardwebhooks.Webhook(secret).verify(body, headers)
            self.assertEqual(message["type"], "job.succeeded")
            self.assertEqual(message["data"]["id"], job["id"])
            client.webhooks.verify_signature(body, headers, secret=secret)
            replicate.webhook.Webhooks.validate(
                headers=headers, body=body.decode(), secret=replicate.webhook.WebhookSigningSecret(key=secret)
            )
            changed = body.replace(b"succeeded", b"failed")
            with self.assertRaises(standardwebhooks.WebhookVerificationError):
                standardwebhooks.Webhook(secret).verify(changed, headers)
            with self.assertRaises(openai.InvalidWebhookSignatureError):
                client.webhooks.verify_signature(changed, headers, secret=secret)


if __name__ == "__main__":
    unittest.main()
