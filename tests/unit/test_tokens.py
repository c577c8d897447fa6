"""Tokens: their places in a handshake, the rules by which they are valid, and the functions that make them."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
from datetime import timedelta
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from django.conf import settings as django_settings
from django.contrib.auth import get_user_model
from django.contrib.auth.models import AnonymousUser
from django.core.exceptions import ImproperlyConfigured
from hypothesis import given
from hypothesis import strategies as st

from reliable_cable import cable_token
from reliable_cable.auth import InvalidToken, TokenExpired, tokens
from reliable_cable.auth.tokens import find_token
from reliable_cable.auth.verification import MAX_TOKEN_SIZE, TokenAuthentication, get_verifier
from reliable_cable.conf import derived_secret
from reliable_cable.exceptions import InvalidIdentifier
from tests.unit.tokens import SECRET, after, handshake, sign

User = get_user_model()


@pytest.fixture(autouse=True)
def _settings(settings: Any) -> None:
    settings.RELIABLE_CABLE = {"ENGINE": "memory", "JWT_SECRET": SECRET}


async def verify(token: str) -> TokenAuthentication:
    return await get_verifier().authenticate(token, handshake(token))


async def refusal(token: str) -> str:
    """Return why a token is refused."""
    with pytest.raises(InvalidToken) as caught:
        await verify(token)
    assert not isinstance(caught.value, TokenExpired)
    return str(caught.value)


class TestWhereATokenIs:
    @pytest.mark.parametrize(
        ("scope", "expected"),
        [
            ({}, None),
            ({"query_string": b"jid=a.b.c&pi=3"}, "a.b.c"),
            ({"query_string": b"pi=3&jid="}, None),
            ({"query_string": b"ajid=x"}, None),
            ({"query_string": b"jid=a%20b"}, "a b"),
            ({"headers": [(b"X-Jid", b"h")], "query_string": b"jid=q"}, "h"),
            ({"headers": [(b"x-jid", b"")], "query_string": b"jid=q"}, "q"),
            (
                {
                    "subprotocols": ["actioncable-v1-json", "anycable-token.s"],
                    "headers": [(b"x-jid", b"h")],
                    "query_string": b"jid=q",
                },
                "s",
            ),
            ({"subprotocols": ["anycable-token."], "headers": [(b"x-jid", b"h")]}, "h"),
        ],
    )
    def test_the_first_of_subprotocol_header_and_query_counts(self, scope: Any, expected: str | None) -> None:
        assert find_token({"type": "websocket", **scope}) == expected

    def test_a_scope_needs_no_more_than_asgi_requires(self) -> None:
        assert find_token({"type": "websocket", "path": "/"}) is None


class TestWhatIsValid:
    async def test_a_token_as_anycable_makes_it(self) -> None:
        token = sign(ext='{"room":7,"guest":"ann"}', exp=(expiry := after(60)))
        found = await verify(token)
        assert found.identifiers == {"room": 7, "guest": "ann"}
        assert dict(found.claims) == {"ext": '{"room":7,"guest":"ann"}', "exp": expiry}
        assert found.expires_at == expiry + 5
        assert isinstance(found.user, AnonymousUser)
        assert found.login is None

    async def test_a_token_without_an_expiry_never_expires(self) -> None:
        assert (await verify(sign(ext={}))).expires_at is None

    async def test_identifiers_that_are_null_are_left_out(self) -> None:
        assert (await verify(sign(ext={"user": None, "room": None, "n": 0}))).identifiers == {"n": 0}

    @pytest.mark.parametrize("leeway", [0, 30])
    async def test_an_expired_token(self, settings: Any, leeway: float) -> None:
        settings.RELIABLE_CABLE = {**settings.RELIABLE_CABLE, "JWT_LEEWAY": leeway}
        assert await verify(sign(ext={}, exp=after(20 - leeway)))
        with pytest.raises(TokenExpired):
            await verify(sign(ext={}, exp=after(-20 - leeway)))

    @pytest.mark.parametrize("claim", ["nbf", "iat"])
    async def test_a_token_that_is_not_valid_yet(self, claim: str) -> None:
        """The clock of the host that made the token may be fast by `JWT_LEEWAY`."""
        assert await verify(sign(SECRET, **{"ext": "{}", claim: after(3)}))
        assert await refusal(sign(SECRET, **{"ext": "{}", claim: after(60)})) == "is not valid (ImmatureSignatureError)"

    @pytest.mark.parametrize("claim", ["exp", "nbf", "iat"])
    @pytest.mark.parametrize("value", [None, "soon", [], {}, float("nan"), float("inf"), "1e9"])
    async def test_a_time_that_is_none(self, claim: str, value: Any) -> None:
        assert (await refusal(sign(**{"ext": {}, claim: value}))).startswith("is not valid (")

    @pytest.mark.parametrize("expiry", [2**63, 10**300, 10**4000])
    async def test_an_expiry_in_the_far_future(self, expiry: int) -> None:
        assert (await verify(sign(ext={}, exp=expiry))).expires_at == 2**53 + 5

    async def test_no_algorithm(self) -> None:
        expected = "has an algorithm that is not in JWT_ALGORITHMS"
        assert await refusal(jwt.encode({"ext": "{}"}, "", algorithm="none")) == expected
        _, payload, _ = sign(ext={}).split(".")
        names: list[Any] = ["none", "None", "NONE", "", None, ["HS256"], {}, 256]
        for name in names:
            fake = base64.urlsafe_b64encode(json.dumps({"alg": name}).encode()).decode().rstrip("=")
            for signature in ("", "x"):
                assert (await refusal(f"{fake}.{payload}.{signature}")).startswith(
                    ("has an algorithm", "is not a JSON")
                )

    @pytest.mark.parametrize("algorithm", ["HS384", "HS512"])
    async def test_another_algorithm(self, settings: Any, algorithm: str) -> None:
        token = sign(algorithm=algorithm, ext={})
        assert await refusal(token) == "has an algorithm that is not in JWT_ALGORITHMS"
        settings.RELIABLE_CABLE = {**settings.RELIABLE_CABLE, "JWT_ALGORITHMS": ["HS256", algorithm]}
        assert await verify(token)

    async def test_another_key(self) -> None:
        assert await refusal(sign(SECRET[::-1], ext={})) == "has a wrong signature"

    async def test_a_changed_payload(self) -> None:
        header, _, signature = sign(ext={"user": "1"}).split(".")
        payload = sign(ext={"user": "2"}).split(".")[1]
        assert await refusal(f"{header}.{payload}.{signature}") == "has a wrong signature"

    async def test_a_long_token_is_refused_before_it_is_parsed(self, monkeypatch: pytest.MonkeyPatch) -> None:
        fitting = sign(ext={}, fill="")
        token = sign(ext={}, fill="x" * (MAX_TOKEN_SIZE - len(fitting)))
        assert len(token) > MAX_TOKEN_SIZE
        monkeypatch.setattr(jwt, "decode", pytest.fail)
        monkeypatch.setattr(jwt, "get_unverified_header", pytest.fail)
        assert await refusal(token) == "is longer than 8192 characters"

    @pytest.mark.parametrize(
        "ext", ["", "{", "[]", "null", "1", '"x"', '{"user":NaN}', "[" * 5000, '{"a":1}x', "\ud800"[:0] + "{'a':1}"]
    )
    async def test_identifiers_that_are_no_json_object(self, ext: str) -> None:
        assert await refusal(sign(ext=ext)) == "has a claim 'ext' that is not a string with a JSON object"

    async def test_identifiers_that_are_not_in_a_string(self) -> None:
        token = jwt.encode({"ext": {"user": 1}}, SECRET)
        assert await refusal(token) == "has a claim 'ext' that is not a string with a JSON object"

    @pytest.mark.parametrize("value", [[], {}, [1], "a\0b", "\ud800"])
    async def test_identifiers_that_no_store_can_have(self, value: Any) -> None:
        assert (await refusal(sign(ext=json.dumps({"room": value})))).startswith("has the identifier 'room', which")

    async def test_the_audience_and_the_issuer(self, settings: Any) -> None:
        assert await refusal(sign(ext={}, aud="web")) == "has an audience that is not in JWT_AUDIENCE"
        base = settings.RELIABLE_CABLE
        settings.RELIABLE_CABLE = {**base, "JWT_AUDIENCE": ["web", "app"], "JWT_ISSUER": "https://login"}
        assert await verify(sign(ext={}, aud="app", iss="https://login"))
        assert await refusal(sign(ext={}, aud="other", iss="https://login")) == (
            "has an audience that is not in JWT_AUDIENCE"
        )
        assert "Issuer" in await refusal(sign(ext={}, aud="web", iss="https://other"))
        assert "MissingRequiredClaim" in await refusal(sign(ext={}, iss="https://login"))
        assert "MissingRequiredClaim" in await refusal(sign(ext={}, aud="web"))

    async def test_by_default_the_secret_is_that_of_the_application(self, settings: Any) -> None:
        settings.RELIABLE_CABLE = {"ENGINE": "memory", "SECRET": SECRET}
        assert await verify(sign(ext={}))
        settings.RELIABLE_CABLE = {"ENGINE": "memory"}
        settings.SECRET_KEY_FALLBACKS = ["old", "older"]
        for key in (django_settings.SECRET_KEY, "old", "older"):
            assert await verify(sign(derived_secret(key), ext={}))
            with pytest.raises(TokenExpired):
                await verify(sign(derived_secret(key), ext={}, exp=after(-60)))
        assert await refusal(sign(derived_secret("other"), ext={})) == "has a wrong signature"

    async def test_old_keys_are_not_accepted_for_a_secret_of_its_own(self, settings: Any) -> None:
        settings.SECRET_KEY_FALLBACKS = ["old"]
        assert await refusal(sign(derived_secret("old"), ext={})) == "has a wrong signature"

    @given(
        st.one_of(st.text(), st.binary().map(lambda junk: junk.decode("latin1")), st.from_regex(r"[\w.-]*\.[\w-]*\."))
    )
    async def test_junk_is_refused(self, junk: str) -> None:
        with pytest.raises(InvalidToken):
            await verify(junk)

    @given(
        st.dictionaries(
            st.sampled_from(["ext", "exp", "nbf", "iat", "aud", "iss", "sub", "jti", "crit", "x"]),
            st.recursive(
                st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
                lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
                max_leaves=5,
            ),
        )
    )
    async def test_any_claims_are_accepted_or_refused(self, claims: dict[str, Any]) -> None:
        """The database is not queried, because no claim names a user."""
        payload = base64.urlsafe_b64encode(json.dumps(claims).encode())
        token = jwt.api_jws.encode(base64.urlsafe_b64decode(payload), SECRET, "HS256")
        try:
            found = await verify(token)
        except InvalidToken:
            return
        # The claims are compared as text, because NaN does not even equal itself.
        assert json.dumps(dict(found.claims)) == json.dumps(claims)

    @given(st.dictionaries(st.text(max_size=8), st.none() | st.integers() | st.text(max_size=8) | st.just(["x"])))
    async def test_any_header_is_accepted_or_refused(self, header: dict[str, Any]) -> None:
        _, payload, signature = sign(ext={}).split(".")
        first = base64.urlsafe_b64encode(json.dumps({"alg": "HS256", **header}).encode()).decode().rstrip("=")
        with pytest.raises(InvalidToken):
            await verify(f"{first}.{payload}.{signature}")


async def test_a_public_key_is_never_used_as_a_secret(
    settings: Any, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An attacker signs with HS256, with the public key as the secret."""
    key = rsa.generate_private_key(65537, 2048)
    entry = json.loads(jwt.algorithms.RSAAlgorithm.to_jwk(key.public_key()))
    file = tmp_path / "keys.json"
    # The file also has a public key that claims to be usable with HS256, and a secret.
    secret = {"kty": "oct", "kid": "s", "k": base64.urlsafe_b64encode(SECRET.encode()).decode()}
    file.write_text(json.dumps({"keys": [{**entry, "kid": "1"}, {**entry, "kid": "2", "alg": "HS256"}, secret]}))
    settings.RELIABLE_CABLE = {
        "ENGINE": "memory",
        "JWT_JWKS": str(file),
        "JWT_ALGORITHMS": ["RS256", "HS256"],
        "JWT_SECRET": "another secret, which is long enough for HS256",
    }
    assert await verify(sign(key, "RS256", {"kid": "1"}, ext={}))
    pem = key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    der = key.public_key().public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    modulus = base64.urlsafe_b64decode(entry["n"] + "==")
    for public in (pem, der, modulus, file.read_bytes(), SECRET.encode()):
        for kid in ("1", "2", "s"):
            # The token is made by hand, because PyJWT refuses to sign with a public key.
            parts = [json.dumps(each).encode() for each in ({"alg": "HS256", "kid": kid}, {"ext": "{}"})]
            signed = b".".join(base64.urlsafe_b64encode(each).rstrip(b"=") for each in parts)
            digest = hmac.new(public, signed, hashlib.sha256).digest()
            token = signed + b"." + base64.urlsafe_b64encode(digest).rstrip(b"=")
            assert await refusal(token.decode()) == "has a wrong signature"
    # With this interval, an unknown key id makes the verifier read the file again.
    monkeypatch.setattr("reliable_cable.auth.jwks.MIN_INTERVAL", -1.0)
    unknown = "has a key id for which JWT_JWKS has no key of the token's algorithm"
    assert await refusal(sign(key, "RS256", {"kid": "2"}, ext={})) == unknown


