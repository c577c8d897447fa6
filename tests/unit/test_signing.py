"""Signed stream names and derived keys are compatible with the clients, servers and tools of AnyCable."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
from typing import Any

import pytest
from django.test import override_settings
from hypothesis import given
from hypothesis import strategies as st

from reliable_cable.exceptions import InvalidStreamName
from reliable_cable.signing import derived_key, signed_stream_name, verify_stream_name

#: The name "chat:2021" as Rails signs it with the key "s3Krit". The tests of AnyCable's servers use this example.
KNOWN = "ImNoYXQ6MjAyMSI=--f9ee45dbccb1da04d8ceb99cc820207804370ba0d06b46fc3b8b373af1315628"
S3KRIT = {"STREAMS_SECRET": "s3Krit"}


def sign(encoded: str, secret: str) -> str:
    return f"{encoded}--{hmac.new(secret.encode(), encoded.encode(), hashlib.sha256).hexdigest()}"


def encode(value: Any) -> str:
    return base64.b64encode(json.dumps(value).encode()).decode()


class TestSignedStreamName:
    @override_settings(RELIABLE_CABLE=S3KRIT)
    def test_the_result_equals_the_example_of_anycable(self) -> None:
        assert signed_stream_name("chat:2021") == KNOWN

    @override_settings(RELIABLE_CABLE=S3KRIT)
    def test_characters_beyond_ascii_are_signed_as_utf_8(self) -> None:
        # JavaScript's JSON.stringify and Buffer create the same string.
        encoded = base64.b64encode('"chat/é"'.encode()).decode()
        assert signed_stream_name("chat/é") == sign(encoded, "s3Krit")

    @override_settings(RELIABLE_CABLE={"SECRET": "both"})
    def test_the_default_key_is_the_secret(self) -> None:
        assert signed_stream_name("chat/1") == sign(encode("chat/1"), "both")

    @pytest.mark.parametrize("name", ["", None, 1, b"chat/1", "\ud800", "tenant\x1fchat"])
    def test_an_invalid_name_is_refused(self, name: Any) -> None:
        with pytest.raises(InvalidStreamName):
            signed_stream_name(name)


class TestVerifyStreamName:
    @override_settings(RELIABLE_CABLE=S3KRIT)
    def test_the_example_of_anycable_is_valid(self) -> None:
        assert verify_stream_name(KNOWN) == "chat:2021"

    @given(st.text(st.characters(codec="utf-8", exclude_characters="\x1f"), min_size=1))
    def test_every_signed_name_can_be_verified(self, name: str) -> None:
        assert verify_stream_name(signed_stream_name(name)) == name

    @override_settings(RELIABLE_CABLE=S3KRIT)
    def test_a_name_with_json_escapes_is_decoded(self) -> None:
        escaped = base64.b64encode(rb'"chat\/\u00e9"').decode()
        assert verify_stream_name(sign(escaped, "s3Krit")) == "chat/é"

    @override_settings(RELIABLE_CABLE=S3KRIT)
    @pytest.mark.parametrize(
        "signed",
        [
            "",
            "--",
            "chat:2021",
            KNOWN[:-1],
            KNOWN[:-1] + "9",
            KNOWN + "0",
            KNOWN.upper(),
            KNOWN.replace("--", "-"),
            KNOWN.partition("--")[0] + "--",
            "--" + KNOWN.partition("--")[2],
            encode("chat:2022") + "--" + KNOWN.partition("--")[2],
            KNOWN + "é",
            "é--é",
            "\ud800--\ud800",
            "x" * 100_000,
            "--" * 1000,
        ],
    )
    def test_an_invalid_signature_is_refused(self, signed: str) -> None:
        assert verify_stream_name(signed) is None

    @override_settings(RELIABLE_CABLE=S3KRIT)
    def test_a_signature_with_another_secret_is_refused(self) -> None:
        assert verify_stream_name(sign(encode("chat:2021"), "other")) is None

    @override_settings(RELIABLE_CABLE=S3KRIT)
    @pytest.mark.parametrize(
        "encoded",
        [
            encode(1),
            encode(None),
            encode(""),
            encode(["chat:2021"]),
            encode("chat:2021")[:-3],
            base64.b64encode(b"chat:2021").decode(),
            base64.b64encode(b"\xff").decode(),
            base64.b64encode(b"[" * 100_000).decode(),
            "not base64",
            "",
        ],
    )
    def test_a_valid_signature_of_an_invalid_name_is_refused(self, encoded: str) -> None:
        assert verify_stream_name(sign(encoded, "s3Krit")) is None


class TestSecretKeyFallbacks:
    def test_a_name_that_was_signed_with_a_fallback_key_is_valid(self) -> None:
        with override_settings(SECRET_KEY="former", RELIABLE_CABLE={}):
            signed = signed_stream_name("chat/1")
        with override_settings(SECRET_KEY="new", SECRET_KEY_FALLBACKS=["older", "former"], RELIABLE_CABLE={}):
            assert verify_stream_name(signed) == "chat/1"
            assert signed_stream_name("chat/1") != signed
        with override_settings(SECRET_KEY="new", SECRET_KEY_FALLBACKS=["older"], RELIABLE_CABLE={}):
            assert verify_stream_name(signed) is None

    def test_fallback_keys_are_not_used_with_a_configured_secret(self) -> None:
        with override_settings(SECRET_KEY="former", RELIABLE_CABLE={}):
            signed = signed_stream_name("chat/1")
        with override_settings(SECRET_KEY="new", SECRET_KEY_FALLBACKS=["former"], RELIABLE_CABLE={"SECRET": "own"}):
            assert verify_stream_name(signed) is None


@override_settings(RELIABLE_CABLE={"SECRET": "qwerty"})
@pytest.mark.parametrize("purpose", ["broadcast-cable", "api-cable", "rpc-cable"])
def test_a_derived_key_is_the_hmac_of_its_purpose(purpose: str) -> None:
    assert derived_key(purpose) == hmac.new(b"qwerty", purpose.encode(), hashlib.sha256).hexdigest()