@pytest.mark.django_db(transaction=True)
class TestUsers:
    async def test_a_row_or_a_primary_key(self, user: Any) -> None:
        for reference in (f"auth.user:{user.pk}", str(user.pk), user.pk):
            found = await verify(sign(ext={"user": reference, "room": 1}))
            assert (found.user, found.identifiers) == (user, {"room": 1})
            assert found.login is not None
            assert found.login.user_id == str(user.pk)

    @pytest.mark.parametrize(
        "reference",
        ["auth.group:1", "auth.user:", "auth.user:x", ":1", "", "x", "1\0", 10**30, -1, 1.5, True, "auth.user:987654"],
    )
    async def test_nobody(self, user: Any, reference: Any) -> None:
        assert await refusal(sign(ext={"user": reference}))

    async def test_a_user_who_was_deactivated_or_deleted(self, user: Any) -> None:
        token = sign(ext={"user": user.pk})
        await User.objects.filter(pk=user.pk).aupdate(is_active=False)
        assert await refusal(token) == "names a user who does not exist or is not active"
        await User.objects.all().adelete()
        assert await refusal(token) == "names a user who does not exist or is not active"

    async def test_the_user_of_another_claim(self, settings: Any, user: Any) -> None:
        token = sign(sub=str(user.pk))
        assert (await verify(token)).user == AnonymousUser()
        settings.RELIABLE_CABLE = {**settings.RELIABLE_CABLE, "JWT_USER_CLAIM": "sub"}
        assert (await verify(token)).user == user
        assert (await verify(sign(sub=user.pk))).user == user
        assert (await verify(sign(sub="987654", ext={"user": user.pk}))).user == user
        for wrong in ({}, {"sub": None}, {"sub": True}, {"sub": [user.pk]}):
            assert await refusal(sign(**wrong)) == "has no user in its claim 'sub'"
        assert await refusal(sign(sub="987654")) == "names a user who does not exist or is not active"


@pytest.mark.django_db(transaction=True)
class TestMakingTokens:
    @pytest.fixture
    def user(self) -> Any:
        return User.objects.create_user("ann", password="secret")

    def test_the_claims_are_those_of_anycable(self, user: Any) -> None:
        claims = jwt.decode(cable_token(user), SECRET, algorithms=["HS256"])
        assert claims == {"ext": f'{{"user":"auth.user:{user.pk}"}}', "exp": claims["exp"]}
        assert 3590 < claims["exp"] - after(0) <= 3600

    def test_several_identifiers(self, user: Any) -> None:
        claims = jwt.decode(cable_token({"user": user, "room": 7, "name": "x"}), SECRET, algorithms=["HS256"])
        assert json.loads(claims["ext"]) == {"user": f"auth.user:{user.pk}", "room": 7, "name": "x"}

    @pytest.mark.parametrize("ttl", [60, timedelta(minutes=1)])
    def test_the_time(self, user: Any, ttl: Any) -> None:
        claims = jwt.decode(cable_token(user, ttl=ttl), SECRET, algorithms=["HS256"])
        assert 50 < claims["exp"] - after(0) <= 60

    @pytest.mark.parametrize("ttl", [0, -1, timedelta(0), float("nan"), float("inf")])
    def test_a_wrong_time(self, user: Any, ttl: Any) -> None:
        with pytest.raises(ValueError, match="greater than 0"):
            cable_token(user, ttl=ttl)

    @pytest.mark.parametrize(
        "identifiers",
        [{}, None, AnonymousUser(), 1, "ann", {"user": 1}, {"user": "x"}, {"room": None}, {"room": [1]}, {"room": 1.5}],
    )
    def test_identifiers_that_cannot_be_in_a_token(self, identifiers: Any) -> None:
        with pytest.raises(InvalidIdentifier, match="cable_token"):
            cable_token(identifiers)

    def test_a_user_who_is_not_saved_and_a_row_that_is_no_user(self, user: Any) -> None:
        for identifiers in (User(username="new"), {"room": user}, {"user": user.groups.create(name="x")}):
            with pytest.raises(InvalidIdentifier, match="cable_token"):
                cable_token(identifiers)

    def test_public_keys_alone_cannot_sign(self, settings: Any, user: Any) -> None:
        settings.RELIABLE_CABLE = {"ENGINE": "memory", "JWT_JWKS": "keys.json", "JWT_ALGORITHMS": ["RS256"]}
        with pytest.raises(ImproperlyConfigured, match="Add 'HS256'"):
            cable_token(user)

    def test_the_first_algorithm_with_a_secret_is_used(self, settings: Any, user: Any) -> None:
        settings.RELIABLE_CABLE = {**settings.RELIABLE_CABLE, "JWT_ALGORITHMS": ["HS512", "HS256"]}
        assert jwt.get_unverified_header(cable_token(user))["alg"] == "HS512"

    def test_a_missing_package_is_named(self, monkeypatch: pytest.MonkeyPatch, user: Any) -> None:
        monkeypatch.setitem(__import__("sys").modules, "jwt", None)
        with pytest.raises(ImproperlyConfigured, match=r"pip install 'reliable_cable\[jwt\]'"):
            cable_token(user)


def test_reading_and_making_agree_about_the_claims() -> None:
    assert (tokens.IDENTIFIERS_CLAIM, tokens.NAMESPACE_CLAIM) == ("ext", "namespace")
